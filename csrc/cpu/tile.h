// One tile of one plane: rows stream through, no intermediate is larger than the tile's ring.
//
//   image rows -> ring of s, d -> vertical filter -> horizontal filter -> moments -> SSIM
//                                                                        -> ring of partials
//   ring of partials -> vertical adjoint -> horizontal adjoint -> (with s, d) gradient rows
//
// kRows rows advance together. Positions are named by the pixel at the centre of their window;
// `halo` is window / 2.
//
// Nothing is squared before something near it was subtracted (docs/mathematics.md, "Centring"):
// the vertical filters work on differences from a row at or next to the centre, the horizontal
// ones on differences from the centre column. Flat regions, bright or dark, keep their digits.
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
constexpr int kMaps = 4;

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
  A grad_scale;  // of the gradients on the way out: 1 for those by images in unit range
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
        pitch(pitch),
        spread(kGrad ? halo : 0),
        columns(tile.column_end - tile.column_begin),
        stat_columns(columns + 2 * spread),
        first_stat(tile.column_begin - spread),
        valid_begin(std::max<int64_t>(job.margin - first_stat, 0)),
        valid_end(std::min(job.width - job.margin - first_stat, stat_columns)),
        first_center(tile.row_begin - (2 * spread + kRows - 1) / kRows * kRows + spread),
        x(job.x.plane(tile.n, tile.c)),
        y(job.y.plane(tile.n, tile.c)),
        level(choose_level(job, tile, x, y)),
        pixels(workspace),
        partials_ring(pixels + 2 * ring * pitch),
        filtered(partials_ring + kPartials * ring * pitch),
        x_buffer(filtered + kMaps * kRows * pitch),
        y_buffer(x_buffer + pitch),
        out_row(y_buffer + pitch),
        out_row_y(out_row + pitch),
        weight_ssim(plane_weight(kSsim)),
        weight_cs(plane_weight(kContrastStructure)),
        loaded(first_center - halo) {}

  // Returns the sums over the tile's own positions and pixels (none for maps).
  SSIMFAST_INLINE Sums run() {
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
  static constexpr int kSums = kBoth ? 4 : 3;             // maps of the vertical adjoint

  const Job<A>& job;
  const Tile tile;
  const int window;
  const int64_t halo;
  const int64_t ring;  // rows that kRows windows cover
  const int64_t pitch;
  const int64_t spread;  // the statistics reach this far beyond the tile
  const int64_t columns, stat_columns, first_stat;
  const int64_t valid_begin, valid_end;  // columns of statistics that are centres of a window
  const int64_t first_center;
  const char *const x, *const y;
  const A level;
  A* const pixels;         // ring of rows: s, d
  A* const partials_ring;  // ring of rows: kPartials maps
  A* const filtered;       // kMaps blocks of kRows rows, between vertical and horizontal
  A* const x_buffer;
  A* const y_buffer;
  A* const out_row;
  A* const out_row_y;
  const A weight_ssim, weight_cs;
  int64_t loaded;  // the first pixel row that is not in the ring yet
  Sums sums;

  A plane_weight(Term term) const {
    if (job.plane_weight == nullptr) return job.weight[term];
    return job.plane_weight[2 * (tile.n * job.channels + tile.c) + term];
  }

  SSIMFAST_INLINE A* pixel_row(int64_t r) const {
    return pixels + (r - first_center + halo) % ring * 2 * pitch;
  }
  SSIMFAST_INLINE A* partial_row(int64_t center) const {
    return partials_ring + (center - first_center) % ring * kPartials * pitch;
  }

  // The statistics of the positions in rows center .. center + kRows - 1.
  SSIMFAST_INLINE void statistics(int64_t center0) {
    for (; loaded < center0 - halo + ring; ++loaded) {
      load_row(loaded);
      if constexpr (kReduces) {
        if (loaded < tile.row_begin || loaded >= tile.row_end) continue;
        sum_pixels(loaded);
        if (job.pooling != Pooling::kNone) pool_up_to(loaded);
      }
    }
    const bool any_valid = center0 + kRows > job.margin && center0 < job.height - job.margin &&
                           valid_begin < valid_end;
    if (any_valid) {
      const A* rows[kMaxRing];
      for (int i = 0; i < 2; ++i) {  // s, d
        for (int64_t k = 0; k < ring; ++k) rows[k] = pixel_row(center0 - halo + k) + i * pitch;
        A* const to = filtered + 2 * i * kRows * pitch;
        for (int b = 0; b < kRows; b += kBlock)
          vertical_moments(rows + b, to + b * pitch, to + (kRows + b) * pitch);
      }
    }
    for (int b = 0; b < kRows; ++b) {
      const int64_t center = center0 + b;
      const bool valid = any_valid && center >= job.margin && center < job.height - job.margin;
      const bool own = center >= tile.row_begin && center < tile.row_end;
      if constexpr (kGrad) {
        A* const to = partial_row(center);
        if (!valid) {
          std::fill(to, to + kPartials * pitch, A(0));
          continue;
        }
        if constexpr (kPass == Pass::kMapGradient) {
          upstream_row(job.upstream[0], center, x_buffer);
          if (job.components) upstream_row(job.upstream[1], center, y_buffer);
        }
        position_row(filtered + b * pitch, to);
        for (int i = 0; i < kPartials; ++i) {  // no window is centred there
          std::fill(to + i * pitch, to + i * pitch + valid_begin, A(0));
          std::fill(to + i * pitch + valid_end, to + i * pitch + stat_columns, A(0));
        }
      } else {
        if (!valid || !own) continue;
        position_row(filtered + b * pitch, nullptr);
      }
      const A* const result[] = {out_row, out_row_y};
      if constexpr (kPass == Pass::kMap) {
        for (int i = 0; i <= int(job.components); ++i)
          job.map[i].row(tile.n, tile.c, center - job.margin, first_stat + valid_begin - job.margin,
                         valid_end - valid_begin, result[i] + valid_begin);
      } else if (kReduces && own) {
        for (int i : {kSsim, kContrastStructure})
          if (job.wanted[i])
            sums.term[i] += sum_row(result[i], std::max(valid_begin, spread),
                                    std::min(valid_end, spread + columns));
      }
    }
  }

  // Fills one ring row of s and d, in unit range and less the level, from image row r; outside the
  // image the padding is the lower end of the range.
  SSIMFAST_INLINE void load_row(int64_t r) const {
    A* const s = pixel_row(r);
    A* const d = s + pitch;
    const int64_t first = first_stat - halo, width = stat_columns + 2 * halo;
    const A pad_s = 2 * (job.low - level) * job.scale;
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

  // Adds the terms that are sums over pixels, at the tile's own pixels of row r.
  SSIMFAST_INLINE void sum_pixels(int64_t r) {
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

  // Vertical means and variances of kBlock output rows: row b of the results is over rows
  // b .. b + window - 1.
  SSIMFAST_INLINE void vertical_moments(const A* const* rows, A* mean, A* variance) const {
    const Taps taps(job);
    const int count = (kWindow > 0 ? kWindow : window) + kBlock - 1;
    const int64_t width = stat_columns + 2 * halo;
    for (int64_t c = 0; c < width; c += kLanes) {
      const V near = load<V>(rows[count / 2] + c);
      V sum[kBlock] = {}, squares[kBlock] = {};
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) {
        const V v = load<V>(rows[k] + c) - near;
        const V v2 = v * v;
#pragma GCC unroll 4
        for (int b = 0; b < kBlock; ++b) {
          if (kBlock > 1 && (k - b < 0 || k - b >= kWindow)) continue;
          sum[b] += taps[k - b] * v;
          squares[b] += taps[k - b] * v2;
        }
      }
#pragma GCC unroll 4
      for (int b = 0; b < kBlock; ++b) {
        store(mean + b * pitch + c, near + sum[b]);
        store(variance + b * pitch + c, non_negative<V>(squares[b] - sum[b] * sum[b]));
      }
    }
  }

  // One row of positions, from its vertical moments: results into out_row and out_row_y, partials
  // into `to`.
  SSIMFAST_INLINE void position_row(const A* moments, A* to) const {
    const Taps taps(job);
    const A level_s = 2 * (level - job.low) * job.scale;
    const int64_t map = kRows * pitch;
    const bool components = job.components;
    const bool sums_ssim = job.wanted[kSsim], sums_cs = job.wanted[kContrastStructure];
    for (int64_t c = 0; c < stat_columns; c += kLanes) {
      V mean_s, mean_d;
      Moments<V> m;
      horizontal_moments(taps, moments + c, moments + map + c, mean_s, m.vs);
      horizontal_moments(taps, moments + 2 * map + c, moments + 3 * map + c, mean_d, m.vd);
      m.vs += job.twice_c2;
      m.mu_s = mean_s + level_s;
      m.mu_d = mean_d;
      const Terms<V, A> terms(m, job.twice_c1, Reciprocals<A>());
      if constexpr (kPass == Pass::kMap) {
        store(out_row + c, components ? terms.exact_luminance() : terms.exact_ssim());
        if (components) store(out_row_y + c, terms.exact_contrast_structure());
      }
      if constexpr (kReduces) {
        if (sums_ssim) store(out_row + c, terms.exact_ssim());
        if (sums_cs) store(out_row_y + c, terms.exact_contrast_structure());
      }
      if constexpr (kGrad) {
        Upstream<V> upstream{};
        if constexpr (kPass == Pass::kGradient) {
          upstream.ssim = broadcast<V>(weight_ssim);
          upstream.contrast_structure = broadcast<V>(weight_cs);
        } else if (components) {
          upstream.luminance = load<V>(x_buffer + c);
          upstream.contrast_structure = load<V>(y_buffer + c);
        } else {
          upstream.ssim = load<V>(x_buffer + c);
        }
        const Partials<V> p = partials(terms, slopes(terms, upstream));
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

  // Gradient rows g .. g + kRows - 1, from the partials of centres g - halo .. g + halo + kRows
  // - 1.
  SSIMFAST_INLINE void gradient(int64_t g) const {
    const Taps taps(job);
    const A* rows[kMaxRing];
    for (int64_t k = 0; k < ring; ++k) rows[k] = partial_row(g - halo + k);
    for (int block = 0; block < kRows; block += kBlock) {
      const A* const near = pixel_row(g + block + kBlock / 2) + halo;
      vertical_adjoint(taps, rows + block, near, filtered + block * pitch);
      for (int b = block; b < block + kBlock && g + b < tile.row_end; ++b) {
        const A* const s = pixel_row(g + b) + 2 * halo;
        for (int64_t c = 0; c < columns; c += kLanes) {
          V by_s, by_d;
          horizontal_adjoint(taps, filtered + b * pitch + c, near + c, load<V>(s + c),
                             load<V>(s + pitch + c), by_s, by_d);
          if constexpr (kBoth) {
            store(out_row + c, (by_s + by_d) * job.grad_scale);
            store(out_row_y + c, (by_s - by_d) * job.grad_scale);
          } else {
            store(out_row + c, by_s * job.grad_scale);
          }
        }
        if constexpr (kPass == Pass::kGradient) add_pixel_gradient(g + b);
        job.grad_x.row(tile.n, tile.c, g + b, tile.column_begin, columns, out_row);
        if constexpr (kBoth)
          job.grad_y.row(tile.n, tile.c, g + b, tile.column_begin, columns, out_row_y);
      }
    }
  }

  // The vertical half of the adjoint, for kBlock gradient rows: of the derivatives by the
  // variances, and of everything that multiplies no pixel (by s and by d apart for kBoth).
  // The factor (pixel - mean) is taken at the pixels `near` of one row here; horizontal_adjoint
  // moves it to each pixel. Row k of all maps starts at rows[k].
  SSIMFAST_INLINE void vertical_adjoint(const Taps& taps, const A* const* rows, const A* near,
                                        A* out) const {
    const int count = (kWindow > 0 ? kWindow : window) + kBlock - 1;
    for (int64_t c = 0; c < stat_columns; c += kLanes) {
      const V s = load<V>(near + c), d = load<V>(near + pitch + c);
      V sum[kSums][kBlock] = {};
#pragma GCC unroll 16
      for (int k = 0; k < count; ++k) {
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
        for (int b = 0; b < kBlock; ++b) {
          if (kBlock > 1 && (k - b < 0 || k - b >= kWindow)) continue;
#pragma GCC unroll 4
          for (int i = 0; i < kSums; ++i) sum[i][b] += taps[k - b] * term[i];
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kSums; ++i) {
#pragma GCC unroll 4
        for (int b = 0; b < kBlock; ++b) store(out + (i * kRows + b) * pitch + c, sum[i][b]);
      }
    }
  }

  // The horizontal half, at pixels (s, d): the gradient by s and by d, all in `by_s` unless kBoth.
  // `from` and `near` point to the first column under the window.
  SSIMFAST_INLINE void horizontal_adjoint(const Taps& taps, const A* from, const A* near, V s, V d,
                                          V& by_s, V& by_d) const {
    const int half = (kWindow > 0 ? kWindow : window) / 2;
    V left_s, left_d, right_s, right_d;
    adjoint_term(from + half, near + half, s, d, left_s, left_d);
    by_s = taps[half] * left_s;
    by_d = taps[half] * left_d;
#pragma GCC unroll 16
    for (int j = 0; j < half; ++j) {
      const int k = 2 * half - j;
      adjoint_term(from + j, near + j, s, d, left_s, left_d);
      adjoint_term(from + k, near + k, s, d, right_s, right_d);
      by_s += taps[j] * (left_s + right_s);
      if constexpr (kBoth) by_d += taps[j] * (left_d + right_d);
    }
  }

  // One column's part of it.
  SSIMFAST_INLINE void adjoint_term(const A* from, const A* near, V s, V d, V& by_s,
                                    V& by_d) const {
    const int64_t map = kRows * pitch;
    by_s = load<V>(from + 2 * map) + (s - load<V>(near)) * load<V>(from);
    by_d = (d - load<V>(near + pitch)) * load<V>(from + map);
    if constexpr (kBoth) {
      by_d += load<V>(from + 3 * map);
    } else {
      by_s += by_d;
    }
  }

  // Adds to one row of gradients what the sums over pixels contribute.
  SSIMFAST_INLINE void add_pixel_gradient(int64_t r) const {
    const A l1 = job.weight[kL1], l2 = job.weight[kL2], blurred = job.weight[kBlurredL1];
    const bool has_l1 = l1 != 0 || l2 != 0, has_blurred = blurred != 0;
    const A* const d = pixel_row(r) + pitch + 2 * halo;
    if (has_l1)
      add_by_d([&](int64_t c) SSIMFAST_INLINE_LAMBDA { return l1 * sign(d[c]) + 2 * l2 * d[c]; });
    if (has_blurred) {
      const A factor = blurred * job.rows[r];
      const A* const counts = job.columns + tile.column_begin;
      add_by_d([&](int64_t c) SSIMFAST_INLINE_LAMBDA { return factor * counts[c] * sign(d[c]); });
    }
  }

  template <class Body>
  SSIMFAST_INLINE void add_by_d(Body&& by_d) const {
    A *const out_x = out_row, *const out_y = out_row_y;
    for (int64_t c = 0; c < columns; ++c) {
      const A value = by_d(c) * job.grad_scale;
      out_x[c] += value;
      if constexpr (kBoth) out_y[c] -= value;
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
