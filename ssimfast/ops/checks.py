"""Preconditions of the ops, for backends in Python. csrc/ops.cpp has the same for compiled kernels.

The public functions check a user's arguments first, with better messages. These checks protect
direct calls of the ops from reading invalid memory and from returning meaningless results.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssimfast.backends import constants
from ssimfast.backends.constants import value_dtype, widest_dtype
from ssimfast.ops.multiscale import pooled_shape
from ssimfast.ops.schemas import Levels, Loss, Statistic

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _error(message: str) -> RuntimeError:
    return RuntimeError(f"ssimfast: {message}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _tensor(
    name: str, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor
) -> None:
    """Checks the shape, dtype and device of a tensor, unless it is None. ``like`` is on the right
    device."""
    if tensor is None:
        return
    if tensor.shape != tuple(shape) or tensor.dtype != dtype or tensor.device != like.device:
        wanted = f"{tuple(shape)} {dtype} on {like.device}"
        raise _error(f"{name} must be {wanted}, got {_kind(tensor)}")


def _length(name: str, numbers: Sequence[float], length: int) -> None:
    if len(numbers) != length:
        raise _error(f"{name} must be {length} numbers, got {len(numbers)}")


def _within(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise _error(f"{name} must be {least} to {most}, got {number}")


def _positive(name: str, count: int) -> None:
    if count < 1:
        raise _error(f"{name} must be positive, got {count}")


def _pair(x: Tensor, y: Tensor, statistic: Statistic, ranks: tuple[int, ...]) -> None:
    if x.dim() not in ranks:
        raise _error(f"images must have {' or '.join(map(str, ranks))} dimensions, got {x.dim()}")
    if x.dtype not in _FLOATING and x.dtype != torch.uint8:
        raise _error(f"images must be floating point or uint8, got {x.dtype}")
    if x.shape != y.shape or x.device != y.device or y.dtype not in _dtypes_beside(x):
        raise _error(f"x and y differ: {_kind(x)}, {_kind(y)}")
    _window(statistic, x.dim() - 2)
    _window_fits(x.shape, statistic)


def _dtypes_beside(x: Tensor) -> tuple[torch.dtype, ...]:
    """Dtypes that ``y`` may have."""
    return (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.uint8)


def _window(statistic: Statistic, axes: int) -> None:
    sizes, most = statistic.sizes, constants.MAX_WINDOW_SIZE
    if len(sizes) not in (1, axes) or sum(sizes) != len(statistic.window):
        raise _error(f"sizes must divide the {len(statistic.window)} taps, got {sizes}")
    if any(not 1 <= size <= most or size % 2 == 0 for size in sizes):
        raise _error(f"windows must have 1, 3, ... {most} taps, got {sizes}")
    if any(taps != taps[::-1] for taps in statistic.windows(axes)):
        raise _error("window must be symmetric")


def _window_fits(shape: Sequence[int], statistic: Statistic) -> None:
    if min(statistic.map_sizes(shape[2:])) < (0 if statistic.same else 1):
        raise _error(f"image {tuple(shape[2:])} is smaller than the window of {statistic.sizes}")


def _one_window(statistic: Statistic) -> None:
    if len(statistic.sizes) > 1:
        raise _error(f"there must be one window for all axes, got {statistic.sizes}")


def _gradients(gradients: int, x: Tensor, y: Tensor, least: int = 0) -> None:
    _within("gradients", gradients, least, 2)
    if torch.uint8 in [image.dtype for image in (x, y)[:gradients]]:
        raise _error("8-bit images have no gradient")


def _pixel_counts(
    rows: Tensor | None, columns: Tensor | None, x: Tensor, blurred_l1: bool | float
) -> None:
    if (rows is None) != (columns is None) or (blurred_l1 and rows is None):
        raise _error("the blurred L1 needs both rows and columns")
    _tensor("rows", rows, x.shape[2:3], value_dtype(x.dtype), x)
    _tensor("columns", columns, x.shape[3:], value_dtype(x.dtype), x)


def _pooling(pooling: int, least: int = 0) -> None:
    _within("pooling", pooling, least, max(constants.POOLINGS.values()))


def _maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool
) -> None:
    _pair(x, y, statistic, (4, 5))
    _tensor("mask", mask, x.shape, value_dtype(x.dtype), x)
    if components and (mask is not None or x.dim() != 4):
        raise _error("components are those of images without a mask")


def _maps_grad(
    upstream: list[Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    statistic: Statistic,
    gradients: int,
) -> None:
    _within("the number of upstream gradients", len(upstream), 1, 2)
    _maps(x, y, mask, statistic, len(upstream) == 2)
    _gradients(gradients, x, y, least=1)
    shape = (*x.shape[:2], *statistic.map_sizes(x.shape[2:]))
    for by_map in upstream:
        _tensor("the gradient of the map", by_map, shape, value_dtype(x.dtype), x)


def _sweep(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    mask_factors: Tensor | None,
    statistic: Statistic,
    loss: Loss,
    kept: int,
    gradients: int,
    wanted: int,
    count: int,
    grad_count: int,
    plane_weights: Tensor | None,
    pooling: int,
    map_term: int,
    **_: Any,
) -> None:
    weights, rows, columns = loss.weights, loss.rows, loss.columns
    _pair(x, y, statistic, (4, 5))
    _length("weights", weights, constants.TERMS)
    _within("wanted", wanted, 0, 2**constants.TERMS - 1)
    _positive("count", count)
    _positive("grad_count", grad_count)
    _within("kept", kept, 0, 2)
    _gradients(gradients, x, y)
    _pooling(pooling)
    _within("map_term", map_term, -1, constants.CONTRAST_STRUCTURE)
    if (mask is None) != (mask_factors is None):
        raise _error("mask and mask_factors come in pairs")
    _tensor("mask", mask, x.shape, value_dtype(x.dtype), x)
    _tensor("mask_factors", mask_factors, (*x.shape[:kept], 2), widest_dtype(x), x)
    if mask is not None and (pooling or plane_weights is not None):
        raise _error("masked images have no plane_weights and are not pooled")
    if x.dim() == 5 or len(statistic.sizes) > 1:
        others = wanted >> 1 or any(weights[1:]) or pooling or plane_weights is not None
        if others or rows is not None or columns is not None:
            raise _error("volumes and images with several windows have SSIM only")
        return
    _tensor("plane_weights", plane_weights, (*x.shape[:2], 2), value_dtype(x.dtype), x)
    term = constants.BLURRED_L1
    _pixel_counts(rows, columns, x, weights[term] or wanted >> term)


def _sweep_levels(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    kept: int,
    gradients: int,
) -> None:
    _within("the number of exponents", len(levels.exponents), 1, constants.MAX_LEVELS)
    _pooling(levels.pooling, least=1)
    _within("negative", levels.negative, 0, 1)
    _length("weights", loss.weights, constants.TERMS)
    _within("kept", kept, 0, 2)
    _gradients(gradients, x, y)
    _pair(x, y, statistic, (4,))
    _one_window(statistic)
    _pixel_counts(loss.rows, loss.columns, x, loss.weights[constants.BLURRED_L1])
    shape: Sequence[int] = x.shape
    for level in range(len(levels.exponents)):
        if 0 in shape:
            raise _error(f"level {level} is empty: {tuple(shape)}")
        _window_fits(shape, statistic)
        shape = pooled_shape(shape, levels.pooling)


def _combine_levels(
    terms: list[Tensor],
    positions: list[int],
    exponents: list[float],
    negative: int,
    weights: list[float],
    kept: int,
    **_: Any,
) -> None:
    levels = len(terms)
    _within("the number of terms", levels, 1, constants.MAX_LEVELS)
    _length("exponents", exponents, levels)
    _length("positions", positions, levels)
    _within("negative", negative, 0, 2)
    _length("weights", weights, constants.TERMS)
    _within("kept", kept, 0, 2)
    _positive("positions", min(positions))
    first = terms[0]
    if first.dim() != 3:
        raise _error(f"terms must be (N, C, {constants.TERMS}), got {_kind(first)}")
    for term in terms:
        _tensor("terms", term, (*first.shape[:2], constants.TERMS), widest_dtype(first), first)


def _upstream(grad: Tensor, upstream: Tensor, ranks: tuple[int, ...]) -> None:
    """Checks a gradient and the upstream gradient: of one value, or one per image or plane."""
    if grad.dim() not in ranks:
        raise _error(
            f"the gradient must have {' or '.join(map(str, ranks))} dimensions, got {grad.dim()}"
        )
    if grad.dtype not in _FLOATING:
        raise _error(f"the gradient must be floating point, got {grad.dtype}")
    if upstream.dim() > 2:
        raise _error(f"the upstream gradient does not fit the value, got {_kind(upstream)}")
    shape = grad.shape[: upstream.dim()]
    _tensor("the upstream gradient", upstream, shape, value_dtype(grad.dtype), grad)


def _scale(grad: Tensor, upstream: Tensor, count: int, **_: Any) -> None:
    _upstream(grad, upstream, (4, 5))
    _positive("count", count)


def _collapse(
    finest: Tensor,
    coarser: list[Tensor],
    slopes: Tensor,
    upstream: Tensor,
    pooling: int,
    x: Tensor | None,
    y: Tensor | None,
    pixel_weights: list[float],
    rows: Tensor | None,
    columns: Tensor | None,
    **_: Any,
) -> None:
    levels = 1 + len(coarser)
    _within("the number of gradients", levels, 1, constants.MAX_LEVELS)
    _pooling(pooling)
    _upstream(finest, upstream, (4,))
    _tensor("slopes", slopes, (*finest.shape[:2], levels), widest_dtype(finest), finest)
    _length("pixel_weights", pixel_weights, constants.TERMS - constants.L1)
    if (x is None) != (y is None):
        raise _error("x and y come in pairs")
    if x is None and any(pixel_weights):
        raise _error("pixel_weights need x and y")
    _tensor("x", x, finest.shape, finest.dtype, finest)
    is_fit = y is not None and y.dtype in _dtypes_beside(finest)
    _tensor("y", y, finest.shape, y.dtype if y is not None and is_fit else finest.dtype, finest)
    _pixel_counts(rows, columns, finest, pixel_weights[-1])
    shape: Sequence[int] = finest.shape
    for level, grad in enumerate(coarser, start=1):
        shape = pooled_shape(shape, pooling)
        _tensor(f"the gradient of level {level}", grad, shape, value_dtype(finest.dtype), finest)


CHECKS: dict[str, Callable[..., None]] = {
    "maps": _maps,
    "maps_grad": _maps_grad,
    "sweep": _sweep,
    "sweep_levels": _sweep_levels,
    "combine_levels": _combine_levels,
    "scale_": _scale,
    "collapse_": _collapse,
}


def checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the implementation of an op: checks the arguments before the call."""
    check = CHECKS[name]

    def call(**given: Any) -> Any:
        check(**given)
        return function(**given)

    return call
