// How the fused kernel cuts planes into blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sweep.cuh"

namespace ssimfast::cuda {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the plan depends on: the shape, and how many blocks the device runs at a time.
struct Extent {
  int64_t planes, height, width, margin;
  int halo, spread;  // of the window; of statistics beyond the own pixels
};

// Fewer threads than these leave a multiprocessor waiting for its memory: a step takes no less
// time.
constexpr int kLeastThreads = 192;

// The cut of which all blocks are done soonest, if a step takes as long as threads are resident:
// few columns that no pixel needs, runs long against the rows that they share, and no last wave of
// a few blocks. It depends on the device through its number of multiprocessors alone.
inline Plan make_plan(const Extent& extent, int multiprocessors) {
  const int64_t planes = extent.planes, height = extent.height, width = extent.width;
  const int halo = extent.halo, spread = extent.spread;
  constexpr int kAlignment = 8;  // columns: 16 bytes of a half type
  // Before the first pixel that a window sees, up to the next multiple.
  const int lead = int((extent.margin - halo) % kAlignment + kAlignment) % kAlignment;
  const int first_column = int(extent.margin) - halo - lead;
  const int64_t columns = width - 2 * extent.margin + lead;  // of statistics
  const int shared_rows = 2 * (halo + spread);
  constexpr int kLeastRows = 8, kWavesTried = 12;
  Plan best{};
  double least_cost = 0;
  for (int threads = kMostThreads; threads >= 64; threads -= 32) {
    const int step = threads - 2 * spread;
    const int64_t strips = columns <= threads ? 1 : 1 + divide_up(columns - threads, step);
    const int resident = std::max(1, kResidentThreads / threads);
    const int64_t at_a_time = int64_t(multiprocessors) * resident;
    const int width_of_a_step = std::max(resident * threads, kLeastThreads);
    const int64_t most_runs = std::max<int64_t>(1, height / kLeastRows);
    // For each number of waves, the most runs that it holds.
    const int64_t least_waves = divide_up(planes * strips, at_a_time);
    for (int64_t wave = least_waves; wave < least_waves + kWavesTried; ++wave) {
      const int64_t runs = std::min(wave * at_a_time / (planes * strips), most_runs);
      const int64_t rows = divide_up(height, runs);
      const double cost = double(divide_up(planes * strips * runs, at_a_time)) *
                          double(rows + shared_rows) * double(width_of_a_step);
      if (least_cost == 0 || cost < least_cost) {
        least_cost = cost;
        // The same strips a little closer, if that makes every one of them aligned.
        int64_t aligned = step;
        if (strips > 1) {
          aligned = divide_up(columns - threads, strips - 1);
          aligned = divide_up(aligned, kAlignment) * kAlignment;
        }
        best = {threads,
                first_column,
                int(strips),
                int(aligned <= step ? aligned : step),
                int(divide_up(height, rows)),
                int(rows)};
      }
    }
  }
  return best;
}

}  // namespace ssimfast::cuda
