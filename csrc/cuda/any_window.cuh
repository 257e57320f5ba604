// Any window and float64, without on-chip rows: four kernels that pass intermediate images through
// global memory, one thread a pixel. The windows that are used in training have the fused kernel
// (sweep.cuh); this one serves all others, narrow Gaussians among them, whose windows each need
// their own centre.
//
//   x, y -> horizontal moments -> statistics, partials -> vertical adjoint -> gradients
//
// Intermediate images hold four numbers a pixel: means and variances of s and of d, then the
// partials (rest_s, by_var_s, rest_d, by_var_d).
#pragma once

#include "job.cuh"

namespace ssimfast::cuda {

constexpr int kPixelThreads = 256;

template <class A>
struct Four {
  A s0, s1, d0, d1;
};

// Written by one kernel and read by the next.
template <class A>
SSIMFAST_DEVICE Four<A> read_four(const Four<A>* from) {
  const A* const at = reinterpret_cast<const A*>(from);
  return {read(at), read(at + 1), read(at + 2), read(at + 3)};
}

template <class A>
SSIMFAST_DEVICE void write_four(Four<A>* to, const Four<A>& four) {
  A* const at = reinterpret_cast<A*>(to);
  write(at, four.s0);
  write(at + 1, four.s1);
  write(at + 2, four.d0);
  write(at + 3, four.d1);
}

// Blocks lie in one plane each; `tiles` of them make a plane.
struct PixelGrid {
  int64_t tiles;
};

template <class A>
struct Pixel {
  int64_t tile, plane, row, column;
  bool inside;  // threads beyond the last pixel have nothing to do

  SSIMFAST_DEVICE Pixel(const Job<A>& job, const PixelGrid& grid)
      : tile(blockIdx.x), plane(tile / grid.tiles) {
    const int64_t i = tile % grid.tiles * kPixelThreads + threadIdx.x;
    row = i / job.width;
    column = i % job.width;
    inside = i < job.height * job.width;
  }

  SSIMFAST_DEVICE bool centre(const Job<A>& job) const {
    return inside && row >= job.margin && row < job.height - job.margin && column >= job.margin &&
           column < job.width - job.margin;
  }
  // Where a pixel of the same plane is in an intermediate image.
  SSIMFAST_DEVICE int64_t at(const Job<A>& job, int64_t r, int64_t c) const {
    return (plane * job.height + r) * job.width + c;
  }
  SSIMFAST_DEVICE int64_t in(const Job<A>& job, const Image<A>& image, int64_t r, int64_t c) const {
    return image.plane(plane / job.channels, plane % job.channels) + r * image.by_row +
           c * image.by_column;
  }
  // s and d of a pixel of the same plane.
  SSIMFAST_DEVICE void load(const Job<A>& job, const UnitRange<A>& unit, int64_t r, int64_t c, A& s,
                            A& d) const {
    const A x = job.x.at(in(job, job.x, r, c)), y = job.y.at(in(job, job.y, r, c));
    s = unit.s(x, y);
    d = unit.d(x, y);
  }
  SSIMFAST_DEVICE UnitRange<A> unit(const Job<A>& job) const {
    const Area whole{plane, 0, job.height, 0, job.width};
    return UnitRange<A>(job, choose_levels(job, whole, threadIdx.x % kWarp));
  }
};

// Horizontal means and variances of every pixel that is a window's centre in its row.
template <class A>
__global__ void __launch_bounds__(kPixelThreads, 1)
    row_moments(const __grid_constant__ Job<A> job, PixelGrid grid, Four<A>* to) {
  const Pixel<A> p(job, grid);
  const UnitRange<A> unit = p.unit(job);
  const int halo = job.window / 2;
  if (!p.inside || p.column < job.margin || p.column >= job.width - job.margin) return;
  const auto values = [&](int64_t c, A& s, A& d) {
    if (c < 0 || c >= job.width) {
      s = unit.black_s();
      d = unit.black_d();
    } else {
      p.load(job, unit, p.row, c, s, d);
    }
  };
  A near_s, near_d;
  values(p.column, near_s, near_d);
  A sum_s = 0, square_s = 0, sum_d = 0, square_d = 0;
  for (int k = 0; k < job.window; ++k) {
    A s, d;
    values(p.column + k - halo, s, d);
    s -= near_s;
    d -= near_d;
    sum_s += job.taps[k] * s;
    square_s += job.taps[k] * (s * s);
    sum_d += job.taps[k] * d;
    square_d += job.taps[k] * (d * d);
  }
  write_four(to + p.at(job, p.row, p.column), Four<A>{near_s + sum_s, square_s - sum_s * sum_s,
                                                      near_d + sum_d, square_d - sum_d * sum_d});
}

// The upstream gradient at a position.
template <class A>
SSIMFAST_DEVICE Upstream<A> upstream_at(const Job<A>& job, const Pixel<A>& p) {
  const auto at = [&](const Image<A>& image) {
    return image.at(p.in(job, image, p.row - job.margin, p.column - job.margin));
  };
  if (job.upstreams == 2) return {0, at(job.upstream[0]), at(job.upstream[1])};
  if (job.upstreams == 1) return {at(job.upstream[0]), 0, 0};
  return {plane_weight(job, p.plane, kSsim), 0, plane_weight(job, p.plane, kContrastStructure)};
}

// From horizontal moments: sums, maps and, if asked for, partials (zero where there is no window).
// The terms over pixels and the images of the next scale come along.
template <class A>
__global__ void __launch_bounds__(kPixelThreads, 1)
    statistics(const __grid_constant__ Job<A> job, PixelGrid grid, const Four<A>* from,
               Four<A>* to) {
  const Pixel<A> p(job, grid);
  const UnitRange<A> unit = p.unit(job);
  const int halo = job.window / 2;
  Sum<A> sums[kTerms];
  A own_s = 0, own_d = 0;
  if (p.inside) {
    p.load(job, unit, p.row, p.column, own_s, own_d);
    const A d = own_d + unit.level_d(), size = d < 0 ? -d : d;
    if (job.wanted[kL1]) sums[kL1].add(size);
    if (job.wanted[kL2]) sums[kL2].add(d * d);
    if (job.wanted[kBlurredL1]) sums[kBlurredL1].add(size * pixel_count(job, p.row, p.column));
  }
  Four<A> partial{};
  if (p.centre(job)) {
    const auto row = [&](int64_t r) {
      return r < 0 || r >= job.height ? Four<A>{unit.black_s(), 0, unit.black_d(), 0}
                                      : read_four(from + p.at(job, r, p.column));
    };
    const Four<A> near = row(p.row);
    A sum_s = 0, square_s = 0, sum_d = 0, square_d = 0;
    for (int k = 0; k < job.window; ++k) {
      const Four<A> v = row(p.row + k - halo);
      const A s = v.s0 - near.s0, d = v.d0 - near.d0;
      sum_s += job.taps[k] * s;
      square_s += job.taps[k] * (s * s + v.s1);
      sum_d += job.taps[k] * d;
      square_d += job.taps[k] * (d * d + v.d1);
    }
    const A mean_s = near.s0 + sum_s, mean_d = near.d0 + sum_d;
    const Moments<A> moments{mean_s + unit.level_s(), mean_d + unit.level_d(),
                             non_negative(square_s - sum_s * sum_s) + job.twice_c2,
                             non_negative(square_d - sum_d * sum_d)};
    const Terms<A> terms(moments, job.twice_c1, Reciprocals());
    sums[kSsim].add(terms.half_distance());
    sums[kContrastStructure].add(terms.half_contrast_distance);
    for (int i = 0; i < job.maps; ++i) {
      const A half = job.maps == 1 ? terms.half_distance()
                     : i == 0      ? terms.half_luminance_distance
                                   : terms.half_contrast_distance;
      job.map[i].set(p.in(job, job.map[i], p.row - job.margin, p.column - job.margin),
                     similarity_of(half));
    }
    if (to != nullptr) {
      const Partials<A> by = partials(terms, slopes(terms, upstream_at(job, p)));
      partial = {by.by_mu_s + by.by_var_s * (own_s - mean_s), by.by_var_s,
                 by.by_mu_d + by.by_var_d * (own_d - mean_d), by.by_var_d};
    }
  }
  if (p.inside && to != nullptr) write_four(to + p.at(job, p.row, p.column), partial);
  if (job.partial != nullptr) write_sums(job, p.tile, sums, Shared<double>::dynamic());
}

// One filter of the adjoint: the sum over a window of partials around (row, column), moved from
// their own pixels to this one.
template <class A, class RowOf, class ColumnOf>
SSIMFAST_DEVICE Four<A> adjoint(const Job<A>& job, const Pixel<A>& p, const UnitRange<A>& unit,
                                const Four<A>* from, RowOf&& row_of, ColumnOf&& column_of) {
  const int halo = job.window / 2;
  A s, d;
  p.load(job, unit, p.row, p.column, s, d);
  Four<A> sum{};
  for (int k = 0; k < job.window; ++k) {
    const int64_t r = row_of(k - halo), c = column_of(k - halo);
    if (r < 0 || r >= job.height || c < 0 || c >= job.width) continue;
    const Four<A> v = read_four(from + p.at(job, r, c));
    A their_s, their_d;
    p.load(job, unit, r, c, their_s, their_d);
    sum.s0 += job.taps[k] * (v.s0 + (s - their_s) * v.s1);
    sum.s1 += job.taps[k] * v.s1;
    sum.d0 += job.taps[k] * (v.d0 + (d - their_d) * v.d1);
    sum.d1 += job.taps[k] * v.d1;
  }
  return sum;
}

template <class A>
__global__ void __launch_bounds__(kPixelThreads, 1)
    column_adjoint(const __grid_constant__ Job<A> job, PixelGrid grid, const Four<A>* from,
                   Four<A>* to) {
  const Pixel<A> p(job, grid);
  const UnitRange<A> unit = p.unit(job);
  if (!p.inside) return;
  write_four(
      to + p.at(job, p.row, p.column),
      adjoint(job, p, unit, from, [&](int i) { return p.row + i; }, [&](int) { return p.column; }));
}

// The horizontal adjoint, and the gradients by x and, with two of them, by y.
template <class A>
__global__ void __launch_bounds__(kPixelThreads, 1)
    gradients(const __grid_constant__ Job<A> job, PixelGrid grid, const Four<A>* from, int count) {
  const Pixel<A> p(job, grid);
  const UnitRange<A> unit = p.unit(job);
  if (!p.inside) return;
  const Four<A> by =
      adjoint(job, p, unit, from, [&](int) { return p.row; }, [&](int i) { return p.column + i; });
  A s, d;
  p.load(job, unit, p.row, p.column, s, d);
  const A by_d = by.d0 + by_difference(job, d + unit.level_d(), p.row, p.column);
  for (int i = 0; i < count; ++i)
    job.grad[i].set(p.in(job, job.grad[i], p.row, p.column),
                    (i == 0 ? by.s0 + by_d : by.s0 - by_d) * job.grad_scale);
}

// Both images of the next scale, one thread a pixel of theirs.
template <class A>
__global__ void __launch_bounds__(kPixelThreads, 1) pool_pair(const __grid_constant__ Job<A> job) {
  const PooledAxis &rows = job.pooled_rows, &columns = job.pooled_columns;
  const int64_t to = int64_t(blockIdx.x) * kPixelThreads + threadIdx.x;
  if (to >= job.planes * rows.size * columns.size) return;
  const int64_t plane = to / (rows.size * columns.size);
  const int64_t i = to / columns.size % rows.size, j = to % columns.size;
  for (int image = 0; image < 2; ++image) {
    const Image<A>& source = image == 0 ? job.x : job.y;
    const int64_t from = source.plane(plane / job.channels, plane % job.channels);
    A sum = 0;
    for (int k = 0; k < 4; ++k) {
      int64_t r = 2 * i - rows.shift + k / 2, c = 2 * j - columns.shift + k % 2;
      if (r < 0 || c < 0) continue;  // black
      r = r < job.height ? r : job.height - 1;
      c = c < job.width ? c : job.width - 1;
      sum += source.at(from + r * source.by_row + c * source.by_column) - job.low;
    }
    write(job.pooled[image] + to, sum * (job.scale / 4));
  }
}

}  // namespace ssimfast::cuda
