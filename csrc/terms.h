// The terms of a loss, pooling, and the combination of MS-SSIM levels. Compiles for host and
// device; does not depend on torch.
//
// ssimfast/backends/constants.py repeats the limits and thresholds.
#pragma once

#include <cmath>
#include <cstdint>

#include "pixel.h"

namespace ssimfast {

constexpr int kMaxWindow = 33;  // taps
constexpr int kMaxLevels = 16;  // of a pyramid

// Smallest mean at which the slope of a power is evaluated. Smaller means get the slope of this
// one, because a root is infinitely steep at 0.
constexpr double kLeastMean = 1e-4;

// Upper bound of the centre tap for kernels that centre four neighbouring windows on one pixel.
// Narrower Gaussians (sigma below about 1.15) give that pixel too little weight.
constexpr double kLargestCentreTap = 0.35;

// Distance from `low`, in value ranges, beyond which images are centred at their median
// (docs/mathematics.md, "Centring").
constexpr double kFar = 4;

// True if a value in the middle of the images is farther from `low` than that.
template <class A>
SSIMFAST_INLINE bool is_far(A middle, A low, A scale) {
  const A distance = (middle - low) * scale;
  return distance > A(kFar) || distance < A(-kFar);
}

// ---- terms --------------------------------------------------------------------------------------

// Terms of a loss. The first two are summed over positions, the others over pixels in unit range
// (pixel terms). kBlurredL1 is the sum of G * |d| over the image, with |d| = 0 outside. This equals
// the sum of |d| * count, where a pixel's `count` is the part of a window around the pixel that
// lies inside the image.
enum Term { kSsim, kContrastStructure, kL1, kL2, kBlurredL1, kTerms };

// -1, 0 or 1; NaN for NaN. Has no branches, so that loops are vectorised.
template <class A>
SSIMFAST_INLINE A sign(A a) {
  return A(a > 0) - A(a < 0) + (a - a);
}

template <class V>
SSIMFAST_INLINE V magnitude(V v) {
  return v < V{} ? -v : v;
}

// True if the term needs a pixel's count.
SSIMFAST_INLINE constexpr bool is_counted(int term) { return term == kBlurredL1; }

// Contribution of a pixel with difference d = x - y to a pixel term.
template <class V>
SSIMFAST_INLINE V pixel_term(int term, V d, V count) {
  if (term == kL2) return d * d;
  return term == kL1 ? magnitude(d) : magnitude(d) * count;
}

// True if the derivative of the weighted pixel terms jumps at d = 0: then d must keep its sign.
template <class A>
SSIMFAST_INLINE bool needs_sign(const A* weight) {
  return weight[0] != 0 || weight[kBlurredL1 - kL1] != 0;
}

// Derivative with respect to d of the weighted sum of all pixel terms. weight[i] is the weight of
// term kL1 + i.
template <class A>
SSIMFAST_INLINE A pixel_slope(const A* weight, A d, A count) {
  const A by_sign = weight[0] + weight[kBlurredL1 - kL1] * count;
  return by_sign * sign(d) + 2 * weight[kL2 - kL1] * d;
}

// ---- pooling ------------------------------------------------------------------------------------

// How pixels are averaged to the next level if the number of rows or columns is odd.
enum class Pooling {
  kNone,
  kFloor,      // drops the last row or column
  kPad,        // adds a black one before the first
  kReplicate,  // counts the last one twice
};

// The rows, or the columns, of the next level.
struct PooledAxis {
  int64_t size = 0;
  int64_t shift = 0;  // pooled index i is the mean of 2 i - shift and 2 i - shift + 1

  PooledAxis() = default;
  SSIMFAST_INLINE PooledAxis(Pooling pooling, int64_t pixels)
      : size(pooling == Pooling::kFloor ? pixels / 2 : (pixels + 1) / 2),
        shift(pooling == Pooling::kPad ? pixels % 2 : 0) {}
};

// ---- MS-SSIM ------------------------------------------------------------------------------------

// How a negative mean is treated.
enum class Negative { kRelu, kAbs };

// The term whose mean a level contributes. Level 0 is the finest.
SSIMFAST_INLINE Term mean_of_level(int level, int levels) {
  return level == levels - 1 ? kSsim : kContrastStructure;
}

// A level's factor in the product that is MS-SSIM, and the derivative of that factor with respect
// to the level's mean.
struct LevelPower {
  double value, slope;
};

SSIMFAST_INLINE LevelPower level_power(double mean, double exponent, bool absolute) {
  const double base = absolute ? fabs(mean) : mean < 0 ? 0.0 : mean;  // NaN stays
  const double value = pow(base, exponent);
  if (base == 0) return {value, 0};
  const bool too_steep = exponent < 1 && base < kLeastMean;
  const double slope = exponent * (too_steep ? pow(kLeastMean, exponent - 1) : value / base);
  return {value, mean < 0 ? -slope : slope};
}

// Product of the values of all levels except one (-1: no exception).
template <class Values>
SSIMFAST_INLINE double product_except(const Values& values, int levels, int except) {
  double product = 1;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int level = 0; level < levels; ++level)
    if (level != except) product *= values[level];
  return product;
}

// Weights of SSIM and contrast-structure in the second sweep of the finest level, scaled so that
// the gradient fits float16, and the slope that undoes the scaling.
struct FinestWeights {
  double ssim, contrast_structure, slope;
};

// slope: derivative of the value with respect to the sum of `mean` over the finest level.
// positions: number of positions that a value averages.
SSIMFAST_INLINE FinestWeights finest_weights_of(Term mean, double slope, double by_ssim,
                                                double positions) {
  const double by_mean = slope * positions;
  const double larger = fabs(by_ssim) > fabs(by_mean) ? fabs(by_ssim) : fabs(by_mean);
  const double largest = larger > 1 ? larger : 1.0;
  const double of_mean = by_mean / largest;
  return {by_ssim / largest + (mean == kSsim ? of_mean : 0.0), mean == kSsim ? 0.0 : of_mean,
          largest / positions};
}

}  // namespace ssimfast
