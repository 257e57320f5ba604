// Converts torch tensors to a Problem and back: checks, outputs and the loop over pyramid levels,
// for every compiled device. ssimfast/ops/schemas.py documents the arguments.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "problem.h"

namespace ssimfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

struct Statistic {
  std::vector<double> window;
  std::vector<int64_t> sizes;
  double c1, c2, low, scale;
  bool same;

  // Size of the window along a dimension of the images, and number of its taps before it.
  int64_t size(int64_t dimension) const { return sizes[sizes.size() == 1 ? 0 : dimension - 2]; }
  int64_t first(int64_t dimension) const {
    int64_t taps = 0;
    for (int64_t i = 2; sizes.size() > 1 && i < dimension; ++i) taps += size(i);
    return taps;
  }
  int64_t margin(int64_t dimension) const { return same ? 0 : size(dimension) / 2; }
};

// A weighted sum of terms plus a constant.
struct Loss {
  std::vector<double> weights;
  double constant;
  MaybeTensor rows, columns;
  int64_t kept, gradients;
};

// Arguments of one sweep, beside the images and the statistic.
struct SweepRequest {
  Loss loss;
  int64_t wanted, count;
  double grad_scale;
  MaybeTensor plane_weights;
  int64_t pooling, map_term = -1;
  MaybeTensor mask, mask_factors;
};

// Arguments of `sweep_levels`, beside the images and the statistic.
struct LevelsRequest {
  Loss loss;
  std::vector<double> exponents;
  int64_t pooling, negative;
  bool joint;

  int levels() const { return static_cast<int>(exponents.size()); }
  // True if the finest level is swept twice. With SSIM beside MS-SSIM the gradient of the finest
  // level needs two weights per plane, which are known only after all levels are combined.
  bool twice() const { return loss.gradients > 0 && loss.weights[kSsim] != 0; }
  SweepRequest sweep_of(int level) const;
  SweepRequest second_sweep(const Tensor& plane_weights) const;
};

// Arguments of `scale_`.
struct ScaleRequest {
  Tensor grad, upstream;
  double factor;  // already divided by the count
};

// Arguments of `collapse_`. The sum overwrites grads[0], the finest gradient.
struct CollapseRequest {
  std::vector<Tensor> grads;
  Tensor slopes, upstream;
  double low, scale;
  int64_t pooling;
  MaybeTensor x, y;
  std::vector<double> pixel_weights;
  MaybeTensor rows, columns;
};

// ---- checks (ops.cpp) ---------------------------------------------------------------------------
//
// Python catches users' mistakes. These checks protect direct calls of an op from out-of-bounds
// memory access and meaningless results. ssimfast/ops/checks.py does the same for Python backends.

void check_pair(const Tensor& x, const Tensor& y, const Statistic& statistic, bool volumes);
void check_mask(const MaybeTensor& mask, const Tensor& x, bool components);
void check_upstream_maps(const std::vector<Tensor>& upstream, const Tensor& x, const Tensor& y,
                         const Statistic& statistic, int64_t gradients);
void check(const SweepRequest& request, const Tensor& x, const Tensor& y,
           const Statistic& statistic);
void check(const LevelsRequest& request, const Tensor& x, const Tensor& y,
           const Statistic& statistic);
void check(const ScaleRequest& request);
void check(const CollapseRequest& request);

// ---- tensors ------------------------------------------------------------------------------------

// Dtype of values and maps: float64 for float64 images, else float32.
ScalarType arithmetic_dtype(const Tensor& tensor);
Dtype dtype_of(const Tensor& tensor);
// value = low + step * element.
struct ElementRange {
  double low = 0, step = 1;
};
// Value range of y: the 0 to 255 of an 8-bit y beside a floating x is mapped to the range of x.
ElementRange range_of_y(const Tensor& x, const Tensor& y, double low, double scale);
View view_of(const Tensor& tensor);
View written_view_of(const Tensor& tensor);
Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype);
std::vector<int64_t> map_shape(const Tensor& x, const Statistic& statistic);
std::vector<int64_t> pooled_shape(const Tensor& x, int64_t pooling);
std::vector<int64_t> kept_shape(const Tensor& x, int64_t kept);  // the first `kept` sizes
int64_t positions_of_plane(const Tensor& x, const Statistic& statistic);
// Increments the version counter of a tensor that an op changed in place, so that autograd notices
// the change.
void raise_version(const Tensor& tensor);

template <class A>
A* data(const Tensor& tensor) {
  return static_cast<A*>(tensor.mutable_data_ptr());
}

// Pointer to the elements of a read-only tensor; null if there is no tensor.
template <class A>
const A* numbers(const MaybeTensor& tensor) {
  return tensor ? static_cast<const A*>(tensor->const_data_ptr()) : nullptr;
}

// Calls body(A{}) with the arithmetic type of the tensor's dtype.
template <class Body>
auto dispatch_arithmetic(const Tensor& tensor, Body&& body) {
  return tensor.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

// Returns a Problem that has only the images and the statistic. The caller adds the outputs that it
// wants.
template <class A>
Problem<A> problem_of(const Tensor& x, const Tensor& y, const MaybeTensor& mask,
                      const Statistic& statistic);

template <class A>
void set_request(Problem<A>& problem, const SweepRequest& request);

template <class A>
void set_gradients(Problem<A>& problem, const std::vector<Tensor>& grads) {
  problem.gradients = static_cast<int>(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) problem.grad[i] = written_view_of(grads[i]);
}

template <class A>
void set_pooled(Problem<A>& problem, int64_t pooling, const std::vector<Tensor>& pooled) {
  problem.pooling = Pooling(pooling);
  problem.pooled_rows = PooledAxis(problem.pooling, problem.height);
  problem.pooled_columns = PooledAxis(problem.pooling, problem.width);
  for (size_t i = 0; i < pooled.size(); ++i) problem.pooled[i] = data<A>(pooled[i]);
}

// ---- ops ----------------------------------------------------------------------------------------

// The ops, with the signatures that torch calls. A `Device` object serves one call, on the device
// of the images. Its methods are
//
//   std::vector<Records> sweep<A>(const std::vector<Problem<A>>&)
//                    runs one pass over the images, or over all levels of a pyramid of which each
//                    problem pools the images of the next; returns the sums of each level, if any
//   void reduce<A>(const std::vector<Records>&, const Reduction<A>&)   turns sums into values
//   void scale(const ScaleRequest&)
//   void collapse(const CollapseRequest&)
//
// and its static members are
//
//   kDoubleByAxis    true if volumes, and images with different windows along their axes, need
//                    Problem<double>, whatever their dtype
//   Levels           allocates the images of coarser pyramid levels
template <class Device>
class Ops {
  using Records = typename Device::Records;
  using Tensors = std::vector<Tensor>;
  using Swept = std::tuple<Tensor, Tensor, Tensors, Tensors, Tensors>;
  using SweptLevels = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

 public:
  static std::vector<Tensor> maps(const Tensor& x, const Tensor& y, MaybeTensor mask,
                                  std::vector<double> window, std::vector<int64_t> sizes, double c1,
                                  double c2, double low, double scale, bool same, bool components) {
    const Statistic statistic{std::move(window), std::move(sizes), c1, c2, low, scale, same};
    check_pair(x, y, statistic, true);
    check_mask(mask, x, components);
    std::vector<Tensor> out;
    for (int i = 0; i <= int(components); ++i) out.push_back(new_map(x, statistic));
    if (x.numel() == 0) return out;
    Device device(x);
    dispatch(x, statistic, [&](auto zero) {
      using A = decltype(zero);
      Problem<A> problem = problem_of<A>(x, y, mask, statistic);
      for (size_t i = 0; i < out.size(); ++i)
        problem.map[map_of(i, out.size())] = written_view_of(out[i]);
      device.sweep(std::vector{problem});
    });
    return out;
  }

  static std::vector<Tensor> maps_grad(std::vector<Tensor> upstream, const Tensor& x,
                                       const Tensor& y, MaybeTensor mask,
                                       std::vector<double> window, std::vector<int64_t> sizes,
                                       double c1, double c2, double low, double scale, bool same,
                                       int64_t gradients) {
    const Statistic statistic{std::move(window), std::move(sizes), c1, c2, low, scale, same};
    check_pair(x, y, statistic, true);
    check_upstream_maps(upstream, x, y, statistic, gradients);
    check_mask(mask, x, upstream.size() == 2);
    const std::vector<Tensor> grads = new_gradients(x, y, gradients);
    if (x.numel() == 0) return grads;
    Device device(x);
    dispatch(x, statistic, [&](auto zero) {
      using A = decltype(zero);
      Problem<A> problem = problem_of<A>(x, y, mask, statistic);
      problem.pass = Pass::kMapsGradient;
      for (size_t i = 0; i < upstream.size(); ++i)
        problem.upstream[map_of(i, upstream.size())] = view_of(upstream[i]);
      problem.grad_scale = problem.scale;
      set_gradients(problem, grads);
      device.sweep(std::vector{problem});
    });
    return grads;
  }

  static Swept sweep(const Tensor& x, const Tensor& y, MaybeTensor mask, MaybeTensor mask_factors,
                     std::vector<double> window, std::vector<int64_t> sizes, double c1, double c2,
                     double low, double scale, bool same, std::vector<double> weights,
                     double constant, MaybeTensor rows, MaybeTensor columns, int64_t kept,
                     int64_t gradients, int64_t wanted, int64_t count, double grad_scale,
                     int64_t grad_count, MaybeTensor plane_weights, int64_t pooling,
                     int64_t map_term) {
    const Statistic statistic{std::move(window), std::move(sizes), c1, c2, low, scale, same};
    STD_TORCH_CHECK(grad_count > 0, "ssimfast: grad_count must be positive, got ", grad_count);
    const SweepRequest request{
        {std::move(weights), constant, std::move(rows), std::move(columns), kept, gradients},
        wanted,
        count,
        grad_scale / double(grad_count),
        std::move(plane_weights),
        pooling,
        map_term,
        std::move(mask),
        std::move(mask_factors)};
    check_pair(x, y, statistic, true);
    check(request, x, y, statistic);
    Tensor value = new_tensor(x, kept_shape(x, kept), arithmetic_dtype(x));
    Tensor terms = new_terms(x, kept);
    const std::vector<Tensor> grads = new_gradients(x, y, gradients);
    std::vector<Tensor> pooled;
    for (int i = 0; i < (Pooling(pooling) == Pooling::kNone ? 0 : 2); ++i)
      pooled.push_back(new_tensor(x, pooled_shape(x, pooling), arithmetic_dtype(x)));
    std::vector<Tensor> maps;
    if (map_term >= 0) maps.push_back(new_map(x, statistic));
    if (x.numel() == 0) {
      torch::stable::fill_(value, constant);
      torch::stable::fill_(terms, 0);
      return {value, terms, grads, pooled, maps};
    }
    Device device(x);
    const std::vector<Records> records = dispatch(x, statistic, [&](auto zero) {
      using A = decltype(zero);
      Problem<A> problem = problem_for<A>(x, y, statistic, request, grads, pooled);
      if (map_term >= 0)
        problem.map[map_term == kSsim ? kSsimMap : kContrastMap] = written_view_of(maps[0]);
      return device.sweep(std::vector{problem});
    });
    dispatch_arithmetic(x, [&](auto zero) {
      using A = decltype(zero);
      Reduction<A> reduction = reduction_of<A>(x, request, value, terms);
      reduction.count = double(count);
      reduction.positions[0] = double(positions_of_plane(x, statistic));
      reduction.positions_per_pixel = reduction.positions[0] / pixels_of_plane(x);
      reduction.mask_factors = numbers<double>(request.mask_factors);
      device.reduce(records, reduction);
    });
    return {value, terms, grads, pooled, maps};
  }

  static SweptLevels sweep_levels(const Tensor& x, const Tensor& y, std::vector<double> window,
                                  std::vector<int64_t> sizes, double c1, double c2, double low,
                                  double scale, bool same, std::vector<double> weights,
                                  double constant, MaybeTensor rows, MaybeTensor columns,
                                  int64_t kept, int64_t gradients, std::vector<double> exponents,
                                  int64_t pooling, int64_t negative, bool joint) {
    const Statistic finest{std::move(window), std::move(sizes), c1, c2, low, scale, same};
    const LevelsRequest request{
        {std::move(weights), constant, std::move(rows), std::move(columns), kept, gradients},
        std::move(exponents),
        pooling,
        negative,
        joint};
    check_pair(x, y, finest, false);
    check(request, x, y, finest);
    const int levels = request.levels();
    const ScalarType dtype = arithmetic_dtype(x);
    const Tensor value = new_tensor(x, kept_shape(x, kept), dtype);
    const Tensor terms = new_terms(x, kept);
    const Tensor slopes = new_tensor(x, {x.size(0), x.size(1), levels}, ScalarType::Double);
    std::vector<Tensor> grads;
    Device device(x);
    dispatch_arithmetic(x, [&](auto zero) {
      using A = decltype(zero);
      Reduction<A> reduction = reduction_of<A>(x, request.sweep_of(0), value, terms);
      reduction.levels = levels;
      reduction.absolute = Negative(negative) == Negative::kAbs;
      reduction.joint = joint;
      reduction.slopes = data<double>(slopes);
      std::copy(request.loss.weights.begin(), request.loss.weights.end(), reduction.weights);
      reduction.constant = constant;
      std::optional<Tensor> plane_weights;
      if (request.twice()) {
        plane_weights = new_tensor(x, {x.size(0), x.size(1), 2}, dtype);
        reduction.plane_weights = data<A>(*plane_weights);
      }

      std::vector<Problem<A>> problems;
      std::vector<Tensor> images;  // of coarser levels, in use until the sweeps are queued
      typename Device::Levels memory;
      Tensor level_x = x, level_y = y;
      Statistic statistic = finest;
      for (int level = 0; level < levels; ++level) {
        SweepRequest sweep = request.sweep_of(level);
        if (level > 0) check_pair(level_x, level_y, statistic, false);
        STD_TORCH_CHECK(level_x.numel() > 0, "ssimfast: level ", level, " is empty");
        reduction.exponents[level] = request.exponents[level];
        reduction.positions[level] = double(positions_of_plane(level_x, statistic));
        const std::vector<Tensor> by_images = new_gradients(level_x, level_y, sweep.loss.gradients);
        grads.insert(grads.end(), by_images.begin(), by_images.end());
        std::vector<Tensor> pooled;
        if (level + 1 < levels)
          pooled = memory.new_images(level_x, by_images, request.pooling, level, request.twice());
        problems.push_back(problem_for<A>(level_x, level_y, statistic, sweep, by_images, pooled));
        images.insert(images.end(), pooled.begin(), pooled.end());
        if (pooled.empty()) break;
        level_x = pooled[0];
        level_y = pooled[1];
        statistic.low = 0;
        statistic.scale = 1;
      }
      const std::vector<Records> records = device.sweep(problems);
      reduction.positions_per_pixel = reduction.positions[0] / pixels_of_plane(x);
      device.reduce(records, reduction);
      if (request.twice()) {
        memory = {};
        images.clear();
        const SweepRequest sweep = request.second_sweep(*plane_weights);
        const std::vector<Tensor> by_images = new_gradients(x, y, gradients);
        device.sweep(std::vector{problem_for<A>(x, y, finest, sweep, by_images, {})});
        grads.insert(grads.begin(), by_images.begin(), by_images.end());
      }
    });
    return {value, terms, slopes, grads};
  }

  static void scale_(const Tensor& grad, const Tensor& upstream, double factor, int64_t count) {
    STD_TORCH_CHECK(count > 0, "ssimfast: count must be positive, got ", count);
    const ScaleRequest request{grad, upstream, factor / double(count)};
    check(request);
    raise_version(grad);
    if (grad.numel() > 0) Device(grad).scale(request);
  }

  static void collapse_(const Tensor& finest, std::vector<Tensor> coarser, const Tensor& slopes,
                        const Tensor& upstream, double low, double scale, int64_t pooling,
                        MaybeTensor x, MaybeTensor y, std::vector<double> pixel_weights,
                        MaybeTensor rows, MaybeTensor columns) {
    coarser.insert(coarser.begin(), finest);
    const CollapseRequest request{std::move(coarser),
                                  slopes,
                                  upstream,
                                  low,
                                  scale,
                                  pooling,
                                  std::move(x),
                                  std::move(y),
                                  std::move(pixel_weights),
                                  std::move(rows),
                                  std::move(columns)};
    check(request);
    raise_version(finest);
    if (finest.numel() > 0) Device(finest).collapse(request);
  }

 private:
  // Calls body(A{}) with the arithmetic type of a problem.
  template <class Body>
  static auto dispatch(const Tensor& x, const Statistic& statistic, Body&& body) {
    if (Device::kDoubleByAxis && (x.dim() == 5 || statistic.sizes.size() > 1))
      return body(double{});
    return dispatch_arithmetic(x, body);
  }

  // The map of an argument that is number `i` of so many maps.
  static Map map_of(size_t i, size_t count) {
    return count == 1 ? kSsimMap : i == 0 ? kLuminanceMap : kContrastMap;
  }

  static Tensor new_map(const Tensor& x, const Statistic& statistic) {
    return new_tensor(x, map_shape(x, statistic), arithmetic_dtype(x));
  }

  static Tensor new_terms(const Tensor& x, int64_t kept) {
    std::vector<int64_t> shape = kept_shape(x, kept);
    shape.push_back(kTerms);
    return new_tensor(x, shape, ScalarType::Double);
  }

  // Allocates gradients; each has the strides that torch.empty_like chooses for its image.
  static std::vector<Tensor> new_gradients(const Tensor& x, const Tensor& y, int64_t gradients) {
    std::vector<Tensor> grads;
    for (int64_t i = 0; i < gradients; ++i)
      grads.push_back(torch::stable::empty_like(i == 0 ? x : y));
    return grads;
  }

  static double pixels_of_plane(const Tensor& x) {
    return double(x.numel() / (x.size(0) * x.size(1)));
  }

  template <class A>
  static Problem<A> problem_for(const Tensor& x, const Tensor& y, const Statistic& statistic,
                                const SweepRequest& request, const std::vector<Tensor>& grads,
                                const std::vector<Tensor>& pooled) {
    Problem<A> problem = problem_of<A>(x, y, request.mask, statistic);
    problem.pass = grads.empty() ? Pass::kForward : Pass::kGradient;
    set_request(problem, request);
    set_gradients(problem, grads);
    set_pooled(problem, request.pooling, pooled);
    return problem;
  }

  template <class A>
  static Reduction<A> reduction_of(const Tensor& x, const SweepRequest& request,
                                   const Tensor& value, const Tensor& terms) {
    Reduction<A> reduction;
    reduction.wanted = static_cast<int>(request.wanted);
    std::copy(request.loss.weights.begin(), request.loss.weights.end(), reduction.weights);
    reduction.constant = request.loss.constant;
    reduction.planes = x.size(0) * x.size(1);
    reduction.channels = x.size(1);
    reduction.groups = value.numel();
    reduction.terms = data<double>(terms);
    reduction.value = data<A>(value);
    return reduction;
  }
};

}  // namespace ssimfast

#define SSIMFAST_REGISTER(library, Device)                                       \
  library.impl("maps", TORCH_BOX(&ssimfast::Ops<Device>::maps));                 \
  library.impl("maps_grad", TORCH_BOX(&ssimfast::Ops<Device>::maps_grad));       \
  library.impl("sweep", TORCH_BOX(&ssimfast::Ops<Device>::sweep));               \
  library.impl("sweep_levels", TORCH_BOX(&ssimfast::Ops<Device>::sweep_levels)); \
  library.impl("scale_", TORCH_BOX(&ssimfast::Ops<Device>::scale_));             \
  library.impl("collapse_", TORCH_BOX(&ssimfast::Ops<Device>::collapse_))
