// Launches what gradients.cuh has.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../request.h"
#include "gradients.cuh"
#include "host.h"

namespace ssimfast::cuda {
namespace {

int64_t grid(int64_t items) {
  return std::min<int64_t>(items, std::numeric_limits<int32_t>::max());
}

int64_t stride_or_zero(const Tensor& tensor, int64_t dimension) {
  return dimension < tensor.dim() ? tensor.stride(dimension) : 0;
}

// The dimensions of both tensors, outermost in memory of `to` first. Two are made one where a step
// along the outer is as long as the whole of the inner, in all three tensors.
std::vector<Axis> axes_of(const Tensor& from, const Tensor& to, const Tensor& upstream) {
  std::vector<Axis> axes;
  for (int64_t i = 0; i < from.dim(); ++i)
    if (from.size(i) > 1)
      axes.push_back({from.size(i), from.stride(i), to.stride(i), stride_or_zero(upstream, i)});
  std::stable_sort(axes.begin(), axes.end(),
                   [](const Axis& a, const Axis& b) { return a.to > b.to; });
  std::vector<Axis> joined;
  for (const Axis& axis : axes) {
    if (!joined.empty()) {
      Axis& outer = joined.back();
      if (outer.from == axis.size * axis.from && outer.to == axis.size * axis.to &&
          outer.upstream == axis.size * axis.upstream) {
        outer = {outer.size * axis.size, axis.from, axis.to, axis.upstream};
        continue;
      }
    }
    joined.push_back(axis);
  }
  return joined;
}

// out = grad * upstream * scale / count; `out` may be `grad`, and is left alone if that is the
// same.
void scale_into(const Tensor& out, const Tensor& grad, const Tensor& upstream, double scale,
                int64_t count) {
  if (grad.numel() == 0) return;
  const Launcher launch(grad);
  std::vector<Axis> axes = axes_of(grad, out, upstream);
  int64_t items = grad.numel(), run = 0, pieces = 0;
  const int64_t piece = kPieceBytes / grad.element_size();
  if (axes.empty()) {
    run = 1;
  } else if (const Axis& inner = axes.back();
             inner.from == 1 && inner.to == 1 && inner.upstream == 0 &&
             (axes.size() == 1 || inner.size >= piece / 4)) {  // else most threads would idle
    run = inner.size;
    axes.pop_back();
  }
  if (run > 0) {
    pieces = divide_up(run, piece);
    items = items / run * pieces;
  }
  dispatch_arithmetic(grad, [&](auto zero) {
    using A = decltype(zero);
    ScaleGrad<A> p;
    p.from = grad.const_data_ptr();
    p.to = out.mutable_data_ptr();
    p.dtype = dtype_of(grad);
    p.upstream = static_cast<const A*>(upstream.const_data_ptr());
    p.factor = scale / double(count);
    p.axis_count = static_cast<int>(axes.size());
    p.items = items;
    p.run = run;
    p.pieces = pieces;
    std::copy(axes.begin(), axes.end(), p.axes);
    if (run > 0) {
      launch(scale_runs<A>, items, kScaleThreads, 0, p);
    } else {
      launch(scale_elements<A>, grid(divide_up(items, kScaleThreads)), kScaleThreads, 0, p);
    }
  });
}

template <class A>
Level<A> level_of(const Tensor& grad, Pooling pooling) {
  const PooledAxis rows(pooling, grad.size(2)), columns(pooling, grad.size(3));
  Level<A> level{.by_image = grad.stride(0),
                 .by_plane = grad.stride(1),
                 .by_row = grad.stride(2),
                 .by_column = grad.stride(3),
                 .height = static_cast<int>(grad.size(2)),
                 .width = static_cast<int>(grad.size(3)),
                 .row_shift = static_cast<int>(rows.shift),
                 .column_shift = static_cast<int>(columns.shift)};
  if (pooling == Pooling::kReplicate) {
    if (level.height % 2 == 1) level.twice_row = level.height - 1;
    if (level.width % 2 == 1) level.twice_column = level.width - 1;
  }
  return level;
}

// column_shift: patches begin that many pixels outside the image.
template <class A>
Patches<A> patches_of(const Tensor& tensor, int column_shift) {
  const int64_t row = kPatch * tensor.element_size();  // bytes of a row of a patch
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  bool packed = column_shift == 0 && tensor.stride(3) == 1 && address % row == 0;
  for (int64_t i = 0; i < 3; ++i)
    packed = packed && (tensor.size(i) == 1 || tensor.stride(i) % kPatch == 0);
  return {image_of<A>(tensor), packed};
}

// `out` may be the gradient of the finest scale, of which each pixel is read before it is written.
void collapse_into(const Tensor& out, const PyramidRequest& request) {
  const std::vector<Tensor>& grads = request.grads;
  const Tensor& finest = grads[0];
  const auto pooling = Pooling(request.pooling);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 2 * kPatch;
  STD_TORCH_CHECK(finest.size(2) <= kMost && finest.size(3) <= kMost,
                  "ssimfast: an image has at most ", kMost, " rows and columns");
  const Launcher launch(finest);
  if (finest.numel() == 0) return;
  dispatch_arithmetic(finest, [&](auto zero) {
    using A = decltype(zero);
    Collapse<A> p;
    p.level_count = static_cast<int>(grads.size());
    for (size_t j = 0; j < grads.size(); ++j) {
      p.levels[j] = level_of<A>(grads[j], pooling);
      if (j > 0) p.levels[j].grad = static_cast<const A*>(grads[j].const_data_ptr());
    }
    // Patches are pixels of scale 2, whether there is such a scale or not.
    const Level<A> next = grads.size() > 1 ? p.levels[1] : Level<A>{};
    p.row_shift = p.levels[0].row_shift + 2 * next.row_shift;
    p.column_shift = p.levels[0].column_shift + 2 * next.column_shift;
    p.rows_of_patches = static_cast<int>(divide_up(finest.size(2) + p.row_shift, kPatch));
    p.patches_per_row = static_cast<int>(divide_up(finest.size(3) + p.column_shift, kPatch));
    p.grad = patches_of<A>(finest, p.column_shift);
    p.out = patches_of<A>(out, p.column_shift);
    if (request.x.has_value()) {
      p.x = patches_of<A>(*request.x, p.column_shift);
      p.y = patches_of<A>(*request.y, p.column_shift);
    }
    p.slopes = static_cast<const double*>(request.slopes.const_data_ptr());
    p.upstream = static_cast<const A*>(request.upstream.const_data_ptr());
    p.upstream_by_image = stride_or_zero(request.upstream, 0);
    p.upstream_by_plane = stride_or_zero(request.upstream, 1);
    p.scale = request.scale;
    const double per_pixel = double(request.upstream.numel()) / double(finest.numel());
    for (int i = 0; i < kPixelTerms; ++i) p.pixel_slopes[i] = request.pixel_weights[i] * per_pixel;
    p.pixel_slopes[kL2 - kL1] *= 2 * request.scale;
    p.rows = optional_numbers<A>(request.rows, finest, finest.size(2), "rows");
    p.columns = optional_numbers<A>(request.columns, finest, finest.size(3), "columns");
    p.channels = finest.size(1);
    const int64_t patches = int64_t{p.rows_of_patches} * p.patches_per_row;
    const int threads =
        static_cast<int>(std::min<int64_t>(kCollapseThreads, divide_up(patches, kWarp) * kWarp));
    p.pieces = divide_up(patches, threads);
    p.items = finest.size(0) * p.channels * p.pieces;
    launch(collapse_pyramid<A>, grid(p.items), threads, PlaneState<A>::kBytes, p);
  });
}

}  // namespace

struct CudaGradients {
  static Tensor empty_like(const Tensor& tensor) {
    return poisoned(torch::stable::empty_like(tensor));
  }
  static constexpr auto scale_into = cuda::scale_into;
  static constexpr auto collapse_into = cuda::collapse_into;
};

}  // namespace ssimfast::cuda

SSIMFAST_CUDA_LIBRARY(m) {
  using namespace ssimfast::cuda;
  if (!is_chosen()) return;
  SSIMFAST_REGISTER_GRADIENT_OPS(m, CudaGradients);
}
