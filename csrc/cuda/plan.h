// Cuts planes into blocks of the fused kernel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/sweep.cuh"

namespace ssimfast::cuda {

// The shape that a plan is for.
struct Extent {
  int64_t planes, height, width, margin;
  int halo;    // of the window
  int spread;  // statistics beyond the own pixels
};

// With fewer resident threads than these, a step takes no less time: the multiprocessor waits for
// its memory.
constexpr int kLeastThreads = 192;

// The plan whose blocks are all done soonest, if the time of a step is proportional to the resident
// threads. It has few columns that no pixel needs, runs that are long against the rows they share,
// and no last wave of only a few blocks. Of the device it needs the number of multiprocessors only.
inline Plan make_plan(const Extent& extent, int multiprocessors) {
  const int64_t planes = extent.planes, height = extent.height, width = extent.width;
  const int halo = extent.halo, spread = extent.spread;
  constexpr int kAlignment = 8;  // columns: 16 bytes of a half type
  // Columns before the first pixel that a window sees, back to a multiple of kAlignment.
  const int lead = int((extent.margin - halo) % kAlignment + kAlignment) % kAlignment;
  const int first_column = int(extent.margin) - halo - lead;
  const int64_t columns = width - 2 * extent.margin + lead;  // columns of statistics
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
    // Tries the largest number of runs for each number of waves.
    const int64_t least_waves = divide_up(planes * strips, at_a_time);
    for (int64_t wave = least_waves; wave < least_waves + kWavesTried; ++wave) {
      const int64_t runs = std::min(wave * at_a_time / (planes * strips), most_runs);
      const int64_t rows = divide_up(height, runs);
      const double cost = double(divide_up(planes * strips * runs, at_a_time)) *
                          double(rows + shared_rows) * double(width_of_a_step);
      if (least_cost == 0 || cost < least_cost) {
        least_cost = cost;
        // Moves the strips a little closer together if that aligns each of them.
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
