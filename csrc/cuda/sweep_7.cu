#include "cuda/select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<7>(Dtype, Kind, bool);
}
