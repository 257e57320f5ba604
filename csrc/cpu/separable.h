// Row arithmetic for separable.cpp, compiled for each instruction set.
//
// A kernel is an object with a method at<V>(i), which processes the numbers i, i + 1, ... of one
// vector V. sweep() calls the method along a row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace ssimfast::cpu {

// Sums over a window of w s, w d, w s^2, w d^2 and w, where w is the weight of a pixel (its mask).
enum Sum { kSumS, kSumD, kSumS2, kSumD2, kSumWeight, kSums };

// to[i] = sum over k of taps[k] * from[i + k * step], for a symmetric window.
struct Correlate {
  const double* from;
  int64_t step;
  const double* taps;
  int half;
  double* to;

  template <class V>
  SSIMFAST_INLINE void at(int64_t i) const {
    const double* first = from + i;
    const double* last = first + 2 * half * step;
    V sum = taps[half] * load<V>(first + half * step);
    for (int j = 0; j < half; ++j, first += step, last -= step)
      sum += taps[j] * (load<V>(first) + load<V>(last));
    store(to + i, sum);
  }
};

// Number of neighbouring windows that CorrelateRows filters together, so that one loaded vector
// serves all of them.
constexpr int kTogether = 4;

// Correlate across rows, for kTogether windows: tap k of window b is applied to row from[b + k].
struct CorrelateRows {
  const double* from[kMaxWindow + kTogether - 1];
  const double* taps;
  int window;
  double* to[kTogether];

  template <class V>
  SSIMFAST_INLINE void at(int64_t i) const {
    V sum[kTogether] = {};
    // Only some of the windows contain the first and the last rows. The other windows must skip
    // these rows, which may be NaN: a tap of 0 would not hide a NaN.
    for (int k = 0; k < kTogether - 1; ++k) {
      const V v = load<V>(from[k] + i);
      for (int b = 0; b <= k; ++b)
        if (k - b < window) sum[b] += taps[k - b] * v;
    }
    for (int k = kTogether - 1; k < window; ++k) {
      const V v = load<V>(from[k] + i);
      for (int b = 0; b < kTogether; ++b) sum[b] += taps[k - b] * v;
    }
    for (int k = std::max(window, kTogether - 1); k < window + kTogether - 1; ++k) {
      const V v = load<V>(from[k] + i);
      for (int b = 0; b < kTogether; ++b)
        if (k - b < window) sum[b] += taps[k - b] * v;
    }
    for (int b = 0; b < kTogether; ++b) store(to[b] + i, sum[b]);
  }
};

// Statistics of a row of windows, from maps of their sums that are `pitch` apart.
struct Windows {
  const double* sums;
  int64_t pitch;
  bool masked;
  double offset_s;  // was subtracted from s
  double c1, c2;

  template <class V>
  struct Statistics {
    V share;           // 1 / sum of the weights; 0 if all pixels are hidden
    V mean_s, mean_d;  // of s minus its offset, and of d
    Moments<V> moments;
  };

  template <class V>
  SSIMFAST_INLINE Statistics<V> statistics(int64_t i) const {
    // Least sum of weights that can be a divisor. Windows with less count as hidden.
    constexpr double kNothing = 1e-290;
    const auto sum = [&](Sum map)
                         SSIMFAST_INLINE_LAMBDA { return load<V>(sums + map * pitch + i); };
    const V one = broadcast<V>(1.0);
    const V weight = masked ? sum(kSumWeight) : one;
    const auto nothing = weight < kNothing;
    Statistics<V> q;
    q.share = nothing ? V{} : 1.0 / weight;
    q.mean_s = sum(kSumS) * q.share;
    q.mean_d = sum(kSumD) * q.share;
    const V square_s = sum(kSumS2) * q.share, square_d = sum(kSumD2) * q.share;
    // Hidden windows get the statistics of two equal images: 1, not 0, because c1 = c2 = 0 would
    // lead to a division by 0.
    q.moments.mu_s = nothing ? one : q.mean_s + offset_s;
    q.moments.mu_d = q.mean_d;
    q.moments.vs = nothing ? one : non_negative<V>(square_s - q.mean_s * q.mean_s) + 2 * c2;
    q.moments.vd = non_negative<V>(square_d - q.mean_d * q.mean_d);
    return q;
  }
};

// Rows of SSIM and of contrast-structure; the second is null if it is not wanted.
struct MapRows {
  double *ssim, *contrast;

  template <class V>
  SSIMFAST_INLINE void write(const Terms<V>& terms, int64_t i) const {
    store(ssim + i, similarity_of(terms.half_distance()));
    if (contrast != nullptr) store(contrast + i, similarity_of(terms.half_contrast_distance));
  }
};

struct WriteMaps {
  Windows windows;
  MapRows maps;

  template <class V>
  SSIMFAST_INLINE void at(int64_t i) const {
    const auto q = windows.statistics<V>(i);
    maps.write(Terms<V>(q.moments, broadcast<V>(2 * windows.c1), Reciprocals<double>()), i);
  }
};

// Writes maps, and the slopes times `upstream` to maps that are `pitch` apart. A window adds
// w / weight * [A + P * (s - mean_s)] to the gradient of a pixel; everything but the pixel's w and
// s is known here.
struct WriteSlopes {
  Windows windows;
  bool both;
  const double* upstream;
  MapRows maps;
  double* slopes;
  int64_t pitch;

  template <class V>
  SSIMFAST_INLINE void at(int64_t i) const {
    const auto q = windows.statistics<V>(i);
    const Terms<V> terms(q.moments, broadcast<V>(2 * windows.c1), Reciprocals<double>());
    maps.write(terms, i);
    const Upstream<V> by{load<V>(upstream + i) * q.share, V{}, V{}};
    const auto p = partials(terms, ssimfast::slopes(terms, by));
    const V rest_s = p.by_mu_s - p.by_var_s * q.mean_s;
    const V rest_d = p.by_mu_d - p.by_var_d * q.mean_d;
    double* const to = slopes + i;
    store(to + kByVarS * pitch, p.by_var_s);
    store(to + kByVarD * pitch, p.by_var_d);
    store(to + kConstantS * pitch, both ? rest_s : rest_s + rest_d);
    if (both) store(to + kConstantD * pitch, rest_d);
  }
};

// ---- sweeps -------------------------------------------------------------------------------------

template <int kBytes, class Kernel>
SSIMFAST_INLINE void sweep_by(const Kernel& kernel, int64_t count) {
  using V = typename VectorOf<double, kBytes / int(sizeof(double))>::type;
  constexpr int kLanes = sizeof(V) / sizeof(double);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) kernel.template at<V>(i);
  for (; i < count; ++i) kernel.template at<double>(i);
}

// One entry point per instruction set. Everything that it calls is inlined and therefore compiled
// for that instruction set. The kernel is passed by value: stores cannot change it, so it stays in
// registers.
#if SSIMFAST_X86
template <class Kernel>
SSIMFAST_TARGET_AVX2 void sweep_avx2(Kernel kernel, int64_t count) {
  sweep_by<32>(kernel, count);
}

template <class Kernel>
SSIMFAST_TARGET_AVX512 void sweep_avx512(Kernel kernel, int64_t count) {
  sweep_by<64>(kernel, count);
}
#endif

template <class Kernel>
void sweep_baseline(Kernel kernel, int64_t count) {
  sweep_by<16>(kernel, count);
}

template <class Kernel>
auto select_sweep() {
#if SSIMFAST_X86
  if (isa() == Isa::kAvx512) return sweep_avx512<Kernel>;
  if (isa() == Isa::kAvx2) return sweep_avx2<Kernel>;
#endif
  return sweep_baseline<Kernel>;
}

template <class Kernel>
void sweep(const Kernel& kernel, int64_t count) {
  static const auto widest = select_sweep<Kernel>();
  widest(kernel, count);
}

}  // namespace ssimfast::cpu
