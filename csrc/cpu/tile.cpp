// The fused kernel, compiled for each instruction set.
#include "cpu/tile.h"

#include <type_traits>

#include "cpu/isa.h"
#include "cpu/tile_gradient.h"

namespace ssimfast::cpu {
namespace {

template <class A, int kBytes>
using Vector = typename VectorOf<A, kBytes / int(sizeof(A))>::type;

template <class V, class A, int kWindow, Pass kPass, bool kBoth>
SSIMFAST_INLINE TileSums run(const Problem<A>& problem, const Images<A>& images, const Tile& tile,
                             int64_t pitch, A* workspace) {
  TileState<V, A, kWindow, kPass, kBoth> t(problem, images, tile, pitch, workspace);
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
template <class A, int kWindow, Pass kPass, bool kBoth>
TileSums run_baseline(const Problem<A>& problem, const Images<A>& images, const Tile& tile,
                      int64_t pitch, A* workspace) {
  return run<Vector<A, 16>, A, kWindow, kPass, kBoth>(problem, images, tile, pitch, workspace);
}

#if SSIMFAST_X86
template <class A, int kWindow, Pass kPass, bool kBoth>
SSIMFAST_TARGET_AVX2 TileSums run_avx2(const Problem<A>& problem, const Images<A>& images,
                                       const Tile& tile, int64_t pitch, A* workspace) {
  return run<Vector<A, 32>, A, kWindow, kPass, kBoth>(problem, images, tile, pitch, workspace);
}

template <class A, int kWindow, Pass kPass, bool kBoth>
SSIMFAST_TARGET_AVX512 TileSums run_avx512(const Problem<A>& problem, const Images<A>& images,
                                           const Tile& tile, int64_t pitch, A* workspace) {
  return run<Vector<A, 64>, A, kWindow, kPass, kBoth>(problem, images, tile, pitch, workspace);
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
    case Pass::kForward:
      return for_isa<A, kWindow, Pass::kForward, false>();
    case Pass::kGradient:
      return both ? for_isa<A, kWindow, Pass::kGradient, true>()
                  : for_isa<A, kWindow, Pass::kGradient, false>();
    case Pass::kMapsGradient:
      return both ? for_isa<A, kWindow, Pass::kMapsGradient, true>()
                  : for_isa<A, kWindow, Pass::kMapsGradient, false>();
  }
  return nullptr;
}

}  // namespace

// Only the most common window is unrolled, and only if its Gaussian is wide enough. float64 is not,
// because it serves gradcheck, which does not need speed.
template <class A>
RunTile<A> select_tile(const Problem<A>& problem) {
  const bool both = problem.gradients == 2;
  if constexpr (std::is_same_v<A, float>) {
    if (problem.window().size == 11 && problem.window().taps[5] < float(kLargestCentreTap))
      return for_pass<A, 11>(problem.pass, both);
  }
  return for_pass<A, 0>(problem.pass, both);
}

template RunTile<float> select_tile(const Problem<float>&);
template RunTile<double> select_tile(const Problem<double>&);

}  // namespace ssimfast::cpu
