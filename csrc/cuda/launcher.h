// Launches kernels on the device and the current stream of a tensor.
//
// Nothing here waits for the device or allocates outside torch's allocator, so a training step can
// be captured in a CUDA graph. The tests replace this file with tests/emulator/cuda/launcher.h,
// which launches on the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cuda/plan.h"

#define SSIMFAST_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ssimfast, CUDA, m)

namespace ssimfast::cuda {

// Version of the CUDA toolkit that compiles this file: 13000 is CUDA 13.0.
constexpr int kToolkit = CUDART_VERSION;

// True if CUDA tensors use these kernels, not those of Triton (ssimfast/ops/library.py).
inline bool is_chosen() {
  const char* backend = std::getenv("SSIMFAST_CUDA_BACKEND");
  return backend == nullptr || std::strcmp(backend, "triton") != 0;
}

// Launches kernels. The device of the tensor is the current device while the Launcher exists.
class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor& tensor)
      : device(tensor.get_device_index()), guard(static_cast<DeviceIndex>(device)) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
  }

  DeviceLimits limits() const {
    return {attribute(cudaDevAttrMultiProcessorCount),
            attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  }

  // True if kernels may have more than 4 KiB of parameters: the driver is of CUDA 12.1 or newer.
  static bool allows_large_parameters() {
    static const int version = [] {
      int version = 0;
      STD_CUDA_CHECK(cudaDriverGetVersion(&version));
      return version;
    }();
    return version >= 12010;
  }

  template <class... P>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes,
                  const std::type_identity_t<P>&... arguments) const {
    const void* pointers[] = {&arguments..., nullptr};
    STD_CUDA_CHECK(cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                                    dim3(static_cast<unsigned>(blocks)), dim3(threads),
                                    const_cast<void**>(pointers), shared_bytes, stream));
  }

 private:
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
  }

  using DeviceIndex = torch::stable::accelerator::DeviceIndex;

  const int32_t device;
  const torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

}  // namespace ssimfast::cuda
