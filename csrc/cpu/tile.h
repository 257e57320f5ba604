// The fused kernel. Rows stream through one tile of one plane; no buffer is larger than the tile's
// rings.
//
//   image rows -> s, d -> horizontal filter -> ring of moments -> vertical filter -> SSIM
//                                                         (tile_pixels.h, tile_statistics.h)
//   SSIM -> ring of partial derivatives -> vertical adjoint -> horizontal adjoint -> gradient rows
//                                                         (tile_gradient.h)
//
// kRows rows are processed together. A position has the coordinates of the pixel at the centre of
// its window; `halo` is window / 2. docs/cpu.md explains this design and the alternatives that were
// tried.
//
// The filters subtract a nearby value before they square (docs/mathematics.md, "Centring"), so flat
// regions, bright or dark, keep their precision. The horizontal filters subtract the centre column,
// the vertical ones a row at or near the centre.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/rows.h"
#include "cpu/simd.h"
#include "problem.h"

namespace ssimfast::cpu {

constexpr int kRows = 4;
constexpr int kMaxRing = kMaxWindow + kRows - 1;
constexpr int kMaxLanes = 16;
constexpr int kStep = 128;  // columns whose moments stay in the level-1 cache
constexpr int kChunk = 32;  // columns that share a pixel of s in the horizontal adjoint

// Largest width of a tile. The rings of a tile then take 400 KB (gradient, float32, window 11) and
// fit a level-2 cache of 512 KiB.
constexpr int64_t kTileColumns = 480;
constexpr int kMaxSteps = (kTileColumns + 2 * kMaxWindow + kMaxLanes) / kStep + 1;

// A rectangle of one plane. The positions and pixels inside are the tile's own.
struct Tile {
  int64_t n, c;
  int64_t row_begin, row_end, column_begin, column_end;
};

// Sums over a tile's own positions and pixels, weighted by the mask: for kSsim and
// kContrastStructure of (1 - SSIM) / 2 and (1 - contrast-structure) / 2, for the other terms of
// pixel_term (terms.h).
struct TileSums {
  double term[kTerms] = {};
};

// Maps of pixels. Only masked tiles have the last one. Their hidden pixels have weight 0.
enum PixelMap { kS, kD, kWeight, kPixelMaps };

// Maps that the filters compute: means and variances of s and of d. Masked tiles have the coverage
// of a window as well: the sum of taps times weights. Windows along rows then have sums of squared
// distances from the mean in place of variances, and whole windows have 1 / coverage, or 0 if they
// see nothing.
enum Moment { kMeanS, kVarS, kMeanD, kVarD, kCoverage, kMoments };

// Numbers of these maps.
constexpr int pixel_map_count(bool masked) { return masked ? kPixelMaps : kWeight; }
constexpr int moment_count(bool masked) { return masked ? kMoments : kCoverage; }

// Maps of partial derivatives that the statistics compute for the gradient. The derivative of a
// window's SSIM with respect to a pixel is tap * [by variance * (pixel - centre pixel of the
// window) + constant]. kConstantD exists only if both images need a gradient; else kConstantS is
// the sum of both constants.
enum Partial { kByVarS, kByVarD, kConstantS, kConstantD, kPartials };

// Scratch memory of a tile. All rows have the same pitch, which has room for one more vector at the
// end. The pitch is an odd number of cache lines, so that the rows of a column use many sets of the
// cache.
template <class A>
struct Workspace {
  static constexpr int64_t kLine = 64 / sizeof(A);

  static int64_t pitch(int64_t tile_width, int window) {
    const int64_t width = tile_width + 4 * (window / 2) + 2 * kMaxLanes;
    return ((width + kLine - 1) / kLine | 1) * kLine;
  }
  // Pixel rows from the oldest that the adjoint needs to the newest that a window covers.
  static int64_t pixel_rows(int window) { return 3 * (window / 2) + kRows; }
  // Columns that the windows of a chunk cover, in whole vectors.
  static int64_t chunk_pitch(int window) {
    return (kChunk + 2 * (window / 2) + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  }
  static int64_t size(int64_t tile_width, int window, bool masked) {
    const int64_t ring = window + kRows - 1;
    const int64_t rows = pixel_map_count(masked) * pixel_rows(window) +
                         (moment_count(masked) + int(kPartials)) * ring +
                         (int(kPartials) + int(kMaps)) * kRows + 5;
    const int64_t chunks = (tile_width + kChunk - 1) / kChunk;
    return rows * pitch(tile_width, window) + chunks * chunk_pitch(window);
  }
};

// Chooses the constant that is subtracted from both images when they are read, from a sample of
// their pixels. For images near the value range the constant is `low`, so that s keeps its relative
// precision down to black. Images far from the range (a bias, another unit) would lose digits in s:
// for these the constant is the median of the sample, which outliers do not move. Non-finite pixels
// are ignored.
template <class A, class Pixels>
A offset_of(Pixels& pixels, A low, A scale) {
  const auto end =
      std::remove_if(pixels.begin(), pixels.end(), [](A value) { return !std::isfinite(value); });
  if (end == pixels.begin()) return low;
  const auto middle = pixels.begin() + (end - pixels.begin()) / 2;
  std::nth_element(pixels.begin(), middle, end);
  return is_far(*middle, low, scale) ? *middle : low;
}

template <class A>
A offset_of_tile(const Problem<A>& problem, const Images<A>& images, const Tile& tile) {
  constexpr int kSamples = 5;  // in each direction
  const char* const x = images.x.plane(tile.n, tile.c);
  const char* const y = images.y.plane(tile.n, tile.c);
  std::array<A, 2 * kSamples * kSamples> pixels;
  pixels.fill(std::numeric_limits<A>::quiet_NaN());  // samples that the mask hides
  const auto is_hidden = [&](int64_t r, int64_t c) {
    return problem.has_mask() && images.mask.at(images.mask.plane(tile.n, tile.c), r, c) == 0;
  };
  const auto sample = [&](int i, int64_t r, int64_t c) {
    pixels[2 * i] = images.x.at(x, r, c);
    pixels[2 * i + 1] = images.y.at(y, r, c);
  };
  bool any = false;
  for (int i = 0; i < kSamples * kSamples; ++i) {
    const auto at = [](int64_t begin, int64_t end, int64_t k) {
      return begin + (2 * k + 1) * (end - begin) / (2 * kSamples);
    };
    const int64_t r = at(tile.row_begin, tile.row_end, i / kSamples);
    const int64_t c = at(tile.column_begin, tile.column_end, i % kSamples);
    if (is_hidden(r, c)) continue;
    sample(i, r, c);
    any = true;
  }
  // The mask hid all samples: uses the first visible pixel instead.
  for (int64_t r = tile.row_begin; r < tile.row_end && !any; ++r)
    for (int64_t c = tile.column_begin; c < tile.column_end && !any; ++c)
      if (!is_hidden(r, c)) {
        sample(0, r, c);
        any = true;
      }
  return offset_of(pixels, problem.low, problem.scale);
}

// Taps of a window whose size is known at compile time. The window is symmetric, so registers hold
// only one half of the taps.
template <class V, class A, int kWindow>
struct FixedTaps {
  V half[kWindow / 2 + 1];

  explicit SSIMFAST_INLINE FixedTaps(const A* taps) {
    for (int j = 0; j <= kWindow / 2; ++j) half[j] = broadcast<V>(taps[j]);
  }
  SSIMFAST_INLINE V operator[](int j) const { return half[j <= kWindow / 2 ? j : kWindow - 1 - j]; }
};

// Taps of a window of any size, read from memory.
template <class A>
struct AnyTaps {
  const A* taps;

  explicit SSIMFAST_INLINE AnyTaps(const A* taps) : taps(taps) {}
  SSIMFAST_INLINE A operator[](int j) const { return taps[j]; }
};

// How much of a mask neighbouring windows see.
enum class Seen : uint8_t {
  kOnes,     // weights of 1 only
  kWeights,  // any weights
  kHoles,    // some of the windows see no pixel
  kNothing,  // none of them sees a pixel
};

// State that all phases of a tile share: geometry and rings.
//
// V_ is a vector of A_. kWindow > 0: the kernel is unrolled for that window and filters kRows
// output rows at a time. One loaded vector serves kRows vertical sums, which all subtract the row
// in the middle; that row is near every centre only if the window is wide. kWindow = 0: any window,
// row by row, each centred on itself. kBoth: both images need a gradient. kMasked: pixels have
// weights.
template <class V_, class A_, int kWindow_, Pass kPass_, bool kBoth_, bool kMasked_>
struct TileState {
  using V = V_;
  using A = A_;
  static constexpr int kWindow = kWindow_;
  static constexpr Pass kPass = kPass_;
  static constexpr bool kBoth = kBoth_;
  static constexpr bool kMasked = kMasked_;
  using Taps = std::conditional_t<(kWindow > 0), FixedTaps<V, A, kWindow>, AnyTaps<A>>;
  static constexpr bool kGrad = kPass == Pass::kGradient || kPass == Pass::kMapsGradient;
  static constexpr bool kSums = kPass != Pass::kMapsGradient;
  static constexpr int kLanes = sizeof(V) / sizeof(A);
  static constexpr int kBlock = kWindow > 0 ? kRows : 1;  // rows that share a centring row

  const Problem<A>& problem;
  const Images<A>& images;
  const Tile tile;
  const int window;
  const int64_t halo;
  const int64_t ring;        // rows that kRows windows cover
  const int64_t pixel_ring;  // rows of s and d that are kept
  const int64_t pitch;
  const int64_t spread;  // number of pixels that the statistics reach beyond the tile
  const int64_t columns, stat_columns, first_stat;
  const int64_t valid_begin, valid_end;  // columns of statistics that are window centres
  const int64_t own_begin, own_end;      // window centres that are the tile's own
  const int64_t vector_begin;            // valid_begin, rounded down to whole vectors
  const int64_t first_centre, first_row;
  const char *const x, *const y, *const mask;  // the planes
  const A offset;                              // subtracted from both images
  const A pad_s;                               // s of the padding
  A* const pixels;                             // ring of rows: kPixelMaps maps
  A* const moments_ring;                       // ring of rows: kMoments maps
  A* const partials_ring;                      // ring of rows: kPartials maps
  A* const adjoints;  // blocks of kRows rows, between the vertical and the horizontal adjoint
  A* const maps;      // kMaps blocks of kRows rows: maps, or their upstream gradients
  A *const x_buffer, *const y_buffer, *const mask_buffer, *const out_row, *const out_row_y;
  A* const chunks;  // one row, chunk by chunk: input of the horizontal adjoint of s
  const int64_t chunk_pitch;
  const A weight_ssim, weight_cs;  // four times the weights, as in Slopes
  // Masked tiles: how much the windows along rows see, for each row of the ring and each step of
  // columns. Where it is ones only, the row has variances, as in a tile without a mask.
  Seen seen_runs[kMasked ? kMaxRing : 1][kMasked ? kMaxSteps : 1] = {};
  int64_t loaded;  // the first pixel row that is not in the ring yet
  TileSums sums;

  SSIMFAST_INLINE TileState(const Problem<A>& problem, const Images<A>& images, const Tile& tile,
                            int64_t pitch, A* workspace)
      : problem(problem),
        images(images),
        tile(tile),
        window(kWindow > 0 ? kWindow : problem.window().size),
        halo(window / 2),
        ring(window + kRows - 1),
        pixel_ring(kGrad || kMasked ? Workspace<A>::pixel_rows(window) : kRows),
        pitch(pitch),
        spread(kGrad ? halo : 0),
        columns(tile.column_end - tile.column_begin),
        stat_columns(columns + 2 * spread),
        first_stat(tile.column_begin - spread),
        valid_begin(std::max<int64_t>(problem.window().margin - first_stat, 0)),
        valid_end(std::min(problem.width - problem.window().margin - first_stat, stat_columns)),
        own_begin(std::max(valid_begin, spread)),
        own_end(std::max(own_begin, std::min(valid_end, spread + columns))),
        vector_begin(valid_begin / kLanes * kLanes),
        first_centre(tile.row_begin - (2 * spread + kRows - 1) / kRows * kRows + spread),
        first_row(first_centre - halo),
        x(images.x.plane(tile.n, tile.c)),
        y(images.y.plane(tile.n, tile.c)),
        mask(images.mask.plane(tile.n, tile.c)),
        offset(offset_of_tile(problem, images, tile)),
        pad_s(2 * (problem.low - offset) * problem.scale),
        pixels(workspace),
        moments_ring(pixels + pixel_map_count(kMasked) * pixel_ring * pitch),
        partials_ring(moments_ring + moment_count(kMasked) * ring * pitch),
        adjoints(partials_ring + kPartials * ring * pitch),
        maps(adjoints + kPartials * kRows * pitch),
        x_buffer(maps + kMaps * kRows * pitch),
        y_buffer(x_buffer + pitch),
        mask_buffer(y_buffer + pitch),
        out_row(mask_buffer + pitch),
        out_row_y(out_row + pitch),
        chunks(out_row_y + pitch),
        chunk_pitch(Workspace<A>::chunk_pitch(window)),
        weight_ssim(4 * weight_of(kSsim)),
        weight_cs(4 * weight_of(kContrastStructure)),
        loaded(first_row) {}

  A weight_of(int term) const {
    const int64_t plane = tile.n * problem.channels + tile.c;
    if (problem.plane_weights != nullptr && term < kL1)
      return problem.plane_weights[2 * plane + term];
    if (!kMasked) return problem.weight[term];
    return A(problem.weight[term] *
             mask_factor(problem.mask_factors, plane / problem.group_planes, term));
  }

  SSIMFAST_INLINE A* pixel_row(int64_t r) const {
    return pixels + (r - first_row) % pixel_ring * pixel_map_count(kMasked) * pitch;
  }
  SSIMFAST_INLINE A* moments_row(int64_t r) const {
    return moments_ring + (r - first_row) % ring * moment_count(kMasked) * pitch;
  }
  SSIMFAST_INLINE Seen& seen(int64_t r, int64_t column) {
    return seen_runs[(r - first_row) % ring][(column - vector_begin) / kStep];
  }
  SSIMFAST_INLINE A* partial_row(int64_t centre) const {
    return partials_ring + (centre - first_centre) % ring * kPartials * pitch;
  }
  SSIMFAST_INLINE A* adjoint_row(int map, int row) const {
    return adjoints + (map * kRows + row) * pitch;
  }
  SSIMFAST_INLINE A* map_row(int map, int row) const { return maps + (map * kRows + row) * pitch; }

  SSIMFAST_INLINE bool is_centre(int64_t r) const {
    return r >= problem.window().margin && r < problem.height - problem.window().margin &&
           valid_begin < valid_end;
  }
  // True if a forward pass needs the positions, not only pixels.
  bool has_statistics() const {
    bool has = problem.wanted[kSsim] || problem.wanted[kContrastStructure];
    for (const View& map : problem.map) has = has || map.data != nullptr;
    return has;
  }
  SSIMFAST_INLINE bool is_own_row(int64_t r) const {
    return r >= tile.row_begin && r < tile.row_end;
  }
};

// Runs a tile with the widest instruction set of this processor. `workspace` holds
// Workspace<A>::size numbers, aligned to 64 bytes.
template <class A>
using RunTile = TileSums (*)(const Problem<A>& problem, const Images<A>& images, const Tile& tile,
                             int64_t pitch, A* workspace);

template <class A>
RunTile<A> select_tile(const Problem<A>& problem);

}  // namespace ssimfast::cpu
