// What this processor does at most: multiply-adds in float32, and copying. Prints both, in GFMA/s
// and GB/s (read and written), with as many threads as the first argument says.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / sizeof(float);
constexpr int kChains = 10;  // at least latency times throughput, fewer than registers

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

template <class Body>
double seconds(int threads, Body&& body) {
  const double start = now();
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&body, i] { body(i); });
  body(0);
  for (std::thread& other : others) other.join();
  return now() - start;
}

// Keeps a vector in a register, and the compiler from knowing its value.
void hide(Vector& v) { asm volatile("" : "+x"(v)); }

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  constexpr long kSteps = 2000000;
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double taken = seconds(threads, [](int) {
      Vector k = Vector{} + 0.999f, m = Vector{} + 0.001f;
      hide(k);
      hide(m);
      Vector chain[kChains];
      for (Vector& v : chain) hide(v = m);  // else they are one, to the compiler
      for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
        for (Vector& v : chain) v = v * k + m;
      }
      Vector sum{};
      for (const Vector& v : chain) sum += v;
      hide(sum);
    });
    best = std::max(best, double(kSteps) * kChains * kLanes * threads / taken / 1e9);
  }
  constexpr size_t kSize = size_t(64) << 20;  // of a thread: more than a cache holds
  std::vector<std::unique_ptr<char[]>> from, to;
  for (int i = 0; i < threads; ++i) {
    from.emplace_back(new char[kSize]);
    to.emplace_back(new char[kSize]);
    std::memset(from[i].get(), i, kSize);
    std::memset(to[i].get(), 1, kSize);
  }
  double copied = 0;
  for (int round = 0; round < 5; ++round) {
    const double taken =
        seconds(threads, [&](int i) { std::memcpy(to[i].get(), from[i].get(), kSize); });
    copied = std::max(copied, 2.0 * kSize * threads / taken / 1e9);
  }
  std::printf("%.1f %.1f\n", best, copied);
}
