"""Schemas of the ops ``torch.ops.ssimfast.*``.

Arguments that several ops share:

- ``x``, ``y``: images (N, C, H, W) or volumes (N, C, D, H, W) of one dtype, any strides. float16,
  bfloat16 and uint8 are computed in float32, which is then the dtype of values and maps. Gradients
  have the dtype of the images; uint8 has none.
- ``mask``: weights of the pixels, with the shape of ``x`` and the dtype of a map.
- ``Statistic``: window, constants and value range; ``Loss``: weights of the terms; ``Levels``: the
  pyramid. See there.
- ``gradients``: number of gradients: 1 by ``x``, 2 by both. (For ``y`` alone, swap the images:
  SSIM is symmetric.)
- ``weights``: five factors, one for each term: SSIM, contrast-structure (or MS-SSIM), L1, L2,
  blurred L1. ``wanted``: bit t asks for term t.
- ``rows`` (H,), ``columns`` (W,): the product of the two is the weight of |x - y| at a pixel in the
  blurred L1.
- ``kept``: number of leading dimensions that values keep: () for 0, (N,) for 1, (N, C) for 2.
- ``pooling``: number of ``constants.POOLINGS``. ``negative``: number of ``constants.NEGATIVES``.

``maps`` returns the SSIM map or, with ``components``, the maps of luminance and contrast-structure.
``maps_grad`` returns the gradients of the sum of each map times its upstream gradient.

``sweep`` sums the wanted terms in one pass. A term is a sum over positions (L1, L2 and blurred L1:
over pixels, times positions / pixels) divided by ``count``: a mean, if ``count`` is the number of
positions. It returns

- the value: the sum of ``weights`` times terms, plus ``constant``;
- the terms (..., 5), in the widest dtype of the device; 0 where not wanted;
- the gradients of the sum of ``weights`` times *undivided* terms by images in unit range, times
  ``grad_scale / grad_count``: so the caller chooses numbers that fit float16. ``plane_weights``
  (N, C, 2) takes the place of the first two weights in the gradient, plane by plane;
- unless pooling is "none", both images of the next pyramid level, in unit range.

Volumes have the first term only and are not pooled.

``sweep_levels`` sweeps all levels of a pyramid and combines their terms: the value, the terms, the
slopes (N, C, levels) and the gradients, level by level, finest first. ``slopes`` are what each
level's gradient is worth in that of the value.
``combine_levels`` is the second half of it: value, terms and slopes from the terms (N, C, 5) of all
levels, which are means over ``positions`` positions. With ``negative`` "raise" it raises a
ValueError; ``sweep_levels`` does not take that.

``scale_`` multiplies a gradient by ``upstream * factor / count`` in place.
``collapse_`` multiplies the gradients of all levels by their slopes and ``upstream``, adds them up
in the finest, and adds the gradients of L1, L2 and blurred L1 (``pixel_weights``) to them.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Statistic(NamedTuple):
    """Window, constants and value range of the SSIM statistic."""

    window: list[float]  # taps of the separable filter: an odd number, symmetric, sum 1
    c1: float  # constants of Wang et al. 2004, for the unit range
    c2: float
    low: float  # (value - low) * scale maps the value range to [0, 1], the unit range
    scale: float
    same: bool  # pads with black (`low`), else only windows inside the image

    @property
    def lost(self) -> int:
        """Pixels by which a map is smaller than the images, along each spatial dimension."""
        return 0 if self.same else len(self.window) - 1

    def map_sizes(self, sizes: Sequence[int]) -> list[int]:
        """The spatial sizes of a map of images with these spatial sizes."""
        return [size - self.lost for size in sizes]

    def positions(self, shape: Sequence[int], kept: int) -> int:
        """Number of windows that one value sees, of ``kept`` leading dimensions, in images of
        this shape."""
        count, lost = 1, self.lost
        for size in shape[kept:2]:
            count = count * size
        for size in shape[2:]:
            count = count * (size - lost)
        return count


class Loss(NamedTuple):
    """A weighted sum of terms plus a constant."""

    weights: list[float]  # of SSIM, MS-SSIM, L1, L2, blurred L1
    constant: float = 0.0
    rows: Any = None  # Tensor or None: weights of the pixels in the blurred L1, by row
    columns: Any = None


class Levels(NamedTuple):
    """The pyramid of MS-SSIM."""

    exponents: list[float]  # finest level first
    pooling: int
    negative: int
    joint: bool  # means are averaged over channels first


_STATISTIC = "float[] window, float c1, float c2, float low, float scale, bool same"
_LOSS = "float[] weights, float constant, Tensor? rows, Tensor? columns, int kept, int gradients"
SCHEMAS = {
    "maps": f"(Tensor x, Tensor y, Tensor? mask, {_STATISTIC}, bool components) -> Tensor[]",
    "maps_grad": (
        f"(Tensor[] upstream, Tensor x, Tensor y, Tensor? mask, {_STATISTIC}, int gradients) "
        "-> Tensor[]"
    ),
    "sweep": (
        f"(Tensor x, Tensor y, {_STATISTIC}, {_LOSS}, int wanted, SymInt count, float grad_scale, "
        "SymInt grad_count, Tensor? plane_weights, int pooling) "
        "-> (Tensor, Tensor, Tensor[], Tensor[])"
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
        "(Tensor(a!) finest, Tensor[] coarser, Tensor slopes, Tensor upstream, float scale, "
        "int pooling, Tensor? x, Tensor? y, float[] pixel_weights, Tensor? rows, Tensor? columns) "
        "-> ()"
    ),
}

# The names of each op's arguments, in order.
ARGUMENTS = {
    name: [argument.split()[-1] for argument in schema[1 : schema.index(") ->")].split(", ")]
    for name, schema in SCHEMAS.items()
}

# Compiled kernels take the arguments in this order and cannot check it: they carry the digest of
# the schemas that they were compiled for.
DIGEST = hashlib.sha256(repr(SCHEMAS).encode()).hexdigest()[:16]
