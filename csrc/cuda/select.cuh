// The instantiations of the fused kernel for one window. Each window is compiled by itself, in
// parallel: sweep_7.cu, sweep_9.cu, sweep_11.cu.
#pragma once

#include "sweep.cuh"

namespace ssimfast::cuda {

using SweepKernel = void (*)(const Job<float>, const Plan);

template <class T, int K>
SweepKernel select_pass(Pass pass, bool plain) {
  switch (pass) {
    case Pass::kForward:
      return sweep<T, K, Pass::kForward, false>;
    case Pass::kGradientX:
      return plain ? sweep<T, K, Pass::kGradientX, true> : sweep<T, K, Pass::kGradientX, false>;
    case Pass::kGradientBoth:
      return sweep<T, K, Pass::kGradientBoth, false>;
  }
  return nullptr;
}

template <int K>
SweepKernel select_sweep(Dtype dtype, Pass pass, bool plain) {
  switch (dtype) {
    case Dtype::kFloat32:
      return select_pass<float, K>(pass, plain);
    case Dtype::kFloat16:
      return select_pass<__half, K>(pass, plain);
    case Dtype::kBFloat16:
      return select_pass<__nv_bfloat16, K>(pass, plain);
    case Dtype::kFloat64:
      break;
  }
  return nullptr;
}

}  // namespace ssimfast::cuda
