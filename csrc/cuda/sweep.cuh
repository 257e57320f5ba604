// One pass over two images: a block marches down a strip of columns, kRows rows a step, and keeps
// all that the two filters and their adjoints need on chip (docs/cuda.md has a figure, and the
// counts behind every choice here).
//
//   A  rows of x and y       -> ring of s, d in shared memory
//   B  ring                  -> horizontal means and variances -> exchange buffer
//   C  own column of it      -> vertical filter -> SSIM, partials -> vertical adjoint -> the same
//                               places of the exchange buffer
//   D  exchange, own s and d -> horizontal adjoint -> rows of gradients
//
// In B and D a thread owns kColumns neighbours of one row, so that one vector from shared memory
// serves several outputs; in C it owns one column, whose ten last rows and ten pending gradients
// stay in registers. Nothing is squared before something near it was subtracted
// (docs/mathematics.md, "Centring").
//
// Rows and columns are numbered from the first pixel that the block sees; threads in C from the
// first column of statistics, `halo` further on.
#pragma once

#include <cstring>

#include "job.cuh"

namespace ssimfast::cuda {

constexpr int kRows = 4;
constexpr int kColumns = 4;
constexpr int kMostThreads = 256;
// Threads that a multiprocessor holds at a time: what a thread keeps of its column takes 180 to 255
// registers, so two warps for each scheduler. That is enough because every thread has eight or more
// independent chains of additions to offer, loads its next rows a phase ahead, and because two
// blocks of 128 wait at barriers of their own.
constexpr int kResidentThreads = 256;

// Which part of a plane a block has: its own pixels are those whose gradients it writes and whose
// terms it sums.
struct Plan {
  int threads;
  int first_column;        // of the pixels of the first strip; a multiple of 8
  int strips, strip_step;  // columns from strip to strip
  int runs, run_rows;      // own rows of a run
};

// Sizes of the fused kernel for a window of K.
template <int K, Pass kPass>
struct Sizes {
  static constexpr int kHalo = K / 2;
  static constexpr bool kGradient = kPass != Pass::kForward;
  static constexpr int kSpread = kGradient ? kHalo : 0;  // statistics beyond the own pixels
  // Rows of the ring: all that D and B of one step see, and those that A writes meanwhile.
  static constexpr int kSlots = kGradient ? 2 * kHalo + 2 * kRows : 2 * kRows;
  // Zeros before the first and after the last column of the exchange, in whole vectors.
  static constexpr int kPad = (2 * kHalo + 3) / 4 * 4;

  // Eight threads of a warp, which are served at once, have four rows and two groups of columns in
  // B and D, and one row and eight columns in C. Both are free of bank conflicts, because pitch %
  // 16 is 4, and because column 4 i + j of the exchange is stored at j * stride + i with stride % 8
  // = 2 = row_stride % 8. (threads % 32 is 0.)
  static SSIMFAST_INLINE int pitch(int threads) { return threads + 20; }
  static SSIMFAST_INLINE int stride(int threads) { return threads / 4 + 10; }
  static SSIMFAST_INLINE int row_stride(int threads) { return 4 * stride(threads) + 2; }
  static SSIMFAST_INLINE int exchange_size(int threads) { return kRows * row_stride(threads); }
  static SSIMFAST_INLINE int shared_bytes(int threads) {
    return 16 * exchange_size(threads) + 8 * kSlots * pitch(threads);
  }
};

// T: the element type of the images. kPlain: the loss is SSIM alone, times a weight: no other term,
// map or pooled image is asked for.
template <class T, int K, Pass kPass, bool kPlain>
class Sweep {
  using Size = Sizes<K, kPass>;
  static constexpr int kHalo = Size::kHalo;
  static constexpr bool kGradient = Size::kGradient;
  static constexpr bool kBoth = kPass == Pass::kGradientBoth;
  static constexpr int kAdjoints = kBoth ? 4 : 3;
  static constexpr int kNear = kHalo + 1;  // the row or column that four windows centre on
  static constexpr int kSeen = K - 1 + 4;  // rows or columns that four windows see
  static constexpr int kSlots = Size::kSlots;
  static constexpr int kFirstOwnRow = kHalo + Size::kSpread;

  const Job<float>& job;
  const int thread, threads, quads;
  const int quad_row, quad;  // in B and D: the row, and the group of four columns
  const int plane;
  const int n, c;                     // the plane's image and channel
  const int first_row, first_column;  // in the image
  // The own pixels, and the statistics that are wanted.
  int own_row_end, own_column_begin, own_column_end;
  int valid_row_begin, valid_row_end;
  bool column_valid, column_own;  // of this thread's column in C
  const Shared<float4> exchange;
  const Shared<float> ring;
  const int pitch, stride;
  Sum<float> sums[kTerms];

  // Rows are read by 16 bytes. With these, a row of float32 is a little more than the threads
  // bring.
  static constexpr int kInChunk = 16 / int(sizeof(T));
  static constexpr int kMoreChunks = kInChunk > kColumns ? 0 : (2 * kHalo + 3) / 4;
  struct Chunk {
    uint4 x, y;
  };
  Chunk ahead[kMoreChunks > 0 ? 2 : 1];  // of the next rows, on their way from global memory

  // The last 2 * kHalo rows of this thread's column, and the new ones: horizontal means and
  // variances of s and of d.
  float mean[2][kSeen] = {}, variance[2][kSeen] = {};
  // Gradients of the rows to come, as far as they are known.
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

  SSIMFAST_DEVICE void run() {
    for (int i = thread; i < Size::exchange_size(threads); i += threads)
      exchange.set(i, make_float4(0, 0, 0, 0));
    // The first rows that a wanted window sees; those before are skipped.
    int row = (valid_row_begin - kHalo) / kRows * kRows;
    int slot = row % kSlots;
    fetch(row);
    const Area area{plane, first_row + kFirstOwnRow, first_row + own_row_end,
                    first_column + own_column_begin, first_column + own_column_end};
    const UnitRange<float> unit(job, choose_levels(job, area, thread % kWarp));
    keep(unit, row, slot);
    __syncthreads();
    const int end = own_row_end + kHalo + Size::kSpread;
    for (; row < end; row += kRows) {
      const int centre = row - kHalo;  // of the first window that is complete
      if (centre - kHalo < valid_row_end) filter_rows(slot);
      if constexpr (!kPlain) {
        if (row + kRows > kFirstOwnRow && row < own_row_end) sum_pixels(unit, row, slot);
      }
      __syncthreads();
      column(unit, centre, centre + kRows > valid_row_begin && centre < valid_row_end);
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
    if (job.partial != nullptr) write_sums(job, blockIdx.x, sums, exchange.template as<double>());
  }

 private:
  static SSIMFAST_DEVICE int least(int a, int b) { return a < b ? a : b; }
  static SSIMFAST_DEVICE int most(int a, int b) { return a > b ? a : b; }

  // Where a row of this block's plane begins; the row as in the numbering above.
  SSIMFAST_DEVICE int64_t offset_of(const Image<float>& image, int row) const {
    return image.plane(n, c) + (first_row + row) * image.by_row;
  }

  // Of a row of the ring, at most one turn off.
  static SSIMFAST_DEVICE int wrapped(int slot) {
    return slot < 0 ? slot + kSlots : slot >= kSlots ? slot - kSlots : slot;
  }
  SSIMFAST_DEVICE Shared<float> row_s(int slot) const { return ring + 2 * slot * pitch; }
  SSIMFAST_DEVICE Shared<float> row_d(int slot) const { return ring + (2 * slot + 1) * pitch; }

  SSIMFAST_DEVICE int place(int row, int column) const {
    return row * (4 * stride + 2) + column % 4 * stride + column / 4;
  }

  // ---- A: rows of both images into the ring

  // Calls body(k, row, column) for the chunks that this thread brings.
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

  // Sixteen bytes of a row; zeros outside of the image. At once where they may be.
  SSIMFAST_DEVICE uint4 chunk_of(const Image<float>& image, int row, int column) const {
    const int begin = first_column + column, width = job.width;
    const T* const from =
        static_cast<const T*>(image.data) + offset_of(image, row) + begin * image.by_column;
    if (image.by_column == 1 && reinterpret_cast<int64_t>(from) % 16 == 0 && begin >= 0 &&
        begin + kInChunk <= width)
      return read(reinterpret_cast<const uint4*>(from));
    constexpr int kInWord = 4 / int(sizeof(T));
    uint4 chunk = make_uint4(0, 0, 0, 0);
#pragma unroll 1  // rare: not worth the registers of sixteen bytes' addresses
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

  // Means and variances of four windows of values that stand one apart. The values may have
  // variances of their own; `more` is added to the results.
  template <bool kOwn, int n>
  SSIMFAST_DEVICE void moments(const float (&v)[n], const float (&own)[n], float (&means)[4],
                               float (&variances)[4], float more = 0) const {
    const float near = v[kNear];
    float sum[4] = {}, square[4] = {more, more, more, more};
#pragma unroll
    for (int k = 0; k < kSeen; ++k) {
      if (k == kNear && !kOwn) continue;  // all differences are from it
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

  // Row quad_row of the four newest ones.
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

  // The terms over pixels and the images of the next scale, of the four newest rows.
  SSIMFAST_DEVICE void sum_pixels(const UnitRange<float>& unit, int first, int slot) {
    const bool any = job.wanted[kL1] || job.wanted[kL2] || job.wanted[kBlurredL1];
    for (int column = thread; any && column < own_column_end; column += threads) {
      if (column < own_column_begin) continue;
      for (int i = 0; i < kRows; ++i) {
        const int r = first + i;
        if (r < kFirstOwnRow || r >= own_row_end) continue;
        const float d = row_d(wrapped(slot + i))[column] + unit.level_d();
        const float size = d < 0 ? -d : d;
        if (job.wanted[kL1]) sums[kL1].add(size);
        if (job.wanted[kL2]) sums[kL2].add(d * d);
        if (job.wanted[kBlurredL1])
          sums[kBlurredL1].add(size * pixel_count(job, first_row + r, first_column + column));
      }
    }
    if (job.pooling != Pooling::kNone) pool(unit, first, slot);
  }

  // How many rows or columns of the next scale have their last one before `end`.
  static SSIMFAST_DEVICE int pooled_before(int end, const PooledAxis& axis, int64_t size) {
    return end == size ? int(axis.size) : (end + int(axis.shift)) / 2;
  }

  // Rows of the next scale whose last row is among the four newest; columns whose last one is own.
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

  SSIMFAST_DEVICE void column(const UnitRange<float>& unit, int centre, bool complete) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 v = exchange[place(i, thread + Size::kPad)];
      mean[0][K - 1 + i] = v.x;
      variance[0][K - 1 + i] = v.y;
      mean[1][K - 1 + i] = v.z;
      variance[1][K - 1 + i] = v.w;
    }
    float m[2][4], u[2][4];
    if (complete) {
#pragma unroll
      for (int map = 0; map < 2; ++map)
        moments<true>(mean[map], variance[map], m[map], u[map], map == 0 ? job.twice_c2 : 0);
    }
    const int pixel = kHalo + thread;
    float distance = sums[kSsim].rest(), contrast_distance = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = centre + i;
      float partial[kAdjoints] = {};
      if (complete && column_valid && r >= valid_row_begin && r < valid_row_end) {
        const Moments<float> moments{m[0][i] + unit.level_s(), m[1][i] + unit.level_d(),
                                     u[0][i] < job.twice_c2 ? job.twice_c2 : u[0][i],
                                     non_negative(u[1][i])};
        const Terms<float> terms(moments, job.twice_c1, Reciprocals());
        if (column_own && r >= kFirstOwnRow && r < own_row_end) {
          distance += terms.half_distance();
          if constexpr (!kPlain) contrast_distance += terms.half_contrast_distance;
          if constexpr (kPass == Pass::kForward) write_maps(terms, r, pixel);
        }
        if constexpr (kGradient) {
          const Slopes<float> by = slopes_at(terms, r, pixel);
          const Partials<float> p = partials(terms, by);
          partial[1] = p.by_var_s;
          partial[2] = p.by_var_d;
          if constexpr (kBoth) {
            partial[0] = p.by_mu_s - p.by_var_s * m[0][i];
            partial[3] = p.by_mu_d - p.by_var_d * m[1][i];
          } else {
            partial[0] = by_both_means(terms, by) - p.by_var_s * m[0][i] - p.by_var_d * m[1][i];
          }
        }
      }
      if constexpr (kGradient) {
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
    }
    sums[kSsim].add_with_rest(distance);
    if constexpr (!kPlain) sums[kContrastStructure].add(contrast_distance);
#pragma unroll
    for (int map = 0; map < 2; ++map) {
#pragma unroll
      for (int k = 0; k < K - 1; ++k) {
        mean[map][k] = mean[map][k + kRows];
        variance[map][k] = variance[map][k + kRows];
      }
    }
  }

  SSIMFAST_DEVICE float adjoint_tap(int j) const {
    return kPlain ? job.weighted_taps[j] : job.taps[j];
  }

  // Where a position is in a map: maps have no margin.
  SSIMFAST_DEVICE int64_t in_map(const Image<float>& map, int row, int column) const {
    const int margin = job.margin;
    return offset_of(map, row - margin) + (first_column + column - margin) * map.by_column;
  }

  SSIMFAST_DEVICE Slopes<float> slopes_at(const Terms<float>& terms, int row, int column) const {
    if constexpr (kPlain) {
      return {terms.contrast_structure, terms.luminance};  // the weight is in weighted_taps
    } else if (job.upstreams == 2) {
      const Image<float>&luminance = job.upstream[0], &contrast = job.upstream[1];
      return slopes(terms, {0, luminance.at(in_map(luminance, row, column)),
                            contrast.at(in_map(contrast, row, column))});
    } else if (job.upstreams == 1) {
      return slopes(terms, {job.upstream[0].at(in_map(job.upstream[0], row, column)), 0, 0});
    }
    return slopes(
        terms, {plane_weight(job, plane, kSsim), 0, plane_weight(job, plane, kContrastStructure)});
  }

  SSIMFAST_DEVICE void write_maps(const Terms<float>& terms, int row, int column) const {
    if (job.maps == 1) {
      job.map[0].set(in_map(job.map[0], row, column), similarity_of(terms.half_distance()));
    } else if (job.maps == 2) {
      job.map[0].set(in_map(job.map[0], row, column), similarity_of(terms.half_luminance_distance));
      job.map[1].set(in_map(job.map[1], row, column), similarity_of(terms.half_contrast_distance));
    }
  }

  // ---- D: the horizontal adjoint, and rows of gradients

  SSIMFAST_DEVICE bool own(int column) const {
    return column >= own_column_begin && column < own_column_end;
  }

  // The rows of gradients that are complete; the one of this thread's quad_row.
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
            by_d +=
                by_difference(job, d[b] + unit.level_d(), first_row + r, first_column + column + b);
        }
        by_x[b] = kBoth || !kPlain ? by_s + (by_d + d[b] * sum[2][b]) : by_s + d[b] * sum[2][b];
        by_y[b] = by_s - (by_d + d[b] * sum[2][b]);
      }
      put(job.grad[0], r, column, by_x);
      if constexpr (kBoth) put(job.grad[1], r, column, by_y);
    }
  }

  // Four neighbours of a row of gradients, of those that are own: at once where they may be.
  SSIMFAST_DEVICE void put(const Image<float>& image, int row, int column, float (&v)[4]) const {
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

template <class T, int K, Pass kPass, bool kPlain>
__global__ void __launch_bounds__(kMostThreads, 1)
    sweep(const __grid_constant__ Job<float> job, const __grid_constant__ Plan plan) {
  Sweep<T, K, kPass, kPlain>(job, plan).run();
}

}  // namespace ssimfast::cuda
