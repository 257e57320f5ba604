// Phase 1 of a tile: turns rows of both images into rows of s and d. This phase also computes
// everything that needs no window: the pixel terms and the images of the next pyramid level.
#pragma once

#include "cpu/tile.h"

namespace ssimfast::cpu {

// load_row for masked tiles, of `count` pixels from column `begin` on. Pixels outside the image
// have no weight.
template <class State>
SSIMFAST_INLINE void load_masked_row(const State& t, int64_t r, int64_t begin, int64_t count,
                                     int64_t left, int64_t width) {
  using V = typename State::V;
  using A = typename State::A;
  A* const s = t.pixel_row(r);
  A* const d = s + kD * t.pitch;
  A* const w = s + kWeight * t.pitch;
  const A* const xr = t.images.x.row(t.x, r, begin, count, t.x_buffer);
  const A* const yr = t.images.y.row(t.y, r, begin, count, t.y_buffer);
  const A* const wr = t.images.mask.row(t.mask, r, begin, count, t.mask_buffer);
  const A offset = t.offset, scale = t.problem.scale;
  const auto load_at = [&](auto lane, int64_t i) SSIMFAST_INLINE_LAMBDA {
    using W = decltype(lane);
    const W x = load<W>(xr + i), y = load<W>(yr + i), weight = load<W>(wr + i);
    const W zero{};
    const W sum = ((x - offset) + (y - offset)) * scale, difference = (x - y) * scale;
    store(s + left + i, weight > zero ? sum : zero);
    store(d + left + i, weight > zero ? difference : zero);
    store(w + left + i, weight);
  };
  int64_t i = 0;
  for (; i + State::kLanes <= count; i += State::kLanes) load_at(V{}, i);
  for (; i < count; ++i) load_at(A{}, i);
  for (A* const row : {s, d, w}) {
    std::fill(row, row + left, A(0));
    std::fill(row + left + count, row + width, A(0));
  }
}

// Fills one ring row of s and d, in unit range minus the offset, from image row r. Pixels outside
// the image are black (`low`).
template <class State>
SSIMFAST_INLINE void load_row(const State& t, int64_t r) {
  using V = typename State::V;
  using A = typename State::A;
  A* const s = t.pixel_row(r);
  A* const d = s + kD * t.pitch;
  const int64_t first = t.first_stat - t.halo, width = t.stat_columns + 2 * t.halo;
  const int64_t begin = std::max<int64_t>(first, 0);
  const int64_t end = std::min(first + width, t.problem.width);
  if (r < 0 || r >= t.problem.height || begin >= end) {
    std::fill(s, s + width, State::kMasked ? A(0) : t.pad_s);
    std::fill(d, d + width, A(0));
    if (State::kMasked) std::fill_n(s + kWeight * t.pitch, width, A(0));
    return;
  }
  const int64_t count = end - begin, left = begin - first;
  if constexpr (State::kMasked) return load_masked_row(t, r, begin, count, left, width);
  const A* xr = t.images.x.row(t.x, r, begin, count, t.x_buffer);
  const A* yr = t.images.y.row(t.y, r, begin, count, t.y_buffer);
  std::fill(s, s + left, t.pad_s);
  std::fill(d, d + left, A(0));
  const A offset = t.offset, scale = t.problem.scale;
  int64_t i = 0;
  for (; i + State::kLanes <= count; i += State::kLanes) {
    const V xv = load<V>(xr + i), yv = load<V>(yr + i);
    store(s + left + i, ((xv - offset) + (yv - offset)) * scale);
    store(d + left + i, (xv - yv) * scale);
  }
  for (; i < count; ++i) {
    s[left + i] = ((xr[i] - offset) + (yr[i] - offset)) * scale;
    d[left + i] = (xr[i] - yr[i]) * scale;
  }
  std::fill(s + left + count, s + width, t.pad_s);
  std::fill(d + left + count, d + width, A(0));
}

// Sums body(lane, c) for c = 0 .. count - 1. The type of `lane` says whether body returns a vector
// of columns or one column.
template <class V, class A, class Body>
SSIMFAST_INLINE double sum_of_columns(int64_t count, Body&& body) {
  constexpr int kLanes = sizeof(V) / sizeof(A);
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

// Adds the wanted pixel terms of the tile's own pixels in row r.
template <class State>
SSIMFAST_INLINE void sum_pixel_terms(State& t, int64_t r) {
  using A = typename State::A;
  const A* const d = t.pixel_row(r) + kD * t.pitch + t.spread + t.halo;
  const A* const weights = d + (kWeight - kD) * t.pitch;
  const A* const counts = t.problem.columns + t.tile.column_begin;  // read for counted terms only
  for (int term = kL1; term < kTerms; ++term) {
    if (!t.problem.wanted[term]) continue;
    const double sum = sum_of_columns<typename State::V, A>(
        t.columns, [&](auto lane, int64_t c) SSIMFAST_INLINE_LAMBDA {
          using W = decltype(lane);
          const W value =
              pixel_term(term, load<W>(d + c), is_counted(term) ? load<W>(counts + c) : W{});
          return State::kMasked ? W(value * load<W>(weights + c)) : value;
        });
    t.sums.term[term] += is_counted(term) ? double(t.problem.rows[r]) * sum : sum;
  }
}

// Writes the pooled pixels whose last column is in the tile: means of 2 x 2 pixels of the rows
// `top` (-1: black) and `bottom`.
template <class State>
SSIMFAST_INLINE void pool_row(const State& t, const Source<typename State::A>& image,
                              const char* plane, int64_t top, int64_t bottom,
                              typename State::A* to) {
  using A = typename State::A;
  const PooledAxis& axis = t.problem.pooled_columns;
  const int64_t width = t.problem.width;
  const int64_t begin = (t.tile.column_begin + axis.shift) / 2;
  const int64_t end = t.tile.column_end == width ? axis.size : (t.tile.column_end + axis.shift) / 2;
  if (begin >= end) return;
  const int64_t first = std::max<int64_t>(2 * begin - axis.shift, 0);
  const int64_t last = std::min(2 * end - axis.shift, width);
  const A* const rows[] = {
      top < 0 ? nullptr : image.row(plane, top, first, last - first, t.x_buffer),
      image.row(plane, bottom, first, last - first, t.y_buffer)};
  const A quarter = t.problem.scale / 4, low = t.problem.low;
  const auto pixel = [&](const A* row, int64_t column) SSIMFAST_INLINE_LAMBDA {
    if (row == nullptr || column < 0) return A(0);
    return row[std::min(column, width - 1) - first] - low;
  };
  const auto pool_at_edge = [&](int64_t c) SSIMFAST_INLINE_LAMBDA {
    const int64_t left = 2 * c - axis.shift;
    to[c] = ((pixel(rows[0], left) + pixel(rows[0], left + 1)) +
             (pixel(rows[1], left) + pixel(rows[1], left + 1))) *
            quarter;
  };
  int64_t c = begin;
  if (rows[0] != nullptr) {
    if (axis.shift != 0 && c == 0) pool_at_edge(c++);
    const int64_t inner = std::min(end, (last + axis.shift) / 2);
    const A* upper = rows[0] + (2 * c - axis.shift - first);
    const A* lower = rows[1] + (2 * c - axis.shift - first);
    const int64_t start = c;
    for (; c < inner; ++c) {
      const int64_t i = 2 * (c - start);
      to[c] =
          (((upper[i] - low) + (upper[i + 1] - low)) + ((lower[i] - low) + (lower[i + 1] - low))) *
          quarter;
    }
  }
  for (; c < end; ++c) pool_at_edge(c);
}

// Writes the row of the next pyramid level that image row r completes, if there is one.
template <class State>
SSIMFAST_INLINE void pool_up_to(const State& t, int64_t r) {
  const auto& problem = t.problem;
  const int64_t shift = problem.pooled_rows.shift;
  const bool last_is_alone = problem.pooling == Pooling::kReplicate && r == problem.height - 1;
  if ((r + shift) % 2 == 0 && !last_is_alone) return;
  const int64_t pooled = (r + shift) / 2, top = 2 * pooled - shift;
  if (pooled >= problem.pooled_rows.size) return;
  const int64_t plane = t.tile.n * problem.channels + t.tile.c;
  const int64_t to = (plane * problem.pooled_rows.size + pooled) * problem.pooled_columns.size;
  pool_row(t, t.images.x, t.x, top, r, problem.pooled[0] + to);
  pool_row(t, t.images.y, t.y, top, r, problem.pooled[1] + to);
}

// Does all work that needs no window, for the tile's own pixels of row r.
template <class State>
SSIMFAST_INLINE void finish_pixels(State& t, int64_t r) {
  sum_pixel_terms(t, r);
  if (t.problem.pooling != Pooling::kNone) pool_up_to(t, r);
}

}  // namespace ssimfast::cpu
