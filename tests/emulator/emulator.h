// Runs CUDA kernels on the CPU, every thread a fiber, and checks what a GPU would not tell.
//
// Device code is compiled by a plain C++ compiler against this header in place of CUDA's. Its
// access functions (cuda/device.cuh beside this file) call the hooks below before each access to
// memory. launch() runs one block after another, or several alternately, and throws
// std::runtime_error at the first of
//   - a race: two threads use a word of shared memory, one of them writes it, and there is neither
//     a barrier of the block nor, within a warp, one of the warp between;
//   - shared memory out of the block's bounds, or read before anything was written there;
//   - a misaligned access, in shared or global memory;
//   - global memory that two threads write, or that is both read and written in one launch;
//   - a barrier or a shuffle that not all threads reach, or that they reach at different lines;
//   - a launch with more than 48 KiB of shared memory that its kernel was not allowed, or was
//     allowed by two different numbers: host threads would take it from each other.
// Bounds of global memory are AddressSanitizer's to check; fibers are announced to it.
//
// Shared memory is checked by words of 4 bytes: two threads that write two halves of one word are
// a race here and none on a GPU. So are two threads that write the same value, which is a race to
// CUDA too. A barrier of some lanes of a warp counts as one of all of it: a race with a lane that
// it left out may go unnoticed. The order in which threads run is always the same, and so are the
// reports.
//
// SSIMFAST_EMULATOR_OWN_TYPES leaves CUDA's headers aside where there are some, and
// SSIMFAST_EMULATOR_UCONTEXT switches fibers by ucontext, as on machines for which there is
// nothing faster below.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

// ---- what CUDA's headers give -------------------------------------------------------------------

#if __has_include(<cuda_fp16.h>) && __has_include(<cuda_bf16.h>) && \
    __has_include(<vector_functions.h>) && !defined(SSIMFAST_EMULATOR_OWN_TYPES)
#define __NV_NO_VECTOR_DEPRECATION_DIAG 1  // double4 is deprecated since CUDA 13
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wpedantic"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#pragma GCC diagnostic pop
#else

#define EMULATOR_VECTOR2(Name, T, Align) \
  struct alignas(Align) Name {           \
    T x, y;                              \
  };                                     \
  inline Name make_##Name(T x, T y) { return {x, y}; }
#define EMULATOR_VECTOR4(Name, T) \
  struct alignas(16) Name {       \
    T x, y, z, w;                 \
  };                              \
  inline Name make_##Name(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTOR2(float2, float, 8)
EMULATOR_VECTOR2(uint2, unsigned, 8)
EMULATOR_VECTOR2(double2, double, 16)
EMULATOR_VECTOR4(float4, float)
EMULATOR_VECTOR4(uint4, unsigned)
#undef EMULATOR_VECTOR2
#undef EMULATOR_VECTOR4

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16;
  const uint32_t exponent = h.bits >> 10 & 31, fraction = h.bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  // 2^-24 is the smallest number above 0, and each has its exact place among floats.
  const float magnitude = exponent == 0 ? std::ldexp(float(fraction), -24)
                                        : std::ldexp(float(fraction + 1024), int(exponent) - 25);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

inline __half __float2half_rn(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 rounds up to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, rounded by the addition
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return {uint16_t(sign | ((rounded - (112u << 23)) >> 13))};
}

inline float __bfloat162float(__nv_bfloat16 b) { return std::bit_cast<float>(b.bits << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(SSIMFAST_EMULATOR_UCONTEXT)
#define EMULATOR_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

#define EMULATOR_COLD __attribute__((noinline, cold))
#define EMULATOR_LIKELY(condition) __builtin_expect(bool(condition), 1)

// Hidden: each library that is loaded has an emulator of its own.
namespace [[gnu::visibility("hidden")]] emulator {

enum class Order { kFromEnvironment, kForward, kReverse };

struct Options {
  // Blocks that are alive at once and take turns at each barrier; 0: SSIMFAST_EMULATOR_BLOCKS, or 1
  // where that is not set.
  int interleaved_blocks = 0;
  // In which order the blocks of a launch and the threads of a block run; the environment variable
  // is SSIMFAST_EMULATOR_ORDER, "forward" or "reverse".
  Order order = Order::kFromEnvironment;
  bool check_global = true;          // else unique bytes are not counted either
  bool check_uninitialised = true;   // of shared memory
  size_t max_shared_bytes = 232448;  // a block's; of compute capability 9.0
};

constexpr size_t kSharedOfAnyKernel = 48 << 10;

struct Counters {
  int64_t launches = 0, blocks = 0, threads = 0;
  int64_t block_barriers = 0, warp_barriers = 0;  // once for all threads of the block or the warp
  int64_t global_bytes_read = 0, global_bytes_written = 0;  // as often as they were asked for
  int64_t unique_global_bytes_read = 0, unique_global_bytes_written = 0;  // once in each launch
  int64_t shared_words_read = 0, shared_words_written = 0;                // of 4 bytes

  Counters& operator+=(const Counters& c) {
    launches += c.launches, blocks += c.blocks, threads += c.threads;
    block_barriers += c.block_barriers, warp_barriers += c.warp_barriers;
    global_bytes_read += c.global_bytes_read, global_bytes_written += c.global_bytes_written;
    unique_global_bytes_read += c.unique_global_bytes_read;
    unique_global_bytes_written += c.unique_global_bytes_written;
    shared_words_read += c.shared_words_read, shared_words_written += c.shared_words_written;
    return *this;
  }
};

namespace detail {

constexpr int kWarpSize = 32;

// ---- fibers -------------------------------------------------------------------------------------

#if defined(EMULATOR_OWN_SWITCH)
struct Context {
  void* stack = nullptr;
  void* frame = nullptr;
  void* resume = nullptr;
};

// Registers that not every machine of the kind has.
#if defined(__AVX512F__)
#define EMULATOR_OTHER_REGISTERS                                                                \
  , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",   \
      "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5", \
      "k6", "k7"
#elif defined(__ARM_FEATURE_SVE)
#define EMULATOR_OTHER_REGISTERS                                                                   \
  , "x18", "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", \
      "p14", "p15"
#elif defined(__aarch64__) && !defined(__APPLE__)  // Apple keeps x18 to itself
#define EMULATOR_OTHER_REGISTERS , "x18"
#else
#define EMULATOR_OTHER_REGISTERS
#endif

// Goes on with `to`, and returns when something goes on with `from`. Three registers are kept here;
// the compiler keeps what it needs of the others, for it takes them all to be lost. Inlined, as is
// resume(), so that returns after it are those that the processor foresees: those of the same call
// in the thread before. Else a switch takes four times as long.
__attribute__((always_inline)) inline void switch_context(Context* from, Context* to) {
#if defined(__x86_64__)
  asm volatile(
      "movq %%rsp, 0(%0)\n\t"
      "movq %%rbp, 8(%0)\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rax, 16(%0)\n\t"
      "movq 0(%1), %%rsp\n\t"
      "movq 8(%1), %%rbp\n\t"
      "jmpq *16(%1)\n"
      "1:"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc" EMULATOR_OTHER_REGISTERS);
#else
  register Context* leave asm("x0") = from;
  register Context* enter asm("x1") = to;
  asm volatile(
      "mov x9, sp\n\t"
      "str x9, [%0]\n\t"
      "str x29, [%0, #8]\n\t"
      "adr x9, 1f\n\t"
      "str x9, [%0, #16]\n\t"
      "ldr x9, [%1]\n\t"
      "mov sp, x9\n\t"
      "ldr x29, [%1, #8]\n\t"
      "ldr x9, [%1, #16]\n\t"
      "br x9\n"
      "1:"
      : "+r"(leave), "+r"(enter)
      :
      : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
        "x16", "x17", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x30",
        "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13",
        "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",
        "v27", "v28", "v29", "v30", "v31", "memory", "cc" EMULATOR_OTHER_REGISTERS);
#endif
}

inline void prepare_context(Context& context, char* bottom, size_t size, void (*entry)()) {
  uintptr_t top = reinterpret_cast<uintptr_t>(bottom + size) / 16 * 16;
#if defined(__x86_64__)
  top -= 8;  // as after a call, whose return address is 0: here the stack ends
  *reinterpret_cast<void**>(top) = nullptr;
#endif
  context = {reinterpret_cast<void*>(top), nullptr, reinterpret_cast<void*>(entry)};
}
#else
using Context = ucontext_t;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void prepare_context(Context& context, char* bottom, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = bottom;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// The stack of a fiber; what overflows it hits a page that nobody may touch.
class Stack {
 public:
  Stack() {
    guard = size_t(sysconf(_SC_PAGESIZE));
    void* const mapped =
        mmap(nullptr, guard + kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapped, guard, PROT_NONE);
    memory = static_cast<char*>(mapped);
  }
  ~Stack() { munmap(memory, guard + kSize); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  char* bottom() const { return memory + guard; }

#if defined(EMULATOR_ASAN)
  static constexpr size_t kSize = 512 << 10;  // instrumented frames are large
#else
  static constexpr size_t kSize = 128 << 10;
#endif

 private:
  size_t guard;
  char* memory;
};

struct Fiber {
  Context context;
  std::unique_ptr<Stack> stack;  // null: the one that called launch()
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's

  // `colour` keeps the hot ends of the stacks from sharing few sets of the cache.
  void prepare(int colour, void (*entry)()) {
    if (!stack) stack = std::make_unique<Stack>();
    bottom = stack->bottom();
    size = Stack::kSize - size_t(colour % 32) * 320;
    fake_stack = nullptr;
#if defined(EMULATOR_ASAN)
    // The frame of fiber_main, which never returns. All others did, or an exception went by.
    constexpr size_t kEnd = 16 << 10;
    __asan_unpoison_memory_region(stack->bottom() + size - kEnd, kEnd);
#endif
    prepare_context(context, stack->bottom(), size, entry);
  }
};

// First thing in a fiber; `from` is the one that started it.
inline void arrived_first([[maybe_unused]] Fiber& from) {
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
}

inline void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good = false) {
#if defined(EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
  switch_context(&from.context, &to.context);
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// ---- a launch's threads and their memory --------------------------------------------------------

// Where a thread waits: the call, and the line it stands in.
class Site {
 public:
  Site() = default;
  Site(const char* call, const char* file, int line) : call(call), file(file), line(line) {}

  const char* call = nullptr;
  const char* file = nullptr;
  int line = 0;

  bool operator==(const Site& other) const {
    return line == other.line && same(call, other.call) && same(file, other.file);
  }

 private:
  static bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
};

enum class State { kNew, kReady, kAtBlockBarrier, kAtWarpBarrier, kFinished };

// Time is counted in barriers: `clock` grows by 1 at each, and what happens between two barriers of
// a warp (or of the block, which is one of all its warps) happens at one time. Two accesses are
// ordered if one of these barriers lies between them.
struct Warp {
  uint32_t now = 0;      // of the last barrier
  unsigned lanes = 0;    // that the block has
  unsigned waiting = 0;  // lanes
  int first = 0;         // its first thread
};

struct Thread {
  Fiber fiber;
  State state = State::kNew;
  int id = 0, lane = 0;  // in the block, in the warp
  uint3 index{};
  Warp* warp = nullptr;
  uint32_t in_launch = 0;
  Site site;           // of the last barrier
  unsigned mask = 0;   // of the last warp barrier
  int source = 0;      // lane that a shuffle reads
  uint64_t value = 0;  // what a shuffle gives, and then what it gets
};

constexpr int16_t kNone = -1;

// What happened to a word of shared memory. Of its readers since the last barrier of the block it
// is enough to know the lanes of one warp that read since that warp's last barrier, and one thread
// of another warp: whoever writes is in another warp than one of the two.
struct Word {
  uint32_t written_at = 0, read_at = 0;
  uint32_t reader_lanes = 0;
  int16_t writer = kNone, reader_warp = kNone, other_reader = kNone;
};

struct FreeDeleter {
  void operator()(char* p) const { std::free(p); }
};

// Memory of a block, an allocation of its own so that AddressSanitizer guards its ends.
struct SharedMemory {
  std::unique_ptr<char, FreeDeleter> data;
  size_t size = 0;
  std::vector<Word> words;  // stale ones are older than the block

  void allocate(size_t bytes) {
    if (!data || size != bytes)
      data.reset(static_cast<char*>(std::malloc(std::max(bytes, size_t{1}))));
    if (!data) throw std::bad_alloc();
    size = bytes;
    if (words.size() < (bytes + 3) / 4) words.resize((bytes + 3) / 4);
  }
  void poison() const { std::memset(data.get(), 0xff, size); }
};

struct Block {
  uint3 index{};
  std::vector<Thread> threads;  // at least `count`
  std::vector<Warp> warps;
  int count = 0;
  SharedMemory dynamic;
  uint32_t start = 0, last_barrier = 0;  // times
  int waiting = 0, finished = 0;
};

// Thrown through a thread that another one's error ends.
struct Cancelled {};

// Which bytes of global memory were read and written in this launch, and by which threads, two
// bytes at a time.
class GlobalMemory {
 public:
  static constexpr size_t kGranule = 2, kPageBytes = 4096, kGroupBytes = 64 * kGranule;

  struct Page {
    uintptr_t number;
    uint64_t read[kPageBytes / kGroupBytes], written[kPageBytes / kGroupBytes];
    uint64_t kept[kPageBytes / kGroupBytes];  // read by one thread, which may write there
    uint32_t owner[kPageBytes / kGranule];    // who wrote or keeps it
  };

  // Calls visit(page, group, mask of granules) for each group of 64 granules that the bytes touch.
  template <class Visit>
  void for_groups(uintptr_t address, size_t bytes, Visit&& visit) {
    while (bytes > 0) {
      const size_t offset = address % kGroupBytes;
      const size_t here = std::min(bytes, kGroupBytes - offset);
      const size_t first = offset / kGranule, end = (offset + here + kGranule - 1) / kGranule;
      const uint64_t mask = (~uint64_t{0} >> (64 - (end - first))) << first;
      visit(page(address / kPageBytes), address % kPageBytes / kGroupBytes, mask);
      address += here;
      bytes -= here;
    }
  }

  void clear() {
    used = 0;
    pages.clear();
    std::fill(std::begin(recent), std::end(recent), nullptr);
  }

 private:
  static constexpr size_t kRecent = 512;

  Page& page(uintptr_t number) {
    Page*& page = recent[number % kRecent];
    if (!EMULATOR_LIKELY(page != nullptr && page->number == number)) page = &look_up(number);
    return *page;
  }
  EMULATOR_COLD Page& look_up(uintptr_t number) {
    Page*& page = pages[number];
    if (page == nullptr) {
      if (used == pool.size()) pool.push_back(std::make_unique<Page>());
      page = pool[used++].get();
      *page = Page{};
      page->number = number;
    }
    return *page;
  }

  Page* recent[kRecent] = {};
  std::unordered_map<uintptr_t, Page*> pages;
  std::vector<std::unique_ptr<Page>> pool;
  size_t used = 0;
};

struct Machine {
  std::mutex mutex;  // one launch at a time
  Options options;
  Counters total, last;

  // Of the launch that is running:
  void (*body)(void*) = nullptr;  // the kernel with its arguments
  void* body_data = nullptr;
  Thread* thread = nullptr;  // that is running
  Block* block = nullptr;
  Fiber scheduler;
  std::exception_ptr error;
  bool cancelling = false;
  bool check_global = true, check_uninitialised = true;
  uint32_t clock = 0;
  int threads_per_block = 0;
  GlobalMemory global;
  std::vector<std::unique_ptr<Block>> blocks;  // alive, or waiting to be used again
};

inline Machine machine;

}  // namespace detail
}  // namespace emulator

[[gnu::visibility("hidden")]] inline uint3 threadIdx{}, blockIdx{};
[[gnu::visibility("hidden")]] inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace [[gnu::visibility("hidden")]] emulator {
namespace detail {

// ---- reports ------------------------------------------------------------------------------------

template <class... Parts>
EMULATOR_COLD std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

inline std::string name(const uint3& i) { return text("(", i.x, ", ", i.y, ", ", i.z, ")"); }
inline std::string name(const Site& site) {
  return text(site.call, " (", site.file, ":", site.line, ")");
}

// A thread by its number in the launch.
inline std::string name_in_launch(uint32_t id) {
  return text("thread ", id % machine.threads_per_block, " of block ",
              id / machine.threads_per_block);
}

template <class... Parts>
[[noreturn]] EMULATOR_COLD void fail(const Parts&... parts) {
  std::string where;
  if (machine.block != nullptr) where = text("; block ", name(machine.block->index));
  if (machine.thread != nullptr) {
    const Site& site = machine.thread->site;
    where += text(", thread ", machine.thread->id, " after ",
                  site.call == nullptr ? "the kernel's start" : name(site));
  }
  throw std::runtime_error(text("emulator: ", parts..., where));
}

[[noreturn]] EMULATOR_COLD inline void fail_race(size_t offset, bool writes, int other,
                                                 bool other_wrote) {
  fail("race on shared memory: thread ", machine.thread->id, writes ? " writes" : " reads",
       " word ", offset / 4, " (byte ", offset, "), which thread ", other,
       other_wrote ? " wrote" : " read", ", with no barrier between");
}

// ---- accesses -----------------------------------------------------------------------------------

inline void check_thread() {
  if (!EMULATOR_LIKELY(machine.thread != nullptr))
    fail("device memory is used outside a kernel: none is running");
}

// Vectors lie at multiples of their size, up to 16 bytes.
inline void check_alignment(uintptr_t address, size_t size, const char* memory, const char* verb) {
  const size_t alignment = std::min(size & -size, size_t{16});
  if (!EMULATOR_LIKELY(address % alignment == 0))
    fail("misaligned access to ", memory, " memory: thread ", machine.thread->id, " ", verb, " ",
         size, " bytes at address 0x", std::hex, address, std::dec, ", ", address % alignment,
         " past a multiple of ", alignment);
}

EMULATOR_COLD inline void fail_out_of_bounds(uintptr_t address, size_t size, const char* verb) {
  const SharedMemory& dynamic = machine.block->dynamic;
  const auto first = reinterpret_cast<uintptr_t>(dynamic.data.get());
  fail("shared memory out of bounds: thread ", machine.thread->id, " ", verb, " ", size,
       " bytes at byte ", int64_t(address - first), " of ", dynamic.size);
}

inline SharedMemory& find_shared(uintptr_t address, size_t size, const char* verb) {
  SharedMemory& dynamic = machine.block->dynamic;
  const size_t offset = address - reinterpret_cast<uintptr_t>(dynamic.data.get());
  if (!EMULATOR_LIKELY(offset < dynamic.size && size <= dynamic.size - offset))
    fail_out_of_bounds(address, size, verb);
  return dynamic;
}

// Whether the thread's access now is unordered with the last write of another.
inline bool unordered_write(const Word& word, const Thread& me) {
  return word.written_at >= machine.block->last_barrier && word.writer != me.id &&
         (word.writer / kWarpSize != me.id / kWarpSize || word.written_at >= me.warp->now);
}

inline void read_word(Word& word, size_t offset) {
  const Thread& me = *machine.thread;
  const Block& block = *machine.block;
  if (!EMULATOR_LIKELY(word.written_at >= block.start) && machine.check_uninitialised)
    fail("uninitialised shared memory read: thread ", me.id, " reads word ", offset / 4, " (byte ",
         offset, "), which no thread has written so far");
  if (!EMULATOR_LIKELY(!unordered_write(word, me))) fail_race(offset, false, word.writer, true);
  const int16_t warp = int16_t(me.id / kWarpSize);
  const uint32_t lane = 1u << me.lane, now = me.warp->now;
  if (word.read_at < block.last_barrier) {
    word.reader_warp = warp;
    word.other_reader = kNone;
    word.reader_lanes = lane;
  } else if (word.reader_warp != warp) {
    word.other_reader = int16_t(me.id);
    return;
  } else {
    word.reader_lanes = word.read_at < now ? lane : word.reader_lanes | lane;
  }
  word.read_at = now;
}

inline void write_word(Word& word, size_t offset) {
  const Thread& me = *machine.thread;
  if (!EMULATOR_LIKELY(!unordered_write(word, me))) fail_race(offset, true, word.writer, true);
  if (word.read_at >= machine.block->last_barrier) {
    int reader = kNone;
    const uint32_t others = word.reader_lanes & ~(1u << me.lane);
    if (word.reader_warp != me.id / kWarpSize) {
      reader = word.reader_warp * kWarpSize + std::countr_zero(word.reader_lanes);
    } else if (word.other_reader != kNone) {
      reader = word.other_reader;
    } else if (others != 0 && word.read_at >= me.warp->now) {
      reader = word.reader_warp * kWarpSize + std::countr_zero(others);
    }
    if (!EMULATOR_LIKELY(reader == kNone)) fail_race(offset, true, reader, false);
  }
  word.written_at = me.warp->now;
  word.writer = int16_t(me.id);
}

// Global memory is neither the block's shared memory nor address 0.
inline void check_global_address(uintptr_t address, const char* verb) {
  const SharedMemory& dynamic = machine.block->dynamic;
  if (!EMULATOR_LIKELY(address >= 4096))
    fail("null pointer: thread ", machine.thread->id, " ", verb, " global memory at address ",
         address);
  if (!EMULATOR_LIKELY(address - reinterpret_cast<uintptr_t>(dynamic.data.get()) >= dynamic.size))
    fail("shared memory used as global memory: thread ", machine.thread->id, " ", verb, " byte ",
         address - reinterpret_cast<uintptr_t>(dynamic.data.get()));
}

inline uintptr_t check_global_access(const void* pointer, size_t size, const char* verb) {
  check_thread();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  check_global_address(address, verb);
  check_alignment(address, size, "global", verb);
  return address;
}

[[noreturn]] EMULATOR_COLD inline void fail_read_of_written(const GlobalMemory::Page& page,
                                                            size_t group, uint64_t granules) {
  const size_t granule = group * 64 + std::countr_zero(granules);
  fail("global memory read that this launch has written: ",
       name_in_launch(machine.thread->in_launch), " reads address 0x", std::hex,
       page.number * GlobalMemory::kPageBytes + granule * GlobalMemory::kGranule, std::dec,
       ", which ", name_in_launch(page.owner[granule]), " wrote");
}

[[noreturn]] EMULATOR_COLD inline void fail_global_write(const GlobalMemory::Page& page,
                                                         size_t granule, bool was_read) {
  const std::string address = text(
      "0x", std::hex, page.number * GlobalMemory::kPageBytes + granule * GlobalMemory::kGranule);
  if (was_read)
    fail("global memory written that this launch has read: ",
         name_in_launch(machine.thread->in_launch), " writes address ", address);
  fail("two threads write the same global address: ", name_in_launch(page.owner[granule]), " and ",
       name_in_launch(machine.thread->in_launch), ", address ", address);
}

}  // namespace detail

// Before each access of device code.
inline void global_read(const void* from, size_t size) {
  detail::Machine& machine = detail::machine;
  const uintptr_t address = detail::check_global_access(from, size, "reads");
  machine.last.global_bytes_read += int64_t(size);
  if (!machine.check_global) return;
  machine.global.for_groups(address, size,
                            [&](detail::GlobalMemory::Page& page, size_t group, uint64_t mask) {
                              const uint64_t written = page.written[group] & mask;
                              const uint64_t fresh = mask & ~(page.read[group] | page.kept[group]);
                              if (!EMULATOR_LIKELY(written == 0))
                                detail::fail_read_of_written(page, group, written);
                              page.read[group] |= mask;
                              machine.last.unique_global_bytes_read += 2 * std::popcount(fresh);
                            });
}

// The same, of what the same thread, and no other, may write to afterwards.
inline void global_read_own(const void* from, size_t size) {
  detail::Machine& machine = detail::machine;
  const uintptr_t address = detail::check_global_access(from, size, "reads");
  machine.last.global_bytes_read += int64_t(size);
  if (!machine.check_global) return;
  const uint32_t me = machine.thread->in_launch;
  machine.global.for_groups(
      address, size, [&](detail::GlobalMemory::Page& page, size_t group, uint64_t mask) {
        const uint64_t fresh = mask & ~(page.read[group] | page.kept[group] | page.written[group]);
        for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
          const size_t bit = size_t(std::countr_zero(rest)), granule = group * 64 + bit;
          const uint64_t one = uint64_t{1} << bit;
          const bool written = (page.written[group] & one) != 0;
          if ((written || (page.kept[group] & one)) && page.owner[granule] != me) {
            if (written) detail::fail_read_of_written(page, group, one);
            page.read[group] |= one;  // by two threads: nobody may write there
          }
          page.owner[granule] = me;
        }
        page.kept[group] |= mask;
        machine.last.unique_global_bytes_read += 2 * std::popcount(fresh);
      });
}

inline void global_write(void* to, size_t size) {
  detail::Machine& machine = detail::machine;
  const uintptr_t address = detail::check_global_access(to, size, "writes");
  machine.last.global_bytes_written += int64_t(size);
  if (!machine.check_global) return;
  const uint32_t me = machine.thread->in_launch;
  machine.global.for_groups(
      address, size, [&](detail::GlobalMemory::Page& page, size_t group, uint64_t mask) {
        const uint64_t fresh = mask & ~page.written[group];
        for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
          const size_t bit = size_t(std::countr_zero(rest)), granule = group * 64 + bit;
          const bool is_mine = page.owner[granule] == me;
          const bool was_written = page.written[group] >> bit & 1;
          const bool was_read = (page.read[group] >> bit & 1) ||
                                (!was_written && !is_mine && (page.kept[group] >> bit & 1));
          if (!EMULATOR_LIKELY(!was_read && (is_mine || !was_written)))
            detail::fail_global_write(page, granule, was_read);
          page.owner[granule] = me;
        }
        page.written[group] |= mask;
        machine.last.unique_global_bytes_written += 2 * std::popcount(fresh);
      });
}

inline void shared_read(const void* from, size_t size) {
  detail::check_thread();
  const auto address = reinterpret_cast<uintptr_t>(from);
  auto& memory = detail::find_shared(address, size, "reads");
  detail::check_alignment(address, size, "shared", "reads");
  const size_t first = address - reinterpret_cast<uintptr_t>(memory.data.get());
  const size_t begin = first / 4, end = (first + size + 3) / 4;
  for (size_t i = begin; i < end; ++i) detail::read_word(memory.words[i], 4 * i);
  detail::machine.last.shared_words_read += int64_t(end - begin);
}

inline void shared_write(void* to, size_t size) {
  detail::check_thread();
  const auto address = reinterpret_cast<uintptr_t>(to);
  auto& memory = detail::find_shared(address, size, "writes");
  detail::check_alignment(address, size, "shared", "writes");
  const size_t first = address - reinterpret_cast<uintptr_t>(memory.data.get());
  const size_t begin = first / 4, end = (first + size + 3) / 4;
  for (size_t i = begin; i < end; ++i) detail::write_word(memory.words[i], 4 * i);
  detail::machine.last.shared_words_written += int64_t(end - begin);
}

// The dynamic shared memory of the block: as many bytes as the launch asked for, NaN at first.
inline void* dynamic_shared() {
  detail::check_thread();
  return detail::machine.block->dynamic.data.get();
}

// Fills memory with NaN, whichever its dtype: what a kernel leaves out then shows.
inline void poison(void* memory, size_t bytes) { std::memset(memory, 0xff, bytes); }

// 1 / v as the GPU's rcp.approx.ftz gives it: exact for powers of two, for other numbers one of the
// two floats next to the truth, not always the nearer one; no denormals come in or out.
inline float approximate_reciprocal(float v) {
  constexpr float kSmallest = 0x1p-126f;
  if (std::isnan(v)) return v;
  if (std::fabs(v) < kSmallest) return std::copysign(INFINITY, v);
  const double truth = 1.0 / double(v);
  if (std::fabs(truth) < double(kSmallest)) return std::copysign(0.0f, v);
  const float nearest = float(truth);
  const uint32_t hash = std::bit_cast<uint32_t>(v) * 0x9e3779b1u;
  if (double(nearest) == truth || hash >> 31 == 0) return nearest;
  const float beyond = double(nearest) < truth ? INFINITY : -INFINITY;
  const float other = std::nextafter(nearest, beyond);
  return std::fabs(other) < kSmallest ? nearest : other;
}

inline Options& options() { return detail::machine.options; }

// Of all launches since the last reset, and of the last launch alone; both while none is running.
inline const Counters& counters() { return detail::machine.total; }
inline const Counters& last_launch() { return detail::machine.last; }
inline void reset_counters() { detail::machine.total = detail::machine.last = Counters{}; }

namespace detail {

// ---- barriers -----------------------------------------------------------------------------------

// Lets others run until this thread is ready.
__attribute__((noinline)) inline void wait(State state) {
  Thread& me = *machine.thread;
  me.state = state;
  if (!machine.cancelling) switch_fiber(me.fiber, machine.scheduler);
  if (machine.cancelling) throw Cancelled{};
}

inline void block_barrier(const Site& site) {
  check_thread();
  machine.thread->site = site;
  ++machine.block->waiting;
  wait(State::kAtBlockBarrier);
}

inline Thread& lane_of(const Warp& warp, int lane) {
  return machine.block->threads[size_t(warp.first + lane)];
}

// All lanes of the mask have come: hands out what they exchange.
inline void finish_warp_barrier(Warp& warp, const Thread& last, unsigned lanes) {
  uint64_t values[kWarpSize];
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& thread = lane_of(warp, std::countr_zero(rest));
    if (!(thread.site == last.site) || thread.mask != last.mask)
      fail("different barriers of a warp: thread ", thread.id, " waits at ", name(thread.site),
           ", thread ", last.id, " at ", name(last.site), ", with masks 0x", std::hex, thread.mask,
           " and 0x", last.mask, std::dec);
    values[thread.lane] = thread.value;
  }
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& thread = lane_of(warp, std::countr_zero(rest));
    const unsigned source = 1u << thread.source;
    if ((warp.lanes & source) != 0 && (lanes & source) == 0)
      fail("shuffle reads a lane that takes no part: thread ", thread.id, " at ", name(thread.site),
           " reads lane ", thread.source, ", the mask is 0x", std::hex, thread.mask, std::dec);
    // A lane that the block does not have gives NaN.
    thread.value = (lanes & source) != 0 ? values[thread.source] : ~uint64_t{0};
    thread.state = State::kReady;
  }
  warp.waiting &= ~lanes;
  warp.now = ++machine.clock;
  ++machine.last.warp_barriers;
}

constexpr int kOwnLane = -1;

// Every lane gives a value and gets that of lane `source`.
inline uint64_t warp_barrier(const Site& site, unsigned mask, uint64_t value, int source) {
  check_thread();
  Thread& me = *machine.thread;
  Warp& warp = *me.warp;
  me.site = site;
  me.mask = mask;
  me.value = value;
  me.source = source == kOwnLane ? me.lane : source;
  const unsigned lane = 1u << me.lane, lanes = mask & warp.lanes;
  if ((mask & lane) == 0)
    fail("mask without the lane itself: thread ", me.id, " is lane ", me.lane, ", the mask is 0x",
         std::hex, mask, std::dec);
  warp.waiting |= lane;
  if ((lanes & ~warp.waiting) != 0) {
    wait(State::kAtWarpBarrier);
  } else {
    finish_warp_barrier(warp, me, lanes);
  }
  return me.value;
}

template <class T>
T shuffle(const Site& site, unsigned mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_barrier(site, mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The first lane of this one's segment.
inline int segment(int width, int& lane) {
  check_thread();
  if (width < 1 || width > kWarpSize || !std::has_single_bit(unsigned(width)))
    fail("a shuffle's width must be a power of two up to 32, not ", width);
  lane = machine.thread->lane;
  return lane / width * width;
}

// ---- running blocks -----------------------------------------------------------------------------

[[noreturn]] inline void fiber_main() {
  arrived_first(machine.scheduler);
  Thread& me = *machine.thread;
  try {
    machine.body(machine.body_data);
  } catch (const Cancelled&) {
  } catch (...) {
    if (!machine.error) machine.error = std::current_exception();
  }
  me.state = State::kFinished;
  ++machine.block->finished;
  switch_fiber(me.fiber, machine.scheduler, true);
  std::abort();  // nobody goes on with a thread that has finished
}

__attribute__((always_inline)) inline void resume(Thread& thread) {
  if (thread.state == State::kNew) thread.fiber.prepare(thread.id, fiber_main);
  thread.state = State::kReady;
  machine.thread = &thread;
  threadIdx = thread.index;
  switch_fiber(machine.scheduler, thread.fiber);
  machine.thread = nullptr;
}

// No thread can go on, and not all wait at one barrier.
[[noreturn]] EMULATOR_COLD inline void fail_deadlock(const Block& block) {
  const Thread* const threads = block.threads.data();
  for (int i = 0; i < block.count; ++i) {
    const Thread& waiting = threads[i];
    if (waiting.state != State::kAtWarpBarrier) continue;
    for (unsigned rest = waiting.mask & waiting.warp->lanes; rest != 0; rest &= rest - 1) {
      const Thread& other = lane_of(*waiting.warp, std::countr_zero(rest));
      if (other.state == State::kAtWarpBarrier && other.site == waiting.site &&
          other.mask == waiting.mask)
        continue;
      fail("divergent warp barrier: thread ", waiting.id, " waits at ", name(waiting.site),
           " with mask 0x", std::hex, waiting.mask, std::dec, ", thread ", other.id,
           other.state == State::kFinished ? " has left the kernel"
                                           : text(" waits at ", name(other.site)));
    }
  }
  const auto find = [&](State state) -> const Thread& {
    return *std::find_if(threads, threads + block.count,
                         [&](const Thread& thread) { return thread.state == state; });
  };
  const Thread &waiting = find(State::kAtBlockBarrier), &left = find(State::kFinished);
  fail("divergent barrier: thread ", left.id, " has left the kernel, thread ", waiting.id,
       " waits at ", name(waiting.site));
}

inline void open_block_barrier(Block& block) {
  Thread* const threads = block.threads.data();
  for (int i = 0; i < block.count; ++i) {
    if (!(threads[i].site == threads[0].site))
      fail("different barriers of a block: thread 0 waits at ", name(threads[0].site), ", thread ",
           i, " at ", name(threads[i].site));
    threads[i].state = State::kReady;
  }
  block.waiting = 0;
  block.last_barrier = ++machine.clock;
  for (Warp& warp : block.warps) warp.now = block.last_barrier;
  ++machine.last.block_barriers;
}

// Whether a lane of the warp could run; they run until all of them wait for others.
inline bool run_warp(Block& block, const Warp& warp, bool reverse) {
  const int lanes = std::popcount(warp.lanes);
  bool ran = false;
  for (int i = 0; i < lanes; ++i) {
    Thread& thread = block.threads[size_t(warp.first + (reverse ? lanes - 1 - i : i))];
    if (thread.state > State::kReady) continue;
    resume(thread);
    if (machine.error) std::rethrow_exception(machine.error);
    ran = true;
  }
  return ran;
}

// Runs the block up to its next barrier or, and then it is true, up to its end.
inline bool run_block(Block& block, bool reverse) {
  machine.block = &block;
  blockIdx = block.index;
  const size_t warps = block.warps.size();
  for (size_t i = 0; i < warps; ++i) {
    while (run_warp(block, block.warps[reverse ? warps - 1 - i : i], reverse)) {
    }
  }
  if (block.finished == block.count) return true;
  if (block.waiting != block.count) fail_deadlock(block);
  open_block_barrier(block);
  return false;
}

inline void start_block(Block& block, int64_t number, size_t shared_bytes) {
  const auto position = [](int64_t i, const dim3& size) {
    return uint3{unsigned(i % size.x), unsigned(i / size.x % size.y),
                 unsigned(i / size.x / size.y)};
  };
  block.index = position(number, gridDim);
  block.count = machine.threads_per_block;
  block.waiting = block.finished = 0;
  block.start = block.last_barrier = ++machine.clock;
  block.dynamic.allocate(shared_bytes);
  block.dynamic.poison();
  block.warps.assign(size_t(block.count + kWarpSize - 1) / kWarpSize, Warp{});
  if (block.threads.size() < size_t(block.count)) block.threads.resize(size_t(block.count));
  for (int i = 0; i < block.count; ++i) {
    Thread& thread = block.threads[size_t(i)];
    thread.state = State::kNew;
    thread.id = i;
    thread.lane = i % kWarpSize;
    thread.index = position(i, blockDim);
    thread.warp = &block.warps[size_t(i / kWarpSize)];
    thread.in_launch = uint32_t(number * block.count + i);
    thread.site = Site{};
    thread.warp->now = block.start;
    thread.warp->lanes |= 1u << thread.lane;
    thread.warp->first = i / kWarpSize * kWarpSize;
  }
  ++machine.last.blocks;
  machine.last.threads += block.count;
}

// Ends the threads that have begun, after an error of one of them.
inline void cancel(Block& block) {
  machine.block = &block;
  for (int i = 0; i < block.count; ++i) {
    Thread& thread = block.threads[size_t(i)];
    if (thread.state != State::kNew && thread.state != State::kFinished) resume(thread);
  }
}

inline int blocks_at_once() {
  if (machine.options.interleaved_blocks > 0) return machine.options.interleaved_blocks;
  const char* const variable = std::getenv("SSIMFAST_EMULATOR_BLOCKS");
  if (variable == nullptr || *variable == '\0') return 1;
  const int number = std::atoi(variable);
  if (number < 1) fail("SSIMFAST_EMULATOR_BLOCKS must be a number from 1 on, not ", variable);
  return number;
}

inline bool in_reverse() {
  if (machine.options.order != Order::kFromEnvironment)
    return machine.options.order == Order::kReverse;
  const char* const variable = std::getenv("SSIMFAST_EMULATOR_ORDER");
  const std::string order = variable == nullptr ? "" : variable;
  if (order != "" && order != "forward" && order != "reverse")
    fail("SSIMFAST_EMULATOR_ORDER must be forward or reverse, not ", order);
  return order == "reverse";
}

inline void check_launch(size_t shared_bytes) {
  const int64_t threads = int64_t{blockDim.x} * blockDim.y * blockDim.z;
  if (threads < 1 || threads > 1024 || blockDim.z > 64)
    fail("a block has 1 to 1024 threads, not ", threads);
  if (gridDim.x < 1 || gridDim.x > 0x7fffffffu || gridDim.y < 1 || gridDim.y > 65535 ||
      gridDim.z < 1 || gridDim.z > 65535)
    fail("no such grid: ", gridDim.x, " x ", gridDim.y, " x ", gridDim.z, " blocks");
  if (shared_bytes > machine.options.max_shared_bytes)
    fail("too much shared memory: ", shared_bytes, " bytes");
  if (shared_bytes > kSharedOfAnyKernel)
    fail("more shared memory than a kernel is allowed: ", shared_bytes, " of ", kSharedOfAnyKernel,
         " bytes");
}

inline void run_blocks(size_t shared_bytes) {
  const int64_t total = int64_t{gridDim.x} * gridDim.y * gridDim.z;
  const size_t at_once = size_t(std::min<int64_t>(blocks_at_once(), total));
  const bool reverse = in_reverse();
  while (machine.blocks.size() < at_once) machine.blocks.push_back(std::make_unique<Block>());
  std::vector<Block*> idle, alive;
  for (size_t i = at_once; i-- > 0;) idle.push_back(machine.blocks[i].get());
  for (int64_t next = 0; next < total || !alive.empty();) {
    for (; !idle.empty() && next < total; ++next, idle.pop_back()) {
      start_block(*idle.back(), reverse ? total - 1 - next : next, shared_bytes);
      alive.push_back(idle.back());
    }
    std::erase_if(alive, [&](Block* block) {
      const bool ended = run_block(*block, reverse);
      if (ended) idle.push_back(block);
      return ended;
    });
  }
}

inline void run(void (*body)(void*), void* data, const dim3& blocks, const dim3& threads,
                size_t shared_bytes) {
  const std::lock_guard lock(machine.mutex);
  gridDim = blocks;
  blockDim = threads;
  machine.body = body;
  machine.body_data = data;
  machine.last = Counters{};
  machine.error = nullptr;
  machine.cancelling = false;
  machine.check_global = machine.options.check_global;
  machine.check_uninitialised = machine.options.check_uninitialised;
  machine.global.clear();
  const auto end = [] {
    machine.thread = nullptr;
    machine.block = nullptr;
    machine.error = nullptr;
    machine.cancelling = false;
    machine.total += machine.last;
  };
  try {
    check_launch(shared_bytes);
    machine.threads_per_block = int(threads.x * threads.y * threads.z);
    machine.last.launches = 1;
    for (const auto& block : machine.blocks) block->count = 0;
    if (machine.clock > 1u << 31) {  // before it wraps around, forget what words remember
      machine.clock = 0;
      machine.blocks.clear();
    }
    run_blocks(shared_bytes);
  } catch (...) {
    machine.thread = nullptr;
    machine.cancelling = true;
    for (const auto& block : machine.blocks) cancel(*block);
    end();
    throw;
  }
  end();
}

}  // namespace detail

// ---- launches -----------------------------------------------------------------------------------

struct Blocks : dim3 {
  Blocks(const dim3& blocks) : dim3(blocks) {}
  template <class Integer, class = std::enable_if_t<std::is_integral_v<Integer>>>
  Blocks(Integer blocks)
      : dim3(int64_t(blocks) < 0 || int64_t(blocks) > 0x7fffffff ? 0 : unsigned(blocks)) {}
};

// kernel<<<blocks, threads, shared_bytes>>>(arguments...), to its end.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Blocks blocks, dim3 threads, size_t shared_bytes,
            Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "parameters are copied to the GPU byte by byte, none by reference");
  static_assert((sizeof(Parameters) + ... + 0) <= 32764, "parameters have room for 32764 bytes");
  std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  auto body = [&] { std::apply(kernel, std::as_const(parameters)); };
  detail::run([](void* data) { (*static_cast<decltype(body)*>(data))(); }, &body, blocks, threads,
              shared_bytes);
}

}  // namespace emulator

// ---- CUDA's functions ---------------------------------------------------------------------------

template <class T>
inline T __ldg(const T* from) {
  return *from;
}

inline void __syncthreads(int line = __builtin_LINE(), const char* file = __builtin_FILE()) {
  emulator::detail::block_barrier({"__syncthreads", file, line});
}

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE(),
                       const char* file = __builtin_FILE()) {
  emulator::detail::warp_barrier({"__syncwarp", file, line}, mask, 0, emulator::detail::kOwnLane);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, int line = __builtin_LINE(),
              const char* file = __builtin_FILE()) {
  int lane;
  const int first = emulator::detail::segment(width, lane);
  return emulator::detail::shuffle({"__shfl_sync", file, line}, mask, value,
                                   first + (source & (width - 1)));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  int line = __builtin_LINE(), const char* file = __builtin_FILE()) {
  int lane;
  const int first = emulator::detail::segment(width, lane);
  const unsigned source = unsigned(lane ^ lane_mask);
  return emulator::detail::shuffle({"__shfl_xor_sync", file, line}, mask, value,
                                   source < unsigned(first + width) ? int(source) : lane);
}
