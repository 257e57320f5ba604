"""Drop-in replacement for fused-ssim (https://github.com/rahul-goel/fused-ssim), on any device."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ssimfast.arguments import checked_images, choice, flag, not_scriptable
from ssimfast.functional import ssim
from ssimfast.typing import ReturnMap, Shown


@overload
def fused_ssim(
    img1: Tensor,
    img2: Tensor,
    padding: Literal["same", "valid"] = "same",
    train: bool = True,
    *,
    mask: Tensor | None = None,
    return_map: Literal[False] = False,
) -> Tensor: ...


@overload
def fused_ssim(
    img1: Tensor,
    img2: Tensor,
    padding: Literal["same", "valid"] = "same",
    train: bool = True,
    *,
    mask: Tensor | None = None,
    return_map: Shown,
) -> tuple[Tensor, Tensor]: ...


@not_scriptable
def fused_ssim(
    img1: Tensor,
    img2: Tensor,
    padding: Literal["same", "valid"] = "same",
    train: bool = True,
    *,
    mask: Tensor | None = None,
    return_map: ReturnMap = False,
) -> Any:
    """Mean SSIM of images in [0, 1], window 11, sigma 1.5: ``ssim(preset="fused-ssim")``.

    Unlike fused-ssim, this function runs on any device, gives both images a gradient, in any
    floating dtype, and takes an 8-bit photograph, a mask, and returns the map with the value.

    Args:
        img1: images (N, C, H, W); float16, bfloat16, float32 or float64; or uint8, which has the
            range [0, 255] and no gradient.
        img2: images of the same shape and device; dtypes as in :func:`ssimfast.ssim`.
        padding: "same" pads with zeros; "valid" uses only windows that lie inside the image.
        train: False to compute no gradient.
        mask, return_map: as in :func:`ssimfast.ssim`.

    Returns:
        A scalar in [-1, 1], float32 (float64 for float64). With ``return_map``, the pair (SSIM,
        map).

    Raises:
        TypeError, ValueError: as in :func:`ssimfast.ssim`.
    """
    choice("padding", padding, ("same", "valid"))
    if isinstance(img1, Tensor) and img1.dim() != 4:  # `ssim` would take a volume
        checked_images(img1, img2)
    with torch.set_grad_enabled(flag("train", train) and torch.is_grad_enabled()):
        return ssim(
            img1, img2, padding=padding, preset="fused-ssim", mask=mask, return_map=return_map
        )
