// SIMD vectors as the compiler's own vector types: plain arithmetic operators on `Lanes` numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "pixel.h"

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

// The first `count` numbers, or all.
template <class V, class A>
SSIMFAST_INLINE void store_some(A* p, V v, int64_t count) {
  if (count >= int64_t(sizeof(V) / sizeof(A))) {
    store(p, v);
  } else {
    std::memcpy(p, &v, count * sizeof(A));
  }
}

// The same number in every lane; correct for infinities and NaN, unlike V{} + a for -0.
template <class V, class A>
SSIMFAST_INLINE V broadcast(A a) {
  return a - V{};
}

// The reciprocals of two numbers, by two divisions. One division, of their product, would overflow
// where neither does, and the second takes no time beside all the multiplications.
template <class A>
struct Reciprocals {
  template <class V>
  SSIMFAST_INLINE void operator()(V a, V b, V& of_a, V& of_b) const {
    of_a = A(1) / a;
    of_b = A(1) / b;
  }
};

// Sums of non-negative numbers, a lane each, in which little is lost: what an addition rounds off
// is added the next time. V is a vector of numbers A.
template <class V, class A>
class Compensated {
 public:
  SSIMFAST_INLINE void add(V value) {
    value += rest;
    const V next = sum + value;
    rest = value - (next - sum);
    sum = next;
  }
  // The lanes begin .. end - 1 of `value`.
  SSIMFAST_INLINE void add_some(V value, int64_t begin, int64_t end) {
    A lanes[kLanes];
    store(lanes, value);
    for (int64_t i = std::max<int64_t>(begin, 0); i < std::min(end, kLanes); ++i)
      edges += double(lanes[i]);
  }
  SSIMFAST_INLINE double total() const {
    A sums[kLanes], rests[kLanes];
    store(sums, sum);
    store(rests, rest);
    double total = edges;
    for (int64_t i = 0; i < kLanes; ++i) total += double(sums[i]) + double(rests[i]);
    return total;
  }

 private:
  static constexpr int64_t kLanes = sizeof(V) / sizeof(A);
  V sum{}, rest{};
  double edges = 0;
};

}  // namespace ssimfast::cpu
