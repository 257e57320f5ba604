"""The Triton kernels, interpreted where there is no card: small images, for the interpreter takes
about a second for each sweep. The short suite calls each kernel once; the rest is long. On a card,
every test of values runs on them (`triton` in its id).
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import comparison
import machine
import numpy as np
import oracle
import pytest
import test_ops
import test_ssim
import torch
from comparison import (
    HARD,
    NARROW,
    as_float64,
    assert_components_match_oracle,
    assert_matches_oracle,
    assert_ms_ssim_matches_oracle,
    assert_near,
    assert_similarity_matches_oracle,
    assert_small_losses_keep_their_digits,
    loosened,
)
from conftest import use_triton
from promises import pair
from test_ops import flat
from torch import Tensor

import ssimfast
from ssimfast.arguments import gaussian_taps
from ssimfast.backends import constants, reference
from ssimfast.ops import library
from ssimfast.ops.schemas import Loss, Statistic

pytestmark = [
    pytest.mark.needs("triton"),
    # Lanes that no result depends on hold anything.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]
if machine.has("triton"):
    from ssimfast.backends.triton import launch

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
MEAN = {"reductions": ("mean",)}


@pytest.fixture(autouse=True)
def triton_kernels(monkeypatch):
    monkeypatch.setitem(comparison.TOLERANCES, torch.float32, comparison.CUDA_FLOAT32)
    if not torch.cuda.is_available():  # the interpreter does not round to bfloat16, it cuts off
        allowed = comparison.TOLERANCES[torch.bfloat16]
        cut = {key: 2 * allowed[key] for key in ("grad", "pyramid")}
        monkeypatch.setitem(comparison.TOLERANCES, torch.bfloat16, allowed | cut)
    use_triton(monkeypatch)
    if torch.cuda.is_available():
        with torch.device("cuda"):
            yield
    else:
        yield


# ---- ops ----------------------------------------------------------------------------------------


def assert_same_tensors(name: str, dtype: torch.dtype, layout: str) -> None:
    kernel = library.by_position(name, launch.OPS[name])
    tolerances = {"bfloat16": 2e-2, "float64": 1e-12}
    test_ops.assert_same_tensors(name, kernel, dtype, layout, **tolerances)


# Quick ones; the sweep behind the others is in the short suite with images of 5 x 6 pixels.
@pytest.mark.parametrize("name", ["scale_", "combine_levels", "collapse_"])
def test_kernel_and_reference_give_the_same_tensors(name):
    assert_same_tensors(name, torch.float32, "contiguous")


@pytest.mark.long
@pytest.mark.parametrize("name", library.SCHEMAS)
def test_kernel_and_reference_give_the_same_tensors_in_every_layout(name):
    # A pyramid is a loop of sweeps, which have every layout.
    for layout in ["contiguous"] if name == "sweep_levels" else test_ops.LAYOUTS:
        assert_same_tensors(name, torch.float32, layout)
    assert_same_tensors(name, torch.bfloat16, "channels_last")
    assert_same_tensors(name, torch.float64, "contiguous")


@pytest.mark.long
@pytest.mark.parametrize("window_size", [3, 11])
def test_uint8(window_size):
    x, y = ((255 * image).byte() for image in pair(1, 2, 17, 18))
    for measure in (ssimfast.ssim, ssimfast.similarity_loss):
        got = measure(x, y, window_size=window_size)
        want = measure(x.float(), y.float(), window_size=window_size, data_range=255)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


def test_images_of_two_layouts():
    x, y = pair(2, 3, 5, 6)
    y = y.contiguous(memory_format=torch.channels_last)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    ssimfast.ssim(a, b, window_size=3).backward()
    c, d = x.clone().requires_grad_(), y.contiguous().requires_grad_()
    ssimfast.ssim(c, d, window_size=3).backward()
    assert torch.equal(a.grad, c.grad) and torch.equal(b.grad, d.grad)
    assert b.grad.stride() == b.stride()


@pytest.mark.long
@pytest.mark.parametrize("pooling", [1, 2, 3])
@pytest.mark.parametrize("height, width", [(9, 12), (10, 13), (11, 15)])
def test_pyramids_of_every_pooling(pooling, height, width):
    x, y = pair(2, 2, height, width)
    statistic = Statistic(gaussian_taps(1, 1.5), [3], 1e-4, 9e-4, -1.0, 0.5, True)
    request = test_ops.SWEEP | {"kept": 0, "pooling": pooling}
    pooled = launch.sweep(x, y, statistic=statistic, **request)[3]
    for got, want in zip(
        pooled, reference.sweep(x, y, statistic=statistic, **request)[3], strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    grads, image = [], x
    for _ in range(3):
        grads.append(torch.rand(image.shape))
        image = reference.pool(image, pooling)
    arguments = (torch.rand(2, 2, 3).double(), torch.rand(2, 2), 0.0, 0.5, pooling)
    pixels = (x, y, [0.3, 0.0, 0.2], torch.rand(height), torch.rand(width))
    for optional in (pixels, (None, None, [0.0] * 3, None, None)):
        results = []
        for collapse_ in (launch.collapse_, reference.collapse_):
            finest, *coarser = (grad.clone() for grad in grads)
            collapse_(finest, coarser, *arguments, *optional)
            results.append(finest)
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("negative", ["relu", "abs"])
def test_slopes_where_means_vanish(negative):
    """Below the bound and above it, negative, 0 and NaN; exponents around 1."""
    means = torch.tensor([3e-5, 0.5, -2e-5, -0.3, 0.0, float("nan")], dtype=torch.float64)
    terms = torch.zeros(3, 1, 6, constants.TERMS, dtype=torch.float64)
    terms[0, 0, :, constants.CONTRAST_STRUCTURE] = means
    terms[1, 0, :, constants.CONTRAST_STRUCTURE] = means.flip(0).nan_to_num(0.7)
    terms[2, 0, :, constants.SSIM] = 0.2
    for exponents in ([0.3, 1.0, 0.5], [1.0, 0.3, 2.0], [0.0, 1.5, 0.2]):
        request = (list(terms), [9, 4, 1], exponents, constants.NEGATIVES[negative], False)
        rest = ([0.1, 0.9, 0.0, 0.0, 0.0], 0.0, 2)
        got = launch.combine_levels(*request, *rest)
        want = reference.combine_levels(*request, *rest)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0, equal_nan=True)


# ---- values and gradients -----------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("window_size", [1, 3, 5, 7, 9, 13])
def test_windows(window_size, padding):
    x, y = pair(1, 1, window_size + 4, window_size + 7)
    window = {"window_size": window_size, "sigma": window_size / 6}
    assert_matches_oracle(x, y, padding=padding, **window, **MEAN)


@pytest.mark.long
def test_the_largest_window():
    x, y = pair(1, 1, 33, 34, dtype=torch.float64)
    statistic = Statistic(gaussian_taps(16, 5.0), [33], 1e-4, 9e-4, 0.0, 1.0, False)
    request = test_ops.SWEEP | {"kept": 0, "gradients": 1, "count": 2}
    got = launch.sweep(x, y, statistic=statistic, **request)
    want = reference.sweep(x, y, statistic=statistic, **request)
    torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(got[2][0], want[2][0], rtol=0, atol=1e-13)


@pytest.mark.long
def test_a_loss_near_zero_keeps_its_digits():
    assert_small_losses_keep_their_digits(1e-3)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_reduction(dtype):
    assert_matches_oracle(*pair(2, 1, 13, 17, dtype=dtype))


@pytest.mark.parametrize(
    "size, window_size", [((5, 6), 3), pytest.param((13, 16), 11, marks=pytest.mark.long)], ids=str
)
def test_components(size, window_size):
    assert_components_match_oracle(*pair(1, 2, *size), padding="same", window_size=window_size)


@pytest.mark.long
@pytest.mark.parametrize("height, width", [(3, 250), (37, 12)], ids=["strips", "runs"])
def test_every_side_of_a_cut(height, width):
    x, y = pair(1, 1, height, width)
    assert_matches_oracle(x, y, padding="same", window_size=7, **MEAN)


@pytest.mark.long
def test_more_planes_than_programs():
    assert_matches_oracle(*pair(15, 1, 4, 5), padding="same", window_size=3, **MEAN)


@pytest.mark.long
@pytest.mark.parametrize("sigma", [0.3, 1e3])
def test_narrow_and_flat_windows(sigma):
    edges = torch.zeros(1, 1, 12, 14)
    edges[..., ::3] = 1
    assert_matches_oracle(edges, 1 - edges, NARROW, window_size=3, sigma=sigma, **MEAN)


@pytest.mark.long
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0), (-1000.0, 3000.0)])
def test_value_ranges(value_range):
    low, high = value_range
    x, y = ((high - low) * image + low for image in pair(1, 1, 12, 14))
    assert_matches_oracle(x, y, value_range=value_range, reductions=("batch",))


@pytest.mark.long
def test_constants():
    assert_matches_oracle(*pair(1, 1, 12, 14), k1=0.05, k2=0.0, reductions=("sum",))


HARD_IMAGES = test_ssim.hard((1, 1, 14, 15), (1, 1, 13, 14))


@pytest.mark.long
@pytest.mark.parametrize("case", HARD_IMAGES)
def test_hard_data(case):
    x, y, data_range = HARD_IMAGES[case]
    tolerances = loosened(HARD, "triton")
    assert_matches_oracle(x, y, tolerances, data_range=data_range, reductions=("none",))


def test_equal_images_give_exactly_one_and_no_gradient():
    x = torch.rand(1, 1, 6, 7).requires_grad_()
    value = ssimfast.ssim(x, x.detach().clone(), window_size=3)
    value.backward()
    assert value == 1 and (x.grad == 0).all()
    values = ssimfast.ssim(x, x.detach(), window_size=3, reduction="none")
    values.sum().backward()
    assert (values == 1).all() and (x.grad == 0).all()
    ssimfast.similarity_loss(x, x.detach(), window_size=3, ssim=0.3, l1=0.7).backward()
    assert (x.grad == 0).all()


@pytest.mark.long
def test_never_above_one():
    x = 1e3 * torch.rand(1, 1, 12, 13)
    for y in (x + 1e-4, -x):
        values = ssimfast.ssim(x, y, reduction="none")
        assert values.max() <= 1 and values.min() >= -1


@pytest.mark.long
@pytest.mark.parametrize("window_size", [3, 7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_their_windows_and_no_other(bad, window_size):
    halo, centre = window_size // 2, 13
    x, y = pair(1, 1, 27, 27)
    x[0, 0, centre, centre] = bad
    x.requires_grad_()
    window = {"window_size": window_size, "padding": "same", "sigma": 1e3}
    values = ssimfast.ssim(x, y, reduction="none", **window)
    away = (torch.arange(27) - centre).abs()
    away = torch.maximum(away[:, None], away)
    assert torch.equal(values.isnan()[0, 0], away <= halo)
    value = ssimfast.ssim(x, y, **window)
    value.backward()
    grad = x.grad[0, 0]
    assert value.isnan() and grad[centre, centre].isnan()
    assert not grad[away > 2 * halo].isnan().any()


@pytest.mark.long
@pytest.mark.parametrize("arguments", [
    {"weights": (0.4, 0.6), "reductions": ("mean", "none")},
    {"weights": (0.4, 0.6), "odd": "pad", "channels": "joint", "reductions": ("batch",)},
    {"weights": (1.0,), "negative": "abs", "reductions": ("mean",)},
], ids=str)  # fmt: skip
def test_ms_ssim(arguments):
    assert_ms_ssim_matches_oracle(*pair(1, 2, 13, 15), window_size=5, **arguments)


@pytest.mark.parametrize("mixture", [
    pytest.param({"ssim": 0.5, "l1": 0.2, "l2": 0.3, "gaussian_l1": 0.4}, marks=pytest.mark.long),
    pytest.param(
        {"ssim": 0.0, "ms_ssim": 0.84, "gaussian_l1": 0.16, "weights": (0.4, 0.6)},
        marks=pytest.mark.long,
    ),
    {"ssim": 3.0, "ms_ssim": 0.5, "l1": 0.2, "weights": (0.4, 0.6), "window_size": 3},
], ids=["ssim", "ms_ssim", "both"])  # fmt: skip
def test_mixtures(mixture):
    mixture = {"window_size": 5, **mixture}
    x, y = pair(2, 1, 8, 9) if mixture["window_size"] == 3 else pair(2, 1, 13, 15)
    assert_similarity_matches_oracle(x, y, reductions=("batch",), **mixture)


@pytest.mark.long
def test_gradcheck():
    x, y = (image.requires_grad_() for image in pair(1, 1, 4, 5, dtype=torch.float64))

    def function(x, y):
        return ssimfast.ssim(x, y, window_size=3, padding="same")

    torch.autograd.gradcheck(function, (x, y), fast_mode=True)


@pytest.mark.long
def test_the_same_bits_from_run_to_run():
    x, y = pair(2, 1, 21, 23)
    results = []
    for _ in range(2):
        a = x.clone().requires_grad_()
        value = ssimfast.similarity_loss(a, y, ssim=0.5, l1=0.5)
        value.backward()
        results.append((value.detach(), a.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.long
def test_optional_numbers_of_any_strides():
    x, y = pair(2, 3, 12, 13)
    statistic = Statistic(gaussian_taps(1, 1.5), [3], 1e-4, 9e-4, 0.0, 1.0, True)
    request = test_ops.SWEEP | {
        "loss": Loss([0.2] * 5, 0.3, torch.rand(24)[::2], torch.rand(1).expand(13)),
        "wanted": 31,
        "plane_weights": torch.rand(2, 2, 3).mT,
        "kept": 0,
        "gradients": 1,
    }
    got = launch.sweep(x, y, statistic=statistic, **request)
    want = reference.sweep(x, y, statistic=statistic, **request)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(got[2][0], want[2][0], rtol=1e-4, atol=1e-4)


def test_empty_images():
    for shape in ((0, 3, 16, 16), (2, 0, 16, 16), (0, 1, 12, 12, 12)):
        x = torch.rand(shape, requires_grad=True)
        ssimfast.ssim(x, torch.rand(shape), reduction="sum").backward()
        assert x.grad.shape == x.shape
    for shape in ((1, 3, 5, 0), (1, 3, 0, 5), (1, 3, 2, 0, 5)):
        x = torch.rand(shape)
        assert ssimfast.ssim(x, x, padding="same", reduction="none").shape == shape


# ---- masks, volumes, 8-bit targets, maps beside sums --------------------------------------------


def masked_mean(x, y, mask, *, gradients=2, low=0.0, high=1.0, **window):
    """The mean of SSIM over the weights of a mask, its gradients and its map: in one pass."""
    size, same = window["size"], window["padding"] == "same"
    taps = gaussian_taps(size // 2, window["sigma"])
    statistic = Statistic(taps, [size], 1e-4, 9e-4, low, 1 / (high - low), same)
    centres = oracle.centres(x.shape, mask=as_float64(mask), **window)
    factors = torch.tensor([centres.size / centres.sum(), 1.0], dtype=torch.float64)
    request = {"mask": mask.expand(x.shape), "mask_factors": factors, "kept": 0}
    request |= {"gradients": gradients, "count": centres.size, "grad_count": centres.size}
    request |= {"grad_scale": statistic.scale, "map_term": constants.SSIM}
    value, _, grads, _, maps = launch.sweep(x, y, statistic=statistic, **test_ops.SWEEP | request)
    return value, grads, maps[0]


def assert_masked_mean_matches_oracle(x, y, mask, tolerances=None, **window):
    allowed = tolerances or comparison.TOLERANCES[x.dtype]
    images, weights = (as_float64(x), as_float64(y)), as_float64(mask)
    window = {"padding": "same", "sigma": 1.5, **window}
    centres = oracle.centres(x.shape, mask=weights, **window)
    want, *grads = oracle.ssim(*images, mask=weights, upstream=centres / centres.sum(), **window)
    value, by_images, got = masked_mean(x, y, mask, **window)
    assert_near(got, want, allowed["map"], "map")
    mean = np.asarray((centres * want).sum() / centres.sum())
    assert_near(value, mean, comparison.mean_tolerance(allowed, want.size), "value")
    for got, want in zip(by_images, grads, strict=True):
        assert not got[..., mask.expand(x.shape)[0, 0] == 0].any()
        assert_near(got, want, allowed["grad"] * np.abs(want).max(), "gradient")


def seen_in(*size: int) -> Tensor:
    """Weights of pixels, most of them hidden: lonely ones, and a corner."""
    weights = torch.rand(size) * (torch.rand(size) < 0.3)
    weights[(slice(0, 3),) * len(size)] = 1.0
    return weights


# The pixel at the centre of a window is hidden, its neighbours are bright, flat and alike.
@pytest.mark.parametrize("size, window_size", [
    ((5, 6), 3),
    ((4, 5, 6), 3),
    pytest.param((24, 27), 11, marks=pytest.mark.long),
    pytest.param((26, 23), 19, marks=pytest.mark.long),
    pytest.param((9, 13, 14), 7, marks=pytest.mark.long),
], ids=str)  # fmt: skip
def test_hidden_pixels_cost_no_digits(size, window_size):
    mask = seen_in(*size)
    x, y = 0.98 + 0.01 * torch.rand(2, 1, 1, *size)
    x, y = x.where(mask > 0, float("nan")), y.where(mask > 0, 1e6)
    assert_masked_mean_matches_oracle(x, y, mask, HARD, size=window_size)
    constant = x.nan_to_num(1e6)
    same = masked_mean(constant, y, mask, size=window_size, sigma=1.5, padding="same")
    results = masked_mean(x, y, mask, size=window_size, sigma=1.5, padding="same")
    for one, other in zip(flat(same), flat(results), strict=True):
        assert torch.equal(one, other)


@pytest.mark.long
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(13, 15), (7, 8, 9)], ids=str)
def test_masks(size, dtype, padding):
    x, y = pair(2, 2, *size, dtype=dtype)
    mask = seen_in(*size).to(comparison.value_dtype(x))
    assert_masked_mean_matches_oracle(x, y, mask, size=5, padding=padding)
    arguments = {"mask": mask, "padding": padding, "window_size": 5}
    assert_matches_oracle(x, y, reductions=("batch", "none"), **arguments)


@pytest.mark.long
@pytest.mark.parametrize("size", [(13, 15), (7, 8, 9)], ids=str)
def test_masks_far_from_the_range(size):
    mask = seen_in(*size)
    x, y = (1000 + torch.rand(2, 1, 1, *size)).where(mask > 0, 0.0)
    assert_masked_mean_matches_oracle(x, y, mask, loosened(HARD, "triton"), size=5)


@pytest.mark.parametrize("window", [{"sigma": 0.4}, {"sigma": (0.4, 0.5), "window_size": (11, 9)}])
def test_a_narrow_window_that_sees_only_far_pixels(window):
    """Its coverage has no reciprocal in float32."""
    x, y = pair(1, 1, 16, 16)
    mask = torch.zeros(16, 16)
    mask[5:9, 5:9] = 1
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    for image, target in ((x, y), (exact, y.double())):
        ssimfast.ssim(image, target, mask=mask, padding="same", **window).backward()
    assert exact.grad.any()
    tolerance = 1e-4 * exact.grad.abs().max().item()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0, atol=tolerance)


def test_a_mask_of_nothing():
    for size in ((5, 6), (3, 4, 5)):
        x, y = (image.requires_grad_() for image in pair(1, 1, *size))
        mask = torch.zeros(size)
        value = ssimfast.ssim(x, y, mask=mask, window_size=3, k1=0, k2=0, padding="same")
        assert value == 1
        assert not any(grad.any() for grad in torch.autograd.grad(value, (x, y)))


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_volumes(dtype):
    x, y = pair(2, 2, 6, 7, 8, dtype=dtype)
    for padding in ("valid", "same"):
        assert_matches_oracle(x, y, window_size=5, padding=padding)


@pytest.mark.long
@pytest.mark.parametrize("case", HARD_IMAGES)
def test_hard_volumes(case):
    x, y, data_range = HARD_IMAGES[case]
    x, y = (image.expand(1, 1, 6, -1, -1) for image in (x[:, :, None], y[:, :, None]))
    arguments = {"data_range": data_range, "window_size": 5, "reductions": ("none",)}
    assert_matches_oracle(x, y, loosened(HARD, "triton"), **arguments)


def test_volumes_of_one_slice_in_several_programs():
    x, y = pair(1, 1, 1, 18, 30)
    assert_matches_oracle(x, y, window_size=3, padding="same", reductions=("mean",))


def test_an_8_bit_target():
    x, y = pair(1, 2, 5, 6)
    target = (255 * y).byte()
    statistic = Statistic(gaussian_taps(1, 1.5), [3], 1e-4, 9e-4, -1.0, 0.5, True)
    rows, columns = torch.rand(5), torch.rand(6)
    request = {"loss": Loss([0.3, 0.1, 0.2, 0.4, 0.5], 0.0, rows, columns), "wanted": 31}
    request = test_ops.SWEEP | request | {"gradients": 1, "pooling": 2, "map_term": 1}
    of_bytes, of_floats = (
        flat(launch.sweep(2 * x - 1, other, statistic=statistic, **request))
        for other in (target, target.float() / 127.5 - 1)
    )
    for one, other in zip(of_bytes, of_floats, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


# ---- plans --------------------------------------------------------------------------------------


SHAPES = [(1, 1, 1, 1), (1, 3, 256, 256), (16, 3, 64, 64), (8, 3, 1080, 1920), (1, 1, 4320, 7680)]


def test_plans_cover_every_pixel(monkeypatch):
    for shape, size, gradients, multiprocessors in product(
        SHAPES, (1, 7, 11, 33), (0, 1, 2), (1, 28, 132)
    ):
        images = torch.empty(shape, device="meta")
        monkeypatch.setattr(launch, "_multiprocessors", lambda device, n=multiprocessors: n)
        what = f"{shape}, window {size}, {gradients} gradients, {multiprocessors} multiprocessors"
        statistic = Statistic([1 / size] * size, [size], 1e-4, 9e-4, 0, 1, True)
        plan = launch._Sweep(images, images, None, statistic, gradients)
        kept = plan.lanes - (size - 1) * (2 if gradients else 1)
        assert kept >= 1 and plan.lanes % 32 == 0 and plan.lanes <= 256, what
        assert (plan.strips - 1) * kept < shape[3] <= plan.strips * kept, what
        assert (plan.runs - 1) * plan.run_rows < shape[2] <= plan.runs * plan.run_rows, what
        tiles = shape[0] * shape[1] * plan.tiles
        assert 1 <= plan.programs <= tiles, what
        if size == 11 and shape == (1, 3, 256, 256) and multiprocessors == 132:
            assert tiles >= 40, what  # of images as CycleGAN has them


# ---- warm-up ------------------------------------------------------------------------------------


@pytest.mark.long
def test_warmup_calls_every_kernel_of_a_training_step(monkeypatch):
    called = []
    for name in ("sweep", "scale_"):

        def op(*arguments, name=name, op=library.OPS[name]):
            called.append((name, arguments[0].shape, arguments[0].dtype))
            return op(*arguments)

        monkeypatch.setitem(library.OPS, name, op)
    loss = ssimfast.SSIMLoss(window_size=3)
    device = torch.get_default_device()
    shapes, dtypes = [(1, 1, 4, 5), (2, 1, 4, 4)], [torch.float32, torch.float16]
    ssimfast.warmup(shapes, dtypes, losses=[loss], device=device)
    for shape in shapes:
        for dtype in dtypes:
            # Alone, to one image, to both; and three gradients in backward.
            assert called.count(("sweep", shape, dtype)) == 3
            assert called.count(("scale_", shape, dtype)) == 3


def test_warmup_refuses_what_it_cannot_call():
    with pytest.raises(ValueError, match=r"shapes must be \(N, C, H, W\), got \(3, 4\)"):
        ssimfast.warmup([(3, 4)], device="cpu")
    with pytest.raises(TypeError, match="dtypes must be floating dtypes of torch, got torch.int8"):
        ssimfast.warmup([(1, 1, 16, 16)], [torch.int8], device="cpu")
    with pytest.raises(TypeError, match="losses must be functions of two images, got 'ssim'"):
        ssimfast.warmup([(1, 1, 16, 16)], losses=["ssim"], device="cpu")


# ---- who serves a GPU ---------------------------------------------------------------------------


def served(backend: str, *arguments: str) -> subprocess.CompletedProcess:
    script = "import ssimfast, sys; print(ssimfast.backends()['cuda'], 'triton' in sys.modules)"
    environment = {**os.environ, "SSIMFAST_CUDA_BACKEND": backend, "PYTHONWARNINGS": "ignore"}
    root = Path(ssimfast.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.needs("cuda torch")
def test_triton_can_be_chosen():
    done = served("triton")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "triton"
    assert "Overriding" not in done.stderr


@pytest.mark.long
@pytest.mark.needs("cuda torch")
def test_compiled_kernels_can_be_asked_for():
    done = served("cuda")
    if library.extension is not None and library.extension.cuda_runtime_version is not None:
        assert done.stdout.split()[0] == "cuda"
    else:
        assert "built without nvcc" in done.stderr


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv("SSIMFAST_CUDA_BACKEND", "opencl")
    with pytest.raises(ValueError, match="SSIMFAST_CUDA_BACKEND must be .*, got 'opencl'"):
        library._register_triton()  # as at import
