"""Triton kernels: the fused sweep over two images, reductions, pooling and backward.

``sweep`` marches down a strip of columns, ROWS rows per step, as the CUDA kernel does. Triton
kernels cannot index shared memory, so each program exchanges data between threads through a few
rows of global memory of its own, the scratch memory, which stays in L1. docs/triton.md has the
counts behind this design. A step has four phases, with a barrier after phases 1 and 3:

1. along columns: rows of x, y, mask -> s, d -> vertical means and variances -> scratch
2. along rows: means and variances -> horizontal filter -> SSIM, sums, maps, partial derivatives
   -> scratch
3. along rows: adjoint rows of the previous step -> horizontal adjoint -> rows of gradients
4. along columns: partial derivatives -> vertical adjoint -> adjoint rows -> scratch

Symbols follow docs/mathematics.md: s = x + y and d = x - y in unit range; mu and v are means and
variances. Suffixes ``_s`` and ``_d`` name the image. ``by_q`` is a derivative w.r.t. q or, for
strides, a step along q. ``A`` is the dtype of the arithmetic. Kernels are not specialised on any
number that changes with the batch: each is compiled once per window, dtype and requested result,
not per image size.
"""

import triton
import triton.language as tl

from ssimfast.backends import constants

# Triton kernels can read globals only if they are constexpr.
_SSIM = tl.constexpr(constants.SSIM)
_CONTRAST_STRUCTURE = tl.constexpr(constants.CONTRAST_STRUCTURE)
_L1 = tl.constexpr(constants.L1)
_L2 = tl.constexpr(constants.L2)
_BLURRED_L1 = tl.constexpr(constants.BLURRED_L1)
_TERMS = tl.constexpr(constants.TERMS)
_FLOOR, _PAD, _REPLICATE = (
    tl.constexpr(constants.POOLINGS[name]) for name in ("floor", "pad", "replicate")
)

_LARGEST_CENTRE_TAP = tl.constexpr(constants.LARGEST_CENTRE_TAP)
_FAR = tl.constexpr(constants.FAR)
_LEAST_MEAN = tl.constexpr(constants.LEAST_MEAN)

# Number of moments: means and variances of s and d. The scratch memory holds these maps first, with
# a mask then the sums of weights, then the partial derivatives, then as many maps of adjoint rows.
_MOMENTS = tl.constexpr(4)


def jit(function):
    """``triton.jit`` without specialisation: one kernel for all sizes, strides and alignments."""
    annotations = function.__annotations__
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    plain = [name for name in names if annotations.get(name) is not tl.constexpr]
    return triton.jit(do_not_specialize=plain, do_not_specialize_on_alignment=plain)(function)


# ---- pixels -------------------------------------------------------------------------------------


@triton.jit
def load_pair(images, at, at_mask, inside, hidden, range_of_x, MASKED: tl.constexpr, A):
    """Loads pixels of x and y, and their weights in the mask; 0 where not ``inside``.

    Pixels with weight 0 get the value ``hidden``, whatever the images hold there. If only y is
    8-bit, ``range_of_x`` is the value of its byte 0 and the step to the next byte."""
    x, y, mask = images
    low, step = range_of_x
    BYTES: tl.constexpr = x.dtype.element_ty != y.dtype.element_ty
    value_x = tl.load(x + at, mask=inside, other=0).to(A)
    value_y = tl.load(y + at, mask=inside, other=0).to(A)
    if BYTES:
        value_y = tl.where(inside, low + step * value_y, 0)
    weight = tl.full((), 1, A)
    if MASKED:
        weight = tl.load(mask + at_mask, mask=inside, other=0)
        value_x = tl.where(weight == 0, hidden, value_x)
        value_y = tl.where(weight == 0, hidden, value_y)
    return value_x, value_y, weight


# ---- one position -------------------------------------------------------------------------------


@triton.jit
def vertical_moments(values, taps, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Means and variances of ROWS windows along columns, from the tuple of rows that they cover.

    A row is subtracted before anything is squared. If the Gaussian is WIDE, all windows share it.
    """
    K: tl.constexpr = len(taps)
    near = values[(K - 1 + ROWS) // 2]
    e = ()
    e2 = ()
    for k in tl.static_range(K - 1 + ROWS if WIDE else 0):
        e = e + (values[k] - near,)
        e2 = e2 + (e[k] * e[k],)
    means = ()
    variances = ()
    for r in tl.static_range(ROWS):
        if not WIDE:
            near = values[r + K // 2]
            e = ()
            e2 = ()
            for k in tl.static_range(r + K):
                e = e + (values[k] - near,)
                e2 = e2 + (e[k] * e[k],)
        mean = taps[0] * e[r]
        square = taps[0] * e2[r]
        for k in tl.static_range(1, K):
            mean = tl.fma(taps[k], e[r + k], mean)
            square = tl.fma(taps[k], e2[r + k], square)
        means = means + (near + mean,)
        variances = variances + (square - mean * mean,)
    return means, variances


@triton.jit
def horizontal_moments(means, variances, taps):
    """Mean and variance of a window along rows, whose elements are themselves means and variances.

    ``means`` and ``variances`` point to the first column of the window."""
    K: tl.constexpr = len(taps)
    near = tl.load(means + K // 2)
    mean = tl.load(means) - near
    square = taps[0] * tl.fma(mean, mean, tl.load(variances))
    mean = taps[0] * mean
    for k in tl.static_range(1, K):
        e = tl.load(means + k) - near
        mean = tl.fma(taps[k], e, mean)
        square = tl.fma(taps[k], tl.fma(e, e, tl.load(variances + k)), square)
    variance = square - mean * mean
    return near + mean, tl.where(variance < 0, 0, variance)  # only rounding makes it negative


@triton.jit
def least_coverage(total):
    """Smallest sum of weights whose reciprocal is finite. A window with less sees no pixel."""
    normal: tl.constexpr = 2.0**-126 if total.dtype == tl.float32 else 2.0**-1022
    return normal


@triton.jit
def inverse_or_zero(total):
    return tl.where(total >= least_coverage(total), 1 / total, 0)


@triton.jit
def masked_vertical_moments(s, d, weights, taps):
    """Means and variances of s and d in a window along a column, and the sum of its weights.

    The mean is subtracted before anything is squared, because the mask may hide the pixel at the
    centre. The second loop multiplies by the weight first: products of taps and weights, which the
    compiler would keep for it, would take a register for each tap."""
    K: tl.constexpr = len(taps)
    total = taps[0] * weights[0]
    mean_s = total * s[0]
    mean_d = total * d[0]
    for k in tl.static_range(1, K):
        weight = taps[k] * weights[k]
        total += weight
        mean_s = tl.fma(weight, s[k], mean_s)
        mean_d = tl.fma(weight, d[k], mean_d)
    share = inverse_or_zero(total)
    mean_s *= share
    mean_d *= share
    square_s = tl.zeros_like(total)
    square_d = tl.zeros_like(total)
    for k in tl.static_range(K):
        e_s = s[k] - mean_s
        e_d = d[k] - mean_d
        square_s = tl.fma(taps[k], weights[k] * (e_s * e_s), square_s)
        square_d = tl.fma(taps[k], weights[k] * (e_d * e_d), square_d)
    return mean_s, square_s * share, mean_d, square_d * share, total


@triton.jit
def masked_horizontal_moments(columns, taps, zeros, PLANE):
    """Means and variances of s and d in a window along rows, and the sum of its weights, from the
    five maps of columns that ``store_masked_moments`` wrote."""
    K: tl.constexpr = len(taps)
    total = zeros
    near_s = zeros
    near_d = zeros
    for k in tl.static_range(K):
        weight = taps[k] * tl.load(columns + k + 4 * PLANE)
        total += weight
        near_s = tl.fma(weight, tl.load(columns + k), near_s)
        near_d = tl.fma(weight, tl.load(columns + k + 2 * PLANE), near_d)
    share = inverse_or_zero(total)
    near_s *= share
    near_d *= share
    square_s = zeros
    square_d = zeros
    for k in tl.static_range(K):
        weight = taps[k] * tl.load(columns + k + 4 * PLANE)
        e_s = tl.load(columns + k) - near_s
        e_d = tl.load(columns + k + 2 * PLANE) - near_d
        square_s = tl.fma(weight, tl.fma(e_s, e_s, tl.load(columns + k + PLANE)), square_s)
        square_d = tl.fma(weight, tl.fma(e_d, e_d, tl.load(columns + k + 3 * PLANE)), square_d)
    return near_s, square_s * share, near_d, square_d * share, total


@triton.jit
def push(pending, value, taps):
    """Adds an input row to the K output rows that it belongs to. Returns the output row that is now
    complete, and the K - 1 pending ones."""
    K: tl.constexpr = len(taps)
    done = taps[0] * value
    rest = ()
    if K > 1:
        done += pending[0]
        for k in tl.static_range(1, K - 1):
            rest = rest + (tl.fma(taps[k], value, pending[k]),)
        rest = rest + (taps[K - 1] * value,)
    return done, rest


@triton.jit
def add(high, low, value):
    """Adds ``value`` to a compensated sum: ``high`` is the sum, ``low`` its rounding errors."""
    total = high + value
    return total, low + (value - (total - high))


@triton.jit
def total(high, low):
    """Sum of compensated sums over all lanes. Ignores a ``low`` that is infinite or NaN."""
    lane = high.to(tl.float64) + tl.where(low - low == 0, low, 0)
    return tl.sum(tl.sum(lane, 1), 0)


@triton.jit
def similarity_of(half_distance):
    """1 - 2 * half_distance, at least -1: only rounding gives less. Keeps NaN."""
    value = 1 - 2 * half_distance
    return tl.where(value < -1, -1, value)


@triton.jit
def sign(v):
    return tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, 0.0)).to(v.dtype)


@triton.jit
def median(value):
    """Median of the finite ones among 16 values; 0 if none is finite."""
    index = tl.arange(0, 16)
    finite = value - value == 0
    value = tl.where(finite, value, 0)
    other, here = value[None, :], value[:, None]
    before = (other < here) | ((other == here) & (index[None, :] < index[:, None]))
    rank = tl.sum((before & finite[None, :]).to(tl.int32), 1)
    count = tl.sum(finite.to(tl.int32), 0)
    return tl.sum(tl.where(finite & (rank == count // 2), value, 0), 0)


@triton.jit
def by_difference(difference, count, l1, l2, blurred):
    """Derivative w.r.t. d of the weighted sum of the pixel terms. ``count`` is the weight of the
    pixel in the blurred L1."""
    A: tl.constexpr = difference.dtype
    by_sign = tl.full((), l1, A) + tl.full((), blurred, A) * count
    return by_sign * sign(difference) + 2 * tl.full((), l2, A) * difference


@triton.jit
def choose_offsets(some_x, some_y, low, scale):
    """Constants that are subtracted from the images and from d, so that filters round less.

    The constant for the images is ``low`` or, if they are far from the value range, the median of
    (x + y) / 2. The constant for d is its median, or 0 if some sampled pixels are equal: d must
    stay exactly 0 there.
    """
    middle = median((some_x + some_y) * 0.5)
    far = tl.abs((middle - low) * scale) > _FAR
    some_d = (some_x - some_y) * scale
    equal = tl.sum((some_d == 0).to(tl.int32), 0) > 0
    offset_d = tl.where(equal, 0, median(some_d))
    return tl.where(far, middle, low), offset_d


@triton.jit
def statistics(mu_s, mu_d, var_s, var_d, two_c1, two_c2):
    """Returns mu_s^2 + 2 C1; mu_d^2; var_s + 2 C2; luminance; contrast-structure; 1 / d1; 1 / d2;
    (1 - SSIM) / 2, computed without cancellation.

    The denominators d1 and d2 of luminance and contrast-structure are twice those of
    docs/mathematics.md."""
    ms = mu_s * mu_s + two_c1
    md = mu_d * mu_d
    vs = var_s + two_c2
    d1 = ms + md
    d2 = vs + var_d
    r = 1 / (d1 * d2)
    r1 = r * d2
    r2 = r * d1
    return ms, md, vs, (ms - md) * r1, (vs - var_d) * r2, r1, r2, (ms * var_d + md * vs) * r


@triton.jit
def correlate(first, taps):
    """Sum of taps times the values from pointer ``first`` on."""
    K: tl.constexpr = len(taps)
    result = taps[0] * tl.load(first)
    for k in tl.static_range(1, K):
        result = tl.fma(taps[k], tl.load(first + k), result)
    return result


# ---- the sweep ----------------------------------------------------------------------------------
#
# Phases of a step, in the order of the data flow. ``unit`` is (scale, offset of the images, offset
# of d, s of black, d of black). ``sums`` holds a compensated sum (high, low) for each term.


@triton.jit
def offsets_of_samples(images, at, at_mask, low, scale, range_of_x, MASKED: tl.constexpr, A):
    """``choose_offsets`` from 16 pixels of both images, less those that the mask hides."""
    every = tl.full((16,), 1, tl.int1)
    some_x, some_y, weight = load_pair(
        images, at, at_mask, every, float("nan"), range_of_x, MASKED, A
    )
    if MASKED:  # the median leaves out NaN, but there must be a value
        none = tl.sum((weight != 0).to(tl.int32), 0) == 0
        some_x = tl.where(none, low, some_x)
        some_y = tl.where(none, low, some_y)
    return choose_offsets(some_x, some_y, low, scale)


@triton.jit
def read_rows(
    images, row, height, by_row, mask_by_row, inside_columns, unit, range_of_x, ROWS, MASKED, A
):
    """Phase 1: reads ROWS rows as s, d and weights. ``images`` point to the columns of row 0."""
    scale, offset, offset_d, black_s, black_d = unit
    s = ()
    d = ()
    weights = ()
    for r in tl.static_range(ROWS):
        inside = inside_columns & (row + r >= 0) & (row + r < height)
        at = (row + r).to(tl.int64) * by_row
        at_mask = (row + r).to(tl.int64) * mask_by_row
        new_x, new_y, weight = load_pair(images, at, at_mask, inside, offset, range_of_x, MASKED, A)
        s = s + (tl.where(inside, ((new_x - offset) + (new_y - offset)) * scale, black_s),)
        d = d + (tl.where(inside, (new_x - new_y) * scale - offset_d, black_d),)
        weights = weights + (weight,)
    return s, d, weights


@triton.jit
def store_moments(to, s, d, taps, WIDE, ROWS: tl.constexpr, PITCH, PLANE):
    """Phase 1: stores vertical means and variances of s and d in the scratch memory."""
    mean_s, var_s = vertical_moments(s, taps, WIDE, ROWS)
    mean_d, var_d = vertical_moments(d, taps, WIDE, ROWS)
    for r in tl.static_range(ROWS):
        tl.store(to + r * PITCH, mean_s[r])
        tl.store(to + r * PITCH + PLANE, var_s[r])
        tl.store(to + r * PITCH + 2 * PLANE, mean_d[r])
        tl.store(to + r * PITCH + 3 * PLANE, var_d[r])


@triton.jit
def store_masked_moments(to, s, d, weights, taps, ROWS: tl.constexpr, PITCH, PLANE):
    """Phase 1 with a mask: stores the vertical moments, and the sum of each window's weights."""
    for r in tl.static_range(ROWS):
        maps = masked_vertical_moments(s[r:], d[r:], weights[r:], taps)
        for m in tl.static_range(_MOMENTS + 1):
            tl.store(to + r * PITCH + m * PLANE, maps[m])


@triton.jit
def with_term(sums, TERM: tl.constexpr, value):
    """``sums`` with ``value`` added to one term."""
    out = ()
    for t in tl.static_range(_TERMS):
        pair = sums[t]
        out = out + ((add(pair[0], pair[1], value) if t == TERM else pair),)
    return out


@triton.jit
def slopes_of(luminance, contrast, r1, r2, by_ssim, by_contrast, upstreams, at, valid, UPSTREAMS):
    """Phase 2: upstream gradients of luminance and contrast-structure, each divided by the square
    of its denominator in docs/mathematics.md (half of 1 / r1 and 1 / r2, hence the factor 4).

    They come from the weights of a loss or from the upstream gradients of maps."""
    if UPSTREAMS == 2:
        by_luminance = tl.load(upstreams[0] + at, mask=valid, other=0)
        by_contrast_structure = tl.load(upstreams[1] + at, mask=valid, other=0)
    else:
        if UPSTREAMS == 1:
            by_ssim = tl.load(upstreams[0] + at, mask=valid, other=0)
            by_contrast = 0
        by_luminance = by_ssim * contrast
        by_contrast_structure = by_ssim * luminance + by_contrast
    return 4 * by_luminance * r1 * r1, 4 * by_contrast_structure * r2 * r2


@triton.jit
def partials(moments, squares, slopes, GRADIENTS: tl.constexpr):
    """Phase 2: inputs of the adjoint filters. For one gradient, the parts of both means are added:
    three maps, not four."""
    m_s, m_d, mu_s, mu_d = moments
    ms, md, vs, v_d = squares
    by_luminance, by_contrast = slopes
    by_var_s = by_contrast * v_d
    by_var_d = -by_contrast * vs
    if GRADIENTS == 2:
        by_mean = mu_s * md * by_luminance - by_var_s * m_s
        by_mean_d = -mu_d * ms * by_luminance - by_var_d * m_d
        return by_mean, by_var_s, by_var_d, by_mean_d
    else:
        by_mean = mu_d * (mu_s * mu_d - ms) * by_luminance
        by_mean += -by_var_s * m_s - by_var_d * m_d
        return by_mean, by_var_s, by_var_d


@triton.jit
def sum_pixel_terms(sums, difference, count, weight, WANTED: tl.constexpr):
    """Phase 3: adds the pixel terms. ``difference`` is 0 for pixels outside the tile."""
    if WANTED[_L1]:
        sums = with_term(sums, _L1, weight * tl.abs(difference))
    if WANTED[_L2]:
        sums = with_term(sums, _L2, weight * (difference * difference))
    if WANTED[_BLURRED_L1]:
        sums = with_term(sums, _BLURRED_L1, weight * (tl.abs(difference) * count))
    return sums


@triton.jit
def horizontal_adjoint(complete, own_s, own_d, taps, GRADIENTS: tl.constexpr, PLANE, zeros):
    """Phase 3: gradients w.r.t. s and d of ROWS rows whose vertical adjoint is complete."""
    by_d = zeros
    if GRADIENTS == 2:
        by_d = correlate(complete + 3 * PLANE, taps)
    by_s = correlate(complete, taps) + own_s * correlate(complete + PLANE, taps)
    return by_s, by_d + own_d * correlate(complete + 2 * PLANE, taps)


@triton.jit
def vertical_adjoint(
    pending, source, to, taps, ROWS: tl.constexpr, MAPS: tl.constexpr, PITCH, PLANE
):
    """Phase 4: adds ROWS rows of partial derivatives to the adjoint rows that they belong to, and
    stores the complete ones. ``pending`` holds the incomplete rows of each map."""
    for r in tl.static_range(ROWS):
        rest = ()
        for m in tl.static_range(MAPS):
            at = r * PITCH + m * PLANE
            done, of_map = push(pending[m], tl.load(source + at), taps)
            tl.store(to + at, done)
            rest = rest + (of_map,)
        pending = rest
    return pending


@jit
def sweep(
    x,
    y,
    mask,
    by_x,
    by_y,
    map_0,
    map_1,
    upstream_0,
    upstream_1,
    plane_weights,
    mask_factors,
    counts_by_row,
    counts_by_column,
    records,
    scratch,
    scratch_size: tl.int64,
    tiles,
    strips,
    runs,
    run_rows,
    group_planes,
    channels,
    height,
    width,
    margin,
    by_image: tl.int64,
    by_channel: tl.int64,
    by_row: tl.int64,
    by_column: tl.int64,
    mask_by_image: tl.int64,
    mask_by_channel: tl.int64,
    mask_by_row: tl.int64,
    mask_by_column: tl.int64,
    c1: tl.float64,
    c2: tl.float64,
    low: tl.float64,
    scale: tl.float64,
    weight_ssim: tl.float64,
    weight_contrast: tl.float64,
    weight_l1: tl.float64,
    weight_l2: tl.float64,
    weight_blurred: tl.float64,
    grad_scale: tl.float64,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    GRADIENTS: tl.constexpr,
    MAPS: tl.constexpr,
    UPSTREAMS: tl.constexpr,
    PLANE_WEIGHTS: tl.constexpr,
    MASKED: tl.constexpr,
    WANTED: tl.constexpr,
    PIXEL_TERMS: tl.constexpr,
    A: tl.constexpr,
):
    """Sums terms, writes maps and gradients of one tile after another.

    WANTED: for each term, True if it is summed. PIXEL_TERMS: for each term, True if it is a pixel
    term in the gradient. MAPS: for SSIM, luminance and contrast-structure, True if its map is
    written; ``map_1`` is for the last. UPSTREAMS: number of upstream gradients of maps: 0, 1 (of
    SSIM) or 2 (of luminance and contrast-structure). MASKED: pixels have weights, and each group of
    ``group_planes`` planes has two ``mask_factors``, unless the gradient is that of maps."""
    K: tl.constexpr = len(TAPS)
    HALO: tl.constexpr = K // 2
    WIDE: tl.constexpr = TAPS[HALO] < _LARGEST_CENTRE_TAP and K > ROWS
    # Pixels around the tile whose statistics its gradients need.
    SPREAD: tl.constexpr = HALO if GRADIENTS > 0 else 0
    OWN: tl.constexpr = COLUMNS - 2 * HALO - 2 * SPREAD
    PITCH: tl.constexpr = COLUMNS + 2 * HALO
    PLANE: tl.constexpr = ROWS * PITCH
    ADJOINTS: tl.constexpr = 0 if GRADIENTS == 0 else 2 + GRADIENTS
    PARTIALS: tl.constexpr = (_MOMENTS + MASKED) * PLANE
    DONE: tl.constexpr = PARTIALS + ADJOINTS * PLANE
    FACTORS: tl.constexpr = MASKED and GRADIENTS > 0 and UPSTREAMS == 0
    PIXEL_SUM: tl.constexpr = WANTED[_L1] or WANTED[_L2] or WANTED[_BLURRED_L1]
    ANY_SUM: tl.constexpr = WANTED[_SSIM] or WANTED[_CONTRAST_STRUCTURE] or PIXEL_SUM

    scratch += tl.program_id(0) * scratch_size
    lanes = tl.arange(0, COLUMNS)
    in_row = tl.arange(0, ROWS)[:, None]
    in_column = lanes[None, :]
    square = scratch + in_row * PITCH + in_column  # the first map of the scratch memory
    zero = tl.full((COLUMNS,), 0, A)
    zeros = tl.full((ROWS, COLUMNS), 0, A)
    unit_low = tl.full((), low, A)
    unit_scale = tl.full((), scale, A)
    range_of_x = (unit_low, tl.full((), 1 / (255 * scale), A))
    two_c1 = 2 * tl.full((), c1, A)
    two_c2 = 2 * tl.full((), c2, A)
    weight_of_ssim = tl.full((), weight_ssim, A)
    weight_of_contrast = tl.full((), weight_contrast, A)

    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.full((), TAPS[k], A),)

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        plane = tile // (strips * runs)
        own_row = tile // strips % runs * run_rows
        own_column = tile % strips * OWN
        own_row_end = tl.minimum(own_row + run_rows, height)
        own_column_end = tl.minimum(own_column + OWN, width)
        first_row = own_row - HALO - SPREAD
        first_column = own_column - HALO - SPREAD
        start = (plane // channels).to(tl.int64) * by_image
        start += (plane % channels).to(tl.int64) * by_channel
        mask_start = (plane // channels).to(tl.int64) * mask_by_image
        mask_start += (plane % channels).to(tl.int64) * mask_by_channel
        if PLANE_WEIGHTS:
            weight_of_ssim = tl.load(plane_weights + 2 * plane).to(A)
            weight_of_contrast = tl.load(plane_weights + 2 * plane + 1).to(A)
        if FACTORS:
            of_positions = tl.load(mask_factors + 2 * (plane // group_planes)).to(A)
            of_pixels = tl.load(mask_factors + 2 * (plane // group_planes) + 1).to(A)

        index = tl.arange(0, 16)
        at_row = own_row + (2 * (index // 4) + 1) * (own_row_end - own_row) // 8
        at_column = own_column + (2 * (index % 4) + 1) * (own_column_end - own_column) // 8
        offset, offset_d = offsets_of_samples(
            (x + start, y + start, mask + mask_start),
            at_row.to(tl.int64) * by_row + at_column * by_column,
            at_row.to(tl.int64) * mask_by_row + at_column * mask_by_column,
            *(unit_low, unit_scale, range_of_x, MASKED, A),
        )
        black_s = 2 * (unit_low - offset) * unit_scale
        unit = (unit_scale, offset, offset_d, black_s, -offset_d)

        column = first_column + lanes
        column_inside = (column >= 0) & (column < width)
        column_at = start + column.to(tl.int64) * by_column
        column_at_mask = mask_start + column.to(tl.int64) * mask_by_column
        columns = (x + column_at, y + column_at, mask + column_at_mask)
        # Columns of statistics, and of the tile's own pixels.
        centre_column = first_column + HALO + in_column
        centre_column_valid = (centre_column >= margin) & (centre_column < width - margin)
        centre_column_own = (centre_column >= own_column) & (centre_column < own_column_end)
        pixel_column = own_column + in_column
        pixel_column_own = pixel_column < own_column_end

        s = (zero,) * (K - 1 + ROWS)
        d = (zero,) * (K - 1 + ROWS)
        weights = (zero,) * (K - 1 + ROWS)
        pending = ((zero,) * (K - 1),) * ADJOINTS
        sums = ((zeros, zeros),) * _TERMS

        # Row of pixels in the first step. Gradients are written one step after their adjoint rows
        # are complete.
        first_pixel = own_row if GRADIENTS == 0 else own_row - 4 * HALO - ROWS
        steps = own_row_end - first_row + HALO + SPREAD
        steps = (steps + ROWS - 1) // ROWS + (1 if GRADIENTS > 0 else 0)
        for step in tl.range(0, steps, num_stages=1):
            # 1. Along columns: vertical means and variances.
            row = first_row + step * ROWS
            fresh_s, fresh_d, fresh_weights = read_rows(
                *(columns, row, height, by_row, mask_by_row, column_inside, unit, range_of_x),
                *(ROWS, MASKED, A),
            )
            s = s[ROWS:] + fresh_s
            d = d[ROWS:] + fresh_d
            if MASKED:
                weights = weights[ROWS:] + fresh_weights
                store_masked_moments(scratch + lanes, s, d, weights, taps, ROWS, PITCH, PLANE)
            else:
                store_moments(scratch + lanes, s, d, taps, WIDE, ROWS, PITCH, PLANE)
            tl.debug_barrier()

            # 2. Along rows: means and variances of whole windows, and the statistics of ROWS rows.
            if MASKED:
                m_s, v_s, m_d, v_d, seen = masked_horizontal_moments(square, taps, zeros, PLANE)
            else:
                m_s, v_s = horizontal_moments(square, square + PLANE, taps)
                m_d, v_d = horizontal_moments(square + 2 * PLANE, square + 3 * PLANE, taps)
            centre_row = row - HALO + in_row
            valid = centre_column_valid & (centre_row >= margin) & (centre_row < height - margin)
            own = valid & centre_column_own & (centre_row >= own_row) & (centre_row < own_row_end)
            mu_s = m_s - black_s
            mu_d = m_d + offset_d
            if MASKED:  # a window that sees nothing is one of equal images
                sees = seen >= least_coverage(seen)
                mu_s, mu_d = tl.where(sees, mu_s, 1), tl.where(sees, mu_d, 0)
                v_s, v_d = tl.where(sees, v_s, 1), tl.where(sees, v_d, 0)
                at_mask = mask_start + centre_row.to(tl.int64) * mask_by_row
                at_mask += centre_column.to(tl.int64) * mask_by_column
                at_centre = tl.load(mask + at_mask, mask=valid, other=0)
            ms, md, vs, luminance, contrast, r1, r2, half_distance = statistics(
                mu_s, mu_d, v_s, v_d, two_c1, two_c2
            )
            if WANTED[_SSIM]:
                distance = half_distance * at_centre if MASKED else half_distance
                sums = with_term(sums, _SSIM, tl.where(own, distance, 0))
            if WANTED[_CONTRAST_STRUCTURE]:
                distance = v_d * r2 * at_centre if MASKED else v_d * r2
                sums = with_term(sums, _CONTRAST_STRUCTURE, tl.where(own, distance, 0))
            in_map = (centre_row - margin).to(tl.int64) * (width - 2 * margin)
            in_map += centre_column - margin
            in_map += plane.to(tl.int64) * (height - 2 * margin) * (width - 2 * margin)
            if MAPS[0]:
                tl.store(map_0 + in_map, similarity_of(half_distance), mask=own)
            if MAPS[1]:
                tl.store(map_0 + in_map, similarity_of(md * r1), mask=own)
            if MAPS[2]:
                tl.store(map_1 + in_map, similarity_of(v_d * r2), mask=own)
            if GRADIENTS > 0:
                by_ssim, by_contrast = weight_of_ssim, weight_of_contrast
                if FACTORS:
                    by_ssim = weight_of_ssim * of_positions * at_centre
                    by_contrast = weight_of_contrast * of_positions * at_centre
                by_luminance, by_contrast = slopes_of(
                    *(luminance, contrast, r1, r2, by_ssim, by_contrast),
                    *((upstream_0, upstream_1), in_map, valid, UPSTREAMS),
                )
                if K == 1:  # no variance: only rounding errors would remain of its gradient
                    by_contrast = zeros
                if MASKED:
                    by_luminance, by_contrast = by_luminance / seen, by_contrast / seen
                    valid = valid & sees
                maps = partials(
                    *((m_s, m_d, mu_s, mu_d), (ms, md, vs, v_d), (by_luminance, by_contrast)),
                    GRADIENTS,
                )
                for m in tl.static_range(ADJOINTS):
                    tl.store(square + PARTIALS + m * PLANE, tl.where(valid, maps[m], 0))

            # 3. Along rows: own pixels, their terms and their gradients.
            if GRADIENTS > 0 or PIXEL_SUM:
                pixel_row = first_pixel + step * ROWS + in_row
                own = pixel_column_own & (pixel_row >= own_row) & (pixel_row < own_row_end)
                at = start + pixel_row.to(tl.int64) * by_row + pixel_column.to(tl.int64) * by_column
                at_mask = mask_start + pixel_row.to(tl.int64) * mask_by_row
                at_mask += pixel_column.to(tl.int64) * mask_by_column
                value_x, value_y, weight = load_pair(
                    (x, y, mask), at, at_mask, own, offset, range_of_x, MASKED, A
                )
                difference = (value_x - value_y) * unit_scale
                count = zeros
                if WANTED[_BLURRED_L1] or PIXEL_TERMS[_BLURRED_L1]:
                    count = tl.load(counts_by_row + pixel_row, mask=own, other=0).to(A)
                    count *= tl.load(counts_by_column + pixel_column, mask=own, other=0).to(A)
                sums = sum_pixel_terms(sums, difference, count, weight, WANTED)
            if GRADIENTS > 0:
                own_s = ((value_x - offset) + (value_y - offset)) * unit_scale
                own_d = difference - offset_d
                by_s, by_d = horizontal_adjoint(
                    square + DONE, own_s, own_d, taps, GRADIENTS, PLANE, zeros
                )
                if PIXEL_TERMS[_L1] or PIXEL_TERMS[_L2] or PIXEL_TERMS[_BLURRED_L1]:
                    slope = by_difference(difference, count, weight_l1, weight_l2, weight_blurred)
                    by_d += slope * of_pixels if MASKED else slope
                out_scale = tl.full((), grad_scale, A)
                if MASKED:
                    out_scale *= weight
                    by_s, by_d = tl.where(weight == 0, 0, by_s), tl.where(weight == 0, 0, by_d)
                tl.store(by_x + at, ((by_s + by_d) * out_scale).to(by_x.dtype.element_ty), mask=own)
                if GRADIENTS == 2:
                    out = (by_s - by_d) * out_scale
                    tl.store(by_y + at, out.to(by_y.dtype.element_ty), mask=own)
            tl.debug_barrier()

            # 4. Along columns: the vertical adjoint.
            if GRADIENTS > 0:
                source = scratch + PARTIALS + lanes
                to = scratch + DONE + lanes
                pending = vertical_adjoint(pending, source, to, taps, ROWS, ADJOINTS, PITCH, PLANE)

        if ANY_SUM:
            to = records + tl.cast(tile, tl.int64) * _TERMS
            for t in tl.static_range(_TERMS):
                pair = sums[t]
                tl.store(to + t, total(pair[0], pair[1]))


# ---- reductions ---------------------------------------------------------------------------------


@jit
def finish_terms(
    records,
    terms,
    value,
    mask_factors,
    count,
    positions: tl.float64,
    divisor: tl.float64,
    positions_per_pixel: tl.float64,
    weight_0: tl.float64,
    weight_1: tl.float64,
    weight_2: tl.float64,
    weight_3: tl.float64,
    weight_4: tl.float64,
    constant: tl.float64,
    WANTED: tl.constexpr,
    MEANS: tl.constexpr,
    MASKED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Terms and value of a group of planes, from its ``count`` records.

    If MEANS, the records are terms of planes, which are averaged; else they are sums of tiles,
    which two ``mask_factors`` of the group multiply if MASKED."""
    weights = (weight_0, weight_1, weight_2, weight_3, weight_4)
    group = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    result = tl.full((), 0, tl.float64)
    for t in tl.static_range(_TERMS):
        term = tl.full((), 0, tl.float64)
        if WANTED[t]:
            sums = tl.full((LANES,), 0, tl.float64)
            for first in range(0, count, LANES):
                index = first + lanes
                record = records + (group * count + index) * _TERMS + t
                sums += tl.load(record, mask=index < count, other=0)
            term = tl.sum(sums, 0)
            if MASKED:
                term *= tl.load(mask_factors + 2 * group + (0 if t < _L1 else 1)).to(tl.float64)
            if MEANS:
                term = term / count
            elif t < _L1:
                term = (positions - 2 * term) / divisor
            else:
                term = term * positions_per_pixel / divisor
            if weights[t] != 0:
                result += weights[t] * term
        tl.store(terms + group * _TERMS + t, term)
    tl.store(value + group, (result + constant).to(value.dtype.element_ty))


@jit
def combine_levels(
    terms,
    plane_terms,
    slopes,
    planes,
    weight: tl.float64,
    position_0: tl.float64,
    position_1: tl.float64,
    position_2: tl.float64,
    position_3: tl.float64,
    position_4: tl.float64,
    position_5: tl.float64,
    position_6: tl.float64,
    position_7: tl.float64,
    position_8: tl.float64,
    position_9: tl.float64,
    position_10: tl.float64,
    position_11: tl.float64,
    position_12: tl.float64,
    position_13: tl.float64,
    position_14: tl.float64,
    position_15: tl.float64,
    count: tl.int64,
    EXPONENTS: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """The op ``combine_levels`` for one plane or, if means are joint, the ``planes`` of an image.

    ``terms`` has shape (levels, ``count`` planes, 5). ``weight`` is the weight of MS-SSIM in the
    value, divided by the number of planes that a value averages. The positions of a plane at each
    level are 16 arguments, not a tuple, because Triton specialises on numbers in tuples."""
    positions = (
        (position_0, position_1, position_2, position_3, position_4, position_5, position_6)
        + (position_7, position_8, position_9, position_10, position_11, position_12)
        + (position_13, position_14, position_15)
    )
    SCALES: tl.constexpr = len(EXPONENTS)
    first = tl.program_id(0).to(tl.int64) * planes
    means = ()
    sizes = ()
    powers = ()
    ms_ssim = tl.full((), 1, tl.float64)
    for j in tl.static_range(SCALES):
        mean = tl.full((), 0, tl.float64)
        for i in range(0, planes):
            at = (first + i) * _TERMS + (_SSIM if j == SCALES - 1 else _CONTRAST_STRUCTURE)
            mean += tl.load(terms + j * count * _TERMS + at).to(tl.float64)
        mean = mean / planes
        size = tl.abs(mean) if ABSOLUTE else tl.where(mean < 0, 0, mean)  # NaN stays
        power = tl.full((), 1, tl.float64)
        if EXPONENTS[j] != 0:
            power = tl.exp(EXPONENTS[j] * tl.log(size))
        ms_ssim *= power
        means = means + (mean,)
        sizes = sizes + (size,)
        powers = powers + (power,)
    for i in range(0, planes):
        plane = first + i
        for j in tl.static_range(SCALES):
            slope = EXPONENTS[j] * powers[j] / sizes[j]
            if EXPONENTS[j] < 1:  # the slope is bounded
                log_least = tl.log(tl.full((), _LEAST_MEAN, tl.float64))
                steepest = EXPONENTS[j] * tl.exp((EXPONENTS[j] - 1) * log_least)
                slope = tl.where(sizes[j] < _LEAST_MEAN, steepest, slope)
            slope = tl.where(sizes[j] == 0, 0, tl.where(means[j] < 0, -slope, slope))
            for other in tl.static_range(SCALES):
                if other != j:
                    slope *= powers[other]
            tl.store(slopes + plane * SCALES + j, slope * weight / positions[j])
        for t in tl.static_range(_TERMS):
            term = ms_ssim
            if t != _CONTRAST_STRUCTURE:  # MS-SSIM has the place of contrast-structure
                term = tl.load(terms + plane * _TERMS + t).to(tl.float64)
            tl.store(plane_terms + plane * _TERMS + t, term)


# ---- the next pyramid level ---------------------------------------------------------------------


@jit
def pool_pair(
    x,
    y,
    pooled_x,
    pooled_y,
    count: tl.int64,
    channels,
    height,
    width,
    pooled_height,
    pooled_width,
    shift_rows,
    shift_columns,
    by_image: tl.int64,
    by_channel: tl.int64,
    by_row: tl.int64,
    by_column: tl.int64,
    low: tl.float64,
    scale: tl.float64,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """Means of 2 x 2 pixels of both images in unit range. The results are contiguous."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    j = (index % pooled_width).to(tl.int32)
    i = (index // pooled_width % pooled_height).to(tl.int32)
    plane = index // pooled_width // pooled_height
    start = plane // channels * by_image + plane % channels * by_channel
    sum_x = tl.full((BLOCK,), 0, A)
    sum_y = tl.full((BLOCK,), 0, A)
    unit_low = tl.full((), low, A)
    unit_scale = tl.full((), scale, A)
    range_of_x = (unit_low, tl.full((), 1 / (255 * scale), A))
    for k in tl.static_range(4):
        # A pixel before the first one is black; a pixel after the last one repeats it.
        row = tl.minimum(2 * i - shift_rows + k // 2, height - 1)
        column = tl.minimum(2 * j - shift_columns + k % 2, width - 1)
        seen = inside & (row >= 0) & (column >= 0)
        at = start + row * by_row + column * by_column
        value_x, value_y, _ = load_pair((x, y, x), at, at, seen, 0.0, range_of_x, False, A)
        sum_x += tl.where(seen, (value_x - unit_low) * unit_scale, 0)
        sum_y += tl.where(seen, (value_y - unit_low) * unit_scale, 0)
    tl.store(pooled_x + index, 0.25 * sum_x, mask=inside)
    tl.store(pooled_y + index, 0.25 * sum_y, mask=inside)


# ---- backward of one-pass losses ----------------------------------------------------------------


@jit
def scale(
    grad,
    upstream,
    factor: tl.float64,
    count: tl.int64,
    image_size: tl.int64,
    channels,
    by_channel: tl.int64,
    upstream_by_image: tl.int64,
    upstream_by_channel: tl.int64,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """Multiplies a gradient by one factor per plane. Elements are numbered as they lie in memory,
    one image after another. Elements with factor 1 are neither read nor written."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    at = index // image_size * upstream_by_image
    at += index // by_channel % channels * upstream_by_channel
    by_plane = tl.load(upstream + at, mask=inside, other=0).to(tl.float64)
    by_plane *= tl.full((), factor, tl.float64)
    inside = inside & (by_plane != 1)
    value = tl.load(grad + index, mask=inside, other=0).to(A) * by_plane.to(A)
    tl.store(grad + index, value.to(grad.dtype.element_ty), mask=inside)


@jit
def collapse(
    grads,
    x,
    y,
    out,
    slopes,
    upstream,
    counts_by_row,
    counts_by_column,
    count: tl.int64,
    channels,
    height,
    width,
    by_image: tl.int64,
    by_channel: tl.int64,
    by_row: tl.int64,
    by_column: tl.int64,
    upstream_by_image: tl.int64,
    upstream_by_channel: tl.int64,
    low: tl.float64,
    scale: tl.float64,
    per_pixel: tl.float64,
    weight_l1: tl.float64,
    weight_l2: tl.float64,
    weight_blurred: tl.float64,
    SCALES: tl.constexpr,
    POOLING: tl.constexpr,
    PIXEL_TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """Sums the gradients of all pyramid levels, times their slopes, at a block of finest pixels.

    ``grads`` is a tuple of one pointer per level, finest first. The finest gradient has the strides
    of the images; the others are contiguous. POOLING is a number from constants.POOLINGS."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    column = (index % width).to(tl.int32)
    row = (index // width % height).to(tl.int32)
    plane = index // width // height
    image, channel = plane // channels, plane % channels
    at = image * by_image + channel * by_channel + row * by_row + column * by_column
    slopes += plane * SCALES
    slope = tl.load(slopes, mask=inside, other=0).to(A)
    sum_of_scales = tl.load(grads[0] + at, mask=inside, other=0).to(A) * slope
    seen = inside
    share = tl.full((BLOCK,), 1, A)
    here_row, here_column = row, column
    rows, columns = height, width
    for j in tl.static_range(1, SCALES):
        share *= 0.25
        if POOLING == _REPLICATE:  # the last of an odd number of rows or columns counts twice
            share *= tl.where((rows % 2 == 1) & (here_row == rows - 1), 2, 1)
            share *= tl.where((columns % 2 == 1) & (here_column == columns - 1), 2, 1)
        if POOLING == _PAD:  # a black row or column precedes an odd number of them
            here_row += rows % 2
            here_column += columns % 2
        if POOLING != _FLOOR:
            rows, columns = rows + 1, columns + 1
        rows, columns = rows // 2, columns // 2
        here_row, here_column = here_row // 2, here_column // 2
        seen = seen & (here_row < rows) & (here_column < columns)
        at_scale = (plane * rows + here_row) * columns + here_column
        slope = tl.load(slopes + j, mask=inside, other=0).to(A)
        here = tl.load(grads[j] + at_scale, mask=seen, other=0).to(A)
        sum_of_scales += share * slope * here
    at_plane = image * upstream_by_image + channel * upstream_by_channel
    factor = tl.load(upstream + at_plane, mask=inside, other=0).to(tl.float64)
    factor *= tl.full((), scale, tl.float64)
    if PIXEL_TERMS[_L1] or PIXEL_TERMS[_L2] or PIXEL_TERMS[_BLURRED_L1]:
        range_of_x = (tl.full((), low, A), tl.full((), 1 / (255 * scale), A))
        value_x, value_y, _ = load_pair((x, y, x), at, at, inside, 0.0, range_of_x, False, A)
        difference = (value_x - value_y) * tl.full((), scale, A)
        pixel_count = tl.full((BLOCK,), 0, A)
        if PIXEL_TERMS[_BLURRED_L1]:
            pixel_count = tl.load(counts_by_row + row, mask=inside, other=0).to(A)
            pixel_count *= tl.load(counts_by_column + column, mask=inside, other=0).to(A)
        by_d = by_difference(difference, pixel_count, weight_l1, weight_l2, weight_blurred)
        sum_of_scales += by_d * tl.full((), per_pixel, A)
    value = sum_of_scales * factor.to(A)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
