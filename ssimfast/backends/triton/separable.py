"""Triton kernels of the separable path: volumes, and images with a window of its own per axis.

There is one pass per axis, with one lane per pixel and intermediates in global memory:

    x, y -> moments within rows [-> within columns] -> statistics along the last axis, partials
         -> adjoint along the last axis [-> within columns] -> gradients within rows

Only volumes need the passes in brackets. Passes take their axis as numbers, the taps from memory
and the number of taps at run time, so one kernel serves all axes and windows.

An intermediate holds several maps of the size of the images, one after another: mean and variance
of s, mean and variance of d, and with a mask the sum of the weights in each window; later the
inputs of the adjoint filters. They also have values at pixels that are no positions. Moments there
belong to windows that reach beyond the image, and no position needs them. Partial derivatives there
are 0, so the adjoint filters need not know which pixels are positions.
"""

import triton
import triton.language as tl

from ssimfast.backends import constants
from ssimfast.backends.triton.kernels import (
    inverse_or_zero,
    jit,
    least_coverage,
    load_pair,
    offsets_of_samples,
    partials,
    similarity_of,
    slopes_of,
    statistics,
)

_SSIM = tl.constexpr(constants.SSIM)
_TERMS = tl.constexpr(constants.TERMS)
_MOMENTS = tl.constexpr(4)


# ---- pixels -------------------------------------------------------------------------------------


@jit
def plane_offsets(
    x,
    y,
    mask,
    offsets,
    channels,
    depth,
    height,
    width,
    by_image: tl.int64,
    by_channel: tl.int64,
    by_slice: tl.int64,
    by_row: tl.int64,
    by_column: tl.int64,
    mask_by_image: tl.int64,
    mask_by_channel: tl.int64,
    mask_by_slice: tl.int64,
    mask_by_row: tl.int64,
    mask_by_column: tl.int64,
    low: tl.float64,
    scale: tl.float64,
    MASKED: tl.constexpr,
    A: tl.constexpr,
):
    """Writes the constants that all passes subtract from the images of a plane and from d."""
    plane = tl.program_id(0)
    # 4 x 4 pixels, spread evenly over rows and columns, in four slices.
    index = tl.arange(0, 16)
    i, j = index // 4, index % 4
    slice = (2 * ((i + j) % 4) + 1) * depth // 8
    pixel = (slice, (2 * i + 1) * height // 8, (2 * j + 1) * width // 8)
    strides = (by_image, by_channel, by_slice, by_row, by_column)
    mask_strides = (mask_by_image, mask_by_channel, mask_by_slice, mask_by_row, mask_by_column)
    unit_low = tl.full((), low, A)
    offset, offset_d = offsets_of_samples(
        (x, y, mask),
        place_in(strides, plane, channels, pixel),
        place_in(mask_strides, plane, channels, pixel),
        *(unit_low, tl.full((), scale, A), (unit_low, tl.full((), 1 / (255 * scale), A))),
        *(MASKED, A),
    )
    tl.store(offsets + 2 * plane, offset)
    tl.store(offsets + 2 * plane + 1, offset_d)


@triton.jit
def pixels_of_program(tiles, depth, height, width, BLOCK: tl.constexpr):
    """Plane, places in an intermediate, and (slice, row, column) of the pixels of a program; True
    for pixels that exist."""
    plane = tl.program_id(0) // tiles
    lanes = tl.arange(0, BLOCK)
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK
    column = (first % width).to(tl.int32) + lanes
    rows = (first // width).to(tl.int32) + column // width
    at = plane.to(tl.int64) * depth * height * width + first + lanes
    return plane, at, (rows // height, rows % height, column % width), rows < depth * height


@triton.jit
def place_in(strides, plane, channels, pixel):
    """Offset of pixels in a tensor with these five strides."""
    by_image, by_channel, by_slice, by_row, by_column = strides
    slice, row, column = pixel
    at = (plane // channels).to(tl.int64) * by_image + (plane % channels).to(tl.int64) * by_channel
    at += slice.to(tl.int64) * by_slice + row.to(tl.int64) * by_row
    return at + column.to(tl.int64) * by_column


@triton.jit
def unit_of_plane(offsets, plane, low, scale, A: tl.constexpr):
    """(scale, offset of the images, offset of d, s of black, d of black), as in the fused sweep;
    and the argument ``range_of_x`` of ``load_pair``."""
    unit_low = tl.full((), low, A)
    unit_scale = tl.full((), scale, A)
    offset = tl.load(offsets + 2 * plane)
    offset_d = tl.load(offsets + 2 * plane + 1)
    unit = (unit_scale, offset, offset_d, 2 * (unit_low - offset) * unit_scale, -offset_d)
    return unit, (unit_low, tl.full((), 1 / (255 * scale), A))


@triton.jit
def load_s_d(images, at, at_mask, inside, unit, range_of_x, MASKED: tl.constexpr, A: tl.constexpr):
    """s, d and weight of pixels. Pixels that are not ``inside`` are black, with weight 0."""
    scale, offset, offset_d, black_s, black_d = unit
    x, y, weight = load_pair(images, at, at_mask, inside, offset, range_of_x, MASKED, A)
    s = tl.where(inside, ((x - offset) + (y - offset)) * scale, black_s)
    return s, tl.where(inside, (x - y) * scale - offset_d, black_d), weight


# ---- moments ------------------------------------------------------------------------------------


@triton.jit
def load_element(k, elements, unit, range_of_x, PIXELS: tl.constexpr, MASKED: tl.constexpr, A):
    """Mean and variance of s, those of d, and the weight of element ``k`` of a window: of a pixel
    if PIXELS, else of a window along the axes before.

    ``elements`` is (images or maps; offsets of the centre in them and in the mask; True if there is
    a centre; its index on the axis, the length of the axis, half the window; steps along the axis
    in images or maps and in the mask; size of a map)."""
    sources, at, at_mask, exists, place, size, half, step, mask_step, count = elements
    distance = k - half
    inside = exists & (place + distance >= 0) & (place + distance < size)
    if PIXELS:
        s, d, weight = load_s_d(
            *(sources, at + distance * step, at_mask + distance * mask_step, inside),
            *(unit, range_of_x, MASKED, A),
        )
        v_s = tl.zeros_like(s)
        v_d = v_s
    else:
        _, _, _, black_s, black_d = unit
        source = sources + at + distance * step
        s = tl.load(source, mask=inside, other=black_s)
        v_s = tl.load(source + count, mask=inside, other=0)
        d = tl.load(source + 2 * count, mask=inside, other=black_d)
        v_d = tl.load(source + 3 * count, mask=inside, other=0)
        weight = tl.full((), 1, A)
        if MASKED:
            weight = tl.load(source + 4 * count, mask=inside, other=0)
    return s, v_s, d, v_d, weight


@triton.jit
def moments_along(
    elements, taps, unit, range_of_x, PIXELS: tl.constexpr, MASKED: tl.constexpr, BLOCK, A
):
    """Mean and variance of s, those of d, and the sum of the weights of a window along one axis.

    Something near is subtracted before anything is squared: the element at the centre or, because a
    mask may hide it, the mean, which then comes first."""
    half = elements[6]
    zero = tl.full((BLOCK,), 0, A)
    total, near_s, near_d = zero, zero, zero
    if MASKED:
        for k in range(2 * half + 1):
            s, _, d, _, weight = load_element(k, elements, unit, range_of_x, PIXELS, MASKED, A)
            weight *= tl.load(taps + k)
            total += weight
            near_s += weight * s
            near_d += weight * d
        share = inverse_or_zero(total)
        near_s *= share
        near_d *= share
    else:
        near_s, _, near_d, _, _ = load_element(half, elements, unit, range_of_x, PIXELS, MASKED, A)
    sum_s, square_s, sum_d, square_d = zero, zero, zero, zero
    for k in range(2 * half + 1):
        s, v_s, d, v_d, weight = load_element(k, elements, unit, range_of_x, PIXELS, MASKED, A)
        weight *= tl.load(taps + k)
        e_s, e_d = s - near_s, d - near_d
        sum_s += weight * e_s
        sum_d += weight * e_d
        square_s += weight * (e_s * e_s + v_s)
        square_d += weight * (e_d * e_d + v_d)
    if MASKED:
        v_s, v_d = square_s * share, square_d * share
    else:
        near_s += sum_s
        near_d += sum_d
        v_s, v_d = square_s - sum_s * sum_s, square_d - sum_d * sum_d
        # Only rounding makes a variance negative.
        v_s, v_d = tl.where(v_s < 0, 0, v_s), tl.where(v_d < 0, 0, v_d)
    return near_s, v_s, near_d, v_d, total


@jit
def moments(
    x,
    y,
    mask,
    offsets,
    taps,
    source,
    to,
    count: tl.int64,
    tiles,
    channels,
    depth,
    height,
    width,
    by_image: tl.int64,
    by_channel: tl.int64,
    by_slice: tl.int64,
    by_row: tl.int64,
    by_column: tl.int64,
    mask_by_image: tl.int64,
    mask_by_channel: tl.int64,
    mask_by_slice: tl.int64,
    mask_by_row: tl.int64,
    mask_by_column: tl.int64,
    half,
    low: tl.float64,
    scale: tl.float64,
    PIXELS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """Moments within rows, from the images, if PIXELS; else within columns, from ``source``."""
    plane, own, pixel, exists = pixels_of_program(tiles, depth, height, width, BLOCK)
    unit, range_of_x = unit_of_plane(offsets, plane, low, scale, A)
    strides = (by_image, by_channel, by_slice, by_row, by_column)
    mask_strides = (mask_by_image, mask_by_channel, mask_by_slice, mask_by_row, mask_by_column)
    if PIXELS:
        at = place_in(strides, plane, channels, pixel)
        at_mask = place_in(mask_strides, plane, channels, pixel)
        line = (exists, pixel[2], width, half, by_column, mask_by_column, count)
        elements = ((x, y, mask), at, at_mask) + line
    else:
        elements = (source, own, own, exists, pixel[1], height, half, width, width, count)
    maps = moments_along(elements, taps, unit, range_of_x, PIXELS, MASKED, BLOCK, A)
    for m in tl.static_range(_MOMENTS + MASKED):
        tl.store(to + m * count + own, maps[m], mask=exists)


# ---- statistics ---------------------------------------------------------------------------------


@jit
def last_statistics(
    mask,
    mask_factors,
    offsets,
    taps,
    source,
    to,
    map_0,
    map_1,
    upstream_0,
    upstream_1,
    records,
    count: tl.int64,
    tiles,
    group_planes,
    channels,
    depth,
    height,
    width,
    mask_by_image: tl.int64,
    mask_by_channel: tl.int64,
    mask_by_slice: tl.int64,
    mask_by_row: tl.int64,
    mask_by_column: tl.int64,
    margin_slices,
    margin_rows,
    margin_columns,
    half,
    varies,
    c1: tl.float64,
    c2: tl.float64,
    low: tl.float64,
    scale: tl.float64,
    weight_ssim: tl.float64,
    DEEP: tl.constexpr,
    GRADIENTS: tl.constexpr,
    MAPS: tl.constexpr,
    UPSTREAMS: tl.constexpr,
    SUMMED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """Filters along the last axis, across slices if DEEP. Sums SSIM if SUMMED, writes maps and the
    inputs of the adjoint filters. MAPS and UPSTREAMS are those of the fused sweep. ``varies`` is 0
    if windows have one pixel: only rounding errors would remain of the variance's gradient."""
    plane, own, pixel, exists = pixels_of_program(tiles, depth, height, width, BLOCK)
    slice, row, column = pixel
    unit, range_of_x = unit_of_plane(offsets, plane, low, scale, A)
    _, _, offset_d, black_s, _ = unit
    if DEEP:
        step = tl.cast(height, tl.int64) * width
        elements = (source, own, own, exists, slice, depth, half, step, step, count)
    else:
        elements = (source, own, own, exists, row, height, half, width, width, count)
    m_s, v_s, m_d, v_d, seen = moments_along(
        elements, taps, unit, range_of_x, False, MASKED, BLOCK, A
    )
    mu_s, mu_d = m_s - black_s, m_d + offset_d
    if MASKED:  # a window that sees nothing is one of equal images
        sees = seen >= least_coverage(seen)
        mu_s, mu_d = tl.where(sees, mu_s, 1), tl.where(sees, mu_d, 0)
        v_s, v_d = tl.where(sees, v_s, 1), tl.where(sees, v_d, 0)
    two_c1, two_c2 = 2 * tl.full((), c1, A), 2 * tl.full((), c2, A)
    ms, md, vs, luminance, contrast, r1, r2, half_distance = statistics(
        mu_s, mu_d, v_s, v_d, two_c1, two_c2
    )
    valid = exists & (slice >= margin_slices) & (slice < depth - margin_slices)
    valid = valid & (row >= margin_rows) & (row < height - margin_rows)
    valid = valid & (column >= margin_columns) & (column < width - margin_columns)
    in_map = plane.to(tl.int64) * (depth - 2 * margin_slices) + slice - margin_slices
    in_map = in_map * (height - 2 * margin_rows) + row - margin_rows
    in_map = in_map * (width - 2 * margin_columns) + column - margin_columns
    if MAPS[0]:
        tl.store(map_0 + in_map, similarity_of(half_distance), mask=valid)
    if MAPS[1]:
        tl.store(map_0 + in_map, similarity_of(md * r1), mask=valid)
    if MAPS[2]:
        tl.store(map_1 + in_map, similarity_of(v_d * r2), mask=valid)
    by_ssim = tl.full((), weight_ssim, A)
    if MASKED and UPSTREAMS == 0:
        mask_strides = (mask_by_image, mask_by_channel, mask_by_slice, mask_by_row, mask_by_column)
        at_mask = place_in(mask_strides, plane, channels, pixel)
        at_centre = tl.load(mask + at_mask, mask=valid, other=0)
        half_distance *= at_centre
        if GRADIENTS > 0:
            factor = tl.load(mask_factors + 2 * (plane // group_planes)).to(A)
            by_ssim = by_ssim * factor * at_centre
    if SUMMED:
        distance = tl.where(valid, half_distance, 0).to(tl.float64)
        tl.store(records + tl.program_id(0).to(tl.int64) * _TERMS + _SSIM, tl.sum(distance, 0))
    if GRADIENTS > 0:
        by_luminance, by_contrast = slopes_of(
            *(luminance, contrast, r1, r2, by_ssim, 0.0),
            *((upstream_0, upstream_1), in_map, valid, UPSTREAMS),
        )
        by_contrast = tl.where(varies != 0, by_contrast, 0)
        if MASKED:
            by_luminance, by_contrast = by_luminance / seen, by_contrast / seen
            valid = valid & sees
        maps = partials(
            *((m_s, m_d, mu_s, mu_d), (ms, md, vs, v_d), (by_luminance, by_contrast)), GRADIENTS
        )
        for m in tl.static_range(2 + GRADIENTS):
            tl.store(to + m * count + own, tl.where(valid, maps[m], 0), mask=exists)


# ---- adjoint ------------------------------------------------------------------------------------


@triton.jit
def adjoint_along(
    source, at, exists, place, size, step, count, taps, half, MAPS: tl.constexpr, BLOCK, A
):
    """Sums of taps times the maps at the positions along one axis whose windows contain a pixel."""
    sums = (tl.full((BLOCK,), 0, A),) * MAPS
    for k in range(2 * half + 1):
        distance = k - half
        inside = exists & (place + distance >= 0) & (place + distance < size)
        tap = tl.load(taps + k)
        more = ()
        for m in tl.static_range(MAPS):
            value = tl.load(source + m * count + at + distance * step, mask=inside, other=0)
            more = more + (sums[m] + tap * value,)
        sums = more
    return sums


@jit
def adjoint(
    taps,
    source,
    to,
    count: tl.int64,
    tiles,
    depth,
    height,
    width,
    half,
    DEEP: tl.constexpr,
    MAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """The adjoint filter of MAPS maps across slices if DEEP, else within columns."""
    _, own, pixel, exists = pixels_of_program(tiles, depth, height, width, BLOCK)
    if DEEP:
        line = (pixel[0], depth, tl.cast(height, tl.int64) * width)
    else:
        line = (pixel[1], height, width)
    sums = adjoint_along(source, own, exists, *line, count, taps, half, MAPS, BLOCK, A)
    for m in tl.static_range(MAPS):
        tl.store(to + m * count + own, sums[m], mask=exists)


@jit
def gradients(
    x,
    y,
    mask,
    by_x,
    by_y,
    offsets,
    taps,
    source,
    count: tl.int64,
    tiles,
    channels,
    depth,
    height,
    width,
    by_image: tl.int64,
    by_channel: tl.int64,
    by_slice: tl.int64,
    by_row: tl.int64,
    by_column: tl.int64,
    mask_by_image: tl.int64,
    mask_by_channel: tl.int64,
    mask_by_slice: tl.int64,
    mask_by_row: tl.int64,
    mask_by_column: tl.int64,
    half,
    low: tl.float64,
    scale: tl.float64,
    grad_scale: tl.float64,
    GRADIENTS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    A: tl.constexpr,
):
    """The adjoint filter within rows, and from it the gradients; 0 at pixels with weight 0."""
    plane, own, pixel, exists = pixels_of_program(tiles, depth, height, width, BLOCK)
    unit, range_of_x = unit_of_plane(offsets, plane, low, scale, A)
    maps = adjoint_along(
        *(source, own, exists, pixel[2], width, 1, count, taps, half, 2 + GRADIENTS, BLOCK, A)
    )
    at = place_in((by_image, by_channel, by_slice, by_row, by_column), plane, channels, pixel)
    mask_strides = (mask_by_image, mask_by_channel, mask_by_slice, mask_by_row, mask_by_column)
    at_mask = place_in(mask_strides, plane, channels, pixel)
    s, d, weight = load_s_d((x, y, mask), at, at_mask, exists, unit, range_of_x, MASKED, A)
    by_s = maps[0] + s * maps[1]
    by_d = d * maps[2]
    if GRADIENTS == 2:
        by_d += maps[3]
    out_scale = tl.full((), grad_scale, A)
    if MASKED:
        out_scale *= weight
        by_s, by_d = tl.where(weight == 0, 0, by_s), tl.where(weight == 0, 0, by_d)
    tl.store(by_x + at, ((by_s + by_d) * out_scale).to(by_x.dtype.element_ty), mask=exists)
    if GRADIENTS == 2:
        out = (by_s - by_d) * out_scale
        tl.store(by_y + at, out.to(by_y.dtype.element_ty), mask=exists)
