// The fused sweep: one pass over two images, for the windows that people train with.
//
// A block marches down a strip of columns, kRows rows a step, and keeps everything that the two
// filters and their adjoints need on chip. Each step has four phases (docs/cuda.md has a figure,
// and the counts behind every choice here):
//
//   A  global memory   -> rows of x and y -> ring of s and d in shared memory
//   B  ring            -> horizontal means and variances -> exchange buffer
//   C  exchange buffer -> vertical filter -> SSIM, its derivatives -> vertical adjoint -> the same
//                         places of the exchange buffer
//   D  exchange buffer -> horizontal adjoint, with s and d of the ring -> rows of gradients
//
// In B and D a thread owns kColumns neighbours of one row, so one vector from shared memory serves
// several outputs. In C it owns one column: the last 2 * kHalo rows of moments and as many pending
// gradients stay in its registers. A value near by is subtracted before anything is squared
// (docs/mathematics.md, "Centring").
//
// Rows and columns are numbered from the first pixel that the block sees. In C, thread t owns
// column kHalo + t, the t-th column of statistics.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/image.cuh"
#include "cuda/record.cuh"

namespace ssimfast::cuda {

constexpr int kRows = 4;
constexpr int kColumns = 4;
constexpr int kMostThreads = 192;

// Threads of a block, at most: a mask takes the shared memory of a third of them.
constexpr int most_threads(bool masked) { return masked ? 128 : kMostThreads; }

// Threads that the registers of a multiprocessor allow at a time: 168 registers a thread allow
// three warps for each scheduler. The gradients with respect to both images need more registers,
// and so does a mask, which leaves two. Shared memory may allow fewer (plan.h).
constexpr int resident_threads(int gradients, bool masked) {
  return gradients == 2 || masked ? 256 : 384;
}

// Variant of the fused kernel.
enum class Kind {
  kForward,       // sums and maps
  kGradientX,     // sums, and the gradient with respect to x
  kGradientBoth,  // sums, and the gradients with respect to x and y
};

// Divides a number below 2^31 by one that the host knows, by a multiplication.
struct Divisor {
  int divisor = 1;
  unsigned multiplier = 1u << 31;
  int shift = 31;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : divisor(int(divisor)) {
    while (int64_t(1) << (shift - 31) < divisor) ++shift;
    multiplier = unsigned(divide_up(int64_t(1) << shift, divisor));
  }
  SSIMFAST_DEVICE int operator()(unsigned number) const {
    return int(uint64_t(number) * multiplier >> shift);
  }
};

// How a plane is cut into blocks (plan.h). The own pixels of a block are those whose gradients it
// writes and whose terms it sums.
struct Plan {
  int threads = 0;
  int first_column = 0;  // of the pixels of the first strip; a multiple of kColumns
  int strip_step = 0;    // columns from strip to strip, a multiple of kColumns
  int runs = 0;
  int run_rows = 0;  // own rows of a run
  // Numbers of strips and of tiles of a plane, and of channels.
  Divisor strips, tiles, channels;
};

// Columns before the own ones of a strip that is not the first: at least as many as their gradients
// depend on, in whole groups of kColumns.
constexpr int first_own_column(int halo, int spread) {
  return (halo + spread + kColumns - 1) / kColumns * kColumns;
}

// Sizes in shared memory for a window of K taps. A row of the ring has s and d and, if there is a
// mask, the weights.
template <int K, Kind kKind, bool kMasked>
struct Sizes {
  static constexpr int kHalo = K / 2;
  static constexpr bool kGradient = kKind != Kind::kForward;
  static constexpr int kSpread = kGradient ? kHalo : 0;  // statistics beyond the own pixels
  // Rows of the ring: all that D, C and B of one step see, and those that A writes meanwhile. C
  // sees the weights of its windows' centres. A multiple of kRows, so that four rows never wrap.
  static constexpr int kRowsBefore = kGradient ? 2 * kHalo : kMasked ? kHalo : 0;
  static constexpr int kSlots = (kRowsBefore + 3 * kRows - 1) / kRows * kRows;
  static constexpr int kMapsOfRow = kMasked ? 3 : 2;
  // Columns of zeros in the exchange buffer: before the first column of statistics, after the last.
  static constexpr int kPadBefore = 2 * kHalo, kPadAfter = 25 - kPadBefore;

  // Floats of a row of the ring, and vectors of a row of the exchange buffer. With a mask, rows of
  // coverages, which are floats, follow the vectors.
  static constexpr SSIMFAST_INLINE int pitch(int threads) { return threads + (kMasked ? 24 : 12); }
  static constexpr SSIMFAST_INLINE int exchange_pitch(int threads) {
    return kPadBefore + threads + kPadAfter;
  }
  static constexpr SSIMFAST_INLINE int coverage_pitch(int threads) { return threads + 8; }
  static constexpr SSIMFAST_INLINE int exchange_size(int threads) {
    return kRows * exchange_pitch(threads);
  }
  // Vectors before the ring.
  static constexpr SSIMFAST_INLINE int ring_begin(int threads) {
    return exchange_size(threads) + (kMasked ? kRows * coverage_pitch(threads) / 4 : 0);
  }
  static constexpr SSIMFAST_INLINE int shared_bytes(int threads) {
    return 16 * ring_begin(threads) + 4 * kMapsOfRow * kSlots * pitch(threads);
  }
};

// The calls that a fused kernel serves. Fewer of them take fewer registers.
enum class Serves {
  kPlain,   // SSIM alone, times a weight that is the same for all planes
  kLevel,   // all terms, of a level of a pyramid
  kAny,     // all terms and maps
  kMasked,  // all terms and maps, of masked images
};

// T, U: element types of x and of y; U is T or, for an 8-bit y beside a floating x, uint8_t.
//
// Masked pixels have weights, and moments are normalised by what a window sees of them. Hidden
// pixels, of weight 0, become s = d = 0 on their way into the ring, whatever the images hold there.
// B passes on means, variances times coverage, and the coverage of each row: the sum of tap times
// weight. C filters these with weights of tap times coverage.
template <class T, class U, int K, Kind kKind, Serves kServes>
class Sweep {
  static constexpr bool kPlain = kServes == Serves::kPlain;
  static constexpr bool kMasked = kServes == Serves::kMasked;
  static constexpr bool kHasMaps = kServes == Serves::kAny || kMasked;
  using Size = Sizes<K, kKind, kMasked>;
  static constexpr int kHalo = Size::kHalo;
  static constexpr bool kGradient = Size::kGradient;
  static constexpr bool kBoth = kKind == Kind::kGradientBoth;
  static constexpr int kAdjoints = kBoth ? 4 : 3;
  static constexpr int kNear = kHalo + 1;  // the row or column that four windows centre on
  static constexpr int kSeen = K - 1 + 4;  // rows or columns that four windows see
  static constexpr int kSlots = Size::kSlots;
  static constexpr int kFirstOwnRow = kHalo + Size::kSpread;
  static constexpr int kFirstOwnColumn = first_own_column(kHalo, Size::kSpread);

  // Shared memory serves eight threads at once, each with a vector. They have four rows and two
  // groups of columns in B and D, one row and eight columns in C; with these remainders no two of
  // them meet in a bank. Numbers of threads are multiples of 32, which leave the remainders alike.
  static constexpr int kMost = most_threads(kMasked);
  static_assert(Size::kMapsOfRow * Size::pitch(kMost) % 16 == 8);
  static_assert(Size::coverage_pitch(kMost) % 16 == 8);
  static_assert(Size::exchange_pitch(kMost) % 8 == 1);
  static_assert(kMost % kWarp == 0 && kSlots % kRows == 0);
  // A kernel may have more only after a call that says so.
  static_assert(Size::shared_bytes(kMost) <= 48 * 1024);

  // In A, B and D a thread owns four neighbouring columns of one of four rows. The last columns of
  // a row, beyond the number of threads, are second groups of some threads.
  static constexpr int kSecondGroups = (2 * kHalo + 3) / kColumns;  // of a row that B sees

  const Job<float>& job;
  const int block, thread, threads;
  const int quad_row, column;  // row, and first column, that this thread owns in A, B and D
  const int plane;
  const int n, c;  // image and channel of the plane
  const int run, strip;
  const int first_row, first_column;  // in the image
  // With a mask: factors that make the weights 1 on average, at positions and at all pixels.
  float position_factor = 1, pixel_factor = 1;
  // Ends of the own pixels, and of the rows of wanted statistics.
  int own_row_end, own_column_begin, own_column_end;
  int valid_row_begin, valid_row_end;
  // For this thread's column in C: number of rows with wanted statistics from valid_row_begin on,
  // and rows whose terms are summed.
  int valid_rows, summed_row_begin, summed_rows;
  const int pitch, exchange_pitch;
  const Shared<float> ring;              // at the first of this thread's columns in A, B and D
  const Shared<float4> exchange;         // at its row and column in B and D
  const Shared<float4> exchange_column;  // at its column in C
  const Shared<float> coverages;         // of the four rows, from the first column on
  Sum<float> sums[kTerms];

  // Four neighbours of a row of x, of y and of the mask, on their way from global memory.
  struct Group {
    T x[kColumns];
    U y[kColumns];
    float weight[kMasked ? kColumns : 1];
  };
  Group ahead[2];
  // Where this thread's first group begins: of the next rows of x, y and the mask, and of the next
  // gradients.
  const T* next_x;
  const U* next_y;
  const float* next_weight;
  T* next_grad[kBoth ? 2 : 1];

  // Horizontal means and variances of s and of d in this thread's column: the last 2 * kHalo rows,
  // then the new ones. With a mask, the variances are times the coverages.
  Two mean[kSeen] = {}, variance[kSeen] = {};
  float coverage[kMasked ? kSeen : 1] = {};
  // Vertical adjoint of the rows to come, as far as it is known.
  float pending[kAdjoints][K - 1] = {};

 public:
  // block: number of the block among those of the plan.
  SSIMFAST_DEVICE Sweep(const Job<float>& job, const Plan& plan, int block)
      : job(job),
        block(block),
        thread(thread_of_block()),
        threads(blockDim.x),
        quad_row(thread % kRows),
        column(thread / kRows * kColumns),
        plane(plan.tiles(block)),
        n(plan.channels(plane)),
        c(plane - n * plan.channels.divisor),
        run(plan.strips(block) - plane * plan.runs),
        strip(block - (plane * plan.runs + run) * plan.strips.divisor),
        first_row(run * plan.run_rows - kHalo - Size::kSpread),
        first_column(plan.first_column + strip * plan.strip_step),
        pitch(Size::pitch(threads)),
        exchange_pitch(Size::exchange_pitch(threads)),
        ring((Shared<float4>::dynamic() + Size::ring_begin(threads)).template as<float>() + column),
        exchange(Shared<float4>::dynamic() + (quad_row * exchange_pitch + column)),
        exchange_column(Shared<float4>::dynamic() + (thread + Size::kPadBefore)),
        coverages((Shared<float4>::dynamic() + Size::exchange_size(threads)).template as<float>()) {
    const int height = job.height, width = job.width, margin = job.window().margin;
    own_row_end = least(kFirstOwnRow + plan.run_rows, height - first_row);
    own_column_begin = strip == 0 ? -first_column : kFirstOwnColumn;
    own_column_end =
        strip == plan.strips.divisor - 1 ? width - first_column : kFirstOwnColumn + plan.strip_step;
    const int c_column = kHalo + thread;
    const bool valid =
        c_column >= margin - first_column && c_column < width - margin - first_column;
    const bool own = valid && c_column >= own_column_begin && c_column < own_column_end;
    valid_row_begin = most(kHalo, margin - first_row);
    valid_row_end = least(own_row_end + Size::kSpread, height - margin - first_row);
    valid_rows = valid ? most(0, valid_row_end - valid_row_begin) : 0;
    summed_row_begin = most(kFirstOwnRow, valid_row_begin);
    summed_rows = own ? most(0, least(own_row_end, valid_row_end) - summed_row_begin) : 0;
    if constexpr (kMasked) {
      position_factor = mask_factor(job, plane, kSsim);
      pixel_factor = mask_factor(job, plane, kL1);
    }
  }

  // Marches from the first row that a wanted window sees to the last row that the own pixels need.
  // Barriers separate the phases: A to B, B to C, and C to D if there is a gradient.
  SSIMFAST_DEVICE void march() {
    int row = (valid_row_begin - kHalo) / kRows * kRows;
    int slot = row % kSlots;
    next_x = first_of<T>(job.x, row);
    next_y = first_of<U>(job.y, row);
    if constexpr (kMasked) next_weight = first_of<float>(job.mask, row);
    if constexpr (kGradient) {
      for (int i = 0; i < (kBoth ? 2 : 1); ++i)
        next_grad[i] = first_of<T>(job.grad[i], row - 2 * kHalo);
    }
    fetch(row);
    clear_padding();
    const UnitRange<float> unit(job, choose_centre(job, sample(), thread % kWarp));
    keep(unit, row, slot);
    __syncthreads();
    const int end = own_row_end + kHalo + Size::kSpread;
    for (; row < end; row += kRows) {
      const int centre = row - kHalo;  // row of the first window that is now complete
      if (centre - kHalo < valid_row_end) filter_rows(slot);
      if constexpr (!kPlain) {
        if (row + kRows > kFirstOwnRow && row < own_row_end) sum_pixels(unit, row, slot);
      }
      __syncthreads();
      filter_column(unit, centre, slot);
      const int next = slot + kRows == kSlots ? 0 : slot + kRows;
      const bool more = row + kRows < end;
      if constexpr (kGradient) {
        __syncthreads();
        if (more) fetch(row + kRows);
        write_gradients(unit, row - 2 * kHalo, slot);
      } else {
        if (more) fetch(row + kRows);
      }
      if (more) keep(unit, row + kRows, next);
      slot = next;
      __syncthreads();
    }
    if (job.records != nullptr)
      write_record(
          job.records, block, [&](int t) { return kPlain ? t == kSsim : job.wanted[t]; }, sums,
          Shared<StoredSum<float>>::dynamic());
  }

 private:
  static SSIMFAST_DEVICE int least(int a, int b) { return a < b ? a : b; }
  static SSIMFAST_DEVICE int most(int a, int b) { return a > b ? a : b; }

  // Offset of the first pixel of a row of this block's plane.
  SSIMFAST_DEVICE int64_t offset_of(const View& image, int row) const {
    return image.plane(n, c) + (first_row + row) * image.by_row;
  }

  // This lane's sample of the own pixels, for choose_centre, which ignores NaN: hidden pixels.
  SSIMFAST_DEVICE float sample() const {
    const int lane = thread % kWarp;
    const Sample sample(lane);
    const View& image = lane % 2 == 0 ? job.x : job.y;
    const int row = Sample::at(sample.row, kFirstOwnRow, own_row_end);
    const int at = first_column + Sample::at(sample.column, own_column_begin, own_column_end);
    if constexpr (kMasked) {
      const int64_t offset = offset_of(job.mask, row) + at * job.mask.by_column;
      if (read(static_cast<const float*>(job.mask.data) + offset) == 0) return NAN;
    }
    const int64_t offset = offset_of(image, row) + at * image.by_column;
    if constexpr (!std::is_same_v<T, U>) {
      if (lane % 2 == 1) return value_of_y(read(static_cast<const U*>(image.data) + offset));
    }
    return to_arithmetic(read(static_cast<const T*>(image.data) + offset));
  }

  // An element of y in the value range of x.
  SSIMFAST_DEVICE float value_of_y(U y) const {
    const float value = to_arithmetic(y);
    return std::is_same_v<T, U> ? value : multiply_add(value, job.y_step, job.y_low);
  }

  // The window is symmetric: its first half has all taps, which need fewer registers.
  static SSIMFAST_DEVICE constexpr int unlike(int k) { return k <= kHalo ? k : K - 1 - k; }
  SSIMFAST_DEVICE float tap(int k) const { return job.window().taps[unlike(k)]; }

  // Rows of the ring from this thread's first column on.
  SSIMFAST_DEVICE Shared<float> row_s(int slot) const {
    return ring + Size::kMapsOfRow * slot * pitch;
  }
  SSIMFAST_DEVICE Shared<float> row_d(int slot) const { return row_s(slot) + pitch; }
  SSIMFAST_DEVICE Shared<float> row_weight(int slot) const { return row_s(slot) + 2 * pitch; }

  // Number of columns of a group of four that come before `end`.
  static SSIMFAST_DEVICE int before(int end, int column) {
    return most(0, least(end - column, kColumns));
  }

  // The windows of C beside the first and the last thread's have no derivatives to spread.
  SSIMFAST_DEVICE void clear_padding() const {
    constexpr int kPad = Size::kPadBefore + Size::kPadAfter;
    const Shared<float4> rows = Shared<float4>::dynamic();
    for (int i = thread; i < kRows * kPad; i += threads) {
      const int j = i % kPad;
      rows.set(i / kPad * exchange_pitch + (j < Size::kPadBefore ? j : threads + j), {0, 0, 0, 0});
    }
  }

  // ---- A: rows of both images into the ring
  //
  // fetch() starts the loads of four rows, and keep() maps what has arrived to the unit range and
  // writes it to the ring. Phases B to D of the step before lie between the two.

  // Where this thread's first group begins, in its row of the four from `row` on.
  template <class V>
  SSIMFAST_DEVICE V* first_of(const View& image, int row) const {
    return static_cast<V*>(image.data) + offset_of(image, row + quad_row) +
           (first_column + column) * image.by_column;
  }

  SSIMFAST_DEVICE bool row_inside(int row) const {
    return unsigned(first_row + row) < unsigned(job.height);
  }
  // Number of columns of a group that are inside of the image.
  SSIMFAST_DEVICE int columns_inside(int column) const {
    const int begin = first_column + column;
    return begin < 0 ? 0 : before(int(job.width), begin);
  }

  // Reads those of four neighbours that are `inside`; as many at once as job.load_width says.
  template <int kWidth, class V>
  static SSIMFAST_DEVICE void load_group(V (&values)[kColumns], const V* from, int inside,
                                         int64_t by_column = 1) {
#pragma unroll
    for (int i = 0; i < kColumns; i += kWidth) {
      if (i >= inside) continue;
      const auto packed = read(reinterpret_cast<const Packed<V, kWidth>*>(from + i * by_column));
      memcpy(&values[i], &packed, sizeof packed);
    }
  }
  // Reads this thread's group, or that `skip` columns behind it.
  SSIMFAST_DEVICE void fetch_group(Group& group, int skip) const {
    const int inside = columns_inside(column + skip);
    if (job.load_width == 4) {
      load_images<4>(group, skip, inside);
    } else if (job.load_width > 1) {
      load_images<2>(group, skip, inside);
    } else if (job.load_width > 0) {
      load_images<1>(group, skip, inside);
    } else {
      const int64_t step_x = job.x.by_column, step_y = job.y.by_column;
      load_group<1>(group.x, next_x + skip * step_x, inside, step_x);
      load_group<1>(group.y, next_y + skip * step_y, inside, step_y);
      const int64_t step = job.mask.by_column;
      if constexpr (kMasked) load_group<1>(group.weight, next_weight + skip * step, inside, step);
    }
  }
  template <int kWidth>
  SSIMFAST_DEVICE void load_images(Group& group, int skip, int inside) const {
    load_group<kWidth>(group.x, next_x + skip, inside);
    load_group<kWidth>(group.y, next_y + skip, inside);
    if constexpr (kMasked) load_group<kWidth>(group.weight, next_weight + skip, inside);
  }

  SSIMFAST_DEVICE void fetch(int first) {
    if (row_inside(first + quad_row)) {
      fetch_group(ahead[0], 0);
      if (column < kColumns * kSecondGroups) fetch_group(ahead[1], threads);
    }
    next_x += kRows * job.x.by_row;
    next_y += kRows * job.y.by_row;
    if constexpr (kMasked) next_weight += kRows * job.mask.by_row;
  }

  SSIMFAST_DEVICE void keep(const UnitRange<float>& unit, int first, int slot) const {
    const bool inside = row_inside(first + quad_row);
    const Shared<float> to = row_s(slot + quad_row);
    keep_group(unit, ahead[0], inside ? columns_inside(column) : 0, to);
    if (column < kColumns * kSecondGroups)
      keep_group(unit, ahead[1], inside ? columns_inside(threads + column) : 0, to + threads);
  }

  SSIMFAST_DEVICE void keep_group(const UnitRange<float>& unit, const Group& group, int inside,
                                  const Shared<float>& to) const {
    if constexpr (kMasked) {
      keep_seen(unit, group, inside, to);
    } else {
      keep_all(unit, group, inside, to);
    }
  }

  SSIMFAST_DEVICE void keep_all(const UnitRange<float>& unit, const Group& group, int inside,
                                const Shared<float>& to) const {
    float s[kColumns], d[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float x = to_arithmetic(group.x[i]), y = value_of_y(group.y[i]);
      s[i] = unit.s(x, y);
      d[i] = unit.d(x, y);
    }
    if (inside < kColumns) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (i < inside) continue;
        s[i] = unit.black_s();
        d[i] = unit.black_d();
      }
    }
    set_four(to, s);
    set_four(to + pitch, d);
  }

  // The same with a mask. Outside of the image nothing is seen.
  SSIMFAST_DEVICE void keep_seen(const UnitRange<float>& unit, const Group& group, int inside,
                                 const Shared<float>& to) const {
    float s[kColumns], d[kColumns], weight[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float x = to_arithmetic(group.x[i]), y = value_of_y(group.y[i]);
      weight[i] = i < inside ? group.weight[i] : 0;
      s[i] = weight[i] == 0 ? 0 : unit.s(x, y);
      d[i] = weight[i] == 0 ? 0 : unit.d(x, y);
    }
    set_four(to, s);
    set_four(to + pitch, d);
    set_four(to + 2 * pitch, weight);
  }

  static SSIMFAST_DEVICE void set_four(const Shared<float>& to, const float (&v)[4]) {
    to.template as<float4>().set(0, make_float4(v[0], v[1], v[2], v[3]));
  }

  // ---- B: horizontal filters
  //
  // Each thread filters one row of the ring at four neighbouring columns, and writes their means
  // and variances to the exchange buffer. Pixel terms read the same four rows.

  // Means and variances of four neighbouring windows, from differences to the value that all four
  // centre on. If kOwn, the values have variances of their own. `more` is added to the variances.
  // V is float, or Two for both maps.
  template <bool kOwn, class V, int n>
  SSIMFAST_DEVICE void filter(const V (&v)[n], const V (&own)[n], V (&means)[4], V (&variances)[4],
                              V more) const {
    const V near = v[kNear], away = negative(near);
    V sum[4] = {}, square[4] = {more, more, more, more};
#pragma unroll
    for (int k = 0; k < kSeen; ++k) {
      if (k == kNear && !kOwn) continue;  // the difference of `near` to itself
      const V e = add(v[k], away);
      const V e2 = k == kNear ? own[k] : kOwn ? accumulate(own[k], e, e) : multiply(e, e);
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        if (k < b || k - b >= K) continue;
        V by;
        set_both(by, tap(k - b));
        if (k != kNear) sum[b] = accumulate(sum[b], by, e);
        square[b] = accumulate(square[b], by, e2);
      }
    }
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      means[b] = add(near, sum[b]);
      variances[b] = accumulate(square[b], negative(sum[b]), sum[b]);
    }
  }

  // The same for s and d, of which .a and .b have the values.
  template <bool kOwn, int n>
  SSIMFAST_DEVICE void filter_both(const Two (&v)[n], const Two (&own)[n], Two (&means)[4],
                                   Two (&variances)[4], Two more = {}) const {
    if constexpr (kPacks<K>) {
      filter<kOwn>(v, own, means, variances, more);
    } else {
#pragma unroll
      for (float Two::* map : {&Two::a, &Two::b}) {
        float values[n], own_values[n], m[4], u[4];
#pragma unroll
        for (int k = 0; k < n; ++k) {
          values[k] = v[k].*map;
          own_values[k] = own[k].*map;
        }
        filter<kOwn>(values, own_values, m, u, more.*map);
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          means[b].*map = m[b];
          variances[b].*map = u[b];
        }
      }
    }
  }

  // Weighted means of four neighbouring windows, their variances times coverage, and 1 / coverage,
  // which is 0 where a window sees nothing. The mask may hide any pixel, so all four windows centre
  // on the mean of what is seen of six pixels in their middle. If kOwn, the values have variances
  // of their own, already times their weight.
  template <bool kOwn, int n>
  SSIMFAST_DEVICE void filter_seen(const Two (&v)[n], const Two (&own)[n], const float (&weight)[n],
                                   Two (&means)[4], Two (&variances)[4], float (&coverage)[4],
                                   float (&inverse)[4]) const {
    float total = 0;
    Two near;
#pragma unroll
    for (int k = kSeen / 2 - 3; k < kSeen / 2 + 3; ++k) {
      total += weight[k];
      near = accumulate(near, twice(weight[k]), v[k]);
    }
    near = multiply(near, twice(inverse_or_zero(total)));
    const Two away = negative(near);
    Two sum[4], square[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) coverage[b] = 0;
#pragma unroll
    for (int k = 0; k < kSeen; ++k) {
      const Two e = add(v[k], away), seen = multiply(twice(weight[k]), e);
      const Two square_seen = kOwn ? accumulate(own[k], seen, e) : multiply(seen, e);
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        if (k < b || k - b >= K) continue;
        const Two by = twice(tap(k - b));
        sum[b] = accumulate(sum[b], by, seen);
        square[b] = accumulate(square[b], by, square_seen);
        coverage[b] += by.a * weight[k];
      }
    }
    // At the border of a mask, all that a window sees may be far from the common centre: the
    // variance is then the small difference of two large numbers.
    bool far[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      inverse[b] = inverse_or_zero(coverage[b]);
      const Two mean = multiply(sum[b], twice(inverse[b]));
      means[b] = add(near, mean);
      variances[b] = accumulate(square[b], negative(sum[b]), mean);
      const float apart = sum[b].a * mean.a + sum[b].b * mean.b;
      const float spread = variances[b].a + variances[b].b + coverage[b] * job.twice_c2;
      far[b] = apart > 8 * spread;
    }
    if (far[0] || far[1] || far[2] || far[3]) {
#pragma unroll
      for (int b = 0; b < 4; ++b)
        if (far[b]) variances[b] = variance_about<kOwn>(b, means[b], v, own, weight);
    }
  }

  // Variance, times coverage, of window b of four about its known mean.
  template <bool kOwn, int n>
  SSIMFAST_DEVICE Two variance_about(int b, Two mean, const Two (&v)[n], const Two (&own)[n],
                                     const float (&weight)[n]) const {
    Two variance;
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const int k = b + j;
      const Two e = add(v[k], negative(mean)), seen = multiply(twice(weight[k]), e);
      variance = accumulate(variance, twice(tap(j)),
                            kOwn ? accumulate(own[k], seen, e) : multiply(seen, e));
    }
    return variance;
  }

  static SSIMFAST_DEVICE Two twice(float v) { return {v, v}; }

  // 1 / v, or 0 if there is no such float.
  static SSIMFAST_DEVICE float inverse_or_zero(float v) {
    constexpr float kLeast = 1.1754944e-38f;  // the smallest that reciprocal() does not take for 0
    const float inverse = reciprocal(v);      // in every thread, so that there is no branch
    return v < kLeast ? 0 : inverse;
  }

  // Filters row quad_row of the four newest rows.
  SSIMFAST_DEVICE void filter_rows(int slot) const {
    const auto of_s = row_s(slot + quad_row).template as<float4>();
    const auto of_d = row_d(slot + quad_row).template as<float4>();
    Two v[(kSeen + 3) / 4 * 4];
#pragma unroll
    for (int i = 0; i < (kSeen + 3) / 4; ++i) {
      const float4 s = of_s[i], d = of_d[i];
      v[4 * i] = {s.x, d.x};
      v[4 * i + 1] = {s.y, d.y};
      v[4 * i + 2] = {s.z, d.z};
      v[4 * i + 3] = {s.w, d.w};
    }
    Two m[4], u[4];
    if constexpr (kMasked) {
      const auto of_mask = row_weight(slot + quad_row).template as<float4>();
      float weight[(kSeen + 3) / 4 * 4], covered[4], inverse[4];
#pragma unroll
      for (int i = 0; i < (kSeen + 3) / 4; ++i) {
        const float4 w = of_mask[i];
        weight[4 * i] = w.x;
        weight[4 * i + 1] = w.y;
        weight[4 * i + 2] = w.z;
        weight[4 * i + 3] = w.w;
      }
      filter_seen<false>(v, v, weight, m, u, covered, inverse);
      set_four(coverages + (quad_row * Size::coverage_pitch(threads) + column), covered);
    } else {
      filter_both<false>(v, v, m, u);
    }
#pragma unroll
    for (int b = 0; b < 4; ++b)
      exchange.set(b + Size::kPadBefore, make_float4(m[b].a, m[b].b, u[b].a, u[b].b));
  }

  // Adds the pixel terms of the four newest rows.
  SSIMFAST_DEVICE void sum_pixels(const UnitRange<float>& unit, int first, int slot) {
    const bool any = job.wants_pixel_terms();
    for (int at = thread; any && at < own_column_end; at += threads) {
      if (at < own_column_begin) continue;
      for (int i = 0; i < kRows; ++i) {
        const int r = first + i;
        if (r < kFirstOwnRow || r >= own_row_end) continue;
        const float d = row_d(slot + i)[at - column] + unit.centre_d();
#pragma unroll
        for (int t = kL1; t < kTerms; ++t) {
          if (!job.wanted[t]) continue;
          const float count =
              is_counted(t) ? pixel_count(job, first_row + r, first_column + at) : 0;
          const float term = pixel_term(t, d, count);
          sums[t].add(kMasked ? row_weight(slot + i)[at - column] * term : term);
        }
      }
    }
  }

  // ---- C: vertical filters, statistics, and the vertical adjoint
  //
  // Each thread takes four new rows of its column from the exchange buffer, evaluates the four
  // windows that are now complete, and puts four rows of the vertical adjoint back in their place.

  SSIMFAST_DEVICE void filter_column(const UnitRange<float>& unit, int centre, int slot) {
    take_column();
    if (centre >= valid_row_end) {
      if constexpr (kGradient) flush_adjoint();
    } else if (centre + kRows > valid_row_begin) {
      float partial[kRows][kAdjoints];
      evaluate_windows(unit, centre, slot, partial);
      if constexpr (kGradient) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) push_adjoint(i, partial[i]);
      }
    }
    age_column();
  }

  // Adds the terms of four windows, and sets the derivatives of those that are wanted. The others
  // are computed, too, without branches: four chains of arithmetic that do not wait for each other.
  SSIMFAST_DEVICE void evaluate_windows(const UnitRange<float>& unit, int centre, int slot,
                                        float (&partial)[kRows][kAdjoints]) {
    Two m[4], u[4];
    float inverse[4] = {1, 1, 1, 1};
    if constexpr (kMasked) {
      float covered[4];
      filter_seen<true>(mean, variance, coverage, m, u, covered, inverse);
    } else {
      filter_both<true>(mean, variance, m, u, {job.twice_c2, 0});
    }
    float distance = sums[kSsim].rest(), contrast_distance = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = centre + i;
      const bool wanted = unsigned(r - valid_row_begin) < unsigned(valid_rows);
      const bool own = unsigned(r - summed_row_begin) < unsigned(summed_rows);
      Moments<float> moments{m[i].a + unit.centre_s(), m[i].b + unit.centre_d(),
                             larger(u[i].a, job.twice_c2), non_negative(u[i].b)};
      float weight = 1;  // of the position
      if constexpr (kMasked) {
        moments = seen_moments(unit, m[i], u[i], inverse[i]);
        weight = weight_of_centre(slot, i);
      }
      const Terms<float> terms(moments, job.twice_c1, Reciprocals());
      if (own) distance += weight * terms.half_distance();
      if constexpr (!kPlain) {
        if (own) contrast_distance += weight * terms.half_contrast_distance;
      }
      if constexpr (kHasMaps) {
        if (own) write_maps(terms, r, kHalo + thread);
      }
      if constexpr (kGradient) {
        const float scale = job.pass == Pass::kMapsGradient ? inverse[i] : inverse[i] * weight;
        set_partials(terms, r, wanted, m[i].a, m[i].b, scale, partial[i]);
      }
    }
    sums[kSsim].add_with_rest(distance);
    if constexpr (!kPlain) sums[kContrastStructure].add(contrast_distance);
  }

  // Moments from a mean and a variance times coverage. A window that sees nothing gets those of two
  // equal images: its SSIM is 1 and its derivatives are 0.
  SSIMFAST_DEVICE Moments<float> seen_moments(const UnitRange<float>& unit, Two mean, Two variance,
                                              float inverse) const {
    const bool sees = inverse > 0;
    return {sees ? mean.a + unit.centre_s() : 1, sees ? mean.b + unit.centre_d() : 0,
            sees ? non_negative(variance.a * inverse) + job.twice_c2 : 1,
            sees ? non_negative(variance.b * inverse) : 0};
  }

  // Weight of the pixel at the centre of window i of the four.
  SSIMFAST_DEVICE float weight_of_centre(int slot, int i) const {
    const int above = slot + i - kHalo;
    return row_weight(above < 0 ? above + kSlots : above)[kHalo + thread - column];
  }

  SSIMFAST_DEVICE void take_column() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 v = exchange_column[i * exchange_pitch];
      mean[K - 1 + i] = {v.x, v.y};
      variance[K - 1 + i] = {v.z, v.w};
      if constexpr (kMasked)
        coverage[K - 1 + i] = coverages[i * Size::coverage_pitch(threads) + thread];
    }
  }

  SSIMFAST_DEVICE void age_column() {
#pragma unroll
    for (int k = 0; k < K - 1; ++k) {
      mean[k] = mean[k + kRows];
      variance[k] = variance[k + kRows];
      if constexpr (kMasked) coverage[k] = coverage[k + kRows];
    }
  }

  // The derivatives at one position that the adjoint spreads: by the means (for x alone one sum of
  // both), and by the variances of s and of d. With a mask, they are multiplied by `scale`.
  SSIMFAST_DEVICE void set_partials(const Terms<float>& terms, int row, bool wanted, float mean_s,
                                    float mean_d, float scale, float (&partial)[kAdjoints]) const {
    Slopes<float> by = slopes_at(terms, row, kHalo + thread, wanted);
    if constexpr (kMasked) by = {by.luminance * scale, by.contrast_structure * scale};
    const Partials<float> p = partials(terms, by);
    partial[1] = wanted ? p.by_var_s : 0;
    partial[2] = wanted ? p.by_var_d : 0;
    if constexpr (kBoth) {
      partial[0] = wanted ? p.by_mu_s - p.by_var_s * mean_s : 0;
      partial[3] = wanted ? p.by_mu_d - p.by_var_d * mean_d : 0;
    } else {
      const float by_means = by_both_means(terms, by);
      partial[0] = wanted ? by_means - p.by_var_s * mean_s - p.by_var_d * mean_d : 0;
    }
  }

  // Adds the derivatives of row i of the four to the K rows that its window sees. The first of them
  // is then complete.
  SSIMFAST_DEVICE void push_adjoint(int i, const float (&partial)[kAdjoints]) {
    float out[4];
#pragma unroll
    for (int a = 0; a < kAdjoints; ++a) {
      out[a] = adjoint_tap(0) * partial[a] + pending[a][0];
#pragma unroll
      for (int j = 0; j + 1 < K - 1; ++j)
        pending[a][j] = pending[a][j + 1] + adjoint_tap(j + 1) * partial[a];
      pending[a][K - 2] = adjoint_tap(K - 1) * partial[a];
    }
    exchange_column.set(i * exchange_pitch,
                        make_float4(out[0], out[1], out[2], kBoth ? out[3] : 0));
  }

  // The same for four rows without derivatives.
  SSIMFAST_DEVICE void flush_adjoint() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float out[4];
#pragma unroll
      for (int a = 0; a < kAdjoints; ++a) {
        out[a] = pending[a][0];
#pragma unroll
        for (int j = 0; j + 1 < K - 1; ++j) pending[a][j] = pending[a][j + 1];
        pending[a][K - 2] = 0;
      }
      exchange_column.set(i * exchange_pitch,
                          make_float4(out[0], out[1], out[2], kBoth ? out[3] : 0));
    }
  }

  SSIMFAST_DEVICE float adjoint_tap(int j) const {
    return kPlain ? job.weighted_taps[unlike(j)] : tap(j);
  }

  // Offset of a position in a map, which has no margin.
  SSIMFAST_DEVICE int64_t in_map(const View& map, int row, int column) const {
    const int margin = job.window().margin;
    return offset_of(map, row - margin) + (first_column + column - margin) * map.by_column;
  }

  SSIMFAST_DEVICE Slopes<float> slopes_at(const Terms<float>& terms, int row, int column,
                                          bool wanted) const {
    if constexpr (kPlain) {
      return slopes_of_ssim(terms);  // weighted_taps has the weight
    } else if (kHasMaps && job.pass == Pass::kMapsGradient) {
      float by_map[kMaps] = {};
#pragma unroll
      for (int i = 0; i < kMaps; ++i)
        if (wanted && job.upstream[i].data != nullptr)
          by_map[i] = load<float>(job.upstream[i], in_map(job.upstream[i], row, column));
      return slopes(terms, {by_map[kSsimMap], by_map[kLuminanceMap], by_map[kContrastMap]});
    }
    if constexpr (kMasked)
      return slopes(terms, {job.weight[kSsim] * position_factor, 0,
                            job.weight[kContrastStructure] * position_factor});
    return slopes(
        terms, {plane_weight(job, plane, kSsim), 0, plane_weight(job, plane, kContrastStructure)});
  }

  SSIMFAST_DEVICE void write_maps(const Terms<float>& terms, int row, int column) const {
    const auto write_map = [&](const View& map, float half_distance) {
      if (map.data != nullptr)
        store<float>(map, in_map(map, row, column), similarity_of(half_distance));
    };
    write_map(job.map[kSsimMap], terms.half_distance());
    write_map(job.map[kLuminanceMap], terms.half_luminance_distance);
    write_map(job.map[kContrastMap], terms.half_contrast_distance);
  }

  // ---- D: the horizontal adjoint, and rows of gradients
  //
  // Each thread filters one row of the exchange buffer at four neighbouring columns. With s and d
  // of these pixels that gives their gradients, which go to global memory.

  // Writes row quad_row of the four rows whose gradients are complete.
  SSIMFAST_DEVICE void write_gradients(const UnitRange<float>& unit, int first, int slot) {
    const int r = first + quad_row;
    if (r >= kFirstOwnRow && r < own_row_end) {
      const int above = slot + quad_row - 2 * kHalo;
      const Shared<float> from = row_s(above < 0 ? above + kSlots : above);
      for (int skip = 0; column + skip < own_column_end; skip += threads)
        if (column + skip >= own_column_begin) write_group(unit, r, skip, from + skip);
    }
    for (int i = 0; i < (kBoth ? 2 : 1); ++i) next_grad[i] += kRows * job.grad[i].by_row;
  }

  // Writes the gradients of the four columns from column + skip on, of which `from` has s and d.
  SSIMFAST_DEVICE void write_group(const UnitRange<float>& unit, int row, int skip,
                                   const Shared<float>& from) const {
    float sum[kAdjoints][4] = {};
#pragma unroll
    for (int k = 0; k < kSeen; ++k) {
      const float4 v = (exchange + skip)[k];
      const float term[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        if (k < b || k - b >= K) continue;
#pragma unroll
        for (int a = 0; a < kAdjoints; ++a) sum[a][b] += tap(k - b) * term[a];
      }
    }
    const float4 s4 = from.template as<float4>()[0];
    const float4 d4 = (from + pitch).template as<float4>()[0];
    const float s[4] = {s4.x, s4.y, s4.z, s4.w}, d[4] = {d4.x, d4.y, d4.z, d4.w};
    float by_x[4], by_y[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int at = column + skip + b;
      const float by_s = sum[0][b] + s[b] * sum[1][b];
      float by_d = kBoth ? sum[3][b] : 0;
      if constexpr (!kPlain) {
        if (at < own_column_end) {
          const float slope =
              slope_at_pixel(job, d[b] + unit.centre_d(), first_row + row, first_column + at);
          by_d += kMasked ? slope * pixel_factor : slope;
        }
      }
      by_x[b] = kBoth || !kPlain ? by_s + (by_d + d[b] * sum[2][b]) : by_s + d[b] * sum[2][b];
      by_y[b] = by_s - (by_d + d[b] * sum[2][b]);
    }
    if constexpr (kMasked) {
      const float4 w4 = (from + 2 * pitch).template as<float4>()[0];
      const float weight[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        by_x[b] = weight[b] == 0 ? 0 : weight[b] * by_x[b];
        by_y[b] = weight[b] == 0 ? 0 : weight[b] * by_y[b];
      }
    }
    put(0, skip, by_x);
    if constexpr (kBoth) put(1, skip, by_y);
  }

  template <int kWidth>
  static SSIMFAST_DEVICE void store_group(T* to, const T (&values)[kColumns], int own,
                                          int64_t by_column = 1) {
#pragma unroll
    for (int i = 0; i < kColumns; i += kWidth) {
      if (i >= own) continue;
      Packed<T, kWidth> packed;
      memcpy(&packed, &values[i], sizeof packed);
      write(reinterpret_cast<Packed<T, kWidth>*>(to + i * by_column), packed);
    }
  }

  // Writes those of four neighbouring gradients that are own, as many at once as job.store_width
  // says.
  SSIMFAST_DEVICE void put(int image, int skip, float (&v)[kColumns]) const {
    T out[kColumns];
#pragma unroll
    for (int b = 0; b < kColumns; ++b) {
      if constexpr (!kPlain) v[b] *= job.grad_scale;
      out[b] = from_arithmetic<T>(v[b]);
    }
    T* const to = next_grad[image];
    const int own = before(own_column_end, column + skip);
    if (job.store_width == 4) {
      store_group<4>(to + skip, out, own);
    } else if (job.store_width > 1) {
      store_group<2>(to + skip, out, own);
    } else if (job.store_width > 0) {
      store_group<1>(to + skip, out, own);
    } else {
      const int64_t by_column = job.grad[image].by_column;
      store_group<1>(to + skip * by_column, out, own, by_column);
    }
  }
};

constexpr int blocks_at_a_time(Kind kind, bool masked) {
  return resident_threads(kind == Kind::kGradientBoth ? 2 : 1, masked) / most_threads(masked);
}

template <class T, class U, int K, Kind kKind, Serves kServes>
__global__ void __launch_bounds__(most_threads(kServes == Serves::kMasked),
                                  blocks_at_a_time(kKind, kServes == Serves::kMasked))
    sweep(const __grid_constant__ Job<float> job, const __grid_constant__ Plan plan) {
  Sweep<T, U, K, kKind, kServes>(job, plan, blockIdx.x).march();
}

// The levels of a pyramid, all with the same number of threads.
struct LevelJobs {
  int levels;
  int first_block[kMaxLevels];
  Plan plans[kMaxLevels];
  Job<float> jobs[kMaxLevels];
};

// Sweeps all levels of a pyramid: its coarse levels are too small to fill a device alone.
template <int K, Kind kKind>
__global__ void __launch_bounds__(kMostThreads, blocks_at_a_time(kKind, false))
    sweep_levels(const __grid_constant__ LevelJobs all) {
  int level = 0;
  while (level + 1 < all.levels && int(blockIdx.x) >= all.first_block[level + 1]) ++level;
  Sweep<float, float, K, kKind, Serves::kLevel>(all.jobs[level], all.plans[level],
                                                int(blockIdx.x) - all.first_block[level])
      .march();
}

}  // namespace ssimfast::cuda
