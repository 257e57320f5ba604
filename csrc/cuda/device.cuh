// What device code asks of its machine: memory, barriers, launches.
//
// One source for three compilers: nvcc, hipcc, and, with SSIMFAST_EMULATED defined, a plain C++
// compiler against tests/emulator/emulator.h, which runs threads as fibers and checks every access
// to memory. For its sake kernels touch memory only through what is below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(SSIMFAST_EMULATED)
#include "emulator.h"
#define SSIMFAST_WATCH(...) __VA_ARGS__
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SSIMFAST_WATCH(...)
#endif

#define SSIMFAST_DEVICE __device__ __forceinline__

namespace ssimfast::cuda {

// ---- global memory --------------------------------------------------------------------------

// Through the read-only cache: nothing that is read so is written by the same kernel.
template <class V>
SSIMFAST_DEVICE V read(const V* from) {
  SSIMFAST_WATCH(emulator::global_read(from, sizeof(V)));
  return __ldg(from);
}

// What the same thread, and no other, may write afterwards.
template <class V>
SSIMFAST_DEVICE V read_own(const V* from) {
  SSIMFAST_WATCH(emulator::global_read_own(from, sizeof(V)));
  return *from;
}

template <class V>
SSIMFAST_DEVICE void write(V* to, V value) {
  SSIMFAST_WATCH(emulator::global_write(to, sizeof(V)));
  *to = value;
}

// ---- shared memory --------------------------------------------------------------------------

// A pointer to elements of type V in the shared memory of a block.
template <class V>
class Shared {
 public:
  // The dynamic shared memory of the block, aligned to 16 bytes.
  static SSIMFAST_DEVICE Shared dynamic() {
#if defined(SSIMFAST_EMULATED)
    return Shared(emulator::dynamic_shared());
#else
    extern __shared__ uint4 ssimfast_dynamic_shared[];
    return Shared(ssimfast_dynamic_shared);
#endif
  }

  SSIMFAST_DEVICE V operator[](int i) const {
    SSIMFAST_WATCH(emulator::shared_read(first + i, sizeof(V)));
    return first[i];
  }
  SSIMFAST_DEVICE void set(int i, V value) const {
    SSIMFAST_WATCH(emulator::shared_write(first + i, sizeof(V)));
    first[i] = value;
  }
  SSIMFAST_DEVICE Shared operator+(int i) const { return Shared(first + i); }
  // The same memory as wider or narrower elements.
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

// ---- warps ----------------------------------------------------------------------------------

// Groups of 32 threads exchange values; on machines with warps of 64, two such groups share one.
constexpr int kWarp = 32;

#if defined(__HIP_PLATFORM_AMD__)
constexpr unsigned long long kEveryLane = ~0ull;
#else
constexpr unsigned kEveryLane = ~0u;
#endif

template <class V>
SSIMFAST_DEVICE V from_lane(V value, int lane) {
  return __shfl_sync(kEveryLane, value, lane, kWarp);
}

template <class V>
SSIMFAST_DEVICE V from_lane_xor(V value, int mask) {
  return __shfl_xor_sync(kEveryLane, value, mask, kWarp);
}

// The sum over a warp, the same bits in each lane.
SSIMFAST_DEVICE double warp_sum(double value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
  return value;
}

// ---- arithmetic -----------------------------------------------------------------------------

// 1 / v. In float right to one unit in the last place: one instruction, where a division takes
// eight.
SSIMFAST_DEVICE float reciprocal(float v) {
#if defined(SSIMFAST_EMULATED)
  return emulator::approximate_reciprocal(v);
#elif defined(__HIP_PLATFORM_AMD__)
  return 1.0f / v;
#else
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#endif
}
SSIMFAST_DEVICE double reciprocal(double v) { return 1.0 / v; }

// a b + c, rounded once; where nvcc would see a product of two uses, and round twice.
template <class A>
SSIMFAST_DEVICE A multiply_add(A a, A b, A c) {
  if constexpr (sizeof(A) == sizeof(float)) return fmaf(a, b, c);
  return fma(a, b, c);
}

struct Reciprocals {
  template <class A>
  SSIMFAST_DEVICE void operator()(A a, A b, A& of_a, A& of_b) const {
    of_a = reciprocal(a);
    of_b = reciprocal(b);
  }
};

// ---- launches -------------------------------------------------------------------------------

#if defined(SSIMFAST_EMULATED)
using Stream = int;
#else
using Stream = cudaStream_t;
#endif

}  // namespace ssimfast::cuda
