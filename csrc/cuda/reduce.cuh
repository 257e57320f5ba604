// The second stage of sums: what the tiles of a sweep left becomes terms, values and slopes.
//
// A sweep leaves one record of kTerms doubles for each tile: of kSsim and kContrastStructure the
// sums over its positions of (1 - SSIM) / 2 and (1 - contrast-structure) / 2, which lose nothing
// where both images are nearly the same, and of the others the sums over its pixels of |d|, d^2 and
// counts * |d|. The records of a plane lie one after another, and so do the planes, n * C + c. What
// was not wanted is 0 in each record and is 0 as a term.
//
// Everything here is added in double and in an order that is always the same, whatever the grid.
// Each kernel is launched with kSumThreads threads, kSumShared bytes and any number of blocks from
// 1 on: best as many as it says.
#pragma once

#include <cmath>
#include <cstdint>

#include "../terms.h"
#include "device.cuh"

namespace ssimfast::cuda {

constexpr int kSumThreads = 512;
constexpr int kSumWarps = kSumThreads / kWarp;
constexpr int64_t kSumShared = (kSumWarps * kTerms + 2 * kMostScales) * sizeof(double);
constexpr int kEveryTerm = (1 << kTerms) - 1;

struct Sums {
  double of[kTerms] = {};
};

// Of the records first, first + step, ... below count, the terms in `wanted`.
SSIMFAST_DEVICE Sums sum_records(const double* records, int64_t count, int wanted, int first,
                                 int step) {
  // Many are read before any is added. For the sake of that the kernels are compiled for one block
  // at a time, with the registers that it takes: else few reads are under way at once.
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

// The sums over each warp of a block, a row of `rows` for each; total() then adds these.
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

// The value of terms: what every op that has one gives.
struct ValueOf {
  double weights[kTerms];
  double constant;
};

SSIMFAST_DEVICE double weighted_sum(const ValueOf& value_of, const Shared<double>& means) {
  double value = 0;
  for (int t = 0; t < kTerms; ++t)
    if (value_of.weights[t] != 0) value += value_of.weights[t] * means[t];
  return value + value_of.constant;
}

// ---- one scale ----------------------------------------------------------------------------------

// Makes one record of every `run` records of a group (the last may be of fewer). For groups of so
// many records that finish_terms, one block a group, would take long.
struct FoldRecords {
  const double* records;
  int64_t groups, count;  // records of each group
  int64_t run;
  int wanted;
  double* out;  // (groups, runs(), kTerms)

  SSIMFAST_INLINE int64_t runs() const { return (count + run - 1) / run; }
};

static __global__ void __launch_bounds__(kSumThreads, 1) fold_records(const FoldRecords p) {
  const auto rows = Shared<double>::dynamic();
  const int thread = int(threadIdx.x);
  for (int64_t item = blockIdx.x; item < p.groups * p.runs(); item += gridDim.x) {
    const int64_t group = item / p.runs(), begin = item % p.runs() * p.run;
    const int64_t rest = p.count - begin;
    sum_warps(sum_records(p.records + (group * p.count + begin) * kTerms,
                          rest < p.run ? rest : p.run, p.wanted, thread, kSumThreads),
              rows);
    __syncthreads();
    if (thread < kTerms) write(p.out + item * kTerms + thread, total(rows, thread));
    __syncthreads();  // before `rows` are written again
  }
}

// The terms and the value of each group of planes.
template <class A>
struct FinishTerms {
  const double* records;
  int64_t groups, count;       // records of each group: those of all tiles of all its planes
  double positions;            // of a group
  double divisor;              // the op's `count`
  double positions_per_pixel;  // what brings sums over pixels to the number of positions
  int wanted;                  // one bit for each term
  ValueOf value_of;
  double* terms;  // (groups, kTerms)
  A* value;       // (groups)
};

template <class A>
__global__ void __launch_bounds__(kSumThreads, 1) finish_terms(const FinishTerms<A> p) {
  const auto rows = Shared<double>::dynamic(), terms = rows + kSumWarps * kTerms;
  const int thread = int(threadIdx.x);
  for (int64_t group = blockIdx.x; group < p.groups; group += gridDim.x) {
    sum_warps(
        sum_records(p.records + group * p.count * kTerms, p.count, p.wanted, thread, kSumThreads),
        rows);
    __syncthreads();
    if (thread < kTerms) {
      double term = 0;
      if ((p.wanted >> thread & 1) != 0) {
        const double sum = total(rows, thread);
        term = (thread < kL1 ? p.positions - 2 * sum : sum * p.positions_per_pixel) / p.divisor;
      }
      terms.set(thread, term);
      write(p.terms + group * kTerms + thread, term);
    }
    __syncthreads();
    if (thread == 0) write(p.value + group, A(weighted_sum(p.value_of, terms)));
  }
}

// ---- all scales of MS-SSIM ----------------------------------------------------------------------

struct ScaleRecords {
  const double* records;
  int64_t count;     // records of each plane
  double positions;  // of each plane
};

// What reference.combine_scales makes of each plane or, if means are joint, of each image: the
// terms of its finest scale with MS-SSIM among them, and the slopes. The records of the coarsest
// scale hold kSsim, of the others kContrastStructure. If the finest scale waits for backward, also
// the weights that it waits for.
template <class A>
struct CombinePlanes {
  ScaleRecords scales[kMostScales];
  double exponents[kMostScales];
  int scale_count;
  int64_t groups, planes;      // planes of a group: 1 or, if joint, the channels
  bool absolute;               // negative means count as positive, else as 0
  double slope;                // the weight of MS-SSIM / the planes that a value is the mean of
  int wanted;                  // terms of the finest scale, and what its mean is of
  double positions_per_pixel;  // of the finest scale
  double* plane_terms;         // (N * C, kTerms), with MS-SSIM in the place of kContrastStructure
  double* slopes;              // (N * C, scale_count)
  A* finest_weights;           // if it waits: (N * C, 2), of SSIM and of contrast-structure
  double by_ssim;              // the weight of SSIM beside MS-SSIM
  double value_positions;      // of the finest scale, that a value is the mean of

  SSIMFAST_INLINE Term mean_of(int scale) const { return mean_of_scale(scale, scale_count); }
};

template <class A>
__global__ void __launch_bounds__(kSumThreads, 1) combine_planes(const CombinePlanes<A> p) {
  const auto rows = Shared<double>::dynamic(), sums = rows + kSumWarps * kTerms;
  const Shared<double> powers = sums + kMostScales;
  const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const ScaleRecords& finest = p.scales[0];
  for (int64_t group = blockIdx.x; group < p.groups; group += gridDim.x) {
    for (int64_t i = 0; i < p.planes; ++i) {
      const int64_t plane = group * p.planes + i;
      sum_warps(sum_records(finest.records + plane * finest.count * kTerms, finest.count, p.wanted,
                            thread, kSumThreads),
                rows);
      // Coarser scales have few records: a warp for each. Those without one go along.
      static_assert(1 + kSumWarps >= kMostScales);
      const int j = 1 + warp;
      double sum = 0;
      if (j < p.scale_count) {
        const ScaleRecords& scale = p.scales[j];
        const double* const records = scale.records + plane * scale.count * kTerms + p.mean_of(j);
        sum = sum_records(records, scale.count, 1, lane, kWarp).of[0];
      }
      sum = warp_sum(sum);
      if (lane == 0 && j < p.scale_count) sums.set(j, (i == 0 ? 0.0 : sums[j]) + sum);
      __syncthreads();
      if (thread < kTerms) {
        sum = total(rows, thread);
        if (thread == p.mean_of(0)) sums.set(0, (i == 0 ? 0.0 : sums[0]) + sum);
        double term = 0;
        if ((p.wanted >> thread & 1) != 0)
          term = thread < kL1 ? 1 - 2 * sum / finest.positions
                              : sum * p.positions_per_pixel / finest.positions;
        if (thread != kContrastStructure) write(p.plane_terms + plane * kTerms + thread, term);
      }
      __syncthreads();
    }
    double mean = 0;
    if (thread < p.scale_count) {
      mean = 1 - 2 * sums[thread] / (p.scales[thread].positions * double(p.planes));
      powers.set(thread, pow(base_of_power(mean, p.absolute), p.exponents[thread]));
    }
    __syncthreads();
    double ms_ssim = 1, others = 1;  // than the power of this thread's scale
    for (int j = 0; j < p.scale_count; ++j) {
      const double power = powers[j];
      ms_ssim *= power;
      if (j != thread) others *= power;
    }
    double slope = 0;
    if (thread < p.scale_count)
      slope = others * slope_of_power(p.exponents[thread], powers[thread], mean, p.absolute) *
              p.slope / p.scales[thread].positions;
    FinestWeights finest_weights{};
    if (p.finest_weights != nullptr && thread == 0) {
      finest_weights = finest_weights_of(p.mean_of(0), slope, p.by_ssim, p.value_positions);
      slope = finest_weights.slope;
    }
    for (int64_t plane = group * p.planes; plane < (group + 1) * p.planes; ++plane) {
      if (thread < p.scale_count) write(p.slopes + plane * p.scale_count + thread, slope);
      if (thread == 0) write(p.plane_terms + plane * kTerms + kContrastStructure, ms_ssim);
      if (p.finest_weights != nullptr && thread == 0) {
        write(p.finest_weights + 2 * plane + kSsim, A(finest_weights.ssim));
        write(p.finest_weights + 2 * plane + kContrastStructure,
              A(finest_weights.contrast_structure));
      }
    }
  }
}

// The means over each group of planes of what combine_planes left, and their weighted sum.
template <class A>
struct CombineGroups {
  const double* plane_terms;
  int64_t groups, planes;  // planes of each group
  ValueOf value_of;
  double* terms;  // (groups, kTerms)
  A* value;       // (groups)
};

template <class A>
__global__ void __launch_bounds__(kSumThreads, 1) combine_groups(const CombineGroups<A> p) {
  const auto rows = Shared<double>::dynamic(), terms = rows + kSumWarps * kTerms;
  const int thread = int(threadIdx.x);
  for (int64_t group = blockIdx.x; group < p.groups; group += gridDim.x) {
    sum_warps(sum_records(p.plane_terms + group * p.planes * kTerms, p.planes, kEveryTerm, thread,
                          kSumThreads),
              rows);
    __syncthreads();
    if (thread < kTerms) {
      const double term = total(rows, thread) / double(p.planes);
      terms.set(thread, term);
      write(p.terms + group * kTerms + thread, term);
    }
    __syncthreads();
    if (thread == 0) write(p.value + group, A(weighted_sum(p.value_of, terms)));
  }
}

}  // namespace ssimfast::cuda
