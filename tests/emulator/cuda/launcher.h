// The emulator in the place of csrc/cuda/launcher.h: launches run here, to their end, on tensors of
// the CPU. The ops have a namespace of their own.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "cuda/plan.h"
#include "emulator.h"

#define SSIMFAST_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ssimfast_emulated, CPU, m)

namespace ssimfast::cuda {

constexpr int kToolkit = 0;

inline bool is_chosen() { return true; }

class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor&) {}

  // Those of a small device, unless a test wants another number of multiprocessors.
  DeviceLimits limits() const {
    const char* wanted = std::getenv("SSIMFAST_EMULATED_MULTIPROCESSORS");
    return {wanted == nullptr ? 8 : std::atoi(wanted), 100 * 1024};
  }

  static bool allows_large_parameters() { return true; }

  template <class... P>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes,
                  const std::type_identity_t<P>&... arguments) const {
    emulator::launch(kernel, blocks, threads, shared_bytes, arguments...);
  }
};

}  // namespace ssimfast::cuda
