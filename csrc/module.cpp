// The module ssimfast._C. Importing the module registers the compiled kernels with torch's
// dispatcher. Its attributes describe the build and the instruction set that the CPU kernels use.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#include "cpu/isa.h"

#define SSIMFAST_STRING(x) #x
#define SSIMFAST_EXPAND(x) SSIMFAST_STRING(x)

#if defined(SSIMFAST_CUDA)
namespace ssimfast::cuda {
int runtime_version();
}
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " SSIMFAST_EXPAND(_MSC_VER);
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("schemas") = SSIMFAST_EXPAND(SSIMFAST_SCHEMAS);  // DIGEST of ssimfast/ops/schemas.py
  m.attr("built_with_torch") = TORCH_VERSION;
  m.attr("compiler") = compiler();
  m.attr("cpp_standard") = static_cast<long>(__cplusplus);
#if defined(SSIMFAST_CUDA)
  m.attr("cuda_runtime_version") = ssimfast::cuda::runtime_version();
#else
  m.attr("cuda_runtime_version") = pybind11::none();
#endif
  m.def("instruction_set", ssimfast::cpu::instruction_set);
}
