#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if SSIMFAST_X86
#include <cpuid.h>
#endif

namespace ssimfast::cpu {
namespace {

const char* const kIsaNames[] = {"baseline", "avx2", "avx512"};

#if SSIMFAST_X86
// Checks F16C with cpuid, because some versions of clang's __builtin_cpu_supports do not know the
// name. The AVX2 check covers the operating system: F16C uses the same registers.
bool supports_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

Isa widest() {
  __builtin_cpu_init();
#define SSIMFAST_IS_THERE(name, is_there) &&is_there
  if (true SSIMFAST_AVX512_FEATURES(SSIMFAST_IS_THERE)) return Isa::kAvx512;
  if (true SSIMFAST_AVX2_FEATURES(SSIMFAST_IS_THERE)) return Isa::kAvx2;
#undef SSIMFAST_IS_THERE
  return Isa::kBaseline;
}
#else
Isa widest() { return Isa::kBaseline; }
#endif

// Tests set SSIMFAST_CPU_ISA to run a narrower instruction set.
Isa detect() {
  const char* wanted = std::getenv("SSIMFAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return widest();
  for (int i = 0; i <= int(widest()); ++i)
    if (std::string(wanted) == kIsaNames[i]) return Isa(i);
  throw std::invalid_argument(std::string("SSIMFAST_CPU_ISA must be one of baseline, avx2, avx512 "
                                          "that this processor has, got ") +
                              wanted);
}

}  // namespace

Isa isa() {
  static const Isa detected = detect();
  return detected;
}

const char* instruction_set() { return kIsaNames[int(isa())]; }

}  // namespace ssimfast::cpu
