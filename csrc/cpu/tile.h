// One tile of one plane: rows stream through, no intermediate is larger than the tile's ring.
//
//   image rows -> ring of s, d -> vertical filter -> horizontal filter -> moments -> SSIM
//                                                                        -> ring of partials
//   ring of partials -> vertical adjoint -> horizontal adjoint -> (with s, d) gradient rows
//
// kRows rows advance together, so that one loaded vector serves kRows vertical sums. Positions
// are named by the pixel at the centre of their window; `halo` is window / 2.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "plane.h"
#include "simd.h"

namespace ssimfast::cpu {

constexpr int kRows = 4;
constexpr int kMaxWindow = 33;
constexpr int kMaxRing = kMaxWindow + kRows - 1;
constexpr int kMaxLanes = 16;
constexpr int kMaps = 4;

enum class Pass {
  kValue,         // sum of SSIM
  kMap,           // SSIM at every position
  kGradient,      // sum of SSIM and its gradient
  kMapGradient,   // gradient of an upstream-weighted map, recomputed
};

template <class A>
struct Job {
  Source<A> x, y, upstream;  // upstream: kMapGradient only, one element a position
  Sink<A> map;               // kMap only
  Sink<A> grad_x, grad_y;    // gradients; grad_y only if kBoth
  int64_t channels, height, width;
  int window;
  int64_t margin;  // pixels at each edge that are no window's centre: halo for "valid", else 0
  // Taps with kRows - 1 zeros on both sides: the row-blocked loops run past the ends.
  A taps[kMaxWindow + 2 * (kRows - 1)];
  A c1, c2, low, scale;  // unit range = (value - low) * scale
};

struct Tile {
  int64_t n, c;
  int64_t row_begin, row_end, column_begin, column_end;
};

// Widths of the tile's buffers; all rows share one pitch, with a vector's slack at the end.
template <class A>
struct Workspace {
  static int64_t pitch(int64_t tile_width, int window) {
    const int64_t width = tile_width + 4 * (window / 2) + 2 * kMaxLanes;
    return (width + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  }
  static int64_t size(int64_t tile_width, int window) {
    const int64_t ring = window + kRows - 1;
    const int64_t rows = 2 * ring + kMaps * ring + kMaps * kRows + 4;
    return rows * pitch(tile_width, window) + kMaxLanes;
  }
};

// Constants subtracted before squaring, so that variances do not cancel: `level` from both
// images, `difference` from their difference. Means over a sparse grid of the tile. The
// difference is shifted only where it keeps its sign: elsewhere it is small against the
// contrast, and an unshifted zero stays an exact zero.
template <class A>
struct Shift {
  A level, difference;
};

template <class A>
Shift<A> choose_shift(const Job<A>& job, const Tile& tile, const char* x, const char* y,
                      A* x_buffer, A* y_buffer) {
  constexpr int64_t kSampleRows = 8;
  const int64_t rows = tile.row_end - tile.row_begin;
  const int64_t columns = tile.column_end - tile.column_begin;
  const int64_t step = std::max<int64_t>(1, rows / kSampleRows);
  double level = 0, difference = 0, lowest = INFINITY, highest = -INFINITY;
  int64_t count = 0;
  for (int64_t r = tile.row_begin; r < tile.row_end; r += step) {
    const A* xr = job.x.row(x, r, tile.column_begin, columns, x_buffer);
    const A* yr = job.y.row(y, r, tile.column_begin, columns, y_buffer);
    for (int64_t i = 0; i < columns; i += 4) {
      const double d = double(xr[i]) - double(yr[i]);
      level += 0.5 * (double(xr[i]) + double(yr[i]));
      difference += d;
      lowest = std::min(lowest, d);
      highest = std::max(highest, d);
      ++count;
    }
  }
  Shift<A> shift{A(level / count), A(difference / count)};
  if (!std::isfinite(shift.level)) shift.level = job.low;
  if (!(lowest > 0 || highest < 0) || !std::isfinite(shift.difference)) shift.difference = 0;
  return shift;
}

// The taps of a window known at compile time: one half of them, ready in registers.
template <class V, class A, int kWindow>
struct FixedTaps {
  V half[kWindow / 2 + 1];

  explicit SSIMFAST_INLINE FixedTaps(const Job<A>& job) {
    for (int j = 0; j <= kWindow / 2; ++j) half[j] = broadcast<V>(job.taps[j + kRows - 1]);
  }
  SSIMFAST_INLINE V operator[](int j) const {
    return half[j <= kWindow / 2 ? j : kWindow - 1 - j];
  }
};

// Any window: taps from memory, zero for kRows - 1 places beyond either end.
template <class A>
struct AnyTaps {
  const A* taps;

  explicit SSIMFAST_INLINE AnyTaps(const Job<A>& job) : taps(job.taps + kRows - 1) {}
  SSIMFAST_INLINE A operator[](int j) const { return taps[j]; }
};

// kWindow = 0: the window is known at run time only.
template <class V, class A, int kWindow>
struct TileKernel {
  using Taps = std::conditional_t<(kWindow > 0), FixedTaps<V, A, kWindow>, AnyTaps<A>>;
  static constexpr int kLanes = sizeof(V) / sizeof(A);

  const Job<A>& job;
  const Tile tile;
  const int window;
  const int64_t halo, pitch;

  // Vertical sums of kRows output rows: out[b][c] = sum_j taps[j] * rows[b + j][c], and the
  // same of the squares where out_squares is given.
  template <bool kSquares>
  SSIMFAST_INLINE void vertical(const A* const* rows, int64_t width, A* out, A* out_squares) const {
    const Taps taps(job);
    const int ring = (kWindow > 0 ? kWindow : window) + kRows - 1;
    for (int64_t c = 0; c < width; c += kLanes) {
      V sum[kRows] = {}, squares[kRows] = {};
#pragma GCC unroll 16
      for (int k = 0; k < ring; ++k) {
        const V v = load<V>(rows[k] + c);
        const V v2 = v * v;
#pragma GCC unroll 4
        for (int b = 0; b < kRows; ++b) {
          if (kWindow > 0 && (k - b < 0 || k - b >= kWindow)) continue;
          sum[b] += taps[k - b] * v;
          if constexpr (kSquares) squares[b] += taps[k - b] * v2;
        }
      }
#pragma GCC unroll 4
      for (int b = 0; b < kRows; ++b) {
        store(out + b * pitch + c, sum[b]);
        if constexpr (kSquares) store(out_squares + b * pitch + c, squares[b]);
      }
    }
  }

  // Horizontal sums at one column of `count` maps that lie `map_pitch` apart.
  template <int kCount>
  SSIMFAST_INLINE void horizontal(const Taps& taps, const A* from, int64_t map_pitch,
                                  V* sum) const {
    const int count = kWindow > 0 ? kWindow : window;
    for (int i = 0; i < kCount; ++i) sum[i] = V{};
#pragma GCC unroll 16
    for (int j = 0; j < count; ++j) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) sum[i] += taps[j] * load<V>(from + i * map_pitch + j);
    }
  }

  // Fills one ring row of s and d, in unit range and shifted, from image row r; outside the
  // image the padding is the lower end of the range.
  SSIMFAST_INLINE void load_row(const char* x, const char* y, int64_t r, int64_t first_column,
                                int64_t width, Shift<A> shift, A* s, A* d, A* x_buffer,
                                A* y_buffer) const {
    const A pad_s = 2 * (job.low - shift.level) * job.scale;
    const A pad_d = -shift.difference * job.scale;
    const int64_t begin = std::max<int64_t>(first_column, 0);
    const int64_t end = std::min(first_column + width, job.width);
    if (r < 0 || r >= job.height || begin >= end) {
      std::fill(s, s + width, pad_s);
      std::fill(d, d + width, pad_d);
      return;
    }
    const int64_t count = end - begin, left = begin - first_column;
    const A* xr = job.x.row(x, r, begin, count, x_buffer);
    const A* yr = job.y.row(y, r, begin, count, y_buffer);
    std::fill(s, s + left, pad_s);
    std::fill(d, d + left, pad_d);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const V xv = load<V>(xr + i), yv = load<V>(yr + i);
      store(s + left + i, ((xv - shift.level) + (yv - shift.level)) * job.scale);
      store(d + left + i, ((xv - yv) - shift.difference) * job.scale);
    }
    for (; i < count; ++i) {
      s[left + i] = ((xr[i] - shift.level) + (yr[i] - shift.level)) * job.scale;
      d[left + i] = ((xr[i] - yr[i]) - shift.difference) * job.scale;
    }
    std::fill(s + left + count, s + width, pad_s);
    std::fill(d + left + count, d + width, pad_d);
  }

  // Returns the sum of SSIM over the tile's own positions (0 for kMapGradient).
  template <Pass kPass, bool kBoth>
  SSIMFAST_INLINE double run(A* workspace) const {
    constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kMapGradient;
    constexpr int kPartials = kBoth ? 4 : 3;
    const int64_t ring = window + kRows - 1;
    const int64_t spread = kGrad ? halo : 0;  // statistics reach this far beyond the tile
    const int64_t columns = tile.column_end - tile.column_begin;
    const int64_t stat_columns = columns + 2 * spread;
    const int64_t pixel_columns = stat_columns + 2 * halo;
    const int64_t first_stat = tile.column_begin - spread;
    const int64_t first_pixel = first_stat - halo;
    const char* x = job.x.plane(tile.n, tile.c);
    const char* y = job.y.plane(tile.n, tile.c);

    A* s_ring = workspace;
    A* d_ring = s_ring + ring * pitch;
    A* partial_ring = d_ring + ring * pitch;           // kMaps * ring rows
    A* filtered = partial_ring + kMaps * ring * pitch;  // kMaps * kRows rows
    A* x_buffer = filtered + kMaps * kRows * pitch;
    A* y_buffer = x_buffer + pitch;
    A* out_row = y_buffer + pitch;
    A* out_row_y = out_row + pitch;

    const Taps taps(job);
    const Shift<A> shift = choose_shift(job, tile, x, y, x_buffer, y_buffer);
    const A level_s = 2 * (shift.level - job.low) * job.scale;
    const A level_d = shift.difference * job.scale;

    // Columns of the statistics that are centres of a window, as indices into a row.
    const int64_t valid_begin = std::max<int64_t>(job.margin - first_stat, 0);
    const int64_t valid_end = std::min(job.width - job.margin - first_stat, stat_columns);

    const int64_t warm = (2 * spread + kRows - 1) / kRows * kRows;
    const int64_t begin = tile.row_begin - warm;
    const int64_t start = begin - halo + spread;  // first pixel row in the ring
    int64_t loaded = start;
    double total = 0;
    const A* rows[kMaxRing];

    for (int64_t g = begin; g < tile.row_end; g += kRows) {
      const int64_t first_row = g - halo + spread;  // first pixel row of this step's windows
      const int64_t first_center = g + spread;
      for (; loaded < first_row + ring; ++loaded) {
        const int64_t slot = (loaded - start) % ring;
        load_row(x, y, loaded, first_pixel, pixel_columns, shift, s_ring + slot * pitch,
                 d_ring + slot * pitch, x_buffer, y_buffer);
      }
      const int64_t slot0 = (first_row - start) % ring;

      // Statistics of kRows rows.
      const bool any_valid = first_center + kRows > job.margin &&
                             first_center < job.height - job.margin && valid_begin < valid_end;
      if (any_valid) {
        for (int64_t k = 0; k < ring; ++k) rows[k] = s_ring + (slot0 + k) % ring * pitch;
        vertical<true>(rows, pixel_columns, filtered, filtered + 2 * kRows * pitch);
        for (int64_t k = 0; k < ring; ++k) rows[k] = d_ring + (slot0 + k) % ring * pitch;
        vertical<true>(rows, pixel_columns, filtered + kRows * pitch,
                       filtered + 3 * kRows * pitch);
      }
      for (int b = 0; b < kRows; ++b) {
        const int64_t center = first_center + b;
        const bool valid = any_valid && center >= job.margin && center < job.height - job.margin;
        A* partial_row = partial_ring + (center - begin - spread) % ring * pitch;
        const int64_t map_pitch = ring * pitch;
        if (!valid) {
          if constexpr (kGrad)
            for (int i = 0; i < kPartials; ++i)
              std::fill(partial_row + i * map_pitch, partial_row + i * map_pitch + stat_columns,
                        A(0));
          continue;
        }
        const bool own_row = center >= tile.row_begin && center < tile.row_end;
        if (!kGrad && !own_row) continue;
        const A* upstream = nullptr;
        if constexpr (kPass == Pass::kMapGradient) {
          upstream = read_upstream(center, first_stat, valid_begin, valid_end, x_buffer, y_buffer);
        }
        for (int64_t c = 0; c < stat_columns; c += kLanes) {
          V sums[kMaps];
          horizontal<kMaps>(taps, filtered + b * pitch + c, kRows * pitch, sums);
          const Moments<V> m{sums[0] + level_s, sums[1] + level_d,
                             non_negative<V>(sums[2] - sums[0] * sums[0]),
                             non_negative<V>(sums[3] - sums[1] * sums[1])};
          const Terms<V, A> terms(m, job.c1, job.c2);
          if constexpr (kPass != Pass::kMapGradient) store(out_row + c, terms.ssim());
          if constexpr (kGrad) {
            V weight = broadcast<V>(A(1));
            if constexpr (kPass == Pass::kMapGradient) weight = load<V>(upstream + c);
            const Partials<V> p = partials<V, A>(m, terms, job.c1, job.c2, weight);
            const V by_s = p.by_mu_s - sums[0] * p.by_var_s;
            const V by_d = p.by_mu_d - sums[1] * p.by_var_d;
            A* to = partial_row + c;
            store(to, p.by_var_s);
            store(to + map_pitch, p.by_var_d);
            if constexpr (kBoth) {
              store(to + 2 * map_pitch, by_s);
              store(to + 3 * map_pitch, by_d);
            } else {
              store(to + 2 * map_pitch, by_s + by_d);
            }
          }
        }
        if constexpr (kGrad) {
          for (int i = 0; i < kPartials; ++i) {
            A* row = partial_row + i * map_pitch;
            std::fill(row, row + valid_begin, A(0));
            std::fill(row + valid_end, row + stat_columns, A(0));
          }
        }
        if (kPass == Pass::kMap) {
          job.map.row(tile.n, tile.c, center - job.margin, first_stat + valid_begin - job.margin,
                      valid_end - valid_begin, out_row + valid_begin);
        } else if (kPass != Pass::kMapGradient && own_row) {
          total += sum_row(out_row, std::max(valid_begin, spread),
                           std::min(valid_end, spread + columns));
        }
      }

      if constexpr (kGrad) {
        if (g < tile.row_begin) continue;
        // Gradient rows g .. g + kRows - 1 need the partials of centres g - halo .. g + halo + 3.
        const int64_t partial0 = (g - halo - begin - spread) % ring;
        for (int i = 0; i < kPartials; ++i) {
          const A* map = partial_ring + i * ring * pitch;
          for (int64_t k = 0; k < ring; ++k) rows[k] = map + (partial0 + k) % ring * pitch;
          vertical<false>(rows, stat_columns, filtered + i * kRows * pitch, nullptr);
        }
        for (int b = 0; b < kRows && g + b < tile.row_end; ++b) {
          const int64_t slot = (g + b - start) % ring;
          const A* s = s_ring + slot * pitch + 2 * halo;
          const A* d = d_ring + slot * pitch + 2 * halo;
          for (int64_t c = 0; c < columns; c += kLanes) {
            V sums[kPartials];
            horizontal<kPartials>(taps, filtered + b * pitch + c, kRows * pitch, sums);
            const V s_part = load<V>(s + c) * sums[0];
            const V d_part = load<V>(d + c) * sums[1];
            if constexpr (kBoth) {
              const V by_s = sums[2] + s_part, by_d = sums[3] + d_part;
              store(out_row + c, (by_s + by_d) * job.scale);
              store(out_row_y + c, (by_s - by_d) * job.scale);
            } else {
              store(out_row + c, (sums[2] + s_part + d_part) * job.scale);
            }
          }
          job.grad_x.row(tile.n, tile.c, g + b, tile.column_begin, columns, out_row);
          if constexpr (kBoth)
            job.grad_y.row(tile.n, tile.c, g + b, tile.column_begin, columns, out_row_y);
        }
      }
    }
    return total;
  }

  // The upstream gradient at the row of positions around `center`, zero where there are none.
  SSIMFAST_INLINE const A* read_upstream(int64_t center, int64_t first_stat, int64_t valid_begin,
                                         int64_t valid_end, A* row, A* buffer) const {
    const char* plane = job.upstream.plane(tile.n, tile.c);
    const A* from = job.upstream.row(plane, center - job.margin,
                                     first_stat + valid_begin - job.margin,
                                     valid_end - valid_begin, buffer);
    std::copy(from, from + (valid_end - valid_begin), row + valid_begin);
    std::fill(row, row + valid_begin, A(0));
    std::fill(row + valid_end, row + pitch, A(0));
    return row;
  }

  // Sum in double, in an order that depends on the range alone.
  static SSIMFAST_INLINE double sum_row(const A* row, int64_t begin, int64_t end) {
    constexpr int kChains = 8;
    double sum[kChains] = {};
    int64_t i = begin;
    for (; i + kChains <= end; i += kChains)
      for (int j = 0; j < kChains; ++j) sum[j] += double(row[i + j]);
    for (; i < end; ++i) sum[0] += double(row[i]);
    double total = 0;
    for (int j = 0; j < kChains; ++j) total += sum[j];
    return total;
  }
};

}  // namespace ssimfast::cpu
