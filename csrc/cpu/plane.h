// One plane of a strided tensor, read and written row by row in the arithmetic type.
#pragma once

#include <cstdint>

#include "../ssim.h"

namespace ssimfast::cpu {

// Reads `n` elements, `stride` elements apart, into numbers of the arithmetic type; and back.
template <class A>
using ReadRow = void (*)(const void* from, int64_t stride, int64_t n, A* to);
template <class A>
using WriteRow = void (*)(const A* from, int64_t n, void* to, int64_t stride);

// Asks for memory that will be read soon. Where there is none, nothing happens.
SSIMFAST_INLINE void prefetch(const void* from) {
#if defined(__GNUC__)
  __builtin_prefetch(from);
#else
  (void)from;
#endif
}

struct Strides {
  int64_t n, c, h, w;  // in bytes
};

// A tensor (N, C, H, W) of any strides, expanded ones (stride 0) included.
template <class A>
struct Source {
  const char* data = nullptr;
  Strides strides{};
  int64_t element_size = 0;
  bool as_it_lies = false;  // elements are of type A already
  ReadRow<A> read = nullptr;

  const char* plane(int64_t n, int64_t c) const { return data + n * strides.n + c * strides.c; }

  // Of a pixel, which may lie outside of the image.
  const char* address(const char* plane, int64_t row, int64_t column) const {
    return plane + row * strides.h + column * strides.w;
  }

  // Elements [column, column + count) of a row: in place where they can be used as they lie,
  // else converted into `buffer`.
  const A* row(const char* plane, int64_t row, int64_t column, int64_t count, A* buffer) const {
    const char* from = address(plane, row, column);
    if (as_it_lies && strides.w == element_size) return reinterpret_cast<const A*>(from);
    read(from, strides.w / element_size, count, buffer);
    return buffer;
  }

  A at(const char* plane, int64_t row_index, int64_t column) const {
    A buffer;
    return *row(plane, row_index, column, 1, &buffer);
  }
};

template <class A>
struct Sink {
  char* data = nullptr;
  Strides strides{};
  int64_t element_size = 0;
  bool as_it_lies = false;  // elements are of type A
  WriteRow<A> write = nullptr;

  char* address(int64_t n, int64_t c, int64_t row, int64_t column) const {
    return data + n * strides.n + c * strides.c + row * strides.h + column * strides.w;
  }

  // Where a row can be written in place, from this column on; else `buffer`.
  A* in_place(int64_t n, int64_t c, int64_t row, int64_t column, A* buffer) const {
    if (!as_it_lies || strides.w != element_size) return buffer;
    return reinterpret_cast<A*>(address(n, c, row, column));
  }

  void row(int64_t n, int64_t c, int64_t row, int64_t column, int64_t count, const A* from) const {
    write(from, count, address(n, c, row, column), strides.w / element_size);
  }
};

}  // namespace ssimfast::cpu
