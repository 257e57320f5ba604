#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<11>(Dtype, Kind, bool);
template FusedLevels select_levels<11>(Kind);
}  // namespace ssimfast::cuda
