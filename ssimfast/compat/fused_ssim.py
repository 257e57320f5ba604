"""Drop-in replacement for fused-ssim (https://github.com/rahul-goel/fused-ssim), on any device."""

from typing import Literal

import torch
from torch import Tensor

from ssimfast.arguments import choice, flag, not_scriptable
from ssimfast.functional import ssim


@not_scriptable
def fused_ssim(
    img1: Tensor, img2: Tensor, padding: Literal["same", "valid"] = "same", train: bool = True
) -> Tensor:
    """Mean SSIM of images in [0, 1], window 11, sigma 1.5: ``ssim(preset="fused-ssim")``.

    Unlike fused-ssim, this function runs on any device and gives both images a gradient, in any
    floating dtype.

    Args:
        img1: images (N, C, H, W); float16, bfloat16, float32 or float64; or uint8, which has the
            range [0, 255] and no gradient.
        img2: images of the same shape, dtype and device.
        padding: "same" pads with zeros; "valid" uses only windows that lie inside the image.
        train: False to compute no gradient.

    Returns:
        A scalar in [-1, 1], float32 (float64 for float64).

    Raises:
        TypeError, ValueError: as in :func:`ssimfast.ssim`.
    """
    choice("padding", padding, ("same", "valid"))
    with torch.set_grad_enabled(flag("train", train) and torch.is_grad_enabled()):
        return ssim(img1, img2, padding=padding, preset="fused-ssim")
