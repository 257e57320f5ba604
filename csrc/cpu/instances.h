// Instances of the fused kernel for each instruction set. Each window is compiled by itself, in
// parallel: tile_11.cpp, tile_any.cpp, and the same for masked tiles.
#pragma once

#include "cpu/isa.h"
#include "cpu/tile.h"
#include "cpu/tile_gradient.h"

namespace ssimfast::cpu {

template <class A, int kBytes>
using Vector = typename VectorOf<A, kBytes / int(sizeof(A))>::type;

template <class V, class A, int kWindow, Pass kPass, bool kBoth, bool kMasked>
SSIMFAST_INLINE TileSums run(const Problem<A>& problem, const Images<A>& images, const Tile& tile,
                             int64_t pitch, A* workspace) {
  TileState<V, A, kWindow, kPass, kBoth, kMasked> t(problem, images, tile, pitch, workspace);
  if (kPass == Pass::kForward && !t.has_statistics()) {
    for (int64_t r = tile.row_begin; r < tile.row_end; ++r) {
      if (problem.wants_pixel_terms()) load_row(t, r);
      finish_pixels(t, r);
    }
    return t.sums;
  }
  for (int64_t g = t.first_centre - t.spread; g < tile.row_end; g += kRows) {
    statistics(t, g + t.spread);
    // The rows before the first row of the tile only fill the ring of partial derivatives.
    if constexpr ((kPass == Pass::kGradient || kPass == Pass::kMapsGradient)) {
      if (g >= tile.row_begin) gradient(t, g);
    }
  }
  return t.sums;
}

// One entry point per instruction set. Everything that it calls is inlined and therefore compiled
// for that instruction set.
template <class A, int kWindow, Pass kPass, bool kBoth, bool kMasked>
TileSums run_baseline(const Problem<A>& problem, const Images<A>& images, const Tile& tile,
                      int64_t pitch, A* workspace) {
  return run<Vector<A, 16>, A, kWindow, kPass, kBoth, kMasked>(problem, images, tile, pitch,
                                                               workspace);
}

#if SSIMFAST_X86
template <class A, int kWindow, Pass kPass, bool kBoth, bool kMasked>
SSIMFAST_TARGET_AVX2 TileSums run_avx2(const Problem<A>& problem, const Images<A>& images,
                                       const Tile& tile, int64_t pitch, A* workspace) {
  return run<Vector<A, 32>, A, kWindow, kPass, kBoth, kMasked>(problem, images, tile, pitch,
                                                               workspace);
}

template <class A, int kWindow, Pass kPass, bool kBoth, bool kMasked>
SSIMFAST_TARGET_AVX512 TileSums run_avx512(const Problem<A>& problem, const Images<A>& images,
                                           const Tile& tile, int64_t pitch, A* workspace) {
  return run<Vector<A, 64>, A, kWindow, kPass, kBoth, kMasked>(problem, images, tile, pitch,
                                                               workspace);
}
#endif

// Masked images in float64 have the narrowest vectors only, because they compile slowly.
template <class A, int kWindow, Pass kPass, bool kBoth, bool kMasked>
RunTile<A> for_isa() {
#if SSIMFAST_X86
  if constexpr (!kMasked || sizeof(A) == sizeof(float)) {
    if (isa() == Isa::kAvx512) return run_avx512<A, kWindow, kPass, kBoth, kMasked>;
    if (isa() == Isa::kAvx2) return run_avx2<A, kWindow, kPass, kBoth, kMasked>;
  }
#endif
  return run_baseline<A, kWindow, kPass, kBoth, kMasked>;
}

template <class A, int kWindow, bool kMasked>
RunTile<A> instance(Pass pass, bool both) {
  switch (pass) {
    case Pass::kForward:
      return for_isa<A, kWindow, Pass::kForward, false, kMasked>();
    case Pass::kGradient:
      return both ? for_isa<A, kWindow, Pass::kGradient, true, kMasked>()
                  : for_isa<A, kWindow, Pass::kGradient, false, kMasked>();
    case Pass::kMapsGradient:
      return both ? for_isa<A, kWindow, Pass::kMapsGradient, true, kMasked>()
                  : for_isa<A, kWindow, Pass::kMapsGradient, false, kMasked>();
  }
  return nullptr;
}

}  // namespace ssimfast::cpu
