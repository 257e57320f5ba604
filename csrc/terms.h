// What a sweep over two images sums and makes besides gradients: shared by every compiled backend,
// free of torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "ssim.h"

namespace ssimfast {

constexpr int kMaxWindow = 33;
constexpr int kMostScales = 16;  // MOST_SCALES of ssimfast/reference.py

// A root is infinitely steep at 0: below this mean it is taken to be as steep as here. LEAST_MEAN
// of ssimfast/reference.py.
constexpr double kLeastMean = 1e-4;

// Four windows in a row share one centre only if the Gaussian is wide: sigma of about 1.15 or more.
constexpr double kLargestCentreTap = 0.35;

// What is summed: the first two over positions, the others over pixels of the unit range.
// kBlurredL1 is the sum of G * |x - y| over the image, zero outside, which is a sum over pixels
// too: of |x - y| times how much of a window around the pixel lies inside the image.
enum Term { kSsim, kContrastStructure, kL1, kL2, kBlurredL1, kTerms };

// How two rows or columns of pixels become one of the next scale, where their number is odd.
enum class Pooling {
  kNone,
  kFloor,      // the last one is dropped
  kPad,        // a black one comes before the first
  kReplicate,  // the last one counts twice
};

// Which mean each scale contributes to MS-SSIM, finest first.
SSIMFAST_INLINE Term mean_of_scale(int scale, int scales) {
  return scale == scales - 1 ? kSsim : kContrastStructure;
}

// What a scale's mean counts as in MS-SSIM, which is the product of powers of it.
SSIMFAST_INLINE double base_of_power(double mean, bool absolute) {
  return absolute ? fabs(mean) : mean < 0 ? 0.0 : mean;  // NaN stays
}

// Derivative of `power`, which is base_of_power(mean, absolute)^exponent, by the mean.
SSIMFAST_INLINE double slope_of_power(double exponent, double power, double mean, bool absolute) {
  const double base = base_of_power(mean, absolute);
  if (base == 0) return 0;
  const bool too_steep = exponent < 1 && base < kLeastMean;
  const double slope = exponent * (too_steep ? pow(kLeastMean, exponent - 1) : power / base);
  return mean < 0 ? -slope : slope;
}

struct PooledAxis {
  int64_t size = 0;   // of the next scale
  int64_t shift = 0;  // pooled index i is made of 2 i - shift and 2 i - shift + 1

  PooledAxis() = default;
  SSIMFAST_INLINE PooledAxis(Pooling pooling, int64_t pixels)
      : size(pooling == Pooling::kFloor ? pixels / 2 : (pixels + 1) / 2),
        shift(pooling == Pooling::kPad ? pixels % 2 : 0) {}
};

// Of a finest scale whose gradient waits for backward: the weights of SSIM and contrast-structure
// in it, such that it fits float16, and the slope that goes with it. `slope`: of the value by the
// sum of what its mean is of; `positions`: those that a value is the mean of.
struct FinestWeights {
  double ssim, contrast_structure, slope;
};

SSIMFAST_INLINE FinestWeights finest_weights_of(Term mean, double slope, double by_ssim,
                                                double positions) {
  const double largest = fabs(by_ssim) > 1 ? fabs(by_ssim) : 1.0;
  const double by_mean = slope * positions / largest;
  return {by_ssim / largest + (mean == kSsim ? by_mean : 0.0), mean == kSsim ? 0.0 : by_mean,
          largest / positions};
}

}  // namespace ssimfast
