// Tensors as strided sources and sinks of rows, and each thread's scratch memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>

#include "../tensor.h"
#include "plane.h"

namespace ssimfast::cpu {

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

template <class T>
Strides byte_strides(const Tensor& tensor) {
  const int64_t size = sizeof(T);
  return {tensor.stride(0) * size, tensor.stride(1) * size, tensor.stride(2) * size,
          tensor.stride(3) * size};
}

template <class T>
Source<Arithmetic<T>> source(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), byte_strides<T>(tensor), sizeof(T),
          std::is_same_v<T, Arithmetic<T>>, read_row<T>};
}

template <class T>
Sink<Arithmetic<T>> sink(const Tensor& tensor) {
  return {static_cast<char*>(tensor.mutable_data_ptr()), byte_strides<T>(tensor), sizeof(T),
          write_row<T>};
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
  if (buffer.size < size) {
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
