#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<9>(Dtype, Kind, bool);
}
