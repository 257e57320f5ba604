// Instantiations of the fused kernel for one window. Each window is compiled by itself, in
// parallel: sweep_7.cu, sweep_9.cu, sweep_11.cu, and sweep_11_more.cu.
#pragma once

#include "cuda/sweep.cuh"

namespace ssimfast::cuda {

// A kernel for all levels of a pyramid.
using FusedLevels = void (*)(const LevelJobs);

// A kernel, and the shared memory of its blocks as a function of their threads.
struct Fused {
  void (*kernel)(const Job<float>, const Plan) = nullptr;
  int (*shared_bytes)(int threads) = nullptr;
};

template <class T, class U, int K, Kind kKind, Serves kServes>
Fused fused() {
  return {sweep<T, U, K, kKind, kServes>,
          Sizes<K, kKind, kServes == Serves::kMasked>::shared_bytes};
}

template <class T, int K>
Fused select_kind(Kind kind, bool plain) {
  switch (kind) {
    case Kind::kForward:
      return fused<T, T, K, Kind::kForward, Serves::kAny>();
    case Kind::kGradientX:
      return plain ? fused<T, T, K, Kind::kGradientX, Serves::kPlain>()
                   : fused<T, T, K, Kind::kGradientX, Serves::kAny>();
    case Kind::kGradientBoth:
      return fused<T, T, K, Kind::kGradientBoth, Serves::kAny>();
  }
  return {};
}

template <int K>
FusedLevels select_levels(Kind kind) {
  switch (kind) {
    case Kind::kForward:
      return sweep_levels<K, Kind::kForward>;
    case Kind::kGradientX:
      return sweep_levels<K, Kind::kGradientX>;
    case Kind::kGradientBoth:
      return sweep_levels<K, Kind::kGradientBoth>;
  }
  return nullptr;
}

// The kernel for images of one dtype, without a mask.
template <int K>
Fused select_sweep(Dtype dtype, Kind kind, bool plain) {
  switch (dtype) {
    case Dtype::kFloat32:
      return select_kind<float, K>(kind, plain);
    case Dtype::kFloat16:
      return select_kind<__half, K>(kind, plain);
    case Dtype::kBFloat16:
      return select_kind<__nv_bfloat16, K>(kind, plain);
    case Dtype::kUInt8:  // has no gradients
      return fused<uint8_t, uint8_t, K, Kind::kForward, Serves::kAny>();
    case Dtype::kFloat64:
      break;
  }
  return {};
}

template <class T, int K>
Fused select_beside_bytes(Kind kind, bool plain) {
  return kind == Kind::kForward ? fused<T, uint8_t, K, Kind::kForward, Serves::kAny>()
         : plain                ? fused<T, uint8_t, K, Kind::kGradientX, Serves::kPlain>()
                                : fused<T, uint8_t, K, Kind::kGradientX, Serves::kAny>();
}

// The kernel for an 8-bit y, which has no gradient, beside a floating x.
template <int K>
Fused select_beside_bytes(Dtype dtype, Kind kind, bool plain) {
  switch (dtype) {
    case Dtype::kFloat32:
      return select_beside_bytes<float, K>(kind, plain);
    case Dtype::kFloat16:
      return select_beside_bytes<__half, K>(kind, plain);
    case Dtype::kBFloat16:
      return select_beside_bytes<__nv_bfloat16, K>(kind, plain);
    default:
      return {};
  }
}

template <class T, class U, int K>
Fused select_masked(Kind kind) {
  switch (kind) {
    case Kind::kForward:
      return fused<T, U, K, Kind::kForward, Serves::kMasked>();
    case Kind::kGradientX:
      return fused<T, U, K, Kind::kGradientX, Serves::kMasked>();
    case Kind::kGradientBoth:
      if constexpr (std::is_same_v<T, float> && std::is_same_v<U, float>)
        return fused<T, U, K, Kind::kGradientBoth, Serves::kMasked>();
  }
  return {};
}

// The kernel for masked images. To bound the time of the build there is none for both gradients of
// half types and for half types beside an 8-bit y; the separable path serves these.
template <int K>
Fused select_masked(Dtype x, Dtype y, Kind kind) {
  if (x == Dtype::kFloat32 && y == Dtype::kUInt8) return select_masked<float, uint8_t, K>(kind);
  if (x != y) return {};
  if (x == Dtype::kFloat32) return select_masked<float, float, K>(kind);
  if (x == Dtype::kFloat16) return select_masked<__half, __half, K>(kind);
  if (x == Dtype::kBFloat16) return select_masked<__nv_bfloat16, __nv_bfloat16, K>(kind);
  return {};
}

}  // namespace ssimfast::cuda
