// What the emulated kernels of a library have counted, for Python.
#include <cstdint>

#include "emulator.h"

extern "C" __attribute__((visibility("default"))) void emulated_counters(int64_t* out) {
  const emulator::Counters& c = emulator::counters();
  const int64_t all[] = {c.launches,
                         c.block_barriers,
                         c.global_bytes_read,
                         c.global_bytes_written,
                         c.unique_global_bytes_read,
                         c.unique_global_bytes_written,
                         c.shared_words_read,
                         c.shared_words_written};
  for (const int64_t count : all) *out++ = count;
}

extern "C" __attribute__((visibility("default"))) void emulated_reset_counters() {
  emulator::reset_counters();
}
