// The instruction set that the CPU kernels use.
#pragma once

// Features of each instruction set: X(name, true if the processor and the operating system support
// it). The same list gives the compiler flags of a kernel and the condition for running it.
#if defined(__GNUC__) && defined(__x86_64__)
#define SSIMFAST_X86 1
#define SSIMFAST_AVX2_FEATURES(X)           \
  X("avx2", __builtin_cpu_supports("avx2")) \
  X("fma", __builtin_cpu_supports("fma"))   \
  X("f16c", supports_f16c())
#define SSIMFAST_AVX512_FEATURES(X)                 \
  SSIMFAST_AVX2_FEATURES(X)                         \
  X("avx512f", __builtin_cpu_supports("avx512f"))   \
  X("avx512vl", __builtin_cpu_supports("avx512vl")) \
  X("avx512bw", __builtin_cpu_supports("avx512bw")) \
  X("avx512dq", __builtin_cpu_supports("avx512dq"))
#define SSIMFAST_NAME(name, is_there) "," name
#define SSIMFAST_TARGET_AVX2 __attribute__((target("sse2" SSIMFAST_AVX2_FEATURES(SSIMFAST_NAME))))
#define SSIMFAST_TARGET_AVX512 \
  __attribute__((target("sse2" SSIMFAST_AVX512_FEATURES(SSIMFAST_NAME))))
#endif

namespace ssimfast::cpu {

// Baseline is SSE2 on x86-64 and NEON on arm64.
enum class Isa { kBaseline, kAvx2, kAvx512 };

// The widest instruction set of this processor, or the narrower one that SSIMFAST_CPU_ISA names.
// Throws std::invalid_argument if the processor does not have the named one.
Isa isa();

// Name of isa(): "avx512", "avx2" or "baseline".
const char* instruction_set();

}  // namespace ssimfast::cpu
