"""Promises that every function keeps beside its values: for equal images, no images and bad pixels,
in any layout; which gradients there are, and how often; the same bits for every number of threads;
under autocast, as meta tensors, and compiled in one graph.
"""

import pytest
import torch
from promises import (
    DERIVATIVES,
    FUNCTIONS,
    LAYOUTS,
    QUICKER,
    assert_compiles,
    assert_same_bits_for_every_number_of_threads,
    channels_last,
    mixture,
    needs_extension,
    pair,
)
from torch import Tensor

EVERY_FUNCTION = [
    pytest.param(function, id=name, marks=QUICKER.get(name, ()))
    for name, function in FUNCTIONS.items()
]
of_every_function = pytest.mark.parametrize("function", EVERY_FUNCTION)
of_every_derivative = pytest.mark.parametrize(
    "function", [function for function in EVERY_FUNCTION if function.id in DERIVATIVES]
)
on_the_cpu = pytest.mark.backends("cpu")  # what is promised is above the kernels
by_kernels = pytest.mark.long_with("reference")  # which is made of operations that promise it
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def total(values: tuple[Tensor, ...]) -> Tensor:
    """A sum of means, whose upstream gradients are expanded."""
    return sum(value.mean() for value in values if value.requires_grad)


def with_gradients(function, x: Tensor, y: Tensor, lay=lambda image: image) -> list:
    """What the function returns, and the gradients by both images, None for one that needs none;
    upstream gradients of maps are laid out in that way."""
    values = function(x, y)
    differentiable = [value for value in values if value.requires_grad]
    assert len(differentiable) == (len(values) if function.of is not mixture else 1)
    upstream = []
    for value in differentiable:
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        upstream.append(lay(weights) if weights.dim() == x.dim() else weights)
    torch.autograd.backward(differentiable, upstream)
    return [*(value.detach() for value in values), x.grad, y.grad]


# ---- data ---------------------------------------------------------------------------------------


@by_kernels
@of_every_function
def test_equal_images_give_exactly_their_value_and_no_gradient(backend, function):
    size = function.shape[2:]
    flat = torch.full((1, 1, *size), 0.3)
    checks = ((torch.arange(size[-2])[:, None] // 6 + torch.arange(size[-1]) // 6) % 2).float()
    checks = checks.expand(1, 1, *size)
    for image in (torch.rand(function.shape), flat, flat * 0, checks, flat + 1000):
        for dtype in DTYPES:
            x, y = (image.to(dtype).clone().requires_grad_() for _ in range(2))
            *values, grad_x, grad_y = with_gradients(function, x, y)
            for value, want in zip(values, function.of_equal_images(), strict=True):
                assert (value == want).all(), dtype
            assert not grad_x.any() and not grad_y.any(), dtype


@by_kernels
@of_every_function
def test_nan_and_infinity_reach_their_image_and_no_other(backend, function):
    x, y = pair(*function.shape)
    *clean, clean_grad, _ = with_gradients(function, x.clone().requires_grad_(), y)
    pixel = (0, 0, *(side // 2 for side in function.shape[2:-1]), 13 % function.shape[-1])
    for bad in (float("nan"), float("inf")):
        spoiled = x.clone()
        spoiled[pixel] = bad
        *values, grad, _ = with_gradients(function, spoiled.requires_grad_(), y)
        for value, want in zip(values, clean, strict=True):
            own = value if value.dim() == 0 else value[0]
            assert not own.isfinite().all()
            assert value.dim() == 0 or torch.equal(value[1:], want[1:])
            assert value.dim() < 2 or torch.equal(value[0, 1:], want[0, 1:])  # one for each plane
        assert not grad[pixel].isfinite() and torch.equal(grad[1:], clean_grad[1:])
        if all(value.dim() >= 2 for value in values):
            assert torch.equal(grad[0, 1:], clean_grad[0, 1:])


@pytest.mark.long_with("reference", "cuda-emulated")  # no kernel is launched
@of_every_function
def test_no_images_or_no_channels(backend, function):
    for empty in ((0, *function.shape[1:]), (function.shape[0], 0, *function.shape[2:])):
        x, y = (torch.rand(empty).requires_grad_() for _ in range(2))
        values = function(x, y)
        for value, want in zip(values, function.of_equal_images(), strict=True):
            assert (value == want).all()
        shapes = [value.shape for value in function(*pair(*function.shape))]
        for value, shape in zip(values, shapes, strict=True):
            assert value.shape == (*empty[: min(len(shape), 2)], *shape[2:])
        sum(value.sum() for value in values if value.requires_grad).backward()
        assert x.grad.shape == y.grad.shape == empty


@needs_extension
@of_every_function
def test_same_bits_for_every_number_of_threads(function):
    # More than 32768 values, of which PyTorch's own sums are cut into parts; more than one tile.
    if len(function.shape) == 5:
        shapes = [(1, 1, 20, 40, 60), (2, 2, 9, 20, 30)]
    else:
        shapes = [(2, 3, 150, 130), (1, 1, 150, 1100)]
    for shape in shapes:
        x, y = pair(*shape)

        def run(x=x, y=y):
            return with_gradients(function, x.clone().requires_grad_(), y.clone().requires_grad_())

        assert_same_bits_for_every_number_of_threads(run)


# ---- layouts ------------------------------------------------------------------------------------


@by_kernels
@of_every_function
def test_layouts(backend, function):
    """The same bits from any strides, expanded images too; the gradient keeps the memory format."""
    for dtype in (torch.float32, torch.bfloat16):
        x, y = pair(*function.shape, dtype=dtype)
        want = with_gradients(function, x.clone().requires_grad_(), y.clone().requires_grad_())
        for layout, lay in LAYOUTS.items():
            assert torch.equal(lay(x), x) and lay(x).stride() != x.stride()
            got = with_gradients(function, lay(x).requires_grad_(), y.clone().requires_grad_(), lay)
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)), layout
    x, y = pair(*function.shape)
    x = LAYOUTS["channels_last"](x).requires_grad_()
    (grad,) = torch.autograd.grad(total(function(x, y)), x)  # x.grad would have it in any case
    assert grad.is_contiguous(memory_format=channels_last(x))
    one = x.detach()[:1, :1].clone().requires_grad_()
    y = 0.3 * y + 0.7 * one.detach()
    (of_expanded,) = torch.autograd.grad(total(function(one.expand(y.shape), y)), one)
    copies = one.repeat(*y.shape[:2], *(1 for _ in y.shape[2:]))
    (want,) = torch.autograd.grad(total(function(copies, y)), one)
    torch.testing.assert_close(of_expanded, want)


# ---- which gradients, how often -----------------------------------------------------------------


@by_kernels
@of_every_function
def test_only_what_is_asked_for(backend, function):
    """Against float64, which other tests compare with the oracle."""
    x, y = pair(*function.shape)
    exact = (image.double().requires_grad_() for image in (x, y))
    *_, want_x, want_y = with_gradients(function, *exact)
    for ask_x, ask_y in ((True, False), (False, True), (True, True)):
        a, b = x.clone().requires_grad_(ask_x), y.clone().requires_grad_(ask_y)
        *_, got_x, got_y = with_gradients(function, a, b)
        for got, want, asked in ((got_x, want_x, ask_x), (got_y, want_y, ask_y)):
            if asked:
                assert (got - want).abs().max() <= 2e-6 * want.abs().max()
            else:
                assert got is None


@on_the_cpu
@of_every_derivative
def test_no_graph_without_need(backend, function):
    x, y = pair(*function.shape)
    assert not any(value.requires_grad for value in function(x, y))
    with torch.no_grad():
        assert not any(value.requires_grad for value in function(x.requires_grad_(), y))


@by_kernels
@of_every_derivative
def test_backward_twice_with_retained_graph(backend, function):
    x, y = pair(*function.shape)
    value = total(function(x.requires_grad_(), y))
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(first, second)


@on_the_cpu
@of_every_derivative
def test_an_image_changed_before_backward_is_noticed(backend, function):
    """Backward may compute with the images again; never with other ones."""
    x, y = pair(*function.shape)
    leaf = x.clone().requires_grad_()
    image = leaf * 1
    value = total(function(image, y))
    (want,) = torch.autograd.grad(value, leaf, retain_graph=True)
    with torch.no_grad():
        image.zero_()
    try:
        (got,) = torch.autograd.grad(value, leaf)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert torch.equal(got, want)


# ---- PyTorch around it --------------------------------------------------------------------------


@of_every_derivative
def test_autocast_does_not_change_the_result(function):
    x, y = pair(*function.shape)
    x.requires_grad_()
    want = function(x, y)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            got = function(x, y)
        assert all(torch.equal(g, w) and g.dtype == w.dtype for g, w in zip(got, want, strict=True))


@of_every_function
def test_meta_tensors(function):
    want = function(*pair(*function.shape))
    image = torch.rand(function.shape, device="meta")
    for got, value in zip(function(image, image), want, strict=True):
        assert got.is_meta and got.shape == value.shape and got.dtype == value.dtype


# Dynamo calls deprecated parts of torch itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "dynamic", [pytest.param(False, marks=pytest.mark.long), True], ids=["static", "dynamic"]
)
@of_every_derivative
def test_compile_of_a_training_step(function, dynamic):
    batch, channels, *size = function.shape
    layer = torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d
    net = layer(channels, channels, 3, padding=1)

    def loss_of(x, y):
        values = function(torch.sigmoid(net(x)), y)
        return total(values), *values

    inputs = (pair(batch, channels, *(side + more for side in size)) for more in (0, 3))
    assert_compiles(loss_of, net, inputs, dynamic)


@of_every_derivative
def test_one_compilation_serves_all_crop_sizes(function):
    batch, channels, *size = function.shape
    torch._dynamo.reset()
    compiled = torch.compile(function.__call__, fullgraph=True, dynamic=True, backend="eager")
    compiled(*pair(*function.shape))
    with torch.compiler.set_stance("fail_on_recompile"):
        for more in (2, 16, 10):  # of one parity
            images = pair(batch, channels, *(side + more for side in size))
            torch.testing.assert_close(compiled(*images), function(*images))
