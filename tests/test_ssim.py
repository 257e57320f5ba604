"""Values and gradients of ssimfast.ssim against an independent float64 oracle."""

import oracle
import pytest
import torch
from comparison import (
    HARD,
    NARROW,
    TILE_COLUMNS,
    TILE_ROWS,
    TOLERANCES,
    as_float64,
    assert_matches_oracle,
    assert_near,
    assert_small_losses_keep_their_digits,
    loosened,
)
from conftest import use_reference
from promises import pair

import ssimfast
from ssimfast.backends import constants

SIZES = {
    "one_window": (1, 1, 11, 11),
    "one_window_tall": (1, 2, 37, 11),
    "primes": (2, 3, 29, 31),
    "block_of_rows": (1, 1, 20, 24),
    "block_of_rows_plus_one": (1, 1, 21, 25),
}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("window_size", [1, 3, 5, 7, 9, 11, 13, 21, 33])
def test_every_window(backend, window_size, padding):
    size = window_size + 8
    assert_matches_oracle(
        *pair(1, 2, size, size + 3), window_size=window_size, sigma=window_size / 6, padding=padding
    )


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_shape(backend, shape, padding):
    assert_matches_oracle(*pair(*shape), padding=padding)


@pytest.mark.long_with("reference", "cuda-emulated")
def test_many_planes(backend):
    assert_matches_oracle(*pair(300, 3, 11, 12))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 3, 8), (2, 1, 10, 10), (1, 1, 5, 40)], ids=str
)
def test_smaller_than_the_window(backend, shape):
    assert_matches_oracle(*pair(*shape), padding="same")


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("rows", [2 * TILE_ROWS + more for more in (-1, 0, 1, 9, 10, 11)])
def test_boundaries_of_strips(backend, rows):
    assert_matches_oracle(*pair(1, 1, rows, 20))


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("columns", [TILE_COLUMNS + more for more in (0, 1, 10, 11, 490)])
def test_boundaries_of_columns(backend, columns):
    assert_matches_oracle(*pair(1, 1, 14, columns))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("window_size", [7, 11])
def test_every_dtype(backend, dtype, window_size):
    assert_matches_oracle(*pair(2, 3, 33, 40, dtype=dtype), window_size=window_size)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_images_are_as_exact_as_their_float32_copies(backend, dtype):
    x, y = pair(1, 3, 40, 40, dtype=dtype)
    for reduction in ("mean", "none"):
        half = ssimfast.ssim(x, y, reduction=reduction)
        full = ssimfast.ssim(x.float(), y.float(), reduction=reduction)
        assert torch.equal(half, full)


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.3, 0.5, 0.79, 0.8, 1.5, 8.0, 1e3])
def test_every_sigma(backend, sigma):
    tolerances = NARROW if sigma < 0.5 else None
    assert_matches_oracle(*pair(1, 1, 24, 24), tolerances, sigma=sigma)


def edges() -> dict[str, torch.Tensor]:
    """Images that are flat but for sharp edges, where a narrow window sees next to nothing."""
    rows = (torch.arange(32) // 2 % 2).float()[:, None].expand(32, 28)
    dots = torch.zeros(32, 28)
    dots[4::9, 3::7] = 1
    return {"rows": rows, "columns": rows.t()[:28].repeat(2, 1)[:32, :28], "dots": dots}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("window_size, sigma", [(3, 1.5), (3, 0.3), (5, 1.0), (11, 0.3), (11, 1.0)])
@pytest.mark.parametrize("kind", edges())
def test_narrow_windows_on_edges(backend, kind, window_size, sigma):
    x = edges()[kind][None, None].contiguous()
    for y in (0.9 * x + 0.01 * torch.rand(x.shape), 1 - x, x.flip(-1) * 0.5 + 0.2):
        assert_matches_oracle(x, y, NARROW, window_size=window_size, sigma=sigma)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0), (-1000.0, 3000.0), (0.0, 1e-3)])
def test_every_value_range(backend, value_range, padding):
    low, high = value_range
    x, y = ((high - low) * image + low for image in pair(1, 2, 30, 30))
    assert_matches_oracle(x, y, value_range=value_range, padding=padding)


@pytest.mark.long_with("reference")
def test_value_range_is_the_mapped_image(backend):
    x, y = pair(1, 3, 32, 32, dtype=torch.float64)
    for padding in ("valid", "same"):
        mapped = ssimfast.ssim(2 * x - 1, 2 * y - 1, value_range=(-1, 1), padding=padding)
        torch.testing.assert_close(mapped, ssimfast.ssim(x, y, padding=padding))


@pytest.mark.long_with("reference")
def test_constants(backend):
    assert_matches_oracle(*pair(1, 1, 24, 24), k1=0.05, k2=0.2)


# ---- data on which SSIM libraries fail ----------------------------------------------------------


@pytest.mark.long_with("reference")
def test_equal_regions_are_exactly_one(backend):
    x = torch.rand(1, 1, 40, 80)
    y = x.clone()
    y[..., 50:] = torch.rand(30)
    assert (ssimfast.ssim(x, y, reduction="none")[..., :40] == 1).all()


@pytest.mark.long_with("reference")
def test_never_above_one(backend):
    x = torch.full((1, 1, 32, 32), 0.6)
    for step in (1e-7, 1e-6, 1e-5, 1e-3):
        assert ssimfast.ssim(x, x + step, reduction="none").max() <= 1
    x = torch.rand(1, 1, 64, 64) * 1e3
    for y in (x + 1e-4, -x, x * (1 + 1e-6)):
        values = ssimfast.ssim(x, y, reduction="none")
        assert values.max() <= 1 and values.min() >= -1


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_a_loss_near_zero_keeps_its_digits(backend, noise):
    assert_small_losses_keep_their_digits(noise)


def hard(noisy: tuple[int, ...], flat: tuple[int, ...]) -> dict[str, tuple]:
    """Two images of those shapes and their data range, in which much cancels."""
    return {
        "far_from_the_range": (1000 + torch.rand(noisy), 1000 + torch.rand(noisy), 1.0),
        "faint_noise": (0.6 + 1e-4 * torch.randn(noisy), 0.6 + 1e-4 * torch.randn(noisy), 1e-3),
        "two_constants": (torch.full(flat, 0.2), torch.full(flat, 0.8), 1.0),
        "nearly_equal": (torch.full(flat, 0.6), torch.full(flat, 0.6) + 1e-7, 1.0),
    }


HARD_IMAGES = hard((1, 1, 40, 40), (1, 1, 30, 30))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("case", HARD_IMAGES)
def test_hard_data(backend, case, padding):
    x, y, data_range = HARD_IMAGES[case]
    assert_matches_oracle(x, y, loosened(HARD, backend), data_range=data_range, padding=padding)


@pytest.mark.long_with("reference")
def test_flat_bright_beside_flat_dark(backend):
    """Where the squares of a tile's values dwarf a window's variance: cartoons, text, masks."""
    checks = ((torch.arange(60)[:, None] // 15 + torch.arange(70) // 15) % 2).float()[None, None]
    faint = 0.01 * torch.randn(checks.shape)
    for y in ((checks + faint).clamp(0, 1), 1 - checks + faint, checks * 0.3 + 0.5 * (faint > 0)):
        assert_matches_oracle(checks, y)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("scale", [1e6, 1e10, 1e17])
def test_products_of_large_numbers(backend, scale):
    """What a model that diverges makes: nothing overflows that would then look equal."""
    x, y = pair(1, 2, 20, 21)
    tolerances = loosened({**HARD, "map": 2e-6}, backend)
    assert_matches_oracle(scale * x, scale * y, tolerances)
    apart = ssimfast.ssim(scale * x, y, reduction="none")
    assert_near(apart, oracle.ssim(*map(as_float64, (scale * x, y)))[0], 2e-6, "apart")


@pytest.mark.long_with("reference")
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
    tolerances = {**TOLERANCES[torch.float32], "map": 2e-6}  # 1.4e-6 without FMA instructions
    for y in (blurred, (x + 0.05 * torch.randn(x.shape)).clamp(0, 1), (x * 8).round() / 8):
        assert_matches_oracle(x, y, tolerances)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("outlier", [0.0, 10.0, 1e4, 1e8])
@pytest.mark.parametrize("bias", [0, 1000])
def test_an_outlier_spoils_no_other_window(backend, bias, outlier):
    x, y = (image + bias for image in pair(1, 1, 41, 41))
    clean = ssimfast.ssim(x, y, reduction="none")
    x[0, 0, 20, 20] = outlier
    values = ssimfast.ssim(x, y, reduction="none")
    hit = torch.zeros_like(values, dtype=torch.bool)
    hit[..., 10:21, 10:21] = True
    torch.testing.assert_close(values[~hit], clean[~hit], rtol=0, atol=1e-6)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("window_size", [1, 3, 7, 11, 13])
def test_nan_and_infinity_reach_their_windows_and_no_other(backend, window_size, dtype):
    halo = window_size // 2
    for row, bad in zip((20, 21, 22, 23), 2 * (float("nan"), float("inf")), strict=True):
        x, y = pair(1, 1, 44, 44, dtype=dtype)
        x[0, 0, row, 20] = bad
        x.requires_grad_()
        values = ssimfast.ssim(x, y, reduction="none", window_size=window_size, padding="same")
        hit = torch.zeros(44, 44, dtype=torch.bool)
        hit[row - halo : row + halo + 1, 20 - halo : 21 + halo] = True
        assert torch.equal(values.isnan()[0, 0], hit)
        value = ssimfast.ssim(x, y, window_size=window_size, padding="same")
        assert value.isnan()
        value.backward()
        reach = torch.zeros(44, 44, dtype=torch.bool)
        reach[row - 2 * halo : row + 2 * halo + 1, 20 - 2 * halo : 21 + 2 * halo] = True
        assert x.grad[0, 0, row, 20].isnan() and not x.grad[0, 0][~reach].isnan().any()


@pytest.mark.long_with("reference")
def test_float16_gradient_survives_a_tiny_range(backend):
    x, y = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 1e-4)
    x, y = x.half().requires_grad_(), y.half()
    ssimfast.ssim(x, y, data_range=1e-3).backward()
    *_, want, _ = oracle.ssim(as_float64(x), as_float64(y), high=1e-3)
    assert_near(x.grad, want / 36, TOLERANCES[x.dtype]["grad"] * abs(want).max() / 36, "gradient")


@pytest.mark.long_with("reference")
def test_a_scaled_float16_loss_keeps_the_digits_of_its_gradient(backend):
    """As with torch.amp.GradScaler: only the scale brings the gradient of a mean over many pixels
    to where float16 has all its digits."""
    x, y = pair(1, 1, 90, 100, dtype=torch.float16)
    grads = []
    for dtype in (torch.float16, torch.float64):
        a = x.clone().to(dtype).requires_grad_()
        (2.0**12 * ssimfast.ssim(a, y.to(dtype), padding="same")).backward()
        grads.append(a.grad.double())
    got, want = grads
    assert ((got - want).abs() <= 1e-3 * want.abs() + 1e-6 * want.abs().max()).all()


def test_sums_without_images(backend):
    x = torch.rand(0, 3, 16, 16).requires_grad_()
    for mask in (None, torch.ones(16, 16)):
        assert ssimfast.ssim(x, x, mask=mask, reduction="sum") == 0
    assert ssimfast.SSIMLoss(reduction="sum")(x, x) == 0


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_upstream_gradients_of_one_and_others(backend, dtype, memory_format):
    """1 leaves what the forward pass made as it is; powers of two change no digit."""
    x, y = (image.contiguous(memory_format=memory_format) for image in pair(3, 2, 15, 18))
    gradients = []
    for upstream in ((1.0, 1.0, 1.0), (1.0, 0.5, 4.0)):
        a = x.to(dtype).clone().requires_grad_()
        values = ssimfast.ssim(a, y.to(dtype), value_range=(-1, 1), reduction="batch")
        values.backward(torch.tensor(upstream, dtype=values.dtype))
        gradients.append(a.grad.double() / torch.tensor(upstream).double()[:, None, None, None])
    info = torch.finfo(dtype)  # what is not normal loses digits
    rounding = 2 * info.smallest_normal * info.eps
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=rounding)


@pytest.mark.long_with("reference", "cuda-emulated")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batch", "none"])
def test_gradcheck(backend, reduction, padding):
    x = torch.rand(2, 1, 8, 9, dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 1, 8, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.ssim(a, b, window_size=5, padding=padding, reduction=reduction),
        (x, y),
    )


def test_reference_on_devices_without_float64(monkeypatch):
    """MPS and XPU compute the reference in float32: less exact, but as stable."""
    use_reference(monkeypatch)
    monkeypatch.setattr(constants, "_WITHOUT_FLOAT64", {"cpu"})
    tolerances = {"mean": 1e-7, "map": 3e-6, "grad": 3e-6}
    assert_matches_oracle(*pair(1, 2, 24, 24), tolerances)
    assert_matches_oracle(*(1000 + image for image in pair(1, 2, 24, 24)), tolerances)
    x = torch.rand(1, 1, 20, 20)
    assert ssimfast.ssim(x, x) == 1


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("shape", [(1, 2, 40, 44), (1, 1, 12, 20, 20)], ids=str)
def test_flat_bright_regions_without_float64(monkeypatch, shape, padding):
    """A local variance of 1e-6 beside a squared mean of 1 leaves float32 no digits."""
    use_reference(monkeypatch)
    monkeypatch.setattr(constants, "_WITHOUT_FLOAT64", {"cpu"})
    x = 0.95 + 1e-3 * torch.rand(shape)
    y = 0.9 + 1e-3 * torch.rand(shape)
    x[..., 10:] -= 0.9
    tolerances = {"mean": 1e-6, "map": 1e-5, "grad": 3e-5}
    arguments = {"padding": padding, "window_size": 7, "reductions": ("mean", "none")}
    assert_matches_oracle(x, y, tolerances, **arguments)
    assert_matches_oracle(x, y, tolerances, mask=torch.rand(shape) > 0.3, **arguments)
