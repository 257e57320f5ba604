// Problem: everything that one sweep over a pair of images or volumes is told. Reduction: how the
// sums of sweeps become values. Free of torch; shared by every compiled device.
#pragma once

#include <cstdint>

#include "terms.h"

namespace ssimfast {

SSIMFAST_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Dtype : int { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8 };

enum class Pass {
  kValue,         // sums of the wanted terms
  kMaps,          // the SSIM map, or the maps of luminance and contrast-structure
  kGradient,      // sums of the wanted terms, and the gradient of the weighted sum
  kMapsGradient,  // the gradient of the sum of each map times its upstream gradient
};

// A tensor (N, C, D, H, W) of any strides, expanded ones (stride 0) included; images have D = 1.
// Strides and offsets are in elements.
struct View {
  void* data = nullptr;
  int64_t by_image = 0, by_channel = 0, by_slice = 0, by_row = 0, by_column = 0;
  Dtype dtype = Dtype::kFloat32;

  SSIMFAST_INLINE int64_t plane(int64_t n, int64_t c) const {
    return n * by_image + c * by_channel;
  }
};

// A: the arithmetic type, double for float64 images and float for all others. A plane is one
// channel of one image or volume.
template <class A>
struct Problem {
  Pass pass = Pass::kValue;
  View x, y;
  View mask;  // weights of the pixels; no data if there is no mask
  int64_t planes = 0, channels = 0, depth = 1, height = 0, width = 0;
  bool is_volume = false;

  // The statistic.
  int window = 1;
  A taps[kMaxWindow] = {};
  int64_t margin = 0;  // pixels at each edge that are no window's centre: window / 2 for "valid"
  A twice_c1 = 0, twice_c2 = 0;
  A low = 0, scale = 1;  // unit range = (value - low) * scale

  // Terms: which are summed, and their weights in the gradient of the plain sums.
  bool wanted[kTerms] = {};
  A weight[kTerms] = {};
  const A* plane_weights = nullptr;  // if given, two a plane in place of the first two weights
  const A* rows = nullptr;  // kBlurredL1: the weight of |d| at a pixel is rows[r] * columns[c]
  const A* columns = nullptr;

  // Gradients by x and, if there are two, by y.
  int gradients = 0;
  View grad[2];
  A grad_scale = 1;

  // Maps: of SSIM if there is one, of luminance and contrast-structure if there are two.
  int maps = 0;
  View map[2];       // kMaps
  View upstream[2];  // kMapsGradient: the gradients by the maps

  // Images of the next pyramid level, in unit range, contiguous.
  Pooling pooling = Pooling::kNone;
  PooledAxis pooled_rows, pooled_columns;
  A* pooled[2] = {};

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

// How the sums that sweeps left become values: of one sweep, or of all levels of MS-SSIM.
template <class A>
struct Reduction {
  int levels = 1;
  double positions[kMaxLevels] = {};  // of one plane, by level
  int wanted = 0;                     // terms of the finest level, one bit each
  double positions_per_pixel = 1;     // of the finest level
  double weights[kTerms] = {};
  double constant = 0;
  int64_t planes = 0, channels = 0, groups = 0;  // groups of planes: one value each
  double* terms = nullptr;                       // (groups, kTerms)
  A* value = nullptr;                            // (groups)

  double count = 1;  // one sweep: divides the sums

  // Levels of MS-SSIM.
  double exponents[kMaxLevels] = {};
  bool absolute = false;          // negative means count as positive, else as 0
  bool joint = false;             // means are averaged over channels first
  double* slopes = nullptr;       // (planes, levels); null for one sweep
  A* plane_weights = nullptr;     // (planes, 2), of a second sweep of the finest level; or null
  double* plane_terms = nullptr;  // (planes, kTerms): scratch

  SSIMFAST_INLINE Term mean_of(int level) const { return mean_of_level(level, levels); }
};

}  // namespace ssimfast
