"""Compiles the Triton kernels without a GPU, as the backend would launch them, and counts.

A launch is recorded, not run: which kernel, its constants, the types of its arguments. So what is
compiled here is what a card would compile. ``python tests/triton_ahead.py`` prints the tables of
docs/triton.md; with ``--json`` it prints the figures of some, for test_triton_static.py, which
cannot compile itself where Triton interprets.
"""

import itertools
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssimfast.arguments import gaussian_taps
from ssimfast.backends import constants
from ssimfast.backends.triton import kernels, launch, separable
from ssimfast.ops.multiscale import wanted_bits
from ssimfast.ops.schemas import Loss, Statistic

NVIDIA = (80, 90, 100, 120)
AMD = ("gfx942",)
# The module of each kernel.
KERNELS = dict.fromkeys(
    ("sweep", "finish_terms", "combine_levels", "pool_pair", "scale", "collapse"), kernels
) | dict.fromkeys(
    ("plane_offsets", "moments", "last_statistics", "adjoint", "gradients"), separable
)
SHAPES = sass.SHAPES
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """A kernel as it is compiled: what two launches must share to share a binary."""

    kernel: str
    signature: tuple[tuple[str, Any], ...]  # types of arguments by name
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]  # of the compiler


def type_of(value: Any, declared: str) -> Any:
    if isinstance(value, tuple):  # of tensors: Triton specialises on numbers in tuples
        assert all(isinstance(v, torch.Tensor) for v in value)
        return tuple(type_of(v, "") for v in value)
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return declared or ("i32" if -(2**31) <= value < 2**31 else "i64")


class Recorder:
    """In the place of a kernel: notes its launches."""

    def __init__(self, kernel: triton.JITFunction, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, **rest):
            options = {o: rest.pop(o) for o in ("num_warps", "num_stages", "maxnreg") if o in rest}
            constants = rest
            names = [p.name for p in self.kernel.params]
            given = dict(zip(names, arguments, strict=False))
            assert set(given) | set(constants) == set(names)
            types = {
                p.name: "constexpr"
                if p.name in constants
                else type_of(given[p.name], p.annotation_type or "")
                for p in self.kernel.params
            }
            self.launches.append(
                Launch(
                    self.kernel.__name__,
                    tuple(types.items()),
                    tuple(constants.items()),
                    tuple(options.items()),
                )
            )

        return launch


def launches_of(op: str, **arguments) -> list[Launch]:
    """What an op would launch."""
    launches: list[Launch] = []
    known = {name: getattr(module, name) for name, module in KERNELS.items()}
    try:
        for name, kernel in known.items():
            setattr(KERNELS[name], name, Recorder(kernel, launches))
        launch.OPS[op](**arguments)
    finally:
        for name, kernel in known.items():
            setattr(KERNELS[name], name, kernel)
    return launches


class Compiled(NamedTuple):
    label: str
    kernel: str
    target: str
    registers: int
    stack: int  # bytes of local memory, spills among them
    shared: int
    seconds: float
    loop: dict | None  # of the sweep: counts of an iteration; see `loop_of`
    phases: list | None  # of the sweep; see `phases_of`
    fences: tuple | None  # of the sweep, on AMD; see `fences_of`


def compile_launch(label: str, launched: Launch, target: GPUTarget, folder: Path) -> Compiled:
    source = ASTSource(
        getattr(KERNELS[launched.kernel], launched.kernel),
        signature=dict(launched.signature),
        constexprs=dict(launched.constants),
    )
    options = dict(launched.options)
    if target.backend == "hip":
        options.pop("maxnreg", None)
        if launched.kernel == "sweep":  # as where torch is built for HIP
            options["num_warps"] = max(1, options["num_warps"] // 2)
    start = time.perf_counter()
    compiled = triton.compile(source, target=target, options=options)
    seconds = time.perf_counter() - start
    phases = phases_of(compiled.asm["ttgir"]) if launched.kernel == "sweep" else None
    if target.backend == "hip":
        used = compiled.asm["amdgcn"]
        figures = {
            name: int(used.split(f".{name}:")[-1].split()[0])
            for name in ("vgpr_count", "vgpr_spill_count")
        }
        return Compiled(
            *(label, launched.kernel, target.arch, figures["vgpr_count"]),
            *(figures["vgpr_spill_count"], compiled.metadata.shared, seconds, None),
            *(phases, fences_of(compiled.asm["llir"], used) if phases else None),
        )
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = sass.run(sass.tool("cuobjdump") or "cuobjdump", "-res-usage", str(cubin))
    figures = dict(part.split(":") for part in usage.split() if part.count(":") == 1)
    loop = loop_of(cubin) if launched.kernel == "sweep" else None
    return Compiled(
        *(label, launched.kernel, f"sm_{target.arch}", int(figures["REG"]), int(figures["STACK"])),
        *(compiled.metadata.shared, seconds, loop, phases, None),
    )


def phases_of(ttgir: str) -> list[tuple[int, int]]:
    """Loads and stores of global memory in a step of the sweep, from barrier to barrier."""

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    lines = ttgir.split("\n")
    barriers = [i for i, line in enumerate(lines) if "ttg.barrier" in line]
    inside = indent(lines[barriers[0]])
    loops = [i for i in range(barriers[0]) if "scf.for" in lines[i] and indent(lines[i]) < inside]
    end = next(
        i
        for i in range(barriers[-1], len(lines))
        if lines[i].lstrip().startswith("scf.yield") and indent(lines[i]) == inside
    )
    cuts = [loops[-1], *barriers, end]
    phases = []
    for first, last in itertools.pairwise(cuts):
        code = "\n".join(lines[first:last])
        loads = re.findall(r"\b(?:tt\.load|amdg\.buffer_load)\b", code)
        stores = re.findall(r"\b(?:tt\.store|amdg\.buffer_store)\b", code)
        phases.append((len(loads), len(stores)))
    return phases


def fences_of(llir: str, machine_code: str) -> tuple[int, int]:
    """Barriers between fences of the workgroup that order all memory, not only local memory; and
    all barriers that the machine code lacks, of those of the intermediate code. (A workgroup of one
    wave needs none.)"""
    release, acquire = (rf'fence syncscope\("workgroup"\) {way}' for way in ("release", "acquire"))
    barrier = r"\n.*llvm\.amdgcn\.s\.barrier\(\).*\n\s*"
    every = rf"{release}, !dbg !\d+{barrier}{acquire}, !dbg !\d+\n"
    emitted = len(re.findall(r"^\s*s_barrier\b", machine_code, re.MULTILINE))
    wanted = len(re.findall(r"llvm\.amdgcn\.s\.barrier\(\), !dbg", llir))
    return len(re.findall(every, llir)), max(0, wanted - emitted)


def loop_of(cubin: Path) -> dict:
    """Counts of one iteration of the sweep, of one lane; and of its barriers, in their order with
    the accesses to global memory between them."""
    code = sass.parse(sass.run(sass.tool("nvdisasm") or "nvdisasm", "-c", str(cubin)))
    blocks = sass.blocks_of(code)
    _, loop = sass.loops_with_barriers(blocks)[0]
    following = min((a for a in blocks if a > max(loop)), default=code[-1].address + 16)
    inside = [i for i in code if min(loop) <= i.address < following]
    total = sass.Counts()
    for i in inside:
        total = total.plus(i.counts())
    order = [i.name for i in inside if i.name in ("LDG", "LD", "STG", "ST", "BAR")]
    return {
        "fp": total.fp,
        "loads": sum(name in ("LDG", "LD") for name in order),
        "stores": sum(name in ("STG", "ST") for name in order),
        "instructions": total.instructions,
        "order": order,
    }


# ---- what is compiled ---------------------------------------------------------------------------


HEIGHT, WIDTH = 40, 236  # wide enough for the widest strips


def images(dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.zeros(1, 3, HEIGHT, WIDTH, dtype=dtype) for _ in range(2)]


def statistic(size: int) -> Statistic:
    return Statistic(
        gaussian_taps(size // 2, 1.5), [size // 2 * 2 + 1], 1e-4, 9e-4, 0.0, 1.0, False
    )


def sweep_launches(
    size: int, dtype: torch.dtype, gradients: int, more: bool, **changes: Any
) -> list[Launch]:
    weights = [0.5, 0.0, 0.2, 0.3, 0.4] if more else [1.0, 0.0, 0.0, 0.0, 0.0]
    arithmetic = constants.value_dtype(dtype)
    rows, columns = (torch.zeros(n, dtype=arithmetic) if more else None for n in (HEIGHT, WIDTH))
    x, y = images(dtype)
    given = {
        "x": x,
        "y": y,
        "mask": None,
        "mask_factors": None,
        "statistic": statistic(size),
        "loss": Loss(weights, 0.0, rows, columns),
        "kept": 0,
        "gradients": gradients,
        "wanted": wanted_bits(weights),
        "count": 1,
        "grad_scale": 1.0,
        "grad_count": 1,
        "plane_weights": None,
        "pooling": 1 if more else 0,
        "map_term": -1,
    }
    return launches_of("sweep", **given | changes)


def mask_of(x: torch.Tensor) -> dict[str, Any]:
    mask = torch.zeros((), dtype=constants.value_dtype(x.dtype)).expand(x.shape)
    return {"mask": mask, "mask_factors": torch.zeros(2, dtype=torch.float64), "pooling": 0}


def plain_launches() -> Iterator[tuple[str, Launch]]:
    """The sweep of SSIM alone."""
    for size in (7, 9, 11, 21, 33):
        for gradients in (0, 1, 2):
            launched = sweep_launches(size, torch.float32, gradients, False)[0]
            yield f"ssim, float32, window {size}, {gradients} gradients", launched
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        launched = sweep_launches(11, dtype, 1, False)[0]
        yield f"ssim, {str(dtype)[6:]}, window 11, 1 gradients", launched


def masked_launches() -> Iterator[tuple[str, Launch]]:
    """Masks, volumes, and images with a window for each axis."""
    for size, gradients, more in ((7, 1, False), (11, 1, False), (11, 2, True), (17, 1, True)):
        masked = mask_of(images(torch.float32)[0])
        label = f"masked {'mixture' if more else 'ssim'}, window {size}, {gradients} gradients"
        yield label, sweep_launches(size, torch.float32, gradients, more, **masked)[0]
    for dtype, gradients, masked in (
        (torch.float32, 1, False),
        (torch.float32, 2, True),
        (torch.float64, 2, True),
    ):
        x, y = torch.zeros(2, 1, 2, 12, 13, 14, dtype=dtype)
        change = {"x": x, "y": y} | (mask_of(x) if masked else {})
        label = f"{'masked ' * masked}volume, {str(dtype)[6:]}, {gradients} gradients"
        for launched in sweep_launches(11, dtype, gradients, False, **change):
            yield label, launched
    x, y = images(torch.float32)
    two = statistic(7)._replace(window=statistic(7).window * 2, sizes=[7, 7])
    pair = {"x": x, "y": y, "mask": None, "statistic": two}
    upstream = [torch.zeros(1, 3, HEIGHT - 6, WIDTH - 6)] * 2
    for launched in launches_of("maps", components=True, **pair):
        yield "components, two windows", launched
    for launched in launches_of("maps_grad", upstream=upstream, gradients=2, **pair):
        yield "gradients of components, two windows", launched


def other_launches() -> Iterator[tuple[str, Launch]]:
    """A mixture, an 8-bit target, maps, and all other kernels."""
    for launched in sweep_launches(11, torch.float32, 2, True):
        yield "mixture, float32, window 11, 2 gradients", launched
    beside_bytes = {"y": images(torch.uint8)[1], "map_term": constants.CONTRAST_STRUCTURE}
    for launched in sweep_launches(11, torch.float16, 1, True, **beside_bytes):
        yield "mixture and map, float16 beside uint8, window 11, 1 gradients", launched
    x, y = images(torch.float32)
    maps = [torch.zeros(1, 3, HEIGHT - 10, WIDTH - 10)] * 2
    pair = {"x": x, "y": y, "mask": None, "statistic": statistic(11)}
    one = torch.zeros(())
    terms = [torch.zeros(1, 3, constants.TERMS, dtype=torch.float64)] * 5
    levels = {
        "terms": terms,
        "positions": [900] * 5,
        "exponents": [0.2] * 5,
        "negative": 0,
        "joint": False,
        "weights": [0.0, 1.0, 0.0, 0.0, 0.0],
        "constant": 0.0,
        "kept": 0,
    }
    pyramid = {
        "finest": x,
        "coarser": [torch.zeros(1, 3, HEIGHT >> j, WIDTH >> j) for j in range(1, 5)],
        "slopes": torch.zeros(1, 3, 5, dtype=torch.float64),
        "upstream": one,
        "low": 0.0,
        "scale": 1.0,
        "pooling": 1,
        "x": x,
        "y": y,
        "pixel_weights": [0.1, 0.1, 0.1],
        "rows": torch.zeros(HEIGHT),
        "columns": torch.zeros(WIDTH),
    }
    for label, op, arguments in (
        ("maps of components", "maps", pair | {"components": True}),
        ("gradients of components", "maps_grad", pair | {"upstream": maps, "gradients": 2}),
        ("map", "maps", pair | {"components": False}),
        ("gradient of a map", "maps_grad", pair | {"upstream": maps[:1], "gradients": 1}),
        ("scale_", "scale_", {"grad": x, "upstream": one, "factor": 1.0, "count": 1}),
        ("combine_levels, 5 levels", "combine_levels", levels),
        ("collapse_, 5 levels and pixel terms", "collapse_", pyramid),
    ):
        for launched in launches_of(op, **arguments):
            yield f"{label}, float32", launched


PLAIN = "ssim, float32, window 11, 1 gradients"


def chosen(every: bool) -> Iterator[tuple[str, Launch, GPUTarget]]:
    """What is compiled for which target. A test has not the time for every pair of them."""
    targets = [GPUTarget("cuda", a, 32) for a in NVIDIA]
    targets += [GPUTarget("hip", a, 64) for a in AMD if "amd" in triton.backends.backends]
    every_launch = [*plain_launches(), *other_launches(), *masked_launches()]
    for number, (label, launched) in enumerate(every_launch):
        for k, target in enumerate(targets):
            if every or label == PLAIN or k == number % len(targets):
                yield label, launched, target


def compile_all(every: bool, folder: Path) -> list[Compiled]:
    return [compile_launch(*one, folder) for one in chosen(every)]


# ---- what a pixel costs -------------------------------------------------------------------------


def per_pixel(loop: dict, shape: sass.Shape, multiprocessors: int, size: int = 11) -> dict:
    """Of one pixel of one channel, from the counts of an iteration and the plan; of the gradient
    to one image."""
    known = launch._multiprocessors
    launch._multiprocessors = lambda device: multiprocessors
    try:
        x = torch.empty(tuple(shape), device="meta")
        plan = launch._Sweep(x, x, None, statistic(size), gradients=1)
    finally:
        launch._multiprocessors = known
    lost = 4 * (size // 2)
    steps = 0
    for run in range(plan.runs):
        rows = min(plan.run_rows, shape.height - run * plan.run_rows)
        steps += math.ceil((rows + lost) / plan.step) + 1
    lanes = plan.lanes * plan.strips * steps / (shape.height * shape.width)
    keys = ("fp", "loads", "stores", "instructions")
    cut = f"{plan.lanes} lanes, {plan.strips} strips, {plan.runs} runs of {plan.run_rows}"
    return {"plan": cut, **{key: loop[key] * lanes for key in keys}}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        compiled = compile_all("--json" not in sys.argv, Path(name))
        if "--json" in sys.argv:
            print(json.dumps([c._asdict() for c in compiled]))
            return
        print(sass.header("kernel", "target", "registers", "local bytes", "shared bytes", "s"))
        for c in compiled:
            figures = (c.registers, c.stack, c.shared, f"{c.seconds:.1f}")
            print(sass.row(f"`{c.kernel}`: {c.label}", c.target, *figures))
        print()
        print(sass.header("shape", "device", "plan", "FP", "loads", "stores", "instructions"))
        (loop,) = (c.loop for c in compiled if c.label == PLAIN and c.target == "sm_90")
        for shape in SHAPES:
            cost = per_pixel(loop, shape, sass.DEVICES["H100"].multiprocessors)
            figures = [f"{cost[k]:.1f}" for k in ("fp", "loads", "stores", "instructions")]
            print(sass.row(shape, "H100", cost["plan"], *figures))


if __name__ == "__main__":
    main()
