"""Luminance and contrast-structure against an independent float64 oracle, and what the window
arguments of all functions do to SSIM: uniform windows, sample covariance, reflection."""

import oracle
import pytest
import torch
from comparison import (
    HARD,
    TILE_COLUMNS,
    TILE_ROWS,
    TOLERANCES,
    as_float64,
    assert_components_match_oracle,
    assert_matches_oracle,
    assert_near,
    loosened,
)
from hypothesis import given
from hypothesis import strategies as st
from promises import drawn, few, pair

import ssimfast

SIZES = {
    "one_window": (1, 1, 11, 11),
    "primes": (2, 3, 29, 31),
    "many_planes": (10, 3, 11, 12),
}
TILES = {
    "rows_of_two_tiles": (1, 1, 2 * TILE_ROWS + 1, 20),
    "rows_of_two_tiles_of_windows": (1, 1, 2 * TILE_ROWS + 11, 20),
    "columns_of_two_tiles": (1, 1, 14, TILE_COLUMNS + 1),
    "columns_of_two_tiles_of_windows": (1, 1, 14, TILE_COLUMNS + 11),
}
PADDINGS = ("valid", "same", "reflect")


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_every_shape(backend, padding, size):
    assert_components_match_oracle(*pair(*SIZES[size]), padding=padding)


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("size", TILES)
def test_boundaries_of_tiles(backend, size):
    assert_components_match_oracle(*pair(*TILES[size]))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("window_size", [1, 3, 7, 11, 13, 21])
def test_every_window(backend, window_size, window):
    x, y = pair(1, 1, window_size + 4, window_size + 7)
    for padding in PADDINGS:
        arguments = {"window": window, "window_size": window_size, "padding": padding}
        assert_components_match_oracle(x, y, sigma=window_size / 6, **arguments)
        assert_matches_oracle(x, y, sigma=window_size / 6, **arguments)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("window_size", [3, 7])
def test_sample_covariance(backend, window_size, window, padding):
    x, y = pair(1, 2, 22, 25)
    arguments = {"window": window, "window_size": window_size, "padding": padding}
    assert_components_match_oracle(x, y, sample_covariance=True, **arguments)
    assert_matches_oracle(x, y, sample_covariance=True, **arguments)


@pytest.mark.long_with("reference")
def test_sigma_means_nothing_to_a_uniform_window(backend):
    x, y = pair(1, 1, 20, 20)
    uniform = ssimfast.ssim(x, y, window="uniform", sigma=0.1)
    assert torch.equal(uniform, ssimfast.ssim(x, y, window="uniform", sigma=8.0))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_dtype(backend, dtype):
    x, y = pair(2, 3, 25, 28, dtype=dtype)
    assert_components_match_oracle(x, y)
    assert_components_match_oracle(x, y, window="uniform", window_size=7, padding="reflect")
    assert_matches_oracle(x, y, window="uniform", window_size=7, padding="reflect")


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reflections_are_added_up_before_they_are_rounded(backend, dtype):
    x, y = pair(1, 2, 21, 23, dtype=dtype)
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    ssimfast.ssim(half, y, padding="reflect").backward()
    ssimfast.ssim(full, y.float(), padding="reflect").backward()
    assert torch.equal(half.grad, full.grad.to(dtype))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0), (-1000.0, 3000.0)])
def test_every_value_range(backend, value_range, padding):
    low, high = value_range
    x, y = ((high - low) * image + low for image in pair(1, 2, 24, 25))
    assert_components_match_oracle(x, y, value_range=value_range, padding=padding, k1=0.05, k2=0.2)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 8), (2, 1, 10, 10)], ids=str)
def test_smaller_than_the_window(backend, shape):
    assert_components_match_oracle(*pair(*shape), padding="same")


@pytest.mark.long_with("reference")
def test_smallest_image_that_can_be_reflected(backend):
    assert_components_match_oracle(*pair(1, 2, 6, 7), padding="reflect")
    assert_matches_oracle(*pair(1, 2, 6, 7), padding="reflect")


@pytest.mark.long_with("reference")
def test_their_product_is_ssim(backend):
    x, y = pair(2, 3, 24, 27)
    for padding in PADDINGS:
        luminance, contrast_structure = ssimfast.ssim_components(x, y, padding=padding)
        want = ssimfast.ssim(x, y, reduction="none", padding=padding)
        torch.testing.assert_close(luminance * contrast_structure, want, rtol=0, atol=1e-6)


# ---- data on which SSIM libraries fail ----------------------------------------------------------


@pytest.mark.long_with("reference")
def test_never_outside_of_minus_one_to_one(backend):
    flat = torch.full((1, 1, 32, 32), 0.6)
    noise = torch.rand(1, 1, 32, 32) * 1e3
    pairs = [(flat, flat + step) for step in (1e-7, 1e-6, 1e-5, 1e-3)]
    pairs += [(noise, y) for y in (noise + 1e-4, -noise, noise * (1 + 1e-6))]
    for x, y in pairs:
        for one in ssimfast.ssim_components(x, y):
            assert one.max() <= 1 and one.min() >= -1


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", PADDINGS)
def test_far_from_the_range(backend, padding):
    x, y = 1000 + torch.rand(1, 1, 24, 24), 1000 + torch.rand(1, 1, 24, 24)
    # Both are white: luminance has next to no gradient there but the black border's.
    assert_matches_oracle(x, y, HARD, padding=padding)
    luminance, contrast, *_ = oracle.components(as_float64(x), as_float64(y), padding=padding)
    got = ssimfast.ssim_components(x, y, padding=padding)
    assert_near(got.luminance, luminance, 1e-6, "luminance")
    assert_near(got.contrast_structure, contrast, 1e-6, "contrast_structure")


@pytest.mark.long_with("reference")
def test_flat_bright_beside_flat_dark(backend):
    checks = ((torch.arange(60)[:, None] // 15 + torch.arange(70) // 15) % 2).float()[None, None]
    faint = 0.01 * torch.randn(checks.shape)
    # Without luminance as a factor, black regions count as much as bright ones. Two rows from an
    # edge, what a window's variance is made of is several times as large as the variance.
    allowed = {**TOLERANCES[checks.dtype], "map": 2e-6, "grad": 4e-6}
    tolerances = loosened(allowed, backend)
    for y in ((checks + faint).clamp(0, 1), 1 - checks + faint, checks * 0.3 + 0.5 * (faint > 0)):
        assert_components_match_oracle(checks, y, tolerances)
        assert_matches_oracle(checks, y, window="uniform", window_size=7, sample_covariance=True)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_their_windows_and_no_other(backend, bad):
    x, y = pair(1, 1, 30, 30)
    x[0, 0, 12, 14] = bad
    x.requires_grad_()
    maps = ssimfast.ssim_components(x, y, window_size=5, padding="same")
    hit = torch.zeros(1, 1, 30, 30, dtype=torch.bool)
    hit[..., 10:15, 12:17] = True
    for one in maps:
        assert torch.equal(one.isnan(), hit)
    (maps.luminance + maps.contrast_structure).sum().backward()
    reach = torch.zeros(30, 30, dtype=torch.bool)
    reach[8:17, 10:19] = True
    assert x.grad[0, 0, 12, 14].isnan() and not x.grad[0, 0][~reach].isnan().any()


# ---- which gradients, how often -----------------------------------------------------------------


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_gradcheck(backend, window, padding):
    x, y = pair(1, 1, 6, 7, dtype=torch.float64)
    arguments = {"window": window, "window_size": 5, "padding": padding, "sample_covariance": True}
    images = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: tuple(ssimfast.ssim_components(a, b, **arguments)), images
    )
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.ssim(a, b, reduction="batch", **arguments), images
    )


# ---- properties ---------------------------------------------------------------------------------

window_arguments = st.fixed_dictionaries(
    {
        "window": st.sampled_from(["gaussian", "uniform"]),
        "window_size": st.sampled_from([3, 5, 11]),
        "sigma": st.floats(0.3, 5),
        "sample_covariance": st.booleans(),
        "padding": st.sampled_from(PADDINGS),
        "k1": st.floats(0.001, 0.1),
        "k2": st.floats(0.001, 0.1),
    }
)
sides = st.integers(11, 30)
seeds = st.integers(0, 10**6)


@few
@given(seeds, sides, sides, window_arguments)
def test_symmetric_within_bounds_and_a_product(seed, height, width, arguments):
    x, y = drawn(seed, 1, 2, height, width)
    maps, swapped = (ssimfast.ssim_components(*pair, **arguments) for pair in ((x, y), (y, x)))
    near = {"rtol": 1e-12, "atol": 1e-12}
    for one, other in zip(maps, swapped, strict=True):
        torch.testing.assert_close(one, other, **near)
        assert one.abs().max() <= 1
    product = maps.luminance * maps.contrast_structure
    want = ssimfast.ssim(x, y, reduction="none", **arguments)
    torch.testing.assert_close(product, want, **near)


@few
@given(seeds, sides, sides, window_arguments, st.floats(-100, 100), st.floats(0.1, 300))
def test_images_and_range_may_be_mapped_together(seed, height, width, arguments, low, length):
    x, y = drawn(seed, 1, 2, height, width)
    mapped = ssimfast.ssim_components(
        low + length * x, low + length * y, value_range=(low, low + length), **arguments
    )
    for one, other in zip(mapped, ssimfast.ssim_components(x, y, **arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@few
@given(seeds, sides, sides, window_arguments)
def test_mirrored_images_have_mirrored_maps(seed, height, width, arguments):
    x, y = drawn(seed, 1, 2, height, width)
    maps = ssimfast.ssim_components(x, y, **arguments)
    for mirrored in (lambda image: image.flip(-1), lambda image: image.mT):
        others = ssimfast.ssim_components(mirrored(x), mirrored(y), **arguments)
        for one, other in zip(maps, others, strict=True):
            torch.testing.assert_close(mirrored(one), other, rtol=1e-9, atol=1e-9)


def test_the_result_has_names():
    result = ssimfast.ssim_components(*pair(1, 2, 16, 18))
    assert isinstance(result, ssimfast.SSIMComponents)
    assert result._fields == ("luminance", "contrast_structure")
