// Hardware primitives for device code: memory access, warps, and instructions that C++ cannot
// express.
//
// Kernels access memory only through these functions. The tests replace this file with
// tests/emulator/cuda/device.cuh, which runs kernels on the CPU and checks every access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define SSIMFAST_DEVICE __device__ __forceinline__

namespace ssimfast::cuda {

// ---- global memory ------------------------------------------------------------------------------

// Reads through the read-only cache. The same kernel must not write to this address.
template <class V>
SSIMFAST_DEVICE V read(const V* from) {
  return __ldg(from);
}

// Reads memory that only this thread may write afterwards.
template <class V>
SSIMFAST_DEVICE V read_own(const V* from) {
  return *from;
}

template <class V>
SSIMFAST_DEVICE void write(V* to, V value) {
  *to = value;
}

// ---- shared memory ------------------------------------------------------------------------------

// A pointer to elements of type V in the shared memory of a block.
template <class V>
class Shared {
 public:
  // The dynamic shared memory of the block, aligned to 16 bytes.
  static SSIMFAST_DEVICE Shared dynamic() {
    extern __shared__ uint4 ssimfast_dynamic_shared[];
    return Shared(ssimfast_dynamic_shared);
  }

  SSIMFAST_DEVICE V operator[](int i) const { return first[i]; }
  SSIMFAST_DEVICE void set(int i, V value) const { first[i] = value; }
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

// ---- warps --------------------------------------------------------------------------------------

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = ~0u;

template <class V>
SSIMFAST_DEVICE V from_lane(V value, int lane) {
  return __shfl_sync(kEveryLane, value, lane, kWarp);
}

template <class V>
SSIMFAST_DEVICE V from_lane_xor(V value, int mask) {
  return __shfl_xor_sync(kEveryLane, value, mask, kWarp);
}

// ---- arithmetic ---------------------------------------------------------------------------------

// 1 / v with an error of at most one unit in the last place. Takes one instruction; a division
// takes eight.
SSIMFAST_DEVICE float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

}  // namespace ssimfast::cuda
