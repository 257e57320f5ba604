// What the launchers share: tensors as images, and launches on the device and the current stream of
// a tensor. Nothing here waits for the device or allocates outside of torch's allocator, so that a
// training step can be captured in a CUDA graph.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../tensor.h"
#include "image.cuh"
#include "plan.h"

#if defined(SSIMFAST_EMULATED)
// Tests call the emulated kernels on tensors of the CPU, by a namespace of their own.
#define SSIMFAST_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ssimfast_emulated, CPU, m)
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#define SSIMFAST_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ssimfast, CUDA, m)
#endif

namespace ssimfast::cuda {

// Bytes of dynamic shared memory that a block of any kernel may have; for more, see allow_shared().
constexpr int64_t kSharedOfAnyKernel = 48 * 1024;

#if defined(SSIMFAST_EMULATED)

inline bool is_chosen() { return true; }

class Launcher {
 public:
  explicit Launcher(const Tensor&) {}

  // As of a small device, unless a test wants another.
  int multiprocessors() const {
    const char* wanted = std::getenv("SSIMFAST_EMULATED_MULTIPROCESSORS");
    return wanted == nullptr ? 8 : std::atoi(wanted);
  }

  template <class... P>
  void allow_shared(void (*kernel)(P...), int64_t most_bytes) const {
    emulator::allow_shared(kernel, most_bytes);
  }

  template <class... P>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes,
                  const std::type_identity_t<P>&... arguments) const {
    emulator::launch(kernel, blocks, threads, shared_bytes, arguments...);
  }
};

// What a kernel fails to write is then NaN.
inline Tensor poisoned(Tensor tensor) {
  int64_t size = tensor.element_size();
  for (int64_t i = 0; i < tensor.dim(); ++i) size *= tensor.size(i);
  if (size > 0) emulator::poison(tensor.mutable_data_ptr(), size);
  return tensor;
}

#else

// Whether these kernels are to serve the device, and not those of Triton (ssimfast/ops.py).
inline bool is_chosen() {
  const char* backend = std::getenv("SSIMFAST_CUDA_BACKEND");
  return backend == nullptr || std::strcmp(backend, "triton") != 0;
}

class Launcher {
 public:
  explicit Launcher(const Tensor& tensor)
      : device(tensor.get_device_index()), guard(static_cast<DeviceIndex>(device)) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
  }

  int multiprocessors() const {
    int count = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
  }

  // Allows launches of the kernel up to so many bytes. It must always be the same number: the
  // kernel has one limit on a device, and another thread's launch may be about to need it.
  template <class... P>
  void allow_shared(void (*kernel)(P...), int64_t most_bytes) const {
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(most_bytes)));
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
  using DeviceIndex = torch::stable::accelerator::DeviceIndex;

  const int32_t device;
  const torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

inline Tensor poisoned(Tensor tensor) { return tensor; }

#endif

inline std::vector<Tensor> poisoned(std::vector<Tensor> tensors) {
  for (Tensor& tensor : tensors) tensor = poisoned(tensor);
  return tensors;
}

// A tensor that a kernel is going to write.
inline Tensor output(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return poisoned(new_tensor(like, shape, dtype));
}

// The elements of a tensor that kernels may write.
template <class A>
A* data(const Tensor& tensor) {
  return static_cast<A*>(const_cast<void*>(tensor.const_data_ptr()));
}

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Byte:
      return Dtype::kUInt8;
    default:
      STD_TORCH_CHECK(false, "ssimfast: images must be floating point or uint8, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

template <class A>
Image<A> image_of(const Tensor& tensor) {
  return {data<void>(tensor), tensor.stride(0), tensor.stride(1),
          tensor.stride(2),   tensor.stride(3), dtype_of(tensor)};
}

// Calls body(A{}) with the arithmetic type of the tensor's dtype.
template <class Body>
auto dispatch_arithmetic(const Tensor& tensor, Body&& body) {
  return dtype_of(tensor) == Dtype::kFloat64 ? body(double{}) : body(float{});
}

}  // namespace ssimfast::cuda
