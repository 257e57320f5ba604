"""What ssimfast computes, in float64 NumPy from the definitions: nothing of the package.

Every window is cut out and multiplied by the full window of two or three dimensions; variances are
means of squared deviations; gradients are the quotient rule on the textbook formulas of Wang et al.
2004 and the adjoints of padding and pooling. Slow and plain. test_oracle.py checks the gradients
by finite differences.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce, wraps
from typing import NamedTuple

import numpy as np

WANG = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SLOPE_BOUND = 1e-4  # a power of a mean with an exponent below 1 is no steeper than at this mean

Array = np.ndarray
Pair = tuple[np.ndarray, np.ndarray]


def remembered(function: Callable) -> Callable:
    """The same function, which computes an answer once for all backends that are asked in turn."""

    @lru_cache(maxsize=64)
    def answer(question: bytes):
        arrays, arguments = pickle.loads(question)
        result = function(*arrays, **arguments)
        for part in result:
            if isinstance(part, np.ndarray):
                part.flags.writeable = False  # several tests get the same one
        return result

    @wraps(function)
    def ask(*arrays, **arguments):
        return answer(pickle.dumps((arrays, arguments)))

    return ask


def taps(kind: str, size: int, sigma: float) -> Array:
    """One dimension of a window, with sum 1."""
    offset = np.arange(size) - (size - 1) / 2
    values = np.exp(-0.5 * (offset / sigma) ** 2) if kind == "gaussian" else np.ones(size)
    return values / values.sum()


class Slab(NamedTuple):
    """Some rows of windows. Arrays have the axes (N, C, *positions, *window); sums over a window
    keep its axes with size 1."""

    rows: slice
    weights: Array  # of the pixels of each window, with sum 1; all 0 where the mask is
    mean_x: Array
    mean_y: Array
    dx: Array
    dy: Array
    luminance: Array
    b1: Array
    contrast: Array
    b2: Array


@dataclass(frozen=True)
class Definition:
    """The arguments of the statistic; its methods take images in unit range."""

    low: float = 0.0
    high: float = 1.0
    window: str = "gaussian"
    size: int | tuple[int, ...] = 11  # or one for each axis
    sigma: float | tuple[float, ...] = 1.5
    k1: float = 0.01
    k2: float = 0.03
    sample_covariance: bool = False
    padding: str = "valid"
    # Gradients are sums of magnitudes then: of what is rounded, where much of it cancels.
    magnitudes: bool = False

    def sizes(self, dims: int) -> tuple[int, ...]:
        return self.size if isinstance(self.size, tuple) else (self.size,) * dims

    def halos(self, dims: int) -> tuple[int, ...]:
        return tuple(size // 2 for size in self.sizes(dims))

    def lines(self, dims: int) -> list[Array]:
        """The window along each axis."""
        sigmas = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,) * dims
        pairs = zip(self.sizes(dims), sigmas, strict=True)
        return [taps(self.window, size, sigma) for size, sigma in pairs]

    def unit(self, image: Array) -> Array:
        return (np.asarray(image, np.float64) - self.low) / (self.high - self.low)

    def centres(self, mask: Array) -> Array:
        """For each position of the map, the mask at the window's centre."""
        if self.padding != "valid":
            return mask
        sides = zip(self.halos(mask.ndim - 2), mask.shape[2:], strict=True)
        return mask[(..., *[slice(halo, length - halo) for halo, length in sides])]

    def components(self, x: Array, y: Array, mask: Array | None = None) -> Pair:
        """The maps of luminance and of contrast and structure."""
        window_axes = tuple(range(-(x.ndim - 2), 0))
        maps = [(slab.luminance, slab.contrast) for slab in self._slabs(x, y, mask)]
        luminance, contrast = (np.concatenate(parts, 2) for parts in zip(*maps, strict=True))
        return luminance.squeeze(window_axes), contrast.squeeze(window_axes)

    def gradients(
        self, x: Array, y: Array, by_luminance: Array, by_contrast: Array, mask: Array | None = None
    ) -> Pair:
        """By x and y, of ``sum(by_luminance * luminance + by_contrast * contrast)``."""
        dims = x.ndim - 2
        factor = 2 * self._bias(dims)
        padded_shape = self._pad(x).shape
        grad_x, grad_y = np.zeros(padded_shape), np.zeros(padded_shape)
        for slab in self._slabs(x, y, mask):
            here = (slice(None), slice(None), slab.rows)
            up_l = np.expand_dims(by_luminance[here], tuple(range(-dims, 0)))
            up_c = np.expand_dims(by_contrast[here], tuple(range(-dims, 0)))
            to_mean_x = up_l * 2 * (slab.mean_y - slab.luminance * slab.mean_x) / slab.b1
            to_mean_y = up_l * 2 * (slab.mean_x - slab.luminance * slab.mean_y) / slab.b1
            to_cov = up_c * factor / slab.b2
            of_x = slab.weights * (to_mean_x + to_cov * (slab.dy - slab.contrast * slab.dx))
            of_y = slab.weights * (to_mean_y + to_cov * (slab.dx - slab.contrast * slab.dy))
            if self.magnitudes:
                means = np.abs(up_l * 2 / slab.b1) * (np.abs(slab.mean_x) + np.abs(slab.mean_y))
                deviations = np.abs(to_cov) * (np.abs(slab.dx) + np.abs(slab.dy))
                of_x = of_y = slab.weights * (means + deviations)
            positions = (up_l.shape[2], *by_luminance.shape[3:])
            for offset in np.ndindex(self.sizes(dims)):
                start = (slab.rows.start + offset[0], *offset[1:])
                at = tuple(slice(s, s + n) for s, n in zip(start, positions, strict=True))
                grad_x[(..., *at)] += of_x[(..., *offset)]
                grad_y[(..., *at)] += of_y[(..., *offset)]
        return self._unpad(grad_x, x.shape), self._unpad(grad_y, x.shape)

    def _bias(self, dims: int) -> float:
        count = int(np.prod(self.sizes(dims)))
        return count / (count - 1) if self.sample_covariance else 1.0

    def _slabs(self, x: Array, y: Array, mask: Array | None) -> Iterator[Slab]:
        dims = x.ndim - 2
        axes = tuple(range(-dims, 0))
        window = reduce(np.multiply.outer, self.lines(dims))
        c1, c2, bias = self.k1**2, self.k2**2, self._bias(dims)
        if mask is not None:  # what is not seen may be anything
            x, y = np.where(mask > 0, x, 0.0), np.where(mask > 0, y, 0.0)
        cut = lambda image: np.lib.stride_tricks.sliding_window_view(  # noqa: E731
            self._pad(image), window.shape, axes
        )
        all_x, all_y = cut(x), cut(y)
        all_seen = None if mask is None else cut(mask)
        rows = all_x.shape[2]
        step = max(1, rows * 2**18 // all_x.size)  # slabs that fit a cache
        for start in range(0, rows, step):
            here = slice(start, min(start + step, rows))
            px, py = all_x[:, :, here], all_y[:, :, here]
            weights = window if all_seen is None else window * all_seen[:, :, here]
            total = weights.sum(axes, keepdims=True)
            blind = total == 0
            weights = weights / np.where(blind, 1, total)
            mean_x = (weights * px).sum(axes, keepdims=True)
            mean_y = (weights * py).sum(axes, keepdims=True)
            dx, dy = px - mean_x, py - mean_y
            var_x = bias * (weights * dx * dx).sum(axes, keepdims=True)
            var_y = bias * (weights * dy * dy).sum(axes, keepdims=True)
            cov = bias * (weights * dx * dy).sum(axes, keepdims=True)
            b1 = np.where(blind, 1, mean_x**2 + mean_y**2 + c1)
            b2 = np.where(blind, 1, var_x + var_y + c2)
            luminance = np.where(blind, 1, (2 * mean_x * mean_y + c1) / b1)
            contrast = np.where(blind, 1, (2 * cov + c2) / b2)
            yield Slab(here, weights, mean_x, mean_y, dx, dy, luminance, b1, contrast, b2)

    def _reflected(self, length: int) -> Array:
        """For each position of a reflected axis, the pixel that it shows."""
        return np.pad(np.arange(length), self.size // 2, mode="reflect")

    def _pad(self, image: Array) -> Array:
        if self.padding == "reflect":
            for axis in range(2, image.ndim):
                image = image.take(self._reflected(image.shape[axis]), axis)
        if self.padding == "same":
            borders = [(halo, halo) for halo in self.halos(image.ndim - 2)]
            image = np.pad(image, [(0, 0)] * 2 + borders)
        return image

    def _unpad(self, grad: Array, shape: tuple[int, ...]) -> Array:
        """The adjoint of _pad."""
        if self.padding == "reflect":
            for axis in range(2, grad.ndim):
                folded = np.zeros((*grad.shape[:axis], shape[axis], *grad.shape[axis + 1 :]))
                np.add.at(folded, (*[slice(None)] * axis, self._reflected(shape[axis])), grad)
                grad = folded
        if self.padding == "same":
            sides = zip(self.halos(grad.ndim - 2), shape[2:], strict=True)
            grad = grad[(..., *[slice(halo, halo + length) for halo, length in sides])]
        return grad


@remembered
def ssim(
    x: Array,
    y: Array,
    *,
    mask: Array | None = None,
    upstream: Array | None = None,
    **definition,
) -> tuple[Array, Array, Array]:
    """The map of SSIM, and the gradients by x and y of ``sum(upstream * map)`` (default: ones)."""
    by = Definition(**definition)
    if mask is not None:
        mask = weights_of(mask, x.shape)
    x, y = by.unit(x), by.unit(y)
    luminance, contrast = by.components(x, y, mask)
    if upstream is None:
        upstream = np.ones_like(luminance)
    grad_x, grad_y = by.gradients(x, y, upstream * contrast, upstream * luminance, mask)
    length = by.high - by.low
    return luminance * contrast, grad_x / length, grad_y / length


def centres(shape: tuple[int, ...], *, mask: Array | None = None, **definition) -> Array:
    """For each position of the map of images of ``shape``, the mask at the window's centre."""
    return Definition(**definition).centres(weights_of(mask, shape))


def weights_of(mask: Array | None, shape: tuple[int, ...]) -> Array:
    """The weight of each pixel: 1 without a mask."""
    return np.broadcast_to(np.asarray(1.0 if mask is None else mask, np.float64), shape)


def shares_of(weights: Array, axes: tuple[int, ...]) -> Array:
    """What each number counts in a weighted mean over these axes; 0 if all weights are 0."""
    total = weights.sum(axes, keepdims=True)
    return weights / np.where(total == 0, 1, total)


def mean_of(values: Array, shares: Array, axes: tuple[int, ...], of_nothing: float) -> Array:
    return np.where(shares.any(axes), (shares * values).sum(axes), of_nothing)


@remembered
def components(
    x: Array,
    y: Array,
    *,
    mask: Array | None = None,
    upstream: tuple[Array | float, Array | float] = (1.0, 1.0),
    **definition,
) -> tuple[Array, Array, Array, Array]:
    """The maps of luminance and of contrast and structure; the gradients by x and y of the sum of
    both, each times its upstream gradient."""
    by = Definition(**definition)
    x, y = by.unit(x), by.unit(y)
    if mask is not None:
        mask = weights_of(mask, x.shape)
    maps = by.components(x, y, mask)
    by_maps = (np.broadcast_to(up, maps[0].shape) for up in upstream)
    grad_x, grad_y = by.gradients(x, y, *by_maps, mask)
    length = by.high - by.low
    return *maps, grad_x / length, grad_y / length


# ---- MS-SSIM ------------------------------------------------------------------------------------


def halve(image: Array, odd: str) -> Array:
    """Means of 2 x 2 pixels."""
    for axis in (2, 3):
        if image.shape[axis] % 2:
            edge = [(0, 0)] * 4
            if odd == "floor":
                image = image.take(range(image.shape[axis] - 1), axis)
            elif odd == "pad":
                edge[axis] = (1, 0)
                image = np.pad(image, edge)
            else:
                edge[axis] = (0, 1)
                image = np.pad(image, edge, mode="edge")
        pairs = image.reshape(*image.shape[:axis], -1, 2, *image.shape[axis + 1 :])
        image = pairs.mean(axis + 1)
    return image


def halve_adjoint(grad: Array, odd: str, shape: tuple[int, ...]) -> Array:
    for axis in (3, 2):
        grad = np.repeat(grad, 2, axis) / 2
        if shape[axis] % 2:
            lines = np.moveaxis(grad, axis, 0)
            if odd == "floor":
                lines = np.concatenate([lines, np.zeros_like(lines[:1])])
            elif odd == "pad":
                lines = lines[1:]
            else:
                lines = np.concatenate([lines[:-2], lines[-2:].sum(0, keepdims=True)])
            grad = np.moveaxis(lines, 0, axis)
    return grad


def halve_weights(mask: Array, odd: str) -> Array:
    """Means of the weights of 2 x 2 pixels; the black ones that "pad" adds have weight 1."""
    if odd == "pad":
        edges = [(0, 0), (0, 0), *((side % 2, 0) for side in mask.shape[2:])]
        mask = np.pad(mask, edges, constant_values=1.0)
    return halve(mask, odd)


def inverse(weights: Array) -> Array:
    """1 / weights, 0 where they are 0."""
    return np.divide(1, weights, out=np.zeros_like(weights), where=weights > 0)


class MultiScale(NamedTuple):
    value: Array  # (N, C), or (N,) for channels="joint"
    grad_x: Array
    grad_y: Array
    means: Array  # of each scale, before what is done to negative ones: (M, *value.shape)
    counts: tuple[int, ...]  # of windows in one mean of each scale, as if all weighed the same


@remembered
def ms_ssim(
    x: Array,
    y: Array,
    *,
    mask: Array | None = None,
    weights: tuple[float, ...] = WANG,
    odd: str = "floor",
    negative: str = "relu",
    channels: str = "separate",
    upstream: Array | None = None,
    **definition,
) -> MultiScale:
    """MS-SSIM of each plane or image, the gradients of ``sum(upstream * value)`` (default: ones),
    the means over each scale."""
    coarsest = Definition(**definition)
    finer = coarsest
    if coarsest.padding == "reflect":
        finer = Definition(**{**definition, "padding": "valid"})
    scales, seen = [(coarsest.unit(x), coarsest.unit(y))], [weights_of(mask, x.shape)]
    for _ in weights[1:]:
        visible = [np.where(seen[-1] > 0, image, 0) * seen[-1] for image in scales[-1]]
        seen.append(halve_weights(seen[-1], odd))
        scales.append(tuple(halve(image, odd) * inverse(seen[-1]) for image in visible))
    masks = [None if mask is None else weight for weight in seen]
    definitions = [finer] * (len(weights) - 1) + [coarsest]
    maps = [
        by.components(*images, mask)
        for by, images, mask in zip(definitions, scales, masks, strict=True)
    ]
    averaged = [contrast for _, contrast in maps[:-1]] + [maps[-1][0] * maps[-1][1]]
    shares = [
        shares_of(by.centres(weight) if mask is not None else np.ones_like(one), (2, 3))
        for by, weight, one in zip(definitions, seen, averaged, strict=True)
    ]
    means = np.stack(
        [mean_of(*each, (2, 3), of_nothing=1.0) for each in zip(averaged, shares, strict=True)]
    )
    axes = (2, 3)
    if channels == "joint":
        axes, means = (1, 2, 3), means.mean(2)
        shares = [share / x.shape[1] for share in shares]
    if negative == "raise" and (means < 0).any():
        raise ValueError("negative mean")
    sizes = np.abs(means) if negative == "abs" else np.maximum(means, 0)
    exponents = np.asarray(weights, np.float64).reshape(-1, *[1] * (means.ndim - 1))
    powers = sizes**exponents
    value = powers.prod(0)
    if upstream is None:
        upstream = np.ones_like(value)

    slopes = exponents * np.where(exponents < 1, np.maximum(sizes, SLOPE_BOUND), sizes) ** (
        exponents - 1
    )
    slopes = slopes * (np.sign(means) if negative == "abs" else means > 0)
    for scale in range(len(weights)):
        slopes[scale] *= np.delete(powers, scale, 0).prod(0)
    counts = tuple(alike(share, axes) for share in shares)
    grad_x = grad_y = None
    for scale in reversed(range(len(weights))):
        by_map = np.expand_dims(upstream * slopes[scale], axes) * shares[scale]
        if scale == len(weights) - 1:
            luminance, contrast = maps[scale]
            by_luminance, by_contrast = by_map * contrast, by_map * luminance
        else:
            by_luminance, by_contrast = np.zeros_like(by_map), by_map
        grads = definitions[scale].gradients(
            *scales[scale], by_luminance, by_contrast, masks[scale]
        )
        if scale < len(weights) - 1:
            into, shape = inverse(seen[scale + 1]), scales[scale][0].shape
            of_pooled = (halve_adjoint(grad * into, odd, shape) for grad in (grad_x, grad_y))
            grads = [grad + seen[scale] * more for grad, more in zip(grads, of_pooled, strict=True)]
        grad_x, grad_y = grads
    length = coarsest.high - coarsest.low
    return MultiScale(value, grad_x / length, grad_y / length, means, counts)


def alike(shares: Array, axes: tuple[int, ...]) -> int:
    """Number of equal shares whose mean would be as noisy; the smallest of all means."""
    return round(1 / max((shares**2).sum(axes).max(), 1 / shares.size))


# ---- similarity_loss ----------------------------------------------------------------------------


class Loss(NamedTuple):
    value: Array  # (N,), or () for all images together
    grad_x: Array  # of the sum of the values
    grad_y: Array
    terms: dict[str, Array]  # those with a factor above 0, of the shape of the value


@remembered
def similarity_loss(
    x: Array,
    y: Array,
    *,
    factors: dict[str, float],
    mask: Array | None = None,
    together: bool = False,
    weights: tuple[float, ...] = WANG,
    odd: str = "floor",
    negative: str = "relu",
    channels: str = "separate",
    **definition,
) -> Loss:
    """The loss of each image, or of all of them: where images see different parts of themselves,
    the latter is not the mean of the former. ``factors`` may leave out terms whose factor is 0."""
    by = Definition(**definition)
    axes = (0, 1, 2, 3) if together else (1, 2, 3)
    length = by.high - by.low
    seen = weights_of(mask, x.shape)
    d = np.where(seen > 0, by.unit(x) - by.unit(y), 0)
    of_pixels = shares_of(seen, axes)
    terms: dict[str, Array] = {}
    value, grad_x, grad_y = np.zeros(()), np.zeros(x.shape), np.zeros(x.shape)
    for name, factor in factors.items():
        if factor == 0:
            continue
        if name == "ssim":
            of_windows = shares_of(by.centres(seen), axes)
            ssim_map, by_x, by_y = ssim(x, y, mask=mask, upstream=-of_windows, **definition)
            terms[name] = mean_of(ssim_map, of_windows, axes, of_nothing=1.0)
        elif name == "ms_ssim":
            scales = dict(weights=weights, odd=odd, negative=negative, channels=channels)
            result = ms_ssim(x, y, mask=mask, **scales, **definition)
            averaged = axes[: result.value.ndim - (not together)]
            share = np.prod([result.value.shape[axis] for axis in averaged])
            terms[name] = result.value.mean(averaged)
            by_x, by_y = -result.grad_x / share, -result.grad_y / share
        else:
            if name == "l1":
                term, by_d = np.abs(d), np.sign(d)
            elif name == "l2":
                term, by_d = d**2, 2 * d
            else:
                assert mask is None
                scale = 2 ** (len(weights) - 1) if factors.get("ms_ssim", 0) > 0 else 1
                radius = by.size // 2 * scale
                line = taps(by.window, 2 * radius + 1, by.sigma * scale)
                rows, columns = (_blur_matrix(line, side) for side in d.shape[2:])
                term = rows @ np.abs(d) @ columns.T
                by_d = np.sign(d) * np.outer(rows.sum(0), columns.sum(0))
            terms[name] = mean_of(term, of_pixels, axes, of_nothing=0.0)
            by_d = of_pixels * by_d / length
            by_x, by_y = by_d, -by_d
        value = value + factor * (1 - terms[name] if name in ("ssim", "ms_ssim") else terms[name])
        grad_x += factor * by_x
        grad_y += factor * by_y
    return Loss(value, grad_x, grad_y, terms)


def _blur_matrix(line: Array, length: int) -> Array:
    """(length, length): row q holds what each pixel adds to the window around q."""
    radius = len(line) // 2
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    return np.where(distance <= radius, line[np.minimum(radius + distance, 2 * radius)], 0.0)
