"""Everything that only a GPU can show, in one report: ``make gpu-report``.

``python bench/gpu_report.py`` writes docs/gpu_report.md: tests on the card, agreement with the CPU,
speed against other libraries, bandwidth, memory, CUDA graphs, determinism, compute-sanitizer.

Each section runs in a process of its own with a limit of time, for an error on the card spoils the
process that it happens in; it prints Markdown, which the report takes as far as it got. The report
is written anew after each section. Exit codes: 0 if every section ran and found nothing wrong, 1 if
one failed, ran out of time or could not run (its tool is missing), 2 without a card. With
``--device cpu --quick`` the CPU stands in for the card, to try the report itself; the sections that
only a GPU can run are then skipped, which makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

from cards import (
    CARDS,
    HALF,
    Card,
    Shape,
    Skipped,
    Step,
    copy_bandwidth,
    first_line,
    images,
    medians,
    named,
    our_backends,
    reason_to_exclude,
    runner,
    short,
    summary_of,
    version_of,
)
from tasks import COMPILED, FUSED_PEERS, TASKS, TRITON, Loss, inputs, libraries_of, training_step

import ssimfast
from ssimfast.ops import library

ROOT = Path(__file__).resolve().parents[1]
OURS = "ssimfast"  # served by what serves the card: ratios are to it, others are compared with it
LOSSES = ["SSIM", "MS-SSIM", "SSIM + L1", "mix (Zhao 2017)"]
REPEATED = ["SSIM", "SSIM + L1", "components", "MS-SSIM", "SSIM + MS-SSIM", "mix (Zhao 2017)"]


class Failed(SystemExit):
    """A section found something wrong, which the message says; there is nothing to trace back."""


# ---- what sections share ------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """What a section is told: the card, how thorough to be, how long it has."""

    card: Card
    quick: bool = False
    seconds: float = 60.0
    select: str = ""  # arguments of pytest that select tests
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the section should have ended by itself."""
        return self.start + 0.9 * self.seconds - time.monotonic()


say = partial(print, flush=True)  # what was said is in the report even if the section is killed


def row(*cells: object) -> None:
    say("|", " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells), "|")


def head(*cells: str) -> None:
    row(*cells)
    say("|" + "---|" * len(cells))


def isolation() -> list[str]:
    """The flag of this Python that its children need, too."""
    return ["-I"] if sys.flags.isolated else []


def run_limited(
    command: list[str], seconds: float, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """Exit code, None if the command was stopped at its limit, and what it printed.

    It is interrupted first, so that pytest still writes what it has; then killed.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output, interruptible():
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,  # not the root: Python would import the sources there
            env=os.environ | (environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        code = wait(process, seconds)
        if code is None:
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
            if wait(process, 5) is None:
                process.kill()
                process.wait()
        output.seek(0)
        return code, output.read()


@contextmanager
def interruptible() -> Iterator[None]:
    """What is started here heeds SIGINT, though a shell's background jobs inherit to ignore it."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def wait(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def last_lines(text: str, count: int = 25) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


# ---- sections -----------------------------------------------------------------------------------


def machine(context: Context) -> None:
    head("what", "here")
    facts = context.card.facts() | {
        "torch": torch.__version__,
        "nvcc": nvcc_version(),
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "ssimfast": f"{ssimfast.__version__}, git commit {git_commit()}",
        "backend": ssimfast.backends()[context.card.device],
    }
    for name, module in PEERS.items():
        installed = importlib.util.find_spec(module) is not None
        facts[name] = version_of(name) or "version unknown" if installed else "not installed"
    for what, here in facts.items():
        row(what, here)
    if facts["backend"] == "reference" and context.card.device != "cpu":
        raise Failed(
            "no compiled kernels serve this card: all that follows is about the reference in "
            "PyTorch operations (python -m ssimfast says why)"
        )


def nvcc_version() -> str:
    paths = [shutil.which("nvcc"), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"]
    for path in filter(None, paths):
        if Path(path).exists():
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
            lines = [line for line in done.stdout.splitlines() if "release" in line]
            return lines[0].split(",", 1)[-1].strip() if lines else "unknown"
    return "not installed"


def git_commit() -> str:
    return first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]) or "unknown"


def tests(context: Context) -> None:
    """pytest in a process of its own, read from its junit file."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "junit.xml"
        command = [sys.executable, *isolation(), "-m", "pytest", *shlex.split(context.select)]
        command += ["-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={results}"]
        say(f"`pytest {context.select.replace(f'{ROOT}{os.sep}', '')}`\n")
        code, output = run_limited(command, context.left() - 5)
        ran = report_tests(results) if results.exists() else 0
    if code is None:
        raise Failed(f"pytest was stopped at its limit; it printed last:\n{last_lines(output)}")
    if code != 0 or ran == 0:
        what = "some tests failed" if ran else "no test ran"
        raise Failed(f"{what} (pytest's exit code {code}); it printed last:\n{last_lines(output)}")


def report_tests(results: Path, listed: int = 20) -> int:
    """Prints the counts, the first failures and why tests were skipped; how many ran."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures: list[str] = []
    reasons: dict[str, int] = {}
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        if case.get("name") is None:  # interrupted
            continue
        wrong = [*case.iter("failure"), *case.iter("error")]
        for problem in wrong:
            message = (problem.get("message") or "").strip().splitlines() or [""]
            failures.append(f"{case.get('classname')}.{case.get('name')}: {message[0][:200]}")
        for skip in case.iter("skipped"):
            reasons[skip.get("message") or ""] = reasons.get(skip.get("message") or "", 0) + 1
        state = "failed" if wrong else "skipped" if case.find("skipped") is not None else "passed"
        counts[state] += 1
    head("passed", "failed", "skipped")
    row(*counts.values())
    if failures:
        say(f"\nThe first of {len(failures)} failures:\n")
    for failure in failures[:listed]:
        say(f"- `{failure.replace('`', chr(39))}`")
    if reasons:
        say("\nSkipped:\n")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:listed]:
        say(f"- {count}: {reason}")
    return counts["passed"] + counts["failed"]


# ---- sections: every op, for agreement and for compute-sanitizer --------------------------------


@dataclass(frozen=True)
class Case:
    """One call of a public function, with a gradient."""

    op: str
    run: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]
    shape: Shape = (2, 3, 37, 53)
    wants: str = "x"  # the images that want a gradient
    averages: bool = True  # else the gradient of an output of one is not small
    layout: str = "contiguous"


_SSIM_ARGUMENTS: list[dict] = [
    {},
    {"padding": "same"},
    {"padding": "reflect"},
    {"window_size": 9, "value_range": (-1.0, 1.0), "padding": "same"},
    {"window_size": 7, "data_range": 2.0},
    {"window": "uniform", "window_size": 7, "sample_covariance": True},
    {"window_size": 3, "sigma": 0.3},
    {"window_size": 11, "sigma": 0.2},
    {"window_size": 33, "sigma": 5.0},
    {"window_size": 33, "sigma": 5.0, "padding": "same"},
]
_MS_SSIM_ARGUMENTS: list[dict] = [
    {"weights": "auto"},
    {"weights": "auto", "padding": "same", "odd": "pad"},
    {"weights": (0.2, 0.3, 0.5), "window_size": 7, "odd": "replicate", "negative": "abs"},
    {"weights": (0.2, 0.3, 0.5), "channels": "joint", "value_range": (-1.0, 1.0)},
    {"weights": "auto", "padding": "reflect", "window_size": 9},
    {"weights": "auto", "window": "uniform", "window_size": 5},
]
_MIXTURES: list[dict] = [
    {"ssim": 0.5, "l1": 0.2, "l2": 0.2, "gaussian_l1": 0.1},
    {"ssim": 0.0, "l1": 0.5, "l2": 0.5, "padding": "same"},
    {"ssim": 0.84, "gaussian_l1": 0.16, "window_size": 7, "reduction": "batch"},
    {"ssim": 0.0, "ms_ssim": 0.84, "gaussian_l1": 0.16, "weights": "auto"},
    {"ssim": 0.5, "ms_ssim": 0.5, "weights": "auto", "value_range": (-1.0, 1.0)},
    {"ssim": 0.2, "ms_ssim": 0.5, "l1": 0.3, "weights": "auto", "reduction": "batch"},
]


def _masked(x: Tensor, y: Tensor) -> Tensor:
    mask = torch.arange(x.shape[-1], device=x.device) % 5 > 0
    return ssimfast.ssim(x, y, mask=mask, padding="same")


def cases() -> Iterator[Case]:
    """Every op once or more: all windows, paddings, reductions, gradients, layouts."""
    ssim = ssimfast.ssim
    for arguments in _SSIM_ARGUMENTS:
        yield Case("ssim", partial(ssim, **arguments))
        yield Case("map of ssim", partial(ssim, reduction="none", **arguments), wants="xy")
    for wants in ("y", "xy"):
        yield Case("ssim", partial(ssim, reduction="batch"), wants=wants)
    yield Case("ssim", partial(ssim, reduction="sum"), averages=False)
    for layout in ("channels last", "transposed"):
        yield Case("ssim", ssim, layout=layout, wants="xy")
        yield Case("map of ssim", partial(ssim, reduction="none"), layout=layout)
    for shape in ((1, 1, 11, 11), (1, 2, 67, 1031), (3, 1, 331, 13)):
        yield Case("ssim", ssim, shape, wants="xy")
        yield Case("map of ssim", partial(ssim, reduction="none", padding="same"), shape)
    for arguments in _SSIM_ARGUMENTS:
        if arguments.get("padding") != "reflect":
            yield Case("components", partial(ssimfast.ssim_components, **arguments), wants="xy")
    for arguments in _MS_SSIM_ARGUMENTS:
        for reduction, wants in (("mean", "x"), ("none", "xy")):
            run = partial(ssimfast.ms_ssim, reduction=reduction, **arguments)
            yield Case("ms_ssim", run, (2, 3, 47, 61), wants)
    for arguments in _MIXTURES:
        for wants in ("x", "xy"):
            run = partial(ssimfast.similarity_loss, **arguments)
            yield Case("similarity_loss", run, (2, 3, 47, 61), wants)
    yield Case("mask", _masked, wants="xy")
    yield Case("volume", ssim, (1, 2, 13, 17, 19), "xy")


def results(case: Case, dtype: torch.dtype, exactly: bool, card: Card) -> tuple[list, list]:
    """Outputs and gradients of a case for images of a dtype; exactly: of these in float64."""
    x, y = (image.detach().to(dtype) for image in inputs(case.shape))
    if exactly:
        x, y = x.double(), y.double()
    x, y = (_laid_out(image.to(card.device), case.layout) for image in (x, y))
    wanting = [image.requires_grad_() for name, image in (("x", x), ("y", y)) if name in case.wants]
    outputs = case.run(x, y)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # Gradients of means are brought to a size that float16 resolves.
    upstream = [
        torch.linspace(0.5, 1.0, out.numel(), dtype=torch.float64).reshape(out.shape).to(out)
        * (x.numel() / out.numel() if case.averages else 1.0)
        for out in outputs
    ]
    return [out.detach() for out in outputs], list(torch.autograd.grad(outputs, wanting, upstream))


def _laid_out(image: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return image.contiguous(memory_format=torch.channels_last)
    return image.mT.contiguous().mT if layout == "transposed" else image


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def workload(card: Card, dtypes: Iterable[torch.dtype]) -> None:
    for dtype in dtypes:
        for case in cases():
            results(case, dtype, False, card)


# The largest errors of values (of 1 if they are smaller) and gradients (of their largest) that are
# no bug: twice a rounding of the dtype, and generously what float32 loses.
_LIMITS = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (1e-5, 2e-3),
    torch.bfloat16: (1e-5, 1.6e-2),
}


def agreement(context: Context) -> None:
    """The same calls on the card and in float64 on the CPU, with the same images."""
    card, exact = context.card, Card()
    say(f"Against float64 on the CPU ({ssimfast.backends()['cpu']}): largest errors of values, of")
    say("their size where that is above 1, and of gradients, of the largest of each.\n")
    head("op", "dtype", "calls", "values", "gradients", "within")
    wrong = []
    for dtype in DTYPES[: 2 if context.quick else None]:
        worst: dict[str, list] = {}
        for case in cases():
            got, want = results(case, dtype, False, card), results(case, dtype, True, exact)
            errors = [_error(got[i], want[i], (1.0, 1e-300)[i]) for i in range(2)]
            if not all(error <= most for error, most in zip(errors, _LIMITS[dtype], strict=True)):
                wrong.append(f"{short(dtype)}: {case}: {errors}")
            entry = worst.setdefault(case.op, [0, 0.0, 0.0])
            entry[0] += 1
            # NaN is the worst.
            entry[1:] = [b if not b <= a else a for a, b in zip(entry[1:], errors, strict=True)]
        for op, (count, *errors) in worst.items():
            limits = " and ".join(f"{limit:.0e}" for limit in _LIMITS[dtype])
            row(op, short(dtype), count, *(f"{error:.1e}" for error in errors), limits)
    if wrong:
        raise Failed("\n".join([f"{len(wrong)} calls disagree:", *wrong[:20]]))


def _error(got: Sequence[Tensor], want: Sequence[Tensor], least: float) -> float:
    """The largest error, of the largest value or ``least``; NaN if anything is NaN."""
    errors = [
        (a.double().cpu() - b).abs().max() / b.abs().max().clamp(min=least)
        for a, b in zip(got, want, strict=True)
    ]
    return torch.stack(errors).max().item()


# ---- sections: compute-sanitizer ----------------------------------------------------------------


def sanitizer(context: Context) -> None:
    if context.card.device == "cpu":
        raise Skipped("compute-sanitizer watches kernels on a GPU, and none ran")
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise Skipped("compute-sanitizer is not installed (not on PATH)")
    sanitize(tool, context)


def sanitize(tool: str, context: Context) -> None:
    """Every op once under each check, without torch's cache of memory: it would hide overruns."""
    say("Every op of the section on agreement, in every dtype.\n")
    head("check", "result", "seconds")
    watched = [sys.executable, *isolation(), __file__, "--workload", "--device"]
    watched += [context.card.device]
    problems = []
    for i, check in enumerate(("memcheck", "racecheck")):
        start = time.monotonic()
        code, output = run_limited(
            [tool, "--tool", check, "--error-exitcode", "9", *watched],
            context.left() / (2 - i) - 5,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        found = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
        state = "stopped at its limit" if code is None else f"exit code {code}"
        row(check, "; ".join([state, *found]), f"{time.monotonic() - start:.0f}")
        if code != 0:
            problems.append(f"{check}: {state}; it printed last:\n{last_lines(output)}")
    if problems:
        raise Failed("\n".join(problems))


# ---- sections: speed, bandwidth, memory ---------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """A loss at a size, for which libraries are compared."""

    loss: str
    shape: Shape
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.loss}, {named(self.shape)}, {short(self.dtype)}"


def timed(quick: bool) -> list[Timed]:
    if quick:  # 176 is the least that five scales take
        small = [Timed(loss, (1, 1, 176, 176)) for loss in LOSSES]
        return small + [Timed("SSIM", (1, 1, 32, 32), dtype) for dtype in HALF]
    squares = [(1, 3, 256, 256), (16, 3, 256, 256), (8, 3, 512, 512)]
    shapes = [*squares, (1, 3, 1080, 1920), (8, 3, 1080, 1920)]
    single = [Timed(loss, shape) for loss in LOSSES for shape in shapes]
    return single + [Timed("SSIM", shape, dtype) for dtype in HALF for shape in shapes[1:]]


def timed_compiled(quick: bool) -> list[Timed]:
    """Few, for each has to be compiled first, and none in a hurry."""
    shapes = [] if quick else [(16, 3, 256, 256), (1, 3, 1080, 1920)]
    return [Timed(loss, shape) for loss in ("SSIM", "MS-SSIM") for shape in shapes]


# Whose fused kernels are for GPUs, and what everyone uses.
PEERS = {**FUSED_PEERS, "pytorch-msssim": "pytorch_msssim"}


def installed_libraries(card: Card) -> list[str]:
    return our_backends(card) + [name for name in PEERS if importlib.util.find_spec(PEERS[name])]


def compared(
    case: Timed, columns: Sequence[str], card: Card, excluded: list[str]
) -> dict[str, Step]:
    """Steps of the libraries that agree; ``excluded`` gets the others, with reasons."""
    x, y = images(case.shape, case.dtype, card)
    losses = libraries_of(case.loss, columns)
    expected = losses[OURS](x, y).item()
    steps: dict[str, Step] = {}
    for name, loss in losses.items():
        reason = None
        run = runner(name)
        if name != OURS:
            start = time.monotonic()
            reason = run(reason_to_exclude, loss, x, y, expected)
            if name == TRITON:
                first_calls[str(case)] = time.monotonic() - start
        if reason is None:
            steps[name] = partial(run, training_step, loss, x, y)
        elif name in our_backends(card):
            raise Failed(f"{name}, {case}: {reason}")
        else:
            excluded.append(f"{name}, {case}: {reason}")
    return steps


# Seconds of the first step by Triton, which compiles what no step before it needed.
first_calls: dict[str, float] = {}


def say_first_calls(least: float = 0.5) -> None:
    slow = {case: seconds for case, seconds in first_calls.items() if seconds > least}
    if slow:
        say("\nFirst steps by Triton, which compile their kernels:\n")
    for case, seconds in slow.items():
        say(f"- {case}: {seconds:.1f} s")


def say_excluded(excluded: Sequence[str]) -> None:
    if excluded:
        say("\nNot compared:\n")
    for reason in excluded:
        say(f"- {reason}")


def speed(context: Context) -> None:
    say("Forward and backward, median ms (in brackets: how many times as long as")
    say(f"{OURS}), libraries in turns, TF32 off, {context.card.clock}.\n")
    columns, excluded = installed_libraries(context.card), []
    todo, compiled = timed(context.quick), timed_compiled(context.quick)
    left_out = speed_table(context, todo, columns, excluded)
    if compiled and "pytorch-msssim" in columns:
        say("\nThe same with torch.compile around pytorch-msssim:\n")
        left_out += speed_table(context, compiled, [OURS, COMPILED], excluded)
    say_first_calls()
    say_excluded(excluded)
    if left_out:
        raise Failed("no time was left for: " + "; ".join(map(str, left_out)))


def speed_table(
    context: Context, todo: Sequence[Timed], columns: Sequence[str], excluded: list[str]
) -> list[Timed]:
    """A row for each of ``todo``, a column for each library; those for which no time was left."""
    head("loss", "images", "dtype", *columns)
    for i, case in enumerate(todo):
        if context.left() < 0:
            return list(todo[i:])
        steps = compared(case, columns, context.card, excluded)
        seconds = context.left() / (len(todo) - i) / 2
        times = medians(context.card, steps, 3 if context.quick else 30, seconds)
        ours = times[OURS]
        cells = [f"{ours:.3f}"]
        for name in columns[1:]:
            cells.append(f"{times[name]:.3f} ({times[name] / ours:.1f})" if name in times else "-")
        row(case.loss, named(case.shape), short(case.dtype), *cells)
    return []


def bandwidth(context: Context) -> None:
    """What SSIM cannot do without, against what the card copies."""
    card, rounds = context.card, 3 if context.quick else 30
    size = 1 << (24 if context.quick else 29)
    most = copy_bandwidth(card, size, rounds)
    say("A float32 pixel of SSIM with its gradient is at least 12 bytes: two images read, a")
    say("gradient written. Backward, which scales that, reads and writes 8 more. Half types: half.")
    say(f"A copy of {size >> 20} MiB, read and written, runs at {most:.0f} GB/s.\n")
    head("images", "dtype", "part", "ms", "GB/s", "of the copy")
    shapes = [(1, 3, 176, 176)] if context.quick else [(8, 3, 512, 512), (8, 3, 1080, 1920)]
    loss = TASKS["SSIM"][OURS]
    for shape in shapes:
        for dtype in (torch.float32, torch.float16):
            x, y = images(shape, dtype, card)
            steps: dict[str, Step] = {
                "forward with gradient": partial(loss, x, y),
                "forward and backward": partial(training_step, loss, x, y),
            }
            times = medians(card, steps, rounds, context.left() / 4)
            for (part, milliseconds), accesses in zip(times.items(), (3, 5), strict=True):
                rate = accesses * x.numel() * x.element_size() / milliseconds / 1e6
                cells = (f"{milliseconds:.3f}", f"{rate:.0f}", f"{100 * rate / most:.0f} %")
                row(named(shape), short(dtype), part, *cells)


def memory_of_step(context: Context) -> None:
    columns = installed_libraries(context.card)
    say("Peak memory of forward and backward beyond the two inputs, in image-sized tensors (the")
    say("gradient is one of them), float32.\n")
    head("loss", "images", *columns)
    shapes = [(1, 1, 512, 512)] if context.quick else [(16, 3, 256, 256), (1, 3, 1080, 1920)]
    failures: list[str] = []
    for task in LOSSES[:1] if context.quick else LOSSES:
        for shape in shapes:
            losses = libraries_of(task, columns)
            cells = {
                name: runner(name)(_extra_images, context.card, task, name, loss, shape, failures)
                for name, loss in losses.items()
            }
            row(task, named(shape), *(cells.get(name, "-") for name in columns))
    say_excluded(failures)


def _extra_images(
    card: Card, task: str, name: str, loss: Loss, shape: Shape, failures: list[str]
) -> str:
    try:
        extra = card.extra_images(task, name, loss, shape)
    except Exception as error:
        if name in our_backends(card):
            raise
        failures.append(f"{name}, {task}, {named(shape)}: {summary_of(error)}")
        return "-"
    return "not measured" if extra is None else f"{extra:.1f}"


# ---- sections: graphs, determinism --------------------------------------------------------------


class TrainingStep:
    """Net, loss, backward, in tensors that stay where they are, as a CUDA graph wants.

    The net is a scale and an offset for each channel and a tanh: its own backward, a sum, gives the
    same bits every time, which a convolution's need not.
    """

    def __init__(self, loss: Loss, shape: Shape, card: Card) -> None:
        self.loss = loss
        noise, self.target = images(shape, torch.float32, card)
        self.noise = noise.detach()
        ones = torch.ones(shape[1], 1, 1, device=card.device)
        self.weights = [(0.9 * ones).requires_grad_(), (0.05 * ones).requires_grad_()]
        self.results: list[Tensor] = []

    def feed(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.noise.copy_(torch.rand(self.noise.shape, generator=generator))

    def __call__(self) -> None:
        for weight in self.weights:
            weight.grad = None
        fake = torch.tanh(self.noise * self.weights[0] + self.weights[1])
        fake.retain_grad()
        loss = self.loss(fake, self.target)
        loss.backward()
        self.results = [loss.detach(), fake.grad, *(weight.grad for weight in self.weights)]


def same_bits(results: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


def graphs(context: Context) -> None:
    """Replayed with other images than it was captured with, a step must do what it does eagerly."""
    card = context.card
    shape, rounds = ((1, 1, 176, 176), 3) if context.quick else ((4, 3, 256, 256), 20)
    say(f"A step of net, loss and backward at {named(shape)}, float32, captured once and replayed")
    say("with two other batches; loss and all gradients bit for bit against eager.\n")
    problems = []
    card.on_side_stream(lambda: None)  # skips the section where there are none, before its table
    head("loss", "graph", "side stream", "eager ms", "graph ms")
    for task in REPEATED:
        steps = [TrainingStep(TASKS[task][OURS], shape, card) for _ in range(3)]
        eager, beside, graphed = steps
        try:
            side_stream_agrees = agrees(eager, beside, partial(card.on_side_stream, beside))
            replay = card.capture(graphed)
            graph_agrees = agrees(eager, graphed, replay)
            times = medians(card, {"eager": eager, "graph": replay}, rounds, 3).values()
        except Exception as error:  # a loss that cannot be captured leaves the others theirs
            row(task, f"**{summary_of(error)}**", "", "", "")
            problems.append(f"{task}: {traceback.format_exc(limit=-8)}")
            continue
        same = (graph_agrees, side_stream_agrees)
        cells = ["same bits" if agree else "**differs**" for agree in same]
        row(task, *cells, *(f"{milliseconds:.3f}" for milliseconds in times))
        if not all(same):
            problems.append(f"{task}: other bits than eager")
    if problems:
        raise Failed("\n".join(problems))


def agrees(eager: TrainingStep, other: TrainingStep, run_other: Step) -> bool:
    """Whether two batches give the same bits both ways."""
    same = True
    for seed in (1, 2):
        eager.feed(seed)
        other.feed(seed)
        eager()
        run_other()
        same = same and same_bits(eager.results, other.results)
    return same


def determinism(context: Context, runs: int = 10) -> None:
    head("loss", "images", "dtype", "runs", "bits")
    shapes = [(1, 2, 176, 176)] if context.quick else [(16, 3, 256, 256), (1, 3, 1080, 1920)]
    wrong = []
    for task in REPEATED:
        for shape in shapes:
            for dtype in (torch.float32, torch.float16):
                x, y = images(shape, dtype, context.card)
                loss = TASKS[task][OURS]
                same = repeats(loss, x, y, runs)
                row(task, named(shape), short(dtype), runs, "same" if same else "**differ**")
                if not same:
                    wrong.append(f"{task}, {named(shape)}, {short(dtype)}")
    if wrong:
        raise Failed("other bits from run to run: " + "; ".join(wrong))


def repeats(loss: Loss, x: Tensor, y: Tensor, runs: int) -> bool:
    """Whether value and gradient of all runs are the same bit for bit."""
    first: list[Tensor] = []
    for _ in range(runs):
        x.grad = None
        value = loss(x, y)
        value.backward()
        results = [value.detach(), x.grad.clone()]
        first = first or results
        if not same_bits(results, first):
            return False
    return True


# ---- the report ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of the report, which a process of its own prints."""

    name: str
    title: str
    share: float  # of the time; seconds, if there are eight minutes
    run: Callable[[Context], None]


SECTIONS = [
    Section("machine", "The machine", 15, machine),
    Section("tests", "Tests on the card", 115, tests),
    Section("agreement", "Agreement with float64", 35, agreement),
    Section("speed", "Speed", 165, speed),
    Section("bandwidth", "Bandwidth", 20, bandwidth),
    Section("memory", "Memory of a training step", 25, memory_of_step),
    Section("graphs", "CUDA graphs and streams", 25, graphs),
    Section("determinism", "Determinism", 20, determinism),
    Section("sanitizer", "compute-sanitizer", 60, sanitizer),  # last: gets what the others left
]

OK, SKIPPED, FAILED, OUT_OF_TIME = "ran", "skipped", "**failed**", "**out of time**"
_SKIPPED_CODE = 77  # of a process, for Skipped


@dataclass
class Outcome:
    state: str
    seconds: float
    text: str


def run_section(command: list[str], limit: float) -> Outcome:
    """Runs a section's process and, at its limit, kills it with all that it started."""
    start = time.monotonic()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        process = subprocess.Popen(command, stdout=output, stderr=errors, start_new_session=True)
        try:
            code = wait(process, limit)
        finally:
            kill_group(process)
        output.seek(0)
        errors.seek(0)
        text, complaints = output.read().strip(), last_lines(errors.read(), 40)
    seconds = time.monotonic() - start
    if code in (0, _SKIPPED_CODE):
        return Outcome(OK if code == 0 else SKIPPED, seconds, text)
    if code is None:
        verdict = f"**Out of time:** cut off after {limit:.0f} s."
    else:
        verdict = f"**Failed**, exit code {code}."
    fence = "~~~~"  # Markdown's other fence: what is quoted may well contain the usual one
    quoted = f"{fence}\n{complaints or '(it printed no error)'}\n{fence}"
    state = OUT_OF_TIME if code is None else FAILED
    return Outcome(state, seconds, "\n\n".join(filter(None, (text, verdict, quoted))))


def kill_group(process: subprocess.Popen) -> None:
    """Ends a process, if it runs, and what it left running."""
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    elif process.poll() is None:
        process.kill()
    process.wait()


def render(sections: Sequence[Section], outcomes: dict[str, Outcome], opening: str) -> str:
    lines = ["# GPU report", "", opening, "", "| section | result | seconds |", "|---|---|---|"]
    for section in sections:
        outcome = outcomes.get(section.name, Outcome("not yet run", 0.0, ""))
        lines.append(f"| {section.title} | {outcome.state} | {outcome.seconds:.0f} |")
    for section in sections:
        if section.name in outcomes:
            lines += ["", f"## {section.title}", "", outcomes[section.name].text]
    return "\n".join(lines) + "\n"


def replace_file(path: Path, text: str) -> None:
    """Readers see the old text or the new one, and no part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_report(
    path: Path,
    opening: str,
    sections: Sequence[Section],
    command_of: Callable[[Section, float], list[str]],
    minutes: float,
) -> int:
    """Runs the sections one after the other; 0 if all of them ran and found nothing wrong, else 1.

    Each may take its share of the time that is left: what one does not use, the later ones get.
    """
    stop = time.monotonic() + 60 * minutes - 5  # to start and to end
    outcomes: dict[str, Outcome] = {}
    replace_file(path, render(sections, outcomes, opening))
    for i, section in enumerate(sections):
        shares = sum(later.share for later in sections[i:])
        limit = max(1.0, (stop - time.monotonic()) * section.share / shares)
        say(f"{section.title} (at most {limit:.0f} s) ...")
        outcome = run_section(command_of(section, limit), limit)
        outcomes[section.name] = outcome
        say(f"    {outcome.state.strip('*')}, {outcome.seconds:.0f} s")
        replace_file(path, render(sections, outcomes, opening))
    say(f"written: {path}")
    wanting = [f"{name}: {o.state.strip('*')}" for name, o in outcomes.items() if o.state != OK]
    if wanting:
        say(f"not all sections ran: {', '.join(wanting)}")
    return int(bool(wanting))


def opening_of(arguments: argparse.Namespace) -> str:
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    text = f"Written by `make gpu-report` on {date}."
    if arguments.device == "cpu":
        text = (
            "**There was no GPU: the CPU stands in for the card, and nothing in this report ran on "
            f"a GPU.** It tries the report itself.\n\nWritten on {date}."
        )
    return text + (" Quick: small images, few rounds." if arguments.quick else "")


def why_no_card() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU"


def run_inside(section: Section, context: Context) -> int:
    """A section, in the process that was started for it."""
    try:
        section.run(context)
    except Skipped as reason:
        say(f"Skipped: {reason}.")
        return _SKIPPED_CODE
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu_report.md")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole")
    parser.add_argument("--device", choices=sorted(CARDS), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small images, few rounds")
    parser.add_argument(
        "--tests-select",
        help="arguments of pytest that select tests (default: those of the backend of the card)",
    )
    # What the script calls itself with.
    parser.add_argument("--section", choices=[s.name for s in SECTIONS], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument("--workload", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def default_selection(card: Card) -> str:
    """The tests on the card, of compiled kernels or, where there are none, of Triton's."""
    backend = "triton" if library.backends()[card.device] == "triton" else "cuda"
    selected = f"{backend} and not emulated and not static"
    return shlex.join([str(ROOT / "tests"), "-k", selected])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    missing = why_no_card() if arguments.device == "cuda" else None
    if missing is not None:
        print(f"gpu_report: no card: {missing}; --device cpu tries the report", file=sys.stderr)
        return 2
    card = CARDS[arguments.device]()
    if arguments.tests_select is None:
        arguments.tests_select = default_selection(card)
    if arguments.workload:
        workload(card, DTYPES)
        return 0
    if arguments.section:
        section = next(s for s in SECTIONS if s.name == arguments.section)
        context = Context(card, arguments.quick, arguments.seconds, arguments.tests_select)
        return run_inside(section, context)

    def command_of(section: Section, limit: float) -> list[str]:
        command = [sys.executable, *isolation(), __file__, "--section", section.name]
        command += ["--seconds", str(limit), "--device", arguments.device]
        command += ["--tests-select", arguments.tests_select]
        return command + (["--quick"] if arguments.quick else [])

    opening = opening_of(arguments)
    return write_report(arguments.out, opening, SECTIONS, command_of, arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
