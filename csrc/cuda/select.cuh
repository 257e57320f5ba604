// The instantiations of the fused kernel for one window. Each window is compiled by itself, in
// parallel: sweep_7.cu, sweep_9.cu, sweep_11.cu.
#pragma once

#include "sweep.cuh"

namespace ssimfast::cuda {

// A kernel, and the shared memory of its blocks by their threads.
struct Fused {
  void (*kernel)(const Job<float>, const Plan) = nullptr;
  int (*shared_bytes)(int threads) = nullptr;
};

template <class T, int K, Pass kPass, bool kPlain>
Fused fused() {
  return {sweep<T, K, kPass, kPlain>, Sizes<K, kPass>::shared_bytes};
}

template <class T, int K>
Fused select_pass(Pass pass, bool plain) {
  switch (pass) {
    case Pass::kForward:
      return fused<T, K, Pass::kForward, false>();
    case Pass::kGradientX:
      return plain ? fused<T, K, Pass::kGradientX, true>() : fused<T, K, Pass::kGradientX, false>();
    case Pass::kGradientBoth:
      return fused<T, K, Pass::kGradientBoth, false>();
  }
  return {};
}

template <int K>
Fused select_sweep(Dtype dtype, Pass pass, bool plain) {
  switch (dtype) {
    case Dtype::kFloat32:
      return select_pass<float, K>(pass, plain);
    case Dtype::kFloat16:
      return select_pass<__half, K>(pass, plain);
    case Dtype::kBFloat16:
      return select_pass<__nv_bfloat16, K>(pass, plain);
    case Dtype::kUInt8:  // without gradients: new_gradients()
      return fused<uint8_t, K, Pass::kForward, false>();
    case Dtype::kFloat64:
      break;
  }
  return {};
}

}  // namespace ssimfast::cuda
