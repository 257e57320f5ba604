// Images of any dtype and strides, read and written in the arithmetic type A: float for float16,
// bfloat16, float32 and uint8 (which is only read), double for float64.
#pragma once

#include "device.cuh"

namespace ssimfast::cuda {

enum class Dtype : int { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8 };

// Calls body(T{}) with the element type of a floating dtype whose arithmetic type is A. The dtype
// is the same for all threads, so that the branch costs next to nothing, and one kernel serves
// three dtypes.
template <class A, class Body>
SSIMFAST_DEVICE void for_dtype(Dtype dtype, Body&& body) {
  if constexpr (sizeof(A) == sizeof(double)) {
    body(double{});
  } else if (dtype == Dtype::kFloat32) {
    body(float{});
  } else if (dtype == Dtype::kFloat16) {
    body(__half{});
  } else {
    body(__nv_bfloat16{});
  }
}

SSIMFAST_DEVICE float to_arithmetic(uint8_t v) { return v; }
SSIMFAST_DEVICE float to_arithmetic(float v) { return v; }
SSIMFAST_DEVICE double to_arithmetic(double v) { return v; }
SSIMFAST_DEVICE float to_arithmetic(__half v) { return __half2float(v); }
SSIMFAST_DEVICE float to_arithmetic(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T, class A>
SSIMFAST_DEVICE T from_arithmetic(A v) {
  if constexpr (sizeof(T) >= sizeof(A)) {
    return v;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else {
    return __float2bfloat16_rn(v);
  }
}

// -1, 0 or 1; NaN for NaN.
template <class A>
SSIMFAST_DEVICE A sign(A a) {
  return A(a > 0) - A(a < 0) + (a - a);
}

// A tensor (N, C, H, W) of any strides, expanded ones (stride 0) included. Offsets are in elements
// and have 64 bits.
template <class A>
struct Image {
  void* data = nullptr;
  int64_t by_image = 0, by_plane = 0, by_row = 0, by_column = 0;
  Dtype dtype = Dtype::kFloat32;

  SSIMFAST_DEVICE int64_t plane(int64_t n, int64_t c) const { return n * by_image + c * by_plane; }

  SSIMFAST_DEVICE A at(int64_t offset) const {
    if (dtype == Dtype::kUInt8)
      return to_arithmetic(read(static_cast<const uint8_t*>(data) + offset));
    A value{};
    for_dtype<A>(dtype, [&](auto zero) {
      using T = decltype(zero);
      value = to_arithmetic(read(static_cast<const T*>(data) + offset));
    });
    return value;
  }
  SSIMFAST_DEVICE void set(int64_t offset, A value) const {
    for_dtype<A>(dtype, [&](auto zero) {
      using T = decltype(zero);
      write(static_cast<T*>(data) + offset, from_arithmetic<T>(value));
    });
  }
};

}  // namespace ssimfast::cuda
