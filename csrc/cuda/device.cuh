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

// threadIdx.x, read once: nvcc reads it anew wherever it is used, and that takes 28 cycles.
SSIMFAST_DEVICE int thread_of_block() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

template <class V>
SSIMFAST_DEVICE V from_lane(V value, int lane) {
  return __shfl_sync(kEveryLane, value, lane, kWarp);
}

template <class V>
SSIMFAST_DEVICE V from_lane_xor(V value, int mask) {
  return __shfl_xor_sync(kEveryLane, value, mask, kWarp);
}

// A bit for each lane where the condition holds.
SSIMFAST_DEVICE unsigned lanes_where(bool condition) {
  return __ballot_sync(kEveryLane, condition);
}
SSIMFAST_DEVICE int count_of(unsigned lanes) { return __popc(lanes); }
SSIMFAST_DEVICE int first_of(unsigned lanes) { return __ffs(int(lanes)) - 1; }

// ---- arithmetic ---------------------------------------------------------------------------------

// 1 / v with an error of at most one unit in the last place. Takes one instruction; a division
// takes eight.
SSIMFAST_DEVICE float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Two numbers with the same arithmetic, which newer devices do in one instruction.
struct Two {
  float a = 0, b = 0;
};

// True if filters of K taps should use it.
#if __CUDA_ARCH__ >= 1000
template <int K>
constexpr bool kPacks = true;

SSIMFAST_DEVICE float2 of(Two x) { return make_float2(x.a, x.b); }
SSIMFAST_DEVICE Two two(float2 x) { return {x.x, x.y}; }
SSIMFAST_DEVICE Two add(Two x, Two y) { return two(__fadd2_rn(of(x), of(y))); }
SSIMFAST_DEVICE Two multiply(Two x, Two y) { return two(__fmul2_rn(of(x), of(y))); }
SSIMFAST_DEVICE Two accumulate(Two sum, Two x, Two y) {
  return two(__ffma2_rn(of(x), of(y), of(sum)));
}
#else
template <int K>
constexpr bool kPacks = false;

SSIMFAST_DEVICE Two add(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }
SSIMFAST_DEVICE Two multiply(Two x, Two y) { return {x.a * y.a, x.b * y.b}; }
SSIMFAST_DEVICE Two accumulate(Two sum, Two x, Two y) {
  return {sum.a + x.a * y.a, sum.b + x.b * y.b};
}
#endif

}  // namespace ssimfast::cuda
