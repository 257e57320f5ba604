// What the kernels of ssim_cuda.cu are told, and the parts that the fused kernel (sweep.cuh) and
// the one for any window (any_window.cuh) share.
#pragma once

#include "../terms.h"
#include "image.cuh"

namespace ssimfast::cuda {

enum class Pass {
  kForward,       // sums of the terms, maps
  kGradientX,     // sums of the terms, and the gradient of their weighted sum by x
  kGradientBoth,  // by x and by y
};

// Maps and their upstream gradients come as one (SSIM) or two (luminance, contrast-structure).
template <class A>
struct Job {
  Image<A> x, y;
  Image<A> map[2];
  Image<A> upstream[2];  // gradients by the maps, one element a position
  int maps, upstreams;
  Image<A> grad[2];
  A grad_scale;           // of the gradients on the way out: 1 for those that are not finished
  bool wanted[kTerms];    // by the sums
  A weight[kTerms];       // in the gradient, of plain sums
  const A* plane_weight;  // if given, two numbers a plane in place of the first two weights
  const A* rows;          // kBlurredL1 only: a pixel counts rows[r] * columns[c]
  const A* columns;
  Pooling pooling;  // x and y of the next scale, in unit range, contiguous
  PooledAxis pooled_rows, pooled_columns;
  A* pooled[2];
  int64_t planes, channels, height, width;
  int window;
  int64_t margin;  // pixels at each edge that are no window's centre: halo for "valid", else 0
  A taps[kMaxWindow];
  A weighted_taps[kMaxWindow];       // times four times weight[kSsim] and grad_scale
  A twice_c1, twice_c2, low, scale;  // unit range = (value - low) * scale
  double* partial;                   // kTerms sums of each tile: see reduce.cuh
};

// A rectangle of one plane.
struct Area {
  int64_t plane;  // n * channels + c
  int64_t row_begin, row_end, column_begin, column_end;
};

// Constants that are subtracted from s and d, in unit range: filters and their adjoints round off
// less where values are near 0.
template <class A>
struct Levels {
  A image;  // half of that of s, before the scale
  A d;
};

// s = x + y and d = x - y in unit range, less their levels.
template <class A>
class UnitRange {
 public:
  SSIMFAST_DEVICE UnitRange(const Job<A>& job, const Levels<A>& levels)
      : scale(job.scale),
        twice_scale(2 * job.scale),
        twice_offset(-levels.image * twice_scale),
        twice_black(job.low * twice_scale + twice_offset),
        level(levels.d) {}

  // 2 y + (x - y): each step loses no more than its own last digit, however far away the images.
  SSIMFAST_DEVICE A s(A x, A y) const {
    return multiply_add(x - y, scale, multiply_add(y, twice_scale, twice_offset));
  }
  SSIMFAST_DEVICE A d(A x, A y) const { return multiply_add(x - y, scale, -level); }
  // Of the padding, where both images are black.
  SSIMFAST_DEVICE A black_s() const { return twice_black; }
  SSIMFAST_DEVICE A black_d() const { return -level; }
  // What the levels took from every mean.
  SSIMFAST_DEVICE A level_s() const { return -twice_black; }
  SSIMFAST_DEVICE A level_d() const { return level; }
  // Rounded at the size of the result only once: far from the range that is all an image keeps.
  SSIMFAST_DEVICE A x(A s, A d) const {
    return multiply_add(s + (d + level), A(0.5), A(-0.5) * twice_black);
  }
  SSIMFAST_DEVICE A y(A s, A d) const {
    return multiply_add(s - (d + level), A(0.5), A(-0.5) * twice_black);
  }

 private:
  A scale, twice_scale, twice_offset, twice_black, level;
};

// The median of the values of those lanes that count, 0 if none does. By rank: every lane compares
// its value with all others.
template <class A>
SSIMFAST_DEVICE A median(A value, bool counts, int lane) {
  int rank = 0, count = 0;
  for (int other = 0; other < kWarp; ++other) {
    const A theirs = from_lane(value, other);
    const bool counts_too = from_lane(int(counts), other) != 0;
    count += counts_too;
    rank += counts_too && (theirs < value || (theirs == value && other < lane));
  }
  A middle = counts && rank == count / 2 ? value : A(0);  // of one lane
  for (int mask = kWarp / 2; mask > 0; mask /= 2) middle += from_lane_xor(middle, mask);
  return middle;
}

// Of s: `low`, unless the images are so far from the range (a bias, another unit) that s would
// round off more than either image did. There it is the median of some values of the area, which
// outliers do not move. Of d: the median, unless some pixels are equal, which have to stay so, or
// signs are asked for, which a small d would lose. Every warp computes them for itself, of the same
// values.
template <class A>
SSIMFAST_DEVICE Levels<A> choose_levels(const Job<A>& job, const Area& area, int lane) {
  constexpr A kFarAway = 4;
  const int sample = lane / 2;  // 4 x 4 samples of each image
  const auto at = [](int64_t begin, int64_t end, int i) {
    return begin + (2 * i + 1) * (end - begin) / 8;
  };
  const Image<A>& image = lane % 2 == 0 ? job.x : job.y;
  const A value = image.at(image.plane(area.plane / job.channels, area.plane % job.channels) +
                           at(area.row_begin, area.row_end, sample / 4) * image.by_row +
                           at(area.column_begin, area.column_end, sample % 4) * image.by_column);
  const bool finite = value - value == 0;
  const A middle = median(value, finite, lane);
  const A distance = (middle - job.low) * job.scale;
  const A other = from_lane_xor(value, 1);
  const A d = (lane % 2 == 0 ? value - other : other - value) * job.scale;
  const A middle_d = median(d, d - d == 0, lane);
  int equal = d == 0;
  const bool needs_sign = job.weight[kL1] != 0 || job.weight[kBlurredL1] != 0;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) equal |= from_lane_xor(equal, mask);
  return {distance > kFarAway || distance < -kFarAway ? middle : job.low,
          equal != 0 || needs_sign ? A(0) : middle_d};
}

template <class A>
SSIMFAST_DEVICE A plane_weight(const Job<A>& job, int64_t plane, Term term) {
  return job.plane_weight == nullptr ? job.weight[term] : read(job.plane_weight + 2 * plane + term);
}

// What the pixel (row, column) of difference d adds to the sums over pixels.
template <class A>
SSIMFAST_DEVICE A pixel_count(const Job<A>& job, int64_t row, int64_t column) {
  return job.rows == nullptr ? A(0) : read(job.rows + row) * read(job.columns + column);
}

// The derivative of the terms over pixels by d.
template <class A>
SSIMFAST_DEVICE A by_difference(const Job<A>& job, A d, int64_t row, int64_t column) {
  A l1 = job.weight[kL1];
  if (job.weight[kBlurredL1] != 0) l1 += job.weight[kBlurredL1] * pixel_count(job, row, column);
  return l1 * sign(d) + 2 * job.weight[kL2] * d;
}

// A sum in which little is lost: what each addition rounds off is kept beside it.
template <class A>
class Sum {
 public:
  SSIMFAST_DEVICE void add(A value) {
    const A next = high + value;
    low += value - (next - high);
    high = next;
  }
  // The same of a finite value that was added to rest() already.
  SSIMFAST_DEVICE A rest() const { return low; }
  SSIMFAST_DEVICE void add_with_rest(A value) {
    const A next = high + value;
    low = value - (next - high);
    high = next;
  }
  // Infinite or NaN sums have no rest.
  SSIMFAST_DEVICE double total() const { return low - low == 0 ? double(high) + low : high; }

 private:
  A high = 0, low = 0;
};

// The block's sums of all terms, by thread 0 into its place. `scratch`: kTerms doubles a warp.
template <class A>
SSIMFAST_DEVICE void write_sums(const Job<A>& job, int64_t tile, const Sum<A> (&sums)[kTerms],
                                Shared<double> scratch) {
  const int thread = threadIdx.x, warps = blockDim.x / kWarp;
  for (int t = 0; t < kTerms; ++t) {
    const double total = warp_sum(sums[t].total());
    if (thread % kWarp == 0) scratch.set(t * warps + thread / kWarp, total);
  }
  __syncthreads();
  if (thread < kTerms) {
    double total = 0;
    for (int w = 0; w < warps; ++w) total += scratch[thread * warps + w];
    write(job.partial + tile * kTerms + thread, total);
  }
}

}  // namespace ssimfast::cuda
