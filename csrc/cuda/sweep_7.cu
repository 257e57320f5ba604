#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<7>(Dtype, Kind, bool);
template FusedLevels select_levels<7>(Kind);
}  // namespace ssimfast::cuda
