"""What can be known of the Triton kernels without a GPU: registers, instructions, compilations."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import machine
import pytest
from budgets import beyond

# Triton compiles in a process of its own, for here it interprets: minutes, so it is long.
pytestmark = [pytest.mark.long, pytest.mark.needs("triton", "cuobjdump", "nvdisasm")]

if machine.has("triton"):
    from triton_ahead import KERNELS, PLAIN

    from ssimfast.backends.triton import separable

TESTS = Path(__file__).parent
MOST_SHARED = 48 * 1024
FEWEST = {"fp": 140, "loads": 40, "stores": 6, "instructions": 240}  # fewer would be a miscount


def ahead(script: str) -> str:
    """What a Python prints in which Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
    environment["PYTHONWARNINGS"] = "ignore"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def compile_in_a_process() -> list[dict]:
    script = "import sys, triton_ahead; sys.argv.append('--json'); triton_ahead.main()"
    return json.loads(ahead(script))


def measured(compiled: list[dict]) -> dict[str, float]:
    """Of an iteration of one lane in the sweep with the gradient to one image, window 11, four
    rows: the most instructions for a pixel of it that any architecture has."""
    loops = [c["loop"] for c in compiled if c["label"] == PLAIN and c["loop"] is not None]
    assert len(loops) == 4
    return {name: max(loop[name] for loop in loops) / 4 for name in FEWEST}


def registers(compiled: list[dict]) -> dict[str, float]:
    """The most on any NVIDIA architecture: of the sweep with a mask, of the separable path."""
    figures: dict[str, float] = {}
    for one in compiled:
        masked_sweep = one["kernel"] == "sweep" and one["label"].startswith("masked")
        in_passes = KERNELS[one["kernel"]] is separable
        if one["target"].startswith("sm_") and (masked_sweep or in_passes):
            dtype = "float64" if "float64" in one["label"] else "float32"
            name = f"{one['kernel']}, {dtype}"
            figures[name] = max(figures.get(name, 0), one["registers"])
    return figures


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    return compile_in_a_process()


def test_every_kernel_is_compiled_for_every_target(compiled):
    assert {one["kernel"] for one in compiled} == set(KERNELS)
    targets = {one["target"] for one in compiled if one["label"] == PLAIN}
    assert {"sm_80", "sm_90", "sm_100", "sm_120"} <= targets


def test_nothing_is_spilled(compiled):
    spilled = {(c["label"], c["target"]): c["stack"] for c in compiled if c["stack"] > 0}
    assert spilled == {}


def test_shared_memory_is_small(compiled):
    assert max(one["shared"] for one in compiled) <= MOST_SHARED


def test_instructions_are_within_their_budget(compiled):
    figures = measured(compiled)
    assert beyond("Triton, a pixel of the sweep's loop", figures) == {}
    assert all(figures[name] >= fewest for name, fewest in FEWEST.items()), figures


def test_registers_are_within_their_budget(compiled):
    assert beyond("Triton, registers", registers(compiled)) == {}


def test_barriers_stand_between_what_is_written_and_what_is_read(compiled):
    """Neighbours meet in global memory: the compiler must move no access across a barrier."""
    for one in compiled:
        if one["label"] != PLAIN or one["loop"] is None:
            continue
        order = ["L" if n in ("LDG", "LD") else "S" if n in ("STG", "ST") else "B"
                 for n in one["loop"]["order"]]  # fmt: skip
        assert order.count("B") == 2
        before, between, after = "".join(order).split("B")
        # Before the first barrier and after the second is one phase: partial derivatives and rows
        # of images in, adjoint rows and 16 moments out. In the other, of four rows: 11 taps of
        # seven maps and two pixels in, 3 partial derivatives and a gradient out.
        counts = sorted((p.count("L"), p.count("S")) for p in (after + before, between))
        assert counts == [(20, 28), (4 * (7 * 11 + 2), 16)], (one["target"], counts)


def test_barriers_are_fences_on_every_target(compiled):
    """``tl.debug_barrier`` orders the accesses of neighbours to the scratch memory."""
    seen = set()
    for one in compiled:
        if one["label"] != PLAIN:
            continue
        (before, between, after), seen = one["phases"], seen | {one["target"]}
        around = [a + b for a, b in zip(before, after, strict=True)]
        assert (around, list(between)) == ([20, 28], [7 * 11 + 2, 4]), one["target"]
        if one["target"].startswith("gfx"):
            assert list(one["fences"]) == [2, 0]
    assert "sm_90" in seen and any(target.startswith("gfx") for target in seen)


def test_crops_of_any_size_need_no_other_kernels():
    """Two hundred sizes, four widths of a strip: as many kernels as widths."""
    random.seed(0)
    sizes = [(random.randint(11, 600), random.randint(11, 600)) for _ in range(200)]
    script = f"""
import torch, triton_ahead as ahead
kernels = set()
for height, width in {sizes}:
    x = torch.empty(1, 3, height, width + 3)[..., 3:]
    loss = ahead.Loss([1.0, 0, 0, 0, 0])
    request = dict(kept=0, gradients=1, wanted=1, count=height * width, grad_scale=1.0, pooling=1)
    rest = dict(grad_count=height * width, plane_weights=None, map_term=-1)
    rest |= dict(mask=None, mask_factors=None)
    statistic = ahead.statistic(11)
    call = dict(x=x, y=x, statistic=statistic, loss=loss, **request, **rest)
    kernels |= set(ahead.launches_of("sweep", **call))
    one = torch.zeros(())
    grad = torch.empty(1, 3, height, width)
    kernels |= set(ahead.launches_of("scale_", grad=grad, upstream=one, factor=1.0, count=height))
    positions = [height * width // 4**j + 1 for j in range(5)]
    call = dict(terms=[torch.zeros(1, 1, 5).double()] * 5, positions=positions, kept=0)
    call |= dict(exponents=[0.2] * 5, negative=0, joint=False, weights=[0, 1.0, 0, 0, 0])
    kernels |= set(ahead.launches_of("combine_levels", constant=0.0, **call))
    finest, coarser = (torch.zeros(1, 1, height >> j, width >> j) for j in range(2))
    call = dict(finest=finest, coarser=[coarser], slopes=torch.zeros(1, 1, 2).double())
    call |= dict(upstream=one, low=0.0, scale=1.0, pooling=1, pixel_weights=[0.0] * 3)
    call |= dict(x=None, y=None, rows=None, columns=None)
    kernels |= set(ahead.launches_of("collapse_", **call))
print(sorted(k.kernel for k in kernels))
"""
    kernels = json.loads(ahead(script).replace("'", '"'))
    assert kernels.count("sweep") <= 4
    for name in ("pool_pair", "scale", "combine_levels", "collapse"):
        assert kernels.count(name) == 1, name
    assert kernels.count("finish_terms") == 2  # of tiles, of planes
