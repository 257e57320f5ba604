#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_beside_bytes<11>(Dtype, Kind, bool);
template Fused select_masked<11>(Dtype, Dtype, Kind);
}  // namespace ssimfast::cuda
