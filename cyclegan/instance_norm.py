"""Instance norm and the activation behind it, in one pass each way on GPUs.

torch computes them one after the other: 13 passes over the activation, forward and backward. Two
Triton kernels need 8 (docs/cyclegan.md counts the bytes of a training step). They are used on CUDA
and ROCm devices, outside of torch.compile, which fuses such operations itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch without GPUs have none
    triton = None

EPS = 1e-5


class InstanceNorm(nn.Module):
    """(N, C, H, W) -> the same: each plane to mean 0 and variance 1, then what is negative times
    `slope`: 0 is ReLU, 1 no activation. There are no weights."""

    def __init__(self, slope: float = 1.0):
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        if triton is not None and x.is_cuda and not torch.compiler.is_compiling():
            return FusedNorm.apply(x, self.slope)
        return instance_norm(x, self.slope)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


def instance_norm(x: Tensor, slope: float) -> Tensor:
    """The same in plain torch."""
    x = F.instance_norm(x, eps=EPS)
    if slope == 1:
        return x
    return F.relu(x) if slope == 0 else F.leaky_relu(x, slope)


class FusedNorm(torch.autograd.Function):
    """`instance_norm` by Triton; differentiable once. float16 and bfloat16 compute in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        mean, scale = x.new_empty((2, planes), dtype=torch.float32)
        _forward[(planes,)](x, y, mean, scale, size, EPS, slope, **_block(size))
        ctx.save_for_backward(x, mean, scale)
        ctx.slope = slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        x, mean, scale = ctx.saved_tensors
        grad = grad.contiguous()
        result = torch.empty_like(x)
        planes, size = len(mean), x.shape[2] * x.shape[3]
        _backward[(planes,)](x, grad, result, mean, scale, size, ctx.slope, **_block(size))
        return result, None


def _block(size: int) -> dict[str, int]:
    """Pixels that a program holds at once, 8 to 32 a thread, and its warps."""
    block = min(8192, max(128, 1 << (size - 1).bit_length()))
    return {"BLOCK": block, "num_warps": min(8, max(4, block // 1024))}


if triton is not None:

    @triton.jit
    def _forward(
        x, y, mean_out, scale_out, size: tl.int32, eps: tl.float32, slope: tl.float32,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One plane of `size` pixels. Means and squared deviations of blocks are combined as Chan
        et al. do, for sums of squares would cancel. Reading it again finds it in the cache."""
        plane = tl.program_id(0).to(tl.int64)
        x += plane * size
        y += plane * size
        offsets = tl.arange(0, BLOCK)
        mean = 0.0
        deviations = 0.0
        for start in range(0, size, BLOCK):
            inside = start + offsets < size
            values = tl.load(x + start + offsets, inside, 0.0).to(tl.float32)
            count = tl.minimum(size - start, BLOCK) * 1.0
            before = start * 1.0
            block_mean = tl.sum(values) / count
            centred = tl.where(inside, values - block_mean, 0.0)
            delta = block_mean - mean
            share = count / (before + count)
            mean += delta * share
            deviations += tl.sum(centred * centred) + delta * delta * before * share
        scale = 1 / tl.sqrt(deviations / (size * 1.0) + eps)
        tl.store(mean_out + plane, mean)
        tl.store(scale_out + plane, scale)
        for start in range(0, size, BLOCK):
            inside = start + offsets < size
            values = tl.load(x + start + offsets, inside, 0.0).to(tl.float32)
            z = (values - mean) * scale
            z = tl.where(z > 0, z, z * slope)
            tl.store(y + start + offsets, z.to(y.dtype.element_ty), inside)

    @triton.jit
    def _backward(
        x, grad, result, means, scales, size: tl.int32, slope: tl.float32,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One plane: the gradient at z, less its mean and less z times its mean product with z."""
        plane = tl.program_id(0).to(tl.int64)
        x += plane * size
        grad += plane * size
        result += plane * size
        offsets = tl.arange(0, BLOCK)
        mean = tl.load(means + plane)
        scale = tl.load(scales + plane)
        sums = tl.zeros([BLOCK], tl.float32)
        products = tl.zeros([BLOCK], tl.float32)
        for start in range(0, size, BLOCK):
            inside = start + offsets < size
            z = (tl.load(x + start + offsets, inside, 0.0).to(tl.float32) - mean) * scale
            upstream = tl.load(grad + start + offsets, inside, 0.0).to(tl.float32)
            upstream = tl.where(z > 0, upstream, upstream * slope)
            sums += upstream
            products += upstream * z
        pixels = size * 1.0
        mean_sum = tl.sum(sums) / pixels
        mean_product = tl.sum(products) / pixels
        for start in range(0, size, BLOCK):
            inside = start + offsets < size
            z = (tl.load(x + start + offsets, inside, 0.0).to(tl.float32) - mean) * scale
            upstream = tl.load(grad + start + offsets, inside, 0.0).to(tl.float32)
            upstream = tl.where(z > 0, upstream, upstream * slope)
            values = scale * (upstream - mean_sum - z * mean_product)
            tl.store(result + start + offsets, values.to(result.dtype.element_ty), inside)
