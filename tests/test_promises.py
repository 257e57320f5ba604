"""What every function promises beside its values: any layout, no gradient but those that are asked
for, one derivative, the same under autocast, as meta tensors and compiled in one graph."""

import pytest
import torch
from promises import FUNCTIONS, LAYOUTS, assert_compiles, channels_last, mixture, pair
from torch import Tensor
from torch.autograd import forward_ad

of_every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


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


# ---- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@of_every_function
def test_strides(backend, function, layout, dtype):
    x, y = pair(*function.shape, dtype=dtype)
    lay = LAYOUTS[layout]
    assert torch.equal(lay(x), x) and lay(x).stride() != x.stride()
    want = with_gradients(function, x.clone().requires_grad_(), y.clone().requires_grad_())
    got = with_gradients(function, lay(x).requires_grad_(), y.requires_grad_(), lay)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@of_every_function
def test_expanded_images_and_gradients(backend, function):
    size = function.shape[2:]
    x = torch.rand(1, 1, *size).requires_grad_()
    y = torch.rand(function.shape)
    total(function(x.expand(y.shape), y)).backward()
    copied = x.detach().clone().requires_grad_()
    total(function(copied.repeat(*y.shape[:2], *(1 for _ in size)), y)).backward()
    torch.testing.assert_close(x.grad, copied.grad)


@of_every_function
def test_gradient_keeps_the_memory_format(backend, function):
    x, y = pair(*function.shape)
    x = LAYOUTS["channels_last"](x).requires_grad_()
    (grad,) = torch.autograd.grad(total(function(x, y)), x)  # x.grad would have it in any case
    assert grad.is_contiguous(memory_format=channels_last(x))


# ---- which gradients, how often -----------------------------------------------------------------


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


@of_every_function
def test_no_graph_without_need(backend, function):
    x, y = pair(*function.shape)
    assert not any(value.requires_grad for value in function(x, y))
    with torch.no_grad():
        assert not any(value.requires_grad for value in function(x.requires_grad_(), y))


@of_every_function
def test_backward_twice_with_retained_graph(backend, function):
    x, y = pair(*function.shape)
    value = total(function(x.requires_grad_(), y))
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(first, second)


@of_every_function
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


@of_every_function
def test_second_derivative_is_refused(backend, function):
    x, y = pair(*function.shape)
    values = [value for value in function(x.requires_grad_(), y) if value.requires_grad]
    assert values
    for value in values:
        with pytest.raises(RuntimeError, match="differentiable once.*create_graph"):
            torch.autograd.grad(value.sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore:.torch.jit")  # deprecated, and used by forward_ad itself
@of_every_function
def test_forward_mode_is_refused(backend, function):
    x, y = pair(*function.shape)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward mode AD|jvp"):
            function(dual, y)


# ---- PyTorch around it --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@of_every_function
def test_autocast_does_not_change_the_result(function, dtype):
    x, y = pair(*function.shape)
    x.requires_grad_()
    want = function(x, y)
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
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@of_every_function
def test_compile_of_a_training_step(function, dynamic):
    batch, channels, *size = function.shape
    layer = torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d
    net = layer(channels, channels, 3, padding=1)

    def loss_of(x, y):
        values = function(torch.sigmoid(net(x)), y)
        return total(values), *values

    inputs = (pair(batch, channels, *(side + more for side in size)) for more in (0, 3))
    assert_compiles(loss_of, net, inputs, dynamic)


@of_every_function
def test_one_compilation_serves_all_crop_sizes(function):
    batch, channels, *size = function.shape
    torch._dynamo.reset()
    compiled = torch.compile(function.__call__, fullgraph=True, dynamic=True, backend="eager")
    compiled(*pair(*function.shape))
    with torch.compiler.set_stance("fail_on_recompile"):
        for more in (2, 16, 10):  # of one parity
            images = pair(batch, channels, *(side + more for side in size))
            torch.testing.assert_close(compiled(*images), function(*images))
