"""Derivatives beyond a first gradient: create_graph=True, forward mode, batches of gradients and
the transforms of torch.func, all in comparison with first gradients."""

import pytest
import torch
from promises import DERIVATIVES, FUNCTIONS, mixture, pair
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import ssimfast
from ssimfast import measures
from ssimfast.backends import constants
from ssimfast.ops import library, reflection

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit",  # deprecated, and used by forward mode itself
    "ignore::DeprecationWarning:torch",
)
QUICK = ("masked_map", "mixture", "ms_ssim_joint", "volume")
of_every_function = pytest.mark.parametrize(
    "function",
    [
        pytest.param(function, id=name, marks=[] if name in QUICK else pytest.mark.long)
        for name, function in FUNCTIONS.items()
    ],
)
of_every_derivative = pytest.mark.parametrize(
    "function",
    [
        pytest.param(
            FUNCTIONS[name],
            id=name,
            marks=[] if name in QUICK[:2] else pytest.mark.long,
        )
        for name in sorted(DERIVATIVES)
    ],
)
FEW_TAPS = {"window_size": 3}
LOSSES = {
    "ssim": lambda x, y: ssimfast.ssim(x, y, **FEW_TAPS),
    "map": lambda x, y: ssimfast.ssim(x, y, reduction="none", **FEW_TAPS).mean(),
    "mixture": lambda x, y: ssimfast.similarity_loss(
        x, y, ssim=0.5, ms_ssim=0.3, l1=0.2, gaussian_l1=0.1, weights=(0.4, 0.6), **FEW_TAPS
    ),
}
of_every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def results(function, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What has a gradient in the result of a function of promises.py."""
    return function(x, y)[: 1 if function.of is mixture else None]


def total(function, x: Tensor, y: Tensor) -> Tensor:
    """A weighted sum of the result."""
    parts = results(function, x, y)
    weights = [torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype) for part in parts]
    return sum((w.reshape(part.shape) * part).sum() for w, part in zip(weights, parts, strict=True))


def gradients(function, *images: Tensor, **arguments) -> tuple[Tensor, ...]:
    leaves = [image.clone().requires_grad_() for image in images]
    return torch.autograd.grad(function(*leaves), leaves, **arguments)


def penalty(loss, x: Tensor, y: Tensor) -> Tensor:
    """The squared size of a gradient, as a WGAN-GP would penalise it."""
    (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    return (grad * grad.numel() ** 0.5).square().sum()


def assert_close(got, want, tolerance: float = 5e-6) -> None:
    """To a tolerance relative to the largest number."""
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        assert (g - w).abs().max() <= tolerance * w.abs().max()


# ---- create_graph=True --------------------------------------------------------------------------


@of_every_function
def test_second_derivatives(function):
    batch, channels, *size = function.shape
    images = [image.requires_grad_() for image in pair(1, channels, *size, dtype=torch.float64)]

    def call(x, y):
        return results(function, x, y)

    # fast_mode: along random directions, not pixel by pixel
    assert gradcheck(call, images, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, images, fast_mode=True, check_fwd_over_rev=True)
    assert gradgradcheck(lambda x: call(x, images[1].detach()), images[:1], fast_mode=True)


@of_every_derivative
def test_gradients_with_a_graph_are_those_without(function):
    for dtype in (torch.float32, torch.bfloat16):
        images = pair(*function.shape, dtype=dtype)
        want = gradients(lambda x, y: total(function, x, y), *images)
        got = gradients(lambda x, y: total(function, x, y), *images, create_graph=True)
        assert all(grad.requires_grad for grad in got)
        assert_close(got, want, 5e-6 if dtype == torch.float32 else 1e-2)


@of_every_loss
def test_gradient_penalty(loss):
    x, y = pair(2, 3, 24, 26)
    exact, by_exact = x.double().requires_grad_(), y.double()
    want = penalty(loss, exact, by_exact)
    want.backward()
    x.requires_grad_()
    got = penalty(loss, x, y)
    got.backward()
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)
    assert_close([x.grad.double()], [exact.grad], 1e-4)


def test_one_image_may_be_computed_from_the_other():
    x = torch.rand(1, 1, 14, 13, dtype=torch.float64, requires_grad=True)
    for loss in LOSSES.values():
        assert gradgradcheck(lambda x, loss=loss: loss(x, x.square() / 2), x, fast_mode=True)


def test_reflection_of_a_large_image(monkeypatch):
    monkeypatch.setattr(reflection, "_torch_folds_well", lambda image: False)
    images = [image.requires_grad_() for image in pair(1, 1, 12, 13, dtype=torch.float64)]
    for function in (FUNCTIONS["reflected"], FUNCTIONS["ms_ssim_joint"]):
        if function is not FUNCTIONS["reflected"]:
            images = [torch.nn.functional.pad(image, [12, 0, 12, 0]) for image in images]
        assert gradgradcheck(lambda x, y, of=function: of(x, y), images, fast_mode=True)


@pytest.mark.parametrize("negative", ["relu", "abs"])
@pytest.mark.parametrize("weights", [(0.4, 0.6), (1.5, 0.0)], ids=str)
def test_bounded_slopes_of_powers(negative, weights):
    """Means that are 0, next to 0 or negative, whose powers have an unbounded slope."""
    x = torch.rand(1, 1, 24, 24, dtype=torch.float64)
    flat = torch.full_like(x, 0.4)
    arguments = {"weights": weights, "negative": negative, "k2": 0.0}

    def loss(x, y):
        return ssimfast.ms_ssim(x, y, **arguments)

    for y in (flat + 1e-5 * x, 1 - x, flat + 1e-5 * torch.rand_like(x)):
        want = gradients(loss, x, y)
        for got in (
            gradients(loss, x, y, create_graph=True),
            torch.func.grad(loss, (0, 1))(x, y),
        ):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        leaf = x.clone().requires_grad_()
        (second,) = torch.autograd.grad(penalty(loss, leaf, y), leaf)
        assert second.isfinite().all()


def test_hidden_pixels_and_empty_windows():
    x, y = pair(1, 2, 20, 21, dtype=torch.float64)
    mask = torch.ones_like(x)
    mask[..., 4:] = 0
    x[mask == 0] = float("nan")

    def loss(x, y):
        return ssimfast.ssim(x, y, mask=mask, k1=0.0, k2=0.0, **FEW_TAPS)

    want = gradients(loss, x, y)
    assert_close(gradients(loss, x, y, create_graph=True), want, 1e-9)
    leaf = x.clone().requires_grad_()
    (second,) = torch.autograd.grad(penalty(loss, leaf, y), leaf)
    assert second.isfinite().all() and second.any() and not second[mask == 0].any()


def test_second_derivatives_far_from_the_value_range():
    images = [image.requires_grad_() for image in pair(1, 1, 12, 13, dtype=torch.float64)]
    for loss in LOSSES.values():
        assert gradgradcheck(
            lambda x, y, loss=loss: loss(1000 + x, 1000 + y), images, fast_mode=True
        )


def test_hessian():
    loss = LOSSES["ssim"]
    x, y = pair(1, 1, 7, 8, dtype=torch.float64)
    want = torch.func.hessian(loss)(x, y)
    for vectorize in (False, True):
        got = torch.autograd.functional.hessian(lambda x: loss(x, y), x, vectorize=vectorize)
        assert_close([got], [want], 1e-12)
    assert_close([torch.func.jacfwd(torch.func.jacfwd(loss))(x, y)], [want], 1e-12)


def test_second_derivatives_without_float64(monkeypatch):
    """As on MPS and XPU."""
    for name in ("ssim", "masked", "volume", "mixture"):
        function = FUNCTIONS[name]
        x, y = pair(*function.shape)
        x.requires_grad_()
        seconds = []
        for devices in ((), ("cpu",)):
            monkeypatch.setattr(constants, "_WITHOUT_FLOAT64", set(devices))
            by_reference = library.by_position("sweep", library.REFERENCE["sweep"])
            monkeypatch.setitem(library.OPS, "sweep", by_reference)
            value = penalty(lambda x, y, of=function: total(of, x, y), x, y)
            seconds += torch.autograd.grad(value, x)
        assert_close(seconds[1:], seconds[:1], 1e-4)


# ---- forward mode and transforms ----------------------------------------------------------------


@of_every_derivative
def test_gradient_transform_and_forward_mode(function):
    x, y = images = pair(*function.shape)
    directions = torch.randn_like(x), torch.randn_like(y)

    def loss(x, y):
        return total(function, x, y)

    want = gradients(loss, *images)
    assert_close(torch.func.grad(loss, (0, 1))(*images), want)
    slope = sum((grad * by).double().sum() for grad, by in zip(want, directions, strict=True))
    value, tangent = torch.func.jvp(loss, images, directions)
    torch.testing.assert_close(value, loss(*images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tangent.double(), slope, rtol=1e-4, atol=1e-6)
    with forward_ad.dual_level():
        for needs_graph in (False, True):
            leaf = x.clone().requires_grad_(needs_graph)
            duals = map(forward_ad.make_dual, (leaf, y), directions)
            tangent = forward_ad.unpack_dual(loss(*duals)).tangent
            assert tangent.requires_grad == needs_graph
            torch.testing.assert_close(tangent.double(), slope, rtol=1e-4, atol=1e-6)


@of_every_derivative
def test_batches(function):
    """Per-sample gradients, gradients through a batch, and a batch of upstream gradients."""

    def loss(x, y):
        return total(function, x[None], y[None])

    x, y = pair(*function.shape)
    (want,) = gradients(lambda x: total(function, x, y), x)
    upstream = torch.rand(3)
    leaf = x.clone().requires_grad_()
    value = total(function, leaf, y)
    for got in (
        torch.autograd.grad(value, leaf, upstream, is_grads_batched=True, retain_graph=True)[0],
        torch.func.vmap(lambda up: torch.autograd.grad(value, leaf, up, retain_graph=True)[0])(
            upstream
        ),
    ):
        assert_close([got], [torch.stack([up * want for up in upstream])])
    if function.arguments.get("negative") == "raise":  # the error depends on values
        with pytest.raises(RuntimeError, match="vmap: .* data-dependent control flow"):
            torch.func.vmap(loss)(x, y)
        return
    alone = [gradients(loss, *images) for images in zip(x, y, strict=True)]
    each = [torch.stack(grads) for grads in zip(*alone, strict=True)]
    assert_close(torch.func.vmap(torch.func.grad(loss, (0, 1)))(x, y), each)
    through = torch.func.grad(lambda x: torch.func.vmap(loss)(x, y).sum())(x)
    assert_close([through], each[:1])
    for half in (torch.float16, torch.bfloat16):
        low = x.to(half), y.to(half)
        values = torch.stack([loss(*images) for images in zip(*low, strict=True)])
        torch.testing.assert_close(torch.func.vmap(loss)(*low), values, rtol=1e-5, atol=1e-6)
    values = torch.stack([loss(x[0], image) for image in y])
    batched = torch.func.vmap(loss, in_dims=(None, 0))(x[0], y)
    torch.testing.assert_close(batched, values, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_each_image_at_full_speed():
    x, y = pair(3, 3, 20, 20)
    (together,) = gradients(lambda x: ssimfast.ssim(x, y, reduction="batch").sum(), x)
    each = torch.func.vmap(torch.func.grad(lambda x, y: ssimfast.ssim(x[None], y[None])))(x, y)
    assert_close([together], [each])


def test_masks_in_transforms():
    x, y = pair(2, 3, 20, 20)
    masks = torch.rand(2, 20, 20)

    def by_mask(mask):
        return ssimfast.ssim(x, y, mask=mask)

    want = torch.stack([by_mask(mask) for mask in masks])
    torch.testing.assert_close(torch.func.vmap(by_mask)(masks), want)
    for call in (
        lambda: torch.func.grad(by_mask)(masks[0]),
        lambda: torch.func.jvp(by_mask, (masks[0],), (masks[1],)),
    ):
        with pytest.raises(ValueError, match="mask is not differentiated"):
            call()


def test_transforms_leave_no_tensors_behind(monkeypatch):
    """A tensor that is made inside of a transform does not work after it."""
    monkeypatch.setattr(measures, "_COUNTS", {})
    x, y = pair(1, 3, 20, 21)
    loss = LOSSES["mixture"]
    by_transform = torch.func.grad(loss)(x, y)
    assert not measures._COUNTS
    assert_close([by_transform], gradients(lambda x: loss(x, y), x))
    assert_close([torch.func.grad(loss)(x, y)], [by_transform])


# ---- torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(loss, id=name, marks=[] if name == "ssim" else pytest.mark.long)
        for name, loss in LOSSES.items()
    ],
)
def test_compiled_transforms(loss):
    def slope_of(x, y):
        gradient, batch = torch.func.grad(loss), torch.func.vmap(loss)
        tangent = torch.func.jvp(lambda x: loss(x, y), (x,), (y,))[1]
        return gradient(x, y), batch(x[:, None], y[:, None]), tangent

    torch._dynamo.reset()
    images = pair(2, 3, 24, 26)
    compiled = torch.compile(slope_of, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*images), slope_of(*images))


@of_every_loss
def test_second_derivatives_are_refused_when_compiled(loss):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, y = pair(2, 3, 24, 26)
    x.requires_grad_()
    value = compiled(x, y)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(value + penalty(compiled, x, y), x)


def test_op_that_makes_the_compiler_keep_the_images():
    upstream, x, y = torch.rand(()), *pair(1, 1, 4, 5)
    torch.library.opcheck(torch.ops.ssimfast.depend_on.default, (upstream, [x, y]))
    assert torch.ops.ssimfast.depend_on(upstream, [x, y]) == upstream
