"""Measures: validated arguments, translated for the ops; callable with a pair of images.

Fields are the arguments of the public functions, which document them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from ssimfast.arguments import (
    check_size,
    checked_images,
    choice,
    flag,
    has_symbols,
    hint_of_layout,
    mask_like,
    number,
    taps,
    taps_of,
    value_range_of,
    variable,
)
from ssimfast.backends import constants
from ssimfast.backends.constants import value_dtype, widest_dtype
from ssimfast.ops import autograd
from ssimfast.ops.multiscale import only
from ssimfast.ops.reflection import differentiable_reflected
from ssimfast.ops.schemas import Levels, Loss, Statistic
from ssimfast.ops.transforms import in_func_transform
from ssimfast.typing import (
    Channels,
    LossPadding,
    LossReduction,
    Negative,
    Odd,
    Padding,
    Reduction,
    Weights,
    Window,
)

WANG_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_KEPT = {"mean": 0, "batch": 1}
_REDUCTIONS, _ODDS = get_args(Reduction), get_args(Odd)
_NEGATIVES, _CHANNELS = get_args(Negative), get_args(Channels)
# Pixel weights along an axis in the blurred L1, by the size of the axis, the taps of the blur,
# device and dtype. All calls share them, because a copy to the device waits for the device and
# cannot be captured in a CUDA graph.
_COUNTS: dict[tuple[int, tuple[float, ...], torch.device, torch.dtype], Tensor] = {}
_MOST_COUNTS = 1 << 14


class SSIMComponents(NamedTuple):
    """Two maps (N, C, H', W'), float32 or float64, whose product is the SSIM map."""

    luminance: Tensor
    contrast_structure: Tensor


@dataclass(kw_only=True)
class Windowed:
    """Arguments that all measures share: value range, window, constants, padding."""

    value_range: tuple[float, float] | None = None
    data_range: float | None = None
    window: Window = "gaussian"
    window_size: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    sample_covariance: bool = False
    padding: Padding = "valid"

    _PADDINGS: ClassVar[tuple[str, ...]] = get_args(Padding)

    def __post_init__(self) -> None:
        self._range = value_range_of(self.value_range, self.data_range)
        self._range_varies = has_symbols(*self._range or ())
        self._taps = taps_of(self.window, self.window_size, self.sigma)
        self._c1 = number("k1", self.k1, least=0.0) ** 2
        self._c2 = number("k2", self.k2, least=0.0) ** 2
        flag("sample_covariance", self.sample_covariance)
        if self.sample_covariance and len(self._taps) == 1:
            raise ValueError("sample_covariance needs a window_size of at least 3, got 1")
        choice("padding", self.padding, self._PADDINGS)

    def prepared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Statistic]:
        """The images and the statistic, as the ops take them."""
        c2 = self._c2
        if self.sample_covariance:
            # Dividing C2 by n / (n - 1) has the same effect as multiplying variances and covariance
            # by it, because the quotient of contrast-structure has no other summands.
            n = len(self._taps) ** (x.dim() - 2)
            c2 = c2 * (n - 1) / n
        low, high = self._range or (0.0, 255.0 if x.dtype == torch.uint8 else 1.0)
        scale = 1 / (high - low)
        if self._range_varies:  # the ops need a constant range: maps symbolic ones here
            dtype = value_dtype(x.dtype)
            x, y = ((image.to(dtype) - low) * scale for image in (x, y))
            low, scale = 0.0, 1.0
        same = self.padding == "same"
        return x, y, Statistic(self._taps, [len(self._taps)], self._c1, c2, low, scale, same)

    def use_taps(self, taps: list[float]) -> None:
        """Replaces the separable window by an odd number of taps >= 0, symmetric, with sum 1."""
        self._taps = taps

    def _reflected(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        halo = len(self._taps) // 2
        return differentiable_reflected(x, halo), differentiable_reflected(y, halo)


@dataclass(kw_only=True)
class SSIMMeasure(Windowed):
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("reduction", self.reduction, _REDUCTIONS)

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.reduced(x, y, mask, self.reduction)

    def loss(self, x: Tensor, y: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
        """``1 - SSIM``."""
        fused = mask is None and reduction != "none" and isinstance(x, Tensor)
        if fused and x.numel() > 0:
            return self.reduced(x, y, None, reduction, factor=-1.0, constant=1.0)
        return 1 - self.reduced(x, y, mask, reduction)

    def reduced(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        reduction: Reduction,
        factor: float = 1.0,
        constant: float = 0.0,
    ) -> Tensor:
        """SSIM after the reduction. Sums and means without a mask are multiplied by ``factor`` and
        ``constant`` is added; masks, maps and means of empty images ignore both."""
        x, y = checked_images(x, y, ranks=(4, 5))
        check_size(x, len(self._taps), self.padding)
        x, y, statistic = self.prepared(x, y)
        kept = _KEPT.get(reduction, 0)
        if mask is not None:
            mask = self._checked_mask(mask, x)
            (values,) = autograd.maps(x, y, mask, statistic)
            if reduction == "none":
                return values
            at_centres = self._at_centres(mask)
            total, seen = _sum(values * at_centres, kept), _sum(at_centres, kept)
            if reduction == "sum":
                return total.to(values.dtype)
            nothing = (seen == 0).to(seen.dtype)  # 1 where all weights are 0: SSIM is 1 there
            return ((total + nothing) / (seen + nothing)).to(values.dtype)
        if x.numel() == 0 and reduction not in ("sum", "none"):
            return _constant(x, y, kept, 1.0)
        if self.padding == "reflect":
            x, y = self._reflected(x, y)
        if reduction == "none":
            return autograd.maps(x, y, None, statistic)[0]
        count = 1 if reduction == "sum" else statistic.positions(x.shape, kept)
        loss = Loss(only(constants.SSIM, factor), constant)
        return autograd.loss_of(x, y, statistic, loss, count, kept)[0]

    def total_weight(self, x: Tensor, mask: Tensor | None) -> int | Tensor:
        """Sum of the weights of all windows: the sum of SSIM divided by its mean."""
        if mask is not None:
            weights = self._at_centres(self._checked_mask(mask, x))
            return _sum(weights, 0).to(weights.dtype)
        same = self.padding != "valid"
        statistic = Statistic(self._taps, [len(self._taps)], 0.0, 0.0, 0.0, 1.0, same)
        return statistic.positions(x.shape, 0)

    def _checked_mask(self, mask: Tensor, x: Tensor) -> Tensor:
        if self.padding == "reflect":
            raise ValueError('mask does not go with padding="reflect"; use "valid" or "same"')
        return mask_like(mask, x, value_dtype(x.dtype))

    def _at_centres(self, mask: Tensor) -> Tensor:
        halo = len(self._taps) // 2
        if self.padding == "valid":
            for dim in range(2, mask.dim()):
                mask = mask.narrow(dim, halo, mask.shape[dim] - 2 * halo)
        return mask


@dataclass(kw_only=True)
class ComponentsMeasure(Windowed):
    def __call__(self, x: Tensor, y: Tensor) -> SSIMComponents:
        x, y = checked_images(x, y)
        check_size(x, len(self._taps), self.padding)
        x, y, statistic = self.prepared(x, y)
        if self.padding == "reflect":
            x, y = self._reflected(x, y)
        return SSIMComponents(*autograd.maps(x, y, None, statistic, components=True))


@dataclass(kw_only=True)
class Pyramid(Windowed):
    """Arguments of MS-SSIM, alone or in a mixture."""

    weights: Weights = WANG_WEIGHTS
    odd: Odd = "floor"
    negative: Negative = "relu"
    channels: Channels = "separate"
    reduction: Reduction = "mean"

    _REDUCTIONS: ClassVar[tuple[str, ...]] = _REDUCTIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("odd", self.odd, _ODDS)
        choice("negative", self.negative, _NEGATIVES)
        choice("channels", self.channels, _CHANNELS)
        choice("reduction", self.reduction, self._REDUCTIONS)
        weights = self.weights
        if not isinstance(weights, Sequence) or isinstance(weights, (bytes, bytearray, memoryview)):
            raise TypeError(f"weights must be a sequence of numbers, got {weights!r}")
        self._weights: list[float] | None = None
        if isinstance(weights, str):
            if weights != "auto":
                raise ValueError(f'weights must be numbers or "auto", got {weights!r}')
        else:
            if not 1 <= len(weights) <= constants.MAX_LEVELS:
                raise ValueError(
                    f"weights must be 1 to {constants.MAX_LEVELS} numbers, got {len(weights)}"
                )
            self._weights = [number("weights", weight, least=0.0) for weight in weights]

    def _levels(self, x: Tensor) -> Levels:
        """The pyramid for images like ``x``. Raises ValueError if they are too small for it."""
        side = min(x.shape[2:])
        weights = self._weights
        if weights is None:
            count = self._scales_that_fit(side, len(WANG_WEIGHTS))
            weights = _leading(WANG_WEIGHTS, max(count, 1))
        least = self._least_side(len(weights))
        if side < least:
            scales = "one scale needs" if len(weights) == 1 else f"{len(weights)} scales need"
            raise ValueError(
                f"x is {x.shape[2]} x {x.shape[3]} pixels; with window_size {len(self._taps)}, "
                f"{scales} at least {least} x {least}: {self._suggestion(weights, x)}"
            )
        return Levels(
            weights,
            constants.POOLINGS[self.odd],
            constants.NEGATIVES[self.negative],
            joint=self.channels == "joint",
        )

    def _least_side(self, scales: int) -> int:
        """Smallest image side in pixels for which a window fits into every pyramid level."""
        size = len(self._taps)
        each = [1 if self.padding == "same" else size] * scales
        if self.padding == "reflect":
            each[-1] = size // 2 + 1
        if self.odd == "floor":
            return max(least << scale for scale, least in enumerate(each))
        return max(((least - 1) << scale) + 1 for scale, least in enumerate(each))

    def _scales_that_fit(self, side: int, most: int) -> int:
        return max((m for m in range(1, most + 1) if self._least_side(m) <= side), default=0)

    def _suggestion(self, weights: list[float], x: Tensor) -> str:
        count = self._scales_that_fit(min(x.shape[2:]), len(weights))
        if count == 0:
            hint = hint_of_layout(x, self._least_side(1))
            return f'not even one scale fits; use a smaller window_size or padding="same"{hint}'
        fitting = tuple(round(weight, 4) for weight in _leading(weights, count))
        return f'weights={fitting} would fit, as would weights="auto"'


@dataclass(kw_only=True)
class MSSSIMMeasure(Pyramid):
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self._reduced(x, y, 1.0, 0.0)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """``1 - MS-SSIM``. A sum adds up ``1 - MS-SSIM`` of each image or plane."""
        return self._reduced(x, y, -1.0, 1.0)

    def _reduced(self, x: Tensor, y: Tensor, factor: float, constant: float) -> Tensor:
        x, y = checked_images(x, y)
        levels = self._levels(x)
        whole = 1 if self.channels == "joint" else 2  # a product for each image or each plane
        kept = _KEPT.get(self.reduction, whole)
        if x.numel() == 0:
            value = _constant(x, y, kept, factor + constant)
        else:
            x, y, statistic = self.prepared(x, y)
            loss = Loss(only(constants.MS_SSIM, factor), constant)
            reflect = self.padding == "reflect"
            value, _ = autograd.multi_scale_loss_of(
                x, y, statistic, loss, levels, reflect=reflect, kept=kept
            )
        return value.sum() if self.reduction == "sum" else value


@dataclass(kw_only=True)
class MixtureMeasure(Pyramid):
    ssim: float = 1.0
    ms_ssim: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    gaussian_l1: float = 0.0
    return_terms: bool = False

    _REDUCTIONS = get_args(LossReduction)
    _PADDINGS = get_args(LossPadding)
    TERMS = ("ssim", "ms_ssim", "l1", "l2", "gaussian_l1")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._factors = [variable(name, getattr(self, name), least=0.0) for name in self.TERMS]
        self._factors_vary = has_symbols(*self._factors)
        if not any(self._factors):
            names = ", ".join(self.TERMS)
            raise ValueError(f"one of {names} must be greater than 0, got 0 for all")
        flag("return_terms", self.return_terms)
        # Taps of the coarsest level's window in pixels of the finest, by the number of levels.
        self._blurs: dict[int, list[float]] = {}
        if self.gaussian_l1 > 0:
            by_weights = (
                range(1, len(WANG_WEIGHTS) + 1) if self._weights is None else [len(self._weights)]
            )
            for scales in by_weights if self.ms_ssim > 0 else [1]:
                step = 2 ** (scales - 1)
                radius = len(self._taps) // 2 * step
                self._blurs[scales] = taps(self.window, radius, number("sigma", self.sigma) * step)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        x, y = checked_images(x, y)
        by_ssim, by_ms_ssim, *_ = self._factors
        levels = None
        if by_ms_ssim > 0:
            levels = self._levels(x)
        elif by_ssim > 0:
            check_size(x, len(self._taps), self.padding)
        call = (*self.prepared(x, y), levels)
        if self._factors_vary:  # the ops need constant factors: applies symbolic ones outside
            loss, terms = self._sum_of_terms(*call)
        else:
            loss, terms = self._weighted(*call, self._factors)
        if not self.return_terms:
            return loss
        terms = terms.detach().to(loss.dtype)
        factors = zip(self.TERMS, self._factors, strict=True)
        return loss, {name: terms[..., t] for t, (name, factor) in enumerate(factors) if factor > 0}

    def _sum_of_terms(
        self, x: Tensor, y: Tensor, statistic: Statistic, levels: Levels | None
    ) -> tuple[Tensor, Tensor]:
        """The result of ``_weighted``, from one sweep for each term with factor 1."""
        chosen = [t for t, factor in enumerate(self._factors) if factor > 0]
        results = []
        for t in chosen:
            results.append(self._weighted(x, y, statistic, levels, only(t)))
        total, terms = (torch.zeros_like(result) for result in results[0])
        for t, (loss, of_loss) in zip(chosen, results, strict=True):
            total = total + self._factors[t] * loss
            terms[..., t] = of_loss[..., t]
        return total, terms

    def _weighted(
        self,
        x: Tensor,
        y: Tensor,
        statistic: Statistic,
        levels: Levels | None,
        factors: list[float],
    ) -> tuple[Tensor, Tensor]:
        """The loss, shape () or (N,), and its terms, shape (terms,) or (N, terms)."""
        by_ssim, by_ms_ssim, *by_pixels = factors
        kept = _KEPT[self.reduction]
        if x.numel() == 0:
            similar = [float(t < constants.L1) for t in range(constants.TERMS)]
            terms = torch.stack([_constant(x, y, kept, term) for term in similar], -1)
            return terms[..., constants.L1], terms
        weights, constant = [-by_ssim, -by_ms_ssim, *by_pixels], by_ssim + by_ms_ssim
        rows = columns = None
        if factors[-1] > 0:
            of_levels = 1 if levels is None else len(levels.exponents)
            rows, columns = (self._inside(size, of_levels, x) for size in x.shape[2:])
        loss = Loss(weights, constant, rows, columns)
        if levels is not None and by_ms_ssim > 0:
            return autograd.multi_scale_loss_of(
                x, y, statistic, loss, levels, reflect=False, kept=kept
            )
        if by_ssim == 0:
            # Only terms over pixels: with one tap, each pixel is a position and images may have any
            # size. Constants of 1 avoid 0 / 0 where C1 or C2 is 0.
            statistic = statistic._replace(window=[1.0], sizes=[1], c1=1.0, c2=1.0, same=True)
        count = statistic.positions(x.shape, kept)
        return autograd.loss_of(x, y, statistic, loss, count, kept)

    def _inside(self, size: int, scales: int, like: Tensor) -> Tensor:
        """Pixel weights along an axis in the blurred L1, from ``_COUNTS`` if they are there."""
        plain = type(like) in (Tensor, torch.nn.Parameter) and not in_func_transform()
        if torch.compiler.is_compiling() or not plain:
            return _inside(size, self._blurs[scales], like)
        key = (size, tuple(self._blurs[scales]), like.device, like.dtype)
        counts = _COUNTS.get(key)
        if counts is None:
            with torch.inference_mode(False):  # training cannot use inference tensors
                counts = _inside(
                    size, self._blurs[scales], torch.empty(0, dtype=like.dtype, device="cpu")
                )
                # A blocking copy, because the next use may be on another stream.
                counts = counts.to(like.device)
            # Entries are never removed. This needs no lock, and the memory that a captured CUDA
            # graph reads stays valid.
            if len(_COUNTS) < _MOST_COUNTS:
                counts = _COUNTS.setdefault(key, counts)
        return counts


def _leading(weights: Sequence[float], count: int) -> list[float]:
    """The first ``count`` weights, rescaled to the sum of all weights."""
    if count == len(weights):
        return list(weights)
    part = sum(weights[:count])
    if part == 0:
        return list(weights[:count])
    return [weight * (sum(weights) / part) for weight in weights[:count]]


def _inside(size: int, window: list[float], like: Tensor) -> Tensor:
    """For each of ``size`` pixels in a row, the part of a window centred there that lies inside."""
    radius = len(window) // 2
    dtype = widest_dtype(like)
    until = torch.tensor([0.0, *itertools.accumulate(window)], dtype=dtype, device=like.device)
    pixel = torch.arange(size, device=like.device)
    before = pixel.clamp(max=radius)
    after = (size - 1 - pixel).clamp(max=radius)
    inside = until[radius + 1 + after] - until[radius - before]
    return inside.to(value_dtype(like.dtype))


def _sum(values: Tensor, kept: int) -> Tensor:
    """Sum over all but the first ``kept`` dimensions, in the widest dtype of the device."""
    return values.sum(tuple(range(kept, values.dim())), dtype=widest_dtype(values))


def _constant(x: Tensor, y: Tensor, kept: int, value: float) -> Tensor:
    """The result for empty images: ``value``, with a graph that leads to both of them."""
    zero = x.sum(tuple(range(kept, x.dim()))) + y.sum(tuple(range(kept, y.dim())))
    return zero.to(value_dtype(x.dtype)) + value
