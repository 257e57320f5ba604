"""The ops as PyTorch sees them: registration, fake kernels, torch.compile, who serves what."""

import promises
import pytest
import torch
from conftest import use_reference
from promises import needs_extension

import ssimfast
from ssimfast import ops, reference
from ssimfast.arguments import gaussian_taps

SETTINGS = (gaussian_taps(2, 1.5), 1e-4, 9e-4, 0.0, 1.0)
LAYOUTS = {
    "contiguous": lambda image: image,
    "channels_last": promises.LAYOUTS["channels_last"],
    "transposed": promises.LAYOUTS["transposed"],
    "expanded": lambda image: image[:, :1].expand(image.shape),
}


def arguments(name: str, more: bool, dtype: torch.dtype, layout: str) -> tuple:
    """Arguments of an op; with ``more``, everything that is optional."""
    x, y = torch.rand(2, 2, 3, 12, 13).to(dtype)
    x, y = LAYOUTS[layout](x), LAYOUTS[layout](y)
    out_dtype = reference.result_dtype(dtype)
    settings = (*SETTINGS, more)
    size = (12, 13) if more else (8, 9)
    rows, columns = torch.rand(12, dtype=out_dtype), torch.rand(13, dtype=out_dtype)
    upstream = torch.rand((2,) if more else (), dtype=out_dtype)
    maps = torch.rand(2, 2, 3, *size, dtype=out_dtype)
    mask = torch.rand(2, 3, 12, 13, dtype=out_dtype) if more else None
    gradients = 1 + more
    if name == "similarity":
        weights = [0.5, 0.2, 3.0, 0.4, 0.6] if more else [1.0, 0.0, 0.0, 0.0, 0.0]
        wanted = (31, weights, 0.7) if more else (1, weights, 0.0)
        plane_weights = torch.rand(2, 3, 2, dtype=out_dtype) if more else None
        optional = (plane_weights, rows, columns) if more else (None, None, None)
        return x, y, *settings, *wanted, *optional, 72, gradients, gradients, 2, False
    if name == "scale_grad":
        return x, upstream, 0.5, 72
    if name == "scale_grad_":  # nothing can be written to an expanded tensor
        return (x.clone() if layout == "expanded" else x), upstream, 0.5, 72
    if name.startswith("combine_scales"):
        terms = [torch.rand(2, 3, reference.TERMS, dtype=torch.float64) for _ in range(3)]
        absolute = () if name.endswith("_or_raise") else (more,)
        rest = (more, [0.1, 0.2, 0.3, 0.4, 0.5], 0.7 * more, more, [72, 20, 6])
        return terms, [0.2, 0.3, 0.5], *absolute, *rest
    if name == "sweep_scales":
        x, y = (LAYOUTS[layout](image) for image in torch.rand(2, 2, 3, 21, 22).to(dtype))
        rows, columns = torch.rand(21, dtype=out_dtype), torch.rand(22, dtype=out_dtype)
        weights = [0.5, 0.2, 0.3, 0.4, 0.6] if more else [0.0, 1.0, 0.0, 0.0, 0.0]
        optional = (rows, columns) if more else (None, None)
        scales = ([0.2, 0.3, 0.5][: 1 + 2 * more], 2, more, more)
        return x, y, *settings, *scales, weights, 0.7 * more, *optional, more, gradients, more
    if name in ("collapse", "collapse_"):
        grads = [x, *(torch.rand(2, 3, *shape, dtype=out_dtype) for shape in ((6, 7), (3, 4)))]
        optional = (x, y, [0.1, 0.2, 0.3], rows, columns)
        without = (None, None, [0.0, 0.0, 0.0], None, None)
        slopes = torch.rand(2, 3, 3, dtype=torch.float64)
        rest = (slopes, upstream, 0.5, 2, *(optional if more else without))
        if name == "collapse":
            return grads, *rest
        return (x.clone() if layout == "expanded" else x), grads[1:], *rest
    if name == "components_map_grad":
        return *maps, x, y, *settings, gradients
    if name == "ssim_map_grad":
        return maps[0], x, y, *settings, gradients
    if name == "ssim_nd_map_grad":
        return maps[0], x, y, mask, *settings, gradients
    if name == "ssim_nd_map":
        return x, y, mask, *settings
    if name == "ssim_nd_mean":
        shape = (2, 3, 4, 3, 13) if more else (2, 3, 12, 13)
        return x.reshape(shape), y.reshape(shape), *settings, 72, gradients, gradients
    return x, y, *settings


def calls(name: str, dtype: torch.dtype, layout: str) -> list[tuple]:
    """Arguments of an op, for every way that it goes."""
    plain, full = (arguments(name, more, dtype, layout) for more in (False, True))
    if name == "similarity":
        return [plain, full, (*plain[:-1], True), (*full[:-1], True)]
    if name != "sweep_scales":
        return [plain, full]
    x, y, *settings = full[:8]
    *rest, kept, _, _ = full[9:]
    three, two, one = [0.2, 0.3, 0.5], [0.4, 0.6], [0.7]
    # SSIM beside MS-SSIM of one scale, whose weights are added; gradients of the finest scale, of
    # one image and both, that do not wait; none at all.
    others = [(one, 2, True), (three, 1, False), (two, 2, False), (three, 0, False)]
    return [plain, full] + [
        (x, y, *settings, weights, *rest, kept, gradients, late)
        for weights, gradients, late in others
    ]


def flat(result) -> list[torch.Tensor]:
    """All tensors in the result of an op."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def results(name: str, op, args: tuple) -> list[torch.Tensor]:
    """All tensors that an op makes; of one that works in place, what it makes of a copy."""
    if not name.endswith("_"):
        return flat(op(*args))
    changed = args[0].clone()
    op(changed, *args[1:])
    return [changed]


def assert_same_tensors(
    name: str, kernel, dtype: torch.dtype, layout: str, monkeypatch, **tolerances: float
) -> None:
    """As the reference gives, to ``tolerances`` by the names of dtypes."""
    use_reference(monkeypatch)  # for the one that is made of others
    by_reference = getattr(reference, name, ops._sweep_scales_by_ops)
    allowed = {"float32": 1e-5, "bfloat16": 1e-2, "float64": 1e-9, **tolerances}
    tolerance = allowed[str(dtype).removeprefix("torch.")]
    for args in calls(name, dtype, layout):
        got, want = results(name, kernel, args), results(name, by_reference, args)
        for g, w in zip(got, want, strict=True):
            assert g.stride() == w.stride() and g.dtype == w.dtype
            torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_opcheck(name):
    op = getattr(torch.ops.ssimfast, name).default
    for args in calls(name, torch.float32, "contiguous"):
        torch.library.opcheck(op, args)


@pytest.mark.long
@pytest.mark.parametrize("pooling", [0, 1, 2, 3])
@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("gradients", [0, 1, 2])
def test_opcheck_of_every_request(gradients, kept, pooling):
    args = (*arguments("similarity", True, torch.float32, "contiguous")[:-4], kept, gradients)
    for finished in (False, True):
        torch.library.opcheck(torch.ops.ssimfast.similarity.default, (*args, pooling, finished))


# The other one is the reference everywhere.
@pytest.mark.parametrize("name", [name for name in ops.SCHEMAS if not name.endswith("_or_raise")])
@needs_extension
def test_kernel_and_reference_give_the_same_tensors(name, monkeypatch):
    """In every dtype and layout; the fake kernels promise what the reference returns."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for layout in LAYOUTS:
            assert_same_tensors(name, getattr(torch.ops.ssimfast, name), dtype, layout, monkeypatch)


@pytest.mark.parametrize("more", [False, True])
@needs_extension
def test_combining_scales_without_a_negative_mean(more):
    """It has no kernel of its own: where nothing is negative it is the one that combines them."""
    scales, weights, *rest = arguments("combine_scales_or_raise", more, torch.float32, "contiguous")
    got = torch.ops.ssimfast.combine_scales_or_raise(scales, weights, *rest)
    want = torch.ops.ssimfast.combine_scales(scales, weights, False, *rest)
    assert len(got) == len(want) == 3
    for g, w in zip(got, want, strict=True):
        assert g.stride() == w.stride() and g.dtype == w.dtype
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)
    scales[1][0, 0] = -9
    with pytest.raises(ValueError, match='negative="raise": a mean of contrast-structure is -'):
        torch.ops.ssimfast.combine_scales_or_raise(scales, weights, *rest)
    weights[1] = 0.0  # where it does not count
    torch.ops.ssimfast.combine_scales_or_raise(scales, weights, *rest)


@needs_extension
def test_a_direct_call_is_guarded():
    x = torch.rand(1, 1, 16, 16)
    call = torch.ops.ssimfast.ssim_map
    bad = {
        "dimension 3": (x, x[..., :-1]),
        "dtype": (x, x.double()),
        "4 dimensions": (x[0], x[0]),
        "floating point": (x.int(), x.int()),
        "smaller than the window": (x[..., :4, :4], x[..., :4, :4]),
    }
    for message, (a, b) in bad.items():
        with pytest.raises(RuntimeError, match=message):
            call(a, b, *SETTINGS, False)
    with pytest.raises(RuntimeError, match="tensors are on cpu and meta"):
        call(x, x.to("meta"), *SETTINGS, False)
    for window in ([0.5, 0.5], [1.0] * 35, [0.1, 0.2, 0.3], []):
        with pytest.raises(RuntimeError, match="window"):
            call(x, x, window, *SETTINGS[1:], False)
    with pytest.raises(RuntimeError, match="does not fit the map"):
        torch.ops.ssimfast.ssim_map_grad(x, x, x, *SETTINGS, False, 1)
    with pytest.raises(RuntimeError, match="does not fit the result"):
        torch.ops.ssimfast.scale_grad(x, torch.rand(3), 1.0, 1)
    scales = (1, False, False, [0.0, 1.0, 0.0, 0.0, 0.0], 0.0, None, None, 0, 1, False)
    for thin in (x[..., :1, :], x[..., :1]):
        with pytest.raises(RuntimeError, match="scale 1 is empty"):
            torch.ops.ssimfast.sweep_scales(thin, thin, *SETTINGS, True, [0.5, 0.5], *scales)
    for count in (0, 17):
        with pytest.raises(RuntimeError, match="scales must be 1 to 16"):
            torch.ops.ssimfast.sweep_scales(x, x, *SETTINGS, True, [0.5] * count, *scales)
    terms = torch.rand(2, 3, reference.TERMS, dtype=torch.float64)
    for of_scales in ([terms.float()], [terms, terms[:1]], [terms] * 17):
        scales = (of_scales, [0.5] * len(of_scales), False, False)
        with pytest.raises(RuntimeError, match="ssimfast: terms"):
            torch.ops.ssimfast.combine_scales(*scales, [1.0] * 5, 0.0, 0, [9] * len(of_scales))


# Dynamo and Inductor call deprecated parts of torch themselves.
ignore_deprecation = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@ignore_deprecation
@pytest.mark.needs("compiler")
def test_compile_with_inductor():
    torch._dynamo.reset()
    module = ssimfast.SSIMLoss(value_range=(-1, 1))
    x = torch.rand(1, 3, 20, 20, requires_grad=True)
    y = torch.rand(1, 3, 20, 20)

    def step(x, y):
        return module(torch.tanh(x), y)

    (want,) = torch.autograd.grad(step(x, y), x)
    (got,) = torch.autograd.grad(torch.compile(step, fullgraph=True)(x, y), x)
    torch.testing.assert_close(got, want)


def test_backends_are_the_dispatchers_choice():
    expected = "reference" if ops.extension is None else "cpu"
    assert ssimfast.backends()["cpu"] == expected
    assert ssimfast.backends()["mps"] == "reference"
