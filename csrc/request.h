// What the ops of ssimfast/schemas.py are asked for, and their registration, the same for every
// compiled backend. See there for the meaning of each argument.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "tensor.h"
#include "terms.h"

namespace ssimfast {

// What every op is told about the statistic.
struct Settings {
  std::vector<double> window;
  double c1, c2, low, scale;
  bool same;

  int64_t size() const { return static_cast<int64_t>(window.size()); }
  // Pixels at each edge that are no window's centre.
  int64_t margin() const { return same ? 0 : size() / 2; }
};

inline void check(const Tensor& x, const Tensor& y, const Settings& settings) {
  check_pair(x, y);
  check_window(x, settings.window, settings.same, kMaxWindow);
}

// The shape of the map of images like x.
inline std::vector<int64_t> map_shape(const Tensor& x, const Settings& settings) {
  const int64_t lost = 2 * settings.margin();
  return {x.size(0), x.size(1), x.size(2) - lost, x.size(3) - lost};
}

// The shape of an image of the next scale.
inline std::vector<int64_t> pooled_shape(const Tensor& x, int64_t pooling) {
  return {x.size(0), x.size(1), PooledAxis(Pooling(pooling), x.size(2)).size,
          PooledAxis(Pooling(pooling), x.size(3)).size};
}

// What brings a sum over pixels to the number of positions.
inline double positions_per_pixel(const Tensor& x, const Settings& settings) {
  const std::vector<int64_t> positions = map_shape(x, settings);
  return double(positions[2] * positions[3]) / double(x.size(2) * x.size(3));
}

inline void check_upstream_maps(const std::vector<Tensor>& upstream, const Tensor& x,
                                const Settings& settings, int64_t gradients) {
  STD_TORCH_CHECK(gradients > 0, "ssimfast: gradients must be 1 or 2, got ", gradients);
  const std::vector<int64_t> shape = map_shape(x, settings);
  for (const Tensor& map : upstream) {
    check_device(map, x);
    bool fits = map.dim() == 4 && map.scalar_type() == arithmetic_dtype(x);
    for (int i = 0; fits && i < 4; ++i) fits = map.size(i) == shape[i];
    STD_TORCH_CHECK(fits, "ssimfast: the gradient of the map does not fit the map");
  }
}

// What `collapse` is told: the gradients of the scales of MS-SSIM, finest first, and what goes with
// them.
struct PyramidRequest {
  std::vector<Tensor> grads;
  Tensor slopes, upstream;
  double scale;
  int64_t pooling;
  std::optional<Tensor> x, y;
  std::vector<double> pixel_weights;
  std::optional<Tensor> rows, columns;
};

inline void check(const PyramidRequest& p) {
  const std::vector<Tensor>& grads = p.grads;
  const Tensor& slopes = p.slopes;
  STD_TORCH_CHECK(!grads.empty() && grads.size() <= kMostScales, "ssimfast: a pyramid has 1 to ",
                  kMostScales, " gradients, got ", grads.size());
  check_pooling(p.pooling);
  const Tensor& finest = grads[0];
  check_upstream(finest, p.upstream);
  check_device(slopes, finest);
  STD_TORCH_CHECK(slopes.dim() == 3 && slopes.size(0) == finest.size(0) &&
                      slopes.size(1) == finest.size(1) &&
                      slopes.size(2) == static_cast<int64_t>(grads.size()) &&
                      slopes.is_contiguous() && slopes.scalar_type() == ScalarType::Double,
                  "ssimfast: slopes must be float64, contiguous, (N, C, scales)");
  STD_TORCH_CHECK(p.pixel_weights.size() == kTerms - kL1, "ssimfast: pixel_weights must be ",
                  kTerms - kL1, " numbers, got ", p.pixel_weights.size());
  STD_TORCH_CHECK(p.x.has_value() == p.y.has_value() && p.rows.has_value() == p.columns.has_value(),
                  "ssimfast: x and y, rows and columns come in pairs");
  for (const double weight : p.pixel_weights)
    STD_TORCH_CHECK(weight == 0 || p.x.has_value(), "ssimfast: pixel_weights need x and y");
  STD_TORCH_CHECK(p.pixel_weights.back() == 0 || p.rows.has_value(),
                  "ssimfast: the blurred L1 needs both rows and columns");
  if (p.x.has_value()) {
    check_pair(*p.x, *p.y);
    check_pair(*p.x, finest);
  }
  for (size_t j = 1; j < grads.size(); ++j) {
    check_device(grads[j], finest);
    STD_TORCH_CHECK(grads[j].dim() == 4 && grads[j].size(0) == finest.size(0) &&
                        grads[j].size(1) == finest.size(1) &&
                        grads[j].scalar_type() == arithmetic_dtype(finest),
                    "ssimfast: the gradients of coarser scales do not fit the finest");
    for (int64_t i = 2; i < 4; ++i)
      STD_TORCH_CHECK(grads[j].size(i) == PooledAxis(Pooling(p.pooling), grads[j - 1].size(i)).size,
                      "ssimfast: scale ", j, " has the wrong size");
  }
}

// What `similarity` is told beyond the statistic.
struct Request {
  int64_t wanted = 0;
  std::vector<double> weights = std::vector<double>(kTerms);
  double constant = 0;
  std::optional<Tensor> plane_weights, rows, columns;
  int64_t count = 1, kept = 0, gradients = 0, pooling = int64_t(Pooling::kNone);
  bool finished = false;

  bool wants(int term) const { return (wanted >> term & 1) != 0; }

  // What the gradient is multiplied by, on its way out.
  double grad_scale(const Settings& settings) const {
    return finished ? settings.scale / double(count) : 1.0;
  }

  // What the weights are divided by, in the gradient.
  double bound() const {
    double bound = 1;
    if (finished) return bound;
    for (const double weight : weights) bound = std::max(bound, std::fabs(weight));
    return bound;
  }
};

inline void check(const Request& request, const Tensor& x) {
  check_weights(request.weights);
  check_count(request.count);
  check_kept(request.kept);
  check_gradients(x, request.gradients);
  check_pooling(request.pooling);
  STD_TORCH_CHECK(request.wanted >> kTerms == 0, "ssimfast: wanted must be a bit for each of ",
                  int(kTerms), " terms, got ", request.wanted);
  STD_TORCH_CHECK(request.rows.has_value() == request.columns.has_value() &&
                      (request.rows.has_value() ||
                       (request.weights[kBlurredL1] == 0 && !request.wants(kBlurredL1))),
                  "ssimfast: the blurred L1 needs both rows and columns");
}

// The value, the terms, the gradients and the pooled images.
using Similarity = std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

// What `sweep_scales` is told beyond the statistic.
struct ScalesRequest {
  std::vector<double> scale_weights;
  int64_t pooling;
  bool absolute, joint;
  std::vector<double> weights;
  double constant;
  std::optional<Tensor> rows, columns;
  int64_t kept, gradients;
  bool late;

  int scales() const { return static_cast<int>(scale_weights.size()); }
  Term mean_of(int scale) const { return mean_of_scale(scale, scales()); }

  std::vector<int64_t> finest_weights_shape(const Tensor& x) const {
    return late ? std::vector<int64_t>{x.size(0), x.size(1), 2} : std::vector<int64_t>{0};
  }

  // What the sweep of one scale is for; its terms are sums.
  Request sweep_of(int scale) const {
    const bool finest = scale == 0;
    Request request;
    request.wanted = int64_t(1) << mean_of(scale);
    if (finest) {
      request.rows = rows;
      request.columns = columns;
    }
    request.kept = 2;
    request.gradients = finest && late ? 0 : gradients;
    if (scale + 1 < scales()) request.pooling = pooling;
    request.weights[mean_of(scale)] = 1;
    for (int t = 0; finest && t < kTerms; ++t)
      if (t != kContrastStructure && weights[t] != 0) request.wanted |= int64_t(1) << t;
    return request;
  }
};

inline void check(const ScalesRequest& request, const Tensor& x) {
  STD_TORCH_CHECK(1 <= request.scales() && request.scales() <= kMostScales,
                  "ssimfast: scales must be 1 to ", kMostScales, ", got ", request.scales());
  check_weights(request.weights);
  check_kept(request.kept);
  check_pooling(request.pooling);
  STD_TORCH_CHECK(Pooling(request.pooling) != Pooling::kNone, "ssimfast: scales need a pooling");
  check_gradients(x, request.gradients);
}

// Of the images of one of the scales, too.
inline void check_scale(const Tensor& x, const Tensor& y, const Settings& settings,
                        const Request& request, int scale) {
  check(x, y, settings);
  check(request, x);
  STD_TORCH_CHECK(x.numel() > 0, "ssimfast: scale ", scale, " is empty");
}

// The value, the terms, the slopes, the plane weights of the finest scale, and the gradients.
using SweptScales = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

// The ops of a backend that has `maps`, `map_gradients`, `similarity` and `sweep_scales`, in the
// form that torch calls them.
template <class Backend>
struct Ops {
  static Tensor ssim_map(const Tensor& x, const Tensor& y, std::vector<double> window, double c1,
                         double c2, double low, double scale, bool same) {
    return Backend::maps(x, y, {std::move(window), c1, c2, low, scale, same}, false)[0];
  }

  static std::vector<Tensor> ssim_map_grad(const Tensor& upstream, const Tensor& x, const Tensor& y,
                                           std::vector<double> window, double c1, double c2,
                                           double low, double scale, bool same, int64_t gradients) {
    return Backend::map_gradients({upstream}, x, y, {std::move(window), c1, c2, low, scale, same},
                                  gradients);
  }

  static std::tuple<Tensor, Tensor> components_map(const Tensor& x, const Tensor& y,
                                                   std::vector<double> window, double c1, double c2,
                                                   double low, double scale, bool same) {
    const auto out = Backend::maps(x, y, {std::move(window), c1, c2, low, scale, same}, true);
    return {out[0], out[1]};
  }

  static std::vector<Tensor> components_map_grad(const Tensor& by_luminance,
                                                 const Tensor& by_contrast_structure,
                                                 const Tensor& x, const Tensor& y,
                                                 std::vector<double> window, double c1, double c2,
                                                 double low, double scale, bool same,
                                                 int64_t gradients) {
    return Backend::map_gradients({by_luminance, by_contrast_structure}, x, y,
                                  {std::move(window), c1, c2, low, scale, same}, gradients);
  }

  static Similarity similarity(const Tensor& x, const Tensor& y, std::vector<double> window,
                               double c1, double c2, double low, double scale, bool same,
                               int64_t wanted, std::vector<double> weights, double constant,
                               std::optional<Tensor> plane_weights, std::optional<Tensor> rows,
                               std::optional<Tensor> columns, int64_t count, int64_t kept,
                               int64_t gradients, int64_t pooling, bool finished) {
    return Backend::similarity(
        x, y, {std::move(window), c1, c2, low, scale, same},
        {wanted, std::move(weights), constant, std::move(plane_weights), std::move(rows),
         std::move(columns), count, kept, gradients, pooling, finished});
  }

  static SweptScales sweep_scales(const Tensor& x, const Tensor& y, std::vector<double> window,
                                  double c1, double c2, double low, double scale, bool same,
                                  std::vector<double> scale_weights, int64_t pooling, bool absolute,
                                  bool joint, std::vector<double> weights, double constant,
                                  std::optional<Tensor> rows, std::optional<Tensor> columns,
                                  int64_t kept, int64_t gradients, bool late) {
    return Backend::sweep_scales(
        x, y, {std::move(window), c1, c2, low, scale, same},
        {std::move(scale_weights), pooling, absolute, joint, std::move(weights), constant,
         std::move(rows), std::move(columns), kept, gradients, late});
  }
};

// The backward half of one-pass losses, of a backend that has `empty_like`, `scale_into` and
// `collapse_into`: into new tensors, or those that the gradients of the forward pass are in.
template <class Backend>
struct GradientOps {
  static Tensor scale_grad(const Tensor& grad, const Tensor& upstream, double scale,
                           int64_t count) {
    check_upstream(grad, upstream);
    check_count(count);
    const Tensor out = Backend::empty_like(grad);
    Backend::scale_into(out, grad, upstream, scale, count);
    return out;
  }

  static void scale_grad_in_place(const Tensor& grad, const Tensor& upstream, double scale,
                                  int64_t count) {
    check_upstream(grad, upstream);
    check_count(count);
    check_written(grad);
    Backend::scale_into(grad, grad, upstream, scale, count);
    raise_version(grad);
  }

  static Tensor collapse(std::vector<Tensor> grads, const Tensor& slopes, const Tensor& upstream,
                         double scale, int64_t pooling, std::optional<Tensor> x,
                         std::optional<Tensor> y, std::vector<double> pixel_weights,
                         std::optional<Tensor> rows, std::optional<Tensor> columns) {
    const auto request =
        checked(std::move(grads), slopes, upstream, scale, pooling, std::move(x), std::move(y),
                std::move(pixel_weights), std::move(rows), std::move(columns));
    const Tensor out = Backend::empty_like(request.grads[0]);
    Backend::collapse_into(out, request);
    return out;
  }

  static void collapse_in_place(const Tensor& finest, std::vector<Tensor> coarser,
                                const Tensor& slopes, const Tensor& upstream, double scale,
                                int64_t pooling, std::optional<Tensor> x, std::optional<Tensor> y,
                                std::vector<double> pixel_weights, std::optional<Tensor> rows,
                                std::optional<Tensor> columns) {
    coarser.insert(coarser.begin(), finest);
    const auto request =
        checked(std::move(coarser), slopes, upstream, scale, pooling, std::move(x), std::move(y),
                std::move(pixel_weights), std::move(rows), std::move(columns));
    check_written(finest);
    Backend::collapse_into(finest, request);
    raise_version(finest);
  }

 private:
  template <class... Rest>
  static PyramidRequest checked(std::vector<Tensor> grads, Rest&&... rest) {
    const PyramidRequest request{std::move(grads), std::forward<Rest>(rest)...};
    check(request);
    return request;
  }
};

}  // namespace ssimfast

#define SSIMFAST_REGISTER_OPS(m, Backend)                                                 \
  m.impl("ssim_map", TORCH_BOX(&ssimfast::Ops<Backend>::ssim_map));                       \
  m.impl("ssim_map_grad", TORCH_BOX(&ssimfast::Ops<Backend>::ssim_map_grad));             \
  m.impl("components_map", TORCH_BOX(&ssimfast::Ops<Backend>::components_map));           \
  m.impl("components_map_grad", TORCH_BOX(&ssimfast::Ops<Backend>::components_map_grad)); \
  m.impl("similarity", TORCH_BOX(&ssimfast::Ops<Backend>::similarity));                   \
  m.impl("sweep_scales", TORCH_BOX(&ssimfast::Ops<Backend>::sweep_scales))

#define SSIMFAST_REGISTER_GRADIENT_OPS(m, Backend)                                        \
  m.impl("scale_grad", TORCH_BOX(&ssimfast::GradientOps<Backend>::scale_grad));           \
  m.impl("scale_grad_", TORCH_BOX(&ssimfast::GradientOps<Backend>::scale_grad_in_place)); \
  m.impl("collapse", TORCH_BOX(&ssimfast::GradientOps<Backend>::collapse));               \
  m.impl("collapse_", TORCH_BOX(&ssimfast::GradientOps<Backend>::collapse_in_place))
