// SIMD vectors as the compiler's own vector types: plain arithmetic operators on `Lanes` numbers.
#pragma once

#include <cstring>

#include "../ssim.h"

namespace ssimfast::cpu {

#if defined(__GNUC__)
template <class A, int Lanes>
struct VectorOf {
  typedef A type __attribute__((vector_size(sizeof(A) * Lanes)));
};
#else
// Without vector types (MSVC) a vector is one number and the compiler vectorises what it can.
template <class A, int Lanes>
struct VectorOf {
  typedef A type;
};
#endif

template <class V, class A>
SSIMFAST_INLINE V load(const A* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class A>
SSIMFAST_INLINE void store(A* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// The same number in every lane; correct for infinities and NaN, unlike V{} + a for -0.
template <class V, class A>
SSIMFAST_INLINE V broadcast(A a) {
  return a - V{};
}

// Of two numbers, by one division.
template <class A>
struct Reciprocals {
  template <class V>
  SSIMFAST_INLINE void operator()(V a, V b, V& of_a, V& of_b) const {
    const V r = A(1) / (a * b);
    of_a = r * b;
    of_b = r * a;
  }
};

template <class V>
SSIMFAST_INLINE V magnitude(V v) {
  return v < V{} ? -v : v;
}

// -1, 0 or 1; NaN for NaN. Without branches, so that a loop of it becomes vectors.
template <class A>
SSIMFAST_INLINE A sign(A a) {
  return A(a > 0) - A(a < 0) + (a - a);
}

}  // namespace ssimfast::cpu
