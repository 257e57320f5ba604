// The backward step of one-pass losses: multiplies the gradients from the forward pass by the
// upstream gradient, and adds them up over the pyramid levels.
#include <cstdint>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/rows.h"

namespace ssimfast::cpu {
namespace {

// The upstream gradient: one number for all planes, one per image or one per plane.
template <class A>
struct Upstream {
  const A* data;
  int64_t by_image, by_plane;
  int64_t groups;

  explicit Upstream(const Tensor& upstream)
      : data(numbers<A>(upstream)),
        by_image(upstream.dim() > 0 ? upstream.stride(0) : 0),
        by_plane(upstream.dim() > 1 ? upstream.stride(1) : 0),
        groups(upstream.numel()) {}

  double at(int64_t n, int64_t c) const { return double(data[n * by_image + c * by_plane]); }
};

// Calls body(n, c, begin, end) for runs of rows [begin, end) of all planes, on all threads.
template <class Body>
void for_rows(const Tensor& image, Body&& body) {
  const int64_t channels = image.size(1), height = image.size(image.dim() - 2);
  const int64_t grain = std::max<int64_t>(1, 32768 / image.size(image.dim() - 1));
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

// Multiplies one slice of a gradient in place. Planes whose factor is 1 are skipped.
template <class A>
void scale_slice(const ScaleRequest& request, const View& view) {
  const Source<A> from(view);
  const Sink<A> to(view);
  const Upstream<A> upstream(request.upstream);
  const int64_t width = request.grad.size(request.grad.dim() - 1);
  for_rows(request.grad, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
    const A factor = A(upstream.at(n, c) * request.factor);
    if (factor == 1) return;
    A* const scratch = workspace<A>(width);
    for (int64_t r = begin; r < end; ++r) {
      const A* row = from.row(from.plane(n, c), r, 0, width, scratch);
      A* const scaled = to.in_place(n, c, r, 0, scratch);
      for (int64_t j = 0; j < width; ++j) scaled[j] = row[j] * factor;
      if (scaled == scratch) to.row(n, c, r, 0, width, scratch);
    }
  });
}

// Adds up the gradients of one plane over all levels, row by row.
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

  // slopes: one per level. The gradient of level j is multiplied by slopes[j] * upstream.
  Pyramid(const std::vector<Level>& levels, Pooling pooling, int64_t n, int64_t c,
          const double* slopes, double upstream, A* workspace)
      : levels(levels), pooling(pooling), workspace(workspace), held(levels.size(), -1) {
    for (size_t j = 0; j < levels.size(); ++j) {
      planes.push_back(levels[j].grad.plane(n, c));
      factors.push_back(A(slopes[j] * upstream));
    }
  }

  // Writes row r of the sum of level j and all coarser levels to `sum`. `sum` may be that row of
  // level j's gradient.
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

  // Spreads row `row_above` of the sum of the coarser levels to the pixels of level j. Keeps the
  // last result, because two rows of level j use it.
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
    if (shift + 2 * pairs < level.width)  // an odd last column counts twice or not at all
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

// The sum overwrites the finest gradient, so each pixel is read before it is written.
template <class A>
void collapse_pyramid(const CollapseRequest& request) {
  const std::vector<Tensor>& grads = request.grads;
  const Tensor& finest = grads[0];
  const auto pooling = Pooling(request.pooling);
  const bool has_pixels = request.x.has_value();
  const Sink<A> to(written_view_of(finest));
  const Upstream<A> upstream(request.upstream);
  const int64_t channels = finest.size(1), width = finest.size(3);
  std::vector<typename Pyramid<A>::Level> levels;
  for (const Tensor& grad : grads)
    levels.push_back({Source<A>(view_of(grad)), grad.size(2), grad.size(3),
                      PooledAxis(pooling, grad.size(2)), PooledAxis(pooling, grad.size(3))});
  const int64_t pyramid_size = Pyramid<A>::workspace_size(levels);
  Source<A> x_source, y_source;
  if (has_pixels) {
    x_source = Source<A>(view_of(*request.x));
    const ElementRange range = range_of_y(*request.x, *request.y, request.low, request.scale);
    y_source = Source<A>(view_of(*request.y), A(range.low), A(range.step));
  }
  const A* const row_counts = numbers<A>(request.rows);
  const A* const column_counts = numbers<A>(request.columns);
  const double per_pixel = double(upstream.groups) / double(finest.numel());
  const double* const all_slopes = numbers<double>(request.slopes);
  for_rows(finest, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
    A* const scratch = workspace<A>(pyramid_size + 3 * width);
    A *const x_buffer = scratch + pyramid_size, *const y_buffer = x_buffer + width;
    A* const total = y_buffer + width;
    const double factor = upstream.at(n, c) * request.scale;
    Pyramid<A> pyramid(levels, pooling, n, c, all_slopes + (n * channels + c) * grads.size(),
                       factor, scratch);
    A weight[kTerms - kL1];
    for (int t = 0; t < kTerms - kL1; ++t)
      weight[t] = A(request.pixel_weights[t] * factor * per_pixel);
    const A scale = A(request.scale);
    for (int64_t r = begin; r < end; ++r) {
      A* const sum = to.in_place(n, c, r, 0, total);
      pyramid.row(0, r, sum);
      if (has_pixels) {
        const A* xr = x_source.row(x_source.plane(n, c), r, 0, width, x_buffer);
        const A* yr = y_source.row(y_source.plane(n, c), r, 0, width, y_buffer);
        if (row_counts == nullptr) {
          for (int64_t j = 0; j < width; ++j)
            sum[j] += pixel_slope(weight, (xr[j] - yr[j]) * scale, A(0));
        } else {
          const A row = row_counts[r];
          for (int64_t j = 0; j < width; ++j)
            sum[j] += pixel_slope(weight, (xr[j] - yr[j]) * scale, row * column_counts[j]);
        }
      }
      if (sum == total) to.row(n, c, r, 0, width, sum);
    }
  });
}

}  // namespace

void CpuDevice::scale(const ScaleRequest& request) {
  dispatch_arithmetic(request.grad, [&](auto zero) {
    using A = decltype(zero);
    View view = written_view_of(request.grad);
    const int64_t slices = request.grad.dim() == 5 ? request.grad.size(2) : 1;
    const int64_t bytes = size_of(view.dtype) * view.by_slice;
    for (int64_t slice = 0; slice < slices; ++slice) {
      scale_slice<A>(request, view);
      view.data = static_cast<char*>(view.data) + bytes;
    }
  });
}

void CpuDevice::collapse(const CollapseRequest& request) {
  dispatch_arithmetic(request.grads[0],
                      [&](auto zero) { collapse_pyramid<decltype(zero)>(request); });
}

}  // namespace ssimfast::cpu
