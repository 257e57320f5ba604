// Runs tiles with the widest instruction set of this processor.
#pragma once

#include "tile.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define SSIMFAST_X86 1
#define SSIMFAST_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define SSIMFAST_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#endif

namespace ssimfast::cpu {

// The sums over the tile; `workspace` holds Workspace<A>::size numbers, aligned to 64 bytes.
template <class A>
using RunTile = Sums (*)(const Job<A>& job, const Tile& tile, int64_t pitch, A* workspace);

template <class A>
RunTile<A> select_kernel(Pass pass, bool both, const Job<A>& job);

// Baseline is SSE2 on x86-64, NEON on arm64.
enum class Isa { kBaseline, kAvx2, kAvx512 };

// The widest of this processor, or a narrower one that SSIMFAST_CPU_ISA asks for.
// Throws std::invalid_argument if that is not there.
Isa isa();

// Its name: "avx512", "avx2" or "baseline".
const char* instruction_set();

}  // namespace ssimfast::cpu
