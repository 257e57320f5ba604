"""Checks of the public arguments. Each error names the argument and prints the value it got."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ssimfast.backends.constants import CONTRAST_STRUCTURE, MAX_WINDOW_SIZE, SSIM
from ssimfast.ops.transforms import has_tangent, in_func_transform
from ssimfast.typing import Padding, ReturnMap, Window

# Largest accepted magnitude. Squares and quotients of such numbers are finite in float32.
_LARGEST = 1e15
_LEAST_WEIGHT = 1e-30  # smaller weights of a mask count as 0
_Choice = TypeVar("_Choice", bound=str | None)
_Called = TypeVar("_Called", bound=Callable[..., Any])
_WINDOWS = get_args(Window)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)


def number(name: str, value: float, least: float = -_LARGEST) -> float:
    """Checks a number that becomes a constant of a compiled graph: a new value recompiles it."""
    value = variable(name, value, least)
    # torch.compile cannot trace the arithmetic of the window with a symbol. It treats the keys of
    # dicts as constants, so this line turns a symbol into a constant.
    (value,) = {value: None}
    return value


def variable(name: str, value: float, least: float = -_LARGEST) -> float:
    """Checks a number that torch.compile may trace as a symbol: a new value needs no new graph."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value <= _LARGEST:
        raise ValueError(f"{name} must be between {least:g} and {_LARGEST:g}, got {value}")
    return float(value)


def has_symbols(*numbers: float) -> bool:
    """True if torch.compile traces one of the numbers as a symbol."""
    return torch.compiler.is_compiling() and not all(map(has_static_value, numbers))


def flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def map_term_of(return_map: ReturnMap) -> int:
    """The argument ``map_term`` of the op ``sweep``."""
    if isinstance(return_map, bool):
        return SSIM if return_map else -1
    names = ("ssim", "contrast_structure")
    if not isinstance(return_map, str) or return_map not in names:
        raise ValueError(
            f"return_map must be True, False or one of {', '.join(names)}, got {return_map!r}"
        )
    return (SSIM, CONTRAST_STRUCTURE)[names.index(return_map)]


def choice(name: str, value: _Choice, choices: Sequence[_Choice]) -> _Choice:
    if not isinstance(value, (str, NoneType)) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def value_range_of(
    value_range: tuple[float, float] | None, data_range: float | Tensor | None
) -> tuple[float, float] | None:
    """Returns (low, high), the values of black and white; None if neither argument is given, or if
    ``data_range`` is a tensor, which is only checked."""
    if value_range is None:
        if data_range is None:
            return None
        if isinstance(data_range, Tensor):
            _check_range(data_range)
            return None
        high = variable("data_range", data_range)
        if high < 1 / _LARGEST:
            raise ValueError(f"data_range must be at least {1 / _LARGEST:g}, got {data_range}")
        return 0.0, high
    if data_range is not None:
        raise ValueError(
            f"give value_range or data_range, not both: got {value_range!r} and {data_range!r}"
        )
    if not isinstance(value_range, (tuple, list)) or len(value_range) != 2:
        raise TypeError(f"value_range must be a pair (low, high), got {value_range!r}")
    low, high = (variable("value_range", bound) for bound in value_range)
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range!r}")
    if high - low < 1 / _LARGEST:
        raise ValueError(f"value_range must be at least {1 / _LARGEST:g} wide, got {value_range!r}")
    return low, high


def _check_range(data_range: Tensor) -> None:
    """Checks a tensor of one number, or of one for each image."""
    if data_range.dim() > 1 or data_range.dtype == torch.bool or data_range.is_complex():
        raise ValueError(
            "data_range must be a number, or a tensor of shape () or (N,), got "
            f"{tuple(data_range.shape)} {data_range.dtype}"
        )
    if is_readable(data_range):
        if not ((data_range >= 1 / _LARGEST) & (data_range <= _LARGEST)).all():
            raise ValueError(
                f"data_range must be between {1 / _LARGEST:g} and {_LARGEST:g}, got "
                f"{data_range.tolist()}"
            )


def is_readable(tensor: Tensor) -> bool:
    """True if the numbers of a tensor can be checked without waiting for a device."""
    if torch.compiler.is_compiling() or in_func_transform():
        return False
    return tensor.is_cpu and type(tensor) is Tensor


def windows_of(
    window: Window, window_size: int | Sequence[int], sigma: float | Sequence[float]
) -> list[list[float]]:
    """Checks the arguments of the window. Returns the taps of its separable filter along each
    axis that they name."""
    sizes: list[Any] = [*window_size] if isinstance(window_size, (tuple, list)) else [window_size]
    sigmas: list[Any] = [*sigma] if isinstance(sigma, (tuple, list)) else [sigma]
    axes = max(len(sizes), len(sigmas))
    if not 1 <= axes <= 3 or not {len(sizes), len(sigmas)} <= {1, axes}:
        raise ValueError(
            "window_size and sigma must be single numbers, or one for each spatial axis, got "
            f"{window_size!r} and {sigma!r}"
        )
    sizes, sigmas = sizes * (axes // len(sizes)), sigmas * (axes // len(sigmas))
    return [taps_of(window, size, s) for size, s in zip(sizes, sigmas, strict=True)]


def taps_of(window: Window, window_size: int, sigma: float) -> list[float]:
    """Checks the arguments of the window and returns the taps of its separable filter."""
    choice("window", window, _WINDOWS)
    if isinstance(window_size, bool) or not isinstance(window_size, Integral):
        raise TypeError(f"window_size must be an int, got {window_size!r}")
    if not 1 <= window_size <= MAX_WINDOW_SIZE or window_size % 2 == 0:
        raise ValueError(
            f"window_size must be odd and between 1 and {MAX_WINDOW_SIZE}, got {window_size}"
        )
    sigma = number("sigma", sigma)
    if sigma <= 0:
        raise ValueError(f"sigma must be greater than 0, got {sigma}")
    return taps(window, int(window_size) // 2, sigma)


def taps(window: Window, radius: int, sigma: float) -> list[float]:
    return gaussian_taps(radius, sigma) if window == "gaussian" else uniform_taps(radius)


def gaussian_taps(radius: int, sigma: float) -> list[float]:
    """Taps of a Gaussian of ``sigma`` pixels at ``-radius .. radius``, normalised to sum 1."""
    # Divides before it squares: the square of a tiny sigma would underflow.
    values = [math.exp(-(i / sigma) * (i / sigma) / 2) for i in range(-radius, radius + 1)]
    total = math.fsum(values)
    return [value / total for value in values]


def uniform_taps(radius: int) -> list[float]:
    return [1 / (2 * radius + 1)] * (2 * radius + 1)


def not_scriptable(called: _Called) -> _Called:
    """Makes torch.jit.script raise an error for a function or module class, with advice."""
    called.__prepare_scriptable__ = _refuse_scripting  # type: ignore[attr-defined]
    return called


def _refuse_scripting(*_: Any) -> NoReturn:
    raise RuntimeError(
        "torch.jit.script cannot compile ssimfast; use torch.export.export or torch.compile"
    )


_jit: Any = torch.jit  # Any, because its functions have no type annotations
_SHAPES = {4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


def checked_images(x: Tensor, y: Tensor, ranks: tuple[int, ...] = (4,)) -> tuple[Tensor, Tensor]:
    """Checks a pair of images. Returns it in one dtype, as torch promotes two floating dtypes, or
    as a floating image and an 8-bit one, in this order: SSIM is symmetric.
    """
    if _jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace, which torch.onnx.export(dynamo=False) calls, would record the size "
            "of the images as a constant of ssimfast; use torch.export.export or torch.compile"
        )
    for name, image in (("x", x), ("y", y)):
        if type(image) is not Tensor or image.layout is not torch.strided or image.is_nested:
            _check_kind(name, image)
        if image.dim() not in ranks:
            wanted = " or ".join(_SHAPES[rank] for rank in ranks)
            hint = {
                3: f"; a single image is {name}[None]",
                5: f"; only ssim takes volumes; give video (N, T, C, H, W) as {name}.flatten(0, 1)",
            }
            raise ValueError(
                f"{name} must have shape {wanted}, got {tuple(image.shape)}"
                + hint.get(image.dim(), "")
            )
        if image.dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32, float64 or uint8, got {image.dtype}; "
                "convert it, for example with .float(), and give its range as value_range"
            )
    if x.shape != y.shape:
        raise ValueError(
            f"x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise ValueError(f"x and y must be on the same device, got {x.device} and {y.device}")
    if x.dtype == y.dtype or y.dtype == torch.uint8:
        return x, y
    if x.dtype == torch.uint8:
        return y, x
    wider = torch.promote_types(x.dtype, y.dtype)
    return x.to(wider), y.to(wider)


def _check_kind(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless the tensor is dense, strided and held by one process."""
    if not isinstance(tensor, Tensor):
        hint = ""
        if isinstance(tensor, torch.fx.Proxy):
            hint = (
                " of torch.fx.symbolic_trace, which cannot record ssimfast; use "
                "torch.export.export, or a Tracer that keeps modules of ssimfast as leaves"
            )
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}{hint}")
    if tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one; give each image alone")
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise TypeError(
            f"{name} must be a dense tensor, got layout {layout}; {name}.to_dense() converts it"
        )
    if type(tensor) is not Tensor and hasattr(tensor, "full_tensor"):
        raise TypeError(
            f"{name} must be the tensor of one process, got a {type(tensor).__name__}; give "
            f"{name}.full_tensor(), or {name}.to_local() where only the batch is sharded"
        )


def check_axes(x: Tensor, count: int) -> None:
    """Checks the number of axes that window_size and sigma name; 1 stands for all."""
    axes = x.dim() - 2
    if count not in (1, axes):
        raise ValueError(
            f"window_size and sigma must be one number or {axes} for {_SHAPES[x.dim()]}, got "
            f"{count}"
        )


def check_size(x: Tensor, window_sizes: list[int], padding: Padding) -> None:
    axes = x.dim() - 2
    each = window_sizes * axes if len(window_sizes) == 1 else window_sizes
    leasts = [{"valid": n, "same": 0, "reflect": n // 2 + 1}[padding] for n in each]
    if any(size < least for size, least in zip(x.shape[2:], leasts, strict=True)):
        least = max(leasts)
        window_size = window_sizes[0] if len(window_sizes) == 1 else tuple(window_sizes)
        size = " x ".join(str(size) for size in x.shape[2:])
        reason = "" if padding == "valid" else ' allows with padding="reflect"'
        raise ValueError(
            f"x is {size} pixels, smaller than window_size {window_size}{reason}; "
            f'use a smaller window or padding="same"{hint_of_layout(x, least)}'
            + ("" if axes == 2 else "; give video (N, T, C, H, W) as x.flatten(0, 1)")
        )


def hint_of_layout(x: Tensor, least: int) -> str:
    """Advice for images that seem too small because their channels come last; else empty."""
    if x.dim() == 4 and 1 <= x.shape[3] <= 4 and min(x.shape[1:3]) >= least:
        return ", or x.permute(0, 3, 1, 2) if x is (N, H, W, C)"
    return ""


def mask_like(mask: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Checks the mask and returns its weights in ``dtype``. They have as many dimensions as ``x``,
    of the same size or of size 1."""
    _check_kind("mask", mask)
    is_bytes = mask.dtype == torch.uint8
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point and not is_bytes:
        hint = "" if mask.dtype.is_complex else "; `mask > 0` makes it bool"
        raise TypeError(f"mask must be bool, uint8 or floating point, got {mask.dtype}{hint}")
    if mask.requires_grad or has_tangent(mask):
        what = "requires_grad=True" if mask.requires_grad else "a dual tensor"
        raise ValueError(f"mask is not differentiated: give mask.detach(), got {what}")
    if mask.device != x.device:
        raise ValueError(f"mask must be on the device of x, got {mask.device} and {x.device}")
    if not _broadcastable(mask, x):
        of_each = mask.dim() == x.dim() - 1 and _broadcastable(mask[:, None], x)
        hint = "; mask[:, None] is one mask for each image" if of_each else ""
        raise ValueError(
            f"mask must be broadcastable to the shape of x, got {tuple(mask.shape)} and "
            f"{tuple(x.shape)}{hint}"
        )
    if mask.dtype.is_floating_point and mask.numel() > 0 and is_readable(mask):
        least, most = mask.min().item(), mask.max().item()
        if not (least >= 0 and most <= 1):  # NaN, too
            raise ValueError(f"mask must lie in [0, 1], got {least:g} to {most:g}")
    weights = mask.to(dtype) / 255 if is_bytes else mask.to(dtype)
    if mask.dtype.is_floating_point:  # sums of smaller weights have no reciprocal in float32
        weights = torch.nn.functional.threshold(weights, _LEAST_WEIGHT, 0.0)
    return weights[(None,) * (x.dim() - mask.dim())]


def _broadcastable(mask: Tensor, x: Tensor) -> bool:
    return mask.dim() <= x.dim() and all(
        size in (1, wanted)
        for size, wanted in zip(reversed(mask.shape), reversed(x.shape), strict=False)
    )
