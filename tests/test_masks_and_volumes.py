"""ssimfast.ssim of masked images and of volumes against an independent float64 oracle."""

import oracle
import pytest
import torch
from comparison import (
    HARD,
    TOLERANCES,
    as_float64,
    assert_matches_oracle,
    assert_near,
    to_oracle,
)
from hypothesis import given
from hypothesis import strategies as st
from promises import LAYOUTS, drawn, few, pair

import ssimfast


def disk(height: int, width: int) -> torch.Tensor:
    """1 inside of a circle, 0 outside."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    distance = (rows - height / 2) ** 2 + (columns - width / 2) ** 2
    return (distance < (min(height, width) / 3) ** 2).float()


def masks(batch: int, channels: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Masks of every kind for images of that shape."""
    inside = disk(height, width)
    weights = torch.rand(height, width)
    return {
        "weights": weights,
        "weights_and_holes": weights * inside,
        "disk": inside,
        "bool": inside.bool(),
        "all": torch.ones(height, width, dtype=torch.bool),
        "number": torch.tensor(0.3),
        "image": torch.rand(batch, 1, height, width),
        "channel": torch.rand(1, channels, height, width),
        "every_pixel": torch.rand(batch, channels, height, width),
        "rows": (torch.arange(height) % 3 > 0).float()[:, None],
        "columns": torch.rand(width),
        "one_image_is_not_seen": torch.stack([inside, *[inside * 0] * (batch - 1)])[:, None],
        "one_channel_is_not_seen": torch.stack([inside * 0, *[inside] * (channels - 1)]),
        "single_pixels": (torch.rand(height, width) < 0.02).float(),
        "faint": 1e-6 * weights,
        "double": weights.double(),
        "half": weights.half(),
    }


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("kind", masks(2, 3, 4, 4))
def test_every_mask(backend, kind):
    x, y = pair(2, 3, 17, 20)
    mask = masks(2, 3, 17, 20)[kind]
    for padding in ("valid", "same"):
        assert_matches_oracle(x, y, mask=mask, padding=padding)


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("window_size", [1, 3, 7, 13, 33])
def test_every_window(backend, window_size, window, padding):
    size = (window_size + 4, window_size + 7)
    mask = masks(1, 1, *size)["weights_and_holes"]
    arguments = {"window": window, "window_size": window_size, "sigma": window_size / 6}
    assert_matches_oracle(*pair(1, 1, *size), mask=mask, padding=padding, **arguments)


ARGUMENTS = {
    "sample_covariance": {"sample_covariance": True, "window_size": 7},
    "constants": {"k1": 0.05, "k2": 0.2},
    "tanh": {"value_range": (-1, 1)},
    "8_bit": {"data_range": 255},
    "narrow_window": {"sigma": 0.8},
}


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_argument(backend, padding, case):
    arguments = ARGUMENTS[case]
    low, high = arguments.get("value_range", (0, arguments.get("data_range", 1)))
    x, y = (low + (high - low) * image for image in pair(2, 1, 23, 26))
    mask = masks(2, 1, 23, 26)["weights_and_holes"]
    assert_matches_oracle(x, y, mask=mask, padding=padding, **arguments)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["disk", "weights", "bool"])
def test_every_dtype(backend, kind, dtype):
    x, y = pair(2, 3, 22, 25, dtype=dtype)
    assert_matches_oracle(x, y, mask=masks(2, 3, 22, 25)[kind])


SIZES = {
    "one_window": (1, 1, 11, 11),
    "primes": (2, 3, 29, 31),
    "many_planes": (10, 3, 11, 12),
    "many_rows": (1, 1, 139, 20),
    "many_columns": (1, 1, 14, 651),
}


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_every_shape(backend, shape):
    x, y = pair(*shape)
    assert_matches_oracle(x, y, mask=torch.rand(shape[2:]), padding="valid")


# Images are cut into runs of 64 rows or more, side by side; four rows advance together.
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 127, 20), (1, 1, 131, 20), (2, 3, 200, 17), (1, 1, 1030, 9)],
    ids=["one_run", "two_runs", "two_runs_a_plane", "all_runs"],
)
def test_boundaries_of_runs(shape):
    mask = torch.rand(shape[2:]) < 0.8
    assert_matches_oracle(*pair(*shape), mask=mask, window_size=5, padding="same")


# Slices so wide that their rows are cut into strips; planes side by side, and one after another.
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 5, 41, 3000), marks=pytest.mark.long),
        (3, 3, 6, 7, 8),
        (1, 3, 9, 6, 7),
        (1, 1, 70, 5, 6),
    ],
    ids=["strips", "planes_side_by_side", "planes_in_turn", "deep"],
)
def test_boundaries_of_parts_of_volumes(shape):
    assert_matches_oracle(*pair(*shape), window_size=5)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 8), (2, 1, 10, 10)], ids=str)
def test_smaller_than_the_window(backend, shape):
    assert_matches_oracle(*pair(*shape), mask=torch.rand(shape[2:]), padding="same")


BY_AXIS = {
    "thin_volume": ((1, 2, 6, 19, 21), {"window_size": (3, 11, 7), "sigma": (0.8, 1.5, 1.2)}),
    "signal": ((2, 2, 1, 40), {"window_size": (1, 11)}),
    "image": ((1, 2, 17, 20), {"window_size": (7, 5), "sample_covariance": True}),
    "sigma_only": ((1, 1, 17, 20), {"window_size": 5, "sigma": (1.5, 0.7)}),
}


@pytest.mark.long_with("reference", "triton", "cuda-emulated")
@pytest.mark.parametrize("case", BY_AXIS)
def test_a_window_for_each_axis(backend, case):
    shape, arguments = BY_AXIS[case]
    for mask in (None, torch.rand(shape[2:])):
        for padding in ("valid", "same"):
            assert_matches_oracle(*pair(*shape), HARD, mask=mask, padding=padding, **arguments)


# ---- what a mask means --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_mask_of_ones_is_no_mask(backend, dtype):
    x, y = pair(2, 3, 22, 25, dtype=dtype)
    ones = torch.ones(22, 25, dtype=torch.bool)
    for reduction in ("mean", "sum", "batch", "none"):
        results = []
        for mask in (None, ones):
            a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
            value = ssimfast.ssim(a, b, mask=mask, reduction=reduction)
            value.sum().backward()
            results.append((value.detach(), a.grad, b.grad))
        for name, one, other in zip(("value", "x", "y"), *results, strict=True):
            limit = TOLERANCES[dtype]["map" if name == "value" else "grad"] * one.abs().max().item()
            assert_near(other, as_float64(one), 2 * limit, f"{reduction}: {name}")


def test_a_mask_of_ones_normalises_the_border(backend):
    """Without a mask, "same" compares with black outside; a mask says that nothing is there."""
    x, y = torch.full((1, 1, 20, 20), 0.2), torch.full((1, 1, 20, 20), 0.8)
    values = ssimfast.ssim(x, y, mask=torch.ones(20, 20), padding="same", reduction="none")
    want = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    torch.testing.assert_close(values, torch.full_like(values, want))


def test_a_mask_has_no_scale(backend):
    x, y = pair(1, 1, 20, 22)
    mask = torch.rand(20, 22) * disk(20, 22)
    for reduction in ("mean", "batch", "none"):
        want = ssimfast.ssim(x, y, mask=mask, reduction=reduction)
        got = ssimfast.ssim(x, y, mask=mask / 8, reduction=reduction)
        torch.testing.assert_close(got, want)
    # But a sum has.
    got = ssimfast.ssim(x, y, mask=mask / 8, reduction="sum")
    torch.testing.assert_close(got, ssimfast.ssim(x, y, mask=mask, reduction="sum") / 8)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), -float("inf"), 1e30, -1e9])
def test_what_is_not_seen_has_no_influence(backend, hidden, padding):
    x, y = pair(2, 2, 24, 26)
    mask = disk(24, 26)
    for reduction in ("mean", "sum", "batch", "none"):
        results = []
        for fill_x, fill_y in ((0.5, 0.5), (hidden, 0.5), (0.5, hidden), (hidden, hidden)):
            a = x.where(mask > 0, fill_x).requires_grad_()
            b = y.where(mask > 0, fill_y).requires_grad_()
            value = ssimfast.ssim(a, b, mask=mask, padding=padding, reduction=reduction)
            value.sum().backward()
            assert not a.grad[..., mask == 0].any() and not b.grad[..., mask == 0].any()
            results.append((value.detach(), a.grad, b.grad))
        for result in results[1:]:
            assert all(
                torch.equal(one, other) for one, other in zip(result, results[0], strict=True)
            )


@pytest.mark.long_with("reference")
def test_what_is_seen_has_influence(backend):
    x, y = pair(1, 1, 24, 26)
    mask = disk(24, 26)
    x[0, 0, 12, 13] = float("nan")
    assert ssimfast.ssim(x, y, mask=mask).isnan()


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("shape", [(2, 2, 16, 17), (1, 2, 9, 8, 7)], ids=["images", "volumes"])
def test_a_mask_of_nothing(backend, shape, padding):
    x, y = (image.requires_grad_() for image in pair(*shape))
    arguments = {"mask": torch.zeros(shape[2:]), "padding": padding, "window_size": 5}
    for reduction, want in (("mean", 1), ("sum", 0), ("batch", 1), ("none", 1)):
        value = ssimfast.ssim(x, y, reduction=reduction, **arguments)
        assert (value == want).all()
        grads = torch.autograd.grad(value.sum(), (x, y))
        assert not grads[0].any() and not grads[1].any()


def test_a_mask_of_nothing_without_constants(backend):
    """k1 = k2 = 0 is where a window of nothing would be 0 / 0."""
    x, y = (image.requires_grad_() for image in pair(1, 1, 16, 17))
    mask = torch.zeros(16, 17)
    mask[:, 12:] = 1
    value = ssimfast.ssim(x, y, mask=mask, k1=0, k2=0, window_size=5, reduction="none")
    assert (value[..., :8] == 1).all() and value.isfinite().all()
    value.sum().backward()
    assert x.grad.isfinite().all() and not x.grad[..., :12].any()


@pytest.mark.parametrize("sigma", [0.5, 0.35])
def test_a_narrow_window_that_sees_only_far_pixels(backend, sigma):
    """Its coverage has no reciprocal in float32."""
    x, y = pair(1, 1, 32, 32)
    mask = torch.zeros(32, 32)
    mask[10:20, 10:20] = 1
    for arguments in ({"sigma": sigma}, {"sigma": (sigma, 0.4), "window_size": (11, 9)}):
        x = x.detach().requires_grad_()
        value = ssimfast.ssim(x, y, mask=mask, padding="same", **arguments)
        value.backward()
        exact = x.detach().double().requires_grad_()
        want = ssimfast.ssim(exact, y.double(), mask=mask, padding="same", **arguments)
        want.backward()
        assert value.item() == pytest.approx(want.item(), abs=1e-6)
        allowed = 1e-4 * exact.grad.abs().max().item()
        torch.testing.assert_close(x.grad, exact.grad.float(), rtol=0, atol=allowed)


def test_weights_that_are_nearly_nothing_are_nothing(backend):
    x, y = pair(1, 1, 16, 17)
    mask = torch.full((16, 17), 1e-38)
    assert ssimfast.ssim(x, y, mask=mask) == 1
    mask[:, :8] = 0.5
    mostly = ssimfast.ssim(x.requires_grad_(), y, mask=mask, window_size=5)
    torch.testing.assert_close(mostly, ssimfast.ssim(x, y, mask=mask > 0.1, window_size=5))
    mostly.backward()
    assert x.grad.isfinite().all() and not x.grad[..., 8:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_gradients_under_a_small_mask(backend, dtype):
    """One pixel of thousands counts: its gradient is that many times as large as in a mean."""
    x, y = (0.5 + 0.02 * image for image in pair(1, 1, 180, 200))
    mask = torch.zeros(180, 200)
    mask[90, 100] = 1
    x, y = x.to(dtype).requires_grad_(), y.to(dtype)
    ssimfast.ssim(x, y, mask=mask, padding="same").backward()
    exact = x.detach().double().requires_grad_()
    ssimfast.ssim(exact, y.double(), mask=mask, padding="same").backward()
    allowed = 0.02 * exact.grad.abs().max().item()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0, atol=allowed)


def test_where_images_are_equal_under_the_mask(backend):
    x, y = pair(1, 2, 24, 26)
    mask = disk(24, 26)
    y = torch.where(mask > 0, x, y)
    assert ssimfast.ssim(x, y, mask=mask) == 1


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_far_from_the_range(backend, padding):
    x, y = 1000 + torch.rand(1, 1, 24, 26), 1000 + torch.rand(1, 1, 24, 26)
    mask = disk(24, 26)
    x, y = x.where(mask > 0, 0.0), y.where(mask > 0, 0.0)
    assert_matches_oracle(x, y, HARD, mask=mask, padding=padding)


@pytest.mark.parametrize("rows", [slice(130, 245), slice(777, 778)], ids=["band", "line"])
def test_far_from_the_range_where_little_is_seen(backend, rows):
    x, y = 1e4 + torch.rand(2, 1, 1, 1000, 100, dtype=torch.float64)
    mask = torch.zeros_like(x)
    mask[:, :, rows] = 1
    near = slice(rows.start - 10, rows.stop + 10)
    arguments = {"reduction": "none", "padding": "same"}
    whole = ssimfast.ssim(x, y, mask=mask, **arguments)
    arguments |= {"mask": mask[:, :, near], "value_range": (-1e4, 1 - 1e4)}
    brought_near = ssimfast.ssim(x[:, :, near] - 1e4, y[:, :, near] - 1e4, **arguments)
    torch.testing.assert_close(whole[:, :, near], brought_near, rtol=0, atol=1e-9)


def test_a_mask_is_a_crop(backend):
    """Windows that see the whole of a crop do not see that there is more."""
    x, y = pair(1, 2, 24, 26)
    mask = torch.zeros(24, 26)
    mask[6:20, 5:22] = 1
    crop = (..., slice(6, 20), slice(5, 22))
    want = ssimfast.ssim(x[crop], y[crop], reduction="none", window_size=5)
    got = ssimfast.ssim(x, y, mask=mask, reduction="none", window_size=5)
    torch.testing.assert_close(got[..., 6:16, 5:18], want, rtol=0, atol=2e-6)


@pytest.mark.long_with("reference")
def test_modules_take_a_mask(backend):
    x, y = pair(2, 3, 22, 25)
    mask = torch.rand(22, 25) * disk(22, 25)
    for reduction in ("mean", "batch", "none"):
        want = ssimfast.ssim(x, y, mask=mask, reduction=reduction)
        torch.testing.assert_close(ssimfast.SSIM(reduction=reduction)(x, y, mask), want)
        torch.testing.assert_close(ssimfast.SSIMLoss(reduction=reduction)(x, y, mask), 1 - want)
    weights = mask[5:-5, 5:-5].expand(2, 3, 12, 15)
    want = (weights * (1 - ssimfast.ssim(x, y, mask=mask, reduction="none"))).sum()
    torch.testing.assert_close(ssimfast.SSIMLoss(reduction="sum")(x, y, mask), want)
    assert ssimfast.SSIMLoss(reduction="sum")(x, y, torch.zeros(22, 25)) == 0


# ---- volumes ------------------------------------------------------------------------------------

VOLUMES = {
    "one_window": (1, 1, 5, 5, 5),
    "one_slice_of_windows": (1, 2, 5, 9, 12),
    "primes": (2, 2, 7, 11, 13),
    "deep": (1, 1, 40, 6, 5),
    "long": (1, 1, 6, 5, 200),
    "many": (8, 3, 5, 6, 5),
    # Planes of images are cut at multiples of 64 rows.
    "many_rows": (1, 1, 6, 131, 7),
}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("shape", VOLUMES.values(), ids=VOLUMES)
def test_volumes(backend, shape):
    for padding in ("valid", "same", "reflect"):
        assert_matches_oracle(*pair(*shape), window_size=5, padding=padding)


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("padding", ["valid", "same", "reflect"])
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("window_size", [1, 3, 7])
def test_every_window_of_volumes(backend, window_size, window, padding):
    arguments = {"window": window, "window_size": window_size, "padding": padding}
    arguments["sample_covariance"] = window_size > 1
    assert_matches_oracle(*pair(1, 2, 7, 8, 9), sigma=window_size / 6 + 0.2, **arguments)


@pytest.mark.long_with("cuda-emulated")
def test_default_window_of_volumes(backend):
    assert_matches_oracle(*pair(1, 1, 12, 13, 11))


@pytest.mark.long_with("cuda-emulated")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_dtype_of_volumes(backend, dtype):
    x, y = pair(2, 2, 9, 8, 10, dtype=dtype)
    assert_matches_oracle(x, y, window_size=5)
    assert_matches_oracle(x, y, window_size=5, mask=torch.rand(8, 10))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (-1000.0, 3000.0)])
def test_every_value_range_of_volumes(backend, value_range):
    """Hounsfield units, for one."""
    low, high = value_range
    x, y = ((high - low) * image + low for image in pair(1, 2, 8, 9, 10))
    assert_matches_oracle(x, y, value_range=value_range, window_size=7, padding="same")


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_masked_volumes(backend, window, padding):
    x, y = pair(2, 2, 7, 6, 9)
    for mask in (
        torch.rand(7, 6, 9),
        torch.rand(2, 1, 7, 6, 9) < 0.5,
        torch.rand(7, 1, 1),
        torch.rand(7, 6, 9) * (torch.arange(9) > 5),
    ):
        assert_matches_oracle(x, y, mask=mask, window=window, window_size=5, padding=padding)


def test_smaller_than_the_window_in_three_dimensions(backend):
    assert_matches_oracle(*pair(1, 1, 3, 1, 4), padding="same", window_size=7)


def test_a_volume_of_one_slice_is_no_image(backend):
    """Black slices lie around it with "same"; with a window of one pixel there is no difference."""
    x, y = pair(1, 1, 12, 13)
    arguments = {"padding": "same", "reduction": "none"}
    flat = ssimfast.ssim(x, y, window_size=1, **arguments)
    deep = ssimfast.ssim(x[:, :, None], y[:, :, None], window_size=1, **arguments)
    torch.testing.assert_close(deep[:, :, 0], flat)
    flat = ssimfast.ssim(x, y, window_size=3, **arguments)
    deep = ssimfast.ssim(x[:, :, None], y[:, :, None], window_size=3, **arguments)
    assert (deep[:, :, 0] - flat).abs().max() > 1e-3


@pytest.mark.long_with("cuda-emulated")
def test_far_from_the_range_in_three_dimensions(backend):
    x, y = 1000 + torch.rand(1, 1, 9, 9, 9), 1000 + torch.rand(1, 1, 9, 9, 9)
    for padding in ("valid", "same"):
        assert_matches_oracle(x, y, HARD, window_size=5, padding=padding)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_their_windows_and_no_other(backend, bad):
    x, y = pair(1, 1, 12, 13, 14)
    x[0, 0, 6, 6, 7] = bad
    x.requires_grad_()
    values = ssimfast.ssim(x, y, reduction="none", window_size=3, padding="same")
    hit = torch.zeros(1, 1, 12, 13, 14, dtype=torch.bool)
    hit[..., 5:8, 5:8, 6:9] = True
    assert torch.equal(values.isnan(), hit)
    values.sum().backward()
    reach = torch.zeros(12, 13, 14, dtype=torch.bool)
    reach[4:9, 4:9, 5:10] = True
    assert x.grad[0, 0, 6, 6, 7].isnan() and not x.grad[0, 0][~reach].isnan().any()


# ---- layouts ------------------------------------------------------------------------------------


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_masks(backend, layout):
    x, y = pair(2, 3, 20, 23)
    mask = torch.rand(2, 3, 20, 23)
    for reduction in ("mean", "none"):
        results = []
        for laid in (mask, LAYOUTS[layout](mask)):
            a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
            value = ssimfast.ssim(a, b, mask=laid, reduction=reduction)
            value.backward(torch.ones_like(value))
            results.append((value.detach(), a.grad, b.grad))
        assert all(torch.equal(*both) for both in zip(*results, strict=True))


# ---- which gradients, how often -----------------------------------------------------------------


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("reduction", ["mean", "sum", "batch", "none"])
def test_gradcheck_of_masks(backend, reduction):
    padding = "valid" if reduction in ("mean", "none") else "same"
    x, y = pair(2, 1, 6, 7, dtype=torch.float64)
    mask = torch.rand(2, 1, 6, 7, dtype=torch.float64) * disk(6, 7)
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.ssim(
            a, b, mask=mask, window_size=3, padding=padding, reduction=reduction
        ),
        (x.requires_grad_(), y.requires_grad_()),
    )


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize(
    "reduction, padding", [("mean", "reflect"), ("batch", "valid"), ("none", "same")]
)
def test_gradcheck_of_volumes(backend, reduction, padding):
    x, y = pair(1, 1, 4, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.ssim(
            a, b, window_size=3, padding=padding, reduction=reduction, sample_covariance=True
        ),
        (x.requires_grad_(), y.requires_grad_()),
    )


@pytest.mark.long_with("reference", "cuda-emulated")
def test_gradcheck_of_masked_volumes(backend):
    x, y = pair(1, 1, 4, 5, 6, dtype=torch.float64)
    mask = torch.rand(4, 5, 6) * (torch.rand(4, 5, 6) < 0.7)
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.ssim(a, b, mask=mask, window_size=3, padding="same"),
        (x.requires_grad_(), y.requires_grad_()),
    )


# ---- properties ---------------------------------------------------------------------------------

arguments_of_masks = st.fixed_dictionaries(
    {
        "window": st.sampled_from(["gaussian", "uniform"]),
        "window_size": st.sampled_from([1, 3, 5]),
        "padding": st.sampled_from(["valid", "same"]),
        "reduction": st.sampled_from(["mean", "sum", "batch", "none"]),
    }
)
seeds = st.integers(0, 10**6)
shapes = st.sampled_from([(2, 2, 12, 17), (2, 1, 9, 30), (1, 2, 6, 7, 8), (2, 1, 9, 5, 6)])


def drawn_with_mask(seed: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed + 1)
    mask, chance = torch.rand(2, *shape, dtype=torch.float64, generator=generator)
    return *drawn(seed, *shape), mask * (chance < seed % 5 / 4)


@few
@given(seeds, shapes, arguments_of_masks)
def test_symmetric_and_within_bounds(seed, shape, arguments):
    x, y, mask = drawn_with_mask(seed, shape)
    value = ssimfast.ssim(x, y, mask=mask, **arguments)
    swapped = ssimfast.ssim(y, x, mask=mask, **arguments)
    torch.testing.assert_close(value, swapped, rtol=1e-12, atol=1e-12)
    if arguments["reduction"] != "sum":
        assert value.abs().max() <= 1


@few
@given(seeds, shapes, arguments_of_masks, st.floats(-100, 100), st.floats(0.1, 300))
def test_images_and_range_may_be_mapped_together(seed, shape, arguments, low, length):
    x, y, mask = drawn_with_mask(seed, shape)
    mapped = ssimfast.ssim(
        low + length * x,
        low + length * y,
        mask=mask,
        value_range=(low, low + length),
        **arguments,
    )
    plain = ssimfast.ssim(x, y, mask=mask, **arguments)
    torch.testing.assert_close(mapped, plain, rtol=1e-6, atol=1e-6)


@few
@given(seeds, shapes, arguments_of_masks)
def test_bool_masks_are_masks_of_zeros_and_ones(seed, shape, arguments):
    x, y, mask = drawn_with_mask(seed, shape)
    seen = mask > 0
    value = ssimfast.ssim(x, y, mask=seen, **arguments)
    assert torch.equal(value, ssimfast.ssim(x, y, mask=seen.double(), **arguments))


# ---- losses of masked images --------------------------------------------------------------------


def soft(*shape: int) -> torch.Tensor:
    """Weights in [0, 1], a third of which are 0."""
    return (1.5 * torch.rand(shape) - 0.5).clamp(min=0)


@pytest.mark.long_with("triton", "reference")
@pytest.mark.parametrize("reduction", ["mean", "batch"])
def test_terms_of_a_masked_loss_are_weighted_means(backend, reduction):
    x, y = pair(2, 3, 24, 26)
    mask = soft(2, 1, 24, 26)
    factors = {"ssim": 0.3, "l1": 0.5, "l2": 0.7, "reduction": reduction}
    bad = x.where(mask > 0, torch.nan).requires_grad_()
    loss, terms = ssimfast.similarity_loss(bad, y, mask=mask, return_terms=True, **factors)
    loss.sum().backward()
    exact, weights = x.double().requires_grad_(), mask.double().expand(x.shape)
    dims = (0, 1, 2, 3) if reduction == "mean" else (1, 2, 3)
    d = exact - y.double()
    want = {
        "ssim": ssimfast.ssim(exact, y.double(), mask=mask, reduction=reduction),
        "l1": (weights * d.abs()).sum(dims) / weights.sum(dims),
        "l2": (weights * d.square()).sum(dims) / weights.sum(dims),
    }
    total = 0.3 * (1 - want["ssim"]) + 0.5 * want["l1"] + 0.7 * want["l2"]
    total.sum().backward()
    for name, term in want.items():
        torch.testing.assert_close(terms[name].double(), term.detach(), rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(loss.double(), total, rtol=2e-6, atol=2e-7, check_dtype=False)
    limit = 1e-5 * exact.grad.abs().max().item()
    torch.testing.assert_close(bad.grad.double(), exact.grad, rtol=0, atol=limit)
    assert (bad.grad[(mask == 0).expand(x.shape)] == 0).all()


@pytest.mark.long_with("triton", "reference", "cuda-emulated")
@pytest.mark.parametrize("odd", ["floor", "pad", "replicate"])
def test_ms_ssim_with_a_mask_of_ones_is_that_without(backend, odd):
    arguments = {"weights": (0.4, 0.6), "window_size": 5, "odd": odd}
    results = []
    for mask in (None, torch.ones(1, 1, 27, 29, dtype=torch.bool)):
        torch.manual_seed(0)
        x, y = pair(2, 2, 27, 29)
        x.requires_grad_()
        value = ssimfast.ms_ssim(x, y, mask=mask, reduction="batch", **arguments)
        value.sum().backward()
        results.append((value.detach(), x.grad))
    (want, by_x), (got, grad) = results
    torch.testing.assert_close(got, want, rtol=0, atol=2e-7)
    torch.testing.assert_close(grad, by_x, rtol=0, atol=1e-5 * by_x.abs().max().item())


@pytest.mark.long_with("triton", "reference")
def test_ms_ssim_of_what_is_seen(backend):
    """Hidden pixels have no influence; a level is the SSIM of weighted means of 2 x 2 pixels."""
    x, y = pair(1, 2, 28, 30)
    mask = soft(1, 1, 28, 30)
    arguments = {"weights": (0.4, 0.6), "window_size": 5, "channels": "joint"}
    bad = x.where(mask > 0, torch.inf).requires_grad_()
    value = ssimfast.ms_ssim(bad, y, mask=mask, **arguments)
    value.backward()
    x, y, weights = x.double().requires_grad_(), y.double(), mask.double()
    finer = ssimfast.ssim(x, y, mask=weights, window_size=5, return_map="contrast_structure")[1]
    centres = weights[..., 2:-2, 2:-2].expand(finer.shape)
    pool = torch.nn.functional.avg_pool2d
    means = [pool(image * weights, 2) / pool(weights, 2) for image in (x, y)]
    coarser = ssimfast.ssim(*means, mask=pool(weights, 2), window_size=5)
    want = ((centres * finer).sum() / centres.sum()) ** 0.4 * coarser**0.6
    torch.testing.assert_close(value.double(), want, rtol=2e-6, atol=0, check_dtype=False)
    assert bad.grad.isfinite().all() and (bad.grad[(mask == 0).expand(x.shape)] == 0).all()


@pytest.mark.long_with("triton", "reference")
@pytest.mark.parametrize("which", ["ssim", "contrast_structure"])
def test_the_map_comes_with_the_loss(backend, which):
    x, y = pair(2, 2, 17, 20)
    mask = soft(17, 20)
    want = ssimfast.ssim(x, y, mask=mask, padding="same", reduction="none")
    if which == "contrast_structure":
        want, mask = ssimfast.ssim_components(x, y, padding="same").contrast_structure, None
    for image in (x, x.clone().requires_grad_()):
        arguments = {"padding": "same", "mask": mask, "return_map": which}
        for value, shown in (
            ssimfast.ssim(image, y, **arguments),
            ssimfast.similarity_loss(image, y, l1=0.8, **arguments),
        ):
            assert value.requires_grad == image.requires_grad and not shown.requires_grad
            torch.testing.assert_close(shown, want, rtol=0, atol=1e-5)


@pytest.mark.long_with("triton", "reference")
def test_a_range_for_each_image(backend):
    x, y = pair(2, 1, 13, 14)
    widths = torch.tensor([1.0, 200.0])
    x, y = x * widths[:, None, None, None], y * widths[:, None, None, None]
    got = ssimfast.ssim(x, y, data_range=widths, reduction="batch")
    want = [
        ssimfast.ssim(*each, data_range=w)
        for *each, w in zip(x[:, None], y[:, None], (1, 200), strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=2e-7)


@pytest.mark.long_with("triton", "reference", "cuda-emulated")
def test_masks_of_every_shape_are_pooled(backend):
    """Rows and columns that are repeated; and weights next to 0 keep their digits."""
    x, y = pair(2, 2, 13, 15)
    for mask in (torch.rand(15), torch.rand(13, 1), torch.tensor(0.3), torch.rand(2, 1, 1, 15)):
        for weights in (mask, 1e-6 * mask):
            for odd in ("floor", "pad", "replicate"):
                arguments = {"weights": (0.4, 0.6), "window_size": 3, "odd": odd}
                got = ssimfast.ms_ssim(x, y, mask=weights, **arguments)
                own = to_oracle(arguments) | {"mask": as_float64(weights)}
                want = oracle.ms_ssim(as_float64(x), as_float64(y), **own).value.mean()
                assert got.item() == pytest.approx(want, abs=1e-6), (mask.shape, odd)
