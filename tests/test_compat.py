"""ssimfast.compat: calls of other libraries, with their arguments, give what those libraries give.

Tests with the fixture ``msssim`` or ``image_metrics`` call the installed library as well.
"""

import importlib
import inspect

import pytest
import record_peers
import torch
from torch import Tensor

from ssimfast.compat import fused_ssim, pytorch_msssim

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # of the largest; pytorch-msssim rounds its window to float32

GAUSSIAN_7 = torch.tensor([0.0044, 0.0540, 0.2420, 0.3992, 0.2420, 0.0540, 0.0044])
GAUSSIAN_7 /= GAUSSIAN_7.sum()
VOLUME = (2, 2, 18, 20, 24)


def pair(*shape: int, white: float = 1.0) -> tuple[Tensor, Tensor]:
    x = torch.rand(shape, dtype=torch.float64)
    return white * x, white * (0.7 * x + 0.3 * torch.rand(shape, dtype=torch.float64))


def check(ours, theirs, images, arguments: dict, gradients: bool = True) -> None:
    """Both give the same, in double and single precision, and the same gradients by both images."""
    expected, by_theirs = of_call(theirs, images, arguments)
    for dtype in (torch.float64, torch.float32):
        actual, by_ours = of_call(ours, [image.to(dtype) for image in images], arguments)
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert a.shape == e.shape and a.dtype == dtype
            assert (a - e).abs().max() <= TOLERANCE
        for a, e in zip(by_ours, by_theirs, strict=True) if gradients else ():
            assert e.isfinite().all() and e.abs().max() > 0
            assert (a - e).abs().max() <= GRADIENT_TOLERANCE * e.abs().max()


def of_call(function, images, arguments) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    x, y = (image.clone().requires_grad_() for image in images)
    results = function(x, y, **arguments)
    results = [results] if isinstance(results, Tensor) else list(results)
    return results, torch.autograd.grad(sum(each.mean() for each in results), (x, y))


# ---- pytorch-msssim -----------------------------------------------------------------------------


needs_msssim = pytest.mark.needs("pytorch_msssim")


@pytest.fixture
def msssim():
    return importlib.import_module("pytorch_msssim")


def assert_same_signatures(names: list[str], *modules) -> None:
    for name in names:
        ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in modules)
        assert [*ours] == [*theirs], name
        assert [p.default for p in ours.values()] == [p.default for p in theirs.values()], name


@needs_msssim
def test_pytorch_msssim_has_those_arguments_and_defaults(msssim):
    assert_same_signatures(pytorch_msssim.__all__, pytorch_msssim, msssim)


SSIM_ARGUMENTS = [
    {},
    {"size_average": False},
    {"data_range": 100.0, "win_size": 7, "win_sigma": 1.0},
    {"K": (0.03, 0.4)},
    {"K": [0.01, 0.03], "win": GAUSSIAN_7.repeat(3, 1, 1, 1)},
    {"nonnegative_ssim": True, "size_average": False},
]


@pytest.mark.parametrize("arguments", SSIM_ARGUMENTS, ids=lambda a: "-".join(a) or "defaults")
@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (2, 3, 1, 40, 33)], ids=["image", "flat volume"])
@needs_msssim
def test_ssim_of_pytorch_msssim(shape, arguments, msssim):
    check(pytorch_msssim.ssim, msssim.ssim, pair(*shape, white=255), arguments)


@needs_msssim
def test_negative_channels_count_as_zero(msssim):
    x, y = pair(2, 3, 20, 20)
    y = torch.cat([1 - x[:, :1], y[:, 1:]], 1)
    arguments = {"data_range": 1, "size_average": False}
    clipped = pytorch_msssim.ssim(x, y, nonnegative_ssim=True, **arguments)
    assert (clipped > pytorch_msssim.ssim(x, y, **arguments) + 0.1).all()
    check(pytorch_msssim.ssim, msssim.ssim, (x, y), {"nonnegative_ssim": True, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{}, {"size_average": False, "win_size": 7}, {"win": torch.full((2, 1, 1, 1, 5), 0.2)}],
    ids=lambda a: "-".join(a) or "defaults",
)
@needs_msssim
def test_ssim_of_volumes(arguments, msssim):
    check(pytorch_msssim.ssim, msssim.ssim, pair(*VOLUME, white=255), arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size_average": False, "weights": [0.2, 0.3, 0.5]},
        {"win_size": 7, "win_sigma": 1.0, "K": (0.01, 0.4)},
        {"win": GAUSSIAN_7.repeat(3, 1, 1, 1), "data_range": 255},
    ],
    ids=lambda a: "-".join(a) or "defaults",
)
@needs_msssim
def test_ms_ssim_of_pytorch_msssim(arguments, msssim):
    check(pytorch_msssim.ms_ssim, msssim.ms_ssim, pair(2, 3, 163, 170, white=255), arguments)


@pytest.mark.parametrize("name, side", [("SSIM", 40), ("MS_SSIM", 163)])
@pytest.mark.parametrize(
    "arguments", [{}, {"size_average": False, "win_size": 7, "K": (0.02, 0.1)}]
)
@needs_msssim
def test_modules_of_pytorch_msssim(name, side, arguments, msssim):
    images = pair(2, 1, side, side, white=255)
    arguments = {"data_range": 255, "channel": 1, **arguments}
    ours, theirs = (getattr(module, name)(**arguments) for module in (pytorch_msssim, msssim))
    check(ours, theirs, images, {})
    for module in (ours, theirs):  # attributes, as there, may be assigned to
        module.data_range, module.K, module.size_average = 300, (0.02, 0.05), False
    check(ours, theirs, images, {})
    assert not [*ours.parameters()] and not ours.state_dict()


def test_the_example_in_the_readme_of_pytorch_msssim():
    x, y = (255 * image.float() for image in pair(2, 3, 170, 170))
    values = pytorch_msssim.ssim(x, y, data_range=255, size_average=False)
    of_scales = pytorch_msssim.ms_ssim(x, y, data_range=255, size_average=False)
    assert values.shape == of_scales.shape == (2,)
    loss = 1 - pytorch_msssim.SSIM(data_range=255, size_average=True, channel=3)(x, y)
    torch.testing.assert_close(loss, 1 - values.mean())
    loss = 1 - pytorch_msssim.MS_SSIM(data_range=255, size_average=True, channel=3)(x, y)
    torch.testing.assert_close(loss, 1 - of_scales.mean())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"K": 0.01}, "K must be a pair"),
        ({"K": (0.01, 0.02, 0.03)}, "K must be a pair"),
        ({"win": [0.2, 0.6, 0.2]}, "win must be a tensor, got list"),
        ({"win": torch.ones(3, 1, 1, 4) / 4}, r"win must have shape .*, got \(3, 1, 1, 4\)"),
        ({"win": torch.ones(3, 1, 3, 3) / 9}, r"win must have shape .*, got \(3, 1, 3, 3\)"),
        ({"win": torch.tensor(1.0)}, r"win must have shape .*, got \(\)"),
        ({"win": torch.ones(0, 1, 1, 3)}, r"win must have shape .*, got \(0, 1, 1, 3\)"),
        ({"win": torch.tensor([[[[-0.1, 1.2, -0.1]]]])}, "win must not be negative"),
        ({"win": torch.full((3, 1, 1, 3), 1 / 3 + 2e-6)}, "(?s)win must sum to 1"),
        ({"win": torch.ones(3, 1, 1, 3)}, "(?s)win must sum to 1, .*of sum 3"),
        ({"win": torch.tensor([[[[0.2, 0.5, 0.3]]]])}, "win must be symmetric"),
        ({"win_size": 10}, "window_size must be odd"),
        ({"win_size": 11, "data_range": 0}, "data_range must be"),
        ({"size_average": "mean"}, "size_average must be True or False, got 'mean'"),
    ],
)
def test_errors_of_pytorch_msssim(arguments, message):
    x, y = pair(1, 3, 176, 176)
    for function in (pytorch_msssim.ssim, pytorch_msssim.ms_ssim):
        with pytest.raises((ValueError, TypeError), match=message):
            function(x, y, **arguments)


def test_images_smaller_than_the_window():
    x, y = pair(1, 3, 8, 40)
    with pytest.raises(ValueError, match="8 x 40 pixels, smaller than window_size 11"):
        pytorch_msssim.ssim(x, y)


# ---- fused-ssim ---------------------------------------------------------------------------------


def test_fused_ssim():
    x, y = pair(1, 3, 24, 31)
    expected = record_peers.zero_padded_ssim(x.numpy(), y.numpy())
    assert abs(fused_ssim.fused_ssim(x, y).item() - expected) <= TOLERANCE
    assert abs(fused_ssim.fused_ssim(x.float(), y.float(), "same").item() - expected) <= TOLERANCE
    valid = pytorch_msssim.ssim(x, y, data_range=1)  # the same window, no border
    torch.testing.assert_close(fused_ssim.fused_ssim(x, y, padding="valid"), valid)


def test_fused_ssim_trains_both_images():
    x, y = (image.requires_grad_() for image in pair(1, 3, 24, 31))
    fused_ssim.fused_ssim(x, y).backward()
    assert x.grad.abs().max() > 0 and y.grad.abs().max() > 0
    assert not fused_ssim.fused_ssim(x, y, train=False).requires_grad
    with torch.no_grad():
        assert not fused_ssim.fused_ssim(x, y, train=True).requires_grad


def test_errors_of_fused_ssim():
    x, y = pair(1, 3, 24, 31)
    with pytest.raises(ValueError, match="padding must be one of same, valid, got 'reflect'"):
        fused_ssim.fused_ssim(x, y, "reflect")
    with pytest.raises(TypeError, match="train must be True or False, got 1"):
        fused_ssim.fused_ssim(x, y, train=1)


# ---- torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        pytorch_msssim.ssim,
        pytorch_msssim.SSIM(),
        fused_ssim.fused_ssim,
    ],
    ids=["ssim", "SSIM", "fused_ssim"],
)
def test_compiles(call):
    torch._dynamo.reset()
    x, y = pair(1, 3, 24, 24)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), call(x, y))
