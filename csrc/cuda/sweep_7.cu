#include "select.cuh"

namespace ssimfast::cuda {
template SweepKernel select_sweep<7>(Dtype, Pass, bool);
}
