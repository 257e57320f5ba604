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

// SSIM = (n1 / d1) * (n2 / d2). |n1| <= d1 and |n2| <= d2 hold after rounding too, because each
// pair adds and subtracts the same two non-negative numbers; so the quotient of the products
// never leaves [-1, 1] and is exactly 1 where d vanishes. One division, never a reciprocal.
template <class V, class A>
struct Terms {
  V ms, md, n1, d1, n2, d2;

  SSIMFAST_INLINE Terms(const Moments<V>& m, A c1, A c2) {
    const A half = A(0.5);
    ms = m.mu_s * m.mu_s;
    md = m.mu_d * m.mu_d;
    n1 = (ms - md) * half + c1;
    d1 = (ms + md) * half + c1;
    n2 = (m.var_s - m.var_d) * half + c2;
    d2 = (m.var_s + m.var_d) * half + c2;
  }

  SSIMFAST_INLINE V ssim() const { return (n1 * n2) / (d1 * d2); }
  SSIMFAST_INLINE V luminance() const { return n1 / d1; }
  SSIMFAST_INLINE V contrast_structure() const { return n2 / d2; }
};

// Upstream gradients at one position: by SSIM, by luminance and by contrast-structure.
template <class V>
struct Upstream {
  V ssim, luminance, contrast_structure;
};

// The upstream gradients times the derivatives by the four filtered maps: by the true means, and
// twice the ones by E[s^2] and E[d^2]. The differences 1 -+ l and 1 -+ cs are replaced by the terms
// that they equal (1 - l = mu_d^2 / d1, and so on), so nothing cancels where x is close to y.
template <class V>
struct Partials {
  V by_mu_s, by_mu_d, by_var_s, by_var_d;
};

template <class V, class A>
SSIMFAST_INLINE Partials<V> partials(const Moments<V>& m, const Terms<V, A>& t, A c1, A c2,
                                     const Upstream<V>& upstream) {
  const V r = A(1) / (t.d1 * t.d2);
  const V r1 = r * t.d2;  // 1 / d1
  const V r2 = r * t.d1;  // 1 / d2
  const V lum = (upstream.ssim * t.n2 * r2 + upstream.luminance) * r1 * r1;
  const V con = (upstream.ssim * t.n1 * r1 + upstream.contrast_structure) * r2 * r2;
  Partials<V> p;
  p.by_mu_s = m.mu_s * t.md * lum;
  p.by_mu_d = -m.mu_d * (t.ms + A(2) * c1) * lum;
  p.by_var_s = con * m.var_d;
  p.by_var_d = -con * (m.var_s + A(2) * c2);
  return p;
}

}  // namespace ssimfast
