"""The losses of Tandon's article as its code computes them (github.com/Tandon-A/CycleGAN_ssim,
cycleGAN_loss.py), for comparisons with published figures."""

import torch
from torch import Tensor, nn

from ssimfast import ssim

LOSSES = (
    *("l1", "l2", "ssim", "ssim_l1", "ssim_l2_a", "ssim_l2_b"),
    *("l1_l2", "ssim_l1l2_a", "ssim_l1l2_b"),
)


class TandonLoss(nn.Module):
    """A weighted sum of the article's losses, oddities included.

    SSIM is that of the first image of the batch alone, with the constants of a range of 1 on images
    in [-1, 1]; some terms are sums over everything, others means; the Gaussian that weighs L1 and
    L2 has a sigma of 0.5 and stands once, in the middle of the image: it sees nine pixels.
    """

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.weights = dict(weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions and images, (N, C, H, W) in [-1, 1], to a scalar."""
        return sum(weight * self._named(name, x, y) for name, weight in self.weights.items())

    def _named(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        d = x - y
        if name == "l1":
            return d.abs().mean()
        if name == "l2":
            return d.square().sum()
        if name == "l1_l2":
            return d.abs().sum() + d.square().sum()
        distance = 1 - ssim(x[:1], y[:1], value_range=(0, 1))
        in_the_middle = _centre_window(d) / (d.shape[0] * d.shape[1])
        w1, w2 = (in_the_middle * d.abs()).sum(), (in_the_middle * d.square()).sum()
        return {
            "ssim": distance,
            "ssim_l1": 0.84 * distance + 0.16 * w1,
            "ssim_l2_a": distance + 5e-5 * d.square().sum(),
            "ssim_l2_b": 0.84 * distance + 0.16 * w2 / 2,
            "ssim_l1l2_a": 0.84 * distance + 0.16 * w1 + 5e-5 * d.square().sum(),
            "ssim_l1l2_b": 0.84 * distance + 2 / 3 * 0.16 * w1 + 1 / 3 * 0.16 * w2 / 2,
        }[name]


def _centre_window(image: Tensor, sigma: float = 0.5) -> Tensor:
    """A Gaussian over (H, W) that sums to 1, around pixel (H // 2, W // 2)."""
    axes = [
        torch.arange(size, dtype=image.dtype, device=image.device) - size // 2
        for size in image.shape[-2:]
    ]
    rows, columns = (torch.exp(-axis.square() / (2 * sigma**2)) for axis in axes)
    window = rows[:, None] * columns
    return window / window.sum()
