// Patches of 4 x 4 pixels, which one thread reads and writes: they cover 2 x 2 pixels of the next
// pyramid level and one pixel of the level after it.
#pragma once

#include "cuda/image.cuh"

namespace ssimfast::cuda {

constexpr int kPatch = 4;

// Position of a patch, which may extend beyond the image.
struct Patch {
  int row, column, height, width;

  SSIMFAST_DEVICE bool has_row(int i) const { return row + i >= 0 && row + i < height; }
  SSIMFAST_DEVICE bool has_column(int k) const { return column + k >= 0 && column + k < width; }
  SSIMFAST_DEVICE bool is_inside() const {
    return has_row(0) && has_row(kPatch - 1) && has_column(0) && has_column(kPatch - 1);
  }
};

// An image that is read and written in patches. One thread reads and writes a patch, so the result
// may overwrite the image.
template <class A>
struct Patches {
  View image;
  bool packed = false;  // true if each row of a patch is one or two aligned vectors

  template <class T>
  static constexpr int kLanes = kPatch * sizeof(T) > kVectorBytes ? kPatch / 2 : kPatch;

  SSIMFAST_DEVICE int64_t offset(int64_t plane, const Patch& patch) const {
    return plane + patch.row * image.by_row + patch.column * image.by_column;
  }

  SSIMFAST_DEVICE void get(int64_t plane, const Patch& patch, A (&values)[kPatch][kPatch]) const {
    for_source_dtype<A>(image.dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int n = kLanes<T>;
      const T* const from = static_cast<const T*>(image.data) + offset(plane, patch);
      if (packed && patch.is_inside()) {
        Several<T, n> vectors[kPatch][kPatch / n];  // all loads are issued before one is used
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

}  // namespace ssimfast::cuda
