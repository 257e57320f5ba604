#include "cpu/instances.h"

namespace ssimfast::cpu {
template RunTile<float> instance<float, 0, true>(Pass, bool);
template RunTile<double> instance<double, 0, true>(Pass, bool);
}  // namespace ssimfast::cpu
