"""The function of fused-ssim (https://github.com/rahul-goel/fused-ssim), on every device."""

from typing import Literal

import torch
from torch import Tensor

from ssimfast.arguments import choice, flag, not_scriptable
from ssimfast.functional import ssim


@not_scriptable
def fused_ssim(
    img1: Tensor, img2: Tensor, padding: Literal["same", "valid"] = "same", train: bool = True
) -> Tensor:
    """The mean SSIM of images in [0, 1], window 11, sigma 1.5: ``ssim(preset="fused-ssim")``.

    Unlike there, both images get their gradient, of any floating-point dtype and on any device.

    Args:
        img1: images (N, C, H, W); float16, bfloat16, float32 or float64; or uint8, of which
            white is 255 and which have no gradient.
        img2: images of the same shape, dtype and device.
        padding: "same" pads with zeros; "valid" takes only windows that lie inside.
        train: False computes no gradient.

    Returns:
        A scalar in [-1, 1], float32 (float64 for float64).

    Raises:
        TypeError, ValueError: as :func:`ssimfast.ssim`.
    """
    choice("padding", padding, ("same", "valid"))
    with torch.set_grad_enabled(flag("train", train) and torch.is_grad_enabled()):
        return ssim(img1, img2, padding=padding, preset="fused-ssim")
