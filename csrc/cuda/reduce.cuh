// The second stage of the sums: turns the records of tiles (record.cuh) into terms, values and
// slopes.
//
// Records are added in a fixed order, which does not depend on the grid: a block for each group of
// planes. Double arithmetic is left for what has one number for each group, plane or level.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/record.cuh"
#include "problem.h"

namespace ssimfast::cuda {

constexpr int kMostSumThreads = 512;

// Records of a sweep: `count` per group of planes.
template <class A>
struct RecordList {
  const StoredSum<A>* first = nullptr;
  int64_t count = 0;

  SSIMFAST_DEVICE const StoredSum<A>* of_group(int64_t group) const {
    return first + group * count * kTerms;
  }
};

// The wanted terms, a bit for each.
struct WantedTerms {
  int bits;

  SSIMFAST_DEVICE bool operator()(int term) const { return (bits >> term & 1) != 0; }
};

// Adds a term of the records first, first + step, ... below count. Reads several before it adds
// any, to keep several loads in flight.
template <class A>
SSIMFAST_DEVICE void add_records(Sum<A>& sum, const StoredSum<A>* records, int term, int64_t count,
                                 int first, int step) {
  constexpr int kAhead = 4;
  for (int64_t i = first; i < count; i += kAhead * step) {
    Sum<A> sums[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (i + k * step < count) sums[k] = loaded(read(records + (i + k * step) * kTerms + term));
#pragma unroll
    for (int k = 0; k < kAhead; ++k) sum.add(sums[k]);
  }
}

// The same for all terms in `wanted`.
template <class A>
SSIMFAST_DEVICE void add_records(Sum<A> (&sums)[kTerms], const StoredSum<A>* records, int64_t count,
                                 WantedTerms wanted, int first, int step) {
#pragma unroll
  for (int t = 0; t < kTerms; ++t)
    if (wanted(t)) add_records(sums[t], records, t, count, first, step);
}

// Writes the terms of a group, of which each lane has that of its number, and their weighted sum,
// the value. The first warp calls this.
template <class A>
SSIMFAST_DEVICE void write_group(const Reduction<A>& to, int64_t group, double term) {
  const int lane = threadIdx.x;
  double part = 0;
  if (lane < kTerms) {
    write(to.terms + group * kTerms + lane, term);
    if (to.weights[lane] != 0) part = to.weights[lane] * term;
  }
  static_assert(kTerms <= 8);
  for (int mask = 4; mask > 0; mask /= 2) part += from_lane_xor(part, mask);
  if (lane == 0) write(to.value + group, A(part + to.constant));
}

// ---- one sweep ----------------------------------------------------------------------------------

// Folds every `run` records of a group into one record; the last run of a group may be shorter.
// Used if a group has so many records that finish_terms, one block per group, would take long.
template <class A>
struct FoldRecords {
  RecordList<A> from;
  int64_t groups, run;
  WantedTerms wanted;
  StoredSum<A>* out;  // (groups, runs(), kTerms)

  SSIMFAST_INLINE int64_t runs() const { return divide_up(from.count, run); }
};

template <class A>
__global__ void __launch_bounds__(kMostSumThreads, 1) fold_records(const FoldRecords<A> p) {
  const int64_t item = blockIdx.x, group = item / p.runs(), begin = item % p.runs() * p.run;
  const int64_t rest = p.from.count - begin;
  Sum<A> sums[kTerms];
  add_records(sums, p.from.of_group(group) + begin * kTerms, rest < p.run ? rest : p.run, p.wanted,
              threadIdx.x, blockDim.x);
  write_record(p.out, item, p.wanted, sums, Shared<StoredSum<A>>::dynamic());
}

// Parameter of finish_terms.
template <class A>
struct Finish {
  RecordList<A> from;
  Reduction<A> to;
  double positions;  // of a group
  double per_count;  // 1 / to.count
};

// Computes the terms and the value of a group from the records of all tiles of its planes.
template <class A>
__global__ void __launch_bounds__(kMostSumThreads, 1) finish_terms(const Finish<A> p) {
  const int64_t group = blockIdx.x;
  const Reduction<A>& to = p.to;
  const WantedTerms wanted{to.wanted};
  Sum<A> sums[kTerms];
  add_records(sums, p.from.of_group(group), p.from.count, wanted, threadIdx.x, blockDim.x);
  add_threads(sums, wanted, Shared<StoredSum<A>>::dynamic());
  if (threadIdx.x >= kWarp) return;
  const int lane = threadIdx.x;
  double term = 0;
  if (wanted(lane)) {
    double sum = of_lane(sums, lane).total();
    if (to.mask_factors != nullptr) sum *= read(to.mask_factors + 2 * group + (lane >= kL1));
    term = (lane < kL1 ? p.positions - 2 * sum : sum * to.positions_per_pixel) * p.per_count;
  }
  write_group(to, group, term);
}

// ---- all levels of MS-SSIM ----------------------------------------------------------------------

// Parameter of combine_levels. A product of the levels' powers is MS-SSIM of a plane or, if means
// are joint, of an image; the mean of the products of a group is its value.
template <class A>
struct CombineLevels {
  RecordList<A> levels[kMaxLevels];  // the records of each plane
  Reduction<A> to;
  int64_t together;                 // planes of a product: 1 or, if joint, the channels
  int64_t products;                 // of a group
  double per_position[kMaxLevels];  // 1 / positions of a product, for each level
  double per_product, per_plane;    // 1 / products, 1 / planes of a group
};

// Level j of product i of a chunk: number i * levels + j. The shared memory of combine_levels has
// three numbers for each.
constexpr int kMostItems = 512;
constexpr int64_t kItemBytes = 3 * kMostItems * sizeof(double);

// Mean of a level of a product, by a warp; in lane 0.
template <class A>
SSIMFAST_DEVICE double mean_of_level(const CombineLevels<A>& p, int level, int64_t product) {
  const RecordList<A>& list = p.levels[level];
  const int64_t count = list.count * p.together;
  Sum<A> sum;
  add_records(sum, list.first + product * count * kTerms, p.to.mean_of(level), count,
              threadIdx.x % kWarp, kWarp);
  return 1 - 2 * (add_lanes(sum).total() * p.per_position[level]);
}

// Writes the slope of a level, and with it the weights of the second sweep of the finest level, to
// all planes of a product. `others` is the product of the powers of all other levels.
template <class A>
SSIMFAST_DEVICE void write_slope(const CombineLevels<A>& p, int level, int64_t product,
                                 double others, double by_mean) {
  const Reduction<A>& to = p.to;
  double slope = others * by_mean * (to.weights[kContrastStructure] * p.per_plane) *
                 (p.per_position[level] * double(p.together));
  FinestWeights finest{};
  const bool again = to.plane_weights != nullptr && level == 0;
  if (again) {
    finest = finest_weights_of(to.mean_of(0), slope, to.weights[kSsim],
                               to.positions[0] * double(p.products * p.together));
    slope = finest.slope;
  }
  for (int64_t plane = product * p.together; plane < (product + 1) * p.together; ++plane) {
    write(to.slopes + plane * to.levels + level, slope);
    if (!again) continue;
    write(to.plane_weights + 2 * plane + kSsim, A(finest.ssim));
    write(to.plane_weights + 2 * plane + kContrastStructure, A(finest.contrast_structure));
  }
}

template <class A>
__global__ void __launch_bounds__(kMostSumThreads, 1)
    combine_levels(const __grid_constant__ CombineLevels<A> p) {
  const auto means = Shared<double>::dynamic(), powers = means + kMostItems;
  const auto by_means = powers + kMostItems;
  const int thread = threadIdx.x, threads = blockDim.x, warp = thread / kWarp;
  const int64_t group = blockIdx.x;
  const Reduction<A>& to = p.to;
  Sum<A> sums[kTerms];  // of the finest level
  Sum<double> ms_ssim;
  const int64_t most = kMostItems / to.levels;
  for (int64_t first = 0; first < p.products; first += most) {
    const int64_t product = group * p.products + first;  // the first of this chunk
    const int count = int(p.products - first < most ? p.products - first : most);
    const int items = count * to.levels;
    for (int item = warp; item < items; item += threads / kWarp) {
      const double mean = mean_of_level(p, item % to.levels, product + item / to.levels);
      if (thread % kWarp == 0) means.set(item, mean);
    }
    __syncthreads();
    for (int item = thread; item < items; item += threads) {
      const LevelPower power =
          level_power(means[item], to.exponents[item % to.levels], to.absolute);
      powers.set(item, power.value);
      by_means.set(item, power.slope);
    }
    __syncthreads();
    for (int item = thread; item < items; item += threads) {
      const int level = item % to.levels;
      const double others = product_except(powers + (item - level), to.levels, level);
      write_slope(p, level, product + item / to.levels, others, by_means[item]);
      if (level == 0) ms_ssim.add(others * powers[item]);
    }
    __syncthreads();
  }
  // The terms of the finest level, and MS-SSIM in the place of contrast-structure.
  const RecordList<A>& finest = p.levels[0];
  const int64_t records = finest.count * p.products * p.together;
  const WantedTerms wanted{to.wanted};
  add_records(sums, finest.first + group * records * kTerms, records, wanted, thread, threads);
  add_threads(sums, wanted, Shared<StoredSum<A>>::dynamic());
  __syncthreads();
  Sum<double> all[kTerms];
  all[kContrastStructure] = ms_ssim;
  add_threads(
      all, [&](int t) { return t == kContrastStructure; }, Shared<StoredSum<double>>::dynamic());
  if (warp > 0) return;
  double term = 0;
  if (thread == kContrastStructure) {
    term = all[kContrastStructure].total() * p.per_product;
  } else if (wanted(thread)) {
    const double sum =
        of_lane(sums, thread).total() * p.per_position[0] * double(p.together) * p.per_plane;
    term = thread < kL1 ? 1 - 2 * sum : sum * to.positions_per_pixel;
  }
  write_group(to, group, term);
}

}  // namespace ssimfast::cuda
