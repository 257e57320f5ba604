// The terms of a loss, pooling, and how MS-SSIM combines its levels. Host and device, free of
// torch.
//
// Limits and thresholds here are also in ssimfast/backends/constants.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "pixel.h"

namespace ssimfast {

constexpr int kMaxWindow = 33;
constexpr int kMaxLevels = 16;

// Below this mean the slope of a power is taken as if the mean were this: a root is infinitely
// steep at 0.
constexpr double kLeastMean = 1e-4;

// Four windows in a row share one centre only if the Gaussian is wide, its centre tap below this:
// sigma of about 1.15 or more.
constexpr double kLargestCentreTap = 0.35;

// Images farther from `low` than this many value ranges are brought near before anything is
// squared.
constexpr double kFar = 4;

// ---- terms --------------------------------------------------------------------------------------

// Terms of a loss. The first two are summed over positions, the others over pixels of the unit
// range. kBlurredL1 is the sum over the image of G * |d|, with |d| = 0 outside: the same as the sum
// of |d| times how much of a window around each pixel lies inside the image, its `count`.
enum Term { kSsim, kContrastStructure, kL1, kL2, kBlurredL1, kTerms };

// -1, 0 or 1; NaN for NaN. Without branches, so that loops over it become vectors.
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

// The part of a pixel of difference d = x - y in a term over pixels.
template <class V>
SSIMFAST_INLINE V pixel_term(int term, V d, V count) {
  if (term == kL2) return d * d;
  return term == kL1 ? magnitude(d) : magnitude(d) * count;
}

// The derivative by d of the weighted sum of all terms over pixels. weight[i] is that of term
// kL1 + i.
template <class A>
SSIMFAST_INLINE A pixel_slope(const A* weight, A d, A count) {
  const A by_sign = weight[0] + weight[kBlurredL1 - kL1] * count;
  return by_sign * sign(d) + 2 * weight[kL2 - kL1] * d;
}

// ---- pooling ------------------------------------------------------------------------------------

// How two rows or columns of pixels become one of the next level, where their number is odd.
enum class Pooling {
  kNone,
  kFloor,      // the last one is dropped
  kPad,        // a black one comes before the first
  kReplicate,  // the last one counts twice
};

// Rows or columns of the next level.
struct PooledAxis {
  int64_t size = 0;
  int64_t shift = 0;  // pooled index i is the mean of 2 i - shift and 2 i - shift + 1

  PooledAxis() = default;
  SSIMFAST_INLINE PooledAxis(Pooling pooling, int64_t pixels)
      : size(pooling == Pooling::kFloor ? pixels / 2 : (pixels + 1) / 2),
        shift(pooling == Pooling::kPad ? pixels % 2 : 0) {}
};

// ---- MS-SSIM ------------------------------------------------------------------------------------

// How a negative mean is treated. kRaise is for combine_levels only.
enum class Negative { kRelu, kAbs, kRaise };

// The term of which each level contributes the mean, finest first.
SSIMFAST_INLINE Term mean_of_level(int level, int levels) {
  return level == levels - 1 ? kSsim : kContrastStructure;
}

// A level's factor in the product that is MS-SSIM, and its derivative by the level's mean.
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

// The product of the values of all levels but one (-1: of all).
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

// The weights of SSIM and contrast-structure in the second sweep of a finest level, such that its
// gradient fits float16, and the slope that belongs to that gradient.
struct FinestWeights {
  double ssim, contrast_structure, slope;
};

// `slope`: of the value by the sum of `mean` over the finest level. `positions`: those that a value
// is the mean of.
SSIMFAST_INLINE FinestWeights finest_weights_of(Term mean, double slope, double by_ssim,
                                                double positions) {
  const double largest = fabs(by_ssim) > 1 ? fabs(by_ssim) : 1.0;
  const double by_mean = slope * positions / largest;
  return {by_ssim / largest + (mean == kSsim ? by_mean : 0.0), mean == kSsim ? 0.0 : by_mean,
          largest / positions};
}

}  // namespace ssimfast
