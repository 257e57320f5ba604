"""Measures: validated arguments, translated for the ops; callable with a pair of images.

Fields are the arguments of the public functions, which document them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from ssimfast import masks
from ssimfast.arguments import (
    check_axes,
    check_size,
    checked_images,
    choice,
    flag,
    has_symbols,
    hint_of_layout,
    map_term_of,
    mask_like,
    number,
    taps,
    value_range_of,
    variable,
    windows_of,
)
from ssimfast.backends import constants, reference
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
    ReturnMap,
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
    data_range: float | Tensor | None = None
    window: Window = "gaussian"
    window_size: int | Sequence[int] = 11
    sigma: float | Sequence[float] = 1.5
    k1: float = 0.01
    k2: float = 0.03
    sample_covariance: bool = False
    padding: Padding = "valid"

    _PADDINGS: ClassVar[tuple[str, ...]] = get_args(Padding)
    _BY_AXIS: ClassVar[bool] = False  # True if there may be a window for each axis

    def __post_init__(self) -> None:
        self._range = value_range_of(self.value_range, self.data_range)
        self._range_varies = has_symbols(*self._range or ())
        windows = windows_of(self.window, self.window_size, self.sigma)
        self._axes = len(windows)  # 1: any number
        are_equal = all(taps == windows[0] for taps in windows)
        self._windows = windows[:1] if are_equal else windows
        self._c1 = number("k1", self.k1, least=0.0) ** 2
        self._c2 = number("k2", self.k2, least=0.0) ** 2
        flag("sample_covariance", self.sample_covariance)
        if self.sample_covariance and math.prod(self._sizes) == 1:
            raise ValueError("sample_covariance needs a window_size of at least 3, got 1")
        if self.padding == "reflect" and "reflect" not in self._PADDINGS:
            raise ValueError(
                'padding="reflect", which preset="torchmetrics" sets, goes with SSIM and MS-SSIM '
                'alone; give padding="valid" or "same" to mix terms'
            )
        choice("padding", self.padding, self._PADDINGS)
        differ = len(self._windows) > 1
        if not self._BY_AXIS and (differ or self._axes == 3):
            raise TypeError(
                "window_size and sigma must be single numbers, except for ssim, got "
                f"{self.window_size!r} and {self.sigma!r}"
            )
        if differ and self.padding == "reflect":
            raise ValueError(
                'padding="reflect" needs one window for all axes, got window_size '
                f"{self.window_size!r} and sigma {self.sigma!r}"
            )

    @property
    def _sizes(self) -> list[int]:
        return [len(taps) for taps in self._windows]

    @property
    def _taps(self) -> list[float]:
        """The window of a measure that has the same window along all axes."""
        return self._windows[0]

    def prepared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Statistic]:
        """The images and the statistic, as the ops take them."""
        c2 = self._c2
        if self.sample_covariance:
            # Dividing C2 by n / (n - 1) has the same effect as multiplying variances and covariance
            # by it, because the quotient of contrast-structure has no other summands.
            n = math.prod(self._sizes * (x.dim() - 2 if len(self._sizes) == 1 else 1))
            c2 = c2 * (n - 1) / n
        x, y, low, scale = self._in_range(x, y)
        window, same = list(itertools.chain(*self._windows)), self.padding == "same"
        return x, y, Statistic(window, self._sizes, self._c1, c2, low, scale, same)

    def _in_range(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float, float]:
        """The images, ``low`` and ``scale`` as the ops take them.

        The ops need a range of two constant numbers: tensors and symbols are applied here. They
        take an 8-bit ``y`` as it is, unless ``x`` is float64."""
        dtype, beside_bytes = value_dtype(x.dtype), x.dtype != y.dtype
        if isinstance(self.data_range, Tensor):
            widths = self._widths(self.data_range, x)
            images = [x.to(dtype) / widths, y if beside_bytes else y.to(dtype) / widths]
            low, scale = 0.0, 1.0
        else:
            low, high = self._range or (0.0, 255.0 if x.dtype == torch.uint8 else 1.0)
            scale, images = 1 / (high - low), [x, y]
            if self._range_varies:
                images[0] = (x.to(dtype) - low) * scale
                images[1] = y if beside_bytes else (y.to(dtype) - low) * scale
                low, scale = 0.0, 1.0
        if beside_bytes and x.dtype == torch.float64:
            images = [*reference.floating(images[0], images[1], low, scale, dtype)]
        return images[0], images[1], low, scale

    def _widths(self, data_range: Tensor, x: Tensor) -> Tensor:
        """The range of each image, broadcastable to ``x``."""
        if data_range.dim() == 1 and len(data_range) not in (1, len(x)):
            raise ValueError(
                f"data_range must have one number for each of {len(x)} images, got "
                f"{tuple(data_range.shape)}"
            )
        widths = data_range.detach().to(device=x.device, dtype=value_dtype(x.dtype))
        return widths.reshape(-1, *[1] * (x.dim() - 1))

    def use_taps(self, taps: list[float]) -> None:
        """Replaces the separable window by an odd number of taps >= 0, symmetric, with sum 1."""
        self._windows = [taps]

    def _checked_mask(self, mask: Tensor, x: Tensor) -> Tensor:
        if self.padding == "reflect":
            raise ValueError('mask does not go with padding="reflect"; use "valid" or "same"')
        return mask_like(mask, x, value_dtype(x.dtype))

    def _reflected(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        halo = len(self._taps) // 2
        return differentiable_reflected(x, halo), differentiable_reflected(y, halo)


@dataclass(kw_only=True)
class SSIMMeasure(Windowed):
    reduction: Reduction = "mean"
    return_map: ReturnMap = False

    _BY_AXIS = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("reduction", self.reduction, _REDUCTIONS)
        self._map_term = map_term_of(self.return_map)

    # The measure and the loss are a tensor or, with `return_map`, a pair of tensors.
    def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Any:
        return self._results(x, y, mask, 1.0, 0.0)

    def loss(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Any:
        """``1 - SSIM``. A sum adds up ``1 - SSIM`` of all windows, weighted by the mask."""
        return self._results(x, y, mask, -1.0, 1.0)

    def _results(
        self, x: Tensor, y: Tensor, mask: Tensor | None, factor: float, constant: float
    ) -> Any:
        """``factor * SSIM + constant`` after the reduction; with ``return_map``, the map, too."""
        x, y = checked_images(x, y, ranks=(4, 5))
        check_axes(x, self._axes)
        check_size(x, self._sizes, self.padding)
        x, y, statistic = self.prepared(x, y)
        weights = None if mask is None else self._checked_mask(mask, x)
        if self.padding == "reflect":
            x, y = self._reflected(x, y)
        maps: tuple[Tensor, ...]
        if self.reduction == "none":
            (ssim,) = autograd.maps(x, y, _expanded(weights, x), statistic)
            value = ssim if factor == 1 else constant + factor * ssim
            if self._map_term == constants.SSIM:
                maps = (ssim.detach(),)
            else:
                maps = _map_of(x, y, statistic, weights, self._map_term)
        else:
            value, maps = self._reduced(x, y, weights, statistic, factor, constant)
        return value if self._map_term < 0 else (value, *maps)

    def _reduced(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        statistic: Statistic,
        factor: float,
        constant: float,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = _KEPT.get(self.reduction, 0)
        positions = statistic.positions(x.shape, kept)
        is_sum = self.reduction == "sum"
        if x.numel() == 0:
            value = _constant(x, y, kept, 0.0 if is_sum else factor + constant)
            return value, _map_of(x, y, statistic, weights, self._map_term)
        masked: tuple[Tensor | None, Tensor | None] = (None, None)
        if weights is not None:
            factors = masks.mask_factors(weights, x.shape, statistic, kept)
            masked = _expanded(weights, x), factors
        loss = Loss(only(constants.SSIM, factor), constant)
        value, _, *maps = autograd.loss_of(
            x, y, statistic, loss, positions, kept, *masked, self._map_term
        )
        if is_sum and weights is None:
            value = value * positions
        elif is_sum and weights is not None:
            at_positions = masks.weights_at_positions(weights, x.shape, statistic)
            shape = (*x.shape[:2], *statistic.map_sizes(x.shape[2:]))
            value = value * masks.total(at_positions, shape, kept).to(value.dtype)
        return value, tuple(maps)


@dataclass(kw_only=True)
class ComponentsMeasure(Windowed):
    def __call__(self, x: Tensor, y: Tensor) -> SSIMComponents:
        x, y = checked_images(x, y)
        check_size(x, self._sizes, self.padding)
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
    def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._reduced(x, y, mask, 1.0, 0.0)

    def loss(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """``1 - MS-SSIM``. A sum adds up ``1 - MS-SSIM`` of each image or plane."""
        return self._reduced(x, y, mask, -1.0, 1.0)

    def _reduced(
        self, x: Tensor, y: Tensor, mask: Tensor | None, factor: float, constant: float
    ) -> Tensor:
        x, y = checked_images(x, y)
        levels = self._levels(x)
        weights = None if mask is None else self._checked_mask(mask, x)
        whole = 1 if self.channels == "joint" else 2  # a product for each image or each plane
        kept = _KEPT.get(self.reduction, whole)
        if x.numel() == 0:
            value = _constant(x, y, kept, factor + constant)
        else:
            x, y, statistic = self.prepared(x, y)
            loss = Loss(only(constants.MS_SSIM, factor), constant)
            if weights is not None:
                value, _ = _masked_ms_ssim(x, y, weights, statistic, loss, levels, kept)
            else:
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
    return_map: ReturnMap = False

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
        self._map_term = map_term_of(self.return_map)
        sigma: Any = self.sigma
        self._sigma = number("sigma", sigma[0] if isinstance(sigma, (tuple, list)) else sigma)
        # Taps of the coarsest level's window in pixels of the finest, by the number of levels.
        self._blurs: dict[int, list[float]] = {}
        if self.gaussian_l1 > 0:
            by_weights = (
                range(1, len(WANG_WEIGHTS) + 1) if self._weights is None else [len(self._weights)]
            )
            for scales in by_weights if self.ms_ssim > 0 else [1]:
                step = 2 ** (scales - 1)
                radius = len(self._taps) // 2 * step
                self._blurs[scales] = taps(self.window, radius, self._sigma * step)

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Any:
        """The loss, or a tuple of the loss, its terms and its map, of which the last two are there
        if they are asked for."""
        x, y = checked_images(x, y)
        by_ssim, by_ms_ssim, *_ = self._factors
        levels = None
        if by_ms_ssim > 0:
            levels = self._levels(x)
        elif by_ssim > 0 or self._map_term >= 0:
            check_size(x, self._sizes, self.padding)
        x, y, statistic = self.prepared(x, y)
        weights = None if mask is None else self._checked_mask(mask, x)
        if weights is not None and self.gaussian_l1 > 0:
            raise ValueError(f"mask does not go with gaussian_l1, got {self.gaussian_l1}; use l1")
        call = (x, y, weights, statistic, levels)
        if self._factors_vary:  # the ops need constant factors: applies symbolic ones outside
            loss, terms, *maps = self._sum_of_terms(*call)
        else:
            loss, terms, *maps = self._weighted(*call, self._factors)
        results: list[Any] = [loss]
        if self.return_terms:
            terms = terms.detach().to(loss.dtype)
            factors = zip(self.TERMS, self._factors, strict=True)
            results.append(
                {name: terms[..., t] for t, (name, factor) in enumerate(factors) if factor > 0}
            )
        if self._map_term >= 0:
            results += maps or _map_of(x, y, statistic, weights, self._map_term)
        return loss if len(results) == 1 else tuple(results)

    def _sum_of_terms(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        statistic: Statistic,
        levels: Levels | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss and the terms of ``_weighted``, from one sweep for each term with factor 1."""
        chosen = [t for t, factor in enumerate(self._factors) if factor > 0]
        results = []
        for t in chosen:
            results.append(self._weighted(x, y, weights, statistic, levels, only(t))[:2])
        total, terms = (torch.zeros_like(result) for result in results[0])
        for t, (loss, of_loss) in zip(chosen, results, strict=True):
            total = total + self._factors[t] * loss
            terms[..., t] = of_loss[..., t]
        return total, terms

    def _weighted(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        statistic: Statistic,
        levels: Levels | None,
        factors: list[float],
    ) -> tuple[Tensor, ...]:
        """The loss, shape () or (N,), its terms, shape (terms,) or (N, terms), and the map, if it
        is wanted and the same pass makes it."""
        by_ssim, by_ms_ssim, *by_pixels = factors
        kept = _KEPT[self.reduction]
        if x.numel() == 0:
            similar = [float(t < constants.L1) for t in range(constants.TERMS)]
            terms = torch.stack([_constant(x, y, kept, term) for term in similar], -1)
            return terms[..., constants.L1], terms
        rows = columns = None
        if factors[-1] > 0:
            of_levels = 1 if levels is None else len(levels.exponents)
            rows, columns = (self._inside(size, of_levels, x) for size in x.shape[2:])
        loss = Loss([-by_ssim, -by_ms_ssim, *by_pixels], by_ssim + by_ms_ssim, rows, columns)
        if levels is None or by_ms_ssim == 0:
            return self._without_levels(x, y, weights, statistic, loss, kept)
        if weights is None:
            return autograd.multi_scale_loss_of(
                x, y, statistic, loss, levels, reflect=False, kept=kept
            )
        of_levels_only = Loss(only(constants.MS_SSIM, -by_ms_ssim), by_ms_ssim)
        value, terms = _masked_ms_ssim(x, y, weights, statistic, of_levels_only, levels, kept)
        others = [-by_ssim, 0.0, *by_pixels]
        if any(others):
            rest, of_rest = self._without_levels(
                x, y, weights, statistic, Loss(others, by_ssim), kept
            )[:2]
            value = value + rest
            is_ms_ssim = torch.arange(constants.TERMS, device=x.device) == constants.MS_SSIM
            terms = torch.where(is_ms_ssim, terms, of_rest.to(terms.dtype))
        return value, terms

    def _without_levels(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        statistic: Statistic,
        loss: Loss,
        kept: int,
    ) -> tuple[Tensor, ...]:
        map_term = self._map_term
        if loss.weights[constants.SSIM] == 0:
            # Only terms over pixels: with one tap, each pixel is a position and images may have any
            # size. Constants of 1 avoid 0 / 0 where C1 or C2 is 0.
            statistic = statistic._replace(window=[1.0], sizes=[1], c1=1.0, c2=1.0, same=True)
            map_term = -1
        count = statistic.positions(x.shape, kept)
        masked: tuple[Tensor | None, Tensor | None] = (None, None)
        if weights is not None:
            factors = masks.mask_factors(weights, x.shape, statistic, kept)
            masked = _expanded(weights, x), factors
        return autograd.loss_of(x, y, statistic, loss, count, kept, *masked, map_term)

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


def _masked_ms_ssim(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """``autograd.multi_scale_loss_of`` for masked images: a sweep for each level, between pools of
    PyTorch operations that weight the pixels."""
    terms: list[Tensor] = []
    positions: list[int] = []
    for level in range(len(levels.exponents)):
        if level == 1:  # pooled images are in unit range
            low, scale = statistic.low, statistic.scale
            images = reference.floating(x, y, low, scale, weights.dtype)
            x, y = ((image - low) * scale for image in images)
            statistic = statistic._replace(low=0.0, scale=1.0)
        if level > 0:
            (x, y), weights = masks.weighted_pool((x, y), weights, levels.pooling)
        is_coarsest = level == len(levels.exponents) - 1
        term = constants.SSIM if is_coarsest else constants.CONTRAST_STRUCTURE
        positions.append(statistic.positions(x.shape, 2))
        factors = masks.mask_factors(weights, x.shape, statistic, 2)
        mask = weights.expand(x.shape)
        # A constant: torch.compile would trace the default number inside the sweep of the first
        # level, and could not use it in the next one.
        loss_of_level = Loss(only(term), constant=0.0)
        mean, _ = autograd.loss_of(x, y, statistic, loss_of_level, positions[-1], 2, mask, factors)
        terms.append(mean.to(widest_dtype(mean))[..., None].expand(*mean.shape, constants.TERMS))
    value, all_terms, _ = reference.combine_levels(
        terms,
        positions,
        levels.exponents,
        levels.negative,
        levels.joint,
        loss.weights,
        loss.constant,
        kept,
    )
    return value.to(value_dtype(x.dtype)), all_terms.detach()


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


def _expanded(weights: Tensor | None, x: Tensor) -> Tensor | None:
    return None if weights is None else weights.expand(x.shape)


def _map_of(
    x: Tensor, y: Tensor, statistic: Statistic, weights: Tensor | None, map_term: int
) -> tuple[Tensor, ...]:
    """The map of a term, if any, from a pass of its own."""
    if map_term < 0:
        return ()
    with torch.no_grad():
        factors = None
        if weights is not None:
            factors = masks.mask_factors(weights, x.shape, statistic, 0)
        mask = _expanded(weights, x)
        loss = Loss(only(constants.SSIM))
        *_, shown = autograd.loss_of(x, y, statistic, loss, 1, 0, mask, factors, map_term)
    return (shown,)


def _constant(x: Tensor, y: Tensor, kept: int, value: float) -> Tensor:
    """The result for empty images: ``value``, with a graph that leads to both of them."""
    zero = x.sum(tuple(range(kept, x.dim()))) + y.sum(tuple(range(kept, y.dim())))
    return zero.to(value_dtype(x.dtype)) + value
