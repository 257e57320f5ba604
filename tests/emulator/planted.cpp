// Kernels with planted bugs, which the emulator must find, and kernels without, which it must run.
//
//   planted CASE
//
// Exits with 0 if the case's values were right, 1 if they were not (or nothing was found), and 3 if
// the emulator stopped the kernel; its message is then printed.
#include <cstdio>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "cuda/image.cuh"

using ssimfast::cuda::from_lane;
using ssimfast::cuda::from_lane_xor;
using ssimfast::cuda::read;
using ssimfast::cuda::read_own;
using ssimfast::cuda::Shared;
using ssimfast::cuda::write;

namespace {

constexpr int kThreads = 64;

void expect(bool right, const char* what, int line = __builtin_LINE()) {
  if (right) return;
  std::cout << "wrong at line " << line << ": " << what << std::endl;
  std::exit(1);
}
#define EXPECT(condition) expect(condition, #condition)

template <class T>
SSIMFAST_DEVICE Shared<T> shared() {
  return Shared<T>::dynamic();
}

// ---- races --------------------------------------------------------------------------------------

// How two threads that share a word are kept apart.
enum class Between { kNothing, kWarpBarrier, kHalfAWarp, kShuffle, kBlockBarrier };

__device__ void separate(Between between) {
  if (between == Between::kWarpBarrier) __syncwarp();
  if (between == Between::kHalfAWarp) __syncwarp(threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u);
  if (between == Between::kShuffle) from_lane_xor(1, 1);
  if (between == Between::kBlockBarrier) __syncthreads();
}

// Reads what the thread `distance` further on wrote.
__global__ void read_after_write(float* to, int distance, Between between) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x);
  words.set(i, -1.0f);
  __syncthreads();
  words.set(i, float(i));
  separate(between);
  write(to + i, words[i ^ distance]);
}

// Every thread reads all words of the block, then one writes over one of them.
__global__ void write_after_read(float* to, int writer, Between between) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x), count = int(blockDim.x);
  words.set(i, float(i));
  __syncthreads();
  float sum = 0;
  for (int k = 0; k < count; ++k) sum += words[k];
  separate(between);
  if (i == writer) words.set(7, sum);
  write(to + i, sum);
}

// Only `reader` reads, whom the barriers of the writer's warp may or may not include.
__global__ void write_after_one_read(float* to, int reader, int writer, Between between) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x);
  if (i == 0) words.set(0, 1.0f);
  __syncthreads();
  float value = 0;
  if (i == reader) value = words[0];
  separate(between);
  if (i == writer) words.set(0, 2.0f);
  write(to + i, value);
}

__global__ void write_twice(int distance, Between between) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x);
  if (i == 0) words.set(0, 1.0f);
  separate(between);
  if (i == distance) words.set(0, 1.0f);
}

void run_pairs(void (*kernel)(float*, int, Between), int argument, Between between) {
  std::vector<float> to(kThreads);
  emulator::launch(kernel, 1, kThreads, kThreads * sizeof(float), to.data(), argument, between);
}

void orders() {
  std::vector<float> to(kThreads);
  for (const auto between : {Between::kWarpBarrier, Between::kShuffle, Between::kBlockBarrier}) {
    emulator::launch(read_after_write, 1, kThreads, kThreads * sizeof(float), to.data(), 5,
                     between);
    for (int i = 0; i < kThreads; ++i) EXPECT(to[i] == float(i ^ 5));
    emulator::launch(write_after_one_read, 1, kThreads, 4, to.data(), 40, 41, between);
    emulator::launch(write_twice, 1, kThreads, 4, 9, between);
  }
  emulator::launch(read_after_write, 1, kThreads, kThreads * sizeof(float), to.data(), 5,
                   Between::kHalfAWarp);
  run_pairs(write_after_read, 3, Between::kBlockBarrier);
  // A thread is in no race with itself.
  emulator::launch(read_after_write, 1, kThreads, kThreads * sizeof(float), to.data(), 0,
                   Between::kNothing);
  emulator::launch(write_after_one_read, 1, kThreads, 4, to.data(), 40, 40, Between::kNothing);
  emulator::launch(write_twice, 1, kThreads, 4, 0, Between::kNothing);
}

// ---- warps --------------------------------------------------------------------------------------

__global__ void sum_of_warps(const float* from, float* to) {
  float sum = read(from + threadIdx.x);
  for (int mask = 16; mask > 0; mask /= 2) sum += from_lane_xor(sum, mask);
  write(to + threadIdx.x, sum == from_lane(sum, 0) ? sum : -1.0f);
}

void shuffles() {
  std::vector<float> from(2 * kThreads), to(2 * kThreads);
  std::iota(from.begin(), from.end(), 1.0f);
  emulator::launch(sum_of_warps, 1, 2 * kThreads, 0, from.data(), to.data());
  for (size_t i = 0; i < to.size(); ++i) EXPECT(to[i] == 528.0f + 1024.0f * float(i / 32));
}

__global__ void all_shuffles(double* to) {
  const int lane = int(threadIdx.x) % 32;
  const double mine = threadIdx.x;
  double* const row = to + 4 * threadIdx.x;
  write(row + 0, __shfl_sync(~0u, mine, lane + 3, 8));
  write(row + 1, __shfl_xor_sync(~0u, mine, 9, 16));
  write(row + 2, double(__shfl_sync(~0u, int64_t{1} << lane, 31)));
  // Each half of the warp by itself, at its own pace.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  double value = mine;
  for (int i = 0; i < (lane < 16 ? 2 : 5); ++i) value = __shfl_xor_sync(half, value + 1, 1);
  write(row + 3, value);
}

void shuffle_segments() {
  std::vector<double> to(4 * kThreads);
  emulator::launch(all_shuffles, 1, kThreads, 0, to.data());
  for (int i = 0; i < kThreads; ++i) {
    const double* const row = to.data() + 4 * i;
    const int lane = i % 32, warp = i - lane;
    EXPECT(row[0] == warp + lane / 8 * 8 + (lane + 3) % 8);
    EXPECT(row[1] == i - lane + (lane ^ 9));
    EXPECT(row[2] == double(int64_t{1} << 31));
    EXPECT(row[3] == (lane < 16 ? i + 2 : (i ^ 1) + 5));
  }
}

// 40 threads: lanes 8 to 31 of the second warp do not exist.
__global__ void part_of_a_warp(float* to) {
  __syncwarp();
  write(to + threadIdx.x, from_lane_xor(float(threadIdx.x), 1));
  __syncthreads();
  write(to + 40 + threadIdx.x, from_lane(1.0f, 20));
}

void partial_warps() {
  std::vector<float> to(80);
  emulator::launch(part_of_a_warp, 1, 40, 0, to.data());
  for (int i = 0; i < 40; ++i) EXPECT(to[i] == float(i ^ 1));
  for (int i = 0; i < 40; ++i) EXPECT(i < 32 ? to[40 + i] == 1.0f : std::isnan(to[40 + i]));
}

// ---- barriers -----------------------------------------------------------------------------------

__global__ void leave_before_barrier(int leaver) {
  if (int(threadIdx.x) == leaver) return;
  __syncthreads();
}

__global__ void two_barriers(int other) {
  if (int(threadIdx.x) == other) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void leave_before_shuffle(int leaver) {
  if (int(threadIdx.x) == leaver) return;
  from_lane_xor(1, 1);
}

__global__ void shuffle_or_barrier(int other) {
  if (int(threadIdx.x) == other) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void two_warp_barriers(int other) {
  if (int(threadIdx.x) == other) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}

__global__ void lane_outside_mask() { __syncwarp(1); }

__global__ void shuffle_from_outside_mask() {
  if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 20);
}

// ---- memory -------------------------------------------------------------------------------------

__global__ void copy(const float* from, float* to, int count, int reach) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) write(to + i, read(from + i + reach));
}

__global__ void touch_shared(int word, bool first_written) {
  const auto words = shared<float>();
  if (first_written) words.set(word, 0.0f);
  words[word];
}

__global__ void read_vector_of_shared(int byte) {
  const auto words = shared<float>();
  for (int i = 0; i < 8; ++i) words.set(i, 0.0f);
  (words + byte / 4).as<float4>()[0];
}

__global__ void read_vector_of_global(const float* from, float* to) {
  const auto v = read(reinterpret_cast<const float2*>(from));
  write(to, v.x + v.y);
}

__global__ void all_write_one(float* to) { write(to, 1.0f); }

__global__ void blocks_write_one(__half* to) {
  if (threadIdx.x == 0) write(to, __float2half_rn(1.0f));
}

// Sums of neighbours where a mask hides some. A kernel that does not select keeps only what is
// seen: its neighbours then read what was never written.
__global__ void add_seen(const float* values, const float* mask, float* to, bool selects) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x);
  const bool seen = read(mask + i) != 0;
  if (selects || seen) words.set(i, seen ? read(values + i) : 0.0f);
  __syncthreads();
  write(to + i, words[i] + words[i ^ 1]);
}

void sums_of_seen(bool selects) {
  std::vector<float> values(kThreads, 1.0f), mask(kThreads, 1.0f), to(kThreads);
  values[4] = std::numeric_limits<float>::quiet_NaN();
  mask[4] = 0;
  emulator::launch(add_seen, 1, kThreads, kThreads * sizeof(float), values.data(), mask.data(),
                   to.data(), selects);
  for (int i = 0; i < kThreads; ++i) EXPECT(to[i] == (i / 2 == 2 ? 1.0f : 2.0f));
}

// A row for each block, weighted by a mask of one row, which is broadcast: its step by rows is 0.
__global__ void weigh(ssimfast::View mask, const float* values, float* to) {
  const int64_t row = blockIdx.x, column = threadIdx.x, i = row * blockDim.x + column;
  const int64_t of_mask = row * mask.by_row + column * mask.by_column;
  write(to + i, read(values + i) * ssimfast::cuda::load<float>(mask, of_mask));
}

// With the step of a dense mask, the second row is read past the end of the only one.
void weighted_rows(int64_t by_row, bool results_follow) {
  const std::vector<float> values(2 * kThreads, 3.0f);
  std::vector<float> mask((results_follow ? 3 : 1) * kThreads, 0.5f), apart(2 * kThreads);
  float* const results = results_follow ? mask.data() + kThreads : apart.data();
  const ssimfast::View of_mask{mask.data(), 0, 0, 0, by_row, 1, ssimfast::Dtype::kFloat32};
  emulator::launch(weigh, 2, kThreads, 0, of_mask, values.data(), results);
  for (int i = 0; i < 2 * kThreads; ++i) EXPECT(results[i] == 1.5f);
}

// The halves of a 4-byte word belong to two threads, and that is all right.
__global__ void write_halves(__half* to) {
  write(to + threadIdx.x, __float2half_rn(float(threadIdx.x)));
}

__global__ void write_then_read(float* to, int distance) {
  write(to + threadIdx.x, 1.0f);
  __syncthreads();
  read(to + (threadIdx.x ^ distance));
}

__global__ void read_then_write(float* to) {
  const float value = read(to + (threadIdx.x ^ 1));
  __syncthreads();
  write(to + threadIdx.x, value);
}

// In place, if distance is 0; else a thread writes what another has read, or will read.
__global__ void scale_own(float* to, int distance) {
  const float value = read_own(to + threadIdx.x);
  __syncthreads();
  write(to + (threadIdx.x + distance) % blockDim.x, 2 * value);
}

__global__ void write_then_read_own(float* to) {
  write(to + threadIdx.x, 1.0f);
  __syncthreads();
  read_own(to + (threadIdx.x ^ 1));
}

__global__ void read_own_of_two(float* to) {
  const float value = read_own(to + threadIdx.x / 2);
  write(to + threadIdx.x / 2, value);
}

__global__ void read_null() { read(static_cast<const float*>(nullptr)); }

__global__ void read_shared_as_global() {
  shared<float>().set(0, 1.0f);
  read(static_cast<const float*>(emulator::dynamic_shared()));
}

void copies(int count, int reach) {
  const std::vector<float> from(100, 1.0f);
  std::vector<float> to(128);
  emulator::poison(to.data(), to.size() * sizeof(float));
  emulator::launch(copy, 2, kThreads, 0, from.data(), to.data(), count, reach);
  for (int i = 0; i < 128; ++i) EXPECT(i < count ? to[i] == 1.0f : std::isnan(to[i]));
}

// ---- several blocks -----------------------------------------------------------------------------

std::vector<unsigned> visits;  // the blocks, as they came to run

__global__ void keep_apart(float* to) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x), count = int(blockDim.x);
  words.set(i, float(blockIdx.x * 1000 + threadIdx.x));
  for (int phase = 0; phase < 3; ++phase) {
    if (i == 0) visits.push_back(blockIdx.x);
    __syncthreads();
  }
  write(to + blockIdx.x * blockDim.x + i, words[count - 1 - i]);
}

void interleaved() {
  std::vector<float> to(5 * kThreads);
  for (const int at_once : {1, 3, 7}) {
    for (const auto order : {emulator::Order::kForward, emulator::Order::kReverse}) {
      emulator::options().interleaved_blocks = at_once;
      emulator::options().order = order;
      visits.clear();
      emulator::launch(keep_apart, 5, kThreads, kThreads * sizeof(float), to.data());
      for (int i = 0; i < 5 * kThreads; ++i)
        EXPECT(to[i] == float(i / kThreads * 1000 + kThreads - 1 - i % kThreads));
      const bool reverse = order == emulator::Order::kReverse;
      EXPECT(visits.size() == 15 && visits[0] == (reverse ? 4 : 0));
      EXPECT(visits[1] == (at_once == 1 ? visits[0] : reverse ? 3 : 1));
      EXPECT(visits[3] == (at_once == 1   ? visits[1] + (reverse ? -1 : 1)
                           : at_once == 3 ? visits[0]
                           : reverse      ? 1
                                          : 3));
    }
  }
}

// With SSIMFAST_EMULATOR_BLOCKS=2 and SSIMFAST_EMULATOR_ORDER=reverse.
void environment() {
  std::vector<float> to(3 * kThreads);
  visits.clear();
  emulator::launch(keep_apart, 3, kThreads, kThreads * sizeof(float), to.data());
  EXPECT((visits == std::vector<unsigned>{2, 1, 2, 1, 2, 1, 0, 0, 0}));
}

// ---- numbers ------------------------------------------------------------------------------------

__global__ void count_me(const float* from, float* to, __half* halves) {
  const auto words = shared<float>();
  const int i = int(threadIdx.x);
  words.set(i, read(from + i) + read(from + 3));
  __syncthreads();
  const float4 v = words.as<float4>()[i / 4];
  __syncwarp();
  write(to + blockIdx.x * blockDim.x + i, v.x);
  if (i < 3) write(halves + blockIdx.x * 3 + i, __float2half_rn(v.x));
  __syncthreads();
}

void counters() {
  const std::vector<float> from(kThreads, 1.0f);
  std::vector<float> to(3 * kThreads);
  std::vector<__half> halves(9);
  const auto launch = [&] {
    emulator::launch(count_me, 3, kThreads, kThreads * 4, from.data(), to.data(), halves.data());
  };
  launch();
  emulator::reset_counters();
  launch();
  launch();
  const auto check = [](const emulator::Counters& c, int64_t launches) {
    EXPECT(c.launches == launches);
    EXPECT(c.blocks == 3 * launches && c.threads == 3 * kThreads * launches);
    EXPECT(c.block_barriers == 2 * 3 * launches && c.warp_barriers == 3 * 2 * launches);
    EXPECT(c.global_bytes_read == 3 * kThreads * 8 * launches);
    EXPECT(c.unique_global_bytes_read == kThreads * 4 * launches);
    EXPECT(c.global_bytes_written == 3 * (kThreads * 4 + 6) * launches);
    EXPECT(c.unique_global_bytes_written == c.global_bytes_written);
    EXPECT(c.shared_words_written == 3 * kThreads * launches);
    EXPECT(c.shared_words_read == 3 * kThreads * 4 * launches);
  };
  check(emulator::counters(), 2);
  check(emulator::last_launch(), 1);
}

float half(float f) { return __half2float(__float2half_rn(f)); }
float bfloat(float f) { return __bfloat162float(__float2bfloat16_rn(f)); }

// Every number of 16 bits, and what lies half way to the next: the even one of the two gets it.
template <class T, class ToFloat, class FromFloat>
void check_rounding(uint16_t infinity, ToFloat to_float, FromFloat from_float) {
  const auto number = [&](int bits) { return to_float(std::bit_cast<T>(uint16_t(bits))); };
  const auto rounded = [&](float f) { return int(std::bit_cast<uint16_t>(from_float(f))); };
  for (int bits = 0; bits < infinity; ++bits) {
    EXPECT(rounded(number(bits)) == bits && rounded(-number(bits)) == (bits | 0x8000));
    if (bits + 1 == infinity) break;
    const double middle = (double(number(bits)) + double(number(bits + 1))) / 2;
    const int even = bits + bits % 2;
    EXPECT(rounded(float(middle)) == even && rounded(-float(middle)) == (even | 0x8000));
    EXPECT(rounded(std::nextafter(float(middle), INFINITY)) == bits + 1);
    EXPECT(rounded(std::nextafter(float(middle), 0.0f)) == bits);
  }
  EXPECT(rounded(INFINITY) == infinity && rounded(-INFINITY) == (infinity | 0x8000));
  EXPECT(std::isnan(to_float(from_float(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT(std::isnan(to_float(std::bit_cast<T>(uint16_t(0xffff)))));
  EXPECT(number(infinity) == INFINITY);
}

void conversions() {
  check_rounding<__half>(0x7c00, __half2float, __float2half_rn);
  check_rounding<__nv_bfloat16>(0x7f80, __bfloat162float, __float2bfloat16_rn);
  EXPECT(half(0.1f) == 0.0999755859375f && half(2049.0f) == 2048.0f && half(2051.0f) == 2052.0f);
  EXPECT(half(65504.0f) == 65504.0f && half(65519.0f) == 65504.0f && half(65520.0f) == INFINITY);
  EXPECT(half(0x1p-24f) == 0x1p-24f && half(0x1p-25f) == 0.0f && half(0x1.8p-25f) == 0x1p-24f);
  EXPECT(bfloat(0.1f) == 0.10009765625f && bfloat(257.0f) == 256.0f && bfloat(259.0f) == 260.0f);
  EXPECT(bfloat(std::numeric_limits<float>::max()) == INFINITY && bfloat(0x1p-133f) == 0x1p-133f);
}

__global__ void images(ssimfast::View from, ssimfast::View to) {
  using namespace ssimfast::cuda;
  const int64_t i = threadIdx.x;
  store<float>(to, i * to.by_column, load<float>(from, i * from.by_column) * 2);
}

void images_of_halves() {
  std::vector<__half> from(kThreads);
  std::vector<__nv_bfloat16> to(2 * kThreads);
  emulator::poison(to.data(), to.size() * 2);
  for (int i = 0; i < kThreads; ++i) from[i] = __float2half_rn(float(i));
  using ssimfast::Dtype;
  const ssimfast::View x{from.data(), 0, 0, 0, 0, 1, Dtype::kFloat16};
  const ssimfast::View y{to.data(), 0, 0, 0, 0, 2, Dtype::kBFloat16};
  emulator::launch(images, 1, kThreads, 0, x, y);
  for (int i = 0; i < kThreads; ++i) {
    EXPECT(__bfloat162float(to[2 * i]) == float(2 * i));
    EXPECT(std::isnan(__bfloat162float(to[2 * i + 1])));
  }
}

void reciprocals() {
  using ssimfast::cuda::reciprocal;
  int inexact = 0;
  for (uint32_t bits = 0x00800000; bits < 0x7e800000; bits += 9973) {
    const float v = std::bit_cast<float>(bits), r = reciprocal(v);
    const double truth = 1.0 / double(v);
    const double ulp = double(std::nextafter(float(truth), INFINITY)) - double(float(truth));
    EXPECT(std::fabs(double(r) - truth) < ulp);
    inexact += r != float(truth);
  }
  EXPECT(inexact > 50000);
  for (int e = -126; e <= 126; ++e) EXPECT(reciprocal(std::ldexp(1.0f, e)) == std::ldexp(1.0f, -e));
  EXPECT(reciprocal(0.0f) == INFINITY && reciprocal(-0.0f) == -INFINITY);
  EXPECT(reciprocal(0x1p-127f) == INFINITY && reciprocal(0x1p127f) == 0.0f);
  EXPECT(reciprocal(INFINITY) == 0.0f && std::signbit(reciprocal(-INFINITY)));
  EXPECT(std::isnan(reciprocal(std::numeric_limits<float>::quiet_NaN())));
  EXPECT(reciprocal(3.0) == 1.0 / 3.0);
}

// ---- after errors -------------------------------------------------------------------------------

int alive = 0;

struct Alive {
  Alive() { ++alive; }
  ~Alive() { --alive; }
};

__global__ void throw_in_one(int thrower) {
  const Alive alive;
  __syncthreads();
  if (int(threadIdx.x) == thrower) throw std::out_of_range("thrown in a kernel");
  __syncwarp();
  __syncthreads();
}

void clean_after_errors() {
  for (const int at_once : {1, 2}) {
    emulator::options().interleaved_blocks = at_once;
    for (int i = 0; i < 20; ++i) {
      std::string message;
      try {
        emulator::launch(throw_in_one, 3, kThreads, 0, 33);
      } catch (const std::out_of_range& error) {
        message = error.what();
      }
      EXPECT(message == "thrown in a kernel" && alive == 0);
      shuffles();
    }
  }
}

// ---- the cases ----------------------------------------------------------------------------------

using Case = std::function<void()>;

std::map<std::string, Case> cases() {
  static std::vector<float> to(2 * kThreads);
  static std::vector<__half> halves(kThreads);
  const auto with_blocks = [](int blocks, Case body) {
    return [=] {
      emulator::options().interleaved_blocks = blocks;
      body();
    };
  };
  float* const data = to.data();
  using emulator::launch;
  return {
      {"race", [] { run_pairs(read_after_write, 1, Between::kNothing); }},
      {"race_across_warps", [] { run_pairs(read_after_write, 32, Between::kWarpBarrier); }},
      {"race_after_read", [] { run_pairs(write_after_read, 3, Between::kNothing); }},
      {"race_after_read_across_warps",
       [] { run_pairs(write_after_read, 63, Between::kWarpBarrier); }},
      {"race_after_one_read",
       [=] { launch(write_after_one_read, 1, kThreads, 4, data, 2, 5, Between::kNothing); }},
      {"race_after_one_read_across_warps",
       [=] { launch(write_after_one_read, 1, kThreads, 4, data, 2, 40, Between::kShuffle); }},
      {"race_of_writes", [] { launch(write_twice, 1, kThreads, 4, 1, Between::kNothing); }},
      {"race_of_writes_across_warps",
       [] { launch(write_twice, 1, kThreads, 4, 32, Between::kWarpBarrier); }},
      {"race_between_others",
       with_blocks(2, [] { run_pairs(read_after_write, 32, Between::kNothing); })},
      {"orders", orders},
      {"shuffles", shuffles},
      {"shuffle_segments", shuffle_segments},
      {"partial_warps", partial_warps},
      {"left_before_barrier", [] { launch(leave_before_barrier, 2, kThreads, 0, 5); }},
      {"last_left_before_barrier", [] { launch(leave_before_barrier, 2, kThreads, 0, 63); }},
      {"two_barriers", [] { launch(two_barriers, 1, kThreads, 0, 5); }},
      {"left_before_shuffle", [] { launch(leave_before_shuffle, 1, kThreads, 0, 37); }},
      {"shuffle_or_barrier", [] { launch(shuffle_or_barrier, 1, kThreads, 0, 3); }},
      {"two_warp_barriers", [] { launch(two_warp_barriers, 1, kThreads, 0, 3); }},
      {"lane_outside_mask", [] { launch(lane_outside_mask, 1, kThreads, 0); }},
      {"shuffle_from_outside_mask", [] { launch(shuffle_from_outside_mask, 1, kThreads, 0); }},
      {"shared_in_bounds", [] { launch(touch_shared, 4, 1, 128, 31, true); }},
      {"shared_out_of_bounds", [] { launch(touch_shared, 1, 1, 128, 32, true); }},
      {"shared_out_of_bounds_below", [] { launch(touch_shared, 1, 1, 128, -1, true); }},
      {"shared_partly_out_of_bounds", [] { launch(touch_shared, 1, 1, 126, 31, true); }},
      {"no_shared_at_all", [] { launch(touch_shared, 1, 1, 0, 0, true); }},
      {"uninitialised", [] { launch(touch_shared, 1, 1, 128, 4, false); }},
      {"uninitialised_in_second_block",
       [] {
         launch(touch_shared, 1, 1, 128, 4, true);
         launch(touch_shared, 1, 1, 128, 4, false);
       }},
      {"uninitialised_allowed",
       [] {
         emulator::options().check_uninitialised = false;
         launch(touch_shared, 1, 1, 128, 4, false);
       }},
      {"shared_vector", [] { launch(read_vector_of_shared, 1, 1, 32, 16); }},
      {"misaligned_shared_vector", [] { launch(read_vector_of_shared, 1, 1, 32, 8); }},
      {"global_vector", [=] { launch(read_vector_of_global, 1, 1, 0, data + 2, data); }},
      {"misaligned_global_vector", [=] { launch(read_vector_of_global, 1, 1, 0, data + 1, data); }},
      {"copy", [] { copies(100, 0); }},
      {"poison", [] { copies(60, 0); }},
      {"global_out_of_bounds", [] { copies(100, 1); }},
      {"global_out_of_bounds_below", [] { copies(100, -1); }},
      {"null_pointer", [] { launch(read_null, 1, 1, 0); }},
      {"shared_as_global", [] { launch(read_shared_as_global, 1, 1, 4); }},
      {"two_threads_write", [=] { launch(all_write_one, 1, 2, 0, data); }},
      {"two_blocks_write", [] { launch(blocks_write_one, 2, 32, 0, halves.data()); }},
      {"two_blocks_write_unchecked",
       [] {
         emulator::options().check_global = false;
         launch(blocks_write_one, 2, 32, 0, halves.data());
       }},
      {"hidden_pixels", [] { sums_of_seen(true); }},
      {"hidden_pixels_not_kept", [] { sums_of_seen(false); }},
      {"broadcast_mask", [] { weighted_rows(0, true); }},
      {"broadcast_mask_as_dense", [] { weighted_rows(kThreads, true); }},
      {"mask_out_of_bounds", [] { weighted_rows(kThreads, false); }},
      {"halves_of_a_word", [] { launch(write_halves, 1, kThreads, 0, halves.data()); }},
      {"read_of_written", [=] { launch(write_then_read, 1, kThreads, 0, data, 1); }},
      {"write_of_read", [=] { launch(read_then_write, 1, kThreads, 0, data); }},
      {"in_place", [=] { launch(scale_own, 1, kThreads, 0, data, 0); }},
      {"write_of_anothers_own", [=] { launch(scale_own, 1, kThreads, 0, data, 1); }},
      {"read_own_of_written", [=] { launch(write_then_read_own, 1, kThreads, 0, data); }},
      {"own_of_two", [=] { launch(read_own_of_two, 1, kThreads, 0, data); }},
      {"interleaved", interleaved},
      {"counters", counters},
      {"conversions", conversions},
      {"images_of_halves", images_of_halves},
      {"reciprocals", reciprocals},
      {"clean_after_errors", clean_after_errors},
      {"too_many_threads", [] { launch(lane_outside_mask, 1, 1025, 0); }},
      {"no_blocks", [] { launch(lane_outside_mask, int64_t{0}, 32, 0); }},
      {"too_much_shared", [] { launch(lane_outside_mask, 1, 32, 1 << 20); }},
      {"shared_not_allowed", [] { launch(touch_shared, 1, 1, 49 << 10, 0, true); }},
      {"environment", environment},
  };
}

}  // namespace

int main(int argc, char** argv) {
  const auto all = cases();
  const auto found = all.find(argc == 2 ? argv[1] : "");
  if (found == all.end()) {
    for (const auto& one : all) std::cout << one.first << '\n';
    return 2;
  }
  try {
    found->second();
  } catch (const std::runtime_error& error) {
    std::cout << error.what() << std::endl;
    emulator::options() = emulator::Options{1, emulator::Order::kForward};
    shuffles();  // the next launch knows nothing of the error
    return 3;
  }
  return 0;
}
