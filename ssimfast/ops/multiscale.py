"""MS-SSIM as a loop over the sweeps of its pyramid levels, for backends that have no op for all of
them, and for what only this loop can do: a reflected border at the coarsest level, errors for
negative means."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssimfast.backends.constants import (
    CONTRAST_STRUCTURE,
    MS_SSIM,
    POOLINGS,
    SSIM,
    TERMS,
    value_dtype,
)
from ssimfast.ops.reflection import folded, reflected
from ssimfast.ops.schemas import Levels, Loss, Statistic


def wanted_bits(weights: list[float]) -> int:
    """``wanted`` for the terms that have a weight."""
    return sum(1 << term for term, weight in enumerate(weights) if weight != 0)


def only(term: int) -> list[float]:
    """``weights`` for one term."""
    return [float(term == other) for other in range(TERMS)]


def sweep_levels(
    sweep: Callable[..., Any],
    combine_levels: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    kept: int,
    gradients: int,
    reflect: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The op ``sweep_levels``, made of two other ops.

    ``reflect`` gives the images of the coarsest level a reflected border.
    """
    weights, coarsest = loss.weights, len(levels.exponents) - 1
    # With SSIM beside MS-SSIM, the gradient of the finest level needs two weights a plane, which
    # are known after all levels are combined: then it is swept again.
    twice = gradients > 0 and weights[SSIM] != 0
    images = x, y
    terms: list[Tensor] = []
    grads: list[Tensor] = []
    positions: list[int] = []
    for level in range(coarsest + 1):
        finest = level == 0
        mean = SSIM if level == coarsest else CONTRAST_STRUCTURE
        wanted = 1 << mean
        if finest:
            wanted |= wanted_bits(weights) & ~(1 << MS_SSIM)
        halo = len(statistic.window) // 2 if level == coarsest and reflect else 0
        dtype = images[0].dtype
        if halo:
            images = reflected(images[0], halo), reflected(images[1], halo)
        on_level = statistic if finest else statistic._replace(low=0.0, scale=1.0)
        positions.append(on_level.positions(images[0].shape, kept=2))
        _, term, by_images, pooled = sweep(
            *images,
            on_level,
            loss._replace(weights=only(mean), constant=0.0) if finest else Loss(only(mean)),
            kept=2,
            gradients=0 if finest and twice else gradients,
            wanted=wanted,
            count=positions[level],
            grad_scale=1.0,
            grad_count=1,
            plane_weights=None,
            pooling=POOLINGS["none"] if level == coarsest else levels.pooling,
        )
        if halo:
            by_images = [folded(grad, halo).to(dtype) for grad in by_images]
        terms.append(term)
        grads += by_images
        images = tuple(pooled)
    value, means, slopes = combine_levels(
        terms,
        positions=positions,
        exponents=levels.exponents,
        negative=levels.negative,
        joint=levels.joint,
        weights=weights,
        constant=loss.constant,
        kept=kept,
    )
    if twice:
        each = statistic.positions(x.shape, kept)
        plane_weights, slopes = _weights_of_finest(slopes, weights[SSIM], each)
        by_images = sweep(
            x,
            y,
            statistic,
            Loss([0.0] * TERMS),
            kept=0,
            gradients=gradients,
            wanted=0,
            count=1,
            grad_scale=1.0,
            grad_count=1,
            plane_weights=plane_weights.to(value_dtype(x.dtype)),
            pooling=POOLINGS["none"],
        )[2]
        grads = [*by_images, *grads]
    return value.to(value_dtype(x.dtype)), means, slopes, grads


def _weights_of_finest(slopes: Tensor, by_ssim: float, positions: int) -> tuple[Tensor, Tensor]:
    """The weights (N, C, 2) of SSIM and contrast-structure in the gradient of the finest level,
    and the slopes that belong to that gradient. ``positions``: windows that one value sees.

    The weights are at most 1, so that the gradient fits float16.
    """
    finest = slopes[..., 0] * positions
    if slopes.shape[-1] == 1:
        plane_weights = torch.stack((finest + by_ssim, torch.zeros_like(finest)), -1)
    else:
        plane_weights = torch.stack((torch.full_like(finest, by_ssim), finest), -1)
    largest = max(1.0, abs(by_ssim))
    first = torch.full_like(slopes[..., :1], largest / positions)
    return plane_weights / largest, torch.cat((first, slopes[..., 1:]), -1)
