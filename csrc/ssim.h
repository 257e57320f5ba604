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
// values that were shifted by a constant first.
template <class V>
struct Moments {
  V mu_s, mu_d, var_s, var_d;
};

// A variance is only ever negative through rounding. A NaN passes: it must reach the result.
template <class V>
SSIMFAST_INLINE V non_negative(V v) {
  return v < V{} ? V{} : v;
}

// SSIM = (n1 / d1) * (n2 / d2), numerators and denominators twice those of docs/mathematics.md.
//
// |n1| <= d1 and |n2| <= d2 hold after rounding too, because each pair adds and subtracts the same
// two non-negative numbers; so the quotient of the products never leaves [-1, 1] and is exactly 1
// where d vanishes, if the division is right. With a reciprocal that is only nearly right, the same
// holds for the distances: 1 - SSIM = (d1 d2 - n1 n2) / (d1 d2) in which everything that cancels
// has cancelled, a sum of two non-negative products.
template <class V, class A>
struct Terms {
  V ms, md, n1, d1;  // ms: mu_s^2 + 2 C1, md: mu_d^2
  V vs, vd, n2, d2;  // vs: var_s + 2 C2, vd: var_d
  V r, r1, r2;       // 1 / (d1 d2), 1 / d1, 1 / d2

  template <class Reciprocal>
  SSIMFAST_INLINE Terms(const Moments<V>& m, A c1, A c2, const Reciprocal& reciprocal)
      : ms(m.mu_s * m.mu_s + A(2) * c1),
        md(m.mu_d * m.mu_d),
        n1(ms - md),
        d1(ms + md),
        vs(m.var_s + A(2) * c2),
        vd(m.var_d),
        n2(vs - vd),
        d2(vs + vd),
        r(reciprocal(V(d1 * d2))),
        r1(r * d2),
        r2(r * d1) {}

  // (1 - SSIM) / 2, between 0 and 1.
  SSIMFAST_INLINE V half_distance() const { return (ms * vd + md * vs) * r; }
  // (1 - contrast-structure) / 2 and (1 - luminance) / 2, likewise.
  SSIMFAST_INLINE V half_contrast_distance() const { return vd * r2; }
  SSIMFAST_INLINE V half_luminance_distance() const { return md * r1; }

  SSIMFAST_INLINE V ssim() const { return (n1 * n2) / (d1 * d2); }
  SSIMFAST_INLINE V luminance() const { return n1 / d1; }
  SSIMFAST_INLINE V contrast_structure() const { return n2 / d2; }
};

// Upstream gradients at one position: by SSIM, by luminance and by contrast-structure.
template <class V>
struct Upstream {
  V ssim, luminance, contrast_structure;
};

// What the upstream gradients make of the luminance terms and of the variance terms below:
// 4 / d1^2 and 4 / d2^2 times the upstream gradients by luminance and by contrast-structure.
template <class V>
struct Slopes {
  V luminance, contrast;
};

template <class V, class A>
SSIMFAST_INLINE Slopes<V> slopes(const Terms<V, A>& t, const Upstream<V>& upstream) {
  return {A(4) * (upstream.ssim * t.n2 * t.r2 + upstream.luminance) * t.r1 * t.r1,
          A(4) * (upstream.ssim * t.n1 * t.r1 + upstream.contrast_structure) * t.r2 * t.r2};
}

// The same where the upstream gradient is by SSIM alone; `four_times` it.
template <class V, class A>
SSIMFAST_INLINE Slopes<V> slopes_of_ssim(const Terms<V, A>& t, A four_times) {
  const V r = t.r * four_times;
  return {t.n2 * r * t.r1, t.n1 * r * t.r2};
}

// The upstream gradients times the derivatives by the four filtered maps: by the true means, and
// twice the ones by E[s^2] and E[d^2]. The differences 1 -+ l and 1 -+ cs are replaced by the terms
// that they equal (1 - l = 2 mu_d^2 / d1, and so on), so nothing cancels where x is close to y.
template <class V>
struct Partials {
  V by_mu_s, by_mu_d, by_var_s, by_var_d;
};

template <class V, class A>
SSIMFAST_INLINE Partials<V> partials(const Moments<V>& m, const Terms<V, A>& t,
                                     const Slopes<V>& by) {
  return {m.mu_s * t.md * by.luminance, -m.mu_d * t.ms * by.luminance, by.contrast * t.vd,
          -by.contrast * t.vs};
}

// by_mu_s + by_mu_d of these, which is all that the gradient by x alone needs of them.
template <class V, class A>
SSIMFAST_INLINE V by_both_means(const Moments<V>& m, const Terms<V, A>& t, const Slopes<V>& by) {
  return m.mu_d * (m.mu_s * m.mu_d - t.ms) * by.luminance;
}

}  // namespace ssimfast
