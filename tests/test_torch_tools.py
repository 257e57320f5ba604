"""The losses under autocast, export, checkpointing, DDP, FSDP and the transforms of torch.func."""

import pytest
import torch
from torch import Tensor, nn

import ssimfast

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


# ---- torch.func ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit")  # deprecated, and used by jvp itself
@of_every_loss
def test_transforms_are_refused_with_what_to_do(loss):
    x, y = pair()
    for call in (
        lambda: torch.func.grad(lambda image: loss(image, y).mean())(x),
        lambda: torch.func.vmap(lambda a, b: loss(a[None], b[None]))(x, y),
        lambda: torch.func.jvp(lambda image: loss(image, y), (x,), (x,)),
    ):
        with pytest.raises(RuntimeError, match="does not go through torch.func.*backward"):
            call()


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("transform", ["vmap", "jvp"])
def test_transforms_by_the_mask_are_refused(transform):
    x, y = pair()
    mask = torch.rand(2, *x.shape[2:])

    def by_mask(mask):
        return ssimfast.ssim(x, y, mask=mask)

    call = {
        "vmap": lambda: torch.func.vmap(by_mask)(mask),
        "jvp": lambda: torch.func.jvp(by_mask, (mask[0],), (mask[1],)),
    }[transform]
    with pytest.raises(RuntimeError, match="does not go through torch.func"):
        call()


@of_every_loss
def test_batches_of_upstream_gradients_are_refused_with_what_to_do(loss):
    x, y = pair()
    batch = torch.rand(4)
    x.requires_grad_()
    for call in (
        lambda value: torch.autograd.grad(value, x, batch, is_grads_batched=True),
        lambda value: torch.func.vmap(lambda up: torch.autograd.grad(value, x, up))(batch),
    ):
        value = loss(x, y).sum()
        message = "one upstream gradient at a time.*retain_graph=True"
        with pytest.raises(RuntimeError, match=message):
            call(value)


@of_every_loss
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_are_refused_when_compiled(loss, transform):
    torch._dynamo.reset()
    x, y = pair()
    call = {
        "grad": lambda x, y: torch.func.grad(lambda image: loss(image, y).mean())(x),
        "vmap": torch.func.vmap(lambda a, b: loss(a[None], b[None])),
    }[transform]
    with pytest.raises(RuntimeError, match="does not go through torch.func"):
        torch.compile(call, backend="aot_eager")(x, y)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(call, backend="aot_eager", fullgraph=True)(x, y)


def test_transforms_of_something_else_are_not_refused():
    x, y = pair()
    want = ssimfast.ssim(x, y)
    by_factor = torch.func.grad(lambda factor: factor * ssimfast.ssim(x, y))(torch.ones(()))
    torch.testing.assert_close(by_factor, want)
    torch.testing.assert_close(torch.func.functionalize(ssimfast.ssim)(x, y), want)


def test_what_to_do_for_a_gradient_of_each_image():
    x, y = pair(3)
    x.requires_grad_()
    (together,) = torch.autograd.grad(ssimfast.ssim(x, y, reduction="batch").sum(), x)
    for i in range(3):
        (alone,) = torch.autograd.grad(ssimfast.ssim(x[i : i + 1], y[i : i + 1]), x)
        torch.testing.assert_close(together[i], alone[i])
