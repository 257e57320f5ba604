// Computes SSIM and its partial derivatives at one position from local means and variances.
//
// Every compiled backend uses this file, which does not depend on torch. `V` is float, double or a
// SIMD vector of either; all arithmetic is elementwise. Symbols follow docs/mathematics.md:
// s = x + y and d = x - y, both mapped to the unit range.
#pragma once

#if defined(__CUDACC__)
#define SSIMFAST_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Correctness depends on inlining: a helper must be compiled for the instruction set of the
// function that calls it.
#define SSIMFAST_INLINE inline __attribute__((always_inline))
#define SSIMFAST_INLINE_LAMBDA __attribute__((always_inline))
#else
#define SSIMFAST_INLINE inline
#define SSIMFAST_INLINE_LAMBDA
#endif

namespace ssimfast {

// Local means and variances at one position. mu_s and mu_d are the means without the offset that
// the filters subtract from the pixels. vs is var_s + 2 C2, vd is var_d.
template <class V>
struct Moments {
  V mu_s, mu_d, vs, vd;
};

// The larger of two numbers; NaN if the first is.
template <class V>
SSIMFAST_INLINE V larger(V a, V b) {
  return a < b ? b : a;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // in one instruction
SSIMFAST_INLINE float larger(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}
#endif

// Clamps a variance at 0; only rounding makes it negative. NaN passes through, because the result
// must show it.
template <class V>
SSIMFAST_INLINE V non_negative(V v) {
  return larger(v, V{});
}

// 1 - 2 v. The CUDA overload is one instruction; nvcc compiles the plain expression to two.
template <class V>
SSIMFAST_INLINE V one_less_twice(V v) {
  return 1 - 2 * v;
}
#if defined(__CUDACC__)
SSIMFAST_INLINE float one_less_twice(float v) { return fmaf(-2.0f, v, 1.0f); }
#endif

// Converts (1 - similarity) / 2 to the similarity. Clamps at -1, because rounding may give less.
// NaN passes through.
template <class V>
SSIMFAST_INLINE V similarity_of(V half_distance) {
  const V v = one_less_twice(half_distance), least = V{} - 1;
  return v < least ? least : v;
}

// SSIM = l * cs with l = n1 / d1 and cs = n2 / d2; numerators and denominators are twice those of
// docs/mathematics.md. The code computes distances, which need no difference of nearly equal
// numbers: (1 - l) / 2 = mu_d^2 / d1, (1 - cs) / 2 = var_d / d2, 1 - SSIM = (1 - l) + (1 - cs) l.
// The distances are 0 where d is 0 and never negative, however the reciprocals are rounded.
template <class V>
struct Terms {
  V mu_s, mu_d;
  V ms, md, d1;                     // ms: mu_s^2 + 2 C1, md: mu_d^2
  V vs, vd, d2;                     // vs, vd: of Moments, d2: vs + vd
  V r1, r2;                         // 1 / d1, 1 / d2
  V half_luminance_distance;        // (1 - l) / 2, between 0 and 1
  V half_contrast_distance;         // (1 - cs) / 2, likewise
  V luminance, contrast_structure;  // l, cs

  // reciprocals(d1, d2, r1, r2) sets r1 and r2.
  template <class Reciprocals>
  SSIMFAST_INLINE Terms(const Moments<V>& m, V twice_c1, const Reciprocals& reciprocals)
      : mu_s(m.mu_s),
        mu_d(m.mu_d),
        ms(mu_s * mu_s + twice_c1),
        md(mu_d * mu_d),
        d1(ms + md),
        vs(m.vs),
        vd(m.vd),
        d2(vs + vd) {
    reciprocals(d1, d2, r1, r2);
    half_luminance_distance = md * r1;
    half_contrast_distance = vd * r2;
    luminance = one_less_twice(half_luminance_distance);
    contrast_structure = one_less_twice(half_contrast_distance);
  }

  // (1 - SSIM) / 2, between 0 and 1.
  SSIMFAST_INLINE V half_distance() const {
    return non_negative(V(half_contrast_distance * luminance + half_luminance_distance));
  }
};

// Upstream gradients at one position with respect to SSIM, luminance and contrast-structure.
template <class V>
struct Upstream {
  V ssim, luminance, contrast_structure;
};

// Derivatives with respect to l and cs.
template <class V>
struct Slopes {
  V luminance, contrast_structure;
};

// The slopes of SSIM.
template <class V>
SSIMFAST_INLINE Slopes<V> slopes_of_ssim(const Terms<V>& t) {
  return {t.contrast_structure, t.luminance};
}

// Four times those of the loss. The upstream gradient of SSIM adds to both.
template <class V>
SSIMFAST_INLINE Slopes<V> slopes(const Terms<V>& t, const Upstream<V>& upstream) {
  const Slopes<V> of_ssim = slopes_of_ssim(t);
  return {4 * (upstream.ssim * of_ssim.luminance + upstream.luminance),
          4 * (upstream.ssim * of_ssim.contrast_structure + upstream.contrast_structure)};
}

// Upstream gradient times the derivatives of SSIM: with respect to the means, and twice those with
// respect to the variances (A, B, P and Q of docs/mathematics.md). 1 -+ l and 1 -+ cs are computed
// from the distances, so nothing cancels where x is close to y.
template <class V>
struct Partials {
  V by_mu_s, by_mu_d, by_var_s, by_var_d;
};

template <class V>
SSIMFAST_INLINE Partials<V> partials(const Terms<V>& t, const Slopes<V>& by) {
  const V a = by.luminance * t.r1, b = by.contrast_structure * t.r2;
  const V by_var_s = b * t.half_contrast_distance;
  return {a * (t.mu_s * t.half_luminance_distance),
          a * (t.mu_d * t.half_luminance_distance - t.mu_d), by_var_s, by_var_s - b};
}

// by_mu_s + by_mu_d of partials(). The gradient with respect to x alone needs only this sum.
template <class V>
SSIMFAST_INLINE V by_both_means(const Terms<V>& t, const Slopes<V>& by) {
  return (by.luminance * t.r1) * ((t.mu_s + t.mu_d) * t.half_luminance_distance - t.mu_d);
}

}  // namespace ssimfast
