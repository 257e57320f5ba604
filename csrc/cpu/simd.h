// SIMD vectors, as the compiler's vector types: ordinary arithmetic operators on `Lanes` numbers.
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

// Stores the first `count` lanes, or all lanes if `count` is larger.
template <class V, class A>
SSIMFAST_INLINE void store_some(A* p, V v, int64_t count) {
  if (count >= int64_t(sizeof(V) / sizeof(A))) {
    store(p, v);
  } else {
    std::memcpy(p, &v, count * sizeof(A));
  }
}

// The same number in every lane. `a - V{}` preserves -0; `V{} + a` does not.
template <class V, class A>
SSIMFAST_INLINE V broadcast(A a) {
  return a - V{};
}

// Reciprocals of two numbers, by two divisions. One division by their product could overflow where
// neither number does. The second division costs no measurable time beside the filters.
template <class A>
struct Reciprocals {
  template <class V>
  SSIMFAST_INLINE void operator()(V a, V b, V& of_a, V& of_b) const {
    of_a = A(1) / a;
    of_b = A(1) / b;
  }
};

// Compensated (Kahan) sums of non-negative numbers, one per lane: each addition adds the rounding
// error of the one before. V is a vector of A.
template <class V, class A>
class Compensated {
 public:
  SSIMFAST_INLINE void add(V value) {
    value += rest;
    const V next = sum + value;
    rest = value - (next - sum);
    sum = next;
  }
  // Adds lanes begin .. end - 1 of `value`.
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
