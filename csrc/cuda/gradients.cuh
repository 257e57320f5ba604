// The backward half of one-pass losses, bound by memory: gradients that the forward pass prepared,
// times what only backward knows, summed over the scales of a pyramid.
//
// `upstream` and the slopes are read on the device. Factors are computed in double and rounded
// once.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../terms.h"
#include "image.cuh"

namespace ssimfast::cuda {

// Elements that are read or written at once, in 4, 8 or 16 bytes.
template <class T, int n>
struct Several {
  T of[n];
};

// The same in memory. Rows and vectors are stepped to in such pointers: nvcc 13.0 often takes what
// is written through a pointer that was stepped in T to pieces.
template <class T, int n>
using Packed = std::conditional_t<n * sizeof(T) == 16, uint4,
                                  std::conditional_t<n * sizeof(T) == 8, uint2, unsigned>>;

template <class T, int n>
SSIMFAST_DEVICE Several<T, n> unpacked(const Packed<T, n>& packed) {
  Several<T, n> values;
  static_assert(sizeof(values) == sizeof(packed));
  memcpy(&values, &packed, sizeof(values));
  return values;
}

template <class T, int n>
SSIMFAST_DEVICE void write_several(Packed<T, n>* to, const Several<T, n>& values) {
  Packed<T, n> packed;
  memcpy(&packed, &values, sizeof(values));
  write(to, packed);
}

// ---- scale_grad ---------------------------------------------------------------------------------
//
// Each element is read once and written once, perhaps to where it was: 2 sizeof(T) bytes; none if
// it is there already.

constexpr int kScaleThreads = 256;

// A dimension of both tensors, and the strides of one step along it.
struct Axis {
  int64_t size = 1, from = 0, to = 0, upstream = 0;
};

struct Offsets {
  int64_t from = 0, to = 0, upstream = 0;
};

template <class A>
struct ScaleGrad {
  const void* from = nullptr;
  void* to = nullptr;
  Dtype dtype = Dtype::kFloat32;
  const A* upstream = nullptr;
  double factor = 1;  // scale / count
  Axis axes[4];       // outermost first
  int axis_count = 0;
  // How many there are of what a block of scale_runs or a thread of scale_elements does at a time.
  int64_t items = 0;
  // Below the axes of scale_runs: as many elements that lie one after another in both tensors and
  // have one factor, and how many pieces of kPieceBytes they are.
  int64_t run = 0, pieces = 0;

  SSIMFAST_DEVICE Offsets offsets(int64_t index) const {
    Offsets offsets;
    for (int i = axis_count - 1; i >= 0; --i) {
      const Axis& axis = axes[i];
      const int64_t step = index % axis.size;
      index /= axis.size;
      offsets.from += step * axis.from;
      offsets.to += step * axis.to;
      offsets.upstream += step * axis.upstream;
    }
    return offsets;
  }
  SSIMFAST_DEVICE A factor_at(int64_t offset) const {
    return A(double(read(upstream + offset)) * factor);
  }
  SSIMFAST_DEVICE bool is_done(A factor) const { return factor == 1 && from == to; }
};

constexpr int kVectorBytes = 16;
constexpr int kVectorsPerThread = 2;
constexpr int kPieceBytes = kScaleThreads * kVectorsPerThread * kVectorBytes;

// At most kPieceBytes, by all threads of a block: as vectors where both lie alike.
template <class T, class A>
SSIMFAST_DEVICE void scale_piece(const T* from, T* to, int count, A factor) {
  constexpr int kLanes = kVectorBytes / sizeof(T);
  const uintptr_t address = reinterpret_cast<uintptr_t>(to);
  const bool alike = (reinterpret_cast<uintptr_t>(from) - address) % kVectorBytes == 0;
  const int before = int((uintptr_t{} - address) / sizeof(T) % kLanes);  // the first whole vector
  const int vectors = alike && before < count ? (count - before) / kLanes : 0;
  const auto scaled = [&](T value) { return from_arithmetic<T>(to_arithmetic(value) * factor); };
  const auto* const source = reinterpret_cast<const Packed<T, kLanes>*>(from + before);
  auto* const target = reinterpret_cast<Packed<T, kLanes>*>(to + before);
  for (int i = int(threadIdx.x); i < vectors; i += kScaleThreads) {
    auto values = unpacked<T, kLanes>(read_own(source + i));
    for (T& value : values.of) value = scaled(value);
    write_several(target + i, values);
  }
  // Those before and after the vectors.
  for (int i = int(threadIdx.x); i < count - vectors * kLanes; i += kScaleThreads) {
    const int place = i < before ? i : i + vectors * kLanes;
    write(to + place, scaled(read_own(from + place)));
  }
}

// A block does one item: memory cannot hold more of them than a grid has blocks.
template <class A>
__global__ void __launch_bounds__(kScaleThreads) scale_runs(const ScaleGrad<A> p) {
  const int64_t item = blockIdx.x;
  const Offsets offsets = p.offsets(item / p.pieces);
  const A factor = p.factor_at(offsets.upstream);
  if (p.is_done(factor)) return;
  for_dtype<A>(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kPiece = kPieceBytes / sizeof(T);
    const int64_t begin = item % p.pieces * kPiece, rest = p.run - begin;
    scale_piece(static_cast<const T*>(p.from) + offsets.from + begin,
                static_cast<T*>(p.to) + offsets.to + begin, int(rest < kPiece ? rest : kPiece),
                factor);
  });
}

template <class A>
__global__ void __launch_bounds__(kScaleThreads) scale_elements(const ScaleGrad<A> p) {
  const int64_t step = int64_t(gridDim.x) * kScaleThreads;
  for (int64_t i = int64_t(blockIdx.x) * kScaleThreads + threadIdx.x; i < p.items; i += step) {
    const Offsets offsets = p.offsets(i);
    const A factor = p.factor_at(offsets.upstream);
    if (p.is_done(factor)) continue;
    for_dtype<A>(p.dtype, [&](auto zero) {
      using T = decltype(zero);
      const A value = to_arithmetic(read_own(static_cast<const T*>(p.from) + offsets.from));
      write(static_cast<T*>(p.to) + offsets.to, from_arithmetic<T>(value * factor));
    });
  }
}

// ---- collapse -----------------------------------------------------------------------------------
//
// Of each pixel of the finest scale, what must be read and written: its gradient and the result,
// 2 sizeof(T); a third of sizeof(A) for the gradients of all coarser scales; 2 sizeof(T) for the
// images, if there are terms over pixels. A thread does a patch of 4 x 4 pixels: those that are one
// pixel of scale 2, and 2 x 2 of scale 1. So it climbs the pyramid once for 16 pixels. What a
// coarser scale has is read by several threads, but by neighbours: from the caches.

constexpr int kCollapseThreads = 128;
constexpr int kPixelTerms = kTerms - kL1;
constexpr int kPatch = 4;

// Where a patch lies, and the image that it may stand out of.
struct Patch {
  int row, column, height, width;

  SSIMFAST_DEVICE bool has_row(int i) const { return row + i >= 0 && row + i < height; }
  SSIMFAST_DEVICE bool has_column(int k) const { return column + k >= 0 && column + k < width; }
  SSIMFAST_DEVICE bool is_inside() const {
    return has_row(0) && has_row(kPatch - 1) && has_column(0) && has_column(kPatch - 1);
  }
};

// An image of which patches are read and written; by one thread each, so that an image which is
// read may be the one that is written.
template <class A>
struct Patches {
  Image<A> image;
  bool packed = false;  // whether the rows of each patch are vectors, or pairs of such

  template <class T>
  static constexpr int kLanes = kPatch * sizeof(T) > kVectorBytes ? kPatch / 2 : kPatch;

  SSIMFAST_DEVICE int64_t offset(int64_t plane, const Patch& patch) const {
    return plane + patch.row * image.by_row + patch.column * image.by_column;
  }

  SSIMFAST_DEVICE void get(int64_t plane, const Patch& patch, A (&values)[kPatch][kPatch]) const {
    for_dtype<A>(image.dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int n = kLanes<T>;
      const T* const from = static_cast<const T*>(image.data) + offset(plane, patch);
      if (packed && patch.is_inside()) {
        Several<T, n> vectors[kPatch][kPatch / n];  // all are read before any is waited for
        for (int i = 0; i < kPatch; ++i)
          for (int k = 0; k < kPatch / n; ++k)
            vectors[i][k] = unpacked<T, n>(
                read_own(reinterpret_cast<const Packed<T, n>*>(from + i * image.by_row) + k));
        for (int i = 0; i < kPatch; ++i)
          for (int k = 0; k < kPatch; ++k)
            values[i][k] = to_arithmetic(vectors[i][k / n].of[k % n]);
      } else {
        for (int i = 0; i < kPatch; ++i)
          for (int k = 0; k < kPatch; ++k)
            if (patch.has_row(i) && patch.has_column(k))
              values[i][k] = to_arithmetic(read_own(from + i * image.by_row + k * image.by_column));
      }
    });
  }
  SSIMFAST_DEVICE void set(int64_t plane, const Patch& patch,
                           const A (&values)[kPatch][kPatch]) const {
    for_dtype<A>(image.dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int n = kLanes<T>;
      T* const to = static_cast<T*>(image.data) + offset(plane, patch);
      if (packed && patch.is_inside()) {
        for (int i = 0; i < kPatch; ++i) {
          auto* const row = reinterpret_cast<Packed<T, n>*>(to) + i * (image.by_row / n);
          for (int k = 0; k < kPatch / n; ++k) {
            Several<T, n> vector;
            for (int j = 0; j < n; ++j) vector.of[j] = from_arithmetic<T>(values[i][k * n + j]);
            write_several(row + k, vector);
          }
        }
      } else {
        for (int i = 0; i < kPatch; ++i)
          for (int k = 0; k < kPatch; ++k)
            if (patch.has_row(i) && patch.has_column(k))
              write(to + i * image.by_row + k * image.by_column, from_arithmetic<T>(values[i][k]));
      }
    });
  }
};

// A scale, and how its rows and columns become those of the next one.
template <class A>
struct Level {
  const A* grad = nullptr;  // not of the finest scale
  int64_t by_image = 0, by_plane = 0, by_row = 0, by_column = 0;
  int height = 0, width = 0;
  int row_shift = 0, column_shift = 0;
  int twice_row = -1, twice_column = -1;  // which count twice

  // Of an odd number the last may be dropped: then it is outside the next scale.
  SSIMFAST_DEVICE bool has(int row, int column) const {
    return row >= 0 && row < height && column >= 0 && column < width;
  }
  SSIMFAST_DEVICE A at(int64_t plane, int row, int column) const {
    return read(grad + plane + row * by_row + column * by_column);
  }
  // The share of a pixel in one of the next scale.
  SSIMFAST_DEVICE A share(int row, int column) const {
    return A(0.25) * A(row == twice_row ? 2 : 1) * A(column == twice_column ? 2 : 1);
  }
};

template <class A>
struct Collapse {
  Level<A> levels[kMostScales];
  int level_count = 0;
  Patches<A> grad, out, x, y;  // of the finest scale; x and y without data if they are not needed
  const double* slopes = nullptr;  // (N, C, level_count)
  const A* upstream = nullptr;
  int64_t upstream_by_image = 0, upstream_by_plane = 0;
  double scale = 1;
  double pixel_slopes[kPixelTerms] = {};  // what sign(x - y), x - y, counts * sign(x - y) count
  const A* rows = nullptr;
  const A* columns = nullptr;
  int64_t channels = 0;
  // Patches begin that many pixels outside the image.
  int row_shift = 0, column_shift = 0;
  int patches_per_row = 0, rows_of_patches = 0;
  int64_t pieces = 0, items = 0;  // in a plane, in all: what the threads of a block do at a time
};

// What all threads of a block need to know of its plane, worked out by its first warp.
template <class A>
struct PlaneState {
  enum Place { kOut = kMostScales, kX, kY, kFirstRow, kFirstColumn, kPlaces };

  // Where the plane begins in the gradient of each scale and in the other images; the row and the
  // column of the first thread's patch, among patches.
  Shared<int64_t> places;
  Shared<A> factors;        // of each scale
  Shared<A> pixel_factors;  // of each term over pixels

  static constexpr int64_t kBytes =
      kPlaces * sizeof(int64_t) + (kMostScales + kPixelTerms) * sizeof(A);

  SSIMFAST_DEVICE explicit PlaneState(const Shared<int64_t>& memory)
      : places(memory),
        factors((places + kPlaces).template as<A>()),
        pixel_factors(factors + kMostScales) {}

  SSIMFAST_DEVICE void set(const Collapse<A>& p, int64_t item, int lane) const {
    // Channels first: where they lie next to each other, they share what is fetched.
    const int64_t c = item % p.channels, rest = item / p.channels;
    const int64_t piece = rest % p.pieces, n = rest / p.pieces;
    const double factor =
        double(read(p.upstream + n * p.upstream_by_image + c * p.upstream_by_plane)) * p.scale;
    if (lane < p.level_count) {
      const double slope = read(p.slopes + (n * p.channels + c) * p.level_count + lane);
      factors.set(lane, A(slope * factor));
      places.set(lane, n * p.levels[lane].by_image + c * p.levels[lane].by_plane);
    }
    if (lane < kPixelTerms) pixel_factors.set(lane, A(p.pixel_slopes[lane] * factor));
    if (lane == 0) {
      places.set(kOut, p.out.image.plane(n, c));
      places.set(kX, p.x.image.plane(n, c));
      places.set(kY, p.y.image.plane(n, c));
      places.set(kFirstRow, piece * blockDim.x / p.patches_per_row);
      places.set(kFirstColumn, piece * blockDim.x % p.patches_per_row);
    }
  }
};

// What scale `j` and all coarser ones contribute to this pixel of scale j.
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
  const A l1 = plane.pixel_factors[0], l2 = plane.pixel_factors[1];
  for (int i = 0; i < kPatch; ++i) {
    const A by_counts = p.rows != nullptr && patch.has_row(i)
                            ? plane.pixel_factors[2] * read(p.rows + patch.row + i)
                            : A(0);
    for (int k = 0; k < kPatch; ++k) {
      const A d = x[i][k] - y[i][k];
      const A count =
          p.rows != nullptr && patch.has_column(k) ? read(p.columns + patch.column + k) : A(0);
      sums[i][k] += (l1 + by_counts * count) * sign(d) + l2 * d;
    }
  }
}

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
  p.out.set(plane.places[plane.kOut], patch, sums);
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
