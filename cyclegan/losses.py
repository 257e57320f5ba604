"""Losses on images in [-1, 1] and on the scores of the discriminators."""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.errors import UserError
from cyclegan.features import Features, contextual_loss, perceptual_loss
from ssimfast import SimilarityLoss

# The squared error of the article is a sum over 128 x 128 pixels of three channels.
_ARTICLE_L2 = 5e-5 * 3 * 128 * 128

# Factors of the terms of ssimfast.similarity_loss, which are means over images mapped to [0, 1].
# The L1 of Zhu et al. 2017 is one of images in [-1, 1]. docs/losses.md says where each comes from.
MIXTURES: dict[str, dict[str, float]] = {
    "paper_l1": {"l1": 2.0},
    "l1": {"l1": 1.0},
    "l2": {"l2": 1.0},
    "ssim": {"ssim": 1.0},
    "ms_ssim": {"ms_ssim": 1.0},
    "mix": {"ms_ssim": 0.84, "gaussian_l1": 0.16},
    "ssim_l1": {"ssim": 0.84, "gaussian_l1": 0.16},
    "ssim_l2_a": {"ssim": 1.0, "l2": _ARTICLE_L2},
    "ssim_l2_b": {"ssim": 0.84, "l2": 0.16 / 2},
    "l1_l2": {"l1": 1.0, "l2": 1.0},
    "ssim_l1l2_a": {"ssim": 0.84, "gaussian_l1": 0.16, "l2": _ARTICLE_L2},
    "ssim_l1l2_b": {"ssim": 0.84, "gaussian_l1": 0.16 * 2 / 3, "l2": 0.16 / 2 / 3},
}
# Losses on the features of two images in one layer. Several layers are averaged.
FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "perceptual": perceptual_loss,
    "contextual": contextual_loss,
}
CYCLE_LOSSES = (*MIXTURES, *FEATURE_LOSSES)
PRESETS = ("normalised", "tandon")

_LARGEST_WEIGHT = 1e6
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*\s*)?(\w+)\s*")
_PLUS = re.compile(r"(?<![0-9.]e)\+")  # not that of an exponent


def parse_cycle_loss(text: str, preset: str = "normalised") -> dict[str, float]:
    """Names and weights in a sum such as "ssim" or "0.84*ssim + 0.16*paper_l1".

    Raises:
        UserError: not such a sum, a name that the preset does not have, a weight that is none
            or above 1e6.
    """
    if preset not in PRESETS:
        raise UserError(f"loss_preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    known = CYCLE_LOSSES
    if preset == "tandon":
        from cyclegan.tandon import LOSSES as known
    weights: dict[str, float] = {}
    for part in _PLUS.split(text):
        match = _TERM.fullmatch(part)
        if match is None or match[2] not in known:
            raise UserError(
                f"cycle_loss must be one of {', '.join(known)}, or a sum like "
                f"0.84*ssim+0.16*{known[0]}; got {text!r}"
            )
        weights[match[2]] = weights.get(match[2], 0.0) + float(match[1] or 1)
    if not any(weights.values()):
        raise UserError(f"cycle_loss must have a weight that is not 0; got {text!r}")
    if max(weights.values()) > _LARGEST_WEIGHT:
        raise UserError(f"cycle_loss must have weights up to {_LARGEST_WEIGHT:g}; got {text!r}")
    return weights


class CycleLoss(nn.Module):
    """A weighted sum of the named losses: terms of SSIM, L1 and L2 in one pass of ssimfast, two if
    blurred L1 is asked for both beside SSIM and beside MS-SSIM."""

    def __init__(self, weights: dict[str, float], features: Features | None = None):
        super().__init__()
        self.features = features
        self.weights = {name: weights[name] for name in weights if name in FEATURE_LOSSES}
        mixtures = [
            {term: weight * factor for term, factor in MIXTURES[name].items()}
            for name, weight in weights.items()
            if name in MIXTURES
        ]
        several = _sum(m for m in mixtures if "ms_ssim" in m)
        single = _sum(m for m in mixtures if "ms_ssim" not in m)
        # Beside MS-SSIM, the Gaussian of a blurred L1 is that of the coarsest scale.
        if several and "gaussian_l1" not in single:
            several, single = _sum([several, single]), {}
        self.mixtures = nn.ModuleList()
        for factors, scales in ((single, {}), (several, {"weights": "auto"})):
            if any(factors.values()):
                factors = {"ssim": 0.0, **factors}
                self.mixtures.append(SimilarityLoss(value_range=(-1, 1), **factors, **scales))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions and images, (N, channels, H, W) in [-1, 1], to a scalar."""
        losses = [mixture(x, y) for mixture in self.mixtures]
        if self.features is not None:
            pairs = list(zip(self.features(x), self.features(y), strict=True))
            for name, weight in self.weights.items():
                layers = [FEATURE_LOSSES[name](ours, theirs) for ours, theirs in pairs]
                losses.append(weight * torch.stack(layers).mean())
        return torch.stack(losses).sum()


def _sum(mixtures: Iterable[dict[str, float]]) -> dict[str, float]:
    factors: dict[str, float] = {}
    for mixture in mixtures:
        for term, factor in mixture.items():
            factors[term] = factors.get(term, 0.0) + factor
    return factors


def make_cycle_loss(
    text: str,
    preset: str = "normalised",
    network: str = "vgg19",
    layers: Iterable[str] = ("conv3_2", "conv4_2"),
    weights_file: str = "",
) -> nn.Module:
    """The loss module(x, y) of a sum of names: (N, channels, H, W) twice -> scalar.

    Args:
        text: see `parse_cycle_loss`.
        preset: "normalised": means, of images mapped to [0, 1]. "tandon": `cyclegan.tandon`.
        network, layers, weights_file: see `Features`; of "perceptual" and "contextual".
    """
    weights = parse_cycle_loss(text, preset)
    if preset == "tandon":
        from cyclegan.tandon import TandonLoss

        return TandonLoss(weights)
    needs_features = any(name in FEATURE_LOSSES for name in weights)
    features = Features(network, layers, weights_file) if needs_features else None
    return CycleLoss(weights, features)


def lsgan_loss(scores: Tensor, real: bool) -> Tensor:
    """Mean squared distance of the scores from 1 (real) or 0 (fake) (Mao et al. 2017)."""
    return (scores - float(real)).square().mean()


def vanilla_loss(scores: Tensor, real: bool) -> Tensor:
    """Cross entropy of the scores as logits; the generators' is the non-saturating one
    (Goodfellow et al. 2014)."""
    return F.softplus(-scores if real else scores).mean()


def hinge_loss(scores: Tensor, real: bool) -> Tensor:
    """How far real scores are below 1, and fake ones above -1 (Lim and Ye 2017)."""
    return F.relu(1 - scores if real else 1 + scores).mean()


# Losses of scores (N, 1, h, w), given whether they should say "real".
GAN_LOSSES: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "lsgan": lsgan_loss,
    "vanilla": vanilla_loss,
    "hinge": hinge_loss,
}


def generator_loss(name: str, scores: Tensor) -> Tensor:
    """The adversarial loss of a generator, from the scores of its fakes."""
    return -scores.mean() if name == "hinge" else GAN_LOSSES[name](scores, True)


def discriminator_loss(name: str, scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """The loss of both kinds, halved so that the discriminators learn more slowly."""
    return (GAN_LOSSES[name](scores_real, True) + GAN_LOSSES[name](scores_fake, False)) / 2
