// The mathematics of one pixel: local means and variances in, SSIM and its partial derivatives out.
//
// Shared by every compiled backend and free of torch. `V` is float, double or a SIMD vector of
// either; all arithmetic is elementwise. Symbols follow docs/mathematics.md: s = x + y and
// d = x - y, both mapped to the unit range.
#pragma once

#if defined(__CUDACC__)
#define SSIMFAST_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Inlining is a correctness matter here, not a hint: a helper must take on the instruction set
// of the function that calls it.
#define SSIMFAST_INLINE inline __attribute__((always_inline))
#define SSIMFAST_INLINE_LAMBDA __attribute__((always_inline))
#else
#define SSIMFAST_INLINE inline
#define SSIMFAST_INLINE_LAMBDA
#endif

namespace ssimfast {

// Filtered maps at one position. mu_s and mu_d are the true means; the variances come from
// values that were shifted by a constant first. vs is var_s + 2 C2, vd is var_d.
template <class V>
struct Moments {
  V mu_s, mu_d, vs, vd;
};

// A variance is only ever negative through rounding. A NaN passes: it must reach the result.
template <class V>
SSIMFAST_INLINE V non_negative(V v) {
  return v < V{} ? V{} : v;
}

// 1 - 2 v. One instruction, where nvcc makes v + v of a product by 2, and then a difference.
template <class V>
SSIMFAST_INLINE V one_less_twice(V v) {
  return 1 - 2 * v;
}
#if defined(__CUDACC__)
SSIMFAST_INLINE float one_less_twice(float v) { return fmaf(-2.0f, v, 1.0f); }
#endif

// The similarity of a distance; below -1 by rounding only. NaN stays.
template <class V>
SSIMFAST_INLINE V similarity_of(V half_distance) {
  const V v = one_less_twice(half_distance), least = V{} - 1;
  return v < least ? least : v;
}

// SSIM = l * cs with l = n1 / d1 and cs = n2 / d2, numerators and denominators twice those of
// docs/mathematics.md. What is computed are the distances, in which everything that cancels has
// cancelled: (1 - l) / 2 = mu_d^2 / d1, (1 - cs) / 2 = var_d / d2, and 1 - SSIM = (1 - l) +
// (1 - cs) l. They are 0 where d vanishes and never below, however the reciprocals are rounded.
template <class V>
struct Terms {
  V mu_s, mu_d;
  V ms, md, d1;                     // ms: mu_s^2 + 2 C1, md: mu_d^2
  V vs, vd, d2;                     // of Moments
  V r1, r2;                         // 1 / d1, 1 / d2
  V half_luminance_distance;        // (1 - l) / 2, between 0 and 1
  V half_contrast_distance;         // (1 - cs) / 2, likewise
  V luminance, contrast_structure;  // l, cs

  // reciprocals(d1, d2, r1, r2) sets the last two.
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
    return non_negative<V>(half_contrast_distance * luminance + half_luminance_distance);
  }
};

// Upstream gradients at one position: by SSIM, by luminance and by contrast-structure.
template <class V>
struct Upstream {
  V ssim, luminance, contrast_structure;
};

// Four times the upstream gradients by l and by cs, to both of which that by SSIM adds a part.
template <class V>
struct Slopes {
  V luminance, contrast_structure;
};

template <class V>
SSIMFAST_INLINE Slopes<V> slopes(const Terms<V>& t, const Upstream<V>& upstream) {
  return {4 * (upstream.ssim * t.contrast_structure + upstream.luminance),
          4 * (upstream.ssim * t.luminance + upstream.contrast_structure)};
}

// The upstream gradients times the derivatives by the four filtered maps: by the true means, and
// twice the ones by E[s^2] and E[d^2]. 1 -+ l and 1 -+ cs are made of the two distances, so nothing
// cancels where x is close to y.
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

// by_mu_s + by_mu_d of these, which is all that the gradient by x alone needs of them.
template <class V>
SSIMFAST_INLINE V by_both_means(const Terms<V>& t, const Slopes<V>& by) {
  return (by.luminance * t.r1) * ((t.mu_s + t.mu_d) * t.half_luminance_distance - t.mu_d);
}

}  // namespace ssimfast
