#include "select.cuh"

namespace ssimfast::cuda {
template SweepKernel select_sweep<9>(Dtype, Pass, bool);
}
