// One tile of one plane: rows stream through, no intermediate is larger than the tile's rings.
//
//   image rows -> s, d -> horizontal filter -> ring of means and variances -> vertical filter
//                                                           -> SSIM -> ring of partials
//   ring of partials -> vertical adjoint -> horizontal adjoint -> gradient rows
//
// kRows rows advance together. Positions are named by the pixel at the centre of their window;
// `halo` is window / 2. docs/cpu.md says why it looks as it does, and what was tried.
//
// Nothing is squared before something near it was subtracted (docs/mathematics.md, "Centring"):
// the horizontal filters work on differences from the centre column, the vertical ones on
// differences from a row at or next to the centre. Flat regions, bright or dark, keep their digits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../terms.h"
#include "plane.h"
#include "simd.h"

namespace ssimfast::cpu {

constexpr int kRows = 4;
constexpr int kMaxRing = kMaxWindow + kRows - 1;
constexpr int kMaxLanes = 16;
constexpr int kChunk = 32;  // columns that share a centring pixel of s, in the horizontal adjoint

enum class Pass {
  kValue,        // sums of the terms
  kMap,          // SSIM, or its two components, at every position
  kGradient,     // sums of the terms and the gradient of their weighted sum
  kMapGradient,  // gradient of upstream-weighted maps, recomputed
};

struct Sums {
  double term[kTerms] = {};
};

template <class A>
struct Job {
  Source<A> x, y;
  bool components;          // maps are of luminance and contrast-structure, else of SSIM
  Source<A> upstream[2];    // kMapGradient only, one element a position; two for components
  Sink<A> map[2];           // kMap only; two for components
  Sink<A> grad_x, grad_y;   // gradients; grad_y only if kBoth
  bool wanted[kTerms];      // by the sums
  A weight[kTerms];         // in the gradient, of plain sums
  const A* plane_weight;    // if given, two numbers a plane in place of the first two weights
  const A *rows, *columns;  // kBlurredL1 only: the product of two is what a pixel counts
  Pooling pooling;          // x and y of the next scale, in unit range, contiguous
  PooledAxis pooled_rows, pooled_columns;
  A *pooled_x, *pooled_y;
  int64_t channels, height, width;
  int window;
  int64_t margin;  // pixels at each edge that are no window's centre: halo for "valid", else 0
  A taps[kMaxWindow];
  A twice_c1, twice_c2, low, scale;  // unit range = (value - low) * scale
  A grad_scale;  // of the gradients on the way out: 1 for those that are not finished
};

struct Tile {
  int64_t n, c;
  int64_t row_begin, row_end, column_begin, column_end;
};

// What horizontal filters make of a row of pixels: means, and variances around them.
enum Moment { kMeanS, kVarS, kMeanD, kVarD, kMoments };

// What the statistics of one position leave behind for the gradient: the derivatives by the two
// variances, and what multiplies no pixel, with the factor (pixel - mean) of the former taken at
// the position's own pixel. kRestD only where the gradients to both images are wanted; else kRestS
// is the sum of both.
enum Partial { kByVarS, kByVarD, kRestS, kRestD, kPartials };

// Scratch memory of a tile. All rows share one pitch, with a vector's slack at the end: an odd
// number of cache lines, so that a column of rows does not crowd a few sets of the cache.
template <class A>
struct Workspace {
  static constexpr int64_t kLine = 64 / sizeof(A);

  static int64_t pitch(int64_t tile_width, int window) {
    const int64_t width = tile_width + 4 * (window / 2) + 2 * kMaxLanes;
    return ((width + kLine - 1) / kLine | 1) * kLine;
  }
  // Rows of pixels that the adjoint of the oldest row and the window of the newest one see.
  static int64_t pixel_rows(int window) { return 3 * (window / 2) + kRows; }
  // Columns that the windows of a chunk cover, in whole vectors.
  static int64_t chunk_pitch(int window) {
    return (kChunk + 2 * (window / 2) + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  }
  static int64_t size(int64_t tile_width, int window) {
    const int64_t ring = window + kRows - 1;
    const int64_t rows = 2 * pixel_rows(window) + (int(kMoments) + int(kPartials)) * ring +
                         (kPartials + 2) * kRows + 4;
    const int64_t chunks = (tile_width + kChunk - 1) / kChunk;
    return rows * pitch(tile_width, window) + chunks * chunk_pitch(window);
  }
};

// A constant subtracted from both images on the way in. Within a few ranges of `low` that is `low`
// itself, and s keeps its relative precision down to black. Farther away (a bias, another unit)
// a sum would round off more than either image did: there it is the median of some of the tile's
// values, which outliers do not move.
template <class A>
A choose_level(const Job<A>& job, const Tile& tile, const char* x, const char* y) {
  constexpr A kFarAway = 4;
  constexpr int kSamples = 5;  // in each direction
  std::array<A, 2 * kSamples * kSamples> values;
  auto end = values.begin();
  for (int i = 0; i < kSamples * kSamples; ++i) {
    const auto at = [](int64_t begin, int64_t end, int64_t k) {
      return begin + (2 * k + 1) * (end - begin) / (2 * kSamples);
    };
    const int64_t r = at(tile.row_begin, tile.row_end, i / kSamples);
    const int64_t c = at(tile.column_begin, tile.column_end, i % kSamples);
    for (const A value : {job.x.at(x, r, c), job.y.at(y, r, c)})
      if (std::isfinite(value)) *end++ = value;
  }
  if (end == values.begin()) return job.low;
  const auto middle = values.begin() + (end - values.begin()) / 2;
  std::nth_element(values.begin(), middle, end);
  return std::abs(*middle - job.low) * job.scale > kFarAway ? *middle : job.low;
}

// The taps of a window known at compile time: one half of them, ready in registers.
template <class V, class A, int kWindow>
struct FixedTaps {
  V half[kWindow / 2 + 1];

  explicit SSIMFAST_INLINE FixedTaps(const Job<A>& job) {
    for (int j = 0; j <= kWindow / 2; ++j) half[j] = broadcast<V>(job.taps[j]);
  }
  SSIMFAST_INLINE V operator[](int j) const { return half[j <= kWindow / 2 ? j : kWindow - 1 - j]; }
};

// The taps of any window, from memory.
template <class A>
struct AnyTaps {
  const A* taps;

  explicit SSIMFAST_INLINE AnyTaps(const Job<A>& job) : taps(job.taps) {}
  SSIMFAST_INLINE A operator[](int j) const { return taps[j]; }
};

// Half of 1 - SSIM and of 1 - contrast-structure.
template <class V>
struct Distances {
  V whole, contrast;
};

// kWindow > 0: that window, unrolled, kRows output rows at a time: one loaded vector serves kRows
// vertical sums, which all take differences from the row in the middle. That row is near every
// centre only if the window is wide. kWindow = 0: any window, row by row, each centred on itself.
template <class V, class A, int kWindow, Pass kPass, bool kBoth>
class TileKernel {
 public:
  SSIMFAST_INLINE TileKernel(const Job<A>& job, const Tile& tile, int64_t pitch, A* workspace)
      : job(job),
        tile(tile),
        window(kWindow > 0 ? kWindow : job.window),
        halo(window / 2),
        ring(window + kRows - 1),
        pixel_ring(kGrad ? Workspace<A>::pixel_rows(window) : kRows),
        pitch(pitch),
        spread(kGrad ? halo : 0),
        columns(tile.column_end - tile.column_begin),
        stat_columns(columns + 2 * spread),
        first_stat(tile.column_begin - spread),
        valid_begin(std::max<int64_t>(job.margin - first_stat, 0)),
        valid_end(std::min(job.width - job.margin - first_stat, stat_columns)),
        own_begin(std::max(valid_begin, spread)),
        own_end(std::max(own_begin, std::min(valid_end, spread + columns))),
        vector_begin(valid_begin / kLanes * kLanes),
        first_center(tile.row_begin - (2 * spread + kRows - 1) / kRows * kRows + spread),
        first_row(first_center - halo),
        x(job.x.plane(tile.n, tile.c)),
        y(job.y.plane(tile.n, tile.c)),
        level(choose_level(job, tile, x, y)),
        pad_s(2 * (job.low - level) * job.scale),
        pixels(workspace),
        moments_ring(pixels + 2 * pixel_ring * pitch),
        partials_ring(moments_ring + kMoments * ring * pitch),
        adjoints(partials_ring + kPartials * ring * pitch),
        maps(adjoints + kPartials * kRows * pitch),
        x_buffer(maps + 2 * kRows * pitch),
        y_buffer(x_buffer + pitch),
        out_row(y_buffer + pitch),
        out_row_y(out_row + pitch),
        chunks(out_row_y + pitch),
        chunk_pitch(Workspace<A>::chunk_pitch(window)),
        weight_ssim(4 * plane_weight(kSsim)),
        weight_cs(4 * plane_weight(kContrastStructure)),
        loaded(first_row) {}

  // Returns the sums over the tile's own positions and pixels (none for maps).
  SSIMFAST_INLINE Sums run() {
    if (kPass == Pass::kValue && !job.wanted[kSsim] && !job.wanted[kContrastStructure]) {
      for (int64_t r = tile.row_begin; r < tile.row_end; ++r) {
        if (job.wanted[kL1] || job.wanted[kL2] || job.wanted[kBlurredL1]) load_row(r);
        of_pixels(r);
      }
      return sums;
    }
    for (int64_t g = first_center - spread; g < tile.row_end; g += kRows) {
      statistics(g + spread);
      // Until the first row of the tile, the ring of partials is filling.
      if (kGrad && g >= tile.row_begin) gradient(g);
    }
    return sums;
  }

 private:
  using Taps = std::conditional_t<(kWindow > 0), FixedTaps<V, A, kWindow>, AnyTaps<A>>;
  static constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kMapGradient;
  static constexpr bool kReduces = kPass == Pass::kValue || kPass == Pass::kGradient;
  static constexpr int kLanes = sizeof(V) / sizeof(A);
  static constexpr int kBlock = kWindow > 0 ? kRows : 1;  // rows that share a centring row
  static constexpr int kSums = kBoth ? 4 : 3;             // maps of the adjoint
  static constexpr int kStep = 128;  // columns that go on to statistics at once

  const Job<A>& job;
  const Tile tile;
  const int window;
  const int64_t halo;
  const int64_t ring;  // rows that kRows windows cover
  const int64_t pixel_ring;
  const int64_t pitch;
  const int64_t spread;  // the statistics reach this far beyond the tile
  const int64_t columns, stat_columns, first_stat;
  const int64_t valid_begin, valid_end;  // columns of statistics that are centres of a window
  const int64_t own_begin, own_end;      // those of them that are the tile's own
  const int64_t vector_begin;            // valid_begin or before, a whole number of vectors
  const int64_t first_center, first_row;
  const char *const x, *const y;
  const A level;
  const A pad_s;           // s of the padding
  A* const pixels;         // ring of rows: s, d
  A* const moments_ring;   // ring of rows: kMoments maps
  A* const partials_ring;  // ring of rows: kPartials maps
  A* const adjoints;       // kSums blocks of kRows rows, between vertical and horizontal adjoint
  A* const maps;           // two blocks of kRows rows: SSIM or its components, or their upstream
  A* const x_buffer;
  A* const y_buffer;
  A* const out_row;
  A* const out_row_y;
  A* const chunks;                 // of one row: what the horizontal adjoint filters of s
  const int64_t chunk_pitch;       // between them
  const A weight_ssim, weight_cs;  // four times those of the sums
  int64_t loaded;                  // the first pixel row that is not in the ring yet
  Sums sums;

  A plane_weight(Term term) const {
    if (job.plane_weight == nullptr) return job.weight[term];
    return job.plane_weight[2 * (tile.n * job.channels + tile.c) + term];
  }

  SSIMFAST_INLINE A* pixel_row(int64_t r) const {
    return pixels + (r - first_row) % pixel_ring * 2 * pitch;
  }
  SSIMFAST_INLINE A* moments_row(int64_t r) const {
    return moments_ring + (r - first_row) % ring * kMoments * pitch;
  }
  SSIMFAST_INLINE A* partial_row(int64_t center) const {
    return partials_ring + (center - first_center) % ring * kPartials * pitch;
  }
  SSIMFAST_INLINE A* adjoint_row(int map, int row) const {
    return adjoints + (map * kRows + row) * pitch;
  }
  SSIMFAST_INLINE A* map_row(int map, int row) const { return maps + (map * kRows + row) * pitch; }

  SSIMFAST_INLINE bool is_center(int64_t r) const {
    return r >= job.margin && r < job.height - job.margin && valid_begin < valid_end;
  }

  // The statistics of the positions in rows center0 .. center0 + kRows - 1.
  SSIMFAST_INLINE void statistics(int64_t center0) {
    for (; loaded < center0 - halo + ring; ++loaded) {
      load_row(loaded);
      filter_row(loaded);
      if constexpr (kReduces) {
        if (loaded >= tile.row_begin && loaded < tile.row_end) of_pixels(loaded);
      }
    }
    if (center0 + kRows > job.margin && center0 < job.height - job.margin) {
      if constexpr (kPass == Pass::kMapGradient) {
        for (int b = 0; b < kRows; ++b) {
          for (int i = 0; i <= int(job.components) && is_center(center0 + b); ++i)
            upstream_row(job.upstream[i], center0 + b, map_row(i, b));
        }
      }
      positions(center0);
    }
    for (int b = 0; b < kRows; ++b) {
      const int64_t center = center0 + b;
      if constexpr (kGrad) {  // no window is centred there
        A* const to = partial_row(center);
        for (int i = 0; i < kSums; ++i) {
          A* const row = to + i * pitch;
          if (is_center(center)) {
            std::fill(row, row + valid_begin, A(0));
            std::fill(row + valid_end, row + stat_columns, A(0));
          } else {
            std::fill(row, row + stat_columns, A(0));
          }
        }
      } else if (kPass == Pass::kMap) {
        if (!is_center(center) || center >= tile.row_end) continue;
        for (int i = 0; i <= int(job.components); ++i)
          job.map[i].row(tile.n, tile.c, center - job.margin, first_stat + valid_begin - job.margin,
                         valid_end - valid_begin, map_row(i, b) + valid_begin);
      }
    }
  }

  // Fills one ring row of s and d, in unit range and less the level, from image row r; outside the
  // image the padding is the lower end of the range.
  SSIMFAST_INLINE void load_row(int64_t r) const {
    A* const s = pixel_row(r);
    A* const d = s + pitch;
    const int64_t first = first_stat - halo, width = stat_columns + 2 * halo;
    const int64_t begin = std::max<int64_t>(first, 0);
    const int64_t end = std::min(first + width, job.width);
    if (r < 0 || r >= job.height || begin >= end) {
      std::fill(s, s + width, pad_s);
      std::fill(d, d + width, A(0));
      return;
    }
    const int64_t count = end - begin, left = begin - first;
    const A* xr = job.x.row(x, r, begin, count, x_buffer);
    const A* yr = job.y.row(y, r, begin, count, y_buffer);
    std::fill(s, s + left, pad_s);
    std::fill(d, d + left, A(0));
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const V xv = load<V>(xr + i), yv = load<V>(yr + i);
      store(s + left + i, ((xv - level) + (yv - level)) * job.scale);
      store(d + left + i, (xv - yv) * job.scale);
    }
    for (; i < count; ++i) {
      s[left + i] = ((xr[i] - level) + (yr[i] - level)) * job.scale;
      d[left + i] = (xr[i] - yr[i]) * job.scale;
    }
    std::fill(s + left + count, s + width, pad_s);
    std::fill(d + left + count, d + width, A(0));
  }

  // What needs no window: adds the terms that are sums over pixels, at the tile's own pixels of row
  // r, and pools.
  SSIMFAST_INLINE void of_pixels(int64_t r) {
    const A* const d = pixel_row(r) + pitch + spread + halo;
    if (job.wanted[kL1]) {
      sums.term[kL1] += sum_of(columns, [&](auto lane, int64_t c) SSIMFAST_INLINE_LAMBDA {
        return magnitude(load<decltype(lane)>(d + c));
      });
    }
    if (job.wanted[kL2]) {
      sums.term[kL2] += sum_of(columns, [&](auto lane, int64_t c) SSIMFAST_INLINE_LAMBDA {
        const auto v = load<decltype(lane)>(d + c);
        return v * v;
      });
    }
    if (job.wanted[kBlurredL1]) {
      const A* const counts = job.columns + tile.column_begin;
      sums.term[kBlurredL1] +=
          double(job.rows[r]) * sum_of(columns, [&](auto lane, int64_t c) SSIMFAST_INLINE_LAMBDA {
            return magnitude(load<decltype(lane)>(d + c)) * load<decltype(lane)>(counts + c);
          });
    }
    if (job.pooling != Pooling::kNone) pool_up_to(r);
  }

  // Writes the row of the next scale of which image row r is the last, if there is one.
  SSIMFAST_INLINE void pool_up_to(int64_t r) const {
    const int64_t shift = job.pooled_rows.shift;
    const bool last_is_alone = job.pooling == Pooling::kReplicate && r == job.height - 1;
    if ((r + shift) % 2 == 0 && !last_is_alone) return;
    const int64_t pooled = (r + shift) / 2, top = 2 * pooled - shift;
    if (pooled >= job.pooled_rows.size) return;
    const int64_t offset = ((tile.n * job.channels + tile.c) * job.pooled_rows.size + pooled) *
                           job.pooled_columns.size;
    pool_row(job.x, x, top, r, job.pooled_x + offset);
    pool_row(job.y, y, top, r, job.pooled_y + offset);
  }

  // Means of 2 x 2 pixels of rows `top` (-1: black) and `bottom`, of those whose last column is in
  // the tile.
  SSIMFAST_INLINE void pool_row(const Source<A>& image, const char* plane, int64_t top,
                                int64_t bottom, A* to) const {
    const PooledAxis& axis = job.pooled_columns;
    const int64_t begin = (tile.column_begin + axis.shift) / 2;
    const int64_t end =
        tile.column_end == job.width ? axis.size : (tile.column_end + axis.shift) / 2;
    if (begin >= end) return;
    const int64_t first = std::max<int64_t>(2 * begin - axis.shift, 0);
    const int64_t last = std::min(2 * end - axis.shift, job.width);
    const A* const rows[] = {
        top < 0 ? nullptr : image.row(plane, top, first, last - first, x_buffer),
        image.row(plane, bottom, first, last - first, y_buffer)};
    const A quarter = job.scale / 4, low = job.low;
    const auto pixel = [&](const A* row, int64_t column) SSIMFAST_INLINE_LAMBDA {
      if (row == nullptr || column < 0) return A(0);
      return row[std::min(column, job.width - 1) - first] - low;
    };
    const auto pool_carefully = [&](int64_t c) SSIMFAST_INLINE_LAMBDA {
      const int64_t left = 2 * c - axis.shift;
      to[c] = ((pixel(rows[0], left) + pixel(rows[0], left + 1)) +
               (pixel(rows[1], left) + pixel(rows[1], left + 1))) *
              quarter;
    };
    int64_t c = begin;
    if (rows[0] != nullptr) {
      if (axis.shift != 0 && c == 0) pool_carefully(c++);
      const int64_t inner = std::min(end, (last + axis.shift) / 2);
      const A* upper = rows[0] + (2 * c - axis.shift - first);
      const A* lower = rows[1] + (2 * c - axis.shift - first);
      const int64_t start = c;
      for (; c < inner; ++c) {
        const int64_t i = 2 * (c - start);
        to[c] = (((upper[i] - low) + (upper[i + 1] - low)) +
                 ((lower[i] - low) + (lower[i + 1] - low))) *
                quarter;
      }
    }
    for (; c < end; ++c) pool_carefully(c);
  }

  // The upstream gradient at the row of positions around `center`, zero where there are none.
  SSIMFAST_INLINE void upstream_row(const Source<A>& upstream, int64_t center, A* to) const {
    const A* from =
        upstream.row(upstream.plane(tile.n, tile.c), center - job.margin,
                     first_stat + valid_begin - job.margin, valid_end - valid_begin, out_row);
    std::copy(from, from + (valid_end - valid_begin), to + valid_begin);
    std::fill(to, to + valid_begin, A(0));
    std::fill(to + valid_end, to + pitch, A(0));
  }

  // Horizontal means and variances of pixel row r, around the columns that are centres of a window.
  SSIMFAST_INLINE void filter_row(int64_t r) const {
    A* const to = moments_row(r);
    if (r < 0 || r >= job.height) {
      std::fill(to, to + kMoments * pitch, A(0));
      std::fill(to + kMeanS * pitch, to + (kMeanS + 1) * pitch, pad_s);
      return;
    }
    const Taps taps(job);
    const A* const s = pixel_row(r);
    const A* const d = s + pitch;
    const char* const soon_x = job.x.address(x, r + kRows, first_stat);
    const char* const soon_y = job.y.address(y, r + kRows, first_stat);
    for (int64_t c = vector_begin; c < valid_end; c += kLanes) {
      prefetch(soon_x + c * job.x.element_size);
      prefetch(soon_y + c * job.y.element_size);
      row_moments(taps, s + c, d + c, to + c);
    }
  }

  // Means and variances of windows of s and d, the first columns of which are given. Differences
  // are taken from the centre column.
  SSIMFAST_INLINE void row_moments(const Taps& taps, const A* from_s, const A* from_d,
                                   A* to) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    const V near_s = load<V>(from_s + half), near_d = load<V>(from_d + half);
    V sum_s{}, squares_s{}, sum_d{}, squares_d{};
#pragma GCC unroll 16
    for (int j = 0; j < half; ++j) {
      const int k = 2 * half - j;
      const V left_s = load<V>(from_s + j) - near_s, right_s = load<V>(from_s + k) - near_s;
      const V left_d = load<V>(from_d + j) - near_d, right_d = load<V>(from_d + k) - near_d;
      sum_s += taps[j] * (left_s + right_s);
      sum_d += taps[j] * (left_d + right_d);
      squares_s += taps[j] * (left_s * left_s + right_s * right_s);
      squares_d += taps[j] * (left_d * left_d + right_d * right_d);
    }
    store(to + kMeanS * pitch, near_s + sum_s);
    store(to + kVarS * pitch, squares_s - sum_s * sum_s);
    store(to + kMeanD * pitch, near_d + sum_d);
    store(to + kVarD * pitch, squares_d - sum_d * sum_d);
  }

  // Means and variances of kBlock windows of rows: window b is over rows b .. b + window - 1. Goes
  // on into the rows of `to`, `step` apart.
  SSIMFAST_INLINE void column_moments(const Taps& taps, const A* const* rows, int64_t mean_at,
                                      int64_t variance_at, A* means, A* variances,
                                      int64_t step) const {
    const int count = (kWindow > 0 ? kWindow : window) + kBlock - 1;
    const V near = load<V>(rows[count / 2] + mean_at);
    V sum[kBlock] = {}, squares[kBlock] = {};
#pragma GCC unroll 16
    for (int k = 0; k < count; ++k) {
      const bool is_near = kWindow > 0 && k == count / 2;
      const V e = load<V>(rows[k] + mean_at) - near, own = load<V>(rows[k] + variance_at);
      const V e2 = is_near ? own : e * e + own;
#pragma GCC unroll 4
      for (int b = 0; b < kBlock; ++b) {
        if (kBlock > 1 && (k - b < 0 || k - b >= kWindow)) continue;
        if (!is_near) sum[b] += taps[k - b] * e;
        squares[b] += taps[k - b] * e2;
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBlock; ++b) {
      store(means + b * step, near + sum[b]);
      store(variances + b * step, non_negative<V>(squares[b] - sum[b] * sum[b]));
    }
  }

  // Rows of positions: their terms into the sums or `maps`, their partials into the ring. Chunk by
  // chunk, whose moments stay in the innermost cache.
  SSIMFAST_INLINE void positions(int64_t center0) {
    const Taps taps(job);
    const A* rows[kMaxRing];
    for (int64_t k = 0; k < ring; ++k) rows[k] = moments_row(center0 - halo + k);
    Compensated<V, A> distances, contrast_distances;
    const Constants constants{broadcast<V>(job.twice_c1), broadcast<V>(job.twice_c2),
                              broadcast<V>(pad_s), broadcast<V>(weight_ssim),
                              broadcast<V>(weight_cs)};
    alignas(64) A moments[kMoments][kRows][kStep];
    for (int64_t first = vector_begin; first < valid_end; first += kStep) {
      const int64_t some = std::min<int64_t>(kStep, valid_end - first);
      for (int i : {kMeanS, kMeanD}) {  // each with its variance behind it
        for (int b = 0; b < kRows; b += kBlock) {
          for (int64_t c = 0; c < some; c += kLanes)
            column_moments(taps, rows + b, i * pitch + first + c, (i + 1) * pitch + first + c,
                           moments[i][b] + c, moments[i + 1][b] + c, kStep);
        }
      }
      for (int b = 0; b < kRows; ++b) {
        const int64_t center = center0 + b;
        if (!is_center(center)) continue;
        const bool counts = center >= tile.row_begin && center < tile.row_end;
        const Place place{kGrad ? pixel_row(center) + halo + first : nullptr,
                          kGrad ? partial_row(center) + first : nullptr,
                          {map_row(0, b) + first, map_row(1, b) + first}};
        V distance{}, contrast_distance{};  // of a step
        for (int64_t c = 0; c < some; c += kLanes) {
          const Distances<V> at =
              position(constants, load<V>(moments[kMeanS][b] + c), load<V>(moments[kVarS][b] + c),
                       load<V>(moments[kMeanD][b] + c), load<V>(moments[kVarD][b] + c), place, c);
          if constexpr (kReduces) {
            const int64_t begin = own_begin - first - c, end = own_end - first - c;
            if (begin <= 0 && end >= kLanes) {
              distance += at.whole;
              contrast_distance += at.contrast;
            } else if (counts) {
              distances.add_some(at.whole, begin, end);
              contrast_distances.add_some(at.contrast, begin, end);
            }
          }
        }
        if (kReduces && counts) {
          distances.add(distance);
          contrast_distances.add(contrast_distance);
        }
      }
    }
    if constexpr (kReduces) {
      double count = 0;
      for (int64_t r = center0; r < center0 + kRows; ++r)
        count += is_center(r) && r >= tile.row_begin && r < tile.row_end ? own_end - own_begin : 0;
      if (job.wanted[kSsim]) sums.term[kSsim] += count - 2 * distances.total();
      if (job.wanted[kContrastStructure])
        sums.term[kContrastStructure] += count - 2 * contrast_distances.total();
    }
  }

  // What all positions share, in registers: a store could change what is elsewhere.
  struct Constants {
    V twice_c1, twice_c2, pad_s, weight_ssim, weight_cs;
  };

  // Rows from the first column of a step on: of own pixels, of partials, of maps.
  struct Place {
    const A* pixels;
    A* partials;
    A* maps[2];
  };

  // A vector of positions, from its moments: its distances, its maps, and its partials.
  SSIMFAST_INLINE Distances<V> position(const Constants& constants, V mean_s, V var_s, V mean_d,
                                        V var_d, const Place& place, int64_t c) const {
    const Moments<V> m{mean_s - constants.pad_s, mean_d, var_s + constants.twice_c2, var_d};
    const Terms<V> terms(m, constants.twice_c1, Reciprocals<A>());
    const Distances<V> distances{terms.half_distance(), terms.half_contrast_distance};
    if constexpr (kPass == Pass::kMap) {
      store(place.maps[0] + c,
            similarity_of(job.components ? terms.half_luminance_distance : distances.whole));
      if (job.components) store(place.maps[1] + c, similarity_of(distances.contrast));
    }
    if constexpr (kGrad) {
      Slopes<V> by;
      if constexpr (kPass == Pass::kGradient) {
        by.luminance = constants.weight_ssim * terms.contrast_structure;
        by.contrast_structure = constants.weight_ssim * terms.luminance + constants.weight_cs;
      } else {
        const V upstream = load<V>(place.maps[0] + c);
        by = slopes(terms, job.components ? Upstream<V>{V{}, upstream, load<V>(place.maps[1] + c)}
                                          : Upstream<V>{upstream, V{}, V{}});
      }
      const Partials<V> p = partials(terms, by);
      const V rest_s = p.by_var_s * (load<V>(place.pixels + c) - mean_s);
      const V rest_d = p.by_var_d * (load<V>(place.pixels + pitch + c) - mean_d);
      A* const to = place.partials + c;
      store(to + kByVarS * pitch, p.by_var_s);
      store(to + kByVarD * pitch, p.by_var_d);
      if constexpr (kBoth) {
        store(to + kRestS * pitch, p.by_mu_s + rest_s);
        store(to + kRestD * pitch, p.by_mu_d + rest_d);
      } else {
        store(to + kRestS * pitch, by_both_means(terms, by) + rest_s + rest_d);
      }
    }
    return distances;
  }

  // Gradient rows g .. g + kRows - 1, from the partials of centres g - halo .. g + halo + kRows
  // - 1. The vertical adjoint moves the pixel of the factor (pixel - mean) from each position's own
  // to that of one row in the middle, `near`; the horizontal one along that row to the gradient's
  // own, for s by way of one pixel of each chunk of columns.
  SSIMFAST_INLINE void gradient(int64_t g) const {
    const Taps taps(job);
    for (int block = 0; block < kRows; block += kBlock) {
      const int64_t middle = std::min(g + block + kBlock / 2, tile.row_end - 1);
      const A* const near = pixel_row(middle) + halo;
      column_adjoint(taps, g + block, near, block);
      for (int b = block; b < block + kBlock && g + b < tile.row_end; ++b) {
        A* const by_x = job.grad_x.in_place(tile.n, tile.c, g + b, tile.column_begin, out_row);
        A* const by_y =
            kBoth ? job.grad_y.in_place(tile.n, tile.c, g + b, tile.column_begin, out_row_y)
                  : nullptr;
        const A* const own = pixel_row(g + b) + 2 * halo;
        // All chunks before the first is filtered: what was stored just before is slow to load from
        // between.
        for_chunks([&](int64_t c, auto some)
                       SSIMFAST_INLINE_LAMBDA { fill_chunk(b, near, c, some); });
        for_chunks([&](int64_t c, auto some) SSIMFAST_INLINE_LAMBDA {
          row_adjoint(taps, b, near, own, c, some, by_x, by_y);
        });
        if constexpr (kPass == Pass::kGradient) add_pixel_gradient(g + b, by_x, by_y);
        if (by_x == out_row)
          job.grad_x.row(tile.n, tile.c, g + b, tile.column_begin, columns, out_row);
        if (kBoth && by_y == out_row_y)
          job.grad_y.row(tile.n, tile.c, g + b, tile.column_begin, columns, out_row_y);
      }
    }
  }

  // The vertical half of the adjoint, for kBlock gradient rows from row g on.
  SSIMFAST_INLINE void column_adjoint(const Taps& taps, int64_t g, const A* near,
                                      int to_row) const {
    const int count = (kWindow > 0 ? kWindow : window) + kBlock - 1;
    const A *rows[kMaxRing], *pixel_rows[kMaxRing];
    for (int k = 0; k < count; ++k) {
      rows[k] = partial_row(g - halo + k);
      pixel_rows[k] = pixel_row(g - halo + k) + halo;
    }
    const auto filter = [&](int64_t c, int map, auto&& term) SSIMFAST_INLINE_LAMBDA {
      V sum[kBlock] = {};
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) {
        const V v = term(k);
#pragma GCC unroll 4
        for (int b = 0; b < kBlock; ++b) {
          if (kBlock > 1 && (k - b < 0 || k - b >= kWindow)) continue;
          sum[b] += taps[k - b] * v;
        }
      }
#pragma GCC unroll 4
      for (int b = 0; b < kBlock; ++b) store(adjoint_row(map, to_row + b) + c, sum[b]);
    };
    for (int64_t c = 0; c < stat_columns; c += kLanes) {
      const V s = load<V>(near + c), d = load<V>(near + pitch + c);
      const auto partial = [&](int k, Partial i)
                               SSIMFAST_INLINE_LAMBDA { return load<V>(rows[k] + i * pitch + c); };
      const auto moved_s = [&](int k) SSIMFAST_INLINE_LAMBDA {
        return partial(k, kRestS) + (s - load<V>(pixel_rows[k] + c)) * partial(k, kByVarS);
      };
      const auto moved_d = [&](int k) SSIMFAST_INLINE_LAMBDA {
        return (d - load<V>(pixel_rows[k] + pitch + c)) * partial(k, kByVarD);
      };
      filter(c, kByVarS, [&](int k) SSIMFAST_INLINE_LAMBDA { return partial(k, kByVarS); });
      filter(c, kByVarD, [&](int k) SSIMFAST_INLINE_LAMBDA { return partial(k, kByVarD); });
      if constexpr (kBoth) {
        filter(c, kRestS, moved_s);
        filter(c, kRestD,
               [&](int k) SSIMFAST_INLINE_LAMBDA { return partial(k, kRestD) + moved_d(k); });
      } else {
        filter(c, kRestS, [&](int k) SSIMFAST_INLINE_LAMBDA { return moved_s(k) + moved_d(k); });
      }
    }
  }

  // body(c, some) for each chunk of columns: its first one and their number, a constant where it is
  // whole, and loops over it are unrolled.
  template <class Body>
  SSIMFAST_INLINE void for_chunks(Body&& body) const {
    int64_t c = 0;
    for (; c + kChunk <= columns; c += kChunk) body(c, std::integral_constant<int, kChunk>());
    if (c < columns) body(c, int(columns - c));
  }

  SSIMFAST_INLINE A* chunk(int64_t c) const { return chunks + c / kChunk * chunk_pitch; }

  // The pixel of s that the `some` columns from c on share.
  SSIMFAST_INLINE A shared_s(const A* near, int64_t c, int some) const {
    return near[c + halo + some / 2];
  }

  // What does not depend on the pixel of the gradient, moved to that pixel, of all columns that a
  // chunk's windows cover.
  SSIMFAST_INLINE void fill_chunk(int row, const A* near, int64_t c, int some) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    const A* const by_var = adjoint_row(kByVarS, row) + c;
    const A* const rest = adjoint_row(kRestS, row) + c;
    const A s = shared_s(near, c, some);
#pragma GCC unroll 16
    for (int i = 0; i < some + 2 * half; i += kLanes)
      store(chunk(c) + i, load<V>(rest + i) + (s - load<V>(near + c + i)) * load<V>(by_var + i));
  }

  // The horizontal half, for one chunk of columns of one row, from column c on: gradients by x, and
  // by y where both are wanted. `own` points to the first column's own s.
  SSIMFAST_INLINE void row_adjoint(const Taps& taps, int row, const A* near, const A* own,
                                   int64_t c, int some, A* by_x, A* by_y) const {
    const A* const var_s = adjoint_row(kByVarS, row) + c;
    const A* const var_d = adjoint_row(kByVarD, row) + c;
    const A* const rest_s = chunk(c);
    const A s = shared_s(near, c, some);
#pragma GCC unroll 16
    for (int i = 0; i < some; i += kLanes) {
      const V own_s = load<V>(own + c + i), own_d = load<V>(own + pitch + c + i);
      const A* const near_d = near + pitch + c + i;
      V part_s = (own_s - s) * filtered(taps, var_s + i);
      V part_d{};
      if constexpr (kBoth) {
        part_s += filtered(taps, rest_s + i);
        part_d = filtered_exactly(taps, adjoint_row(kRestD, row) + c + i, var_d + i, near_d, own_d);
      } else {
        part_s += filtered_exactly(taps, rest_s + i, var_d + i, near_d, own_d);
      }
      store_some(by_x + c + i, (part_s + part_d) * job.grad_scale, some - i);
      if constexpr (kBoth) store_some(by_y + c + i, (part_s - part_d) * job.grad_scale, some - i);
    }
  }

  SSIMFAST_INLINE V filtered(const Taps& taps, const A* from) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    V sum = taps[half] * load<V>(from + half);
#pragma GCC unroll 16
    for (int j = 0; j < half; ++j)
      sum += taps[j] * (load<V>(from + j) + load<V>(from + 2 * half - j));
    return sum;
  }

  // The same of rest + (own - near) * slope.
  SSIMFAST_INLINE V filtered_exactly(const Taps& taps, const A* rest, const A* slope, const A* near,
                                     V own) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    const auto term = [&](int j, V more) SSIMFAST_INLINE_LAMBDA {
      return (own - load<V>(near + j)) * load<V>(slope + j) + more;
    };
    V sum = taps[half] * term(half, load<V>(rest + half));
#pragma GCC unroll 16
    for (int j = 0; j < half; ++j) {
      const int k = 2 * half - j;
      sum += taps[j] * term(j, term(k, load<V>(rest + j) + load<V>(rest + k)));
    }
    return sum;
  }

  // Adds to one row of gradients what the sums over pixels contribute.
  SSIMFAST_INLINE void add_pixel_gradient(int64_t r, A* by_x, A* by_y) const {
    const A l1 = job.weight[kL1], l2 = job.weight[kL2], blurred = job.weight[kBlurredL1];
    const bool has_l1 = l1 != 0 || l2 != 0, has_blurred = blurred != 0;
    const A* const d = pixel_row(r) + pitch + 2 * halo;
    if (has_l1)
      add_by_d(by_x, by_y,
               [&](int64_t c) SSIMFAST_INLINE_LAMBDA { return l1 * sign(d[c]) + 2 * l2 * d[c]; });
    if (has_blurred) {
      const A factor = blurred * job.rows[r];
      const A* const counts = job.columns + tile.column_begin;
      add_by_d(by_x, by_y,
               [&](int64_t c) SSIMFAST_INLINE_LAMBDA { return factor * counts[c] * sign(d[c]); });
    }
  }

  template <class Body>
  SSIMFAST_INLINE void add_by_d(A* by_x, A* by_y, Body&& by_d) const {
    for (int64_t c = 0; c < columns; ++c) {
      const A value = by_d(c) * job.grad_scale;
      by_x[c] += value;
      if constexpr (kBoth) by_y[c] -= value;
    }
  }

  // The sum of body(lane, c) for c = 0 .. count - 1; body takes a vector of columns or one, by the
  // type of `lane`.
  template <class Body>
  static SSIMFAST_INLINE double sum_of(int64_t count, Body&& body) {
    V sum{};
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) sum += body(V{}, c);
    double total = 0;
    A lanes[kLanes];
    store(lanes, sum);
    for (int i = 0; i < kLanes; ++i) total += double(lanes[i]);
    for (; c < count; ++c) total += double(body(A{}, c));
    return total;
  }
};

}  // namespace ssimfast::cpu
