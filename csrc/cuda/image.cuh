// Images on the device: elements of any dtype, the job of a sweep, and pixels mapped to the unit
// range with a constant near them subtracted.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/record.cuh"
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

// The arithmetic of Two (device.cuh) for one number, so that filters are written once.
SSIMFAST_DEVICE float add(float x, float y) { return x + y; }
SSIMFAST_DEVICE float multiply(float x, float y) { return x * y; }
SSIMFAST_DEVICE float accumulate(float sum, float x, float y) { return sum + x * y; }
SSIMFAST_DEVICE float negative(float x) { return -x; }
SSIMFAST_DEVICE Two negative(Two x) { return {-x.a, -x.b}; }
SSIMFAST_DEVICE void set_both(float& x, float value) { x = value; }
SSIMFAST_DEVICE void set_both(Two& x, float value) { x = {value, value}; }

// The reciprocals that Terms (pixel.h) asks for.
struct Reciprocals {
  template <class A>
  SSIMFAST_DEVICE void operator()(A a, A b, A& of_a, A& of_b) const {
    of_a = reciprocal(a);
    of_b = reciprocal(b);
  }
};

// ---- elements -----------------------------------------------------------------------------------

// Calls body(T{}) with the element type of a floating dtype whose arithmetic type is A. All threads
// take the same branch, which costs next to nothing and lets one kernel serve several dtypes.
// for_source_dtype: of uint8, too, which is only read.
template <class A, class Body>
SSIMFAST_DEVICE void for_dtype(Dtype dtype, Body&& body) {
  if constexpr (sizeof(A) == sizeof(double)) {
    body(double{});
  } else if (dtype == Dtype::kFloat32) {
    body(float{});
  } else if (dtype == Dtype::kFloat16) {
    body(__half{});
  } else {
    body(__nv_bfloat16{});
  }
}

template <class A, class Body>
SSIMFAST_DEVICE void for_source_dtype(Dtype dtype, Body&& body) {
  if (dtype == Dtype::kUInt8) {
    body(uint8_t{});
  } else {
    for_dtype<A>(dtype, body);
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

constexpr int kVectorBytes = 16;  // of the widest access

// Elements that one access of 1 to 16 bytes reads or writes.
template <class T, int n>
struct Several {
  T of[n];
};

// The word that holds them in memory. Use pointers to such words to step to rows and vectors:
// nvcc 13.0 often splits a vector that is written through a pointer that was stepped in T.
template <class T, int n>
using Packed = std::conditional_t<
    n * sizeof(T) == 16, uint4,
    std::conditional_t<
        n * sizeof(T) == 8, uint2,
        std::conditional_t<n * sizeof(T) == 4, unsigned,
                           std::conditional_t<n * sizeof(T) == 2, uint16_t, uint8_t>>>>;

template <class T, int n>
SSIMFAST_DEVICE Several<T, n> unpacked(const Packed<T, n>& packed) {
  Several<T, n> values;
  static_assert(sizeof(values) == sizeof(packed));
  memcpy(&values, &packed, sizeof(values));
  return values;
}

template <class T, int n>
SSIMFAST_DEVICE void write_several(Packed<T, n>* to, const Several<T, n>& values) {
  Packed<T, n> packed;
  memcpy(&packed, &values, sizeof(values));
  write(to, packed);
}

template <class A>
SSIMFAST_DEVICE A load(const View& image, int64_t offset) {
  A value{};
  for_source_dtype<A>(image.dtype, [&](auto zero) {
    using T = decltype(zero);
    value = to_arithmetic(read(static_cast<const T*>(image.data) + offset));
  });
  return value;
}

template <class A>
SSIMFAST_DEVICE void store(const View& image, int64_t offset, A value) {
  for_dtype<A>(image.dtype, [&](auto zero) {
    using T = decltype(zero);
    write(static_cast<T*>(image.data) + offset, from_arithmetic<T>(value));
  });
}

// ---- the job of a sweep -------------------------------------------------------------------------

// Parameter of every sweep kernel: a problem, and what only this device needs.
template <class A>
struct Job : Problem<A> {
  A weighted_taps[kMaxWindow];  // taps * 4 * weight[kSsim] * grad_scale: the plain sweep's adjoint
  StoredSum<A>* records;        // one record of sums a tile (record.cuh); null if no sum is wanted
  // Neighbours in a row that the fused kernel may read from x and y, and write to gradients, at
  // once: 4, 2 or 1; 0 if neighbours are not contiguous.
  int load_width, store_width;
};

// Weight of SSIM or contrast-structure in the gradient of a plane.
template <class A>
SSIMFAST_DEVICE A plane_weight(const Job<A>& job, int64_t plane, Term term) {
  return job.plane_weights == nullptr ? job.weight[term]
                                      : read(job.plane_weights + 2 * plane + term);
}

// Factor of the weights of a plane's mask, at positions or at pixels as the term wants.
template <class A>
SSIMFAST_DEVICE A mask_factor(const Job<A>& job, int64_t plane, Term term) {
  if (job.mask_factors == nullptr) return 1;
  return A(read(job.mask_factors + 2 * (plane / job.group_planes) + (term >= kL1)));
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

 private:
  A scale, twice_scale, twice_offset, twice_black, centre;
};

// Row and column, among 4 x 4 samples spread evenly over the pixels of a block, of the sample that
// a lane and its neighbour take from x and y.
struct Sample {
  int row, column;  // 0 to 3

  SSIMFAST_DEVICE explicit Sample(int lane) : row(lane / 8), column(lane / 2 % 4) {}
  // Index of a sample in [begin, end), if `i` is its row or column.
  template <class I>
  static SSIMFAST_DEVICE I at(int i, I begin, I end) {
    return begin + I((2 * i + 1) * int64_t(end - begin) / 8);
  }
};

// The value of middle rank of those lanes that are in `counting`, which is not empty. Of kStep
// lanes only the first may be in it.
template <int kStep, class A>
SSIMFAST_DEVICE A median(A value, unsigned counting, int lane) {
  int rank = 0;
#pragma unroll 8
  for (int other = 0; other < kWarp; other += kStep) {
    const A theirs = from_lane(value, other);
    const int below = int(theirs < value) | (int(theirs == value) & int(other < lane));
    rank += below & int(counting >> other);
  }
  const bool counts = (counting >> lane & 1) != 0;
  const unsigned middle = lanes_where(counts && rank == count_of(counting) / 2);
  return from_lane(value, first_of(middle));
}

// Chooses the centre of a block's images from `value`: of x in even lanes, of y in odd lanes, at
// the same pixel (Sample). Every warp chooses for itself, from the same samples.
//
// x and y are centred at `low`, unless s would round off more than either image did: then at the
// median of the samples, which outliers do not move. d is centred at its median, unless some
// samples are equal and must stay so, or the sign of d is wanted, which a small d would lose.
template <class A>
SSIMFAST_DEVICE Centre<A> choose_centre(const Job<A>& job, A value, int lane) {
  Centre<A> centre{job.low, 0};
  // The median is far if more than half of the samples are, on one side: found without sorting.
  const unsigned finite = lanes_where(value - value == 0);
  const bool far = (finite >> lane & 1) != 0 && is_far(value, job.low, job.scale);
  const int above = count_of(lanes_where(far && value > job.low));
  const int below = count_of(lanes_where(far && value < job.low));
  const int count = count_of(finite);
  if (count > 0 && (count - above <= count / 2 || below > count / 2))
    centre.image = median<1>(value, finite, lane);
  const A d = (value - from_lane_xor(value, 1)) * job.scale;  // in even lanes
  const unsigned counting = lanes_where(lane % 2 == 0 && d - d == 0);
  if (lanes_where(d == 0) == 0 && counting != 0 && !needs_sign(job.weight + kL1))
    centre.d = median<2>(d, counting, lane);
  return centre;
}

}  // namespace ssimfast::cuda
