"""The losses under autocast, export, checkpointing, DDP and FSDP; tensors and tools that are
refused."""

import sys
import threading

import pytest
import torch
from promises import FUNCTIONS
from promises import pair as pair_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ssimfast
from ssimfast import measures
from ssimfast.ops import reflection

LOSSES = {
    "ssim": ssimfast.SSIMLoss(),
    "ms_ssim": ssimfast.MSSSIMLoss(weights=(0.4, 0.6)),
    "mixture": ssimfast.SimilarityLoss(ssim=0.5, ms_ssim=0.3, l1=0.2, weights=(0.4, 0.6)),
    "map": ssimfast.SSIMLoss(reduction="none"),
}
of_every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def pair(count: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 3, 28, 30)
    return x, 0.7 * x + 0.3 * torch.rand_like(x)


class Step(nn.Module):
    """A network and its loss in one module."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = nn.Conv2d(3, 3, 3, padding=1), loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(torch.sigmoid(self.net(x)), y).mean()


def grads_of(step: nn.Module, *images: Tensor) -> list[Tensor]:
    step.zero_grad()
    step(*images).backward()
    return [parameter.grad.clone() for parameter in step.parameters()]


# ---- autocast -----------------------------------------------------------------------------------


@of_every_loss
def test_autocast_pairs_half_with_float32(loss):
    x, y = pair()
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype).requires_grad_()
        copy = half.detach().float().requires_grad_()
        want = loss(copy, y)
        (by_copy,) = torch.autograd.grad(want.sum(), copy)
        for images in ((half, y), (y, half)):
            with torch.autocast("cpu", dtype=dtype):
                got = loss(*images)
            (by_half,) = torch.autograd.grad(got.sum(), half)
            assert got.dtype == torch.float32 and by_half.dtype == dtype
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(by_half, by_copy.to(dtype))


def test_autocast_pairs_the_two_halves():
    x, y = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ssimfast.ssim(x.half(), y.bfloat16())
    torch.testing.assert_close(got, ssimfast.ssim(x.half().float(), y.bfloat16().float()))


@of_every_loss
def test_autocast_of_a_step_compiles(loss):
    torch._dynamo.reset()
    step = Step(loss)
    x, y = pair()

    def in_half(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return step(x, y)

    compiled = torch.compile(in_half, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), in_half(x, y), rtol=1e-3, atol=1e-3)


# ---- export, checkpointing, deterministic mode --------------------------------------------------


@of_every_loss
def test_export(loss):
    step = Step(loss)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(step, pair(), dynamic_shapes=({0: batch}, {0: batch}))
    for count in (2, 5):
        x, y = pair(count)
        torch.testing.assert_close(program.module()(x, y), step(x, y))


@of_every_loss
def test_checkpointing(loss):
    step = Step(loss)
    x, y = pair()
    want = grads_of(step, x, y)
    x.requires_grad_()  # what the reentrant kind needs
    for reentrant in (False, True):
        step.zero_grad()
        torch.utils.checkpoint.checkpoint(step, x, y, use_reentrant=reentrant).backward()
        got = [parameter.grad for parameter in step.parameters()]
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@of_every_loss
def test_deterministic_mode(loss):
    step = Step(loss)
    images = pair()
    want = grads_of(step, *images)
    torch.use_deterministic_algorithms(True)  # an op without such a kernel would raise
    try:
        got = grads_of(step, *images)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_saved_tensor_hooks_keep_what_they_are_given():
    kept = []

    def keep(tensor):
        kept.append((tensor, tensor.clone()))
        return tensor

    def backward_of(function, x, y):
        images = x.clone().requires_grad_(), y.clone().requires_grad_()
        total = sum(value.sum() for value in function(*images) if value.requires_grad)
        return lambda: torch.autograd.grad(3 * total, images)

    hooks = torch.autograd.graph.saved_tensors_hooks
    for function in FUNCTIONS.values():
        images = pair_of(*function.shape)
        want = backward_of(function, *images)()
        for context in (
            hooks(keep, lambda packed: packed),
            hooks(torch.clone, lambda packed: packed),
            torch.autograd.graph.save_on_cpu(),
        ):
            with context:
                backward = backward_of(function, *images)
            assert all(map(torch.equal, backward(), want))
    assert kept and all(torch.equal(tensor, copy) for tensor, copy in kept)


class Calls(TorchDispatchMode):
    """The names of all ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name", ["reflected", "reflected_components", "volume_map", "ms_ssim_joint"]
)
def test_reflected_gradients_are_summed_in_a_fixed_order(name):
    """Backward of torch's reflection sums with atomics on CUDA: no device but the CPU may call it
    (meta stands for the others)."""
    function = FUNCTIONS[name]
    x = torch.rand(function.shape, device="meta", requires_grad=True)
    with Calls() as calls:
        sum(value.sum() for value in function(x, x.detach())).backward()
    assert x.grad.shape == x.shape
    assert not [name for name in calls.names if "reflection" in name and "backward" in name]


@pytest.mark.parametrize("halo", [1, 5, 7])
def test_reflected_gradients_are_those_of_torch(halo):
    for shape in ((2, 3, 8, 9), (2, 1, 8, 9, 10), (1, 3, 200, 120)):
        x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        padded = torch.nn.functional.pad(x, [halo] * (2 * (x.dim() - 2)), mode="reflect")
        upstream = torch.rand_like(padded)
        (want,) = torch.autograd.grad(padded, x, upstream)
        torch.testing.assert_close(reflection._folded_from(upstream, halo, dim=2), want)
        if x.dim() == 4:
            torch.testing.assert_close(reflection.folded(upstream, halo), want)
        got = reflection.differentiable_reflected(x, halo)
        assert torch.equal(got, padded)
        torch.testing.assert_close(torch.autograd.grad(got, x, upstream)[0], want)


# ---- numbers that change, threads ---------------------------------------------------------------

# Two images and a number to a loss.
OF_A_NUMBER = {
    "reflect": lambda x, y, r: ssimfast.ssim(x, y, data_range=r, padding="reflect"),
    "map": lambda x, y, r: ssimfast.ssim(
        x, y, value_range=(-r, r), padding="same", reduction="none"
    ),
    "masked": lambda x, y, r: ssimfast.ssim(x, y, data_range=r, mask=y > 0.3),
    "ms_ssim": lambda x, y, r: ssimfast.ms_ssim(x, y, data_range=r, weights=(0.4, 0.6)),
    "factors": lambda x, y, r: ssimfast.similarity_loss(
        x, y, ssim=r, ms_ssim=2 * r, l1=r / 2, gaussian_l1=r * r, weights=(0.4, 0.6)
    ),
}


# Dynamo calls deprecated parts of torch itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("loss", OF_A_NUMBER.values(), ids=OF_A_NUMBER)
def test_a_number_that_changes_keeps_the_graph(loss):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, y = pair()

    def results(loss, number):
        images = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = loss(*images, number)
        return value.detach(), *torch.autograd.grad(value.sum(), images)

    for number in (1.0, 1.25):  # a constant, then a symbol
        results(compiled, number)
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in (1.5, 0.75, 3.0):
            torch.testing.assert_close(results(compiled, number), results(loss, number))


def test_terms_of_factors_that_change():
    torch._dynamo.reset()
    factors = {"ssim": 0.5, "ms_ssim": 0.0, "l2": 0.25, "return_terms": True}

    def loss(x, y, l1):
        return ssimfast.similarity_loss(x, y, l1=l1, reduction="batch", **factors)

    compiled = torch.compile(loss, fullgraph=True, backend="eager", dynamic=True)
    x, y = pair()
    for l1 in (0.5, 1.5):
        torch.testing.assert_close(compiled(x, y, l1), loss(x, y, l1))


def test_threads_share_a_loss():
    loss = ssimfast.SimilarityLoss(gaussian_l1=0.2, window_size=3)
    images = {width: torch.rand(2, 1, 1, 4, width) for width in range(3, 123)}
    want = {width: loss(*pair) for width, pair in images.items()}
    loss = ssimfast.SimilarityLoss(gaussian_l1=0.2, window_size=3)
    wrong = []

    def work(first):
        for i in range(600):
            width = 3 + (first + 7 * i) % 120
            try:
                assert torch.equal(loss(*images[width]), want[width])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(15 * i,)) for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_what_a_cuda_graph_reads_is_kept(monkeypatch):
    """A captured graph reads the same memory in every replay, whatever was computed since. The
    function, which makes a measure of its own each time, computes nothing again."""
    monkeypatch.setattr(measures, "_COUNTS", {})
    monkeypatch.setattr(measures, "_MOST_COUNTS", 64)
    measure = ssimfast.SimilarityLoss(gaussian_l1=0.2, window_size=3).measure
    like = torch.rand(1, 1, 4, 5)
    first = measure._inside(4, 1, like)
    ssimfast.similarity_loss(like, like, gaussian_l1=0.2, window_size=3)
    before = dict(measures._COUNTS)
    ssimfast.similarity_loss(like, like, gaussian_l1=0.7, window_size=3)
    assert measures._COUNTS == before and len(before) == 2
    for size in range(6, 200):
        measure._inside(size, 1, like)
    assert measure._inside(4, 1, like) is first
    assert len(measures._COUNTS) == 64


# ---- wrappers for many processes ----------------------------------------------------------------


@pytest.fixture
def a_group_of_one(tmp_path):
    torch.distributed.init_process_group(
        "gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@of_every_loss
def test_data_parallel(loss, a_group_of_one):
    step = Step(loss)
    images = pair()
    want = grads_of(step, *images)
    got = grads_of(nn.parallel.DistributedDataParallel(step), *images)
    torch.testing.assert_close(got, want)


@of_every_loss
def test_fully_sharded(loss, a_group_of_one):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    step = Step(loss)
    images = pair()
    want = grads_of(step, *images)
    fully_shard(step, mesh=init_device_mesh("cpu", (1,)))
    got = [grad.full_tensor() for grad in grads_of(step, *images)]
    torch.testing.assert_close(got, want)


# ---- tools and tensors that are refused ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning")
def test_tracing_is_refused():
    """torch.jit.trace takes the number of windows for a constant."""
    for function in FUNCTIONS.values():
        images = pair_of(*function.shape)
        with pytest.raises(RuntimeError, match="torch.jit.trace.*size of the images.*torch.export"):
            torch.jit.trace(function.__call__, images)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning")
def test_scripting_is_refused():
    from ssimfast.compat import fused_ssim, pytorch_msssim

    for called in (
        *(ssimfast.ssim, ssimfast.ms_ssim, ssimfast.similarity_loss, ssimfast.ssim_components),
        *(*LOSSES.values(), Step(ssimfast.SSIMLoss()), ssimfast.MixLoss()),
        *(fused_ssim.fused_ssim, pytorch_msssim.ssim, pytorch_msssim.SSIM()),
    ):
        with pytest.raises(RuntimeError, match="torch.jit.script cannot compile ssimfast; use"):
            torch.jit.script(called)


def test_symbolic_tracing_is_refused():
    with pytest.raises(TypeError, match="x must be a tensor, got Proxy of torch.fx.symbolic_trace"):
        torch.fx.symbolic_trace(ssimfast.SSIMLoss())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_not_dense_are_refused():
    x, y = pair()
    nested = torch.nested.nested_tensor([x[0], x[1]])
    jagged = torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged)
    refused = {
        "dense tensor, got layout sparse_coo; {}.to_dense": x.to_sparse(),
        "dense tensor, got layout _mkldnn; {}.to_dense": x.to_mkldnn(),
        "dense tensor, got a nested one": nested,
        "dense tensor, got a nested": jagged,
    }
    for message, image in refused.items():
        with pytest.raises(TypeError, match="x must be a " + message.format("x")):
            ssimfast.ssim(image, y)
        with pytest.raises(TypeError, match="y must be a " + message.format("y")):
            ssimfast.similarity_loss(x, image)
        with pytest.raises(TypeError, match="mask must be a " + message.format("mask")):
            ssimfast.ssim(x, y, mask=image)


def test_distributed_tensors_are_refused(a_group_of_one):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    x, y = pair()
    sharded = distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])
    with pytest.raises(TypeError, match="x must be the tensor of one process, got a DTensor"):
        ssimfast.ssim(sharded, y)
    assert torch.equal(ssimfast.ssim(sharded.to_local(), y), ssimfast.ssim(x, y))
