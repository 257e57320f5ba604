#include "cpu/instances.h"

namespace ssimfast::cpu {
template RunTile<float> instance<float, 11, false>(Pass, bool);
}  // namespace ssimfast::cpu
