#include "select.cuh"

namespace ssimfast::cuda {
template Fused select_sweep<7>(Dtype, Pass, bool);
}
