"""Reflected borders around images, and the adjoint: folding the border back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssimfast.backends.constants import value_dtype
from ssimfast.ops.transforms import is_transformed


class _Reflected(torch.autograd.Function):
    """``reflected`` with a deterministic backward. The backward of torch's own padding sums with
    atomics on CUDA."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, halo: int) -> Any:
        ctx.halo = halo
        return reflected(image, halo)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return _folded_from(upstream, ctx.halo, dim=2), None


def differentiable_reflected(image: Tensor, halo: int) -> Tensor:
    """``reflected`` for autograd. Half types become float32 first, because the gradient w.r.t. a
    pixel is a sum over its reflections, which would lose digits in half precision."""
    if image.is_floating_point():
        image = image.to(value_dtype(image.dtype))
    if not image.requires_grad or _torch_folds_well(image) or is_transformed(image):
        return reflected(image, halo)
    differentiable: Callable[..., Tensor] = _Reflected.apply
    return differentiable(image, halo)


def reflected(image: Tensor, halo: int) -> Tensor:
    """Images or volumes with a reflected border of ``halo`` pixels on every side. Half types become
    float32; other dtypes are kept."""
    if image.is_floating_point():
        image = image.to(value_dtype(image.dtype))
    pads = [halo] * (2 * (image.dim() - 2))
    mode = "reflect" if image.numel() > 0 else "constant"  # torch cannot reflect empty images
    return torch.nn.functional.pad(image, pads, mode=mode)


def folded(grad: Tensor, halo: int) -> Tensor:
    """Gradient w.r.t. images (N, C, H, W), from the gradient w.r.t. the same images with border."""
    if not _torch_folds_well(grad):
        return _folded_from(grad, halo, dim=2)
    like = grad.new_empty((*grad.shape[:2], *(size - 2 * halo for size in grad.shape[2:])))
    out: Tensor = torch.ops.aten.reflection_pad2d_backward(grad.contiguous(), like, [halo] * 4)
    return out


def _torch_folds_well(image: Tensor) -> bool:
    """True for small CPU images, for which torch's own backward is one deterministic call."""
    return not torch.compiler.is_compiling() and image.is_cpu and image.numel() < 2**16


def _folded_from(grad: Tensor, halo: int, dim: int) -> Tensor:
    """``grad`` without its border along ``dim`` and later dimensions. Adds each border value to the
    pixel that it was copied from."""
    if dim == grad.dim():
        return grad.clone()
    size = grad.shape[dim] - 2 * halo
    left, inside, right = (
        _folded_from(grad.narrow(dim, start, count), halo, dim + 1)
        for start, count in ((0, halo), (halo, size), (halo + size, halo))
    )
    inside.narrow(dim, 1, halo).add_(left.flip(dim))
    inside.narrow(dim, size - 1 - halo, halo).add_(right.flip(dim))
    return inside
