"""Schemas of the ops ``torch.ops.ssimfast.*``.

A plane is one channel of one image or volume; a position is a pixel at which a window is centred.
Arguments that several ops share:

- ``x``, ``y``: images (N, C, H, W) or volumes (N, C, D, H, W) of one dtype, with any strides.
  Values and maps are float64 for float64 images and float32 for float16, bfloat16, float32 and
  uint8. Gradients have the dtype of the images; uint8 has none. Beside a half or float32 ``x``,
  ``y`` may be uint8: its range [0, 255] is then the value range of ``x``.
- ``mask``: weights of the pixels, with the shape of ``x`` and the dtype of a map.
- ``mask_factors``: float64, in the shape of the values with one more dimension of size 2. They are
  given with a mask and make its weights means: positions / (sum of the weights at the positions)
  for SSIM and contrast-structure, pixels / (sum of all weights) for the pixel terms; 0 if the sum
  is 0, for which the value is that of equal images.
- ``Statistic``, ``Loss`` and ``Levels``: see the classes below.
- ``gradients``: number of gradients: 0, 1 (w.r.t. ``x``) or 2 (w.r.t. ``x`` and ``y``). For the
  gradient w.r.t. ``y`` alone, swap the images: SSIM is symmetric.
- ``wanted``: terms to sum; bit t stands for term t.
- ``map_term``: term whose map ``sweep`` returns, SSIM or CONTRAST_STRUCTURE; -1 for no map.
- ``kept``: number of leading dimensions that values keep: shape () for 0, (N,) for 1, (N, C) for 2.
- ``pooling``, ``negative``: numbers from ``constants.POOLINGS`` and ``constants.NEGATIVES``.

``maps`` returns the SSIM map or, with ``components``, the maps of luminance and contrast-structure.
``maps_grad`` returns the gradients of the sum of each map times its upstream gradient.

``sweep`` sums the wanted terms in one pass. A term is a sum over positions, divided by ``count``;
the terms over pixels (L1, L2 and blurred L1) are multiplied by positions / pixels. All terms are
therefore means if ``count`` is the number of positions. The op returns

- the value: the sum of ``weights`` times terms, plus ``constant``;
- the terms (..., TERMS), in the widest dtype of the device, 0 for terms that are not wanted;
- the gradients of the sum of ``weights`` times *undivided* terms w.r.t. the images in unit range,
  times ``grad_scale / grad_count``, which the caller chooses such that gradients fit float16. In
  the gradient, ``plane_weights`` (N, C, 2) replaces the first two weights, plane by plane;
- both images of the next pyramid level in unit range, unless ``pooling`` is "none";
- the map of ``map_term``, if any, which is not weighted by the mask.

Volumes, and images with different windows along their axes, have the first term only. They are not
pooled, and neither are masked images.

``sweep_levels`` sweeps all levels of a pyramid and combines their terms. The op returns the value,
the terms, the slopes (N, C, levels) and the gradients of each level, finest level first. A slope is
the factor of a level's gradient in the gradient of the value.
``combine_levels`` is the second half of ``sweep_levels``: it computes value, terms and slopes from
the terms (N, C, TERMS) of all levels, which are means over ``positions`` positions. With
``negative`` "raise", it raises a ValueError for a negative mean; ``sweep_levels`` does not accept
"raise".

``scale_`` multiplies a gradient by ``upstream * factor / count`` in place.
``collapse_`` adds the gradients of all levels, times their slopes, into the finest one, adds those
of the means L1, L2 and blurred L1 (``pixel_weights``), and multiplies by ``upstream * scale``.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple


class Statistic(NamedTuple):
    """Window, constants and value range of the SSIM statistic."""

    # Taps of the separable filter, axis after axis: of one window for all spatial axes, or of one
    # for each. Windows are odd in size, symmetric, with sum 1.
    window: list[float]
    sizes: list[int]  # number of taps of each window
    c1: float  # C1 and C2 of Wang et al. 2004, for the unit range
    c2: float
    low: float  # (value - low) * scale maps the value range to the unit range [0, 1]
    scale: float
    same: bool  # True: pads with black (`low`); False: uses only windows inside the image

    def windows(self, axes: int) -> list[list[float]]:
        """The window along each of so many spatial axes."""
        if len(self.sizes) == 1:
            return [self.window] * axes
        ends = list(itertools.accumulate(self.sizes))
        return [self.window[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]

    def margins(self, axes: int) -> list[int]:
        """Number of pixels at either end of each spatial axis that are no positions."""
        sizes = self.sizes * axes if len(self.sizes) == 1 else self.sizes
        return [0 if self.same else size // 2 for size in sizes]

    def map_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Spatial sizes of the map of images with these spatial sizes."""
        margins = self.margins(len(sizes))
        return [size - 2 * margin for size, margin in zip(sizes, margins, strict=True)]

    def positions(self, shape: Sequence[int], kept: int) -> int:
        """Number of positions that contribute to one value, for images of this shape and values
        that keep ``kept`` leading dimensions."""
        count = 1
        for size in (*shape[kept:2], *self.map_sizes(shape[2:])):
            count = count * size
        return count


class Loss(NamedTuple):
    """A weighted sum of terms plus a constant."""

    weights: list[float]  # of SSIM, contrast-structure (or MS-SSIM), L1, L2, blurred L1
    constant: float = 0.0
    # Tensors (H,) and (W,), or None: rows[i] * columns[j] is the weight of pixel (i, j) in the
    # blurred L1.
    rows: Any = None
    columns: Any = None


class Levels(NamedTuple):
    """The pyramid of MS-SSIM."""

    exponents: list[float]  # one for each level, finest level first
    pooling: int  # from constants.POOLINGS
    negative: int  # from constants.NEGATIVES
    joint: bool  # True: averages the means over the channels before it takes powers


_STATISTIC = "float[] window, int[] sizes, float c1, float c2, float low, float scale, bool same"
_LOSS = "float[] weights, float constant, Tensor? rows, Tensor? columns, int kept, int gradients"
SCHEMAS = {
    "maps": f"(Tensor x, Tensor y, Tensor? mask, {_STATISTIC}, bool components) -> Tensor[]",
    "maps_grad": (
        f"(Tensor[] upstream, Tensor x, Tensor y, Tensor? mask, {_STATISTIC}, int gradients) "
        "-> Tensor[]"
    ),
    "sweep": (
        f"(Tensor x, Tensor y, Tensor? mask, Tensor? mask_factors, {_STATISTIC}, {_LOSS}, "
        "int wanted, SymInt count, float grad_scale, SymInt grad_count, Tensor? plane_weights, "
        "int pooling, int map_term) -> (Tensor, Tensor, Tensor[], Tensor[], Tensor[])"
    ),
    "sweep_levels": (
        f"(Tensor x, Tensor y, {_STATISTIC}, {_LOSS}, float[] exponents, int pooling, "
        "int negative, bool joint) -> (Tensor, Tensor, Tensor, Tensor[])"
    ),
    "combine_levels": (
        "(Tensor[] terms, SymInt[] positions, float[] exponents, int negative, bool joint, "
        "float[] weights, float constant, int kept) -> (Tensor, Tensor, Tensor)"
    ),
    "scale_": "(Tensor(a!) grad, Tensor upstream, float factor, SymInt count) -> ()",
    "collapse_": (
        "(Tensor(a!) finest, Tensor[] coarser, Tensor slopes, Tensor upstream, float low, "
        "float scale, int pooling, Tensor? x, Tensor? y, float[] pixel_weights, Tensor? rows, "
        "Tensor? columns) -> ()"
    ),
}

# Argument names of each op, in order.
ARGUMENTS = {
    name: [argument.split()[-1] for argument in schema[1 : schema.index(") ->")].split(", ")]
    for name, schema in SCHEMAS.items()
}

# Digest of the schemas. Compiled kernels take arguments by position and cannot check the order, so
# the extension stores the digest that it was compiled with, and library.py compares the two.
DIGEST = hashlib.sha256(repr(SCHEMAS).encode()).hexdigest()[:16]
