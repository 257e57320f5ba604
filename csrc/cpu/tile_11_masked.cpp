#include "cpu/instances.h"

namespace ssimfast::cpu {
template RunTile<float> instance<float, 11, true>(Pass, bool);
}  // namespace ssimfast::cpu
