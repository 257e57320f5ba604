"""Weights of pixels: their sums, and the factors that make weighted sums means."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssimfast.backends import reference
from ssimfast.backends.constants import POOLINGS, widest_dtype
from ssimfast.ops.schemas import Statistic

# All functions take the result of `arguments.mask_like`: weights with as many dimensions as the
# images, of the same size or of size 1.


def mask_factors(weights: Tensor, shape: Sequence[int], statistic: Statistic, kept: int) -> Tensor:
    """The argument ``mask_factors`` of the op ``sweep``, for images of this shape."""
    parts = (weights_at_positions(weights, shape, statistic), weights)
    shapes = ((*shape[:2], *statistic.map_sizes(shape[2:])), tuple(shape))
    totals = [total(part, size, kept) for part, size in zip(parts, shapes, strict=True)]
    counts = [_product(size[kept:]) for size in shapes]
    factors = [count / of_all for count, of_all in zip(counts, totals, strict=True)]
    sums = torch.stack(totals, -1)
    return torch.stack(factors, -1).where(sums > 0, 0).contiguous()


def weights_at_positions(weights: Tensor, shape: Sequence[int], statistic: Statistic) -> Tensor:
    """The weights of the pixels at which windows are centred."""
    for dim, margin in enumerate(statistic.margins(len(shape) - 2), start=2):
        if weights.shape[dim] == shape[dim]:
            weights = weights.narrow(dim, margin, shape[dim] - 2 * margin)
    return weights


def total(weights: Tensor, shape: Sequence[int], kept: int) -> Tensor:
    """Sum of weights that are expanded to ``shape``, over all but the first ``kept`` dimensions, in
    the widest dtype of the device."""
    dims = tuple(range(kept, len(shape)))
    copies = _product([shape[dim] for dim in dims if weights.shape[dim] == 1])
    # Rows in the dtype of the weights, because torch converts a large tensor slowly. Contiguous, so
    # that strides do not change the order of the sum.
    of_rows = weights.contiguous().sum(-1, keepdim=True)
    seen = of_rows.sum(dims, dtype=widest_dtype(weights)) * copies
    return seen.expand(tuple(shape[:kept]))


def _product(sizes: Sequence[int]) -> int:
    product = 1  # math.prod breaks the graph of symbolic sizes
    for size in sizes:
        product = product * size
    return product


def weighted_pool(
    images: Sequence[Tensor], weights: Tensor, pooling: int
) -> tuple[list[Tensor], Tensor]:
    """Weighted means of 2 x 2 pixels of images in unit range, and the means of their weights.

    Hidden pixels may have any value. A black row or column that is added has weight 1, so that
    images whose weights are all 1 are pooled as without a mask.
    """
    height, width = images[0].shape[-2:]
    weights = weights.expand(*weights.shape[:-2], height, width)
    padded = weights
    if pooling == POOLINGS["pad"]:
        padded = torch.nn.functional.pad(weights, (width % 2, 0, height % 2, 0), value=1.0)
    pooled_weights = reference.pool(padded, pooling)
    seen = weights > 0
    divisor = torch.where(pooled_weights > 0, pooled_weights, 1)
    pooled = [reference.pool(image.where(seen, 0) * weights, pooling) / divisor for image in images]
    return pooled, pooled_weights
