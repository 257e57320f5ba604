// Cuts planes into blocks of the fused kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/sweep.cuh"

namespace ssimfast::cuda {

// The shape that a plan is for.
struct Extent {
  int64_t planes, channels, height, width, margin;
  int window, gradients;
  bool masked = false;
};

// Limits of a device.
struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes;  // of a multiprocessor
};

// The time of a step with so many warps a scheduler, in units of what each warp adds: modelled from
// the machine code for sm_80 to sm_90 (docs/cuda.md).
constexpr double step_time(double warps) { return 1.15 + warps; }

struct PlanAndCost {
  Plan plan;
  double cost = 0;
};

// The plan with this number of threads whose blocks are all done soonest. A multiprocessor takes
// the time of its waves of blocks; a block has steps for the rows of a run and for those that it
// shares with its neighbours.
inline PlanAndCost best_plan(const Extent& extent, const DeviceLimits& device, int threads,
                             int64_t shared_bytes) {
  const int64_t planes = extent.planes, height = extent.height;
  const int halo = extent.window / 2, spread = extent.gradients > 0 ? halo : 0;
  // Columns before the first pixel that a window sees, back to a multiple of kColumns.
  const int lead = int((extent.margin - halo) % kColumns + kColumns) % kColumns;
  const int64_t columns = extent.width - 2 * extent.margin + lead;  // columns of statistics
  const int overlap = first_own_column(halo, spread) - halo + spread;
  const int step = (threads - overlap) / kColumns * kColumns;
  const int shared_rows = 2 * (halo + spread);
  const int64_t strips = columns <= threads ? 1 : 1 + divide_up(columns - threads, step);
  constexpr int64_t kReservedBytes = 1024;  // of shared memory, for each block
  const int64_t resident = std::max<int64_t>(
      1, std::min(resident_threads(extent.gradients, extent.masked) / int64_t(threads),
                  device.shared_bytes / (shared_bytes + kReservedBytes)));
  const auto time = [&](int64_t blocks) {
    return blocks == 0 ? 0.0 : step_time(double(divide_up(blocks * threads, 4 * kWarp)));
  };
  constexpr int kLeastRows = 8, kBlocksTried = 24;
  const int64_t most_runs = std::max<int64_t>(1, height / kLeastRows);
  PlanAndCost best;
  // Tries the largest number of runs for each number of blocks of a multiprocessor.
  const int64_t least_blocks = divide_up(planes * strips, device.multiprocessors);
  for (int64_t blocks = least_blocks; blocks < least_blocks + kBlocksTried; ++blocks) {
    const int64_t most = blocks * device.multiprocessors / (planes * strips);
    const int64_t rows = divide_up(height, std::min(most, most_runs));
    const int64_t steps = divide_up(rows + shared_rows, kRows), runs = divide_up(height, rows);
    const int64_t all = divide_up(planes * strips * runs, device.multiprocessors);
    const double cost =
        double(steps) * (double(all / resident) * time(resident) + time(all % resident));
    if (best.cost != 0 && cost >= best.cost) continue;
    best.cost = cost;
    best.plan = {.threads = threads,
                 .first_column = int(extent.margin) - halo - lead,
                 .strip_step = step,
                 .runs = int(runs),
                 .run_rows = int(rows),
                 .strips = Divisor(strips),
                 .tiles = Divisor(strips * runs),
                 .channels = Divisor(extent.channels)};
  }
  return best;
}

// Plans for sweeps that run in one launch, and so with the same number of threads: that for which
// the sum of their times is least, or the smallest of several. All or none of them are masked.
inline std::vector<Plan> make_plans(const std::vector<Extent>& extents, const DeviceLimits& device,
                                    int (*shared_bytes)(int threads)) {
  constexpr int kLeastThreads = 64;
  std::vector<Plan> best, plans(extents.size());
  double least = 0;
  const int most = most_threads(extents[0].masked);
  for (int threads = kLeastThreads; threads <= most; threads += kWarp) {
    double cost = 0;
    for (size_t i = 0; i < extents.size(); ++i) {
      const PlanAndCost one = best_plan(extents[i], device, threads, shared_bytes(threads));
      plans[i] = one.plan;
      cost += one.cost;
    }
    if (!best.empty() && cost >= least) continue;
    least = cost;
    best = plans;
  }
  return best;
}

}  // namespace ssimfast::cuda
