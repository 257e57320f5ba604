"""MS-SSIM as a loop of sweeps over the pyramid levels.

Serves backends in Python and, on every backend, two options that only this loop has: a reflected
border at the coarsest level, and errors for negative means.
"""

from collections.abc import Callable, Sequence
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
from ssimfast.ops.reflection import differentiable_reflected, folded
from ssimfast.ops.schemas import Levels, Loss, Statistic


def wanted_bits(weights: list[float]) -> int:
    """The argument ``wanted`` of ``sweep`` for the terms with a nonzero weight."""
    return sum(1 << term for term, weight in enumerate(weights) if weight != 0)


def only(term: int, weight: float = 1.0) -> list[float]:
    """The argument ``weights`` of ``sweep`` for one term."""
    return [weight if term == other else 0.0 for other in range(TERMS)]


def pooled_shape(shape: Sequence[int], pooling: int) -> tuple[int, ...]:
    """Shape of the images of the next pyramid level."""
    up = 0 if pooling == POOLINGS["floor"] else 1
    return *shape[:2], *((size + up) // 2 for size in shape[2:])


def new_pooled(x: Tensor, pooling: int) -> Tensor:
    """Uninitialised images of the next pyramid level."""
    return x.new_empty(pooled_shape(x.shape, pooling), dtype=value_dtype(x.dtype))


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
    """The op ``sweep_levels``, built from the ops ``sweep`` and ``combine_levels``.

    ``reflect`` gives the images of the coarsest level a reflected border.
    """
    weights, coarsest = loss.weights, len(levels.exponents) - 1
    # If the loss has both SSIM and MS-SSIM, the gradient of the finest level needs two weights per
    # plane. They are known only after all levels are combined, so that level is swept again.
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
        halo = statistic.sizes[0] // 2 if level == coarsest and reflect else 0
        dtype = images[0].dtype
        if halo:
            first, second = images
            images = differentiable_reflected(first, halo), differentiable_reflected(second, halo)
        on_level = statistic if finest else statistic._replace(low=0.0, scale=1.0)
        positions.append(on_level.positions(images[0].shape, kept=2))
        _, term, by_images, pooled, _ = sweep(
            x=images[0],
            y=images[1],
            mask=None,
            mask_factors=None,
            statistic=on_level,
            loss=loss._replace(weights=only(mean), constant=0.0) if finest else Loss(only(mean)),
            kept=2,
            gradients=0 if finest and twice else gradients,
            wanted=wanted,
            count=positions[level],
            grad_scale=1.0,
            grad_count=1,
            plane_weights=None,
            pooling=POOLINGS["none"] if level == coarsest else levels.pooling,
            map_term=-1,
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
            x=x,
            y=y,
            mask=None,
            mask_factors=None,
            statistic=statistic,
            loss=Loss([0.0] * TERMS),
            kept=0,
            gradients=gradients,
            wanted=0,
            count=1,
            grad_scale=1.0,
            grad_count=1,
            plane_weights=plane_weights.to(value_dtype(x.dtype)),
            pooling=POOLINGS["none"],
            map_term=-1,
        )[2]
        grads = [*by_images, *grads]
    return value.to(value_dtype(x.dtype)), means, slopes, grads


def _weights_of_finest(slopes: Tensor, by_ssim: float, positions: int) -> tuple[Tensor, Tensor]:
    """``plane_weights`` (N, C, 2) for the second sweep of the finest level, and the new slopes.

    The weights are those of SSIM and contrast-structure, divided by the largest of them if that
    is above 1: float16 gradients could not hold more. The new slopes of the finest level take over
    that factor and 1 / positions. ``by_ssim`` is the weight of SSIM in the loss; ``positions`` is
    the number of positions that contribute to one value.
    """
    by_mean = slopes[..., 0] * positions
    largest = by_mean.abs().clamp(min=max(1.0, abs(by_ssim)))
    if slopes.shape[-1] == 1:
        weights = torch.stack((by_mean + by_ssim, torch.zeros_like(by_mean)), -1)
    else:
        weights = torch.stack((torch.full_like(by_mean, by_ssim), by_mean), -1)
    finest = largest[..., None]
    return weights / finest, torch.cat((finest / positions, slopes[..., 1:]), -1)
