"""``warmup`` compiles kernels before the first batch."""

from collections.abc import Callable, Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from ssimfast.functional import ssim

Loss = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, dict[str, Tensor]]]


def warmup(
    shapes: Iterable[Sequence[int]],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    *,
    losses: Iterable[Loss] = (ssim,),
    device: torch.device | str | None = None,
) -> None:
    """Calls each loss once without a gradient, with a gradient to one image, and to both images.

    Triton compiles a kernel at its first call, in up to six seconds, and keeps it on disk. It
    compiles one kernel for each window, dtype, requested result and strip width (one of four), not
    for each image size (docs/triton.md). After ``warmup``, a training step compiles nothing, which
    capturing a CUDA graph requires. The other backends have little to prepare.

    Args:
        shapes: shapes (N, C, H, W) of images, large enough for ``losses``.
        dtypes: floating dtypes of the images.
        losses: functions of two images, such as modules of ssimfast, with the arguments that
            training will use.
        device: device of the images; by default the accelerator of this machine, or the CPU if
            there is none.

    Raises:
        TypeError: a dtype is not a floating dtype, or a loss is not callable.
        ValueError: a shape does not have four sizes, or a loss raises ValueError.
    """
    if device is None:
        device = torch.accelerator.current_accelerator() or "cpu"
    losses, dtypes, shapes = list(losses), list(dtypes), [tuple(shape) for shape in shapes]
    for dtype in dtypes:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtypes must be floating dtypes of torch, got {dtype!r}")
    for loss in losses:
        if not callable(loss):
            raise TypeError(f"losses must be functions of two images, got {loss!r}")
    for shape in shapes:
        if len(shape) != 4:
            raise ValueError(f"shapes must be (N, C, H, W), got {shape}")
    for shape in shapes:
        for dtype in dtypes:
            for loss in losses:
                values = torch.linspace(0, 1, 2 * prod(shape), device=device, dtype=dtype)
                _call(loss, *values.view(2, *shape))
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def _call(loss: Loss, x: Tensor, y: Tensor) -> None:
    with torch.inference_mode(False):
        x, y = x.clone(), y.clone()
        with torch.no_grad():
            loss(x, y)
        with torch.enable_grad():
            for second in (y, y.clone().requires_grad_()):
                value = loss(x.clone().requires_grad_(), second)
                value = value[0] if isinstance(value, tuple) else value  # without its terms
                torch.autograd.backward(value.sum())
