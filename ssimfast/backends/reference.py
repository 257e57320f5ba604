"""The ops in plain PyTorch: the specification, and the fallback for devices without kernels.

docs/mathematics.md derives the formulas: s = x + y and d = x - y in unit range, and ``by_q`` is a
derivative w.r.t. q. Filters are sums of shifted slices, not convolutions, because a convolution may
round its inputs to TF32.

PyTorch differentiates and transforms the code that computes values (``ops/differentiable.py``).
That code therefore writes in place to new tensors only, and no branch in Python depends on values.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssimfast.backends.constants import (
    BLURRED_L1,
    CONTRAST_STRUCTURE,
    FAR,
    L1,
    L2,
    LEAST_MEAN,
    MS_SSIM,
    NEGATIVES,
    POOLINGS,
    SSIM,
    TERMS,
    value_dtype,
    widest_dtype,
)
from ssimfast.ops.schemas import Loss, Statistic


def _spatial_dims(image: Tensor) -> tuple[int, ...]:
    return tuple(range(2 - image.dim(), 0))


def floating(
    x: Tensor, y: Tensor, low: float, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both images in ``dtype``. An 8-bit ``y`` beside a floating ``x`` is brought to its range."""
    if x.dtype == y.dtype:
        return x.to(dtype), y.to(dtype)
    return x.to(dtype), y.to(dtype) * (1 / (255 * scale)) + low


def _filter(image: Tensor, windows: list[list[float]]) -> Tensor:
    """Correlates (N, C, ...) with a window along each axis; windows of K taps cost the axis K - 1
    elements."""
    for dim, window in zip(_spatial_dims(image), windows, strict=True):
        image = _filter_along(dim, image, window)
    return image


def _filter_along(dim: int, image: Tensor, window: list[float]) -> Tensor:
    size = image.shape[dim] - len(window) + 1
    out = image.narrow(dim, 0, size) * window[0]
    for offset, tap in enumerate(window[1:], start=1):
        # Not in place: forward mode may have a tangent of zeros here, which is immutable.
        out = out.add(image.narrow(dim, offset, size), alpha=tap)
    return out


def _pad(image: Tensor, halos: list[int], value: Tensor) -> Tensor:
    """The image with a border of as many pixels along each axis; ``value`` holds one number per
    plane."""
    pads = [halo for halo in reversed(halos) for _ in range(2)]
    pixels = torch.ones(image.shape[2:], dtype=torch.bool, device=image.device)
    inside = torch.nn.functional.pad(pixels, pads)
    return torch.nn.functional.pad(image, pads).where(inside, value)


class _Windows(NamedTuple):
    """Taps, padding and mask: what all images of a call share."""

    taps: list[list[float]]  # along each axis
    same: bool
    mask: Tensor | None
    support: Tensor | None  # result of `_support`: 1 / (sum of the mask in each window), or 0

    def padded(self, image: Tensor, black: Tensor) -> Tensor:
        return _pad(image, [len(taps) // 2 for taps in self.taps], black) if self.same else image

    def margins(self) -> list[int]:
        """Width of the border of zeros around a map, along each axis, for which the adjoint filter
        gives one value for each pixel of the image."""
        return [len(taps) // 2 if self.same else len(taps) - 1 for taps in self.taps]


class _Moments:
    """Local means and variances of an image, and the gradient w.r.t. the image, in float64.

    float64 has enough digits to compute variances as E[v^2] - E[v]^2.
    """

    def __init__(self, image: Tensor, black: Tensor, windows: _Windows) -> None:
        self.image, self.windows = image, windows
        if windows.mask is None or windows.support is None:
            image = windows.padded(image, black)
            mean, square = _filter(image, windows.taps), _filter(image.square(), windows.taps)
        else:
            nothing = torch.zeros_like(black)
            mean, square = (
                _filter(windows.padded(part * windows.mask, nothing), windows.taps)
                * windows.support
                for part in (image, image.square())
            )
        variance = square - mean.square()
        # Only rounding makes a variance negative. It becomes 0 and keeps its derivative; NaN stays.
        self.mean, self.variance = mean, variance - variance.detach().clamp_max(0)

    def gradient(self, by_mean: Tensor, by_variance: Tensor) -> Tensor:
        """For each pixel, the weighted sum of ``by_mean + by_variance * (pixel - mean)`` over its
        windows. ``by_variance`` is therefore twice the derivative w.r.t. the variance."""
        by_mean = by_mean - self.mean * by_variance
        return self._adjoint(by_mean) + self.image * self._adjoint(by_variance)

    def _adjoint(self, values: Tensor) -> Tensor:
        pads = [margin for margin in reversed(self.windows.margins()) for _ in range(2)]
        return _filter(torch.nn.functional.pad(values, pads), self.windows.taps)


class _CentredMoments:
    """``_Moments`` for float32, one axis after another.

    A nearby mean is subtracted before anything is squared or multiplied by a derivative
    (docs/mathematics.md, "Centring").
    """

    def __init__(self, image: Tensor, black: Tensor, windows: _Windows) -> None:
        self.windows = windows
        weight = windows.mask
        if weight is not None:
            weight = windows.padded(weight, torch.zeros_like(black))
        mean = windows.padded(image, black)
        variance = torch.zeros_like(mean)
        self.means = [mean]
        for dim, taps in zip(_spatial_dims(image), windows.taps, strict=True):
            mean, variance, weight = self._along(dim, taps, mean, variance, weight)
            self.means.append(mean)
        self.mean, self.variance = mean, variance

    def _along(
        self,
        dim: int,
        taps: list[float],
        means: Tensor,
        variances: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Means, variances and total weights of windows along ``dim``, from those of elements."""
        size = means.shape[dim] - len(taps) + 1
        total = inverse = None
        if weights is not None:
            total = _filter_along(dim, weights, taps)
            inverse = torch.where(total > 0, 1 / total, 0)

        def average(values: Callable[[int], Tensor]) -> Tensor:
            out = torch.zeros_like(means.narrow(dim, 0, size))
            for j, tap in enumerate(taps):
                if weights is None:
                    out = out.add(values(j), alpha=tap)
                else:
                    out = out.addcmul(values(j), weights.narrow(dim, j, size), value=tap)
            return out if inverse is None else out * inverse

        mean = average(lambda j: means.narrow(dim, j, size))
        variance = average(
            lambda j: (means.narrow(dim, j, size) - mean).square() + variances.narrow(dim, j, size)
        )
        return mean, variance, total

    def gradient(self, by_mean: Tensor, by_variance: Tensor) -> Tensor:
        margins = self.windows.margins()
        *inner, mean = self.means
        for axis, means in reversed(list(enumerate(inner))):
            dim, taps = axis - len(inner), self.windows.taps[axis]
            if self.windows.same:  # removes the border, which needs no gradient
                for outer in range(dim, 0):
                    margin = margins[outer]
                    means = means.narrow(outer, margin, means.shape[outer] - 2 * margin)
            pads = [0, 0] * (-1 - dim) + [margins[axis]] * 2
            mean, by_mean, by_variance = (
                torch.nn.functional.pad(values, pads) for values in (mean, by_mean, by_variance)
            )
            size = means.shape[dim]
            by_means = _filter_along(dim, by_mean, taps)
            for j, tap in enumerate(taps):
                distance = means - mean.narrow(dim, j, size)
                by_means.addcmul_(distance, by_variance.narrow(dim, j, size), value=tap)
            by_variance = _filter_along(dim, by_variance, taps)
            mean, by_mean = means, by_means
        return by_mean


class _LocalStatistics:
    """Means and variances of s = x + y and d = x - y in every window, and the factors of SSIM."""

    def __init__(
        self, x: Tensor, y: Tensor, statistic: Statistic, mask: Tensor | None = None
    ) -> None:
        _, _, c1, c2, low, scale, same = statistic
        self.out_dtype = value_dtype(x.dtype)
        dtype = widest_dtype(x)
        x, y = floating(x, y, low, scale, dtype)
        self.c1, self.c2, self.scale = c1, c2, scale
        self.mask = mask if mask is None else mask.to(dtype).contiguous()
        if self.mask is not None:  # pixels with weight 0 may be NaN
            seen = self.mask != 0
            x, y = x.where(seen, low), y.where(seen, low)
        level = self._level(x.detach(), low)
        level_s = 2 * (level - low) * scale
        self.s = ((x - level) + (y - level)) * scale
        self.d = (x - y) * scale
        taps = statistic.windows(x.dim() - 2)
        self.support = None if self.mask is None else _support(self.mask, taps, same)
        windows = _Windows(taps, same, self.mask, self.support)
        moments = _Moments if dtype == torch.float64 else _CentredMoments
        # The padding is black (`low`): s = -level_s and d = 0 there.
        self.of_s = moments(self.s, -level_s, windows)
        self.of_d = moments(self.d, torch.zeros_like(level_s), windows)
        self.var_s, self.var_d = self.of_s.variance, self.of_d.variance
        self.mu_s, self.mu_d = self.of_s.mean + level_s, self.of_d.mean
        mu_s2, mu_d2 = self.mu_s.square(), self.mu_d.square()
        self.mu_s2, self.mu_d2 = mu_s2, mu_d2
        self.n1, self.d1 = (mu_s2 - mu_d2) * 0.5 + c1, (mu_s2 + mu_d2) * 0.5 + c1
        self.n2 = (self.var_s - self.var_d) * 0.5 + c2
        self.d2 = (self.var_s + self.var_d) * 0.5 + c2
        if self.support is not None:
            # Windows without visible pixels are similar, even if C1 = C2 = 0 give 0 / 0.
            self.n1, self.d1, self.n2, self.d2 = (
                factor.where(self.support > 0, 1) for factor in (self.n1, self.d1, self.n2, self.d2)
            )

    def _level(self, x: Tensor, low: float) -> Tensor:
        """The constant that is subtracted from both images of a plane, shape (N, C, 1, ...).

        It is ``low`` or, if x is far from the value range (a bias, another unit), the value of x
        nearest to ``low``: squares of large values would lose the digits of the variance.
        """
        dims = _spatial_dims(x)
        least = most = x
        if self.mask is not None:
            seen = self.mask != 0
            least, most = x.where(seen, torch.inf), x.where(seen, -torch.inf)
        level = torch.maximum(least.amin(dims, True), most.amax(dims, True).clamp(max=low))
        far = ((level - low).abs() * self.scale > FAR) & level.isfinite()
        return torch.where(far, level, low)

    def ssim(self) -> Tensor:
        return (self.n1 * self.n2) / (self.d1 * self.d2)

    def luminance(self) -> Tensor:
        return self.n1 / self.d1

    def contrast_structure(self) -> Tensor:
        return self.n2 / self.d2

    def as_map(self, values: Tensor) -> Tensor:
        return values.to(self.out_dtype).contiguous()

    def gradients(
        self,
        ssim: Tensor | float = 0.0,
        luminance: Tensor | float = 0.0,
        contrast_structure: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Gradients, w.r.t. x and y in unit range, of the sum of each map times its argument."""
        r1, r2 = 1 / self.d1, 1 / self.d2
        lum = (ssim * (self.n2 * r2) + luminance) * r1.square()
        con = (ssim * (self.n1 * r1) + contrast_structure) * r2.square()
        by_var_s = con * self.var_d
        by_var_d = -con * (self.var_s + 2 * self.c2)
        by_mean_s = self.mu_s * self.mu_d2 * lum
        by_mean_d = -self.mu_d * (self.mu_s2 + 2 * self.c1) * lum
        by_s = self.of_s.gradient(*self._of_seen(by_mean_s, by_var_s))
        by_d = self.of_d.gradient(*self._of_seen(by_mean_d, by_var_d))
        if self.mask is not None:
            by_s, by_d = by_s * self.mask, by_d * self.mask
        return by_s + by_d, by_s - by_d

    def _of_seen(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Multiplies derivatives w.r.t. masked statistics by ``support``."""
        return maps if self.support is None else tuple(values * self.support for values in maps)


def _support(mask: Tensor, taps: list[list[float]], same: bool) -> Tensor:
    """1 / (the sum of taps times mask in each window); 0 where that sum is 0."""
    zero = mask.new_zeros(()).expand(*mask.shape[:2], *[1] * (mask.dim() - 2))
    through = _filter(_pad(mask, [len(along) // 2 for along in taps], zero) if same else mask, taps)
    return torch.where(through > 0, 1 / through, 0)


def _like(image: Tensor, grad: Tensor) -> Tensor:
    """``grad`` with the dtype and strides of a copy of ``image``, as the ops promise."""
    return torch.empty_like(image).copy_(grad)


def _gradients_like(
    images: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor], count: int
) -> list[Tensor]:
    return [_like(image, grad) for image, grad in zip(images, grads, strict=True)][:count]


# ---- maps ---------------------------------------------------------------------------------------


def maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool
) -> list[Tensor]:
    local = _LocalStatistics(x, y, statistic, mask)
    if components:
        return [local.as_map(local.luminance()), local.as_map(local.contrast_structure())]
    return [local.as_map(local.ssim())]


def maps_grad(
    upstream: list[Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    statistic: Statistic,
    gradients: int,
) -> list[Tensor]:
    local = _LocalStatistics(x, y, statistic, mask)
    scaled = [by_map * statistic.scale for by_map in upstream]
    names = ("ssim",) if len(scaled) == 1 else ("luminance", "contrast_structure")
    grads = local.gradients(**dict(zip(names, scaled, strict=True)))
    return _gradients_like((x, y), grads, gradients)


# ---- losses -------------------------------------------------------------------------------------


def sweep(
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
    grad_scale: float,
    grad_count: int,
    plane_weights: Tensor | None,
    pooling: int,
    map_term: int,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    weights, constant, rows, columns = loss
    local = _LocalStatistics(x, y, statistic, mask)
    d = local.d
    positions_per_pixel = local.n1[0, 0].numel() / d[0, 0].numel() if d.numel() else 1.0
    counts = _pixel_counts(d, rows, columns)
    quantities: dict[int, Callable[[], Tensor]] = {
        SSIM: local.ssim,
        CONTRAST_STRUCTURE: local.contrast_structure,
        L1: lambda: d.abs() * positions_per_pixel,
        L2: lambda: d.square() * positions_per_pixel,
        BLURRED_L1: lambda: d.abs() * counts * positions_per_pixel,
    }
    at_positions = at_pixels = None
    if local.mask is not None and mask_factors is not None:
        of_positions, of_pixels = (_by_plane(f, d) for f in mask_factors.to(d.dtype).unbind(-1))
        at_positions = _at_positions(local.mask, statistic) * of_positions
        at_pixels = local.mask * of_pixels
    dims = tuple(range(kept, x.dim()))
    terms = d.new_zeros(*x.shape[:kept], TERMS)
    value = d.new_zeros(x.shape[:kept])
    for term, quantity in quantities.items():
        if wanted >> term & 1:
            values = quantity()
            if at_positions is not None and at_pixels is not None:
                # The weights at positions are 1 on average, or all 0: the mean is then that of 1.
                values = 1 - at_positions * (1 - values) if term < L1 else at_pixels * values
            terms[..., term] = values.sum(dims) / count
        if weights[term] != 0:
            value = value + weights[term] * terms[..., term]
    grads = []
    if gradients > 0:
        factor = grad_scale / grad_count
        by_ssim: Tensor | float
        by_cs: Tensor | float
        by_ssim, by_cs, *by_pixels = (weight * factor for weight in weights)
        if plane_weights is not None:
            by_ssim, by_cs = (factor * plane_weights.to(d.dtype))[..., None, None].unbind(2)
        by_d = _by_difference(d, by_pixels, counts) * positions_per_pixel
        if at_positions is not None and at_pixels is not None:
            by_ssim, by_cs = by_ssim * at_positions, by_cs * at_positions
            by_d = by_d * at_pixels
        by_x, by_y = local.gradients(ssim=by_ssim, contrast_structure=by_cs)
        grads = _gradients_like((x, y), (by_x + by_d, by_y - by_d), gradients)
    pooled = []
    if pooling != POOLINGS["none"]:
        for image in floating(x, y, statistic.low, statistic.scale, widest_dtype(x)):
            unit = (image - statistic.low) * statistic.scale
            pooled.append(local.as_map(pool(unit, pooling)))
    maps = []
    if map_term >= 0:
        values = local.ssim() if map_term == SSIM else local.contrast_structure()
        maps.append(local.as_map(values))
    return (value + constant).to(local.out_dtype), terms, grads, pooled, maps


def _at_positions(mask: Tensor, statistic: Statistic) -> Tensor:
    """The mask at the pixels at which windows are centred."""
    for dim, margin in enumerate(statistic.margins(mask.dim() - 2), start=2):
        mask = mask.narrow(dim, margin, mask.shape[dim] - 2 * margin)
    return mask


def _pixel_counts(d: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor | float:
    """Weight of each pixel in the blurred L1, shape (H, W)."""
    if rows is None or columns is None:
        return 0.0
    return rows[:, None].to(d.dtype) * columns.to(d.dtype)


def _by_difference(d: Tensor, weights: list[float], counts: Tensor | float) -> Tensor:
    """Derivative w.r.t. d of the weighted sum of the pixel terms: L1, L2 and blurred L1."""
    l1, l2, blurred = weights
    return (l1 + blurred * counts) * d.sign() + 2 * l2 * d


def scale_(grad: Tensor, upstream: Tensor, factor: float, count: int) -> None:
    grad.mul_(_by_plane(upstream, grad) * (factor / count))


def _by_plane(upstream: Tensor, image: Tensor) -> Tensor:
    return upstream.reshape(*upstream.shape, *[1] * (image.dim() - upstream.dim()))


def pool(image: Tensor, pooling: int) -> Tensor:
    """Means of 2 x 2 pixels. If the number of rows or columns is odd, "floor" drops the last one,
    "pad" adds a black one before the first, "replicate" counts the last one twice."""
    odd_height, odd_width = (size % 2 for size in image.shape[-2:])
    if pooling == POOLINGS["pad"]:
        image = torch.nn.functional.pad(image, (odd_width, 0, odd_height, 0))
    if pooling == POOLINGS["replicate"]:
        image = torch.nn.functional.pad(image, (0, odd_width, 0, odd_height), mode="replicate")
    return torch.nn.functional.avg_pool2d(image, 2)


def _pool_adjoint(pooled: Tensor, height: int, width: int, pooling: int) -> Tensor:
    """Gradient w.r.t. an image of this size, from ``pooled``, the gradient w.r.t. its pooling."""
    out = (pooled / 4).repeat_interleave(2, -2).repeat_interleave(2, -1)
    if pooling == POOLINGS["pad"]:
        return out[..., height % 2 :, width % 2 :]
    if pooling == POOLINGS["replicate"]:
        if height % 2:
            out[..., -2, :] += out[..., -1, :]
        if width % 2:
            out[..., -2] += out[..., -1]
        return out[..., :height, :width]
    return torch.nn.functional.pad(out, (0, width - out.shape[-1], 0, height - out.shape[-2]))


def collapse_(
    finest: Tensor,
    coarser: list[Tensor],
    slopes: Tensor,
    upstream: Tensor,
    low: float,
    scale: float,
    pooling: int,
    x: Tensor | None,
    y: Tensor | None,
    pixel_weights: list[float],
    rows: Tensor | None,
    columns: Tensor | None,
) -> None:
    *finer, coarsest = zip([finest, *coarser], slopes.unbind(-1), strict=True)
    total = coarsest[0].to(slopes.dtype) * coarsest[1][..., None, None]
    for grad, slope in reversed(finer):
        height, width = grad.shape[-2:]
        below = _pool_adjoint(total, height, width, pooling)
        total = grad.to(slopes.dtype) * slope[..., None, None] + below
    if x is not None and y is not None:
        x, y = floating(x, y, low, scale, widest_dtype(x))
        d = (x - y) * scale
        by_d = _by_difference(d, pixel_weights, _pixel_counts(d, rows, columns))
        total = total + by_d * (upstream.numel() / d.numel() if d.numel() else 1.0)
    finest.copy_(total * _by_plane(upstream, total) * scale)


def combine_levels(
    terms: list[Tensor],
    positions: list[int],
    exponents: list[float],
    negative: int,
    joint: bool,
    weights: list[float],
    constant: float,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    of_levels = [term[..., CONTRAST_STRUCTURE] for term in terms[:-1]] + [terms[-1][..., SSIM]]
    means = torch.stack(of_levels, -1)  # (N, C, levels)
    if joint:
        means = means.mean(1, keepdim=True)
    powers_of = torch.tensor(exponents, dtype=means.dtype, device=means.device)
    if negative == NEGATIVES["raise"] and ((means < 0) & (powers_of > 0)).any():
        raise ValueError(
            f'negative="raise": a mean of contrast-structure is {means.min().item():.4g}; '
            'negative="relu" or "abs" accept it'
        )
    size = means.abs() if negative == NEGATIVES["abs"] else means.relu()
    powers = _power(size, powers_of)
    ms_ssim = powers.prod(-1)
    batch, channels = terms[0].shape[:2]
    planes = math.prod((batch, channels)[kept:])  # number of planes that a value averages
    slopes = _slopes(means, size, powers, powers_of) * (weights[MS_SSIM] / planes)
    slopes = slopes / torch.tensor(positions, dtype=means.dtype, device=means.device)
    slopes = slopes.expand(batch, channels, len(terms)).contiguous()
    parts = list(terms[0].unbind(-1))
    parts[MS_SSIM] = ms_ssim.expand(batch, channels)
    out = torch.stack(parts, -1)
    out = out.mean(tuple(range(kept, 2))) if kept < 2 else out
    value = out.new_zeros(out.shape[:-1])
    for term, weight in enumerate(weights):
        if weight != 0:
            value = value + weight * out[..., term]
    return value + constant, out, slopes


def _power(size: Tensor, exponents: Tensor) -> Tensor:
    """``size ** exponents``, which autograd differentiates with the slopes of ``_slopes``."""
    fixed = size.detach()
    # At 0, the derivatives of other powers may be infinite; that of `size` is 0 there.
    bounded = _too_steep(fixed, exponents) | (fixed == 0)
    line = fixed**exponents + exponents * LEAST_MEAN ** (exponents - 1) * (size - fixed)
    return torch.where(bounded, line, size.where(~bounded, 1) ** exponents)


def _too_steep(size: Tensor, exponents: Tensor) -> Tensor:
    return (exponents < 1) & (size < LEAST_MEAN)


def _slopes(means: Tensor, size: Tensor, powers: Tensor, exponents: Tensor) -> Tensor:
    """Derivative of the product of all powers w.r.t. the mean of each level."""
    own = torch.eye(len(exponents), dtype=torch.bool, device=means.device)
    others = powers[..., None, :].masked_fill(own, 1).prod(-1)  # product of all other powers
    least = LEAST_MEAN ** (exponents - 1)
    by_size = exponents * torch.where(_too_steep(size, exponents), least, powers / size)
    by_size = by_size.masked_fill(size == 0, 0)
    return others * torch.where(means < 0, -by_size, by_size)
