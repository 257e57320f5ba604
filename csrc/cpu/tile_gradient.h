// Phase 3 of a tile: turns partial derivatives into rows of gradients.
//
// The gradient of a pixel is a sum over the windows that contain the pixel, of terms with the
// factor (pixel - centre pixel of the window). The adjoint moves the reference pixel of this
// difference in two steps, so that it multiplies only differences of nearby pixels. The vertical
// adjoint moves the reference from the window's centre to a row in the middle, `near`. The
// horizontal adjoint moves it along that row to the pixel of the gradient; for s it does so through
// one pixel that a chunk of columns shares.
#pragma once

#include "cpu/tile_statistics.h"

namespace ssimfast::cpu {

// Vertical adjoint of kBlock gradient rows, from row g on.
template <class State>
SSIMFAST_INLINE void column_adjoint(const State& t, const typename State::Taps& taps, int64_t g,
                                    const typename State::A* near, int to_row) {
  using V = typename State::V;
  using A = typename State::A;
  constexpr int kBlock = State::kBlock, kWindow = State::kWindow;
  const int count = (kWindow > 0 ? kWindow : t.window) + kBlock - 1;
  const int64_t pitch = t.pitch;
  const A *rows[kMaxRing], *pixel_rows[kMaxRing];
  for (int k = 0; k < count; ++k) {
    rows[k] = t.partial_row(g - t.halo + k);
    pixel_rows[k] = t.pixel_row(g - t.halo + k) + t.halo;
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
    for (int b = 0; b < kBlock; ++b) store(t.adjoint_row(map, to_row + b) + c, sum[b]);
  };
  for (int64_t c = 0; c < t.stat_columns; c += State::kLanes) {
    const V s = load<V>(near + c), d = load<V>(near + pitch + c);
    const auto partial = [&](int k, Partial i)
                             SSIMFAST_INLINE_LAMBDA { return load<V>(rows[k] + i * pitch + c); };
    const auto moved_s = [&](int k) SSIMFAST_INLINE_LAMBDA {
      return partial(k, kConstantS) + (s - load<V>(pixel_rows[k] + c)) * partial(k, kByVarS);
    };
    const auto moved_d = [&](int k) SSIMFAST_INLINE_LAMBDA {
      return (d - load<V>(pixel_rows[k] + pitch + c)) * partial(k, kByVarD);
    };
    filter(c, kByVarS, [&](int k) SSIMFAST_INLINE_LAMBDA { return partial(k, kByVarS); });
    filter(c, kByVarD, [&](int k) SSIMFAST_INLINE_LAMBDA { return partial(k, kByVarD); });
    if constexpr (State::kBoth) {
      filter(c, kConstantS, moved_s);
      filter(c, kConstantD,
             [&](int k) SSIMFAST_INLINE_LAMBDA { return partial(k, kConstantD) + moved_d(k); });
    } else {
      filter(c, kConstantS, [&](int k) SSIMFAST_INLINE_LAMBDA { return moved_s(k) + moved_d(k); });
    }
  }
}

// Calls body(c, some) for each chunk of columns, with the chunk's first column and number of
// columns. `some` is a compile-time constant for whole chunks, so that loops are unrolled.
template <class Body>
SSIMFAST_INLINE void for_chunks(int64_t columns, Body&& body) {
  int64_t c = 0;
  for (; c + kChunk <= columns; c += kChunk) body(c, std::integral_constant<int, kChunk>());
  if (c < columns) body(c, int(columns - c));
}

template <class State>
SSIMFAST_INLINE typename State::A* chunk(const State& t, int64_t c) {
  return t.chunks + c / kChunk * t.chunk_pitch;
}

// Pixel of s that is the reference of the `some` columns from c on.
template <class State>
SSIMFAST_INLINE typename State::A shared_s(const State& t, const typename State::A* near, int64_t c,
                                           int some) {
  return near[c + t.halo + some / 2];
}

// Moves the reference of the constant part of s to the chunk's shared pixel, at all columns that
// the chunk's windows cover.
template <class State>
SSIMFAST_INLINE void fill_chunk(const State& t, int row, const typename State::A* near, int64_t c,
                                int some) {
  using V = typename State::V;
  using A = typename State::A;
  const int half = (State::kWindow > 0 ? State::kWindow : t.window) / 2;
  const A* const by_var = t.adjoint_row(kByVarS, row) + c;
  const A* const constant = t.adjoint_row(kConstantS, row) + c;
  const A s = shared_s(t, near, c, some);
#pragma GCC unroll 16
  for (int i = 0; i < some + 2 * half; i += State::kLanes)
    store(chunk(t, c) + i,
          load<V>(constant + i) + (s - load<V>(near + c + i)) * load<V>(by_var + i));
}

template <class State>
SSIMFAST_INLINE typename State::V filtered(const State& t, const typename State::Taps& taps,
                                           const typename State::A* from) {
  using V = typename State::V;
  const int half = (State::kWindow > 0 ? State::kWindow : t.window) / 2;
  V sum = taps[half] * load<V>(from + half);
#pragma GCC unroll 16
  for (int j = 0; j < half; ++j)
    sum += taps[j] * (load<V>(from + j) + load<V>(from + 2 * half - j));
  return sum;
}

// Filters constant + (own - near) * slope.
template <class State, class V = typename State::V>
SSIMFAST_INLINE V filtered_to_own(const State& t, const typename State::Taps& taps,
                                  const typename State::A* constant, const typename State::A* slope,
                                  const typename State::A* near, V own) {
  const int half = (State::kWindow > 0 ? State::kWindow : t.window) / 2;
  const auto term = [&](int j, V more) SSIMFAST_INLINE_LAMBDA {
    return (own - load<V>(near + j)) * load<V>(slope + j) + more;
  };
  V sum = taps[half] * term(half, load<V>(constant + half));
#pragma GCC unroll 16
  for (int j = 0; j < half; ++j) {
    const int k = 2 * half - j;
    sum += taps[j] * term(j, term(k, load<V>(constant + j) + load<V>(constant + k)));
  }
  return sum;
}

// Horizontal adjoint of one chunk of columns of one row. Writes the gradients with respect to x
// and, if kBoth, to y. `own` points to s of the row's first pixel.
template <class State>
SSIMFAST_INLINE void row_adjoint(const State& t, const typename State::Taps& taps, int row,
                                 const typename State::A* near, const typename State::A* own,
                                 int64_t c, int some, typename State::A* by_x,
                                 typename State::A* by_y) {
  using V = typename State::V;
  using A = typename State::A;
  const int64_t pitch = t.pitch;
  const A* const var_s = t.adjoint_row(kByVarS, row) + c;
  const A* const var_d = t.adjoint_row(kByVarD, row) + c;
  const A* const constant_s = chunk(t, c);
  const A s = shared_s(t, near, c, some);
#pragma GCC unroll 16
  for (int i = 0; i < some; i += State::kLanes) {
    const V own_s = load<V>(own + c + i), own_d = load<V>(own + pitch + c + i);
    const A* const near_d = near + pitch + c + i;
    V part_s = (own_s - s) * filtered(t, taps, var_s + i);
    V part_d{};
    if constexpr (State::kBoth) {
      part_s += filtered(t, taps, constant_s + i);
      part_d = filtered_to_own(t, taps, t.adjoint_row(kConstantD, row) + c + i, var_d + i, near_d,
                               own_d);
    } else {
      part_s += filtered_to_own(t, taps, constant_s + i, var_d + i, near_d, own_d);
    }
    const auto put = [&](A* to, V gradient) SSIMFAST_INLINE_LAMBDA {
      gradient *= t.problem.grad_scale;
      if constexpr (State::kMasked) {
        // A hidden pixel gets 0 even if a window that covers it has a NaN.
        const V weight = load<V>(own + kWeight * pitch + c + i);
        gradient = weight > V{} ? weight * gradient : V{};
      }
      store_some(to + c + i, gradient, some - i);
    };
    put(by_x, part_s + part_d);
    if constexpr (State::kBoth) put(by_y, part_s - part_d);
  }
}

// Adds the gradient of the pixel terms to one row of gradients.
template <class State>
SSIMFAST_INLINE void add_pixel_gradient(const State& t, int64_t r, typename State::A* by_x,
                                        typename State::A* by_y) {
  using A = typename State::A;
  if (!t.problem.has_pixel_slope()) return;
  A weight[kTerms - kL1];
  for (int term = kL1; term < kTerms; ++term) weight[term - kL1] = t.weight_of(term);
  const A grad_scale = t.problem.grad_scale;
  const A* const d = t.pixel_row(r) + kD * t.pitch + 2 * t.halo;
  const A* const of_pixels = d + (kWeight - kD) * t.pitch;
  const auto add = [&](int64_t c, A count) SSIMFAST_INLINE_LAMBDA {
    A by_d = pixel_slope(weight, d[c], count) * grad_scale;
    if constexpr (State::kMasked) by_d *= of_pixels[c];
    by_x[c] += by_d;
    if constexpr (State::kBoth) by_y[c] -= by_d;
  };
  if (t.problem.rows == nullptr) {
    for (int64_t c = 0; c < t.columns; ++c) add(c, A(0));
  } else {
    const A* const counts = t.problem.columns + t.tile.column_begin;
    const A row = t.problem.rows[r];
    for (int64_t c = 0; c < t.columns; ++c) add(c, row * counts[c]);
  }
}

// Writes gradient rows g .. g + kRows - 1, from the partial derivatives of the positions in rows
// g - halo .. g + halo + kRows - 1.
template <class State>
SSIMFAST_INLINE void gradient(const State& t, int64_t g) {
  using A = typename State::A;
  constexpr int kBlock = State::kBlock;
  const typename State::Taps taps(t.problem.window().taps);
  const Sink<A>&to_x = t.images.grad[0], &to_y = t.images.grad[1];
  const int64_t n = t.tile.n, channel = t.tile.c, first = t.tile.column_begin;
  for (int block = 0; block < kRows; block += kBlock) {
    const int64_t middle = std::min(g + block + kBlock / 2, t.tile.row_end - 1);
    const A* const near = t.pixel_row(middle) + t.halo;
    column_adjoint(t, taps, g + block, near, block);
    for (int b = block; b < block + kBlock && g + b < t.tile.row_end; ++b) {
      A* const by_x = to_x.in_place(n, channel, g + b, first, t.out_row);
      A* const by_y = State::kBoth ? to_y.in_place(n, channel, g + b, first, t.out_row_y) : nullptr;
      const A* const own = t.pixel_row(g + b) + 2 * t.halo;
      // Fills all chunks before the first is filtered, because a load that overlaps two recent
      // stores is slow.
      for_chunks(t.columns, [&](int64_t c, auto some)
                                SSIMFAST_INLINE_LAMBDA { fill_chunk(t, b, near, c, some); });
      for_chunks(t.columns, [&](int64_t c, auto some) SSIMFAST_INLINE_LAMBDA {
        row_adjoint(t, taps, b, near, own, c, some, by_x, by_y);
      });
      if constexpr (State::kPass == Pass::kGradient) add_pixel_gradient(t, g + b, by_x, by_y);
      if (by_x == t.out_row) to_x.row(n, channel, g + b, first, t.columns, t.out_row);
      if (State::kBoth && by_y == t.out_row_y)
        to_y.row(n, channel, g + b, first, t.columns, t.out_row_y);
    }
  }
}

}  // namespace ssimfast::cpu
