#include "ops.h"

#include <algorithm>
#include <string>

namespace ssimfast {
namespace {

void check_device(const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(
      tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(),
      "ssimfast: all tensors must be on one device");
}

bool is_floating(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

bool has_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool has = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; has && i < tensor.dim(); ++i) has = tensor.size(i) == shape[i];
  return has;
}

std::vector<int64_t> shape_of(const Tensor& tensor) { return kept_shape(tensor, tensor.dim()); }

// Checks an optional tensor that a kernel reads as a contiguous array.
void check_numbers(const MaybeTensor& tensor, const Tensor& like, int64_t numel, const char* name) {
  if (!tensor) return;
  check_device(*tensor, like);
  STD_TORCH_CHECK(tensor->numel() == numel && tensor->is_contiguous() &&
                      tensor->scalar_type() == arithmetic_dtype(like),
                  "ssimfast: ", name, " must be ", numel,
                  " contiguous numbers of the result's dtype");
}

// True if y has a dtype that it may have beside x: that of x, or 8 bits if x is not float64.
bool is_dtype_beside(const Tensor& x, const Tensor& y) {
  return y.scalar_type() == x.scalar_type() ||
         (y.scalar_type() == ScalarType::Byte && x.scalar_type() != ScalarType::Double);
}

void check_gradients(int64_t gradients, int64_t least, const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(least <= gradients && gradients <= 2, "ssimfast: gradients must be ", least,
                  " to 2, got ", gradients);
  for (int64_t i = 0; i < gradients; ++i)
    STD_TORCH_CHECK((i == 0 ? x : y).scalar_type() != ScalarType::Byte,
                    "ssimfast: 8-bit images have no gradient");
}

void check_loss(const Loss& loss, const Tensor& x, const Tensor& y, bool wants_blurred_l1) {
  STD_TORCH_CHECK(loss.weights.size() == kTerms, "ssimfast: weights must be ", int(kTerms),
                  " numbers, got ", loss.weights.size());
  STD_TORCH_CHECK(0 <= loss.kept && loss.kept <= 2, "ssimfast: kept must be 0, 1 or 2, got ",
                  loss.kept);
  check_gradients(loss.gradients, 0, x, y);
  const bool blurred = wants_blurred_l1 || loss.weights[kBlurredL1] != 0;
  STD_TORCH_CHECK(
      loss.rows.has_value() == loss.columns.has_value() && (loss.rows.has_value() || !blurred),
      "ssimfast: the blurred L1 needs both rows and columns");
  check_numbers(loss.rows, x, x.size(2), "rows");
  check_numbers(loss.columns, x, x.size(3), "columns");
}

void check_window(const Statistic& statistic, int64_t dims) {
  const int64_t count = static_cast<int64_t>(statistic.sizes.size());
  STD_TORCH_CHECK(count == 1 || count == dims - 2, "ssimfast: sizes must be 1 or ", dims - 2,
                  " numbers, got ", count);
  auto first = statistic.window.begin();
  for (const int64_t size : statistic.sizes) {
    STD_TORCH_CHECK(size % 2 == 1 && 0 < size && size <= kMaxWindow,
                    "ssimfast: window must have 1, 3, ... ", kMaxWindow, " taps, got ", size);
    STD_TORCH_CHECK(statistic.window.end() - first >= size, "ssimfast: window has too few taps");
    STD_TORCH_CHECK(std::equal(first, first + size, std::reverse_iterator(first + size)),
                    "ssimfast: window must be symmetric");
    first += size;
  }
  STD_TORCH_CHECK(first == statistic.window.end(), "ssimfast: window has too many taps");
}

void check_pooling(int64_t pooling) {
  STD_TORCH_CHECK(0 <= pooling && pooling <= 3, "ssimfast: pooling must be 0, 1, 2 or 3, got ",
                  pooling);
}

// Checks the gradient that a kernel scales, and its upstream gradient: one number for all planes,
// one per image or one per plane.
void check_upstream(const Tensor& grad, const Tensor& upstream, int64_t most_dims) {
  check_device(upstream, grad);
  STD_TORCH_CHECK(4 <= grad.dim() && grad.dim() <= most_dims,
                  "ssimfast: the gradient must have 4 to ", most_dims, " dimensions, got ",
                  grad.dim());
  STD_TORCH_CHECK(is_floating(grad), "ssimfast: the gradient must be floating point, got ",
                  torch::headeronly::toString(grad.scalar_type()));
  const bool fits = upstream.scalar_type() == arithmetic_dtype(grad) && upstream.dim() <= 2 &&
                    has_shape(upstream, kept_shape(grad, upstream.dim()));
  STD_TORCH_CHECK(fits, "ssimfast: the upstream gradient does not fit the result");
}

// Rejects expanded tensors, whose elements share memory.
void check_written(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.dim(); ++i)
    STD_TORCH_CHECK(tensor.size(i) <= 1 || tensor.stride(i) != 0,
                    "ssimfast: an expanded tensor cannot be written in place");
}

}  // namespace

// ---- checks -------------------------------------------------------------------------------------

void check_pair(const Tensor& x, const Tensor& y, const Statistic& statistic, bool volumes) {
  check_device(y, x);
  STD_TORCH_CHECK((x.dim() == 4 || (volumes && x.dim() == 5)) && x.dim() == y.dim(),
                  "ssimfast: images must have ", volumes ? "4 or 5" : "4", " dimensions, got ",
                  x.dim(), " and ", y.dim());
  for (int64_t i = 0; i < x.dim(); ++i)
    STD_TORCH_CHECK(x.size(i) == y.size(i), "ssimfast: x and y differ in dimension ", i, ": ",
                    x.size(i), " and ", y.size(i));
  STD_TORCH_CHECK(is_dtype_beside(x, y), "ssimfast: x and y differ in dtype");
  STD_TORCH_CHECK(is_floating(x) || x.scalar_type() == ScalarType::Byte,
                  "ssimfast: images must be floating point or uint8, got ",
                  torch::headeronly::toString(x.scalar_type()));
  check_window(statistic, x.dim());
  for (int64_t i = 2; !statistic.same && i < x.dim(); ++i)
    STD_TORCH_CHECK(x.size(i) >= statistic.size(i), "ssimfast: dimension ", i, " of size ",
                    x.size(i), " is smaller than the window of ", statistic.size(i));
}

void check_mask(const MaybeTensor& mask, const Tensor& x, bool components) {
  STD_TORCH_CHECK(!components || (!mask && x.dim() == 4),
                  "ssimfast: components are those of images without a mask");
  if (!mask) return;
  check_device(*mask, x);
  STD_TORCH_CHECK(has_shape(*mask, shape_of(x)) && mask->scalar_type() == arithmetic_dtype(x),
                  "ssimfast: the mask does not fit the images");
}

void check_upstream_maps(const std::vector<Tensor>& upstream, const Tensor& x, const Tensor& y,
                         const Statistic& statistic, int64_t gradients) {
  check_gradients(gradients, 1, x, y);
  STD_TORCH_CHECK(upstream.size() == 1 || upstream.size() == 2,
                  "ssimfast: the number of upstream gradients must be 1 or 2, got ",
                  upstream.size());
  for (const Tensor& by_map : upstream) {
    check_device(by_map, x);
    STD_TORCH_CHECK(
        has_shape(by_map, map_shape(x, statistic)) && by_map.scalar_type() == arithmetic_dtype(x),
        "ssimfast: the gradient of the map does not fit the map");
  }
}

void check(const SweepRequest& request, const Tensor& x, const Tensor& y,
           const Statistic& statistic) {
  STD_TORCH_CHECK(request.wanted >> kTerms == 0, "ssimfast: wanted must be a bit for each of ",
                  int(kTerms), " terms, got ", request.wanted);
  STD_TORCH_CHECK(request.count > 0, "ssimfast: count must be positive, got ", request.count);
  check_pooling(request.pooling);
  check_loss(request.loss, x, y, (request.wanted >> kBlurredL1 & 1) != 0);
  STD_TORCH_CHECK(-1 <= request.map_term && request.map_term <= kContrastStructure,
                  "ssimfast: map_term must be -1, 0 or 1, got ", request.map_term);
  check_mask(request.mask, x, false);
  STD_TORCH_CHECK(request.mask.has_value() == request.mask_factors.has_value(),
                  "ssimfast: mask and mask_factors come in pairs");
  if (request.mask) {
    const Tensor& factors = *request.mask_factors;
    std::vector<int64_t> shape = kept_shape(x, request.loss.kept);
    shape.push_back(2);
    check_device(factors, x);
    STD_TORCH_CHECK(has_shape(factors, shape) && factors.is_contiguous() &&
                        factors.scalar_type() == ScalarType::Double,
                    "ssimfast: mask_factors must be float64, contiguous, (..., 2)");
    STD_TORCH_CHECK(!request.plane_weights && Pooling(request.pooling) == Pooling::kNone,
                    "ssimfast: masked images have no plane_weights and are not pooled");
  }
  if (x.dim() == 5 || statistic.sizes.size() > 1) {
    bool only_ssim = request.wanted <= 1 && !request.plane_weights && !request.loss.rows &&
                     Pooling(request.pooling) == Pooling::kNone;
    for (int t = 1; t < kTerms; ++t) only_ssim = only_ssim && request.loss.weights[t] == 0;
    STD_TORCH_CHECK(only_ssim, "ssimfast: volumes and images with several windows have SSIM only");
  }
  check_numbers(request.plane_weights, x, 2 * x.size(0) * x.size(1), "plane_weights");
}

void check(const LevelsRequest& request, const Tensor& x, const Tensor& y,
           const Statistic& statistic) {
  STD_TORCH_CHECK(1 <= request.levels() && request.levels() <= kMaxLevels,
                  "ssimfast: levels must be 1 to ", kMaxLevels, ", got ", request.levels());
  STD_TORCH_CHECK(request.negative == 0 || request.negative == 1,
                  "ssimfast: negative must be 0 or 1, got ", request.negative);
  check_pooling(request.pooling);
  STD_TORCH_CHECK(Pooling(request.pooling) != Pooling::kNone, "ssimfast: levels need a pooling");
  STD_TORCH_CHECK(statistic.sizes.size() == 1, "ssimfast: there must be one window for all axes");
  check_loss(request.loss, x, y, false);
}

void check(const ScaleRequest& request) {
  check_upstream(request.grad, request.upstream, 5);
  check_written(request.grad);
}

void check(const CollapseRequest& request) {
  const std::vector<Tensor>& grads = request.grads;
  STD_TORCH_CHECK(grads.size() <= kMaxLevels, "ssimfast: a pyramid has 1 to ", kMaxLevels,
                  " gradients, got ", grads.size());
  check_pooling(request.pooling);
  const Tensor &finest = grads[0], &slopes = request.slopes;
  check_upstream(finest, request.upstream, 4);
  check_written(finest);
  check_device(slopes, finest);
  const int64_t levels = static_cast<int64_t>(grads.size());
  STD_TORCH_CHECK(has_shape(slopes, {finest.size(0), finest.size(1), levels}) &&
                      slopes.is_contiguous() && slopes.scalar_type() == ScalarType::Double,
                  "ssimfast: slopes must be float64, contiguous, (N, C, levels)");
  STD_TORCH_CHECK(request.pixel_weights.size() == kTerms - kL1, "ssimfast: pixel_weights must be ",
                  kTerms - kL1, " numbers, got ", request.pixel_weights.size());
  STD_TORCH_CHECK(request.x.has_value() == request.y.has_value() &&
                      request.rows.has_value() == request.columns.has_value(),
                  "ssimfast: x and y, rows and columns come in pairs");
  for (const double weight : request.pixel_weights)
    STD_TORCH_CHECK(weight == 0 || request.x.has_value(), "ssimfast: pixel_weights need x and y");
  STD_TORCH_CHECK(request.pixel_weights.back() == 0 || request.rows.has_value(),
                  "ssimfast: the blurred L1 needs both rows and columns");
  check_numbers(request.rows, finest, finest.size(2), "rows");
  check_numbers(request.columns, finest, finest.size(3), "columns");
  for (const bool is_y : {false, true}) {
    const MaybeTensor& image = is_y ? request.y : request.x;
    if (!image) continue;
    check_device(*image, finest);
    const bool has_dtype =
        is_y ? is_dtype_beside(finest, *image) : image->scalar_type() == finest.scalar_type();
    STD_TORCH_CHECK(has_shape(*image, shape_of(finest)) && has_dtype,
                    "ssimfast: x and y do not fit the gradient");
  }
  for (size_t level = 1; level < grads.size(); ++level) {
    check_device(grads[level], finest);
    STD_TORCH_CHECK(grads[level].scalar_type() == arithmetic_dtype(finest),
                    "ssimfast: the gradients of coarser levels do not fit the finest");
    STD_TORCH_CHECK(has_shape(grads[level], pooled_shape(grads[level - 1], request.pooling)),
                    "ssimfast: level ", level, " has the wrong size");
  }
}

// ---- requests -----------------------------------------------------------------------------------

SweepRequest LevelsRequest::sweep_of(int level) const {
  const Term mean = mean_of_level(level, levels());
  SweepRequest sweep{};
  sweep.loss.weights.assign(kTerms, 0);
  sweep.loss.weights[mean] = 1;
  sweep.loss.kept = 2;
  sweep.loss.gradients = level == 0 && twice() ? 0 : loss.gradients;
  sweep.wanted = int64_t(1) << mean;
  sweep.count = 1;
  sweep.grad_scale = 1;
  sweep.pooling = level + 1 < levels() ? pooling : int64_t(Pooling::kNone);
  if (level > 0) return sweep;
  sweep.loss.rows = loss.rows;
  sweep.loss.columns = loss.columns;
  for (int t = 0; t < kTerms; ++t)
    if (t != kContrastStructure && loss.weights[t] != 0) sweep.wanted |= int64_t(1) << t;
  return sweep;
}

SweepRequest LevelsRequest::second_sweep(const Tensor& plane_weights) const {
  SweepRequest sweep{};
  sweep.loss.weights.assign(kTerms, 0);
  sweep.loss.gradients = loss.gradients;
  sweep.count = 1;
  sweep.grad_scale = 1;
  sweep.plane_weights = plane_weights;
  return sweep;
}

// ---- tensors ------------------------------------------------------------------------------------

ScalarType arithmetic_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Byte:
      return Dtype::kUInt8;
    default:
      return Dtype::kFloat32;  // check_pair admits no other
  }
}

ElementRange range_of_y(const Tensor& x, const Tensor& y, double low, double scale) {
  if (x.scalar_type() == y.scalar_type()) return {};
  return {low, 1 / (255 * scale)};
}

View view_of(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return {const_cast<void*>(tensor.const_data_ptr()),
          tensor.stride(0),
          tensor.stride(1),
          last == 4 ? tensor.stride(2) : 0,
          tensor.stride(last - 1),
          tensor.stride(last),
          dtype_of(tensor)};
}

View written_view_of(const Tensor& tensor) {
  View view = view_of(tensor);
  view.data = tensor.mutable_data_ptr();  // copies memory that a lazy clone shares
  return view;
}

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, dtype);
}

std::vector<int64_t> map_shape(const Tensor& x, const Statistic& statistic) {
  std::vector<int64_t> shape = shape_of(x);
  for (size_t i = 2; i < shape.size(); ++i)
    shape[i] -= 2 * statistic.margin(static_cast<int64_t>(i));
  return shape;
}

std::vector<int64_t> pooled_shape(const Tensor& x, int64_t pooling) {
  return {x.size(0), x.size(1), PooledAxis(Pooling(pooling), x.size(2)).size,
          PooledAxis(Pooling(pooling), x.size(3)).size};
}

std::vector<int64_t> kept_shape(const Tensor& x, int64_t kept) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < kept; ++i) shape.push_back(x.size(i));
  return shape;
}

int64_t positions_of_plane(const Tensor& x, const Statistic& statistic) {
  const std::vector<int64_t> shape = map_shape(x, statistic);
  int64_t count = 1;
  for (size_t i = 2; i < shape.size(); ++i) count *= shape[i];
  return count;
}

// The stable ABI cannot increment a version counter. This calls an in-place op that changes nothing
// else: it transposes a dimension with itself.
void raise_version(const Tensor& tensor) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(tensor), from(int64_t{0}), from(int64_t{0})};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::transpose_", "", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // releases the reference that the op returns
}

// ---- problems -----------------------------------------------------------------------------------

template <class A>
Problem<A> problem_of(const Tensor& x, const Tensor& y, const MaybeTensor& mask,
                      const Statistic& statistic) {
  Problem<A> problem;
  problem.x = view_of(x);
  problem.y = view_of(y);
  if (mask) problem.mask = view_of(*mask);
  problem.planes = x.size(0) * x.size(1);
  problem.channels = x.size(1);
  problem.is_volume = x.dim() == 5;
  if (problem.is_volume) problem.depth = x.size(2);
  problem.height = x.size(x.dim() - 2);
  problem.width = x.size(x.dim() - 1);
  problem.one_window = statistic.sizes.size() == 1;
  for (int64_t i = 2; i < x.dim(); ++i) {
    Window<A>& window = problem.windows[kAxes - x.dim() + i];
    window.size = static_cast<int>(statistic.size(i));
    window.margin = statistic.margin(i);
    const double* const taps = statistic.window.data() + statistic.first(i);
    std::copy_n(taps, window.size, window.taps);
  }
  problem.twice_c1 = A(2 * statistic.c1);
  problem.twice_c2 = A(2 * statistic.c2);
  problem.low = A(statistic.low);
  problem.scale = A(statistic.scale);
  const ElementRange range = range_of_y(x, y, statistic.low, statistic.scale);
  problem.y_low = A(range.low);
  problem.y_step = A(range.step);
  return problem;
}

template <class A>
void set_request(Problem<A>& problem, const SweepRequest& request) {
  const double pixels = double(problem.height) * double(problem.width);
  const double positions = double(problem.height - 2 * problem.windows[kHeight].margin) *
                           double(problem.width - 2 * problem.windows[kWidth].margin);
  for (int t = 0; t < kTerms; ++t) {
    problem.wanted[t] = (request.wanted >> t & 1) != 0;
    problem.weight[t] = A(request.loss.weights[t] * (t >= kL1 ? positions / pixels : 1));
  }
  problem.plane_weights = numbers<A>(request.plane_weights);
  problem.rows = numbers<A>(request.loss.rows);
  problem.columns = numbers<A>(request.loss.columns);
  problem.grad_scale = A(request.grad_scale);
  problem.mask_factors = numbers<double>(request.mask_factors);
  if (problem.mask_factors != nullptr)
    problem.group_planes = problem.planes / (request.mask_factors->numel() / 2);
}

template Problem<float> problem_of(const Tensor&, const Tensor&, const MaybeTensor&,
                                   const Statistic&);
template Problem<double> problem_of(const Tensor&, const Tensor&, const MaybeTensor&,
                                    const Statistic&);
template void set_request(Problem<float>&, const SweepRequest&);
template void set_request(Problem<double>&, const SweepRequest&);

}  // namespace ssimfast
