// Problem: parameters of one sweep over a pair of images or volumes. Reduction: parameters that
// turn the sums of sweeps into values. Every compiled device uses both; neither depends on torch.
#pragma once

#include <cstdint>

#include "terms.h"

namespace ssimfast {

SSIMFAST_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Dtype : int { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8 };

// Bytes of an element.
inline int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    case Dtype::kUInt8:
      return 1;
    default:
      return 2;
  }
}

enum class Pass {
  kForward,       // sums of the wanted terms, and maps
  kGradient,      // the same, and the gradient of the weighted sum
  kMapsGradient,  // the gradient of the sum of each map times its upstream gradient
};

// Maps of the positions of a plane.
enum Map { kSsimMap, kLuminanceMap, kContrastMap, kMaps };

enum Axis { kDepth, kHeight, kWidth, kAxes };

// The window along one axis, which is symmetric.
template <class A>
struct Window {
  int size = 1;
  int64_t margin = 0;  // pixels at each end that are not window centres: size / 2, 0 if padded
  A taps[kMaxWindow] = {1};

  SSIMFAST_INLINE int half() const { return size / 2; }
};

// A tensor (N, C, D, H, W) of any strides, including expanded tensors (stride 0). Images have
// D = 1. Strides and offsets are in elements.
struct View {
  void* data = nullptr;
  int64_t by_image = 0, by_channel = 0, by_slice = 0, by_row = 0, by_column = 0;
  Dtype dtype = Dtype::kFloat32;

  SSIMFAST_INLINE int64_t plane(int64_t n, int64_t c) const {
    return n * by_image + c * by_channel;
  }
};

// A: the arithmetic type. It is double if the images are float64 or the device asks for double
// (Device::kDoubleByAxis), else float. A plane is one channel of one image or volume.
template <class A>
struct Problem {
  Pass pass = Pass::kForward;
  View x, y;
  A y_low = 0, y_step = 1;  // y = y_low + y_step * element: brings an 8-bit y to the range of x
  View mask;                // pixel weights; data is null if there is no mask
  // (groups, 2): factors that make the weights 1 on average, at positions and at all pixels.
  const double* mask_factors = nullptr;
  int64_t group_planes = 1;  // planes that have the same factors
  int64_t planes = 0, channels = 0, depth = 1, height = 0, width = 0;
  bool is_volume = false;

  // The statistic.
  Window<A> windows[kAxes];
  bool one_window = true;  // along all axes that the images have
  A twice_c1 = 0, twice_c2 = 0;
  A low = 0, scale = 1;  // unit range = (value - low) * scale

  // Terms: the sums that are wanted, and their weights in the gradient.
  bool wanted[kTerms] = {};
  A weight[kTerms] = {};
  const A* plane_weights = nullptr;  // (planes, 2), replaces the first two weights; or null
  const A* rows = nullptr;  // kBlurredL1: the weight of |d| at a pixel is rows[r] * columns[c]
  const A* columns = nullptr;

  // Gradients with respect to x and, if there are two, to y.
  int gradients = 0;
  View grad[2];
  A grad_scale = 1;

  View map[kMaps];       // data of unwanted maps is null
  View upstream[kMaps];  // kMapsGradient: the upstream gradients of the maps, likewise

  // Images of the next pyramid level, in unit range, contiguous.
  Pooling pooling = Pooling::kNone;
  PooledAxis pooled_rows, pooled_columns;
  A* pooled[2] = {};

  // The window along every axis, for devices that have kernels for images with one window.
  SSIMFAST_INLINE const Window<A>& window() const { return windows[kWidth]; }
  SSIMFAST_INLINE bool has_mask() const { return mask.data != nullptr; }
  SSIMFAST_INLINE bool wants_pixel_terms() const {
    bool wants = false;
    for (int term = kL1; term < kTerms; ++term) wants = wants || wanted[term];
    return wants;
  }
  SSIMFAST_INLINE bool has_pixel_slope() const {
    bool has = false;
    for (int term = kL1; term < kTerms; ++term) has = has || weight[term] != 0;
    return has;
  }
};

// Element of mask_factors for a term of a group of planes; 1 without a mask.
inline double mask_factor(const double* of_groups, int64_t group, int term) {
  return of_groups == nullptr ? 1 : of_groups[2 * group + (term >= kL1 ? 1 : 0)];
}

// Parameters that turn sums into values, for one sweep or for all levels of MS-SSIM.
template <class A>
struct Reduction {
  int levels = 1;
  double positions[kMaxLevels] = {};  // of one plane, for each level
  int wanted = 0;                     // terms of the finest level, one bit each
  double positions_per_pixel = 1;     // finest level: turns a pixel sum into a position sum
  double weights[kTerms] = {};
  double constant = 0;
  int64_t planes = 0, channels = 0, groups = 0;  // a group of planes has one value
  double* terms = nullptr;                       // (groups, kTerms)
  A* value = nullptr;                            // (groups)

  // One sweep.
  double count = 1;                      // divisor of the sums
  const double* mask_factors = nullptr;  // (groups, 2), see Problem; null without a mask

  // Levels of MS-SSIM.
  double exponents[kMaxLevels] = {};
  bool absolute = false;       // a negative mean becomes positive, else 0
  bool joint = false;          // means are averaged over channels first
  double* slopes = nullptr;    // (planes, levels); null for one sweep
  A* plane_weights = nullptr;  // (planes, 2), for a second sweep of the finest level; or null

  SSIMFAST_INLINE Term mean_of(int level) const { return mean_of_level(level, levels); }
};

}  // namespace ssimfast
