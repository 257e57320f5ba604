// Runs tiles with the widest instruction set of this processor.
#pragma once

#include "tile.h"

namespace ssimfast::cpu {

// The sums over the tile; `workspace` holds Workspace<A>::size numbers, aligned to 64 bytes.
template <class A>
using RunTile = Sums (*)(const Job<A>& job, const Tile& tile, int64_t pitch, A* workspace);

template <class A>
RunTile<A> select_kernel(Pass pass, bool both, const Job<A>& job);

// "avx512", "avx2" or "baseline" (SSE2 on x86-64, NEON on arm64).
// Throws std::invalid_argument if SSIMFAST_CPU_ISA asks for one that is not there.
const char* instruction_set();

}  // namespace ssimfast::cpu
