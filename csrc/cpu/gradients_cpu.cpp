// The backward half of one-pass losses: gradients that the forward pass prepared, times what only
// backward knows, summed over the scales of a pyramid.
#include <cstdint>
#include <vector>

#include "../request.h"
#include "simd.h"
#include "tensors.h"
#include "tile.h"

namespace ssimfast::cpu {
namespace {

// One number of `upstream` for each group of planes: all of them, an image, or one plane.
template <class A>
struct Upstream {
  const A* data;
  int64_t by_image, by_plane;
  int64_t groups;

  explicit Upstream(const Tensor& upstream)
      : data(static_cast<const A*>(upstream.const_data_ptr())),
        by_image(upstream.dim() > 0 ? upstream.stride(0) : 0),
        by_plane(upstream.dim() > 1 ? upstream.stride(1) : 0),
        groups(upstream.numel()) {}

  double at(int64_t n, int64_t c) const { return double(data[n * by_image + c * by_plane]); }
};

// Calls body(n, c, row, begin, end) for runs of rows of all planes, on all threads.
template <class Body>
void for_rows(const Tensor& image, Body&& body) {
  const int64_t channels = image.size(1), height = image.size(2), width = image.size(3);
  const int64_t grain = std::max<int64_t>(1, 32768 / width);
  torch::stable::parallel_for(0, image.size(0) * channels * height, grain,
                              [&](int64_t begin, int64_t end) {
                                while (begin < end) {
                                  const int64_t plane = begin / height, row = begin % height;
                                  const int64_t count = std::min(end - begin, height - row);
                                  body(plane / channels, plane % channels, row, row + count);
                                  begin += count;
                                }
                              });
}

// out = grad * upstream * scale / count; `out` may be `grad`, and is left alone if that is the
// same.
void scale_into(const Tensor& out, const Tensor& grad, const Tensor& upstream, double scale,
                int64_t count) {
  if (grad.numel() == 0) return;
  dispatch_floating(grad, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Source<A> from = source<T>(grad);
    const Sink<A> to = sink<T>(out);
    const Upstream<A> factors(upstream);
    const bool in_place = from.data == to.data;
    const int64_t width = grad.size(3);
    for_rows(grad, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
      const A factor = A(factors.at(n, c) * scale / double(count));
      if (in_place && factor == 1) return;
      A* const scratch = workspace<A>(width);
      for (int64_t r = begin; r < end; ++r) {
        const A* row = from.row(from.plane(n, c), r, 0, width, scratch);
        A* const scaled = to.in_place(n, c, r, 0, scratch);
        for (int64_t j = 0; j < width; ++j) scaled[j] = row[j] * factor;
        if (scaled == scratch) to.row(n, c, r, 0, width, scratch);
      }
    });
  });
}

// Sums the gradients of one plane over its scales, row by row from the top.
template <class A>
class Pyramid {
 public:
  struct Level {
    Source<A> grad;
    int64_t height, width;
    PooledAxis pooled_rows, pooled_columns;  // to the next level
  };

  static int64_t workspace_size(const std::vector<Level>& levels) {
    return 3 * levels.size() * levels[0].width;
  }

  // factors: one for the gradient of each level, by plane.
  Pyramid(const std::vector<Level>& levels, Pooling pooling, int64_t n, int64_t c,
          const double* slopes, double upstream, A* workspace)
      : levels(levels), pooling(pooling), workspace(workspace), held(levels.size(), -1) {
    for (size_t j = 0; j < levels.size(); ++j) {
      planes.push_back(levels[j].grad.plane(n, c));
      factors.push_back(A(slopes[j] * upstream));
    }
  }

  // Row r of the sum of the scales from j up; `sum` may be where that row of j's gradient lies.
  void row(size_t j, int64_t r, A* sum) {
    const Level& level = levels[j];
    const A* grad = level.grad.row(planes[j], r, 0, level.width, buffer(j, 0));
    const A factor = factors[j];
    const int64_t row_above = (r + level.pooled_rows.shift) / 2;
    if (j + 1 == levels.size() || row_above >= level.pooled_rows.size) {
#pragma GCC ivdep
      for (int64_t c = 0; c < level.width; ++c) sum[c] = factor * grad[c];
      return;
    }
    const A* const share = spread(j, row_above);
    const A times = times_counted(r, level.height);
#pragma GCC ivdep
    for (int64_t c = 0; c < level.width; ++c) sum[c] = factor * grad[c] + times * share[c];
  }

 private:
  A* buffer(size_t j, int which) { return workspace + (3 * j + which) * levels[0].width; }

  // What each pixel of scale j takes from a row of the sum of the scales above. Kept for one row,
  // which two rows of scale j share.
  const A* spread(size_t j, int64_t row_above) {
    A* const __restrict share = buffer(j, 1);
    if (held[j] == row_above) return share;
    held[j] = row_above;
    A* const __restrict above = buffer(j, 2);
    row(j + 1, row_above, above);
    const Level& level = levels[j];
    const int64_t shift = level.pooled_columns.shift, pairs = (level.width - shift) / 2;
    const A quarter = A(0.25);
    if (shift > 0) share[0] = quarter * above[0];
    for (int64_t i = 0; i < pairs; ++i) {
      share[shift + 2 * i] = quarter * above[shift + i];
      share[shift + 2 * i + 1] = quarter * above[shift + i];
    }
    if (shift + 2 * pairs < level.width)  // counted twice, or not at all
      share[level.width - 1] = pooling == Pooling::kReplicate ? 2 * quarter * above[pairs] : A(0);
    return share;
  }

  A times_counted(int64_t r, int64_t height) const {
    return A(pooling == Pooling::kReplicate && height % 2 == 1 && r == height - 1 ? 2 : 1);
  }

  const std::vector<Level>& levels;
  const Pooling pooling;
  A* const workspace;
  std::vector<int64_t> held;
  std::vector<const char*> planes;
  std::vector<A> factors;
};

// `out` may be the gradient of the finest scale, of which each pixel is read before it is written.
void collapse_into(const Tensor& out, const PyramidRequest& request) {
  const std::vector<Tensor>& grads = request.grads;
  const Tensor& finest = grads[0];
  const auto pooling = Pooling(request.pooling);
  const bool has_pixels = request.x.has_value();
  if (finest.numel() == 0) return;
  dispatch_floating(finest, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Sink<A> to = sink<T>(out);
    const Upstream<A> factors(request.upstream);
    const int64_t channels = finest.size(1), height = finest.size(2), width = finest.size(3);
    std::vector<typename Pyramid<A>::Level> levels;
    for (size_t j = 0; j < grads.size(); ++j)
      levels.push_back({j == 0 ? source<T>(finest) : source<A>(grads[j]), grads[j].size(2),
                        grads[j].size(3), PooledAxis(pooling, grads[j].size(2)),
                        PooledAxis(pooling, grads[j].size(3))});
    const int64_t pyramid_size = Pyramid<A>::workspace_size(levels);
    Source<A> x_source, y_source;
    if (has_pixels) {
      x_source = source<T>(*request.x);
      y_source = source<T>(*request.y);
    }
    const A* const row_counts = optional_numbers<A>(request.rows, finest, height, "rows");
    const A* const column_counts = optional_numbers<A>(request.columns, finest, width, "columns");
    const double per_pixel = double(factors.groups) / double(finest.numel());
    const auto* all_slopes = static_cast<const double*>(request.slopes.const_data_ptr());
    for_rows(finest, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
      A* const scratch = workspace<A>(pyramid_size + 4 * width);
      A *const x_buffer = scratch + pyramid_size, *const y_buffer = x_buffer + width;
      A* const __restrict d = y_buffer + width;
      A* const total = d + width;
      const double factor = factors.at(n, c) * request.scale;
      Pyramid<A> pyramid(levels, pooling, n, c, all_slopes + (n * channels + c) * grads.size(),
                         factor, scratch);
      const A l1 = A(request.pixel_weights[0] * factor * per_pixel);
      const A l2 = A(2 * request.scale * request.pixel_weights[1] * factor * per_pixel);
      const A blurred = A(request.pixel_weights[2] * factor * per_pixel);
      for (int64_t r = begin; r < end; ++r) {
        A* const sum = to.in_place(n, c, r, 0, total);
        pyramid.row(0, r, sum);
        if (has_pixels) {
          const A* xr = x_source.row(x_source.plane(n, c), r, 0, width, x_buffer);
          const A* yr = y_source.row(y_source.plane(n, c), r, 0, width, y_buffer);
          for (int64_t j = 0; j < width; ++j) d[j] = xr[j] - yr[j];
          for (int64_t j = 0; j < width; ++j) sum[j] += l1 * sign(d[j]) + l2 * d[j];
          if (row_counts != nullptr) {
            const A factor_of_row = blurred * row_counts[r];
            for (int64_t j = 0; j < width; ++j)
              sum[j] += factor_of_row * column_counts[j] * sign(d[j]);
          }
        }
        if (sum == total) to.row(n, c, r, 0, width, sum);
      }
    });
  });
}

}  // namespace

struct CpuGradients {
  static Tensor empty_like(const Tensor& tensor) { return torch::stable::empty_like(tensor); }
  static constexpr auto scale_into = cpu::scale_into;
  static constexpr auto collapse_into = cpu::collapse_into;
};

}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, m) {
  using namespace ssimfast::cpu;
  SSIMFAST_REGISTER_GRADIENT_OPS(m, CpuGradients);
}
