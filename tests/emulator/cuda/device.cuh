// The emulator in the place of csrc/cuda/device.cuh: the same functions, which report each access
// to memory before they make it. Compilers find this file first, by the order of their -I flags.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "emulator.h"

#define SSIMFAST_DEVICE inline

namespace ssimfast::cuda {

template <class V>
SSIMFAST_DEVICE V read(const V* from) {
  emulator::global_read(from, sizeof(V));
  return *from;
}

template <class V>
SSIMFAST_DEVICE V read_own(const V* from) {
  emulator::global_read_own(from, sizeof(V));
  return *from;
}

template <class V>
SSIMFAST_DEVICE void write(V* to, V value) {
  emulator::global_write(to, sizeof(V));
  *to = value;
}

template <class V>
class Shared {
 public:
  static SSIMFAST_DEVICE Shared dynamic() { return Shared(emulator::dynamic_shared()); }

  SSIMFAST_DEVICE V operator[](int i) const {
    emulator::shared_read(first + i, sizeof(V));
    return first[i];
  }
  SSIMFAST_DEVICE void set(int i, V value) const {
    emulator::shared_write(first + i, sizeof(V));
    first[i] = value;
  }
  SSIMFAST_DEVICE Shared operator+(int i) const { return Shared(first + i); }
  template <class W>
  SSIMFAST_DEVICE Shared<W> as() const {
    return Shared<W>(first);
  }

 private:
  template <class W>
  friend class Shared;

  SSIMFAST_DEVICE explicit Shared(void* first) : first(static_cast<V*>(first)) {}

  V* first;
};

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = ~0u;

SSIMFAST_DEVICE int thread_of_block() { return int(threadIdx.x); }

template <class V>
SSIMFAST_DEVICE V from_lane(V value, int lane) {
  return __shfl_sync(kEveryLane, value, lane, kWarp);
}

template <class V>
SSIMFAST_DEVICE V from_lane_xor(V value, int mask) {
  return __shfl_xor_sync(kEveryLane, value, mask, kWarp);
}

SSIMFAST_DEVICE unsigned lanes_where(bool condition) {
  unsigned lanes = unsigned(condition) << threadIdx.x % kWarp;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) lanes |= from_lane_xor(lanes, mask);
  return lanes;
}
SSIMFAST_DEVICE int count_of(unsigned lanes) { return std::popcount(lanes); }
SSIMFAST_DEVICE int first_of(unsigned lanes) { return std::countr_zero(lanes); }

struct Two {
  float a = 0, b = 0;
};

// Both ways to filter are executed: packed for small windows, one number at a time for others.
template <int K>
constexpr bool kPacks = K < 11;

SSIMFAST_DEVICE Two add(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }
SSIMFAST_DEVICE Two multiply(Two x, Two y) { return {x.a * y.a, x.b * y.b}; }
SSIMFAST_DEVICE Two accumulate(Two sum, Two x, Two y) {
  return {sum.a + x.a * y.a, sum.b + x.b * y.b};
}

SSIMFAST_DEVICE float reciprocal(float v) { return emulator::approximate_reciprocal(v); }

}  // namespace ssimfast::cuda
