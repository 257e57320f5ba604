// What the ops share: how work is cut, tensors as strided sources and sinks of rows, and each
// thread's scratch memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#include "../tensor.h"
#include "dispatch.h"
#include "plane.h"
#if SSIMFAST_X86
#include <immintrin.h>
#endif

namespace ssimfast::cpu {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An even cut of [begin, end) into `count` parts.
inline std::pair<int64_t, int64_t> part(int64_t begin, int64_t end, int64_t count, int64_t index) {
  const int64_t size = end - begin;
  return {begin + size * index / count, begin + size * (index + 1) / count};
}

template <class T>
void read_row(const void* from, int64_t stride, int64_t n, Arithmetic<T>* to) {
  const T* source = static_cast<const T*>(from);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Arithmetic<T>>(source[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Arithmetic<T>>(source[i * stride]);
  }
}

template <class T>
void write_row(const Arithmetic<T>* from, int64_t n, void* to, int64_t stride) {
  T* target = static_cast<T*>(to);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i * stride] = static_cast<T>(from[i]);
  }
}

#if SSIMFAST_X86
// Rows of float16 by the instructions for it: the compiler takes the conversion in software to
// pieces, and a step would be half as long again.
SSIMFAST_TARGET_AVX2 inline void read_halves(const void* from, int64_t stride, int64_t n,
                                             float* to) {
  const auto* source = static_cast<const torch::headeronly::Half*>(from);
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  read_row<torch::headeronly::Half>(source + i * stride, stride, n - i, to + i);
}

SSIMFAST_TARGET_AVX2 inline void write_halves(const float* from, int64_t n, void* to,
                                              int64_t stride) {
  auto* target = static_cast<torch::headeronly::Half*>(to);
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), halves);
  }
  write_row<torch::headeronly::Half>(from + i, n - i, target + i * stride, stride);
}
#endif

template <class T>
ReadRow<Arithmetic<T>> reader() {
#if SSIMFAST_X86
  if constexpr (std::is_same_v<T, torch::headeronly::Half>)
    if (isa() != Isa::kBaseline) return read_halves;
#endif
  return read_row<T>;
}

template <class T>
WriteRow<Arithmetic<T>> writer() {
#if SSIMFAST_X86
  if constexpr (std::is_same_v<T, torch::headeronly::Half>)
    if (isa() != Isa::kBaseline) return write_halves;
#endif
  return write_row<T>;
}

template <class T>
Strides byte_strides(const Tensor& tensor) {
  const int64_t size = sizeof(T);
  return {tensor.stride(0) * size, tensor.stride(1) * size, tensor.stride(2) * size,
          tensor.stride(3) * size};
}

template <class T>
Source<Arithmetic<T>> source(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), byte_strides<T>(tensor), sizeof(T),
          std::is_same_v<T, Arithmetic<T>>, reader<T>()};
}

template <class T>
Sink<Arithmetic<T>> sink(const Tensor& tensor) {
  return {static_cast<char*>(tensor.mutable_data_ptr()), byte_strides<T>(tensor), sizeof(T),
          std::is_same_v<T, Arithmetic<T>>, writer<T>()};
}

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
  const bool fits = buffer.size == size;  // a larger one would hide what runs past its end
#else
  const bool fits = buffer.size >= size;
#endif
  if (!fits) {
    ::operator delete(buffer.data, alignment);
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = static_cast<A*>(::operator new(size * sizeof(A), alignment));
    buffer.size = size;
    // Vectors run past the ends of rows; what they read there must at least be numbers.
    std::fill(buffer.data, buffer.data + size, A(0));
  }
  return buffer.data;
}

}  // namespace ssimfast::cpu
