#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<11>(Dtype, Kind, bool);
}
