"""Images of 8 bits: values are those of the same numbers as floats, in a range of 0 to 255."""

import comparison
import oracle
import pytest
import torch
from comparison import as_float64, assert_near, on_default_device, to_oracle
from promises import needs_extension
from test_ops import LAYOUTS, SWEEP

import ssimfast
from ssimfast.ops import library
from ssimfast.ops.schemas import Statistic

RANGE = {"data_range": 255}


def pair(*shape: int) -> list[torch.Tensor]:
    """Related images, in which black and white occur."""
    x = torch.randint(-40, 296, shape).clamp(0, 255)
    y = (x + torch.randint(-60, 61, shape)).clamp(0, 255)
    return on_default_device(x.byte(), y.byte())


def assert_ssim_is_the_oracles(x: torch.Tensor, y: torch.Tensor, **arguments) -> None:
    want, *_ = oracle.ssim(as_float64(x), as_float64(y), **to_oracle({**RANGE, **arguments}))
    allowed = comparison.TOLERANCES[torch.float32]
    got = ssimfast.ssim(x, y, reduction="none", **arguments)
    assert got.dtype == torch.float32 and not got.requires_grad
    assert torch.equal(ssimfast.ssim(x, x, **arguments), torch.ones((), device=x.device))
    assert_near(got, want, allowed["map"], "map")
    assert_near(ssimfast.ssim(x, y, **arguments), want.mean(), allowed["mean"], "mean")


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("padding", ["valid", "same", "reflect"])
@pytest.mark.parametrize("window_size", [1, 5, 7, 9, 11, 13])
def test_every_window(backend, window_size, padding):
    assert_ssim_is_the_oracles(*pair(2, 3, 29, 47), window_size=window_size, padding=padding)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    x, y = pair(2, 3, 17, 40)
    assert_ssim_is_the_oracles(LAYOUTS[layout](x), LAYOUTS[layout](y))


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("arguments", [{"value_range": (-20, 300)}, {"data_range": 1}], ids=str)
def test_a_range_that_is_given(backend, arguments):
    x, y = pair(1, 2, 15, 16)
    got = ssimfast.ssim(x, y, **arguments)
    torch.testing.assert_close(got, ssimfast.ssim(x.float(), y.float(), **arguments))


CALLS = {
    "batch": lambda x, y, **more: ssimfast.ssim(x, y, reduction="batch", **more),
    "sum": lambda x, y, **more: ssimfast.ssim(x, y, reduction="sum", **more),
    "mask": lambda x, y, **more: ssimfast.ssim(
        x, y, mask=torch.ones(48, 1, device=x.device).tril(), reduction="none", **more
    ),
    "components": lambda x, y, **more: torch.stack(ssimfast.ssim_components(x, y, **more)),
    "ms_ssim": lambda x, y, **more: ssimfast.ms_ssim(x, y, weights="auto", **more),
    "mixture": lambda x, y, **more: torch.stack(
        [*ssimfast.similarity_loss(x, y, l1=0.5, l2=2, return_terms=True, **more)[1].values()]
    ),
    "volume": lambda x, y, **more: ssimfast.ssim(
        x.view(2, 1, 3, 48, 50), y.view(2, 1, 3, 48, 50), window_size=3, **more
    ),
    "module": lambda x, y, **more: ssimfast.SSIMLoss(**more)(x, y),
}


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("call", CALLS)
def test_every_call_equals_that_of_the_same_numbers_as_floats(backend, call):
    x, y = pair(2, 3, 48, 50)
    torch.testing.assert_close(
        CALLS[call](x, y), CALLS[call](x.float(), y.float(), **RANGE), rtol=0, atol=1e-6
    )


@needs_extension
def test_no_copy_as_floats():
    """What torch allocates during the call: less than an image of 8 bits."""
    x, y = pair(1, 3, 400, 500)
    with torch.profiler.profile(profile_memory=True) as profile:
        ssimfast.ssim(x, y)
    allocated = sum(max(event.self_device_memory_usage, 0) for event in profile.key_averages())
    allocated += sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated < x.numel() / 100


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile():
    torch.compiler.reset()
    function = torch.compile(lambda x, y: ssimfast.ssim(x, y), fullgraph=True)
    x, y = pair(1, 3, 20, 21)
    torch.testing.assert_close(function(x, y), ssimfast.ssim(x, y))


def test_other_integers_are_refused():
    for dtype in (torch.int8, torch.int16, torch.int64, torch.bool):
        x = torch.ones(1, 1, 16, 16, dtype=dtype)
        with pytest.raises(TypeError, match=f"x must be float16.*uint8, got {dtype}"):
            ssimfast.ssim(x, x)


LOSSES = {
    "ssim": lambda x, y: ssimfast.ssim(x, y),
    "tanh": lambda x, y: ssimfast.ssim(
        x, 2 * y - 1 if y.is_floating_point() else y, value_range=(-1, 1)
    ),
    # As wide as [0, 255], and not from 0.
    "shifted": lambda x, y: ssimfast.similarity_loss(
        255 * x - 128,
        255 * y - 128 if y.is_floating_point() else y,
        l1=0.2,
        value_range=(-128, 127),
    ),
    "map": lambda x, y: ssimfast.ssim(x, y, reduction="none"),
    "ms_ssim": lambda x, y: ssimfast.ms_ssim(x, y, weights=[0.5, 0.5]),
    "splatting": lambda x, y: ssimfast.similarity_loss(x, y, ssim=0.2, l1=0.8, padding="same"),
    "mixture": lambda x, y: ssimfast.similarity_loss(
        x, y, ms_ssim=0.5, l2=0.8, gaussian_l1=0.3, weights=[0.5, 0.5]
    ),
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)], ids=str
)
def test_a_target_of_bytes_is_its_converted_image(backend, dtype):
    """Values and gradients, in either order of the arguments."""
    x, y = (image[..., :24, :24] for image in pair(1, 2, 24, 26))
    x, target = (0.9 * x / 255 + 0.03).to(dtype), y
    for name, loss in LOSSES.items():
        if name == "shifted" and dtype != torch.float32:
            continue  # half types would round 255 * x
        results = []
        for a, b in ((x, target), (x.double(), target.double() / 255)):
            a = a.detach().clone().requires_grad_()
            value = loss(a, b)
            value.sum().backward()
            results.append((value.detach().double(), a.grad.double()))
        (got, grad), (want, exact) = results
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 if name == "map" else 1.5e-7)
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(grad, exact, rtol=0, atol=tolerance * exact.abs().max().item())
        if name not in ("tanh", "shifted"):
            assert torch.equal(loss(x, target), loss(target, x))


def test_dtypes_are_promoted(backend):
    """Each gradient has the dtype of its image."""
    x, y = (image / 255 for image in pair(1, 1, 16, 17))
    for narrow, wide in ((torch.float16, torch.float32), (torch.float32, torch.float64)):
        a, b = x.to(narrow).clone().requires_grad_(), y.to(wide).clone().requires_grad_()
        value = ssimfast.ssim(a, b)
        want = ssimfast.ssim(a.detach().to(wide), b.detach())
        assert torch.equal(value.detach(), want)
        value.backward()
        assert (a.grad.dtype, b.grad.dtype) == (narrow, wide)


# The reference is left out: it reads and writes no memory by itself.
@pytest.mark.backends("cpu", "cuda-emulated", "cuda", "triton")
def test_ops_refuse_gradients(backend):
    x, _ = pair(1, 1, 16, 16)
    statistic = Statistic([1.0], [1], 1e-4, 9e-4, 0.0, 255.0, False)
    with pytest.raises(RuntimeError, match="8-bit images have no gradient"):
        library.sweep(x, x, statistic, **SWEEP | {"gradients": 1})
