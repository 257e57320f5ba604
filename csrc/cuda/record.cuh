// A record holds the sums of one tile of a sweep: kTerms doubles, which the sweep writes and
// reduce.cuh adds.
//
// For kSsim and kContrastStructure a record holds the sums of (1 - SSIM) / 2 and
// (1 - contrast-structure) / 2 over the tile's positions, which stay precise if both images are
// nearly the same. For the other terms the record holds the sums of pixel_term (terms.h) over the
// tile's pixels. Records are contiguous, ordered by plane.
#pragma once

#include "cuda/device.cuh"
#include "terms.h"

namespace ssimfast::cuda {

// Sum over a warp. Every lane gets the same bits.
SSIMFAST_DEVICE double warp_sum(double value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
  return value;
}

// A compensated sum: `low` keeps the rounding errors of the additions to `high`.
template <class A>
class Sum {
 public:
  SSIMFAST_DEVICE void add(A value) {
    const A next = high + value;
    low += value - (next - high);
    high = next;
  }
  // Adds several finite values with one compensation: add them to rest(), then pass the result to
  // add_with_rest().
  SSIMFAST_DEVICE A rest() const { return low; }
  SSIMFAST_DEVICE void add_with_rest(A value) {
    const A next = high + value;
    low = value - (next - high);
    high = next;
  }
  // `low` is not a number if the sum is infinite or NaN, and is then ignored.
  SSIMFAST_DEVICE double total() const { return low - low == 0 ? double(high) + low : high; }

 private:
  A high = 0, low = 0;
};

// Bytes of shared memory that write_record needs.
SSIMFAST_INLINE constexpr int64_t record_scratch(int threads) {
  return threads / kWarp * kTerms * int64_t(sizeof(double));
}

// Writes the sums of a block to the tile's record. All threads of the block must call this.
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
