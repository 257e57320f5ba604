// Chooses the instance of the fused kernel for a problem.
#include "cpu/tile.h"

#include <type_traits>

namespace ssimfast::cpu {

// Instances are compiled in files of their own (instances.h).
template <class A, int kWindow, bool kMasked>
RunTile<A> instance(Pass pass, bool both);

// Only the most common window is unrolled, and only if its Gaussian is wide enough. float64 is not,
// because it serves gradcheck, which does not need speed.
template <class A>
RunTile<A> select_tile(const Problem<A>& problem) {
  const bool both = problem.gradients == 2, masked = problem.has_mask();
  if constexpr (std::is_same_v<A, float>) {
    if (problem.window().size == 11 && problem.window().taps[5] < float(kLargestCentreTap))
      return (masked ? instance<A, 11, true> : instance<A, 11, false>)(problem.pass, both);
  }
  return (masked ? instance<A, 0, true> : instance<A, 0, false>)(problem.pass, both);
}

template RunTile<float> select_tile(const Problem<float>&);
template RunTile<double> select_tile(const Problem<double>&);

}  // namespace ssimfast::cpu
