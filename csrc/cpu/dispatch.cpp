#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>

#if SSIMFAST_X86
#include <cpuid.h>
#endif

namespace ssimfast::cpu {
namespace {

const char* const kIsaNames[] = {"baseline", "avx2", "avx512"};

#if SSIMFAST_X86
// Where clang's __builtin_cpu_supports does not know the name. The system keeps its registers if it
// keeps those of AVX2.
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

// SSIMFAST_CPU_ISA asks for a narrower one, to test it.
Isa detect() {
  const char* wanted = std::getenv("SSIMFAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return widest();
  for (int i = 0; i <= int(widest()); ++i)
    if (std::string(wanted) == kIsaNames[i]) return Isa(i);
  throw std::invalid_argument(std::string("SSIMFAST_CPU_ISA must be one of baseline, avx2, avx512 "
                                          "that this processor has, got ") +
                              wanted);
}

template <class A, int kBytes>
using Vector = typename VectorOf<A, kBytes / int(sizeof(A))>::type;

template <class V, class A, int kWindow, Pass kPass, bool kBoth>
SSIMFAST_INLINE Sums run(const Job<A>& job, const Tile& tile, int64_t pitch, A* workspace) {
  return TileKernel<V, A, kWindow, kPass, kBoth>(job, tile, pitch, workspace).run();
}

// One entry per instruction set. Everything below it is inlined, and so compiled for it.
template <class A, int kWindow, Pass kPass, bool kBoth>
Sums run_baseline(const Job<A>& job, const Tile& tile, int64_t pitch, A* workspace) {
  return run<Vector<A, 16>, A, kWindow, kPass, kBoth>(job, tile, pitch, workspace);
}

#if SSIMFAST_X86
template <class A, int kWindow, Pass kPass, bool kBoth>
SSIMFAST_TARGET_AVX2 Sums run_avx2(const Job<A>& job, const Tile& tile, int64_t pitch,
                                   A* workspace) {
  return run<Vector<A, 32>, A, kWindow, kPass, kBoth>(job, tile, pitch, workspace);
}

template <class A, int kWindow, Pass kPass, bool kBoth>
SSIMFAST_TARGET_AVX512 Sums run_avx512(const Job<A>& job, const Tile& tile, int64_t pitch,
                                       A* workspace) {
  return run<Vector<A, 64>, A, kWindow, kPass, kBoth>(job, tile, pitch, workspace);
}
#endif

template <class A, int kWindow, Pass kPass, bool kBoth>
RunTile<A> for_isa() {
#if SSIMFAST_X86
  if (isa() == Isa::kAvx512) return run_avx512<A, kWindow, kPass, kBoth>;
  if (isa() == Isa::kAvx2) return run_avx2<A, kWindow, kPass, kBoth>;
#endif
  return run_baseline<A, kWindow, kPass, kBoth>;
}

template <class A, int kWindow>
RunTile<A> for_pass(Pass pass, bool both) {
  switch (pass) {
    case Pass::kValue:
      return for_isa<A, kWindow, Pass::kValue, false>();
    case Pass::kMap:
      return for_isa<A, kWindow, Pass::kMap, false>();
    case Pass::kGradient:
      return both ? for_isa<A, kWindow, Pass::kGradient, true>()
                  : for_isa<A, kWindow, Pass::kGradient, false>();
    case Pass::kMapGradient:
      return both ? for_isa<A, kWindow, Pass::kMapGradient, true>()
                  : for_isa<A, kWindow, Pass::kMapGradient, false>();
  }
  return nullptr;
}

}  // namespace

// The window that everyone uses is unrolled, unless its Gaussian is too narrow for that. float64
// exists for gradcheck, not for speed.
template <class A>
RunTile<A> select_kernel(Pass pass, bool both, const Job<A>& job) {
  if constexpr (std::is_same_v<A, float>) {
    if (job.window == 11 && job.taps[5] < float(kLargestCentreTap))
      return for_pass<A, 11>(pass, both);
  }
  return for_pass<A, 0>(pass, both);
}

template RunTile<float> select_kernel<float>(Pass, bool, const Job<float>&);
template RunTile<double> select_kernel<double>(Pass, bool, const Job<double>&);

Isa isa() {
  static const Isa detected = detect();
  return detected;
}

const char* instruction_set() { return kIsaNames[int(isa())]; }

}  // namespace ssimfast::cpu
