#include "select.cuh"

namespace ssimfast::cuda {
template SweepKernel select_sweep<11>(Dtype, Pass, bool);
}
