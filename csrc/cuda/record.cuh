// Records: the sums of one tile of a sweep, kTerms doubles that the sweep writes and reduce.cuh
// adds.
//
// For kSsim and kContrastStructure a record has the sums over the tile's positions of (1 - SSIM) /
// 2 and (1 - contrast-structure) / 2, which lose nothing where both images are nearly the same. For
// the other terms it has the sums of pixel_term (terms.h) over the tile's pixels. The records of a
// plane lie one after another, and so do the planes.
#pragma once

#include "cuda/device.cuh"
#include "terms.h"

namespace ssimfast::cuda {

// Sum over a warp, the same bits in each lane.
SSIMFAST_DEVICE double warp_sum(double value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
  return value;
}

// A compensated sum: it keeps what each addition rounds off.
template <class A>
class Sum {
 public:
  SSIMFAST_DEVICE void add(A value) {
    const A next = high + value;
    low += value - (next - high);
    high = next;
  }
  // The same in two steps, for finite values: add each to rest(), then add_with_rest their sum.
  SSIMFAST_DEVICE A rest() const { return low; }
  SSIMFAST_DEVICE void add_with_rest(A value) {
    const A next = high + value;
    low = value - (next - high);
    high = next;
  }
  // Infinite and NaN sums have no rest.
  SSIMFAST_DEVICE double total() const { return low - low == 0 ? double(high) + low : high; }

 private:
  A high = 0, low = 0;
};

// Bytes of shared memory that write_record needs.
SSIMFAST_INLINE constexpr int64_t record_scratch(int threads) {
  return threads / kWarp * kTerms * int64_t(sizeof(double));
}

// Writes the sums of a block to its place in `records`. All threads call it.
template <class A>
SSIMFAST_DEVICE void write_record(double* records, int64_t tile, const Sum<A> (&sums)[kTerms],
                                  Shared<double> scratch) {
  const int thread = threadIdx.x, warps = blockDim.x / kWarp;
  for (int t = 0; t < kTerms; ++t) {
    const double total = warp_sum(sums[t].total());
    if (thread % kWarp == 0) scratch.set(t * warps + thread / kWarp, total);
  }
  __syncthreads();
  if (thread < kTerms) {
    double total = 0;
    for (int w = 0; w < warps; ++w) total += scratch[thread * warps + w];
    write(records + tile * kTerms + thread, total);
  }
}

}  // namespace ssimfast::cuda
