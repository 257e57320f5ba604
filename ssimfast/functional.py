"""The public functions: what they accept, the constants of the statistic, the reductions."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ssimfast import ops

MAX_WINDOW_SIZE = 33
# Of arguments that are numbers: squares and quotients of them stay within float32.
_LARGEST = 1e15
_PADDINGS = ("valid", "same")
_REDUCTIONS = ("mean", "sum", "batch", "none")


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    value_range: tuple[float, float] | None = None,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "valid",
    reduction: str = "mean",
) -> Tensor:
    r"""Structural similarity of two batches of images, with a Gaussian window.

    SSIM of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility
    to structural similarity", IEEE TIP 13(4), 2004, equation 13, with population variances, for
    each channel by itself:

    .. math:: \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}
                   {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
              \quad C_i = (k_i L)^2

    where :math:`L` is the width of the value range. Values lie in [-1, 1]; 1 means equal.
    Differentiable once, by ``x`` and by ``y``.

    Args:
        x: images (N, C, H, W); float16, bfloat16, float32 or float64, any strides.
        y: images of the same shape, dtype and device.
        value_range: (low, high), the values that mean black and white: ``(-1, 1)`` for the
            output of tanh. The images are mapped to [0, 1] inside the kernel, which matters
            because SSIM is not invariant under a common offset. Values outside are allowed, and
            nothing checks that the range is the images' own.
        data_range: short for ``value_range=(0, data_range)``.
        window_size: side of the Gaussian window in pixels, odd, 1 to 33.
        sigma: standard deviation of the Gaussian in pixels, > 0.
        k1: constant of the luminance term, >= 0. With 0, black images give NaN.
        k2: constant of the contrast term, >= 0. With 0, flat images give NaN.
        padding: "valid" takes only windows that lie inside the image, as Wang et al. do;
            "same" pads with black (``low``) and gives a statistic for every pixel.
        reduction: "mean" and "sum" over everything, "batch" the mean of each image, "none" the
            map.

    Returns:
        float64 for float64 images, else float32 (half types lose nothing in the sums). Shape ()
        for "mean" and "sum", (N,) for "batch", (N, C, H', W') for "none", where H' and W' are
        ``H - window_size + 1`` and ``W - window_size + 1`` for "valid", H and W for "same". Two
        empty batches do not differ: their means are 1.

    Raises:
        TypeError: an argument has the wrong type, or the images have an integer dtype.
        ValueError: shapes, devices or dtypes differ, or a value is not admissible.
    """
    statistic = Statistic.of(
        value_range=value_range,
        data_range=data_range,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        padding=padding,
        reduction=reduction,
    )
    return statistic(x, y)


@dataclass(frozen=True)
class Statistic:
    """A validated choice of arguments of :func:`ssim`, in the terms of the ops."""

    window: list[float]
    c1: float
    c2: float
    low: float
    scale: float
    padding: str
    reduction: str

    @classmethod
    def of(
        cls,
        *,
        value_range: tuple[float, float] | None,
        data_range: float,
        window_size: int,
        sigma: float,
        k1: float,
        k2: float,
        padding: str,
        reduction: str,
    ) -> "Statistic":
        low, high = _value_range(value_range, data_range)
        window = gaussian_window(window_size, sigma)
        c1 = _number("k1", k1, least=0.0) ** 2
        c2 = _number("k2", k2, least=0.0) ** 2
        _check_choice("padding", padding, _PADDINGS)
        _check_choice("reduction", reduction, _REDUCTIONS)
        return cls(
            window=window,
            c1=c1,
            c2=c2,
            low=low,
            scale=1 / (high - low),
            padding=padding,
            reduction=reduction,
        )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.reduced(x, y, self.reduction)

    def reduced(self, x: Tensor, y: Tensor, reduction: str) -> Tensor:
        _check_images(x, y, len(self.window), self.padding)
        settings = (self.window, self.c1, self.c2, self.low, self.scale, self.padding == "same")
        if reduction == "none":
            return ops.ssim_map(x, y, *settings)
        per_image = reduction == "batch"
        if x.numel() == 0 and reduction != "sum":  # nothing differs from nothing
            dims = (1, 2, 3) if per_image else (0, 1, 2, 3)
            return (x.sum(dims) + y.sum(dims)).to(torch.promote_types(x.dtype, torch.float32)) + 1
        count = 1
        if reduction != "sum":
            count = self.positions(x) // (x.shape[0] if per_image else 1)
        return ops.ssim_reduced(x, y, *settings, count, per_image)

    def positions(self, x: Tensor) -> int:
        """The number of values in the map of images like ``x``."""
        lost = len(self.window) - 1 if self.padding == "valid" else 0
        batch, channels, height, width = x.shape
        return batch * channels * (height - lost) * (width - lost)


def gaussian_window(window_size: int, sigma: float) -> list[float]:
    """The ``window_size`` taps of a Gaussian of ``sigma`` pixels, normalised to sum to 1."""
    if isinstance(window_size, bool) or not isinstance(window_size, Integral):
        raise TypeError(f"window_size must be an int, got {window_size!r}")
    if not 1 <= window_size <= MAX_WINDOW_SIZE or window_size % 2 == 0:
        raise ValueError(
            f"window_size must be odd and between 1 and {MAX_WINDOW_SIZE}, got {window_size}"
        )
    sigma = _number("sigma", sigma)
    if sigma <= 0:
        raise ValueError(f"sigma must be greater than 0, got {sigma}")
    halo = int(window_size) // 2
    # The quotient first: the square of a tiny sigma would underflow.
    taps = [math.exp(-((i / sigma) ** 2) / 2) for i in range(-halo, halo + 1)]
    total = math.fsum(taps)
    return [tap / total for tap in taps]


def _number(name: str, value: float, least: float = -_LARGEST) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value <= _LARGEST:
        raise ValueError(f"{name} must be between {least:g} and {_LARGEST:g}, got {value}")
    # As a key it becomes a constant for torch.compile(dynamic=True), which else traces it as a
    # symbol and fails on the window's arithmetic.
    (value,) = {value: None}
    return float(value)


def _value_range(value_range: tuple[float, float] | None, data_range: float) -> tuple[float, float]:
    if value_range is None:
        high = _number("data_range", data_range)
        if high < 1 / _LARGEST:
            raise ValueError(f"data_range must be at least {1 / _LARGEST:g}, got {data_range}")
        return 0.0, high
    if data_range != 1.0:
        raise ValueError(
            f"give value_range or data_range, not both: got {value_range!r} and {data_range!r}"
        )
    if not isinstance(value_range, (tuple, list)) or len(value_range) != 2:
        raise TypeError(f"value_range must be a pair (low, high), got {value_range!r}")
    low, high = (_number("value_range", bound) for bound in value_range)
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range!r}")
    if high - low < 1 / _LARGEST:
        raise ValueError(f"value_range must be at least {1 / _LARGEST:g} wide, got {value_range!r}")
    return low, high


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_images(x: Tensor, y: Tensor, window_size: int, padding: str) -> None:
    for name, image in (("x", x), ("y", y)):
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(image).__name__}")
        if image.dim() != 4:
            hint = f"; a single image is {name}[None]" if image.dim() == 3 else ""
            raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(image.shape)}{hint}")
        if image.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64, got {image.dtype}; "
                "convert it, for example with .float(), and give its range as value_range"
            )
    if x.shape != y.shape:
        raise ValueError(
            f"x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.dtype != y.dtype:
        raise ValueError(
            f"x and y must have the same dtype, got {x.dtype} and {y.dtype}; convert one, for "
            "example with .float() where autocast made it half"
        )
    if x.device != y.device:
        raise ValueError(f"x and y must be on the same device, got {x.device} and {y.device}")
    if padding == "valid" and min(x.shape[-2:]) < window_size:
        raise ValueError(
            f"x is {x.shape[-2]} x {x.shape[-1]} pixels, smaller than window_size {window_size}; "
            'use a smaller window or padding="same"'
        )
