"""What one line of the tables is: libraries that compute the same, in turns on the same images.

pytest-benchmark measures one library a test, one after another, and so would put every change of
the machine's clock on whoever runs at the time. Here all libraries of a group take turns; the tests
hand the times over to pytest-benchmark afterwards, through a clock that they set.
"""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from cards import (
    CARDS,
    Card,
    Shape,
    Step,
    copy_bandwidth,
    images,
    named,
    our_backends,
    reason_to_exclude,
    runner,
    short,
    version_of,
)
from cards import turns as in_turns
from tasks import (
    COMPILED,
    CONVENTIONS,
    EVERY_TASK,
    FUSED_PEERS,
    TASKS,
    Loss,
    libraries_of,
    training_step,
)
from torch import Tensor

CARD: Card = CARDS["cuda" if torch.cuda.is_available() else "cpu"]()
BACKENDS = our_backends(CARD)
LEAST_WEIGHED = 3 * 512 * 512  # pixels: pages of memory are large against smaller images
LARGEST_FOR_ALL = 3 * 1080 * 1920  # pixels and channels
SLOW_AT_4K = ("piq", "torchmetrics", "monai")
ROUNDS = 15
PARTS = ("forward", "forward and backward", "both gradients")


@dataclass(frozen=True)
class Group:
    task: str
    shape: Shape
    part: str = "forward and backward"
    dtype: torch.dtype = torch.float32
    threads: int = 0  # all

    def __str__(self) -> str:
        words = [self.task, self.part, named(self.shape)]
        words += [] if self.dtype == torch.float32 else [short(self.dtype)]
        words += [f"{self.threads} threads"] if self.threads else []
        return ", ".join(words)


def peers(group: Group) -> list[str]:
    """All libraries that have the task, installed or not; at 4K on a CPU without those that need
    ten seconds a step."""
    names = [name for name in TASKS[group.task] if name != "ssimfast"]
    names[1:1] = [COMPILED]
    if group.task == "SSIM" and CARD.device == "cuda":
        names += FUSED_PEERS
    large = torch.Size(group.shape).numel() > LARGEST_FOR_ALL and CARD.device == "cpu"
    return [name for name in names if not (large and name in SLOW_AT_4K)]


def _step(loss: Loss, part: str, x: Tensor, y: Tensor) -> Step:
    if part == "forward":
        return partial(torch.no_grad()(loss), x, y)
    if part == "forward and backward":
        return partial(training_step, loss, x, y)

    def both() -> None:
        y.grad = None
        training_step(loss, x, y)

    return both


class Measured:
    """The times of a group, in milliseconds, and why a library is not among them."""

    def __init__(self, group: Group, libraries: list[str]):
        self.times: dict[str, list[float]] = {}
        self.reasons: dict[str, str] = {}
        threads = torch.get_num_threads()
        torch.set_num_threads(group.threads or threads)
        torch.compiler.reset()  # else a limit on compiling a function again is reached
        try:
            x, y = images(group.shape, group.dtype, CARD)
            if group.part == "both gradients":
                y.requires_grad_()
            steps = {}
            for name, loss in libraries_of(group.task, libraries).items():
                self.reasons[name] = self._reason(group, name, loss, x, y)
                if self.reasons[name] == "":
                    steps[name] = partial(runner(name), _step(loss, group.part, x, y))
            self.times = in_turns(CARD, steps, ROUNDS, math.inf)
        finally:
            torch.set_num_threads(threads)

    @staticmethod
    def _reason(group: Group, name: str, loss: Loss, x: Tensor, y: Tensor) -> str:
        if name == "ssimfast" or "(" in name:  # in brackets: the nearest that the library has
            return ""
        ours = CONVENTIONS.get((group.task, name), EVERY_TASK[group.task]["ssimfast"])
        with torch.no_grad():
            expected = ours(x, y).item()
        return runner(name)(reason_to_exclude, loss, x, y, expected) or ""


@cache
def measured(group: Group, libraries: tuple[str, ...]) -> Measured:
    return Measured(group, list(libraries))


def require_compared(found: Measured, group: Group, library: str) -> None:
    """Ends the test of a library that is not: with a failure if that is a backend of ours."""
    if reason := found.reasons[library]:
        end = pytest.fail if library in BACKENDS else pytest.skip
        end(f"{library}, {group.task}: {reason}")


# ---- the machine's limits -----------------------------------------------------------------------


@cache
def _probe() -> Path | None:
    """limits.cpp, compiled; None without a compiler."""
    folder = TemporaryDirectory()
    _probe.folder = folder  # lives as long as the process
    program = Path(folder.name) / "limits"
    source = Path(__file__).with_name("limits.cpp")
    flags = ["-O2", "-march=native", "-std=c++17", "-pthread"]
    try:
        subprocess.run(["c++", *flags, str(source), "-o", str(program)], check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return program


def limits(threads: int) -> tuple[float, float] | None:
    """GFMA/s in float32 (nothing on a GPU) and GB/s of copying, now."""
    if CARD.device != "cpu":
        return 0.0, copy_bandwidth(CARD, 1 << 29, 10)
    if _probe() is None:
        return None
    done = subprocess.run([str(_probe()), str(threads)], check=True, capture_output=True, text=True)
    fma, copy = map(float, done.stdout.split())
    return fma, copy


# Multiply-adds that the formulation needs (docs/cpu.md), and bytes that no implementation can do
# without: for each pixel and channel, window 11, float32.
NEEDED = {
    ("SSIM", "forward"): (88, 8),
    ("SSIM", "forward and backward"): (154, 12),
    ("MS-SSIM", "forward"): (88 * 4 / 3, 8),
    ("MS-SSIM", "forward and backward"): (154 * 4 / 3, 12),
}


def fractions(group: Group, milliseconds: float) -> dict[str, float]:
    """Of the machine's limits, that the fused kernel reaches; nothing where nobody counted."""
    needed, most = NEEDED.get((group.task, group.part)), None
    if needed is not None and group.dtype == torch.float32:
        most = limits(group.threads or torch.get_num_threads())
    if most is None:
        return {}
    pixels = torch.Size(group.shape).numel()
    reached = {"of_copy": needed[1] * pixels / milliseconds / 1e6 / most[1]}
    if most[0]:
        reached["of_fma"] = needed[0] * pixels / milliseconds / 1e6 / most[0]
    return reached


# ---- into pytest-benchmark ----------------------------------------------------------------------


class Clock:
    """Tells the time that it was set to."""

    __name__ = "turns"
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


clock = Clock()


def hand_over(benchmark, group: Group | str, milliseconds: list[float]) -> None:
    """The times, to a benchmark whose timer is ``clock``."""
    benchmark.group = str(group)
    left = iter(milliseconds)

    def next_round() -> None:
        clock.seconds += next(left) / 1e3

    benchmark.pedantic(next_round, rounds=len(milliseconds))


def note(benchmark, suite: str, group: Group, library: str) -> None:
    """What report.py makes its tables and plots of."""
    milliseconds = benchmark.stats.stats.median * 1e3
    info = {
        "suite": suite,
        "task": group.task,
        "part": group.part,
        "shape": named(group.shape),
        "dtype": short(group.dtype),
        "threads": group.threads,
        "pixels": torch.Size(group.shape).numel(),
        "library": library,
        "version": version_of(library.split(",")[0]),
    }
    if library == "ssimfast":
        info |= fractions(group, milliseconds)
    weighs = info["pixels"] >= LEAST_WEIGHED and group.dtype == torch.float32
    makes_bytes = "8-bit" in group.task  # in its first step, where they would be weighed too
    if weighs and group.part == "forward and backward" and not group.threads and not makes_bytes:
        loss = libraries_of(group.task, [library])[library]
        measure = runner(library)
        extra = measure(CARD.extra_images, group.task, library, loss, group.shape)
        info |= {} if extra is None else {"extra_images": extra}
    benchmark.extra_info.update(info)
