"""The CUDA kernels as executed by the emulator: what the tests of values do not ask.

Budgets of docs/cuda.md, launches, every order of threads and blocks, and sanitizers.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import comparison
import emulated
import machine
import pytest
import test_ops
import torch
from budgets import beyond
from promises import pair
from torch.utils._python_dispatch import TorchDispatchMode

import ssimfast
from ssimfast.arguments import gaussian_taps
from ssimfast.backends import reference
from ssimfast.ops import library
from ssimfast.ops.schemas import Loss, Statistic

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.needs("compiler", "sources")


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    monkeypatch.setitem(comparison.TOLERANCES, torch.float32, comparison.CUDA_FLOAT32)
    emulated.use(monkeypatch)


TAPS = gaussian_taps(5, 1.5)
OPS = [name for name in library.SCHEMAS if name != "combine_levels"]


def test_which_ops_have_kernels():
    assert sorted(emulated.load()) == sorted(OPS)


@pytest.mark.parametrize("name", OPS)
def test_kernel_and_reference_give_the_same_tensors(name):
    """In every layout, in every dtype; all pairs of them are below."""
    for dtype, layout in {
        (torch.float32, "contiguous"),
        (torch.float32, "expanded"),
        (torch.bfloat16, "channels_last"),
        (torch.float64, "transposed"),
    }:
        kernel = emulated.load()[name]
        test_ops.assert_same_tensors(name, kernel, dtype, layout)


@pytest.mark.long
@pytest.mark.parametrize("name", OPS)
def test_kernel_and_reference_give_the_same_tensors_in_every_layout(name):
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    for dtype, layout in product(dtypes, test_ops.LAYOUTS):
        kernel = emulated.load()[name]
        test_ops.assert_same_tensors(name, kernel, dtype, layout)


def of_forward(loss, x, y) -> emulated.Counters:
    x.requires_grad_()
    emulated.reset_counters()
    loss(x, y)
    return emulated.counters()


def measured() -> dict[str, float]:
    """What the forward pass of SSIM with a gradient moves, for a pixel. One multiprocessor and one
    plane stand for a device that is full."""
    figures: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        emulated.use(patch)
        patch.setenv("SSIMFAST_EMULATED_MULTIPROCESSORS", "1")
        for side in (512, 768):
            count = of_forward(ssimfast.ssim, *pair(1, 1, side, side))
            for name, total in {
                "different bytes read": count.unique_global_bytes_read,
                "bytes": count.global_bytes_read + count.global_bytes_written,
                "words of shared memory": count.shared_words_read + count.shared_words_written,
                "barriers of 288 pixels": 288 * count.block_barriers,  # four rows of a strip
            }.items():
                figures[name] = max(figures.get(name, 0), total / side**2)
        x, y = pair(1, 1, 512, 512)
        statistic = Statistic(TAPS, [11], 1e-4, 9e-4, 0.0, 1.0, False)
        request = test_ops.SWEEP | {"gradients": 1}
        masked = {"mask": torch.ones_like(x), "mask_factors": torch.ones(1, 2, dtype=torch.float64)}
        for name, other, more in (("an 8-bit y", y.byte(), {}), ("a mask", y, masked)):
            emulated.reset_counters()
            library.sweep(x, other, statistic, **request | more)
            count = emulated.counters()
            figures[f"different bytes read, {name}"] = count.unique_global_bytes_read / 512**2
            total = count.global_bytes_read + count.global_bytes_written
            figures[f"bytes, {name}"] = total / 512**2
    return figures


def test_budget_of_the_one_pass_kernel():
    figures = measured()
    assert beyond("emulated, a pixel", figures) == {}
    # Two images must be read, and a gradient written; less would be a miscount.
    assert figures["different bytes read"] >= 8 and figures["bytes"] >= 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_launches_of_a_training_step(dtype):
    x, y = pair(2, 3, 40, 44, dtype=dtype)
    x.requires_grad_()
    more = 0 if dtype != torch.float64 else 3  # four kernels in the place of one
    emulated.reset_counters()
    loss = ssimfast.ssim(x, y)
    assert emulated.counters().launches == 2 + more
    loss.backward()
    assert emulated.counters().launches == 3 + more


@pytest.mark.parametrize(
    ("levels", "ssim", "dtype", "launches"),
    [
        (1, 0, torch.float32, 2),
        pytest.param(2, 0, torch.float32, 3, marks=pytest.mark.long),
        pytest.param(5, 0, torch.float32, 3, marks=pytest.mark.long),
        (6, 0, torch.float32, 4),  # a second launch pools
        (3, 0, torch.float16, 4),  # the finest level alone
        pytest.param(3, 1, torch.float32, 5, marks=pytest.mark.long),  # and once again
    ],
)
def test_launches_of_ms_ssim(levels, ssim, dtype, launches):
    """However many levels there are, one launch sweeps them."""
    x, y = (image.requires_grad_() for image in pair(1, 2, 68, 70, dtype=dtype))
    settings = {"weights": [1 / levels] * levels, "window_size": 7, "padding": "same"}
    emulated.reset_counters()
    value = ssimfast.similarity_loss(x, y, ssim=ssim, ms_ssim=1, **settings)
    assert emulated.counters().launches == launches
    value.backward()
    assert emulated.counters().launches == launches + 2  # one for each image


def masks(shape: tuple[int, ...]) -> dict[str, torch.Tensor | None]:
    """A mask of every kind, as the ops take it: with the images' shape, perhaps expanded."""
    *_, height, width = shape
    weights = torch.rand(height, width)
    hole = torch.ones(height, width)
    hole[5:27, 4:31] = 0  # whole windows see nothing
    first = torch.ones(shape[0], 1, 1, 1)
    first[0] = 0  # the first image is not seen
    each = torch.rand(shape) * (torch.rand(shape) < 0.6)
    named = {"hole": hole, "weights": weights * hole, "each": each, "unseen": first * weights}
    return {"none": None} | {name: mask.expand(shape) for name, mask in named.items()}


def assert_sums_match_reference(x, y, mask, sizes=(11,), gradients=1, launches=2, **more) -> None:
    """A sweep of images or volumes with these windows against the reference in float64, which sees
    0.5 where the mask hides something."""
    taps = [tap for size in sizes for tap in gaussian_taps(size // 2, 1.5)]
    statistic = Statistic(taps, list(sizes), 1e-4, 9e-4, 0.0, 1.0, True)
    request = test_ops.SWEEP | {"gradients": gradients, "map_term": 0, "wanted": 1} | more
    visible, factors = torch.ones(x.shape, dtype=torch.bool), None
    if mask is not None:
        visible, total = mask != 0, mask.double().flatten(1).sum(1)
        factors = torch.where(total > 0, mask[0].numel() / total, 0)[:, None].repeat(1, 2)
    y_exact = y.double() / 255 if y.dtype == torch.uint8 and x.dtype != y.dtype else y.double()
    exact = (image.where(visible, 0.5) for image in (x.double(), y_exact))
    masked = {"mask": mask, "mask_factors": factors}
    exactly = masked | {"mask": mask if mask is None else mask.double()}
    want = reference.sweep(*exact, statistic=statistic, **request | exactly)
    emulated.reset_counters()
    got = library.sweep(x, y, statistic, **request | masked)
    assert emulated.counters().launches == launches
    eps = 2 * torch.finfo(x.dtype).eps if x.dtype != torch.float32 else 0
    for result, expected in zip(test_ops.flat(got), test_ops.flat(want), strict=True):
        limit = (1e-5 + eps * (result.dtype == x.dtype)) * expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=limit)
    for grad in got[2]:
        assert not grad[~visible].any()


MIXTURE = {"loss": Loss([0.5, 0.2, 0.3, 0.4, 0.0]), "wanted": 15, "map_term": 1}


def test_masks_and_an_8_bit_target_in_one_pass():
    shape = (2, 2, 36, 140)
    for hidden in (float("nan"), 1e6):
        for name, mask in masks(shape).items():
            x, y = 0.85 + 0.1 * torch.rand(2, *shape)
            y = y - 0.2 * (torch.arange(140) > 70)
            if mask is not None:
                x, y = x.masked_fill(mask == 0, hidden), y.masked_fill(mask == 0, -hidden)
            more = MIXTURE if name in ("weights", "none") else {}
            assert_sums_match_reference(x, y, mask, gradients=2, **more)
            assert_sums_match_reference(x, (255 * torch.rand(shape)).byte(), mask, **more)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_masks_of_every_kind(dtype):
    """In every kernel, with "launches" of the separable path where there is none in one pass."""
    shape = (2, 1, 31, 37)
    for mask in masks(shape).values():
        x, y = torch.rand(2, *shape).to(dtype)
        of_bytes = (255 * torch.rand(shape)).byte()
        if mask is not None:
            x = x.masked_fill(mask == 0, float("inf"))
        whole = dtype == torch.float32 or mask is None
        for more in ({}, MIXTURE):
            for gradients in (0, 1, 2):
                launches = 2 if whole or gradients < 2 else 5
                assert_sums_match_reference(x, y, mask, (11,), gradients, launches, **more)
            for gradients in (0, 1):
                launches = 2 if whole else 3 + 2 * gradients
                assert_sums_match_reference(x, of_bytes, mask, (11,), gradients, launches, **more)
            assert_sums_match_reference(x, of_bytes, mask, (7,), 1, 5, **more)
        assert_sums_match_reference(x, y, mask, (9, 5), 2, 5)


@pytest.mark.long
@pytest.mark.parametrize("size", [3, 7, 33])
def test_masked_volumes(size):
    """In float32, whatever the mask hides; flat and bright, dark in one half."""
    shape = (2, 1, 9, 10, 40)
    hole = torch.ones(shape[2:])
    hole[2:7, 3:9, 5:30] = 0
    for mask in (hole, torch.rand(shape[2:]) * hole, (torch.rand(shape[2:]) < 0.3).float()):
        x, y = 0.9 + 0.05 * torch.rand(2, *shape)
        x[..., :20] -= 0.8
        mask = mask.expand(shape)
        x, y = x.masked_fill(mask == 0, float("nan")), y.masked_fill(mask == 0, 1e6)
        for sizes in ((size,), (size, 3, 5)):
            assert_sums_match_reference(x, y, mask, sizes, 2, 7)


SETTINGS = {
    "reversed": {"SSIMFAST_EMULATOR_ORDER": "reverse"},
    "blocks_interleaved": {"SSIMFAST_EMULATOR_BLOCKS": "5"},
    "both": {"SSIMFAST_EMULATOR_ORDER": "reverse", "SSIMFAST_EMULATOR_BLOCKS": "3"},
}


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, pytest.param(torch.float64, marks=pytest.mark.long)],
    ids=str,
)
def test_every_order_gives_the_same_bits(dtype, monkeypatch):
    x, y = pair(2, 2, 37, 90, dtype=dtype)

    def results():
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        weights = {"ssim": 0.3, "ms_ssim": 0.4, "l1": 0.1, "l2": 0.2, "gaussian_l1": 0.5}
        loss = ssimfast.similarity_loss(a, b, **weights, weights=(0.5, 0.5), odd="pad")
        (loss + ssimfast.ssim(a, b, padding="same", reduction="none").square().mean()).backward()
        return loss.detach(), a.grad, b.grad

    want = results()
    for name, settings in SETTINGS.items():
        with monkeypatch.context() as patch:
            for variable, value in settings.items():
                patch.setenv(variable, value)
            same = [torch.equal(got, one) for got, one in zip(results(), want, strict=True)]
        assert all(same), name


@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_side_of_a_cut(padding, multiprocessors, monkeypatch):
    """Sizes at which a strip or a run more is needed, and the ones around."""
    monkeypatch.setenv("SSIMFAST_EMULATED_MULTIPROCESSORS", str(multiprocessors))
    sides = [(24, width) for width in (64, 73, 74, 75, 128, 129, 246, 256, 257, 265, 266, 267)]
    sides += [(height, 31) for height in (*range(11, 18), 31, 32, 33, 43, 44, 45)]
    for height, width in sides:
        x, y = (image.requires_grad_() for image in pair(1, 1, height, width))
        ssimfast.ssim(x, y, padding=padding, reduction="sum").backward()
        statistic = Statistic(TAPS, [11], 1e-4, 9e-4, 0.0, 1.0, padding == "same")
        images = x.detach().double(), y.detach().double()
        want = reference.sweep(*images, statistic=statistic, **test_ops.SWEEP | {"gradients": 2})[2]
        for image, grad in zip((x, y), want, strict=True):
            limit = 5e-6 * grad.abs().max().item()
            torch.testing.assert_close(image.grad.double(), grad, rtol=0, atol=limit)


class Recorded(TorchDispatchMode):
    """The names of the ops that torch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


BOTH = {"ssim": 0.3, "ms_ssim": 0.4, "l1": 0.1, "gaussian_l1": 0.2, "weights": [0.5, 0.5]}
LOSSES = {
    "ssim": (ssimfast.SSIM(), 3),  # forward, and backward of each image
    "ssim_loss": (ssimfast.SSIMLoss(), 3),
    "large_factors": (ssimfast.SimilarityLoss(ssim=2.0, l1=10.0), 3),
    "one_scale": (ssimfast.MSSSIM(weights=[1.0]), 3),
    "three_scales": (ssimfast.MSSSIM(weights=[1 / 3] * 3), 3),
    "ssim_and_two_scales": (ssimfast.SimilarityLoss(**BOTH), 3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_torch_runs_nothing_of_its_own_in_a_training_step(name):
    loss, count = LOSSES[name]
    x, y = (image.requires_grad_() for image in pair(2, 3, 48, 52))
    loss(x, y)  # makes the counts of the blurred L1, once
    with Recorded() as recorded:
        loss(x, y).backward()
    ours = [name for name in recorded.names if name.startswith(emulated.NAMESPACE)]
    others = set(recorded.names) - set(ours)
    assert len(ours) == count
    # Views, and what `backward` starts with.
    assert others <= {"aten.detach.default", "aten.ones_like.default"}, others


@pytest.mark.long  # two million threads
def test_more_planes_than_a_grid_has_rows():
    x, y = pair(1, 66_000, 7, 7)
    got = ssimfast.ssim(x, y, window_size=7, reduction="none")
    want = ssimfast.ssim(x[:, -3:], y[:, -3:], window_size=7, reduction="none")
    assert torch.equal(got[:, -3:], want)
    # So many sums are added in two steps.
    mean = ssimfast.ssim(x, y, window_size=7)
    torch.testing.assert_close(mean.double(), got.double().mean(), rtol=0, atol=1e-7)


def test_the_sign_of_a_tiny_difference():
    x = torch.full((1, 1, 40, 40), 0.8)
    x[torch.rand(x.shape) < 0.3] = 1e-9
    x.requires_grad_()
    ssimfast.similarity_loss(x, torch.zeros_like(x), ssim=0.0, l1=1.0).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / x.numel()))


def test_two_host_threads_with_plans_of_their_own(monkeypatch):
    """Blocks of 224 and of 256 threads, whose shared memory a kernel must be allowed, both times as
    much: else one thread would take it from the other."""
    monkeypatch.setenv("SSIMFAST_EMULATED_MULTIPROCESSORS", "1")

    def gradient(width: int) -> torch.Tensor:
        x, y = torch.linspace(0, 1, 2 * 16 * width).view(2, 1, 1, 16, width)
        x.requires_grad_()
        return torch.autograd.grad(ssimfast.ssim(x, y, padding="same"), x)[0]

    widths = [208, 240] * 2
    want = [gradient(width) for width in widths]
    with ThreadPoolExecutor(2) as threads:
        for got, alone in zip(threads.map(gradient, widths), want, strict=True):
            assert torch.equal(got, alone)


def test_direct_calls_are_guarded():
    ops_by_name = emulated.load()
    x = torch.rand(1, 1, 16, 16)
    statistic = (TAPS, [11], 1e-4, 9e-4, 0.0, 1.0, True)
    with pytest.raises(RuntimeError, match="dimension 3"):
        ops_by_name["maps"](x, x[..., 1:], None, *statistic, False)
    loss = ([0.0, 1.0, 0.0, 0.0, 0.0], 0.0, None, None, 0, 1)
    for thin in (x[..., :1, :], x[..., :1]):
        with pytest.raises(RuntimeError, match="level 1 is empty"):
            ops_by_name["sweep_levels"](thin, thin, *statistic, *loss, [0.5, 0.5], 1, 0, False)
    with pytest.raises(RuntimeError, match="levels must be 1 to 16"):
        ops_by_name["sweep_levels"](x, x, *statistic, *loss, [], 1, 0, False)
    with pytest.raises(RuntimeError, match="level 1 has the wrong size"):
        ops_by_name["collapse_"](
            x,
            [x],
            torch.zeros(1, 1, 2, dtype=torch.float64),
            torch.ones(()),
            *(0.0, 1.0, 1, None, None, [0.0] * 3, None, None),
        )


def test_pooling_to_nothing():
    """A side of one pixel has no next scale; any window."""
    x = torch.rand(1, 1, 9, 1)
    for taps in (TAPS, gaussian_taps(1, 1.0)):
        statistic = Statistic(taps, [len(taps)], 1e-4, 9e-4, 0.0, 1.0, True)
        request = test_ops.SWEEP | {"kept": 0, "gradients": 1, "pooling": 1}
        pooled = library.sweep(x, x, statistic, **request).pooled
        assert [image.shape for image in pooled] == [(1, 1, 4, 0)] * 2


def test_offsets_of_more_than_32_bits():
    stride = 2**31 + 40
    storage = torch.empty(stride + 512, dtype=torch.float16)  # of which little is touched
    x = storage.as_strided((2, 1, 16, 20), (stride, 400, 20, 1))
    x.copy_(torch.rand(2, 1, 16, 20))
    y = torch.rand(2, 1, 16, 20).half()
    got = ssimfast.ssim(x, y, reduction="none")
    torch.testing.assert_close(got, ssimfast.ssim(x.contiguous(), y, reduction="none"))


SHORT_SEEDS = (10, 14, 17, 24, 31)  # quick ones, of every kind and dtype


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[] if s in SHORT_SEEDS else pytest.mark.long) for s in range(40)]
)
def test_inputs_that_nobody_chose(seed, monkeypatch):
    """Random shapes, strides, dtypes and options."""
    random = torch.Generator().manual_seed(seed)

    def choose(*options):
        return options[int(torch.randint(len(options), (), generator=random))]

    size = choose(7, 9, 11, 11, 3, 13)
    dtype = choose(torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
    planes = choose((1, 1), (2, 3), (3, 1))
    height, width = (size + choose(0, 1, 5, 14, 33, 70) for _ in range(2))
    width += choose(0, 0, 200, 311)
    low, high = choose((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
    if dtype == torch.float16:  # which a mean of many gradients leaves at its lower end
        height, width, low, high = min(height, size + 14), min(width, size + 33), 0.0, 1.0
    x, y = (low + (high - low) * image for image in pair(*planes, height, width))
    layout = choose(
        lambda t: t,
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
        lambda t: torch.cat([t, t], -1)[..., 1 : t.shape[-1] + 1],
        lambda t: t[:, :1].expand(t.shape),
    )
    x, y = layout(x.to(dtype)), choose(layout, lambda t: t)(y.to(dtype))
    common = {
        "value_range": (low, high),
        "window_size": size,
        "sigma": choose(1.5, 1.5, 2.5, 0.9),
        "padding": choose("valid", "same"),
    }
    monkeypatch.setenv("SSIMFAST_EMULATED_MULTIPROCESSORS", choose("1", "8", "132"))
    kind = choose("ssim", "components", "mixture", "ms_ssim")
    if kind == "ssim":
        comparison.assert_matches_oracle(x, y, **common)
    elif kind == "components":
        comparison.assert_components_match_oracle(x, y, **common)
    elif kind == "ms_ssim" and min(height, width) >= 2 * size:
        common |= {"odd": choose("floor", "pad", "replicate"), "weights": (0.3, 0.7)}
        common |= {"negative": "abs", "channels": choose("joint", "separate")}
        comparison.assert_ms_ssim_matches_oracle(x, y, **common)
    else:
        factors = {name: choose(0.0, 0.3, 1.0) for name in ("l1", "l2", "gaussian_l1")}
        comparison.assert_similarity_matches_oracle(x, y, ssim=0.5, **factors, **common)


# Every kernel on an odd shape; memory that is not there, and what C++ does not define.
SANITIZED = ("test_every_shape", "test_every_dtype", "test_every_mixture", "test_every_order")


@pytest.mark.long
@pytest.mark.needs("address sanitizer")
def test_kernels_under_sanitizers(tmp_path):
    files = [f"test_{name}.py" for name in ("components", "ms_ssim", "similarity_loss", "ssim")]
    # One odd shape each: under the sanitizers each takes many times as long.
    chosen = f"({' or '.join(SANITIZED)}) and emulated and (primes or not every_shape)"
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *files, "test_cuda_emulated.py", "-k", chosen],
        env={
            **os.environ,
            "LD_PRELOAD": str(machine.address_sanitizer()),
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={tmp_path}/asan",
            "SSIMFAST_EMULATED_SANITIZE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path),
        },
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    found = "".join(log.read_text() for log in tmp_path.glob("asan*"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + found[:3000]
    for name in SANITIZED:
        assert f"::{name}" in done.stdout, f"no {name} ran"
