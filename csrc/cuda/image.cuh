// Images on the device: elements of any dtype, the job of a sweep, and pixels mapped to the unit
// range with a constant near them subtracted.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"
#include "problem.h"

namespace ssimfast::cuda {

// ---- arithmetic ---------------------------------------------------------------------------------

SSIMFAST_DEVICE double reciprocal(double v) { return 1.0 / v; }

// a b + c, rounded once. nvcc rounds twice where it finds a second use of the product.
template <class A>
SSIMFAST_DEVICE A multiply_add(A a, A b, A c) {
  if constexpr (sizeof(A) == sizeof(float)) return fmaf(a, b, c);
  return fma(a, b, c);
}

// The reciprocals that Terms (pixel.h) asks for.
struct Reciprocals {
  template <class A>
  SSIMFAST_DEVICE void operator()(A a, A b, A& of_a, A& of_b) const {
    of_a = reciprocal(a);
    of_b = reciprocal(b);
  }
};

// ---- elements -----------------------------------------------------------------------------------

// Calls body(T{}) with the element type of a floating dtype: any if kAny, else one whose arithmetic
// type is A. All threads take the same branch, which costs next to nothing and lets one kernel
// serve several dtypes.
template <class A, bool kAny = false, class Body>
SSIMFAST_DEVICE void for_dtype(Dtype dtype, Body&& body) {
  if constexpr (sizeof(A) == sizeof(double) && !kAny) {
    body(double{});
  } else if (kAny && dtype == Dtype::kFloat64) {
    body(double{});
  } else if (dtype == Dtype::kFloat32) {
    body(float{});
  } else if (dtype == Dtype::kFloat16) {
    body(__half{});
  } else {
    body(__nv_bfloat16{});
  }
}

SSIMFAST_DEVICE float to_arithmetic(uint8_t v) { return v; }
SSIMFAST_DEVICE float to_arithmetic(float v) { return v; }
SSIMFAST_DEVICE double to_arithmetic(double v) { return v; }
SSIMFAST_DEVICE float to_arithmetic(__half v) { return __half2float(v); }
SSIMFAST_DEVICE float to_arithmetic(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T, class A>
SSIMFAST_DEVICE T from_arithmetic(A v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(float(v));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(float(v));
  } else {
    return T(v);
  }
}

template <class A, bool kAny = false>
SSIMFAST_DEVICE A load(const View& image, int64_t offset) {
  if (image.dtype == Dtype::kUInt8)
    return to_arithmetic(read(static_cast<const uint8_t*>(image.data) + offset));
  A value{};
  for_dtype<A, kAny>(image.dtype, [&](auto zero) {
    using T = decltype(zero);
    value = to_arithmetic(read(static_cast<const T*>(image.data) + offset));
  });
  return value;
}

template <class A, bool kAny = false>
SSIMFAST_DEVICE void store(const View& image, int64_t offset, A value) {
  for_dtype<A, kAny>(image.dtype, [&](auto zero) {
    using T = decltype(zero);
    write(static_cast<T*>(image.data) + offset, from_arithmetic<T>(value));
  });
}

// ---- the job of a sweep -------------------------------------------------------------------------

// Parameter of every sweep kernel: a problem, and what only this device needs.
template <class A>
struct Job : Problem<A> {
  A weighted_taps[kMaxWindow];  // taps * 4 * weight[kSsim] * grad_scale: the plain sweep's adjoint
  double* records;              // one record of sums a tile (record.cuh); null if no sum is wanted
};

// Weight of SSIM or contrast-structure in the gradient of a plane.
template <class A>
SSIMFAST_DEVICE A plane_weight(const Job<A>& job, int64_t plane, Term term) {
  return job.plane_weights == nullptr ? job.weight[term]
                                      : read(job.plane_weights + 2 * plane + term);
}

// Weight of |x - y| at a pixel in the blurred L1.
template <class A>
SSIMFAST_DEVICE A pixel_count(const Job<A>& job, int64_t row, int64_t column) {
  return job.rows == nullptr ? A(0) : read(job.rows + row) * read(job.columns + column);
}

// Derivative by d = x - y of the weighted terms over pixels. Two branches take fewer registers than
// one with a count that may be 0.
template <class A>
SSIMFAST_DEVICE A slope_at_pixel(const Job<A>& job, A d, int64_t row, int64_t column) {
  if (job.weight[kBlurredL1] == 0) return pixel_slope(job.weight + kL1, d, A(0));
  return pixel_slope(job.weight + kL1, d, pixel_count(job, row, column));
}

// ---- unit range ---------------------------------------------------------------------------------

// Constants that are subtracted from s and d: filters and their adjoints round off less where
// values are near 0 (docs/mathematics.md, "Centring").
template <class A>
struct Centre {
  A image;  // subtracted from x and from y, before they are mapped to the unit range
  A d;      // subtracted from d, in unit range
};

// Maps x and y to s = x + y and d = x - y in unit range, less their centre.
template <class A>
class UnitRange {
 public:
  SSIMFAST_DEVICE UnitRange(const Job<A>& job, const Centre<A>& centre)
      : scale(job.scale),
        twice_scale(2 * job.scale),
        twice_offset(-centre.image * twice_scale),
        twice_black(job.low * twice_scale + twice_offset),
        centre(centre.d) {}

  // Adds 2 y and x - y: each step loses no more than its own last digit, however far away the
  // images.
  SSIMFAST_DEVICE A s(A x, A y) const {
    return multiply_add(x - y, scale, multiply_add(y, twice_scale, twice_offset));
  }
  SSIMFAST_DEVICE A d(A x, A y) const { return multiply_add(x - y, scale, -centre); }
  // s and d outside the image, where both images are black.
  SSIMFAST_DEVICE A black_s() const { return twice_black; }
  SSIMFAST_DEVICE A black_d() const { return -centre; }
  // Bring a mean of s or d back to the true one.
  SSIMFAST_DEVICE A centre_s() const { return -twice_black; }
  SSIMFAST_DEVICE A centre_d() const { return centre; }
  // x and y of the unit range, rounded only once at the size of the result: an image far from its
  // range has no more digits than that.
  SSIMFAST_DEVICE A x(A s, A d) const {
    return multiply_add(s + (d + centre), A(0.5), A(-0.5) * twice_black);
  }
  SSIMFAST_DEVICE A y(A s, A d) const {
    return multiply_add(s - (d + centre), A(0.5), A(-0.5) * twice_black);
  }

 private:
  A scale, twice_scale, twice_offset, twice_black, centre;
};

// Pixels of one plane, n * channels + c, from which a centre is chosen.
struct Area {
  int64_t plane;
  int64_t slices;
  int64_t row_begin, row_end, column_begin, column_end;
};

// Median of the values of those lanes that count; 0 if none does. Every lane ranks its value among
// all others, and the lane of the middle rank sends its value to all.
template <class A>
SSIMFAST_DEVICE A median(A value, bool counts, int lane) {
  int rank = 0, count = 0;
  for (int other = 0; other < kWarp; ++other) {
    const A theirs = from_lane(value, other);
    const bool counts_too = from_lane(int(counts), other) != 0;
    count += counts_too;
    rank += counts_too && (theirs < value || (theirs == value && other < lane));
  }
  A middle = counts && rank == count / 2 ? value : A(0);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) middle += from_lane_xor(middle, mask);
  return middle;
}

// x and y are centred at `low`, unless s would round off more than either image did: then at the
// median of 4 x 4 samples of each, which outliers do not move. d is centred at its median, unless
// some samples are equal and must stay so, or the sign of d is wanted, which a small d would lose.
// Every warp chooses for itself, from the same samples.
template <class A>
SSIMFAST_DEVICE Centre<A> choose_centre(const Job<A>& job, const Area& area, int lane) {
  const auto at = [](int64_t begin, int64_t end, int i) {
    return begin + (2 * i + 1) * (end - begin) / 8;
  };
  const int i = lane / 2 / 4, j = lane / 2 % 4;
  const View& image = lane % 2 == 0 ? job.x : job.y;
  const A value = load<A>(image, image.plane(area.plane / job.channels, area.plane % job.channels) +
                                     at(0, area.slices, (i + j) % 4) * image.by_slice +
                                     at(area.row_begin, area.row_end, i) * image.by_row +
                                     at(area.column_begin, area.column_end, j) * image.by_column);
  const bool finite = value - value == 0;
  const A middle = median(value, finite, lane);
  const A other = from_lane_xor(value, 1);
  const A d = (lane % 2 == 0 ? value - other : other - value) * job.scale;
  const A middle_d = median(d, d - d == 0, lane);
  int equal = d == 0;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) equal |= from_lane_xor(equal, mask);
  return {is_far(middle, job.low, job.scale) ? middle : job.low,
          equal != 0 || needs_sign(job.weight + kL1) ? A(0) : middle_d};
}

}  // namespace ssimfast::cuda
