// A record holds the sums of one tile of a sweep: one Sum for each term, which the sweep writes and
// reduce.cuh adds. Only the records of wanted terms are written.
//
// For kSsim and kContrastStructure a record holds the sums of (1 - SSIM) / 2 and
// (1 - contrast-structure) / 2 over the tile's positions, which stay precise if both images are
// nearly the same. For the other terms the record holds the sums of pixel_term (terms.h) over the
// tile's pixels. Records are contiguous, ordered by plane.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"
#include "terms.h"

namespace ssimfast::cuda {

// A compensated sum: `low` keeps the rounding errors of the additions to `high`. In float32 that
// gives 48 bits without double arithmetic, of which GeForce cards do 1/64 as much.
template <class A>
struct Sum {
  A high = 0, low = 0;

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
  // Adds another sum, of any size.
  SSIMFAST_DEVICE void add(const Sum& other) {
    const A next = high + other.high, part = next - high;
    low += other.low + ((high - (next - part)) + (other.high - part));
    high = next;
  }
  // `low` is not a number if the sum is infinite or NaN, and is then ignored.
  SSIMFAST_DEVICE double total() const { return low - low == 0 ? double(high) + low : high; }
};

// A Sum in memory, moved by one access.
template <class A>
using StoredSum = std::conditional_t<sizeof(A) == sizeof(double), double2, float2>;

template <class A>
SSIMFAST_DEVICE StoredSum<A> stored(const Sum<A>& sum) {
  StoredSum<A> stored;
  stored.x = sum.high;
  stored.y = sum.low;
  return stored;
}
SSIMFAST_DEVICE Sum<float> loaded(const float2& stored) { return {stored.x, stored.y}; }
SSIMFAST_DEVICE Sum<double> loaded(const double2& stored) { return {stored.x, stored.y}; }

// Adds the sums of 2 * most lanes, neighbours in the warp; lane 0 of them gets the result.
template <class A>
SSIMFAST_DEVICE Sum<A> add_lanes(Sum<A> sum, int most = kWarp / 2) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    if (mask <= most) sum.add({from_lane_xor(sum.high, mask), from_lane_xor(sum.low, mask)});
  return sum;
}

// Bytes of shared memory that add_threads needs.
template <class A>
SSIMFAST_INLINE constexpr int64_t sums_bytes(int threads) {
  return threads / kWarp * kTerms * int64_t(sizeof(StoredSum<A>));
}

// Adds the sums of the wanted terms over a block; the first 16 lanes get the result, up to the
// rounding of `low`. All threads of the block must call this.
template <class A, class Wanted>
SSIMFAST_DEVICE void add_threads(Sum<A> (&sums)[kTerms], const Wanted& wanted,
                                 const Shared<StoredSum<A>>& scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int t = 0; t < kTerms; ++t) {
    if (!wanted(t)) continue;
    sums[t] = add_lanes(sums[t]);
    if (lane == 0 && warps > 1) scratch.set(t * warps + warp, stored(sums[t]));
  }
  if (warps == 1) return;
  __syncthreads();
  if (warp > 0) return;
#pragma unroll
  for (int t = 0; t < kTerms; ++t) {
    if (!wanted(t)) continue;
    sums[t] = lane < warps ? loaded(scratch[t * warps + lane]) : Sum<A>{};
    sums[t] = add_lanes(sums[t], 8);
  }
}

// The sum that belongs to a lane: of the term of its number.
template <class A>
SSIMFAST_DEVICE Sum<A> of_lane(const Sum<A> (&sums)[kTerms], int lane) {
  Sum<A> own;
#pragma unroll
  for (int t = 0; t < kTerms; ++t)
    if (lane == t) own = sums[t];
  return own;
}

// Writes the sums of a block to the tile's record. All threads of the block must call this.
template <class A, class Wanted>
SSIMFAST_DEVICE void write_record(StoredSum<A>* records, int64_t tile, const Wanted& wanted,
                                  Sum<A> (&sums)[kTerms], const Shared<StoredSum<A>>& scratch) {
  add_threads(sums, wanted, scratch);
  const int thread = threadIdx.x;
  if (thread < kTerms && wanted(thread))
    write(records + tile * kTerms + thread, stored(of_lane(sums, thread)));
}

}  // namespace ssimfast::cuda
