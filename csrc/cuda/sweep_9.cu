#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<9>(Dtype, Kind, bool);
template FusedLevels select_levels<9>(Kind);
}  // namespace ssimfast::cuda
