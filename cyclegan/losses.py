"""Losses on images in [-1, 1] and on the scores of the discriminators."""

from collections.abc import Callable

from torch import Tensor, nn

from cyclegan.errors import UserError
from ssimfast import MixLoss, MSSSIMLoss, SSIMLoss

CYCLE_LOSSES: dict[str, Callable[[], nn.Module]] = {
    "l1": nn.L1Loss,
    "ssim": lambda: SSIMLoss(value_range=(-1, 1)),
    # As many scales as the images have room for.
    "ms_ssim": lambda: MSSSIMLoss(value_range=(-1, 1), weights="auto"),
    "mix": lambda: MixLoss(value_range=(-1, 1), weights="auto"),
}


def make_cycle_loss(name: str) -> nn.Module:
    """The loss module(x, y) of that name: (N, 3, H, W) twice -> scalar, 0 where x equals y."""
    if name not in CYCLE_LOSSES:
        raise UserError(f"cycle_loss must be one of {', '.join(CYCLE_LOSSES)}; got {name!r}")
    return CYCLE_LOSSES[name]()


def lsgan_loss(scores: Tensor, target: float) -> Tensor:
    """Mean squared distance of the scores from 1 (real) or 0 (fake) (Mao et al. 2017)."""
    return (scores - target).square().mean()
