// Phase 2 of a tile: turns rows of s and d into means and variances of windows, and these into
// SSIM. SSIM goes to the sums or the maps, its partial derivatives go to their ring.
#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include "cpu/tile_pixels.h"

namespace ssimfast::cpu {

// ---- filters ------------------------------------------------------------------------------------

// Writes the horizontal means and variances of a vector of windows, relative to the centre column.
// The pointers are to the first columns of the windows.
template <class State>
SSIMFAST_INLINE void row_moments(const State& t, const typename State::Taps& taps,
                                 const typename State::A* from_s, const typename State::A* from_d,
                                 typename State::A* to) {
  using V = typename State::V;
  const int half = (State::kWindow > 0 ? State::kWindow : t.window) / 2;
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
  store(to + kMeanS * t.pitch, near_s + sum_s);
  store(to + kVarS * t.pitch, squares_s - sum_s * sum_s);
  store(to + kMeanD * t.pitch, near_d + sum_d);
  store(to + kVarD * t.pitch, squares_d - sum_d * sum_d);
}

// 1 / v; 0 if v is so small that the quotient overflows: a window of such weights sees nothing.
template <class A, class V>
SSIMFAST_INLINE V reciprocal_or_zero(V v) {
  const V least = broadcast<V>(std::numeric_limits<A>::min());
  return v < least ? V{} : A(1) / v;
}

// row_moments for masked tiles, with sums of squares in place of variances, and the coverage. If
// the mask has holes, the visible column nearest to the centre is subtracted.
template <bool kHoles, class State>
SSIMFAST_INLINE void masked_row_moments(const State& t, const typename State::Taps& taps,
                                        const typename State::A* from, typename State::A* to) {
  using V = typename State::V;
  using A = typename State::A;
  const int half = (State::kWindow > 0 ? State::kWindow : t.window) / 2;
  const A *const s = from, *const d = from + kD * t.pitch, *const w = from + kWeight * t.pitch;
  V near_s = load<V>(s + half), near_d = load<V>(d + half);
  if constexpr (kHoles) {
    near_s = near_d = V{};
#pragma GCC unroll 16
    for (int i = 0; i <= half; ++i) {
      for (const int k : {i, 2 * half - i}) {
        const V weight = load<V>(w + k);
        near_s = weight > V{} ? load<V>(s + k) : near_s;
        near_d = weight > V{} ? load<V>(d + k) : near_d;
      }
    }
  }
  V coverage = taps[half] * load<V>(w + half);
  V sum_s{}, squares_s{}, sum_d{}, squares_d{};
#pragma GCC unroll 16
  for (int j = 0; j < half; ++j) {
    const int k = 2 * half - j;
    const V left = load<V>(w + j), right = load<V>(w + k);
    const V left_s = load<V>(s + j) - near_s, right_s = load<V>(s + k) - near_s;
    const V left_d = load<V>(d + j) - near_d, right_d = load<V>(d + k) - near_d;
    const V first_s = left * left_s, last_s = right * right_s;
    const V first_d = left * left_d, last_d = right * right_d;
    coverage += taps[j] * (left + right);
    sum_s += taps[j] * (first_s + last_s);
    sum_d += taps[j] * (first_d + last_d);
    squares_s += taps[j] * (first_s * left_s + last_s * right_s);
    squares_d += taps[j] * (first_d * left_d + last_d * right_d);
  }
  const V share = reciprocal_or_zero<A>(coverage);
  const V away_s = sum_s * share, away_d = sum_d * share;
  store(to + kMeanS * t.pitch, near_s + away_s);
  store(to + kVarS * t.pitch, squares_s - sum_s * away_s);
  store(to + kMeanD * t.pitch, near_d + away_d);
  store(to + kVarD * t.pitch, squares_d - sum_d * away_d);
  store(to + kCoverage * t.pitch, coverage);
}

// The smallest and the largest of `count` numbers.
template <class V, class A>
SSIMFAST_INLINE std::array<A, 2> extremes(const A* from, int64_t count) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(A);
  V least = broadcast<V>(from[0]), most = least;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const V v = load<V>(from + i);
    least = v < least ? v : least;
    most = v > most ? v : most;
  }
  A lowest[kLanes], highest[kLanes];
  store(lowest, least);
  store(highest, most);
  const auto low = std::min_element(lowest, lowest + kLanes);
  const auto high = std::max_element(highest, highest + kLanes);
  for (; i < count; ++i) {
    *low = std::min(*low, from[i]);
    *high = std::max(*high, from[i]);
  }
  return {*low, *high};
}

// Filters columns run .. end - 1 of a row of a masked tile. Most runs see nothing, or no hole;
// those that see ones only are filtered as without a mask. Unless the kernel is unrolled for the
// window, runs without holes are filtered like those with holes, which compiles faster.
template <class State>
SSIMFAST_INLINE Seen filter_masked_run(const State& t, const typename State::Taps& taps,
                                       const typename State::A* s, int64_t run, int64_t end,
                                       typename State::A* to) {
  using V = typename State::V;
  using A = typename State::A;
  const auto [least, most] = extremes<V, A>(s + kWeight * t.pitch + run, end - run + 2 * t.halo);
  if (most == 0) {
    for (int i = 0; i < kMoments; ++i)
      std::fill(to + i * t.pitch + run, to + i * t.pitch + end, A(0));
    return Seen::kNothing;
  }
  if (least == 1) {
    for (int64_t c = run; c < end; c += State::kLanes) {
      row_moments(t, taps, s + c, s + kD * t.pitch + c, to + c);
      store(to + kCoverage * t.pitch + c, broadcast<V>(A(1)));
    }
    return Seen::kOnes;
  }
  if (State::kWindow > 0 && least > 0) {
    for (int64_t c = run; c < end; c += State::kLanes)
      masked_row_moments<false>(t, taps, s + c, to + c);
  } else {
    for (int64_t c = run; c < end; c += State::kLanes)
      masked_row_moments<true>(t, taps, s + c, to + c);
  }
  const auto [least_coverage, _] = extremes<V, A>(to + kCoverage * t.pitch + run, end - run);
  return least_coverage > 0 ? Seen::kWeights : Seen::kHoles;
}

// Computes the horizontal means and variances of pixel row r, at the window centres.
template <class State>
SSIMFAST_INLINE void filter_row(State& t, int64_t r) {
  using A = typename State::A;
  A* const to = t.moments_row(r);
  if (r < 0 || r >= t.problem.height) {
    if constexpr (State::kMasked)
      for (int64_t c = t.vector_begin; c < t.valid_end; c += kStep) t.seen(r, c) = Seen::kNothing;
    std::fill(to, to + moment_count(State::kMasked) * t.pitch, A(0));
    if (!State::kMasked) std::fill(to + kMeanS * t.pitch, to + (kMeanS + 1) * t.pitch, t.pad_s);
    return;
  }
  const typename State::Taps taps(t.problem.window().taps);
  const A* const s = t.pixel_row(r);
  const A* const d = s + t.pitch;
  const char* const soon_x = t.images.x.address(t.x, r + kRows, t.first_stat);
  const char* const soon_y = t.images.y.address(t.y, r + kRows, t.first_stat);
  const auto prefetch_at = [&](int64_t c) SSIMFAST_INLINE_LAMBDA {
    prefetch(soon_x + c * t.images.x.element_size);
    prefetch(soon_y + c * t.images.y.element_size);
  };
  if constexpr (State::kMasked) {
    const char* const soon_mask = t.images.mask.address(t.mask, r + kRows, t.first_stat);
    for (int64_t run = t.vector_begin; run < t.valid_end; run += kStep) {
      const int64_t end = std::min(run + kStep, t.valid_end);
      for (int64_t c = run; c < end; c += State::kLanes) {
        prefetch_at(c);
        prefetch(soon_mask + c * t.images.mask.element_size);
      }
      t.seen(r, run) = filter_masked_run(t, taps, s, run, end, to);
    }
  } else {
    for (int64_t c = t.vector_begin; c < t.valid_end; c += State::kLanes) {
      prefetch_at(c);
      row_moments(t, taps, s + c, d + c, to + c);
    }
  }
}

// Computes the means and variances of kBlock vertical windows: window b covers
// rows[b] .. rows[b + window - 1]. The results go to rows that are `step` apart.
template <class State>
SSIMFAST_INLINE void column_moments(const State& t, const typename State::Taps& taps,
                                    const typename State::A* const* rows, int64_t mean_at,
                                    int64_t variance_at, typename State::A* means,
                                    typename State::A* variances, int64_t step) {
  using V = typename State::V;
  constexpr int kBlock = State::kBlock, kWindow = State::kWindow;
  const int count = (kWindow > 0 ? kWindow : t.window) + kBlock - 1;
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

// For kBlock neighbouring windows along columns: 1 / coverage of each, and the means of the visible
// row nearest to the middle, on which all centre. Without holes that is the row in the middle.
template <class V, int kBlock>
struct Visible {
  V share[kBlock];
  V near_s, near_d;
};

// `at` is the offset in a row of moments.
template <bool kHoles, class State>
SSIMFAST_INLINE Visible<typename State::V, State::kBlock> visible_columns(
    const State& t, const typename State::Taps& taps, const typename State::A* const* rows,
    int64_t at) {
  using V = typename State::V;
  using A = typename State::A;
  constexpr int kBlock = State::kBlock, kWindow = State::kWindow;
  const int count = (kWindow > 0 ? kWindow : t.window) + kBlock - 1;
  const auto moment = [&](int k, Moment map)
                          SSIMFAST_INLINE_LAMBDA { return load<V>(rows[k] + map * t.pitch + at); };
  Visible<V, kBlock> visible{};
  V sum[kBlock] = {};
  const auto take = [&](int k) SSIMFAST_INLINE_LAMBDA {
    const V coverage = moment(k, kCoverage);
    if (kHoles || k == count / 2) {
      visible.near_s = coverage > V{} ? moment(k, kMeanS) : visible.near_s;
      visible.near_d = coverage > V{} ? moment(k, kMeanD) : visible.near_d;
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBlock; ++b) {
      if (kBlock > 1 && (k - b < 0 || k - b >= kWindow)) continue;
      sum[b] += taps[k - b] * coverage;
    }
  };
  // From the outer rows to the middle: the last visible row is the nearest.
#pragma GCC unroll 16
  for (int i = 0; i < count / 2; ++i) {
    take(i);
    if (i + 1 < count - i) take(count - 1 - i);
  }
  if (count % 2 == 1) take(count / 2);
#pragma GCC unroll 4
  for (int b = 0; b < kBlock; ++b) visible.share[b] = reciprocal_or_zero<A>(sum[b]);
  return visible;
}

// column_moments for masked tiles. `at` is the offset of a mean in a row; its squares follow.
template <class State>
SSIMFAST_INLINE void masked_column_moments(const State& t, const typename State::Taps& taps,
                                           const typename State::A* const* rows, int64_t at,
                                           int64_t coverage_at, typename State::V near,
                                           const typename State::V* share, typename State::A* means,
                                           typename State::A* variances, int64_t step) {
  using V = typename State::V;
  constexpr int kBlock = State::kBlock, kWindow = State::kWindow;
  const int count = (kWindow > 0 ? kWindow : t.window) + kBlock - 1;
  V sum[kBlock] = {}, squares[kBlock] = {};
#pragma GCC unroll 16
  for (int k = 0; k < count; ++k) {
    const V e = load<V>(rows[k] + at) - near, weighted = load<V>(rows[k] + coverage_at) * e;
    const V e2 = weighted * e + load<V>(rows[k] + at + t.pitch);
#pragma GCC unroll 4
    for (int b = 0; b < kBlock; ++b) {
      if (kBlock > 1 && (k - b < 0 || k - b >= kWindow)) continue;
      sum[b] += taps[k - b] * weighted;
      squares[b] += taps[k - b] * e2;
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlock; ++b) {
    const V away = sum[b] * share[b];
    store(means + b * step, near + away);
    store(variances + b * step, non_negative<V>(squares[b] * share[b] - away * away));
  }
}

// ---- positions ----------------------------------------------------------------------------------

// Constants that all positions share. This copy stays in registers; a store could change the
// originals in memory.
template <class V>
struct Constants {
  V twice_c1, twice_c2, pad_s, weight_ssim, weight_cs;
};

// Pointers into the rows of centre pixels, partial derivatives and maps, at the first column of a
// step.
template <class A>
struct Place {
  const A* pixels;
  A* partials;
  A* maps[kMaps];  // null if a map is not there
};

// (1 - SSIM) / 2 and (1 - contrast-structure) / 2, times the weight of the centre pixel.
template <class V>
struct Distances {
  V whole, contrast;
};

// Computes the distances of a vector of positions from the moments. Writes the maps and partial
// derivatives of the positions.
template <class State, class V = typename State::V>
SSIMFAST_INLINE Distances<V> position(const State& t, const Constants<V>& constants, V mean_s,
                                      V var_s, V mean_d, V var_d, V share,
                                      const Place<typename State::A>& place, int64_t c) {
  using A = typename State::A;
  Moments<V> m{mean_s - constants.pad_s, mean_d, var_s + constants.twice_c2, var_d};
  if constexpr (State::kMasked) {
    // Windows that see nothing get the moments of two equal images. Those of s are 1, not 0,
    // because C1 = C2 = 0 would lead to a division by 0.
    const V one = broadcast<V>(A(1));
    m.mu_s = share > V{} ? m.mu_s : one;
    m.mu_d = share > V{} ? m.mu_d : V{};
    m.vs = share > V{} ? m.vs : one;
  }
  const Terms<V> terms(m, constants.twice_c1, Reciprocals<A>());
  Distances<V> distances{terms.half_distance(), terms.half_contrast_distance};
  if constexpr (State::kSums) {
    const auto write = [&](Map map, V half_distance) SSIMFAST_INLINE_LAMBDA {
      if (place.maps[map] != nullptr) store(place.maps[map] + c, similarity_of(half_distance));
    };
    write(kSsimMap, distances.whole);
    write(kLuminanceMap, terms.half_luminance_distance);
    write(kContrastMap, distances.contrast);
  }
  if constexpr (State::kMasked && State::kSums) {
    const V weight = load<V>(place.pixels + kWeight * t.pitch + c);
    distances = {weight * distances.whole, weight * distances.contrast};
    share *= weight;
  }
  if constexpr (State::kGrad) {
    Slopes<V> by;
    if constexpr (State::kPass == Pass::kGradient) {
      const Slopes<V> of_ssim = slopes_of_ssim(terms);
      by.luminance = constants.weight_ssim * of_ssim.luminance;
      by.contrast_structure =
          constants.weight_ssim * of_ssim.contrast_structure + constants.weight_cs;
    } else {
      const auto of_map = [&](Map map) SSIMFAST_INLINE_LAMBDA {
        return place.maps[map] == nullptr ? V{} : load<V>(place.maps[map] + c);
      };
      by = slopes(terms, {of_map(kSsimMap), of_map(kLuminanceMap), of_map(kContrastMap)});
    }
    const Partials<V> p = partials(terms, by);
    const V own_s = p.by_var_s * (load<V>(place.pixels + c) - mean_s);
    const V own_d = p.by_var_d * (load<V>(place.pixels + kD * t.pitch + c) - mean_d);
    const auto store_partial = [&](Partial map, V value) SSIMFAST_INLINE_LAMBDA {
      store(place.partials + map * t.pitch + c, State::kMasked ? V(value * share) : value);
    };
    store_partial(kByVarS, p.by_var_s);
    store_partial(kByVarD, p.by_var_d);
    if constexpr (State::kBoth) {
      store_partial(kConstantS, p.by_mu_s + own_s);
      store_partial(kConstantD, p.by_mu_d + own_d);
    } else {
      store_partial(kConstantS, by_both_means(terms, by) + own_s + own_d);
    }
  }
  return distances;
}

// Where a row of a map begins, from this column on; null if the map is not there.
template <class State>
SSIMFAST_INLINE typename State::A* map_place(const State& t, Map map, int row, int64_t column) {
  constexpr bool kReads = State::kPass == Pass::kMapsGradient;
  const View& view = kReads ? t.problem.upstream[map] : t.problem.map[map];
  return view.data == nullptr ? nullptr : t.map_row(map, row) + column;
}

template <class A>
using MomentsOfStep = A[kMoments][kRows][kStep];

// Computes the moments of whole windows in kRows rows and `some` columns from `column` on. `rows`
// are the rows of moments that the windows cover.
template <class State>
SSIMFAST_INLINE void filter_columns(const State& t, const typename State::Taps& taps,
                                    const typename State::A* const* rows, int64_t column,
                                    int64_t some, MomentsOfStep<typename State::A>& moments) {
  for (int i : {kMeanS, kMeanD}) {  // the variance follows its mean
    for (int b = 0; b < kRows; b += State::kBlock) {
      for (int64_t c = 0; c < some; c += State::kLanes)
        column_moments(t, taps, rows + b, i * t.pitch + column + c, (i + 1) * t.pitch + column + c,
                       moments[i][b] + c, moments[i + 1][b] + c, kStep);
    }
  }
}

// Combines what was noted for the rows of a step. `first` is the first of them.
template <class State>
SSIMFAST_INLINE Seen seen_by_step(State& t, int64_t first, int64_t column) {
  Seen seen = t.seen(first, column);
  for (int64_t k = 1; k < t.ring; ++k) {
    const Seen more = t.seen(first + k, column);
    if (more != seen) seen = std::max(more, seen) == Seen::kWeights ? Seen::kWeights : Seen::kHoles;
  }
  return seen;
}

template <bool kHoles, class State>
SSIMFAST_INLINE void filter_weighted_columns(const State& t, const typename State::Taps& taps,
                                             const typename State::A* const* rows, int64_t column,
                                             int64_t some,
                                             MomentsOfStep<typename State::A>& moments) {
  using V = typename State::V;
  constexpr int kBlock = State::kBlock;
  const int64_t coverage_at = kCoverage * t.pitch + column;
  for (int b = 0; b < kRows; b += kBlock) {
    for (int64_t c = 0; c < some; c += State::kLanes) {
      const Visible<V, kBlock> visible = visible_columns<kHoles>(t, taps, rows + b, column + c);
      for (int i = 0; i < kBlock; ++i) store(moments[kCoverage][b + i] + c, visible.share[i]);
      for (int i : {kMeanS, kMeanD})
        masked_column_moments(t, taps, rows + b, i * t.pitch + column + c, coverage_at + c,
                              i == kMeanS ? visible.near_s : visible.near_d, visible.share,
                              moments[i][b] + c, moments[i + 1][b] + c, kStep);
    }
  }
}

// filter_columns for masked tiles, with 1 / coverage. `seen`: by the windows along the rows.
template <class State>
SSIMFAST_INLINE void filter_masked_columns(const State& t, const typename State::Taps& taps,
                                           const typename State::A* const* rows, Seen seen,
                                           int64_t column, int64_t some,
                                           MomentsOfStep<typename State::A>& moments) {
  if (seen == Seen::kOnes) {
    std::fill_n(&moments[kCoverage][0][0], kRows * kStep, typename State::A(1));
    filter_columns(t, taps, rows, column, some, moments);
  } else if (State::kWindow > 0 && seen == Seen::kWeights) {
    filter_weighted_columns<false>(t, taps, rows, column, some, moments);
  } else {
    filter_weighted_columns<true>(t, taps, rows, column, some, moments);
  }
}

// Writes the maps and partial derivatives of windows that see nothing, in kRows rows.
template <class State>
SSIMFAST_INLINE void fill_hidden(const State& t, int64_t first, int64_t column, int64_t some) {
  using A = typename State::A;
  for (int b = 0; b < kRows; ++b) {
    if (!t.is_centre(first + b)) continue;
    for (int i = 0; State::kSums && i < kMaps; ++i)
      if (t.problem.map[i].data != nullptr) std::fill_n(t.map_row(i, b) + column, some, A(1));
    for (int i = 0; State::kGrad && i < (State::kBoth ? 4 : 3); ++i)
      std::fill_n(t.partial_row(first + b) + i * t.pitch + column, some, A(0));
  }
}

// Processes the positions in rows first .. first + kRows - 1, in steps of kStep columns, whose
// moments stay in the level-1 cache.
template <class State>
SSIMFAST_INLINE void positions(State& t, int64_t first) {
  using V = typename State::V;
  using A = typename State::A;
  constexpr int kLanes = State::kLanes;
  const typename State::Taps taps(t.problem.window().taps);
  const A* rows[kMaxRing];
  for (int64_t k = 0; k < t.ring; ++k) rows[k] = t.moments_row(first - t.halo + k);
  Compensated<V, A> distances, contrast_distances;
  const Constants<V> constants{broadcast<V>(t.problem.twice_c1), broadcast<V>(t.problem.twice_c2),
                               broadcast<V>(t.pad_s), broadcast<V>(t.weight_ssim),
                               broadcast<V>(t.weight_cs)};
  alignas(64) MomentsOfStep<A> moments;
  for (int64_t column = t.vector_begin; column < t.valid_end; column += kStep) {
    const int64_t some = std::min<int64_t>(kStep, t.valid_end - column);
    if constexpr (State::kMasked) {
      const Seen seen = seen_by_step(t, first - t.halo, column);
      if (seen == Seen::kNothing) {
        fill_hidden(t, first, column, some);
        continue;
      }
      filter_masked_columns(t, taps, rows, seen, column, some, moments);
    } else {
      filter_columns(t, taps, rows, column, some, moments);
    }
    for (int b = 0; b < kRows; ++b) {
      const int64_t centre = first + b;
      if (!t.is_centre(centre)) continue;
      const bool counts = t.is_own_row(centre);
      const Place<A> place{
          State::kGrad || State::kMasked ? t.pixel_row(centre) + t.halo + column : nullptr,
          State::kGrad ? t.partial_row(centre) + column : nullptr,
          {map_place(t, kSsimMap, b, column), map_place(t, kLuminanceMap, b, column),
           map_place(t, kContrastMap, b, column)}};
      V distance{}, contrast_distance{};  // of the step
      for (int64_t c = 0; c < some; c += kLanes) {
        const Distances<V> at =
            position(t, constants, load<V>(moments[kMeanS][b] + c), load<V>(moments[kVarS][b] + c),
                     load<V>(moments[kMeanD][b] + c), load<V>(moments[kVarD][b] + c),
                     State::kMasked ? load<V>(moments[kCoverage][b] + c) : V{}, place, c);
        if constexpr (State::kSums) {
          const int64_t begin = t.own_begin - column - c, end = t.own_end - column - c;
          if (begin <= 0 && end >= kLanes) {
            distance += at.whole;
            contrast_distance += at.contrast;
          } else if (counts) {
            distances.add_some(at.whole, begin, end);
            contrast_distances.add_some(at.contrast, begin, end);
          }
        }
      }
      if (State::kSums && counts) {
        distances.add(distance);
        contrast_distances.add(contrast_distance);
      }
    }
  }
  if constexpr (State::kSums) {
    t.sums.term[kSsim] += distances.total();
    t.sums.term[kContrastStructure] += contrast_distances.total();
  }
}

// ---- maps ---------------------------------------------------------------------------------------

// Reads the upstream gradients of the positions in row `centre`. Columns without a position get 0.
template <class State>
SSIMFAST_INLINE void read_upstream(const State& t, const Source<typename State::A>& upstream,
                                   int64_t centre, typename State::A* to) {
  using A = typename State::A;
  const int64_t margin = t.problem.window().margin, count = t.valid_end - t.valid_begin;
  const A* from = upstream.row(upstream.plane(t.tile.n, t.tile.c), centre - margin,
                               t.first_stat + t.valid_begin - margin, count, t.out_row);
  std::copy(from, from + count, to + t.valid_begin);
  std::fill(to, to + t.valid_begin, A(0));
  std::fill(to + t.valid_end, to + t.pitch, A(0));
}

template <class State>
SSIMFAST_INLINE void write_maps(const State& t, int64_t centre, int row) {
  const int64_t margin = t.problem.window().margin, first = t.first_stat + t.own_begin - margin;
  for (int i = 0; i < kMaps; ++i)
    if (t.problem.map[i].data != nullptr)
      t.images.map[i].row(t.tile.n, t.tile.c, centre - margin, first, t.own_end - t.own_begin,
                          t.map_row(i, row) + t.own_begin);
}

// Sets the partial derivatives to 0 where no window is centred.
template <class State>
SSIMFAST_INLINE void clear_outside(const State& t, int64_t centre) {
  using A = typename State::A;
  for (int i = 0; i < (State::kBoth ? 4 : 3); ++i) {
    A* const row = t.partial_row(centre) + i * t.pitch;
    if (t.is_centre(centre)) {
      std::fill(row, row + t.valid_begin, A(0));
      std::fill(row + t.valid_end, row + t.stat_columns, A(0));
    } else {
      std::fill(row, row + t.stat_columns, A(0));
    }
  }
}

// ---- the phase ----------------------------------------------------------------------------------

// Computes the statistics of the positions in rows first .. first + kRows - 1, after loading the
// pixel rows that their windows cover.
template <class State>
SSIMFAST_INLINE void statistics(State& t, int64_t first) {
  for (; t.loaded < first - t.halo + t.ring; ++t.loaded) {
    load_row(t, t.loaded);
    filter_row(t, t.loaded);
    if constexpr (State::kSums) {
      if (t.is_own_row(t.loaded)) finish_pixels(t, t.loaded);
    }
  }
  if (first + kRows > t.problem.window().margin &&
      first < t.problem.height - t.problem.window().margin) {
    if constexpr (State::kPass == Pass::kMapsGradient) {
      for (int b = 0; b < kRows; ++b) {
        for (int i = 0; i < kMaps && t.is_centre(first + b); ++i)
          if (t.problem.upstream[i].data != nullptr)
            read_upstream(t, t.images.upstream[i], first + b, t.map_row(i, b));
      }
    }
    positions(t, first);
  }
  for (int b = 0; b < kRows; ++b) {
    const int64_t centre = first + b;
    if constexpr (State::kGrad) clear_outside(t, centre);
    if constexpr (State::kSums) {
      if (t.is_centre(centre) && t.is_own_row(centre)) write_maps(t, centre, b);
    }
  }
}

}  // namespace ssimfast::cpu
