// The second stage of the sums: turns the records of tiles (record.cuh) into terms, values and
// slopes.
//
// All sums are in double and in a fixed order, which does not depend on the grid. Each kernel needs
// kSumThreads threads and kSumShared bytes of shared memory. Any number of blocks works; best is
// one block per item of the kernel's loop.
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

// Records of a sweep: `count` per group of planes.
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
// Reads several records before it adds any, to keep several loads in flight. That needs registers,
// so the kernels are compiled for one block per multiprocessor.
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

// Adds the sums within each warp and writes one row of `rows` per warp. After a barrier, total()
// adds the rows.
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

// Writes the value of a group: the weighted sum of its terms. One thread calls this.
template <class A>
SSIMFAST_DEVICE void write_value(const Reduction<A>& to, int64_t group,
                                 const Shared<double>& terms) {
  double value = 0;
  for (int t = 0; t < kTerms; ++t)
    if (to.weights[t] != 0) value += to.weights[t] * terms[t];
  write(to.value + group, A(value + to.constant));
}

// ---- one sweep ----------------------------------------------------------------------------------

// Parameter of fold_records, which adds every `run` records of a group into one; the last run of a
// group may be shorter. finish_terms has one block per group, which would be slow for groups of
// very many records.
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

// Parameter of the kernels that compute the terms and the value of each group of planes.
template <class A>
struct Finish {
  RecordList from;
  Reduction<A> to;
  double positions;  // number of positions in a group
};

// Computes the terms and values of one sweep. A group has the records of all tiles of its planes.
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

// Parameter of combine_planes. For each plane or, if means are joint, for each image, the kernel
// computes MS-SSIM; the terms of the finest level, with MS-SSIM in place of kContrastStructure
// (`plane_terms`); the slopes; and the weights of a second sweep of the finest level, if there is
// one.
template <class A>
struct CombinePlanes {
  RecordList levels[kMaxLevels];  // the records of each plane
  Reduction<A> to;
  int64_t planes;          // planes whose means are averaged: 1 or, if joint, all channels
  double planes_of_value;  // planes that a value averages
};

// Sums the records of one plane. All threads sum those of the finest level into `rows`. The coarser
// levels have few records: one warp per level adds the sum that its mean needs to `sums`.
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

// Writes the finest-level terms of one plane, except MS-SSIM, which is not known yet. kTerms
// threads call this.
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

// Computes the terms and values of MS-SSIM: the means of plane_terms over each group.
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
