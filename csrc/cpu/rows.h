// Reads and writes rows of strided tensors of any dtype, as numbers of the arithmetic type.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/isa.h"
#include "problem.h"
#if SSIMFAST_X86
#include <immintrin.h>
#endif

namespace ssimfast::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Part `index` of [begin, end), divided evenly into `count` parts.
inline std::pair<int64_t, int64_t> part(int64_t begin, int64_t end, int64_t count, int64_t index) {
  const int64_t size = end - begin;
  return {begin + size * index / count, begin + size * (index + 1) / count};
}

// Prefetches memory that will be read soon. The address may be invalid.
SSIMFAST_INLINE void prefetch(const void* from) {
#if defined(__GNUC__)
  __builtin_prefetch(from);
#else
  (void)from;
#endif
}

// ---- conversion of rows -------------------------------------------------------------------------

// ReadRow converts `n` elements, `stride` elements apart, to type A. WriteRow converts them back.
template <class A>
using ReadRow = void (*)(const void* from, int64_t stride, int64_t n, A* to);
template <class A>
using WriteRow = void (*)(const A* from, int64_t n, void* to, int64_t stride);

template <class T, class A>
void read_row(const void* from, int64_t stride, int64_t n, A* to) {
  const T* source = static_cast<const T*>(from);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<A>(source[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<A>(source[i * stride]);
  }
}

template <class T, class A>
void write_row(const A* from, int64_t n, void* to, int64_t stride) {
  // double is rounded to float first: float16 and bfloat16 results are then rounded twice.
  using Single = std::conditional_t<std::is_same_v<T, double>, double, float>;
  T* target = static_cast<T*>(to);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(static_cast<Single>(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i)
      target[i * stride] = static_cast<T>(static_cast<Single>(from[i]));
  }
}

#if SSIMFAST_X86
// These functions convert float16 rows with F16C instructions. With the software conversion a
// training step takes 1.5 times as long.
SSIMFAST_TARGET_AVX2 inline void read_halves(const void* from, int64_t stride, int64_t n,
                                             float* to) {
  const auto* source = static_cast<const Half*>(from);
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  read_row<Half>(source + i * stride, stride, n - i, to + i);
}

SSIMFAST_TARGET_AVX2 inline void write_halves(const float* from, int64_t n, void* to,
                                              int64_t stride) {
  auto* target = static_cast<Half*>(to);
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), halves);
  }
  write_row<Half>(from + i, n - i, target + i * stride, stride);
}
#endif

// Calls body(T{}) with the element type of a dtype.
template <class Body>
auto for_dtype(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::kFloat16:
      return body(Half{});
    case Dtype::kBFloat16:
      return body(BFloat16{});
    case Dtype::kFloat64:
      return body(double{});
    case Dtype::kUInt8:
      return body(uint8_t{});
    default:
      return body(float{});
  }
}

template <class A>
ReadRow<A> reader(Dtype dtype) {
#if SSIMFAST_X86
  if constexpr (std::is_same_v<A, float>)
    if (dtype == Dtype::kFloat16 && isa() != Isa::kBaseline) return read_halves;
#endif
  return for_dtype(dtype, [](auto zero) -> ReadRow<A> { return read_row<decltype(zero), A>; });
}

template <class A>
WriteRow<A> writer(Dtype dtype) {
#if SSIMFAST_X86
  if constexpr (std::is_same_v<A, float>)
    if (dtype == Dtype::kFloat16 && isa() != Isa::kBaseline) return write_halves;
#endif
  return for_dtype(dtype, [](auto zero) -> WriteRow<A> { return write_row<decltype(zero), A>; });
}

// ---- sources and sinks --------------------------------------------------------------------------

// Strides of a view in bytes.
struct Strides {
  int64_t n, c, d, h, w;

  explicit Strides(const View& view, int64_t element)
      : n(view.by_image * element),
        c(view.by_channel * element),
        d(view.by_slice * element),
        h(view.by_row * element),
        w(view.by_column * element) {}
  Strides() : n(0), c(0), d(0), h(0), w(0) {}
};

// True if elements of the dtype have type A.
template <class A>
bool is_arithmetic(Dtype dtype) {
  return dtype == (sizeof(A) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32);
}

// A tensor that is read row by row. A `plane` is the address of one channel of an image, or of one
// slice of a volume's channel.
template <class A>
struct Source {
  const char* data = nullptr;
  Strides strides;
  int64_t element_size = 1;
  bool as_it_lies = false;  // elements are numbers A
  A low = 0, step = 1;      // number = low + step * element

  Source() = default;
  explicit Source(const View& view, A low = 0, A step = 1)
      : data(static_cast<const char*>(view.data)),
        strides(view, size_of(view.dtype)),
        element_size(size_of(view.dtype)),
        as_it_lies(is_arithmetic<A>(view.dtype)),
        low(low),
        step(step),
        convert(reader<A>(view.dtype)) {}

  const char* plane(int64_t n, int64_t c, int64_t slice = 0) const {
    return data + n * strides.n + c * strides.c + slice * strides.d;
  }

  // Address of a pixel, which may lie outside the image.
  const char* address(const char* plane, int64_t row, int64_t column) const {
    return plane + row * strides.h + column * strides.w;
  }

  // Elements [column, column + count) of a row. Returns their address in the tensor if they are
  // contiguous and have type A; else converts them into `buffer`.
  const A* row(const char* plane, int64_t row, int64_t column, int64_t count, A* buffer) const {
    const char* from = address(plane, row, column);
    if (as_it_lies && strides.w == element_size) return reinterpret_cast<const A*>(from);
    read(from, count, buffer);
    return buffer;
  }

  // Reads `count` elements of a row, the first of which has this address.
  void read(const char* from, int64_t count, A* to) const {
    convert(from, strides.w / element_size, count, to);
    if (step == 1 && low == 0) return;
    for (int64_t i = 0; i < count; ++i) to[i] = low + step * to[i];
  }

  A at(const char* plane, int64_t row_index, int64_t column) const {
    A buffer;
    return *row(plane, row_index, column, 1, &buffer);
  }

 private:
  ReadRow<A> convert = nullptr;
};

// A tensor that is written row by row.
template <class A>
struct Sink {
  char* data = nullptr;
  Strides strides;
  int64_t element_size = 1;
  bool as_it_lies = false;  // elements are numbers A
  WriteRow<A> write = nullptr;

  Sink() = default;
  explicit Sink(const View& view)
      : data(static_cast<char*>(view.data)),
        strides(view, size_of(view.dtype)),
        element_size(size_of(view.dtype)),
        as_it_lies(is_arithmetic<A>(view.dtype)),
        write(view.dtype == Dtype::kUInt8 ? nullptr : writer<A>(view.dtype)) {}

  char* address(int64_t n, int64_t c, int64_t row, int64_t column, int64_t slice = 0) const {
    return data + n * strides.n + c * strides.c + slice * strides.d + row * strides.h +
           column * strides.w;
  }

  // Address in the tensor of a row, from this column on, if the row can be written in place; else
  // `buffer`.
  A* in_place(int64_t n, int64_t c, int64_t row, int64_t column, A* buffer) const {
    if (!as_it_lies || strides.w != element_size) return buffer;
    return reinterpret_cast<A*>(address(n, c, row, column));
  }

  void row(int64_t n, int64_t c, int64_t row, int64_t column, int64_t count, const A* from) const {
    write(from, count, address(n, c, row, column), strides.w / element_size);
  }
};

// The tensors of a problem.
template <class A>
struct Images {
  Source<A> x, y, mask, upstream[kMaps];
  Sink<A> map[kMaps], grad[2];

  explicit Images(const Problem<A>& problem)
      : x(problem.x), y(problem.y, problem.y_low, problem.y_step), mask(problem.mask) {
    for (int i = 0; i < kMaps; ++i) {
      upstream[i] = Source<A>(problem.upstream[i]);
      map[i] = Sink<A>(problem.map[i]);
    }
    for (int i = 0; i < 2; ++i) grad[i] = Sink<A>(problem.grad[i]);
  }
};

// ---- scratch memory -----------------------------------------------------------------------------

// Scratch memory of one thread, kept between calls.
template <class A>
A* workspace(int64_t size) {
  constexpr std::align_val_t alignment{64};
  struct Buffer {
    A* data = nullptr;
    int64_t size = 0;
    ~Buffer() { ::operator delete(data, alignment); }
  };
  thread_local Buffer buffer;
#if defined(__SANITIZE_ADDRESS__)
  const bool fits = buffer.size == size;  // a larger one would hide out-of-bounds accesses
#else
  const bool fits = buffer.size >= size;
#endif
  if (!fits) {
    ::operator delete(buffer.data, alignment);
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = static_cast<A*>(::operator new(size * sizeof(A), alignment));
    buffer.size = size;
    // Vectors read past the ends of rows; that memory must be initialised.
    std::fill(buffer.data, buffer.data + size, A(0));
  }
  return buffer.data;
}

}  // namespace ssimfast::cpu
