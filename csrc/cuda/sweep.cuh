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
constexpr int kMostThreads = 256;

// Threads that a multiprocessor holds at a time: a column takes 180 to 255 registers, so each
// scheduler has two warps. That is enough because every thread has eight or more independent chains
// of additions, loads its next rows a phase ahead, and because two blocks of 128 threads wait at
// barriers of their own.
constexpr int kResidentThreads = 256;
constexpr int kRegisters =
    65536;  // of a multiprocessor; a thread has at most 255, rounded up to 256
static_assert(kResidentThreads * 256 == kRegisters && kMostThreads <= kResidentThreads);

// Variant of the fused kernel.
enum class Kind {
  kForward,       // sums, maps, images of the next pyramid level
  kGradientX,     // the same without maps, and the gradient by x
  kGradientBoth,  // the gradients by x and by y
};

// How a plane is cut into blocks (plan.h). The own pixels of a block are those whose gradients it
// writes and whose terms it sums.
struct Plan {
  int threads;
  int first_column;        // of the pixels of the first strip; a multiple of 8
  int strips, strip_step;  // columns from strip to strip
  int runs, run_rows;      // own rows of a run
};

// Sizes in shared memory for a window of K taps.
template <int K, Kind kKind>
struct Sizes {
  static constexpr int kHalo = K / 2;
  static constexpr bool kGradient = kKind != Kind::kForward;
  static constexpr int kSpread = kGradient ? kHalo : 0;  // statistics beyond the own pixels
  // Rows of the ring: all that D and B of one step see, and those that A writes meanwhile.
  static constexpr int kSlots = kGradient ? 2 * kHalo + 2 * kRows : 2 * kRows;
  // Zeros before the first and after the last column of the exchange buffer, in whole vectors.
  static constexpr int kPad = (2 * kHalo + 3) / 4 * 4;

  // Floats of a row of the ring, and vectors of the exchange buffer: column 4 i + j of row r is
  // stored at r * row_stride + j * stride + i.
  static constexpr SSIMFAST_INLINE int pitch(int threads) { return threads + 20; }
  static constexpr SSIMFAST_INLINE int stride(int threads) { return threads / 4 + 10; }
  static constexpr SSIMFAST_INLINE int row_stride(int threads) { return 4 * stride(threads) + 2; }
  static constexpr SSIMFAST_INLINE int exchange_size(int threads) {
    return kRows * row_stride(threads);
  }
  static constexpr SSIMFAST_INLINE int shared_bytes(int threads) {
    return 16 * exchange_size(threads) + 8 * kSlots * pitch(threads);
  }
};

// T: element type of the images. kPlain: the loss is SSIM alone, times a weight that is the same
// for all planes; there is no other term, map or pooled image.
template <class T, int K, Kind kKind, bool kPlain>
class Sweep {
  using Size = Sizes<K, kKind>;
  static constexpr int kHalo = Size::kHalo;
  static constexpr bool kGradient = Size::kGradient;
  static constexpr bool kBoth = kKind == Kind::kGradientBoth;
  static constexpr int kAdjoints = kBoth ? 4 : 3;
  static constexpr int kNear = kHalo + 1;  // the row or column that four windows centre on
  static constexpr int kSeen = K - 1 + 4;  // rows or columns that four windows see
  static constexpr int kSlots = Size::kSlots;
  static constexpr int kFirstOwnRow = kHalo + Size::kSpread;

  // Shared memory serves eight threads at once, each with a vector. They have four rows and two
  // groups of columns in B and D, one row and eight columns in C; with these remainders no two of
  // them meet in a bank. Numbers of threads are multiples of 32, which leave the remainders alike.
  static_assert(Size::pitch(kMostThreads) % 16 == 4 && Size::pitch(kMostThreads - 32) % 16 == 4);
  static_assert(Size::stride(kMostThreads) % 8 == 2 && Size::stride(kMostThreads - 32) % 8 == 2);
  static_assert(Size::row_stride(kMostThreads) % 8 == 2);
  // A block of sm_75 has at most 64 KiB of shared memory, the least of all architectures.
  static_assert(Size::shared_bytes(kMostThreads) <= 64 * 1024);

  const Job<float>& job;
  const int thread, threads, quads;
  const int quad_row, quad;  // row and group of four columns that this thread owns in B and D
  const int plane;
  const int n, c;                     // image and channel of the plane
  const int first_row, first_column;  // in the image
  // Ends of the own pixels, and of the rows of wanted statistics.
  int own_row_end, own_column_begin, own_column_end;
  int valid_row_begin, valid_row_end;
  bool column_valid, column_own;  // true if this thread's column in C has wanted statistics; is own
  const Shared<float4> exchange;
  const Shared<float> ring;
  const int pitch, stride;
  Sum<float> sums[kTerms];

  // Rows are read in chunks of 16 bytes. A float32 row needs a few more chunks than there are
  // threads.
  static constexpr int kInChunk = 16 / int(sizeof(T));
  static constexpr int kMoreChunks = kInChunk > kColumns ? 0 : (2 * kHalo + 3) / 4;
  struct Chunk {
    uint4 x, y;
  };
  Chunk ahead[kMoreChunks > 0 ? 2 : 1];  // chunks of the next rows, on their way from global memory

  // Horizontal means and variances of s and of d in this thread's column: the last 2 * kHalo rows,
  // then the new ones.
  float mean[2][kSeen] = {}, variance[2][kSeen] = {};
  // Vertical adjoint of the rows to come, as far as it is known.
  float pending[kAdjoints][K - 1] = {};

 public:
  SSIMFAST_DEVICE Sweep(const Job<float>& job, const Plan& plan)
      : job(job),
        thread(threadIdx.x),
        threads(blockDim.x),
        quads(threads / kColumns),
        quad_row(thread % kRows),
        quad(thread / kRows),
        plane(int(blockIdx.x) / (plan.strips * plan.runs)),
        n(plane / int(job.channels)),
        c(plane % int(job.channels)),
        first_row(int(blockIdx.x) / plan.strips % plan.runs * plan.run_rows - kHalo -
                  Size::kSpread),
        first_column(plan.first_column + int(blockIdx.x) % plan.strips * plan.strip_step),
        exchange(Shared<float4>::dynamic()),
        ring((exchange + Size::exchange_size(threads)).template as<float>()),
        pitch(Size::pitch(threads)),
        stride(Size::stride(threads)) {
    const int height = job.height, width = job.width, margin = job.margin;
    const int strip = int(blockIdx.x) % plan.strips;
    own_row_end = least(kFirstOwnRow + plan.run_rows, height - first_row);
    own_column_begin = strip == 0 ? -first_column : kHalo + Size::kSpread;
    own_column_end =
        strip == plan.strips - 1 ? width - first_column : kHalo + Size::kSpread + plan.strip_step;
    const int column = kHalo + thread;
    column_valid = column >= margin - first_column && column < width - margin - first_column;
    column_own = column_valid && own(column);
    valid_row_begin = most(kHalo, margin - first_row);
    valid_row_end = least(own_row_end + Size::kSpread, height - margin - first_row);
  }

  // Marches from the first row that a wanted window sees to the last row that the own pixels need.
  // Barriers separate the phases: A to B, B to C, and C to D if there is a gradient.
  SSIMFAST_DEVICE void run() {
    for (int i = thread; i < Size::exchange_size(threads); i += threads)
      exchange.set(i, make_float4(0, 0, 0, 0));
    int row = (valid_row_begin - kHalo) / kRows * kRows;
    int slot = row % kSlots;
    fetch(row);
    const Area area{plane,
                    1,
                    first_row + kFirstOwnRow,
                    first_row + own_row_end,
                    first_column + own_column_begin,
                    first_column + own_column_end};
    const UnitRange<float> unit(job, choose_centre(job, area, thread % kWarp));
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
      filter_column(unit, centre, centre + kRows > valid_row_begin && centre < valid_row_end);
      const int next = wrapped(slot + kRows);
      const bool more = row + kRows < end;
      if constexpr (kGradient) {
        __syncthreads();
        if (more) fetch(row + kRows);
        if (centre - kHalo + kRows > kFirstOwnRow) write_gradients(unit, row - 2 * kHalo, slot);
      } else {
        if (more) fetch(row + kRows);
      }
      if (more) keep(unit, row + kRows, next);
      slot = next;
      __syncthreads();
    }
    if (job.records != nullptr)
      write_record(job.records, blockIdx.x, sums, exchange.template as<double>());
  }

 private:
  static SSIMFAST_DEVICE int least(int a, int b) { return a < b ? a : b; }
  static SSIMFAST_DEVICE int most(int a, int b) { return a > b ? a : b; }

  // Offset of the first pixel of a row of this block's plane.
  SSIMFAST_DEVICE int64_t offset_of(const View& image, int row) const {
    return image.plane(n, c) + (first_row + row) * image.by_row;
  }

  // Wraps a slot index that is at most one ring length out of range.
  static SSIMFAST_DEVICE int wrapped(int slot) {
    return slot < 0 ? slot + kSlots : slot >= kSlots ? slot - kSlots : slot;
  }
  SSIMFAST_DEVICE Shared<float> row_s(int slot) const { return ring + 2 * slot * pitch; }
  SSIMFAST_DEVICE Shared<float> row_d(int slot) const { return ring + (2 * slot + 1) * pitch; }

  // Index of a column of the exchange buffer.
  SSIMFAST_DEVICE int place(int row, int column) const {
    return row * (4 * stride + 2) + column % 4 * stride + column / 4;
  }

  // ---- A: rows of both images into the ring
  //
  // fetch() starts the loads of four rows, and keep() maps what has arrived to the unit range and
  // writes it to the ring. Phases B to D of the step before lie between the two.

  // Calls body(k, row, column) for each chunk that this thread loads, ahead[k].
  template <class Body>
  SSIMFAST_DEVICE void for_chunks(Body&& body) const {
    const int column = quad * kInChunk;
    if (kMoreChunks > 0 || column < threads + 2 * kHalo) body(0, quad_row, column);
    if constexpr (kMoreChunks > 0) {
      if (thread < kRows * kMoreChunks)
        body(1, thread / kMoreChunks, threads + thread % kMoreChunks * kInChunk);
    }
  }

  SSIMFAST_DEVICE bool row_inside(int row) const {
    return first_row + row >= 0 && first_row + row < job.height;
  }

  // Sixteen bytes of a row, zeros outside of the image; one load if they are contiguous and
  // aligned.
  SSIMFAST_DEVICE uint4 chunk_of(const View& image, int row, int column) const {
    const int begin = first_column + column, width = job.width;
    const T* const from =
        static_cast<const T*>(image.data) + offset_of(image, row) + begin * image.by_column;
    if (image.by_column == 1 && reinterpret_cast<int64_t>(from) % 16 == 0 && begin >= 0 &&
        begin + kInChunk <= width)
      return read(reinterpret_cast<const uint4*>(from));
    constexpr int kInWord = 4 / int(sizeof(T));
    uint4 chunk = make_uint4(0, 0, 0, 0);
#pragma unroll 1  // rare: unrolled, its addresses would take registers from the common path
    for (int w = 0; w < 4; ++w) {
      T values[kInWord] = {};
#pragma unroll
      for (int j = 0; j < kInWord; ++j) {
        const int i = w * kInWord + j;
        if (begin + i >= 0 && begin + i < width) values[j] = read(from + i * image.by_column);
      }
      unsigned word;
      memcpy(&word, values, sizeof word);
      (w == 0 ? chunk.x : w == 1 ? chunk.y : w == 2 ? chunk.z : chunk.w) = word;
    }
    return chunk;
  }

  SSIMFAST_DEVICE void fetch(int first) {
    for_chunks([&](int k, int row, int column) {
      if (!row_inside(first + row)) return;
      ahead[k].x = chunk_of(job.x, first + row, column);
      ahead[k].y = chunk_of(job.y, first + row, column);
    });
  }

  SSIMFAST_DEVICE void keep(const UnitRange<float>& unit, int first, int slot) {
    for_chunks([&](int k, int row, int column) {
      const bool inside = row_inside(first + row);
      const int begin = first_column + column, width = job.width;
      T x[kInChunk], y[kInChunk];
      memcpy(x, &ahead[k].x, sizeof x);
      memcpy(y, &ahead[k].y, sizeof y);
      const auto to_s = row_s(wrapped(slot + row)).template as<float4>();
      const auto to_d = row_d(wrapped(slot + row)).template as<float4>();
#pragma unroll
      for (int first = 0; first < kInChunk; first += 4) {
        float s[4], d[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = begin + first + i;
          const bool black = !inside || c < 0 || c >= width;
          const float xv = to_arithmetic(x[first + i]), yv = to_arithmetic(y[first + i]);
          const float sv = unit.s(xv, yv), dv = unit.d(xv, yv);
          s[i] = black ? unit.black_s() : sv;
          d[i] = black ? unit.black_d() : dv;
        }
        to_s.set((column + first) / 4, make_float4(s[0], s[1], s[2], s[3]));
        to_d.set((column + first) / 4, make_float4(d[0], d[1], d[2], d[3]));
      }
    });
  }

  // ---- B: horizontal filters
  //
  // Each thread filters one row of the ring at four neighbouring columns, and writes their means
  // and variances to the exchange buffer. Terms over pixels and pooling read the same four rows.

  // Means and variances of four neighbouring windows, from differences to the value that all four
  // centre on. If kOwn, the values have variances of their own. `more` is added to the variances.
  template <bool kOwn, int n>
  SSIMFAST_DEVICE void moments(const float (&v)[n], const float (&own)[n], float (&means)[4],
                               float (&variances)[4], float more = 0) const {
    const float near = v[kNear];
    float sum[4] = {}, square[4] = {more, more, more, more};
#pragma unroll
    for (int k = 0; k < kSeen; ++k) {
      if (k == kNear && !kOwn) continue;  // the difference of `near` to itself
      const float e = v[k] - near;
      const float e2 = k == kNear ? own[k] : kOwn ? e * e + own[k] : e * e;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        if (k < b || k - b >= K) continue;
        if (k != kNear) sum[b] += job.taps[k - b] * e;
        square[b] += job.taps[k - b] * e2;
      }
    }
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      means[b] = near + sum[b];
      variances[b] = square[b] - sum[b] * sum[b];
    }
  }

  // Filters row quad_row of the four newest rows.
  SSIMFAST_DEVICE void filter_rows(int slot) const {
    const int from = wrapped(slot + quad_row);
    float m[2][4], u[2][4];
#pragma unroll
    for (int map = 0; map < 2; ++map) {
      const Shared<float4> row = (map == 0 ? row_s(from) : row_d(from)).template as<float4>();
      float v[(kSeen + 3) / 4 * 4];
#pragma unroll
      for (int i = 0; i < (kSeen + 3) / 4; ++i) {
        const float4 four = row[quad + i];
        v[4 * i] = four.x;
        v[4 * i + 1] = four.y;
        v[4 * i + 2] = four.z;
        v[4 * i + 3] = four.w;
      }
      moments<false>(v, v, m[map], u[map]);
    }
#pragma unroll
    for (int b = 0; b < 4; ++b)
      exchange.set(place(quad_row, kColumns * quad + b + Size::kPad),
                   make_float4(m[0][b], u[0][b], m[1][b], u[1][b]));
  }

  // Adds the terms over pixels of the four newest rows, and pools them.
  SSIMFAST_DEVICE void sum_pixels(const UnitRange<float>& unit, int first, int slot) {
    const bool any = job.wants_pixel_terms();
    for (int column = thread; any && column < own_column_end; column += threads) {
      if (column < own_column_begin) continue;
      for (int i = 0; i < kRows; ++i) {
        const int r = first + i;
        if (r < kFirstOwnRow || r >= own_row_end) continue;
        const float d = row_d(wrapped(slot + i))[column] + unit.centre_d();
#pragma unroll
        for (int t = kL1; t < kTerms; ++t) {
          if (!job.wanted[t]) continue;
          const float count =
              is_counted(t) ? pixel_count(job, first_row + r, first_column + column) : 0;
          sums[t].add(pixel_term(t, d, count));
        }
      }
    }
    if (job.pooling != Pooling::kNone) pool(unit, first, slot);
  }

  // Number of rows or columns of the next pyramid level whose last pixel comes before `end`.
  static SSIMFAST_DEVICE int pooled_before(int end, const PooledAxis& axis, int64_t size) {
    return end == size ? int(axis.size) : (end + int(axis.shift)) / 2;
  }

  // Pools to each pixel of the next pyramid level whose last row is among the four newest and whose
  // last column is own.
  SSIMFAST_DEVICE void pool(const UnitRange<float>& unit, int first, int slot) const {
    const PooledAxis &rows = job.pooled_rows, &columns = job.pooled_columns;
    const int newest = first_row + first, height = job.height, width = job.width;
    const int row_begin = pooled_before(first_row + most(first, kFirstOwnRow), rows, height);
    const int row_end = pooled_before(first_row + least(first + kRows, own_row_end), rows, height);
    const int column_begin = pooled_before(first_column + own_column_begin, columns, width);
    const int column_end = pooled_before(first_column + own_column_end, columns, width);
    for (int j = column_begin + thread; j < column_end; j += threads) {
      const int left = 2 * j - int(columns.shift), right = least(left + 1, width - 1);
      for (int i = row_begin; i < row_end; ++i) {
        const int top = 2 * i - int(rows.shift), bottom = least(top + 1, height - 1);
        float s = 0, d = 0;
        for (const int row : {top, bottom}) {
          for (const int column : {left, right}) {
            const bool black = row < 0 || column < 0;
            const int from = wrapped(slot + row - newest);
            s += black ? unit.black_s() : row_s(from)[column - first_column];
            d += black ? unit.black_d() : row_d(from)[column - first_column];
          }
        }
        const int64_t to = (plane * rows.size + i) * columns.size + j;
        write(job.pooled[0] + to, unit.x(s * 0.25f, d * 0.25f));
        write(job.pooled[1] + to, unit.y(s * 0.25f, d * 0.25f));
      }
    }
  }

  // ---- C: vertical filters, statistics, and the vertical adjoint
  //
  // Each thread takes four new rows of its column from the exchange buffer, evaluates the four
  // windows that are now complete, and puts four rows of the vertical adjoint back in their place.

  SSIMFAST_DEVICE void filter_column(const UnitRange<float>& unit, int centre, bool complete) {
    take_column();
    float m[2][4], u[2][4];
    if (complete) {
#pragma unroll
      for (int map = 0; map < 2; ++map)
        moments<true>(mean[map], variance[map], m[map], u[map], map == 0 ? job.twice_c2 : 0);
    }
    float distance = sums[kSsim].rest(), contrast_distance = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = centre + i;
      float partial[kAdjoints] = {};
      if (complete && column_valid && r >= valid_row_begin && r < valid_row_end) {
        const Moments<float> moments{m[0][i] + unit.centre_s(), m[1][i] + unit.centre_d(),
                                     u[0][i] < job.twice_c2 ? job.twice_c2 : u[0][i],
                                     non_negative(u[1][i])};
        const Terms<float> terms(moments, job.twice_c1, Reciprocals());
        if (column_own && r >= kFirstOwnRow && r < own_row_end) {
          distance += terms.half_distance();
          if constexpr (!kPlain) contrast_distance += terms.half_contrast_distance;
          if constexpr (kKind == Kind::kForward) write_maps(terms, r, kHalo + thread);
        }
        if constexpr (kGradient) set_partials(terms, r, m[0][i], m[1][i], partial);
      }
      if constexpr (kGradient) push_adjoint(i, partial);
    }
    sums[kSsim].add_with_rest(distance);
    if constexpr (!kPlain) sums[kContrastStructure].add(contrast_distance);
    age_column();
  }

  SSIMFAST_DEVICE void take_column() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 v = exchange[place(i, thread + Size::kPad)];
      mean[0][K - 1 + i] = v.x;
      variance[0][K - 1 + i] = v.y;
      mean[1][K - 1 + i] = v.z;
      variance[1][K - 1 + i] = v.w;
    }
  }

  SSIMFAST_DEVICE void age_column() {
#pragma unroll
    for (int map = 0; map < 2; ++map) {
#pragma unroll
      for (int k = 0; k < K - 1; ++k) {
        mean[map][k] = mean[map][k + kRows];
        variance[map][k] = variance[map][k + kRows];
      }
    }
  }

  // The derivatives at one position that the adjoint spreads: by the means (for x alone one sum of
  // both), and by the variances of s and of d.
  SSIMFAST_DEVICE void set_partials(const Terms<float>& terms, int row, float mean_s, float mean_d,
                                    float (&partial)[kAdjoints]) const {
    const Slopes<float> by = slopes_at(terms, row, kHalo + thread);
    const Partials<float> p = partials(terms, by);
    partial[1] = p.by_var_s;
    partial[2] = p.by_var_d;
    if constexpr (kBoth) {
      partial[0] = p.by_mu_s - p.by_var_s * mean_s;
      partial[3] = p.by_mu_d - p.by_var_d * mean_d;
    } else {
      partial[0] = by_both_means(terms, by) - p.by_var_s * mean_s - p.by_var_d * mean_d;
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
    exchange.set(place(i, thread + Size::kPad),
                 make_float4(out[0], out[1], out[2], kBoth ? out[3] : 0));
  }

  SSIMFAST_DEVICE float adjoint_tap(int j) const {
    return kPlain ? job.weighted_taps[j] : job.taps[j];
  }

  // Offset of a position in a map, which has no margin.
  SSIMFAST_DEVICE int64_t in_map(const View& map, int row, int column) const {
    const int margin = job.margin;
    return offset_of(map, row - margin) + (first_column + column - margin) * map.by_column;
  }

  SSIMFAST_DEVICE Slopes<float> slopes_at(const Terms<float>& terms, int row, int column) const {
    if constexpr (kPlain) {
      return slopes_of_ssim(terms);  // weighted_taps has the weight
    } else if (job.maps == 2) {
      const View &luminance = job.upstream[0], &contrast = job.upstream[1];
      return slopes(terms, {0, load<float>(luminance, in_map(luminance, row, column)),
                            load<float>(contrast, in_map(contrast, row, column))});
    } else if (job.maps == 1) {
      return slopes(terms,
                    {load<float>(job.upstream[0], in_map(job.upstream[0], row, column)), 0, 0});
    }
    return slopes(
        terms, {plane_weight(job, plane, kSsim), 0, plane_weight(job, plane, kContrastStructure)});
  }

  SSIMFAST_DEVICE void write_maps(const Terms<float>& terms, int row, int column) const {
    const auto write_map = [&](const View& map, float half_distance) {
      store<float>(map, in_map(map, row, column), similarity_of(half_distance));
    };
    if (job.maps == 1) {
      write_map(job.map[0], terms.half_distance());
    } else if (job.maps == 2) {
      write_map(job.map[0], terms.half_luminance_distance);
      write_map(job.map[1], terms.half_contrast_distance);
    }
  }

  // ---- D: the horizontal adjoint, and rows of gradients
  //
  // Each thread filters one row of the exchange buffer at four neighbouring columns. With s and d
  // of these pixels that gives their gradients, which go to global memory.

  SSIMFAST_DEVICE bool own(int column) const {
    return column >= own_column_begin && column < own_column_end;
  }

  // Writes row quad_row of the four rows whose gradients are complete.
  SSIMFAST_DEVICE void write_gradients(const UnitRange<float>& unit, int first, int slot) const {
    const int r = first + quad_row;
    if (r < kFirstOwnRow || r >= own_row_end) return;
    const int from = wrapped(slot + quad_row - 2 * kHalo);
    for (int column = kColumns * quad; column < own_column_end; column += kColumns * quads) {
      if (column + kColumns <= own_column_begin) continue;
      float sum[kAdjoints][4] = {};
#pragma unroll
      for (int k = 0; k < kSeen; ++k) {
        const float4 v = exchange[place(quad_row, column + k + Size::kPad - 2 * kHalo)];
        const float term[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          if (k < b || k - b >= K) continue;
#pragma unroll
          for (int a = 0; a < kAdjoints; ++a) sum[a][b] += job.taps[k - b] * term[a];
        }
      }
      const float4 s4 = row_s(from).template as<float4>()[column / 4];
      const float4 d4 = row_d(from).template as<float4>()[column / 4];
      const float s[4] = {s4.x, s4.y, s4.z, s4.w}, d[4] = {d4.x, d4.y, d4.z, d4.w};
      float by_x[4], by_y[4];
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const float by_s = sum[0][b] + s[b] * sum[1][b];
        float by_d = kBoth ? sum[3][b] : 0;
        if constexpr (!kPlain) {
          if (own(column + b))
            by_d += slope_at_pixel(job, d[b] + unit.centre_d(), first_row + r,
                                   first_column + column + b);
        }
        by_x[b] = kBoth || !kPlain ? by_s + (by_d + d[b] * sum[2][b]) : by_s + d[b] * sum[2][b];
        by_y[b] = by_s - (by_d + d[b] * sum[2][b]);
      }
      put(job.grad[0], r, column, by_x);
      if constexpr (kBoth) put(job.grad[1], r, column, by_y);
    }
  }

  // Writes those of four neighbouring gradients that are own; in one store if they are contiguous
  // and aligned.
  SSIMFAST_DEVICE void put(const View& image, int row, int column, float (&v)[4]) const {
    if constexpr (!kPlain) {
#pragma unroll
      for (int b = 0; b < 4; ++b) v[b] *= job.grad_scale;
    }
    const int64_t at = offset_of(image, row) + (first_column + column) * image.by_column;
    using Four = std::conditional_t<sizeof(T) == 4, float4, uint2>;
    T out[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) out[b] = from_arithmetic<T>(v[b]);
    T* const to = static_cast<T*>(image.data) + at;
    const bool whole = own(column) && own(column + kColumns - 1);
    if (whole && image.by_column == 1 && reinterpret_cast<int64_t>(to) % sizeof(Four) == 0) {
      Four four;
      memcpy(&four, out, sizeof four);
      write(reinterpret_cast<Four*>(to), four);
      return;
    }
#pragma unroll
    for (int b = 0; b < 4; ++b)
      if (own(column + b)) write(to + b * image.by_column, out[b]);
  }
};

template <class T, int K, Kind kKind, bool kPlain>
__global__ void __launch_bounds__(kMostThreads, 1)
    sweep(const __grid_constant__ Job<float> job, const __grid_constant__ Plan plan) {
  Sweep<T, K, kKind, kPlain>(job, plan).run();
}

}  // namespace ssimfast::cuda
