// One tile of one plane: rows stream through, no intermediate is larger than the tile's ring.
//
//   image rows -> ring of s, d -> vertical filter -> horizontal filter -> moments -> SSIM
//                                                                        -> ring of partials
//   ring of partials -> vertical adjoint -> horizontal adjoint -> (with s, d) gradient rows
//
// kRows rows advance together, so that one loaded vector serves kRows vertical sums. Positions
// are named by the pixel at the centre of their window; `halo` is window / 2.
//
// Nothing is squared before something near it was subtracted (docs/mathematics.md, "Centring"):
// the vertical filters work on differences from one row of the block, the horizontal ones on
// differences from the centre column. Flat neighbourhoods, bright or dark, so keep their digits.
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
  kValue,        // sum of SSIM
  kMap,          // SSIM at every position
  kGradient,     // sum of SSIM and its gradient
  kMapGradient,  // gradient of an upstream-weighted map, recomputed
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

// What the statistics of one position leave behind for the gradient: the derivatives by the two
// variances, the two means (of shifted values), and the luminance part of the derivatives by the
// means. With the gradient to one image only, kLumS holds the sum of both luminance parts.
enum Partial { kVarS, kVarD, kMeanS, kMeanD, kLumS, kLumD, kPartials };

// Scratch memory of a tile. All rows share one pitch, with a vector's slack at the end.
template <class A>
struct Workspace {
  static int64_t pitch(int64_t tile_width, int window) {
    const int64_t width = tile_width + 4 * (window / 2) + 2 * kMaxLanes;
    return (width + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  }
  static int64_t size(int64_t tile_width, int window) {
    const int64_t ring = window + kRows - 1;
    const int64_t rows = (2 + kPartials) * ring + kMaps * kRows + 4;
    return rows * pitch(tile_width, window) + kMaxLanes;
  }
};

// A constant subtracted from both images on the way in. Within a few ranges of `low` that is `low`
// itself, and s keeps its relative precision down to black. Farther away (a bias, another unit)
// a sum would round off more than either image did: there it is one of the tile's values.
template <class A>
A choose_level(const Job<A>& job, const Tile& tile, const char* x) {
  constexpr A kFarAway = 4;
  A buffer;
  const A value = *job.x.row(x, (tile.row_begin + tile.row_end) / 2,
                             (tile.column_begin + tile.column_end) / 2, 1, &buffer);
  return std::abs(value - job.low) * job.scale > kFarAway && std::isfinite(value) ? value : job.low;
}

// The taps of a window known at compile time: one half of them, ready in registers.
template <class V, class A, int kWindow>
struct FixedTaps {
  V half[kWindow / 2 + 1];

  explicit SSIMFAST_INLINE FixedTaps(const Job<A>& job) {
    for (int j = 0; j <= kWindow / 2; ++j) half[j] = broadcast<V>(job.taps[j + kRows - 1]);
  }
  SSIMFAST_INLINE V operator[](int j) const { return half[j <= kWindow / 2 ? j : kWindow - 1 - j]; }
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

  // Vertical means and variances of kRows output rows: row b of the results is over rows
  // b .. b + window - 1. Differences are taken from the row in the middle of the block.
  SSIMFAST_INLINE void vertical_moments(const Taps& taps, const A* const* rows, int64_t width,
                                        A* mean, A* variance) const {
    const int ring = (kWindow > 0 ? kWindow : window) + kRows - 1;
    for (int64_t c = 0; c < width; c += kLanes) {
      // One row has no neighbours: centring it would only round its values.
      const V near = window > 1 ? load<V>(rows[ring / 2] + c) : V{};
      V sum[kRows] = {}, squares[kRows] = {};
#pragma GCC unroll 16
      for (int k = 0; k < ring; ++k) {
        const V v = load<V>(rows[k] + c) - near;
        const V v2 = v * v;
#pragma GCC unroll 4
        for (int b = 0; b < kRows; ++b) {
          if (kWindow > 0 && (k - b < 0 || k - b >= kWindow)) continue;
          sum[b] += taps[k - b] * v;
          squares[b] += taps[k - b] * v2;
        }
      }
#pragma GCC unroll 4
      for (int b = 0; b < kRows; ++b) {
        store(mean + b * pitch + c, near + sum[b]);
        store(variance + b * pitch + c, non_negative<V>(squares[b] - sum[b] * sum[b]));
      }
    }
  }

  // Mean and variance of a window from the vertical ones of its columns, the first of which
  // `mean` and `variance` point to. Differences are taken from the centre column.
  SSIMFAST_INLINE void horizontal_moments(const Taps& taps, const A* mean, const A* variance,
                                          V& result_mean, V& result_variance) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    const V near = load<V>(mean + half);
    V sum{}, squares = taps[half] * load<V>(variance + half);
#pragma GCC unroll 16
    for (int j = 0; j < half; ++j) {
      const int k = 2 * half - j;
      const V left = load<V>(mean + j) - near, right = load<V>(mean + k) - near;
      const V left2 = left * left + load<V>(variance + j);
      const V right2 = right * right + load<V>(variance + k);
      sum += taps[j] * (left + right);
      squares += taps[j] * (left2 + right2);
    }
    result_mean = near + sum;
    result_variance = non_negative<V>(squares - sum * sum);
  }

  // The vertical half of the adjoint, for kRows gradient rows: of the derivatives by the
  // variances, and of everything that multiplies no pixel (by s and by d apart for kBoth).
  // The factor (pixel - mean) is taken at the pixels near_s, near_d of one row here;
  // horizontal_adjoint moves it to each pixel. Row k of all maps starts at rows[k].
  template <bool kBoth>
  SSIMFAST_INLINE void vertical_adjoint(const Taps& taps, const A* const* rows, const A* near_s,
                                        const A* near_d, int64_t width, A* out) const {
    constexpr int kSums = kBoth ? 4 : 3;
    const int ring = (kWindow > 0 ? kWindow : window) + kRows - 1;
    for (int64_t c = 0; c < width; c += kLanes) {
      const V s = load<V>(near_s + c), d = load<V>(near_d + c);
      V sum[kSums][kRows] = {};
#pragma GCC unroll 16
      for (int k = 0; k < ring; ++k) {
        const A* row = rows[k] + c;
        V term[kSums];
        term[0] = load<V>(row + kVarS * pitch);
        term[1] = load<V>(row + kVarD * pitch);
        term[2] = load<V>(row + kLumS * pitch) + (s - load<V>(row + kMeanS * pitch)) * term[0];
        const V by_d = (d - load<V>(row + kMeanD * pitch)) * term[1];
        if constexpr (kBoth) {
          term[3] = load<V>(row + kLumD * pitch) + by_d;
        } else {
          term[2] += by_d;
        }
#pragma GCC unroll 4
        for (int b = 0; b < kRows; ++b) {
          if (kWindow > 0 && (k - b < 0 || k - b >= kWindow)) continue;
#pragma GCC unroll 4
          for (int i = 0; i < kSums; ++i) sum[i][b] += taps[k - b] * term[i];
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kSums; ++i) {
#pragma GCC unroll 4
        for (int b = 0; b < kRows; ++b) store(out + (i * kRows + b) * pitch + c, sum[i][b]);
      }
    }
  }

  // One column's part of the gradient by s and by d at pixels (s, d); all in `by_s` unless kBoth.
  template <bool kBoth>
  SSIMFAST_INLINE void adjoint_term(const A* from, const A* near_s, const A* near_d, V s, V d,
                                    V& by_s, V& by_d) const {
    const int64_t map = kRows * pitch;
    by_s = load<V>(from + 2 * map) + (s - load<V>(near_s)) * load<V>(from);
    by_d = (d - load<V>(near_d)) * load<V>(from + map);
    if constexpr (kBoth) {
      by_d += load<V>(from + 3 * map);
    } else {
      by_s += by_d;
    }
  }

  // The horizontal half: `from`, `near_s`, `near_d` point to the first column under the window.
  template <bool kBoth>
  SSIMFAST_INLINE void horizontal_adjoint(const Taps& taps, const A* from, const A* near_s,
                                          const A* near_d, V s, V d, V& by_s, V& by_d) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    V left_s, left_d, right_s, right_d;
    adjoint_term<kBoth>(from + half, near_s + half, near_d + half, s, d, left_s, left_d);
    by_s = taps[half] * left_s;
    by_d = taps[half] * left_d;
#pragma GCC unroll 16
    for (int j = 0; j < half; ++j) {
      const int k = 2 * half - j;
      adjoint_term<kBoth>(from + j, near_s + j, near_d + j, s, d, left_s, left_d);
      adjoint_term<kBoth>(from + k, near_s + k, near_d + k, s, d, right_s, right_d);
      by_s += taps[j] * (left_s + right_s);
      if constexpr (kBoth) by_d += taps[j] * (left_d + right_d);
    }
  }

  // Fills one ring row of s and d, in unit range and less the level, from image row r; outside the
  // image the padding is the lower end of the range.
  SSIMFAST_INLINE void load_row(const char* x, const char* y, int64_t r, int64_t first_column,
                                int64_t width, A level, A* s, A* d, A* x_buffer,
                                A* y_buffer) const {
    const A pad_s = 2 * (job.low - level) * job.scale;
    const int64_t begin = std::max<int64_t>(first_column, 0);
    const int64_t end = std::min(first_column + width, job.width);
    if (r < 0 || r >= job.height || begin >= end) {
      std::fill(s, s + width, pad_s);
      std::fill(d, d + width, A(0));
      return;
    }
    const int64_t count = end - begin, left = begin - first_column;
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

  // Returns the sum of SSIM over the tile's own positions (0 for the map passes).
  template <Pass kPass, bool kBoth>
  SSIMFAST_INLINE double run(A* workspace) const {
    constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kMapGradient;
    const int64_t ring = window + kRows - 1;
    const int64_t spread = kGrad ? halo : 0;  // statistics reach this far beyond the tile
    const int64_t columns = tile.column_end - tile.column_begin;
    const int64_t stat_columns = columns + 2 * spread;
    const int64_t pixel_columns = stat_columns + 2 * halo;
    const int64_t first_stat = tile.column_begin - spread;
    const int64_t first_pixel = first_stat - halo;
    const char* x = job.x.plane(tile.n, tile.c);
    const char* y = job.y.plane(tile.n, tile.c);

    A* const pixels = workspace;                             // ring rows of s, then d
    A* const partial = pixels + 2 * ring * pitch;            // ring rows of kPartials maps
    A* const filtered = partial + kPartials * ring * pitch;  // kMaps blocks of kRows rows
    A* const x_buffer = filtered + kMaps * kRows * pitch;
    A* const y_buffer = x_buffer + pitch;
    A* const out_row = y_buffer + pitch;
    A* const out_row_y = out_row + pitch;

    const Taps taps(job);
    const A level = choose_level(job, tile, x);
    const A level_s = 2 * (level - job.low) * job.scale;

    // Columns of the statistics that are centres of a window, as indices into a row.
    const int64_t valid_begin = std::max<int64_t>(job.margin - first_stat, 0);
    const int64_t valid_end = std::min(job.width - job.margin - first_stat, stat_columns);

    const int64_t warm = (2 * spread + kRows - 1) / kRows * kRows;
    const int64_t begin = tile.row_begin - warm;
    const int64_t first_center = begin + spread;
    const int64_t first_row = first_center - halo;
    int64_t loaded = first_row;
    double total = 0;
    const A* rows[kMaxRing];

    const auto pixel_row = [&](int64_t r) { return pixels + (r - first_row) % ring * 2 * pitch; };
    const auto partial_row = [&](int64_t center) {
      return partial + (center - first_center) % ring * kPartials * pitch;
    };

    for (int64_t g = begin; g < tile.row_end; g += kRows) {
      // Statistics of kRows rows from `center0` on.
      const int64_t center0 = g + spread;
      for (; loaded < center0 - halo + ring; ++loaded) {
        A* const s = pixel_row(loaded);
        load_row(x, y, loaded, first_pixel, pixel_columns, level, s, s + pitch, x_buffer, y_buffer);
      }
      const bool any_valid = center0 + kRows > job.margin && center0 < job.height - job.margin &&
                             valid_begin < valid_end;
      if (any_valid) {
        for (int64_t k = 0; k < ring; ++k) rows[k] = pixel_row(center0 - halo + k);
        vertical_moments(taps, rows, pixel_columns, filtered, filtered + kRows * pitch);
        for (int64_t k = 0; k < ring; ++k) rows[k] += pitch;
        vertical_moments(taps, rows, pixel_columns, filtered + 2 * kRows * pitch,
                         filtered + 3 * kRows * pitch);
      }
      for (int b = 0; b < kRows; ++b) {
        const int64_t center = center0 + b;
        const bool own_row = center >= tile.row_begin && center < tile.row_end;
        if (!kGrad && !own_row) break;
        A* const to = kGrad ? partial_row(center) : nullptr;
        if (!any_valid || center < job.margin || center >= job.height - job.margin) {
          if constexpr (kGrad) std::fill(to, to + kPartials * pitch, A(0));
          continue;
        }
        const A* upstream = nullptr;
        if constexpr (kPass == Pass::kMapGradient)
          upstream = read_upstream(center, first_stat, valid_begin, valid_end, x_buffer, y_buffer);
        const A* const moments = filtered + b * pitch;
        for (int64_t c = 0; c < stat_columns; c += kLanes) {
          V mean_s, mean_d;
          Moments<V> m;
          horizontal_moments(taps, moments + c, moments + kRows * pitch + c, mean_s, m.var_s);
          horizontal_moments(taps, moments + 2 * kRows * pitch + c, moments + 3 * kRows * pitch + c,
                             mean_d, m.var_d);
          m.mu_s = mean_s + level_s;
          m.mu_d = mean_d;
          const Terms<V, A> terms(m, job.c1, job.c2);
          if constexpr (kPass != Pass::kMapGradient) store(out_row + c, terms.ssim());
          if constexpr (kGrad) {
            V weight = broadcast<V>(A(1));
            if constexpr (kPass == Pass::kMapGradient) weight = load<V>(upstream + c);
            const Partials<V> p = partials<V, A>(m, terms, job.c1, job.c2, weight);
            store(to + kVarS * pitch + c, p.by_var_s);
            store(to + kVarD * pitch + c, p.by_var_d);
            store(to + kMeanS * pitch + c, mean_s);
            store(to + kMeanD * pitch + c, mean_d);
            if constexpr (kBoth) {
              store(to + kLumS * pitch + c, p.by_mu_s);
              store(to + kLumD * pitch + c, p.by_mu_d);
            } else {
              store(to + kLumS * pitch + c, p.by_mu_s + p.by_mu_d);
            }
          }
        }
        if constexpr (kGrad) {  // no window is centred there
          for (int i = 0; i < kPartials; ++i) {
            std::fill(to + i * pitch, to + i * pitch + valid_begin, A(0));
            std::fill(to + i * pitch + valid_end, to + i * pitch + stat_columns, A(0));
          }
        }
        if constexpr (kPass == Pass::kMap) {
          job.map.row(tile.n, tile.c, center - job.margin, first_stat + valid_begin - job.margin,
                      valid_end - valid_begin, out_row + valid_begin);
        } else if (kPass != Pass::kMapGradient && own_row) {
          total += sum_row(out_row, std::max(valid_begin, spread),
                           std::min(valid_end, spread + columns));
        }
      }

      if constexpr (kGrad) {
        if (g < tile.row_begin) continue;  // the ring of partials is filling
        const A* const near = pixel_row(g + kRows / 2) + halo;
        for (int64_t k = 0; k < ring; ++k) rows[k] = partial_row(g - halo + k);
        vertical_adjoint<kBoth>(taps, rows, near, near + pitch, stat_columns, filtered);
        for (int b = 0; b < kRows && g + b < tile.row_end; ++b) {
          const A* const s = pixel_row(g + b) + 2 * halo;
          for (int64_t c = 0; c < columns; c += kLanes) {
            V by_s, by_d;
            horizontal_adjoint<kBoth>(taps, filtered + b * pitch + c, near + c, near + pitch + c,
                                      load<V>(s + c), load<V>(s + pitch + c), by_s, by_d);
            if constexpr (kBoth) {
              store(out_row + c, (by_s + by_d) * job.scale);
              store(out_row_y + c, (by_s - by_d) * job.scale);
            } else {
              store(out_row + c, by_s * job.scale);
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
    const A* from =
        job.upstream.row(plane, center - job.margin, first_stat + valid_begin - job.margin,
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
