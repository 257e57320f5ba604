// The second stage of sums: the records of tiles (record.cuh) become terms, values and slopes.
//
// Everything here is added in double and in an order that never changes, whatever the grid. Each
// kernel is launched with kSumThreads threads, kSumShared bytes and any number of blocks; best is
// one block for each item that the kernel loops over.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/record.cuh"
#include "problem.h"

namespace ssimfast::cuda {

constexpr int kSumThreads = 512;
constexpr int kSumWarps = kSumThreads / kWarp;
constexpr int64_t kSumShared = (kSumWarps * kTerms + 2 * kMaxLevels) * sizeof(double);
constexpr int kEveryTerm = (1 << kTerms) - 1;

// Records of a sweep: `count` for each group of planes that is added.
struct RecordList {
  const double* first;
  int64_t count;

  SSIMFAST_DEVICE const double* of_group(int64_t group) const {
    return first + group * count * kTerms;
  }
};

struct Sums {
  double of[kTerms] = {};
};

// Adds the records first, first + step, ... below count; only the terms in `wanted`.
//
// Several records are read before any is added. The kernels are compiled for one block a
// multiprocessor, which leaves the registers for that: otherwise few reads are under way at once.
SSIMFAST_DEVICE Sums sum_records(const double* records, int64_t count, int wanted, int first,
                                 int step) {
  constexpr int kAhead = 4;
  Sums sums;
  for (int64_t i = first; i < count; i += kAhead * step) {
    double values[kAhead][kTerms];
    for (int k = 0; k < kAhead; ++k) {
      const int64_t record = i + k * step;
      for (int t = 0; t < kTerms; ++t)
        values[k][t] =
            record < count && (wanted >> t & 1) != 0 ? read(records + record * kTerms + t) : 0.0;
    }
    for (int k = 0; k < kAhead; ++k)
      for (int t = 0; t < kTerms; ++t) sums.of[t] += values[k][t];
  }
  return sums;
}

// Adds over each warp of a block and writes a row of `rows` a warp. After a barrier, total() adds
// the rows.
SSIMFAST_DEVICE void sum_warps(const Sums& sums, const Shared<double>& rows) {
  const int thread = int(threadIdx.x);
  for (int t = 0; t < kTerms; ++t) {
    const double sum = warp_sum(sums.of[t]);
    if (thread % kWarp == 0) rows.set(thread / kWarp * kTerms + t, sum);
  }
}

SSIMFAST_DEVICE double total(const Shared<double>& rows, int term) {
  double sum = 0;
  for (int warp = 0; warp < kSumWarps; ++warp) sum += rows[warp * kTerms + term];
  return sum;
}

// Weighted sum of the terms of a group, by one thread, into its value.
template <class A>
SSIMFAST_DEVICE void write_value(const Reduction<A>& to, int64_t group,
                                 const Shared<double>& terms) {
  double value = 0;
  for (int t = 0; t < kTerms; ++t)
    if (to.weights[t] != 0) value += to.weights[t] * terms[t];
  write(to.value + group, A(value + to.constant));
}

// ---- one sweep ----------------------------------------------------------------------------------

// Folds every `run` records of a group into one; the last run of a group may be shorter. For groups
// of so many records that finish_terms, one block a group, would take long.
struct FoldRecords {
  RecordList from;
  int64_t groups, run;
  int wanted;
  double* out;  // (groups, runs(), kTerms)

  SSIMFAST_INLINE int64_t runs() const { return divide_up(from.count, run); }
};

static __global__ void __launch_bounds__(kSumThreads, 1) fold_records(const FoldRecords p) {
  const auto rows = Shared<double>::dynamic();
  const int thread = int(threadIdx.x);
  for (int64_t item = blockIdx.x; item < p.groups * p.runs(); item += gridDim.x) {
    const int64_t begin = item % p.runs() * p.run, rest = p.from.count - begin;
    sum_warps(sum_records(p.from.of_group(item / p.runs()) + begin * kTerms,
                          rest < p.run ? rest : p.run, p.wanted, thread, kSumThreads),
              rows);
    __syncthreads();
    if (thread < kTerms) write(p.out + item * kTerms + thread, total(rows, thread));
    __syncthreads();  // before `rows` is written again
  }
}

// Parameter of the kernels that make the terms and the value of each group of planes.
template <class A>
struct Finish {
  RecordList from;
  Reduction<A> to;
  double positions;  // of a group
};

// From the records of all tiles of all planes of a group.
template <class A>
__global__ void __launch_bounds__(kSumThreads, 1) finish_terms(const Finish<A> p) {
  const auto rows = Shared<double>::dynamic(), terms = rows + kSumWarps * kTerms;
  const int thread = int(threadIdx.x);
  const Reduction<A>& to = p.to;
  for (int64_t group = blockIdx.x; group < to.groups; group += gridDim.x) {
    sum_warps(sum_records(p.from.of_group(group), p.from.count, to.wanted, thread, kSumThreads),
              rows);
    __syncthreads();
    if (thread < kTerms) {
      double term = 0;
      if ((to.wanted >> thread & 1) != 0) {
        const double sum = total(rows, thread);
        term = (thread < kL1 ? p.positions - 2 * sum : sum * to.positions_per_pixel) / to.count;
      }
      terms.set(thread, term);
      write(to.terms + group * kTerms + thread, term);
    }
    __syncthreads();
    if (thread == 0) write_value(to, group, terms);
  }
}

// ---- all levels of MS-SSIM ----------------------------------------------------------------------

// MS-SSIM of each plane or, if means are joint, of each image; the terms of its finest level, with
// MS-SSIM in the place of kContrastStructure, into `plane_terms`; the slopes; and the weights of a
// second sweep of the finest level, if there is one.
template <class A>
struct CombinePlanes {
  RecordList levels[kMaxLevels];  // the records of each plane
  Reduction<A> to;
  int64_t planes;          // whose means are averaged: 1 or, if joint, the channels
  double planes_of_value;  // that a value is the mean of
};

// The sums over one plane: those of the finest level into `rows`, by all threads, and those of the
// means of coarser levels added to `sums`, by a warp each, for these have few records.
template <class A>
SSIMFAST_DEVICE void sum_levels(const CombinePlanes<A>& p, int64_t plane, bool first,
                                const Shared<double>& rows, const Shared<double>& sums) {
  const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const RecordList& finest = p.levels[0];
  sum_warps(sum_records(finest.of_group(plane), finest.count, p.to.wanted, thread, kSumThreads),
            rows);
  static_assert(1 + kSumWarps >= kMaxLevels);
  const int level = 1 + warp;
  double sum = 0;
  if (level < p.to.levels) {
    const RecordList& records = p.levels[level];
    sum = sum_records(records.of_group(plane) + p.to.mean_of(level), records.count, 1, lane, kWarp)
              .of[0];
  }
  sum = warp_sum(sum);
  if (lane == 0 && level < p.to.levels) sums.set(level, (first ? 0.0 : sums[level]) + sum);
}

// The terms of the finest level of one plane, by kTerms threads. MS-SSIM is not known yet.
template <class A>
SSIMFAST_DEVICE void write_plane_terms(const Reduction<A>& to, int64_t plane, bool first,
                                       const Shared<double>& rows, const Shared<double>& sums) {
  const int term = int(threadIdx.x);
  const double sum = total(rows, term);
  if (term == to.mean_of(0)) sums.set(0, (first ? 0.0 : sums[0]) + sum);
  double mean = 0;
  if ((to.wanted >> term & 1) != 0)
    mean =
        term < kL1 ? 1 - 2 * sum / to.positions[0] : sum * to.positions_per_pixel / to.positions[0];
  if (term != kContrastStructure) write(to.plane_terms + plane * kTerms + term, mean);
}

template <class A>
__global__ void __launch_bounds__(kSumThreads, 1) combine_planes(const CombinePlanes<A> p) {
  const auto rows = Shared<double>::dynamic(), sums = rows + kSumWarps * kTerms;
  const Shared<double> powers = sums + kMaxLevels;
  const int thread = int(threadIdx.x);
  const Reduction<A>& to = p.to;
  for (int64_t begin = blockIdx.x * p.planes; begin < to.planes; begin += gridDim.x * p.planes) {
    for (int64_t plane = begin; plane < begin + p.planes; ++plane) {
      sum_levels(p, plane, plane == begin, rows, sums);
      __syncthreads();
      if (thread < kTerms) write_plane_terms(to, plane, plane == begin, rows, sums);
      __syncthreads();
    }
    // Thread j combines level j.
    LevelPower power{};
    if (thread < to.levels) {
      const double mean = 1 - 2 * sums[thread] / (to.positions[thread] * double(p.planes));
      power = level_power(mean, to.exponents[thread], to.absolute);
      powers.set(thread, power.value);
    }
    __syncthreads();
    const double others = product_except(powers, to.levels, thread);
    const double ms_ssim = others * power.value;
    double slope = 0;
    if (thread < to.levels)
      slope = others * power.slope * (to.weights[kContrastStructure] / p.planes_of_value) /
              to.positions[thread];
    FinestWeights finest{};
    if (to.plane_weights != nullptr && thread == 0) {
      finest = finest_weights_of(to.mean_of(0), slope, to.weights[kSsim],
                                 to.positions[0] * p.planes_of_value);
      slope = finest.slope;
    }
    for (int64_t plane = begin; plane < begin + p.planes; ++plane) {
      if (thread < to.levels) write(to.slopes + plane * to.levels + thread, slope);
      if (thread == 0) write(to.plane_terms + plane * kTerms + kContrastStructure, ms_ssim);
      if (to.plane_weights != nullptr && thread == 0) {
        write(to.plane_weights + 2 * plane + kSsim, A(finest.ssim));
        write(to.plane_weights + 2 * plane + kContrastStructure, A(finest.contrast_structure));
      }
    }
  }
}

// From plane_terms, of which it takes the mean over each group.
template <class A>
__global__ void __launch_bounds__(kSumThreads, 1) combine_groups(const Finish<A> p) {
  const auto rows = Shared<double>::dynamic(), terms = rows + kSumWarps * kTerms;
  const int thread = int(threadIdx.x);
  const Reduction<A>& to = p.to;
  for (int64_t group = blockIdx.x; group < to.groups; group += gridDim.x) {
    sum_warps(sum_records(p.from.of_group(group), p.from.count, kEveryTerm, thread, kSumThreads),
              rows);
    __syncthreads();
    if (thread < kTerms) {
      const double term = total(rows, thread) / double(p.from.count);
      terms.set(thread, term);
      write(to.terms + group * kTerms + thread, term);
    }
    __syncthreads();
    if (thread == 0) write_value(to, group, terms);
  }
}

}  // namespace ssimfast::cuda
