"""Guards: they watch the losses of a run for the ways in which CycleGANs go wrong."""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cyclegan.errors import UserError

PATIENCE = 10  # looks in a row before a warning
DEAD_LOSS = 1e-3  # of a discriminator that tells every fake from every real image
INVERTED = -0.1  # correlation of luminance


class Diverged(UserError):
    """A loss or a weight is not finite any more."""


def check_finite(first_step: int, rows: Sequence[Sequence[float]], terms: Sequence[str]) -> None:
    """Raises `Diverged`, which names the first loss that is not finite.

    Args:
        rows: the losses of each step, from `first_step` on.
        terms: the names of the losses.
    """
    for step, row in enumerate(rows, first_step):
        for term, value in zip(terms, row, strict=True):
            if not math.isfinite(value):
                raise Diverged(f"training diverged: the loss {term} is {value} at step {step}")


class Watch:
    """Warns of a discriminator whose loss stays at zero, and of a generator whose output is dark
    where its input is bright; once, and again if that had ended."""

    def __init__(self):
        self.counts: dict[str, int] = {}

    def look(
        self, step: int, losses: Mapping[str, float], correlations: Mapping[str, float]
    ) -> None:
        """At the mean losses, and the correlations of luminance, since the last look."""
        for term, loss in losses.items():
            if term.startswith("discriminator"):
                self._count(
                    term,
                    loss < DEAD_LOSS,
                    f"{term} has had a loss below {DEAD_LOSS:g} up to step {step}: it tells all "
                    "fakes, and its generator learns nothing from it. A smaller learning_rate or "
                    "discriminator_width, or another gan_loss, may help",
                )
        for generator, correlation in correlations.items():
            self._count(
                generator,
                correlation < INVERTED,
                f"{generator} makes dark what is bright (correlation of luminance "
                f"{correlation:.2f} up to step {step}): colours are inverted. Another seed, or a "
                "larger lambda_identity, may help",
            )

    def _count(self, what: str, holds: bool, message: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1 if holds else 0
        if self.counts[what] == PATIENCE:
            warnings.warn(message, stacklevel=3)


def luminance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of the luminance of two batches of images (N, C, H, W), the mean over
    images: a scalar on their device. A flat image has 0. Luminance is the mean over channels, but
    for the weighted sum of ITU-R BT.601 where there are three."""
    channels = x.shape[1]
    weights = [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels
    weights = torch.tensor(weights, device=x.device)[:, None, None]
    a, b = (
        luma - luma.mean((1, 2), keepdim=True)
        for luma in ((image.float() * weights).sum(1) for image in (x, y))
    )
    deviations = (a.square().mean((1, 2)) * b.square().mean((1, 2))).sqrt()
    return ((a * b).mean((1, 2)) / deviations.clamp_min(1e-6)).mean()
