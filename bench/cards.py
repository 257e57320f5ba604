"""The device that is measured, and how: libraries in turns, those that agree only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import memory
import torch
from tasks import EVERY_TASK, TRITON, Loss, inputs, training_step
from torch import Tensor

from ssimfast.ops import library

torch.backends.cudnn.allow_tf32 = False  # else the peers round to it

HALF = (torch.float16, torch.bfloat16)
Step = Callable[[], object]
Shape = tuple[int, ...]


def first_line(command: list[str]) -> str:
    """The first line that a command prints; nothing if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines and done.returncode == 0 else ""


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version_of(distribution: str) -> str:
    """Nothing if it is not known."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


class Skipped(Exception):
    """A section does not apply here; why is the message."""


class Card:
    """What the sections ask of a device. This one is the CPU, standing in for a card."""

    device = "cpu"
    clock = "by the wall clock"

    def facts(self) -> dict[str, str]:
        return {"card": f"none: the CPU stands in ({processor()}, {platform.machine()})"}

    def milliseconds(self, step: Step) -> float:
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3

    def extra_images(self, task: str, library: str, loss: Loss, shape: Shape) -> float | None:
        """Peak memory of a step beyond its inputs, in image-sized tensors; None if unknown."""
        return memory.extra_images(task, library, shape) if library in EVERY_TASK[task] else None

    def capture(self, step: Step) -> Step:
        """The step as a graph that was recorded once; a call replays it."""
        raise Skipped("CUDA graphs and streams need a GPU")

    def on_side_stream(self, step: Step) -> None:
        raise Skipped("CUDA graphs and streams need a GPU")


class CudaCard(Card):
    """The GPU: all that is particular to torch.cuda is here."""

    device = "cuda"
    clock = (
        "by CUDA events, the L2 cache emptied before each step; Python runs ahead meanwhile, so "
        "that its overhead counts only beyond that time"
    )
    FLUSHED_BYTES = 256 << 20  # more than any L2 cache holds

    def facts(self) -> dict[str, str]:
        properties = torch.cuda.get_device_properties(0)
        driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return {
            "card": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "driver": first_line(driver) or "unknown",
            "CUDA of torch": str(torch.version.cuda),
        }

    def milliseconds(self, step: Step) -> float:
        torch.empty(self.FLUSHED_BYTES, dtype=torch.int8, device=self.device).zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    def extra_images(self, task: str, library: str, loss: Loss, shape: Shape) -> float | None:
        x, y = images(shape, torch.float32, self)
        training_step(loss, x, y)  # loads code and workspaces
        x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training_step(loss, x, y)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / (x.numel() * x.element_size())

    def capture(self, step: Step) -> Step:
        for _ in range(3):  # torch wants a warm-up, and not on the stream that everything else uses
            self.on_side_stream(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def on_side_stream(self, step: Step) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)


CARDS = {card.device: card for card in (Card, CudaCard)}


def images(shape: Shape, dtype: torch.dtype, card: Card) -> tuple[Tensor, Tensor]:
    """The images of tasks.py on the card; the first wants a gradient."""
    x, y = (image.detach().to(card.device, dtype) for image in inputs(shape))
    return x.requires_grad_(), y


def turns(
    card: Card, steps: dict[str, Step], rounds: int, seconds: float = 60.0
) -> dict[str, list[float]]:
    """Milliseconds of each step, taken in turns: a change of clocks then meets all alike.

    After ``seconds`` there are no more rounds than three.
    """
    for step in steps.values():
        for _ in range(2):
            card.milliseconds(step)
    times: dict[str, list[float]] = {name: [] for name in steps}
    stop = time.monotonic() + seconds
    for done in range(rounds):
        if done >= 3 and time.monotonic() > stop:
            break
        for name, step in steps.items():
            times[name].append(card.milliseconds(step))
    return times


def medians(
    card: Card, steps: dict[str, Step], rounds: int, seconds: float = 60.0
) -> dict[str, float]:
    """The median of each of ``turns``."""
    times = turns(card, steps, rounds, seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bandwidth(card: Card, size: int, rounds: int) -> float:
    """GB/s of a copy of ``size`` bytes on the card, read and written."""
    source = torch.zeros(size, dtype=torch.int8, device=card.device)
    target = torch.empty_like(source)
    copying = medians(card, {"copy": partial(target.copy_, source)}, rounds, 10)["copy"]
    return 2 * size / copying / 1e6


def our_backends(card: Card) -> list[str]:
    """The one that serves the card, and Triton beside compiled CUDA kernels."""
    has_triton = importlib.util.find_spec("triton") is not None
    both = has_triton and library.backends()[card.device] == "cuda"
    return ["ssimfast", TRITON] if both else ["ssimfast"]


@contextmanager
def served_by_triton() -> Iterator[None]:
    """The ops of ssimfast are Triton's, whatever kernels were compiled at installation."""
    from ssimfast.backends.triton import launch

    known = dict(library.OPS)
    try:
        for name, function in launch.OPS.items():
            library.OPS[name] = library.by_position(name, function)
        yield
    finally:
        library.OPS.update(known)


def runner(name: str) -> Callable:
    """Calls a function with the ops of that library, which may be ours served by Triton."""

    def run(function: Callable, *arguments):
        with served_by_triton() if name == TRITON else nullcontext():
            return function(*arguments)

    return run


def named(shape: Shape) -> str:
    return "x".join(map(str, shape))


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def summary_of(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def reason_to_exclude(loss: Loss, x: Tensor, y: Tensor, expected: float) -> str | None:
    """Why a library is not compared: it fails, or computes something else."""
    try:
        x.grad = None
        value = loss(x, y)
        value.backward()
        value = value.item()
    except Exception as error:  # whatever another library raises
        return summary_of(error)
    tolerance = 1e-4 if x.dtype == torch.float32 else 1e-2
    if not abs(value - expected) <= tolerance:
        return f"its loss is {value:.6f}, that of ssimfast {expected:.6f}"
    return None
