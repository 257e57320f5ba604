"""Preconditions of the ops, for the backends in Python. csrc/tensor.h and csrc/request.h have the
same for compiled kernels.

The public functions say more about a user's mistake, and sooner. These checks keep a direct call
of an op from reading memory that is not there, and from a result that means nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssimfast import reference
from ssimfast.arguments import MAX_WINDOW_SIZE

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _error(message: str) -> RuntimeError:
    return RuntimeError(f"ssimfast: {message}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _tensor(
    name: str, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor
) -> None:
    """A tensor of one shape and dtype, beside ``like``; or one that was not given."""
    if tensor is None:
        return
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != like.device:
        wanted = f"{tuple(shape)} {dtype} on {like.device}"
        raise _error(f"{name} must be {wanted}, got {_kind(tensor)}")


def _length(name: str, numbers: Sequence[float], length: int) -> None:
    if len(numbers) != length:
        raise _error(f"{name} must be {length} numbers, got {len(numbers)}")


def _within(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise _error(f"{name} must be {least} to {most}, got {number}")


def _count(count: int) -> None:
    """The divisor of a sum must be positive."""
    if count < 1:
        raise _error(f"count must be positive, got {count}")


def _gradients(gradients: int, x: Tensor, least: int = 0) -> None:
    _within("gradients", gradients, least, 2)
    if gradients > 0 and x.dtype == torch.uint8:
        raise _error("8-bit images have no gradient")


def _images(x: Tensor, y: Tensor, settings: Sequence[Any], dims: tuple[int, ...] = (4,)) -> None:
    window, *_, same = settings
    if x.dim() not in dims:
        raise _error(f"images must have {' or '.join(map(str, dims))} dimensions, got {x.dim()}")
    if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
        raise _error(f"x and y differ: {_kind(x)}, {_kind(y)}")
    if x.dtype not in _FLOATING and x.dtype != torch.uint8:
        raise _error(f"images must be floating point or uint8, got {x.dtype}")
    size = len(window)
    if size % 2 == 0 or size > MAX_WINDOW_SIZE:
        raise _error(f"window must have 1, 3, ... {MAX_WINDOW_SIZE} taps, got {size}")
    if window[: size // 2] != window[: size // 2 : -1]:
        raise _error("window must be symmetric")
    if not same and min(x.shape[2:]) < size:
        raise _error(f"image {tuple(x.shape[2:])} is smaller than the window of {size}")


def _map_grad(upstreams: Sequence[Tensor], x: Tensor, y: Tensor, *request: Any) -> None:
    *settings, gradients = request
    _images(x, y, settings)
    _upstream_maps(upstreams, x, settings, gradients)


def _upstream_maps(
    upstreams: Sequence[Tensor], x: Tensor, settings: Sequence[Any], gradients: int
) -> None:
    _gradients(gradients, x, least=1)
    lost = 0 if settings[-1] else len(settings[0]) - 1
    shape = (*x.shape[:2], *(size - lost for size in x.shape[2:]))
    for upstream in upstreams:
        _tensor("the gradient of the map", upstream, shape, reference.result_dtype(x.dtype), x)


def _nd_map(x: Tensor, y: Tensor, mask: Tensor | None, *settings: Any) -> None:
    _images(x, y, settings, (4, 5))
    _tensor("mask", mask, x.shape, reference.result_dtype(x.dtype), x)


def _nd_map_grad(
    upstream: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, *request: Any
) -> None:
    *settings, gradients = request
    _nd_map(x, y, mask, *settings)
    _upstream_maps([upstream], x, settings, gradients)


def _nd_mean(x: Tensor, y: Tensor, *request: Any) -> None:
    *settings, count, kept, gradients = request
    _images(x, y, settings, (4, 5))
    _count(count)
    _within("kept", kept, 0, 2)
    _gradients(gradients, x)


def _pixel_counts(
    rows: Tensor | None, columns: Tensor | None, x: Tensor, blurred_l1: bool | float
) -> None:
    if (rows is None) != (columns is None) or (blurred_l1 and rows is None):
        raise _error("the blurred L1 needs both rows and columns")
    dtype = reference.result_dtype(x.dtype)
    _tensor("rows", rows, x.shape[2:3], dtype, x)
    _tensor("columns", columns, x.shape[3:], dtype, x)


def _similarity(x: Tensor, y: Tensor, *request: Any) -> None:
    *settings, wanted, weights, _, plane_weights, rows, columns = request[:-5]
    count, kept, gradients, pooling, _ = request[-5:]
    _images(x, y, settings)
    _within("wanted", wanted, 0, 2**reference.TERMS - 1)
    _length("weights", weights, reference.TERMS)
    dtype = reference.result_dtype(x.dtype)
    _tensor("plane_weights", plane_weights, (*x.shape[:2], 2), dtype, x)
    term = reference.BLURRED_L1
    _pixel_counts(rows, columns, x, weights[term] or wanted >> term)
    _count(count)
    _within("kept", kept, 0, 2)
    _gradients(gradients, x)
    _within("pooling", pooling, 0, max(reference.POOLINGS.values()))


def _sweep_scales(x: Tensor, y: Tensor, *request: Any) -> None:
    settings = request[:6]
    scale_weights, pooling, _, _, weights, _, rows, columns, kept, gradients, _ = request[6:]
    _within("scales", len(scale_weights), 1, reference.MOST_SCALES)
    _within("pooling", pooling, 1, max(reference.POOLINGS.values()))
    _length("weights", weights, reference.TERMS)
    _within("kept", kept, 0, 2)
    _gradients(gradients, x)
    _images(x, y, settings)
    _pixel_counts(rows, columns, x, weights[reference.BLURRED_L1])
    sizes: Sequence[int] = x.shape
    for scale in range(len(scale_weights)):
        if 0 in sizes:
            raise _error(f"scale {scale} is empty: {tuple(sizes)}")
        sizes = _pooled(sizes, pooling)


def _pooled(sizes: Sequence[int], pooling: int) -> tuple[int, ...]:
    up = 0 if pooling == reference.POOLINGS["floor"] else 1
    return *sizes[:2], *((size + up) // 2 for size in sizes[2:])


def _scale_grad(grad: Tensor, upstream: Tensor, scale: float, count: int) -> None:
    _upstream(grad, upstream)
    _count(count)


def _upstream(grad: Tensor, upstream: Tensor) -> None:
    """The gradient of a result for all planes, for each image or for each plane."""
    if grad.dim() != 4:
        raise _error(f"the gradient must have 4 dimensions, got {grad.dim()}")
    if grad.dtype not in _FLOATING:
        raise _error(f"the gradient must be floating point, got {grad.dtype}")
    if upstream.dim() > 2:
        raise _error(f"the upstream gradient does not fit the result, got {_kind(upstream)}")
    shape = grad.shape[: upstream.dim()]
    _tensor("the upstream gradient", upstream, shape, reference.result_dtype(grad.dtype), grad)


def _collapse(grads: Sequence[Tensor], slopes: Tensor, upstream: Tensor, *request: Any) -> None:
    _, pooling, x, y, pixel_weights, rows, columns = request
    _within("the number of gradients", len(grads), 1, reference.MOST_SCALES)
    _within("pooling", pooling, 0, max(reference.POOLINGS.values()))
    finest = grads[0]
    _upstream(finest, upstream)
    shape = (*finest.shape[:2], len(grads))
    _tensor("slopes", slopes, shape, reference.widest_dtype(finest), finest)
    _length("pixel_weights", pixel_weights, reference.TERMS - reference.L1)
    if (x is None) != (y is None):
        raise _error("x and y come in pairs")
    if x is None and any(pixel_weights):
        raise _error("pixel_weights need x and y")
    _tensor("x", x, finest.shape, finest.dtype, finest)
    _tensor("y", y, finest.shape, finest.dtype, finest)
    _pixel_counts(rows, columns, finest, pixel_weights[-1])
    sizes: Sequence[int] = finest.shape
    for scale, grad in enumerate(grads[1:], start=1):
        sizes = _pooled(sizes, pooling)
        dtype = reference.result_dtype(finest.dtype)
        _tensor(f"the gradient of scale {scale}", grad, sizes, dtype, finest)


def _combine_scales(terms: Sequence[Tensor], scale_weights: Sequence[float], *request: Any) -> None:
    *_, weights, _, kept, positions = request
    scales = len(terms)
    _within("the number of terms", scales, 1, reference.MOST_SCALES)
    _length("scale_weights", scale_weights, scales)
    _length("positions", positions, scales)
    _length("weights", weights, reference.TERMS)
    _within("kept", kept, 0, 2)
    if min(positions) < 1:
        raise _error(f"positions must be positive, got {min(positions)}")
    first = terms[0]
    if first.dim() != 3:
        raise _error(f"terms must be (N, C, {reference.TERMS}), got {_kind(first)}")
    shape = (*first.shape[:2], reference.TERMS)
    for of_scale in terms:
        _tensor("terms", of_scale, shape, reference.widest_dtype(first), first)


CHECKS: dict[str, Callable[..., None]] = {
    "ssim_map": lambda x, y, *settings: _images(x, y, settings),
    "ssim_map_grad": lambda upstream, *rest: _map_grad([upstream], *rest),
    "ssim_nd_map": _nd_map,
    "ssim_nd_map_grad": _nd_map_grad,
    "ssim_nd_mean": _nd_mean,
    "components_map": lambda x, y, *settings: _images(x, y, settings),
    "components_map_grad": lambda by_l, by_cs, *rest: _map_grad([by_l, by_cs], *rest),
    "similarity": _similarity,
    "scale_grad": _scale_grad,
    "scale_grad_": _scale_grad,
    "combine_scales": _combine_scales,
    "combine_scales_or_raise": _combine_scales,
    "sweep_scales": _sweep_scales,
    "collapse": _collapse,
    "collapse_": lambda finest, coarser, *rest: _collapse([finest, *coarser], *rest),
}


def checked(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """The op of that name, which refuses what would break it."""
    check = CHECKS[name]

    def call(*arguments: Any) -> Any:
        check(*arguments)
        return op(*arguments)

    return call
