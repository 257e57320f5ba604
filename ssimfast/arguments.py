"""Checks of the public arguments. Each error names the argument and prints the value it got."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ssimfast.backends.constants import MAX_WINDOW_SIZE
from ssimfast.ops.transforms import has_tangent
from ssimfast.typing import Padding, Window

# Largest accepted magnitude. Squares and quotients of such numbers are finite in float32.
_LARGEST = 1e15
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


def choice(name: str, value: _Choice, choices: Sequence[_Choice]) -> _Choice:
    if not isinstance(value, (str, NoneType)) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def value_range_of(
    value_range: tuple[float, float] | None, data_range: float | None
) -> tuple[float, float] | None:
    """Returns (low, high), the values of black and white; None if neither argument is given."""
    if value_range is None:
        if data_range is None:
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
    """Checks a pair of images and returns it in one dtype.

    Under autocast two floating dtypes are allowed, because the output of a layer is then half and
    the target is not; both images are converted to the wider dtype.
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
            hint = {3: f"; a single image is {name}[None]", 5: "; only ssim takes volumes"}
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
    if x.dtype != y.dtype and x.is_floating_point() and y.is_floating_point():
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            wider = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(wider), y.to(wider)
    if x.dtype != y.dtype:
        raise ValueError(
            f"x and y must have the same dtype, got {x.dtype} and {y.dtype}; convert one, for "
            "example with .float() where autocast made it half (uint8 has another range)"
        )
    if x.device != y.device:
        raise ValueError(f"x and y must be on the same device, got {x.device} and {y.device}")
    return x, y


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


def check_size(x: Tensor, window_size: int, padding: Padding) -> None:
    least = {"valid": window_size, "same": 0, "reflect": window_size // 2 + 1}[padding]
    if min(x.shape[2:]) < least:
        size = " x ".join(str(size) for size in x.shape[2:])
        reason = "" if padding == "valid" else ' allows with padding="reflect"'
        raise ValueError(
            f"x is {size} pixels, smaller than window_size {window_size}{reason}; "
            f'use a smaller window or padding="same"{hint_of_layout(x, least)}'
        )


def hint_of_layout(x: Tensor, least: int) -> str:
    """Advice for images that seem too small because their channels come last; else empty."""
    if x.dim() == 4 and 1 <= x.shape[3] <= 4 and min(x.shape[1:3]) >= least:
        return ", or x.permute(0, 3, 1, 2) if x is (N, H, W, C)"
    return ""


def mask_like(mask: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Checks the mask and returns it in ``dtype``, expanded to the shape of ``x``."""
    _check_kind("mask", mask)
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        hint = "" if mask.dtype.is_complex else "; `mask > 0` makes it bool"
        raise TypeError(f"mask must be bool or floating point, got {mask.dtype}{hint}")
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
    return mask.to(dtype).expand(x.shape)


def _broadcastable(mask: Tensor, x: Tensor) -> bool:
    return mask.dim() <= x.dim() and all(
        size in (1, wanted)
        for size, wanted in zip(reversed(mask.shape), reversed(x.shape), strict=False)
    )
