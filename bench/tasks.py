"""What is measured: the same SSIM by each library, and one training step around it."""

from collections.abc import Callable

import torch
from torch import Tensor

import ssimfast

Similarity = Callable[[Tensor, Tensor], Tensor]


def _ssimfast(x: Tensor, y: Tensor) -> Tensor:
    return ssimfast.ssim(x, y)


def _pytorch_msssim(x: Tensor, y: Tensor) -> Tensor:
    from pytorch_msssim import ssim

    return ssim(x, y, data_range=1.0)


LIBRARIES: dict[str, Similarity] = {
    "ssimfast": _ssimfast,
    "pytorch-msssim": _pytorch_msssim,
}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two unlike images in [0, 1]; the first wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(shape, generator=generator) for _ in range(2))
    return x.requires_grad_(), y


def training_step(similarity: Similarity, x: Tensor, y: Tensor) -> None:
    x.grad = None
    (1 - similarity(x, y)).backward()
