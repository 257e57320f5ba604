// The separable path, for all problems that the fused sweep does not support: other windows,
// float64, volumes and masks. The path is simple: one pass per axis, one thread per pixel, and
// intermediates in global memory.
//
//   x, y -> moments within rows [-> within columns] -> statistics along the last axis, partials
//        -> adjoint along the last axis [-> within columns] -> gradients within rows
//
// Only volumes need the passes in brackets. A pass computes the pixels that are window centres on
// all axes filtered so far; the adjoint takes the axes in reverse order.
//
// A mask gives each pixel a weight. Moments are then weighted means (normalised convolution), and
// each pass also computes the sum of the weights, `total`.
#pragma once

#include <limits>

#include "cuda/image.cuh"
#include "cuda/record.cuh"

namespace ssimfast::cuda {

constexpr int kPixelThreads = 256;

// The axis that a pass filters along, and the strides along that axis.
struct Line {
  Axis axis;
  int size;
  int64_t step;  // in an intermediate image
  int64_t x_step, y_step, mask_step;
};

template <class A>
Line line_of(const Problem<A>& problem, Axis axis) {
  const View &x = problem.x, &y = problem.y, &mask = problem.mask;
  const int64_t width = problem.width, height = problem.height;
  if (axis == kWidth) return {axis, int(width), 1, x.by_column, y.by_column, mask.by_column};
  if (axis == kHeight) return {axis, int(height), width, x.by_row, y.by_row, mask.by_row};
  return {axis, int(problem.depth), height * width, x.by_slice, y.by_slice, mask.by_slice};
}

// Two numbers for s and two for d. Forward: mean and variance. Adjoint: derivatives with respect to
// a pixel (`s`, `d`) and to a variance (`s2`, `d2`).
template <class A>
struct Four {
  A s, s2, d, d2;
};

template <class A>
SSIMFAST_DEVICE Four<A> read_four(const Four<A>* from) {
  const A* const at = reinterpret_cast<const A*>(from);
  return {read(at), read(at + 1), read(at + 2), read(at + 3)};
}

template <class A>
SSIMFAST_DEVICE void write_four(Four<A>* to, const Four<A>& four) {
  A* const at = reinterpret_cast<A*>(to);
  write(at, four.s);
  write(at + 1, four.s2);
  write(at + 2, four.d);
  write(at + 3, four.d2);
}

// Intermediate image, contiguous (plane, slice, row, column). `totals` is null without a mask.
template <class A>
struct Intermediate {
  Four<A>* values;
  A* totals;
};

// Every block lies in one plane; `tiles` blocks cover a plane.
struct PixelGrid {
  int64_t tiles;
};

// The pixel of a thread. Loads this pixel and its neighbours.
template <class A, bool kMasked>
class Pixel {
 public:
  int64_t plane;
  int n, c;  // the plane is channel c of image n
  int slice, row, column;
  bool inside;  // false for threads beyond the last pixel, which have nothing to do

  SSIMFAST_DEVICE Pixel(const Job<A>& job, const PixelGrid& grid)
      : plane(blockIdx.x / grid.tiles),
        n(int(plane / job.channels)),
        c(int(plane % job.channels)),
        job(job),
        unit_range(job, centre(job, plane)) {
    const int64_t i = blockIdx.x % grid.tiles * kPixelThreads + threadIdx.x;
    const int64_t rows = i / job.width;
    column = int(i - rows * job.width);
    slice = int(rows / job.height);
    row = int(rows - slice * job.height);
    inside = slice < job.depth;
  }

  SSIMFAST_DEVICE const UnitRange<A>& unit() const { return unit_range; }

  // True if the pixel is a window centre on all axes before this one; is_centre: on this axis, too.
  SSIMFAST_DEVICE bool is_centre_before(const Line& line) const {
    return inside && (line.axis == kWidth || on_map(kWidth, column, int(job.width))) &&
           (line.axis != kDepth || on_map(kHeight, row, int(job.height)));
  }
  SSIMFAST_DEVICE bool is_centre(const Line& line) const {
    return is_centre_before(line) && on_map(line.axis, place_on(line), line.size);
  }
  SSIMFAST_DEVICE bool on_map(Axis axis, int place, int size) const {
    const int margin = int(job.windows[axis].margin);
    return place >= margin && place < size - margin;
  }
  SSIMFAST_DEVICE int place_on(const Line& line) const {
    return line.axis == kWidth ? column : line.axis == kHeight ? row : slice;
  }

  // Offset of the pixel in an intermediate image; `in`: in a view; `in_map`: in a map, which has no
  // margin.
  SSIMFAST_DEVICE int64_t place() const {
    return ((plane * job.depth + slice) * job.height + row) * job.width + column;
  }
  SSIMFAST_DEVICE int64_t in(const View& image) const {
    return image.plane(n, c) + slice * image.by_slice + row * image.by_row +
           column * image.by_column;
  }
  SSIMFAST_DEVICE int64_t in_map(const View& map) const {
    return in(map)-job.windows[kDepth].margin * map.by_slice -
           job.windows[kHeight].margin * map.by_row - job.windows[kWidth].margin * map.by_column;
  }

  // Loads s, d and weight of the pixel `distance` further along a line. Hidden pixels get
  // s = d = 0, whatever the images hold there.
  SSIMFAST_DEVICE void load_pixel(const Line& line, int distance, A& s, A& d, A& weight) const {
    weight = 1;
    s = d = 0;
    if constexpr (kMasked) weight = load<A>(job.mask, in(job.mask) + distance * line.mask_step);
    if (kMasked && weight == 0) return;
    const A x = load<A>(job.x, in(job.x) + distance * line.x_step);
    const A y = job.y_low + job.y_step * load<A>(job.y, in(job.y) + distance * line.y_step);
    s = unit_range.s(x, y);
    d = unit_range.d(x, y);
  }

 private:
  static SSIMFAST_DEVICE Centre<A> centre(const Job<A>& job, int64_t plane) {
    const int lane = threadIdx.x % kWarp;
    const Sample sample(lane);
    const int64_t slice = Sample::at<int64_t>((sample.row + sample.column) % 4, 0, job.depth);
    const int64_t row = Sample::at<int64_t>(sample.row, 0, job.height);
    const int64_t column = Sample::at<int64_t>(sample.column, 0, job.width);
    const auto at = [&](const View& image) {
      return load<A>(image, image.plane(plane / job.channels, plane % job.channels) +
                                slice * image.by_slice + row * image.by_row +
                                column * image.by_column);
    };
    A value = lane % 2 == 0 ? at(job.x) : job.y_low + job.y_step * at(job.y);
    if constexpr (kMasked) {
      if (at(job.mask) == 0) value = NAN;  // which choose_centre ignores
    }
    return choose_centre(job, value, lane);
  }

  const Job<A>& job;
  const UnitRange<A> unit_range;
};

// ---- moments ------------------------------------------------------------------------------------

// Smallest total weight whose reciprocal is finite. A window with less sees no pixel.
template <class A>
constexpr A kLeastTotal = std::numeric_limits<A>::min();

// Means, variances and total weight of a window. element(k, v, weight) sets the moments and the
// weight of element k, 0 <= k < window.size.
//
// Without a mask, differences are relative to the element at the centre. A mask may hide the
// centre: then the mean is computed first, and differences are relative to the mean.
template <class A, bool kMasked, class Element>
SSIMFAST_DEVICE Four<A> window_moments(const Window<A>& window, Element&& element, A& total) {
  Four<A> v{}, near{}, sum{};
  A weight = 1;
  if constexpr (kMasked) {
    total = 0;
    for (int k = 0; k < window.size; ++k) {
      element(k, v, weight);
      weight *= window.taps[k];
      total += weight;
      near.s += weight * v.s;
      near.d += weight * v.d;
    }
    if (total < kLeastTotal<A>) return {};
    near.s /= total;
    near.d /= total;
  } else {
    element(window.half(), near, weight);
  }
  for (int k = 0; k < window.size; ++k) {
    element(k, v, weight);
    const A tap = kMasked ? window.taps[k] * weight : window.taps[k];
    const A s = v.s - near.s, d = v.d - near.d;
    sum.s += tap * s;
    sum.s2 += tap * (s * s + v.s2);
    sum.d += tap * d;
    sum.d2 += tap * (d * d + v.d2);
  }
  if constexpr (kMasked) {
    const A average = 1 / total;
    return {near.s, sum.s2 * average, near.d, sum.d2 * average};
  }
  return {near.s + sum.s, sum.s2 - sum.s * sum.s, near.d + sum.d, sum.d2 - sum.d * sum.d};
}

// Moments within rows, from the images.
template <class A, bool kMasked>
__global__ void __launch_bounds__(kPixelThreads, 1)
    row_moments(const __grid_constant__ Job<A> job, PixelGrid grid, Line line, Intermediate<A> to) {
  const Pixel<A, kMasked> p(job, grid);
  if (!p.is_centre(line)) return;
  A total = 1;
  const Window<A>& window = job.windows[line.axis];
  const Four<A> moments = window_moments<A, kMasked>(
      window,
      [&](int k, Four<A>& v, A& weight) {
        const int distance = k - window.half(), place = p.place_on(line) + distance;
        v = {p.unit().black_s(), 0, p.unit().black_d(), 0};
        weight = 0;
        if (place >= 0 && place < line.size) p.load_pixel(line, distance, v.s, v.d, weight);
      },
      total);
  write_four(to.values + p.place(), moments);
  if constexpr (kMasked) write(to.totals + p.place(), total);
}

// Moments along an axis, from the moments along the axes before.
template <class A, bool kMasked>
SSIMFAST_DEVICE Four<A> moments_along(const Job<A>& job, const Pixel<A, kMasked>& p,
                                      const Line& line, const Intermediate<A>& from, A& total) {
  const Window<A>& window = job.windows[line.axis];
  return window_moments<A, kMasked>(
      window,
      [&](int k, Four<A>& v, A& weight) {
        const int distance = k - window.half(), place = p.place_on(line) + distance;
        v = {p.unit().black_s(), 0, p.unit().black_d(), 0};
        weight = 0;
        if (place < 0 || place >= line.size) return;
        const int64_t at = p.place() + distance * line.step;
        v = read_four(from.values + at);
        if constexpr (kMasked) weight = read(from.totals + at);
      },
      total);
}

// Moments within columns of volumes, which have one axis more than images.
template <class A, bool kMasked>
__global__ void __launch_bounds__(kPixelThreads, 1)
    column_moments(const __grid_constant__ Job<A> job, PixelGrid grid, Line line,
                   Intermediate<A> from, Intermediate<A> to) {
  const Pixel<A, kMasked> p(job, grid);
  if (!p.is_centre(line)) return;
  A total = 1;
  const Four<A> moments = moments_along<A, kMasked>(job, p, line, from, total);
  write_four(to.values + p.place(), moments);
  if constexpr (kMasked) write(to.totals + p.place(), total);
}

// ---- statistics ---------------------------------------------------------------------------------

// Adds a pixel of this weight to the sums of the pixel terms.
template <class A>
SSIMFAST_DEVICE void add_pixel(const Job<A>& job, A d, A weight, int64_t row, int64_t column,
                               Sum<A> (&sums)[kTerms]) {
#pragma unroll
  for (int t = kL1; t < kTerms; ++t) {
    if (!job.wanted[t]) continue;
    sums[t].add(weight * pixel_term(t, d, is_counted(t) ? pixel_count(job, row, column) : A(0)));
  }
}

// Upstream gradients at a position: those of the maps, or the weights of the loss. `weight`: of the
// pixel there.
template <class A, bool kMasked>
SSIMFAST_DEVICE Upstream<A> upstream_at(const Job<A>& job, const Pixel<A, kMasked>& p, A weight) {
  if (job.pass == Pass::kMapsGradient) {
    const auto at = [&](const View& map) {
      return map.data == nullptr ? A(0) : load<A>(map, p.in_map(map));
    };
    return {at(job.upstream[kSsimMap]), at(job.upstream[kLuminanceMap]),
            at(job.upstream[kContrastMap])};
  }
  if constexpr (kMasked) weight *= mask_factor(job, p.plane, kSsim);
  return {weight * plane_weight(job, p.plane, kSsim), 0,
          weight * plane_weight(job, p.plane, kContrastStructure)};
}

template <class A, bool kMasked>
SSIMFAST_DEVICE void write_maps(const Job<A>& job, const Pixel<A, kMasked>& p,
                                const Terms<A>& terms) {
  const auto write_map = [&](const View& map, A half_distance) {
    if (map.data != nullptr) store<A>(map, p.in_map(map), similarity_of(half_distance));
  };
  write_map(job.map[kSsimMap], terms.half_distance());
  write_map(job.map[kLuminanceMap], terms.half_luminance_distance);
  write_map(job.map[kContrastMap], terms.half_contrast_distance);
}

// Filters along the last axis and computes the outputs of the pass from the moments: sums, maps,
// and the partials for the adjoint if `to` is not null. A window whose pixels are all hidden gets
// the moments of two equal images, so its SSIM is 1 and its partials are 0.
template <class A, bool kMasked>
__global__ void __launch_bounds__(kPixelThreads, 1)
    statistics(const __grid_constant__ Job<A> job, PixelGrid grid, Line line, Intermediate<A> from,
               Four<A>* to) {
  const Pixel<A, kMasked> p(job, grid);
  Sum<A> sums[kTerms];
  Four<A> own{};
  A weight = 0;
  if (p.inside) {
    p.load_pixel(line, 0, own.s, own.d, weight);
    add_pixel(job, own.d + p.unit().centre_d(), weight, p.row, p.column, sums);
  }
  if (p.is_centre(line)) {
    A total = 1;
    const Four<A> m = moments_along<A, kMasked>(job, p, line, from, total);
    const bool sees = !kMasked || total >= kLeastTotal<A>;
    Moments<A> moments{m.s + p.unit().centre_s(), m.d + p.unit().centre_d(),
                       non_negative(m.s2) + job.twice_c2, non_negative(m.d2)};
    if (!sees) moments = {1, 0, 1, 0};
    const Terms<A> terms(moments, job.twice_c1, Reciprocals());
    sums[kSsim].add(weight * terms.half_distance());
    sums[kContrastStructure].add(weight * terms.half_contrast_distance);
    write_maps(job, p, terms);
    if (to != nullptr) {
      Four<A> partial{};
      if (sees) {
        const Partials<A> by = partials(terms, slopes(terms, upstream_at(job, p, weight)));
        partial = {by.by_mu_s + by.by_var_s * (own.s - m.s), by.by_var_s,
                   by.by_mu_d + by.by_var_d * (own.d - m.d), by.by_var_d};
        if constexpr (kMasked) {
          const A seen = 1 / total;
          partial = {partial.s * seen, partial.s2 * seen, partial.d * seen, partial.d2 * seen};
        }
      }
      write_four(to + p.place(), partial);
    }
  }
  if (job.records != nullptr)
    write_record(
        job.records, blockIdx.x, [&](int t) { return job.wanted[t]; }, sums,
        Shared<StoredSum<A>>::dynamic());
}

// ---- adjoint ------------------------------------------------------------------------------------

// Sum of the partials of the windows along an axis that contain the pixel. A partial holds for a
// pixel that equals the centre of the window. The sum moves each partial to s and d of this pixel,
// so it multiplies only differences.
template <class A, bool kMasked>
SSIMFAST_DEVICE Four<A> adjoint_along(const Job<A>& job, const Pixel<A, kMasked>& p,
                                      const Line& line, const Four<A>* from, A s, A d) {
  Four<A> sum{};
  const Window<A>& window = job.windows[line.axis];
  for (int k = 0; k < window.size; ++k) {
    const int distance = k - window.half();
    if (!p.on_map(line.axis, p.place_on(line) + distance, line.size)) continue;
    const Four<A> v = read_four(from + p.place() + distance * line.step);
    A their_s, their_d, weight;
    p.load_pixel(line, distance, their_s, their_d, weight);
    sum.s += window.taps[k] * (v.s + (s - their_s) * v.s2);
    sum.s2 += window.taps[k] * v.s2;
    sum.d += window.taps[k] * (v.d + (d - their_d) * v.d2);
    sum.d2 += window.taps[k] * v.d2;
  }
  return sum;
}

// The adjoint within columns or across slices.
template <class A, bool kMasked>
__global__ void __launch_bounds__(kPixelThreads, 1)
    axis_adjoint(const __grid_constant__ Job<A> job, PixelGrid grid, Line line, const Four<A>* from,
                 Four<A>* to) {
  const Pixel<A, kMasked> p(job, grid);
  if (!p.is_centre_before(line)) return;
  A s, d, weight;
  p.load_pixel(line, 0, s, d, weight);
  write_four(to + p.place(), adjoint_along<A, kMasked>(job, p, line, from, s, d));
}

// The adjoint within rows, and the gradients with respect to x and, if there are two, to y. Hidden
// pixels have a gradient of 0.
template <class A, bool kMasked>
__global__ void __launch_bounds__(kPixelThreads, 1)
    gradients(const __grid_constant__ Job<A> job, PixelGrid grid, Line line, const Four<A>* from) {
  const Pixel<A, kMasked> p(job, grid);
  if (!p.inside) return;
  A s, d, weight;
  p.load_pixel(line, 0, s, d, weight);
  const Four<A> by = adjoint_along<A, kMasked>(job, p, line, from, s, d);
  A slope = slope_at_pixel(job, d + p.unit().centre_d(), p.row, p.column);
  if constexpr (kMasked) slope *= mask_factor(job, p.plane, kL1);
  const A by_d = by.d + slope;
  for (int i = 0; i < job.gradients; ++i) {
    A gradient = (i == 0 ? by.s + by_d : by.s - by_d) * job.grad_scale;
    if constexpr (kMasked) gradient = weight == 0 ? A(0) : gradient * weight;
    store<A>(job.grad[i], p.in(job.grad[i]), gradient);
  }
}

}  // namespace ssimfast::cuda
