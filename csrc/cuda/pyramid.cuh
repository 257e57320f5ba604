// The backward step of one-pass losses: multiplies the gradients from the forward pass by the
// upstream gradient, and adds them up over the pyramid levels. Memory bandwidth limits these
// kernels.
//
// `upstream` and the slopes are read on the device. Factors are computed in double and rounded
// once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/patch.cuh"

namespace ssimfast::cuda {

// ---- scale_ -------------------------------------------------------------------------------------
//
// Each element is read once and written once: 2 sizeof(T) bytes. Elements whose factor is 1 are
// neither read nor written.

constexpr int kScaleThreads = 256;

// A dimension of the gradient: its size, and its strides in the gradient and in `upstream`.
struct Dimension {
  int64_t size = 1, grad = 0, upstream = 0;
};

struct Offsets {
  int64_t grad = 0, upstream = 0;
};

template <class A>
struct ScaleGrad {
  void* grad = nullptr;
  Dtype dtype = Dtype::kFloat32;
  const A* upstream = nullptr;
  double factor = 1;
  Dimension axes[5];  // outermost first
  int axis_count = 0;
  int64_t items = 0;  // pieces for blocks of scale_runs, elements for threads of scale_elements
  // scale_runs: number of contiguous elements that have one factor (a run), and number of pieces of
  // kPieceBytes in a run. `axes` are the dimensions outside a run.
  int64_t run = 0, pieces = 0;

  SSIMFAST_DEVICE Offsets offsets(int64_t index) const {
    Offsets offsets;
    for (int i = axis_count - 1; i >= 0; --i) {
      const Dimension& axis = axes[i];
      const int64_t step = index % axis.size;
      index /= axis.size;
      offsets.grad += step * axis.grad;
      offsets.upstream += step * axis.upstream;
    }
    return offsets;
  }
  SSIMFAST_DEVICE A factor_at(int64_t offset) const {
    return A(double(read(upstream + offset)) * factor);
  }
};

constexpr int kVectorsPerThread = 2;
constexpr int kPieceBytes = kScaleThreads * kVectorsPerThread * kVectorBytes;

// Scales at most kPieceBytes with all threads of a block; in vectors where the memory is aligned.
template <class T, class A>
SSIMFAST_DEVICE void scale_piece(T* grad, int count, A factor) {
  constexpr int kLanes = kVectorBytes / sizeof(T);
  const uintptr_t address = reinterpret_cast<uintptr_t>(grad);
  const int before = int((uintptr_t{} - address) / sizeof(T) % kLanes);  // unaligned elements
  const int vectors = before < count ? (count - before) / kLanes : 0;
  const auto scaled = [&](T value) { return from_arithmetic<T>(to_arithmetic(value) * factor); };
  auto* const packed = reinterpret_cast<Packed<T, kLanes>*>(grad + before);
  for (int i = int(threadIdx.x); i < vectors; i += kScaleThreads) {
    auto values = unpacked<T, kLanes>(read_own(packed + i));
    for (T& value : values.of) value = scaled(value);
    write_several(packed + i, values);
  }
  // The elements before and after the vectors.
  for (int i = int(threadIdx.x); i < count - vectors * kLanes; i += kScaleThreads) {
    const int place = i < before ? i : i + vectors * kLanes;
    write(grad + place, scaled(read_own(grad + place)));
  }
}

// Each block processes one item. Memory cannot hold more items than a grid can have blocks.
template <class A>
__global__ void __launch_bounds__(kScaleThreads) scale_runs(const ScaleGrad<A> p) {
  const int64_t item = blockIdx.x;
  const Offsets offsets = p.offsets(item / p.pieces);
  const A factor = p.factor_at(offsets.upstream);
  if (factor == 1) return;
  for_dtype<A>(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kPiece = kPieceBytes / sizeof(T);
    const int64_t begin = item % p.pieces * kPiece, rest = p.run - begin;
    scale_piece(static_cast<T*>(p.grad) + offsets.grad + begin, int(rest < kPiece ? rest : kPiece),
                factor);
  });
}

template <class A>
__global__ void __launch_bounds__(kScaleThreads) scale_elements(const ScaleGrad<A> p) {
  const int64_t step = int64_t(gridDim.x) * kScaleThreads;
  for (int64_t i = int64_t(blockIdx.x) * kScaleThreads + threadIdx.x; i < p.items; i += step) {
    const Offsets offsets = p.offsets(i);
    const A factor = p.factor_at(offsets.upstream);
    if (factor == 1) continue;
    for_dtype<A>(p.dtype, [&](auto zero) {
      using T = decltype(zero);
      T* const place = static_cast<T*>(p.grad) + offsets.grad;
      write(place, from_arithmetic<T>(to_arithmetic(read_own(place)) * factor));
    });
  }
}

// ---- collapse_ ----------------------------------------------------------------------------------
//
// Adds the gradients of all levels into the finest. Memory traffic per pixel of the finest level is
// 2 sizeof(T) bytes for the gradient and the result, sizeof(A) / 3 for the coarser levels, and
// 2 sizeof(T) for the images if there are pixel terms. Each thread processes a patch of 4 x 4
// pixels, which covers 2 x 2 pixels of level 1 and one pixel of level 2, so the thread reads the
// other levels once per 16 pixels. Several threads read the same pixel of a coarser level; they are
// neighbours, so the caches serve them.

constexpr int kCollapseThreads = 128;
constexpr int kPixelTerms = kTerms - kL1;
// A pyramid level, and the pooling of its rows and columns to the next level.
template <class A>
struct Level {
  const A* grad = nullptr;  // null for the finest level
  int64_t by_image = 0, by_channel = 0, by_row = 0, by_column = 0;
  int height = 0, width = 0;
  int row_shift = 0, column_shift = 0;
  int twice_row = -1, twice_column = -1;  // row and column that count twice, or -1

  // True if the level has the pixel. Pixels in a row or column that pooling drops map outside the
  // next level.
  SSIMFAST_DEVICE bool has(int row, int column) const {
    return row >= 0 && row < height && column >= 0 && column < width;
  }
  SSIMFAST_DEVICE A at(int64_t plane, int row, int column) const {
    return read(grad + plane + row * by_row + column * by_column);
  }
  // Weight of a pixel in the mean that is a pixel of the next level.
  SSIMFAST_DEVICE A share(int row, int column) const {
    return A(0.25) * A(row == twice_row ? 2 : 1) * A(column == twice_column ? 2 : 1);
  }
};

template <class A>
struct Collapse {
  Level<A> levels[kMaxLevels];
  int level_count = 0;
  Patches<A> grad, x, y;           // finest level; data of x and y is null if not needed
  const double* slopes = nullptr;  // (N, C, level_count)
  const A* upstream = nullptr;
  int64_t upstream_by_image = 0, upstream_by_channel = 0;
  double scale = 1;
  double y_low = 0, y_step = 1;  // value of an element of y, as in Problem
  double pixel_weights[kPixelTerms] = {};
  const A* rows = nullptr;
  const A* columns = nullptr;
  int64_t channels = 0;
  // Numbers of rows and columns by which the first patch extends beyond the image.
  int row_shift = 0, column_shift = 0;
  int patches_per_row = 0, rows_of_patches = 0;
  int64_t pieces = 0, items = 0;  // pieces per plane; pieces in all, each for one block
};

// State of a plane that all threads of a block share. The first warp computes the state.
template <class A>
struct PlaneState {
  enum Place { kX = kMaxLevels, kY, kFirstRow, kFirstColumn, kPlaces };

  // Offsets of the plane in the gradient of each level and in the images; row and column of the
  // first thread's patch, counted in patches.
  Shared<int64_t> places;
  Shared<A> factors;        // one per level
  Shared<A> pixel_weights;  // one per pixel term

  static constexpr int64_t kBytes =
      kPlaces * sizeof(int64_t) + (kMaxLevels + kPixelTerms) * sizeof(A);

  SSIMFAST_DEVICE explicit PlaneState(const Shared<int64_t>& memory)
      : places(memory),
        factors((places + kPlaces).template as<A>()),
        pixel_weights(factors + kMaxLevels) {}

  SSIMFAST_DEVICE void set(const Collapse<A>& p, int64_t item, int lane) const {
    // Channels vary fastest, because channels_last tensors have them in the same cache lines.
    const int64_t c = item % p.channels, rest = item / p.channels;
    const int64_t piece = rest % p.pieces, n = rest / p.pieces;
    const double factor =
        double(read(p.upstream + n * p.upstream_by_image + c * p.upstream_by_channel)) * p.scale;
    if (lane < p.level_count) {
      const double slope = read(p.slopes + (n * p.channels + c) * p.level_count + lane);
      factors.set(lane, A(slope * factor));
      places.set(lane, n * p.levels[lane].by_image + c * p.levels[lane].by_channel);
    }
    if (lane < kPixelTerms) pixel_weights.set(lane, A(p.pixel_weights[lane] * factor));
    if (lane == 0) {
      places.set(kX, p.x.image.plane(n, c));
      places.set(kY, p.y.image.plane(n, c));
      places.set(kFirstRow, piece * blockDim.x / p.patches_per_row);
      places.set(kFirstColumn, piece * blockDim.x % p.patches_per_row);
    }
  }
};

// Sum of the gradients of level j and all coarser levels, at a pixel of level j.
template <class A>
SSIMFAST_DEVICE A sum_from(int j, const Collapse<A>& p, const PlaneState<A>& plane, int row,
                           int column) {
  A sum{}, share = A(1);
  for (; j < p.level_count; ++j) {
    const Level<A>& level = p.levels[j];
    if (!level.has(row, column)) break;
    sum += share * plane.factors[j] * level.at(plane.places[j], row, column);
    share *= level.share(row, column);
    row = (row + level.row_shift) / 2;
    column = (column + level.column_shift) / 2;
  }
  return sum;
}

template <class A>
SSIMFAST_DEVICE void add_pixel_terms(const Collapse<A>& p, const PlaneState<A>& plane,
                                     const Patch& patch, A (&sums)[kPatch][kPatch]) {
  A x[kPatch][kPatch] = {}, y[kPatch][kPatch] = {};
  p.x.get(plane.places[plane.kX], patch, x);
  p.y.get(plane.places[plane.kY], patch, y);
  const A scale = A(p.scale), y_low = A(p.y_low), y_step = A(p.y_step);
  A weights[kPixelTerms];
  for (int t = 0; t < kPixelTerms; ++t) weights[t] = plane.pixel_weights[t];
  for (int i = 0; i < kPatch; ++i) {
    const A row_count = p.rows != nullptr && patch.has_row(i) ? read(p.rows + patch.row + i) : A(0);
    for (int k = 0; k < kPatch; ++k) {
      const A column_count =
          p.rows != nullptr && patch.has_column(k) ? read(p.columns + patch.column + k) : A(0);
      const A d = (x[i][k] - (y_low + y_step * y[i][k])) * scale;
      sums[i][k] += pixel_slope(weights, d, row_count * column_count);
    }
  }
}

// Sums the levels from level 2 to the coarsest, spreads the sum to 2 x 2 pixels of level 1 and to
// 4 x 4 pixels of the finest level, and adds the gradient of the pixel terms.
template <class A>
SSIMFAST_DEVICE void collapse_patch(const Collapse<A>& p, const PlaneState<A>& plane, int patch_row,
                                    int patch_column) {
  const Level<A>&finest = p.levels[0], &next = p.levels[1];
  const Patch patch{kPatch * patch_row - p.row_shift, kPatch * patch_column - p.column_shift,
                    finest.height, finest.width};
  A sums[kPatch][kPatch] = {};
  p.grad.get(plane.places[0], patch, sums);
  A coarser[2][2] = {};
  if (p.level_count > 1) {
    const A rest = sum_from(2, p, plane, patch_row, patch_column);
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 2; ++k) {
        const int row = 2 * patch_row - next.row_shift + i;
        const int column = 2 * patch_column - next.column_shift + k;
        if (!next.has(row, column)) continue;
        coarser[i][k] = plane.factors[1] * next.at(plane.places[1], row, column) +
                        next.share(row, column) * rest;
      }
    }
  }
  for (int i = 0; i < kPatch; ++i)
    for (int k = 0; k < kPatch; ++k)
      sums[i][k] = plane.factors[0] * sums[i][k] +
                   finest.share(patch.row + i, patch.column + k) * coarser[i / 2][k / 2];
  if (p.x.image.data != nullptr) add_pixel_terms(p, plane, patch, sums);
  p.grad.set(plane.places[0], patch, sums);
}

template <class A>
__global__ void __launch_bounds__(kCollapseThreads) collapse_pyramid(const Collapse<A> p) {
  const PlaneState<A> plane(Shared<int64_t>::dynamic());
  const int thread = int(threadIdx.x);
  for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
    if (thread < kWarp) plane.set(p, item, thread);
    __syncthreads();
    const int column = int(plane.places[plane.kFirstColumn]) + thread;
    const int patch_row = int(plane.places[plane.kFirstRow]) + column / p.patches_per_row;
    if (patch_row < p.rows_of_patches)
      collapse_patch(p, plane, patch_row, column % p.patches_per_row);
    __syncthreads();  // before the state is set again
  }
}

}  // namespace ssimfast::cuda
