// Instantiations of the fused kernel for one window. Each window is compiled by itself, in
// parallel: sweep_7.cu, sweep_9.cu, sweep_11.cu.
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

template <class T, int K, Kind kKind, bool kPlain>
Fused fused() {
  return {sweep<T, K, kKind, kPlain>, Sizes<K, kKind>::shared_bytes};
}

template <class T, int K>
Fused select_kind(Kind kind, bool plain) {
  switch (kind) {
    case Kind::kForward:
      return fused<T, K, Kind::kForward, false>();
    case Kind::kGradientX:
      return plain ? fused<T, K, Kind::kGradientX, true>() : fused<T, K, Kind::kGradientX, false>();
    case Kind::kGradientBoth:
      return fused<T, K, Kind::kGradientBoth, false>();
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
      return fused<uint8_t, K, Kind::kForward, false>();
    case Dtype::kFloat64:
      break;
  }
  return {};
}

}  // namespace ssimfast::cuda
