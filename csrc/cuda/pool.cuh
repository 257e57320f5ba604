// The images of coarser pyramid levels, of both images and up to kPooledAtOnce levels in one
// launch.
//
// A thread pools a patch of 4 x 4 pixels to 2 x 2 pixels of the first and one pixel of the second
// level. Lanes are ordered such that four neighbours, and then four times four, have the patches
// that become one pixel of the third and of the fourth level. Each pixel is read once.
#pragma once

#include "cuda/patch.cuh"

namespace ssimfast::cuda {

constexpr int kPooledAtOnce = 4;
constexpr int kPoolThreads = 256;
// A square becomes one pixel of the fourth level: pixels of its side, lanes that have its patches.
constexpr int kPoolSide = 16, kPoolLanes = 16;

// One level: both images, contiguous (planes, height, width), and the pooling that makes it.
template <class A>
struct PooledLevel {
  A* images[2] = {};
  PooledAxis rows, columns;
};

template <class A>
struct Pool {
  Patches<A> images[2];
  A low = 0, scale = 1;     // unit range = (value - low) * scale
  A y_low = 0, y_step = 1;  // value of an element of the second image, as in Problem
  int height = 0, width = 0;
  int64_t channels = 1;
  bool replicate = false;
  int level_count = 0;
  PooledLevel<A> levels[kPooledAtOnce];
  int row_shift = 0, column_shift = 0;  // by which the first pixel of the fourth level stands out
  int across = 0;                       // pixels of the fourth level in a row, as far as needed
  int64_t squares = 0;                  // of a plane, kPoolSide pixels a side
  int64_t items = 0;                    // squares of all planes
};

// Weight of one of two neighbours in their mean: `first` is the index of the first.
template <class A>
SSIMFAST_DEVICE A share(int first, int second, int64_t size, bool replicate) {
  const int at = first + second;
  if (at < 0 || at >= size) return 0;  // black, or not there
  return replicate && second == 0 && at + 1 >= size ? A(1) : A(0.5);
}

// Mean of the four pixels at(0, 0) to at(1, 1), of which the first has this row and column.
template <class A, class At>
SSIMFAST_DEVICE A mean_of_four(int row, int column, int64_t height, int64_t width, bool replicate,
                               const At& at) {
  A sum = 0;
  for (int i = 0; i < 2; ++i)
    for (int k = 0; k < 2; ++k)
      sum += share<A>(row, i, height, replicate) * share<A>(column, k, width, replicate) * at(i, k);
  return sum;
}

// The patch of one image in unit range, 0 outside of the image.
template <class A>
SSIMFAST_DEVICE void load_patch(const Pool<A>& p, int image, int64_t plane, const Patch& patch,
                                A (&values)[kPatch][kPatch]) {
  const Patches<A>& from = p.images[image];
  from.get(from.image.plane(plane / p.channels, plane % p.channels), patch, values);
  for (int i = 0; i < kPatch; ++i)
    for (int k = 0; k < kPatch; ++k) {
      const bool inside = patch.has_row(i) && patch.has_column(k);
      if (image == 1) values[i][k] = p.y_low + p.y_step * values[i][k];
      values[i][k] = inside ? (values[i][k] - p.low) * p.scale : A(0);
    }
}

// Writes a pixel of a level, if the level has it.
template <class A>
SSIMFAST_DEVICE void write_pooled(const PooledLevel<A>& level, int image, int64_t plane, int row,
                                  int column, A value) {
  if (row < 0 || row >= level.rows.size || column < 0 || column >= level.columns.size) return;
  write(level.images[image] + (plane * level.rows.size + row) * level.columns.size + column, value);
}

template <class A>
SSIMFAST_DEVICE void pool_image(const Pool<A>& p, int image, int64_t plane, const Patch& patch,
                                int lane) {
  A values[kPatch][kPatch] = {};
  load_patch(p, image, plane, patch, values);
  // Index of the first pixel of the patch in the level that is pooled, and sizes of that level.
  int row = patch.row, column = patch.column;
  int64_t height = p.height, width = p.width;
  A pair[2][2];
  for (int i = 0; i < 2; ++i)
    for (int k = 0; k < 2; ++k)
      pair[i][k] = mean_of_four<A>(row + 2 * i, column + 2 * k, height, width, p.replicate,
                                   [&](int a, int b) { return values[2 * i + a][2 * k + b]; });
  A value = 0;  // this lane's pixel of the second level, then its share of coarser ones
  for (int level = 0; level < p.level_count; ++level) {
    const PooledLevel<A>& to = p.levels[level];
    if (level == 0) {
      row = (row + int(to.rows.shift)) / 2;
      column = (column + int(to.columns.shift)) / 2;
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 2; ++k) write_pooled(to, image, plane, row + i, column + k, pair[i][k]);
    } else if (level == 1) {
      value = mean_of_four<A>(row, column, height, width, p.replicate,
                              [&](int i, int k) { return pair[i][k]; });
      row = (row + int(to.rows.shift)) / 2;
      column = (column + int(to.columns.shift)) / 2;
      write_pooled(to, image, plane, row, column, value);
    } else {
      // Lanes that differ in one bit of their number have neighbours of a row, in the next bit
      // those of a column.
      const int by_column = level == 2 ? 1 : 4, by_row = 2 * by_column;
      const int i = (lane & by_row) != 0, k = (lane & by_column) != 0;
      value *=
          share<A>(row - i, i, height, p.replicate) * share<A>(column - k, k, width, p.replicate);
      value += from_lane_xor(value, by_column);
      value += from_lane_xor(value, by_row);
      row = (row - i + int(to.rows.shift)) / 2;
      column = (column - k + int(to.columns.shift)) / 2;
      if ((lane & (4 * by_column - 1)) == 0) write_pooled(to, image, plane, row, column, value);
    }
    height = to.rows.size;
    width = to.columns.size;
  }
}

template <class A>
__global__ void __launch_bounds__(kPoolThreads) pool_pyramid(const __grid_constant__ Pool<A> p) {
  const int lane = threadIdx.x % kWarp;
  const int64_t item = (int64_t(blockIdx.x) * kPoolThreads + threadIdx.x) / kPoolLanes;
  // All lanes shuffle, also those beyond the last square.
  const bool any = item < p.items;
  const int64_t plane = any ? item / p.squares : 0, square = any ? item % p.squares : 0;
  const int i = (lane >> 1 & 1) | (lane >> 2 & 2), k = (lane & 1) | (lane >> 1 & 2);
  constexpr int kBeyond = 1 << 30;  // in every level
  const Patch patch{any ? kPoolSide * int(square / p.across) + kPatch * i - p.row_shift : kBeyond,
                    kPoolSide * int(square % p.across) + kPatch * k - p.column_shift, p.height,
                    p.width};
  for (int image = 0; image < 2; ++image) pool_image(p, image, plane, patch, lane);
}

}  // namespace ssimfast::cuda
