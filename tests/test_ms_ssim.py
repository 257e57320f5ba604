"""Values and gradients of ssimfast.ms_ssim against an independent float64 oracle."""

import numpy as np
import oracle
import pytest
import torch
from comparison import (
    HARD,
    TILE_COLUMNS,
    TILE_ROWS,
    TOLERANCES,
    as_float64,
    assert_ms_ssim_matches_oracle,
    assert_near,
    loosened,
    ms_ssim_tolerance,
)
from hypothesis import given
from hypothesis import strategies as st
from promises import drawn, few, pair

import ssimfast

WANG = oracle.WANG
TWO, THREE = (0.4, 0.6), (0.2, 0.3, 0.5)

SIZES = {
    # All five scales of the paper; the coarsest has one window, or one row of them.
    "smallest_of_the_paper": (1, 1, 176, 176, WANG),
    "one_window": (1, 1, 11, 11, (1.0,)),
    "one_window_of_two_scales": (2, 3, 22, 23, TWO),
    "primes": (2, 3, 47, 53, THREE),
    "powers_of_two": (1, 3, 64, 64, THREE),
    "flat": (1, 1, 22, 150, TWO),
    "tall": (1, 1, 150, 22, TWO),
    "many_planes": (70, 3, 22, 24, TWO),
}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("size", SIZES)
def test_every_shape(backend, size):
    *shape, weights = SIZES[size]
    assert_ms_ssim_matches_oracle(*pair(*shape), weights=weights)


@pytest.mark.long
def test_odd_sizes_on_the_way_through_five_scales(backend):
    assert_ms_ssim_matches_oracle(*pair(1, 2, 181, 207), weights=WANG)


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("scales", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_every_number_of_scales(backend, channels, scales):
    x, y = pair(2, 2, 49, 58)
    assert_ms_ssim_matches_oracle(x, y, weights=WANG[:scales], window_size=3, channels=channels)


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("rows", [2 * TILE_ROWS + more for more in (-1, 0, 1, 10, 11)])
def test_boundaries_of_strips_at_the_coarser_scale(backend, rows):
    assert_ms_ssim_matches_oracle(*pair(1, 1, 2 * rows, 24), weights=TWO)


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("columns", [TILE_COLUMNS + more for more in (0, 1, 10, 11)])
def test_boundaries_of_columns_at_the_coarser_scale(backend, columns):
    assert_ms_ssim_matches_oracle(*pair(1, 1, 22, 2 * columns), weights=TWO)


@pytest.mark.long_with("reference", "cuda-emulated")
def test_boundaries_of_both(backend):
    # Blocks of the CUDA kernels are smaller than tiles of the CPU's, and slow to emulate.
    size = (90, 420) if backend == "cuda-emulated" else (300, 2000)
    assert_ms_ssim_matches_oracle(*pair(1, 1, *size), weights=TWO, window_size=5)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("odd", ["floor", "pad", "replicate"])
@pytest.mark.parametrize("height, width", [(40, 44), (41, 44), (40, 43), (37, 39), (38, 42)])
def test_every_parity(backend, height, width, odd):
    assert_ms_ssim_matches_oracle(
        *pair(2, 2, height, width), weights=THREE, window_size=5, odd=odd, value_range=(-1, 1)
    )


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("odd", ["pad", "replicate"])
def test_smallest_image_where_nothing_is_dropped(backend, odd):
    assert_ms_ssim_matches_oracle(*pair(1, 1, 17, 18), weights=THREE, window_size=5, odd=odd)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("odd", ["floor", "pad", "replicate"])
@pytest.mark.parametrize("padding", ["same", "reflect"])
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_every_padding(backend, window, padding, odd):
    x, y = pair(1, 2, 33, 38)
    assert_ms_ssim_matches_oracle(
        x, y, weights=TWO, window=window, window_size=7, padding=padding, odd=odd
    )


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("odd", ["floor", "pad", "replicate"])
def test_images_smaller_than_the_window(backend, odd):
    assert_ms_ssim_matches_oracle(*pair(1, 2, 5, 9), weights=THREE, padding="same", odd=odd)


def test_coarsest_scale_smaller_than_the_window_with_reflection(backend):
    assert_ms_ssim_matches_oracle(*pair(1, 2, 14, 15), weights=TWO, padding="reflect")


ARGUMENTS = {
    "window_3": {"window_size": 3, "sigma": 0.9},
    "window_13": {"window_size": 13, "sigma": 2.0},
    "window_1": {"window_size": 1},
    "uniform_8_bit": {"window": "uniform", "window_size": 7, "value_range": (0, 255)},
    "sample_covariance": {"sample_covariance": True, "window_size": 7},
    "constants": {"k1": 0.05, "k2": 0.2},
    "tanh": {"value_range": (-1, 1)},
    "data_range": {"data_range": 255},
    "joint_same": {"channels": "joint", "padding": "same"},
    "joint_pad": {"channels": "joint", "odd": "pad"},
    "abs": {"negative": "abs"},
    "raise": {"negative": "raise"},
    "large_weights": {"weights": (2.0, 3.0)},
    "no_weight": {"weights": (0.0, 0.0)},
    "only_the_finest": {"weights": (1.0, 0.0)},
    "only_the_coarsest": {"weights": (0.0, 1.0)},
    "list_of_weights": {"weights": [0.5, 1]},
}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("case", ARGUMENTS)
def test_every_argument(backend, case):
    arguments = {"weights": TWO, **ARGUMENTS[case]}
    low, high = arguments.get("value_range", (0, arguments.get("data_range", 1)))
    x, y = (low + (high - low) * image for image in pair(2, 3, 28, 33))
    assert_ms_ssim_matches_oracle(x, y, **arguments)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_every_dtype(backend, dtype, channels):
    x, y = pair(2, 3, 45, 50, dtype=dtype)
    assert_ms_ssim_matches_oracle(x, y, weights=THREE, channels=channels)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_images_are_as_exact_as_their_float32_copies(backend, dtype):
    x, y = pair(1, 3, 48, 52, dtype=dtype)
    half = ssimfast.ms_ssim(x, y, weights=THREE, reduction="none")
    assert torch.equal(
        half, ssimfast.ms_ssim(x.float(), y.float(), weights=THREE, reduction="none")
    )


@pytest.mark.backends("cpu")
def test_auto_weights(backend):
    """As many scales as fit, with the paper's proportions and sum."""

    def expect(side: int, scales: int, **arguments) -> None:
        x, y = pair(1, 1, side, side + 40)
        weights = [weight * 1.0001 / sum(WANG[:scales]) for weight in WANG[:scales]]
        got = ssimfast.ms_ssim(x, y, weights="auto", **arguments)
        want = ssimfast.ms_ssim(x, y, weights=weights, **arguments)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)

    for side, scales in ((11, 1), (21, 1), (22, 2), (43, 2), (44, 3), (88, 4), (175, 4), (176, 5)):
        expect(side, scales)
    for odd in ("pad", "replicate"):
        for side, scales in ((20, 1), (21, 2), (40, 2), (41, 3), (81, 4), (160, 4), (161, 5)):
            expect(side, scales, odd=odd)
    expect(500, 5)
    expect(12, 3, window_size=3)


# ---- data on which MS-SSIM libraries fail -------------------------------------------------------


def test_equal_images_give_exactly_one_with_the_weights_of_the_paper(backend):
    """They sum to 1.0001."""
    x = torch.rand(1, 3, 180, 190)
    assert ssimfast.ms_ssim(x, x) == 1


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_negative_means(backend, channels):
    x = torch.rand(2, 2, 24, 26)
    y = 1 - x
    arguments = {"weights": TWO, "channels": channels}
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = ssimfast.ms_ssim(a, b, **arguments)
    assert value == 0
    value.backward()
    assert not a.grad.any() and not b.grad.any()
    # Opposite images are alike in what x + y keeps of them, which is next to nothing.
    tolerances = loosened({**TOLERANCES[x.dtype], "pyramid": 1e-5}, backend)
    assert_ms_ssim_matches_oracle(x, y, tolerances, negative="abs", **arguments)
    with pytest.raises(ValueError, match="negative"):
        ssimfast.ms_ssim(x, y, negative="raise", **arguments)
    # One negative plane among others: its product is 0, the others are not touched.
    y[1, 0] = x[1, 0] + 0.1 * torch.rand(24, 26)
    y[1, 1] = x[1, 1]
    assert_ms_ssim_matches_oracle(x, y, **arguments)
    with pytest.raises(ValueError, match="negative"):
        ssimfast.ms_ssim(x, y, negative="raise", **arguments)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("negative", ["relu", "abs"])
def test_a_mean_of_exactly_zero(backend, negative):
    """k2 = 0 and a black image: every term of contrast is 0 / variance."""
    x, y = torch.zeros(1, 1, 24, 24), torch.rand(1, 1, 24, 24)
    x.requires_grad_()
    y.requires_grad_()
    value = ssimfast.ms_ssim(x, y, weights=TWO, k2=0, negative=negative)
    value.backward()
    if backend.startswith("cuda"):  # from the distance, 1 - 2 * 0.5, which is rounded
        assert value.abs() < 1e-6 and x.grad.isfinite().all() and y.grad.isfinite().all()
    else:
        assert value == 0 and not x.grad.any() and not y.grad.any()
    assert ssimfast.ms_ssim(x, y, weights=(0.0, 0.0), k2=0, negative=negative) == 1  # 0 ** 0


def next_to_zero(mean: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose mean SSIM under a window of 5 pixels is that: bisection between x and 1 - x."""
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64).numpy()
    near, far = 0.0, 1.0
    for _ in range(60):
        middle = (near + far) / 2
        value = oracle.ssim(x, 1 - x + middle * (2 * x - 1), size=5)[0].mean()
        near, far = (middle, far) if value < mean else (near, middle)
    return torch.tensor(x), torch.tensor(1 - x + near * (2 * x - 1))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("negative", ["relu", "abs"])
@pytest.mark.parametrize(
    "mean",
    [
        *(9e-5, 1e-7, -1e-7, -2e-4),
        *(pytest.param(m, marks=pytest.mark.long) for m in (2e-4, 1e-5, -1e-5, -9e-5)),
    ],
)
def test_slope_is_bounded_where_a_mean_vanishes(backend, mean, negative):
    x, y = next_to_zero(mean)
    arguments = {"weights": (0.3,), "window_size": 5, "negative": negative}
    allowed = {"mean": 1e-13, "map": 1e-12, "grad": 1e-8}  # a mean of 1e-7 has fewer digits
    assert_ms_ssim_matches_oracle(x, y, allowed, **arguments)
    for dtype in (torch.float32, torch.float16):
        a, b = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
        ssimfast.ms_ssim(a, b, reduction="sum", **arguments).backward()
        assert a.grad.isfinite().all() and b.grad.isfinite().all()


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0)])
def test_an_exponent_of_one_has_the_slope_of_ssim(backend, weights):
    """The product is then SSIM of the coarsest scale, however small: it needs no bound."""
    x, y = torch.rand(2, 1, 2, 24, 25, dtype=torch.float64)
    x, y = (image.repeat_interleave(2, 2).repeat_interleave(2, 3) for image in (x, y))
    x, y = (1e-3 * x).requires_grad_(), 0.5 + 0.5 * y
    value = ssimfast.ms_ssim(x, y, weights=weights, reduction="none")
    a, b = x, y
    for _ in weights[1:]:
        a, b = torch.nn.functional.avg_pool2d(a, 2), torch.nn.functional.avg_pool2d(b, 2)
    want = ssimfast.ssim(a, b, reduction="none").mean((2, 3))
    assert 0 < want.max() < 1e-4  # where smaller exponents are bounded
    torch.testing.assert_close(value, want, rtol=1e-9, atol=0)
    got, by_ssim = (torch.autograd.grad(result.sum(), x)[0] for result in (value, want))
    torch.testing.assert_close(got, by_ssim, rtol=1e-6, atol=1e-9)


def test_slope_below_the_least_mean_is_that_of_its_power_there(backend):
    """0.3 * 1e-4 ** -0.7, whatever the mean: analytic, times the gradient of the mean."""
    x, y = next_to_zero(3e-5)
    gradients = []
    for weights, slope in (((1.0,), 1.0), ((0.3,), 0.3 * 1e-4**-0.7)):
        image = x.clone().requires_grad_()
        ssimfast.ms_ssim(image, y, weights=weights, window_size=5).backward()
        gradients.append(image.grad / slope)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=0)


def related(offset: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and other noise that shares most of it: no mean of a scale is next to 0, where the
    value's slope would multiply every error."""
    x, own = torch.randn(2, 1, 1, 48, 48)
    return offset + scale * x, offset + scale * (0.8 * x + 0.6 * own)


# Far from the range, the pooled images keep four digits of the range in float32.
FAR = {"mean": 3e-5, "map": 1e-4, "pyramid": 3e-3}
HARD_IMAGES = {
    "far_from_the_range": (*related(1000, 0.3), 1.0, FAR),
    "faint_noise": (*related(0.6, 1e-4), 1e-3, FAR),
    "two_constants": (
        torch.full((1, 1, 44, 46), 0.2),
        torch.full((1, 1, 44, 46), 0.8),
        1.0,
        HARD,
    ),
    "nearly_equal": (
        torch.full((1, 1, 44, 46), 0.6),
        torch.full((1, 1, 44, 46), 0.6) + 1e-7,
        1.0,
        HARD,
    ),
}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("case", HARD_IMAGES)
def test_hard_data(backend, case, padding):
    x, y, data_range, tolerances = HARD_IMAGES[case]
    arguments = {"weights": TWO, "data_range": data_range, "padding": padding, "negative": "abs"}
    assert_ms_ssim_matches_oracle(x, y, loosened(tolerances, backend), **arguments)


def test_flat_bright_beside_flat_dark(backend):
    checks = ((torch.arange(60)[:, None] // 15 + torch.arange(70) // 15) % 2).float()[None, None]
    faint = 0.01 * torch.randn(checks.shape)
    for y in ((checks + faint).clamp(0, 1), checks * 0.3 + 0.5 * (faint > 0)):
        assert_ms_ssim_matches_oracle(checks, y, weights=THREE)


@pytest.mark.needs("skimage")
@pytest.mark.parametrize(
    "name", ["astronaut", *(pytest.param(n, marks=pytest.mark.long) for n in ("camera", "page"))]
)
def test_photographs(backend, name):
    import skimage.data as skimage_data

    image = getattr(skimage_data, name)()[:96, 200:300] / 255.0
    image = image.reshape(96, 100, -1).transpose(2, 0, 1)[None]
    x = torch.tensor(image, dtype=torch.float32)
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    # Blurred images are alike at the coarser scales.
    tolerances = {**TOLERANCES[x.dtype], "pyramid": 2e-5}
    for y in (blurred, (x + 0.05 * torch.randn(x.shape)).clamp(0, 1)):
        assert_ms_ssim_matches_oracle(x, y, tolerances, weights=THREE)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_gradients_are_finite(backend, dtype):
    x, y = torch.zeros(1, 1, 24, 24), torch.full((1, 1, 24, 24), 1e-4)
    noise = 1e-4 * torch.rand(x.shape)
    for a, b in ((x, y), (x, noise), (noise, noise.flip(-1)), (noise, 1e-4 - noise)):
        for arguments in ({}, {"negative": "abs"}, {"channels": "joint"}, {"padding": "same"}):
            p, q = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
            value = ssimfast.ms_ssim(p, q, weights=TWO, data_range=1e-3, **arguments)
            value.backward()
            assert p.grad.isfinite().all() and q.grad.isfinite().all()


# ---- which gradients, how often -----------------------------------------------------------------


@pytest.mark.backends("cpu")
def test_both_images_depend_on_one(backend):
    x = torch.rand(1, 1, 24, 24, dtype=torch.float64, requires_grad=True)
    ssimfast.ms_ssim(x, x * 0.5, weights=TWO).backward()
    _, grad_x, grad_y, *_ = oracle.ms_ssim(as_float64(x), as_float64(x) * 0.5, weights=TWO)
    want = grad_x + 0.5 * grad_y
    assert_near(x.grad, want, 1e-11 * np.abs(want).max(), "gradient")


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize(
    "shape, arguments",
    [
        ((2, 1, 5, 6), {"reduction": "sum", "odd": "pad"}),
        ((2, 2, 4, 5), {"reduction": "batch", "channels": "joint", "padding": "same"}),
        ((2, 1, 5, 6), {"reduction": "none", "odd": "replicate"}),
        ((1, 2, 7, 6), {"reduction": "none", "channels": "joint"}),
        ((1, 1, 6, 7), {"padding": "reflect"}),
        ((1, 1, 7, 6), {"window": "uniform", "sample_covariance": True, "value_range": (-1, 1)}),
    ],
    ids=["sum_pad", "batch_joint_same", "none_replicate", "none_joint", "reflect", "uniform"],
)
def test_gradcheck(backend, shape, arguments):
    x, y = pair(*shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.ms_ssim(a, b, weights=TWO, window_size=3, **arguments),
        (x.requires_grad_(), y.requires_grad_()),
    )


# ---- determinism, compilation -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_raises_too():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: ssimfast.ms_ssim(x, y, weights=TWO, negative="raise"),
        fullgraph=True,
        backend="aot_eager",
    )
    x = torch.rand(1, 1, 24, 24, requires_grad=True)
    torch.testing.assert_close(compiled(x, x.detach()), torch.tensor(1.0))
    with pytest.raises(ValueError, match='negative="raise": a mean of contrast-structure is -'):
        compiled(x, 1 - x.detach())


# ---- properties ---------------------------------------------------------------------------------

arguments_of_ms_ssim = st.fixed_dictionaries(
    {
        "weights": st.lists(st.floats(0, 2), min_size=1, max_size=3).map(tuple),
        "window_size": st.sampled_from([1, 3, 5]),
        "odd": st.sampled_from(["floor", "pad", "replicate"]),
        "channels": st.sampled_from(["separate", "joint"]),
        "padding": st.sampled_from(["valid", "same", "reflect"]),
        "window": st.sampled_from(["gaussian", "uniform"]),
        "reduction": st.sampled_from(["mean", "none"]),
    }
)
sides = st.integers(20, 40)
seeds = st.integers(0, 10**6)


@few
@given(seeds, sides, sides, arguments_of_ms_ssim)
def test_symmetric_and_within_bounds(seed, height, width, arguments):
    x, y = drawn(seed, 1, 2, height, width)
    value = ssimfast.ms_ssim(x, y, **arguments)
    torch.testing.assert_close(value, ssimfast.ms_ssim(y, x, **arguments), rtol=1e-12, atol=1e-12)
    assert (value >= 0).all() and (value <= 1).all()


@few
@given(seeds, sides, sides, arguments_of_ms_ssim, st.floats(-100, 100), st.floats(0.1, 300))
def test_images_and_range_may_be_mapped_together(seed, height, width, arguments, low, length):
    x, y = drawn(seed, 1, 2, height, width)
    mapped = ssimfast.ms_ssim(
        low + length * x, low + length * y, value_range=(low, low + length), **arguments
    )
    # A power may be steep where a mean vanishes.
    torch.testing.assert_close(mapped, ssimfast.ms_ssim(x, y, **arguments), rtol=1e-6, atol=1e-6)


@few
@given(seeds, sides, sides, st.floats(0.01, 3), st.sampled_from(["valid", "same", "reflect"]))
def test_one_scale_is_a_power_of_ssim(seed, height, width, weight, padding):
    x, y = drawn(seed, 1, 2, height, width)
    ssim = ssimfast.ssim(x, y, padding=padding, reduction="none").mean((2, 3))
    got = ssimfast.ms_ssim(x, y, weights=(weight,), padding=padding, reduction="none")
    torch.testing.assert_close(got, ssim.clamp(min=0) ** weight, rtol=1e-9, atol=1e-9)


@few
@given(seeds, sides, sides, arguments_of_ms_ssim)
def test_reductions_agree(seed, height, width, arguments):
    x, y = (torch.cat([image, image.flip(-1) ** 2]) for image in drawn(seed, 1, 2, height, width))
    values = {
        reduction: ssimfast.ms_ssim(x, y, **{**arguments, "reduction": reduction})
        for reduction in ("mean", "sum", "batch", "none")
    }
    near = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(values["mean"], values["none"].mean(), **near)
    torch.testing.assert_close(values["sum"], values["none"].sum(), **near)
    torch.testing.assert_close(values["batch"], values["none"].reshape(2, -1).mean(1), **near)


def test_default_weights_are_those_of_the_paper():
    x, y = pair(1, 1, 176, 176)
    want = oracle.ms_ssim(as_float64(x), as_float64(y))
    tolerance = ms_ssim_tolerance(want, x, {}, TOLERANCES[x.dtype])
    assert_near(ssimfast.ms_ssim(x, y, reduction="none"), want.value, tolerance, "value")
