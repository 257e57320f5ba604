// MS-SSIM: the sweeps of all scales, and what combines the means of all scales into values and
// slopes: `sweep_scales` and `combine_scales` of ssimfast/schemas.py.
//
// The images of a scale are needed until the next one's are pooled and its own gradients are made,
// those of the finest scale until the end. So the finest scale is swept last, into memory in which
// the images of the other scales lay: a step needs the gradients of all scales, 4/3 of an image,
// and nothing else. (Half types are pooled to float, of which a part has memory of its own.)
// Pooling alone takes a small part of the time of a sweep. If the finest gradient waits for
// backward, the images lie in memory that is freed for it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../request.h"
#include "ssim_cpu.h"
#include "tensors.h"

namespace ssimfast::cpu {
namespace {

using Combined = std::tuple<Tensor, Tensor, Tensor>;

struct Scale {
  const double* terms;  // (N * C, kTerms)
  Term mean;            // which of them counts
  double exponent, positions;
};

// Of one group of planes, whose means are averaged: the product of the powers, and its slopes.
double product_of_powers(const std::vector<Scale>& scales, int64_t first, int64_t planes,
                         bool absolute, double* slopes) {
  double powers[kMostScales], product = 1;
  for (size_t j = 0; j < scales.size(); ++j) {
    double mean = 0;
    for (int64_t p = first; p < first + planes; ++p)
      mean += scales[j].terms[p * kTerms + scales[j].mean];
    mean /= double(planes);
    powers[j] = std::pow(base_of_power(mean, absolute), scales[j].exponent);
    product *= powers[j];
    slopes[j] = slope_of_power(scales[j].exponent, powers[j], mean, absolute);
  }
  for (size_t j = 0; j < scales.size(); ++j)
    for (size_t other = 0; other < scales.size(); ++other)
      if (other != j) slopes[j] *= powers[other];
  return product;
}

Combined combine_scales(std::vector<Tensor> terms, std::vector<double> scale_weights, bool absolute,
                        bool joint, std::vector<double> weights, double constant, int64_t kept,
                        std::vector<int64_t> positions) {
  const size_t count = terms.size();
  STD_TORCH_CHECK(1 <= count && count <= kMostScales && scale_weights.size() == count &&
                      positions.size() == count,
                  "ssimfast: terms, scale_weights and positions must be of 1 to ", kMostScales,
                  " scales, got ", count, ", ", scale_weights.size(), " and ", positions.size());
  check_weights(weights);
  check_kept(kept);
  for (const int64_t number : positions)
    STD_TORCH_CHECK(number > 0, "ssimfast: positions must be positive, got ", number);
  for (const Tensor& of_scale : terms) {
    check_device(of_scale, terms[0]);
    STD_TORCH_CHECK(of_scale.dim() == 3 && of_scale.size(0) == terms[0].size(0) &&
                        of_scale.size(1) == terms[0].size(1) && of_scale.size(2) == kTerms &&
                        of_scale.is_contiguous() && of_scale.scalar_type() == ScalarType::Double,
                    "ssimfast: terms must be float64, contiguous, (N, C, ", int(kTerms), ")");
  }
  const int64_t batch = terms[0].size(0), channels = terms[0].size(1), planes = batch * channels;
  std::vector<Scale> scales;
  for (size_t j = 0; j < count; ++j)
    scales.push_back({static_cast<const double*>(terms[j].const_data_ptr()),
                      j + 1 == count ? kSsim : kContrastStructure, scale_weights[j],
                      double(positions[j])});
  std::vector<int64_t> shape = kept_shape(terms[0], kept);
  const Tensor value = new_tensor(terms[0], shape, ScalarType::Double);
  shape.push_back(kTerms);
  const Tensor out = new_tensor(terms[0], shape, ScalarType::Double);
  const Tensor slopes = new_tensor(terms[0], {batch, channels, int64_t(count)}, ScalarType::Double);
  const int64_t groups = value.numel();

  // Plane by plane first: MS-SSIM and its slopes.
  std::vector<double> ms_ssim(planes);
  auto* const by_plane = static_cast<double*>(slopes.mutable_data_ptr());
  const int64_t together = joint ? channels : 1;
  std::vector<double> of_group(count);
  for (int64_t first = 0; first < planes; first += together) {
    const double product = product_of_powers(scales, first, together, absolute, of_group.data());
    for (int64_t p = first; p < first + together; ++p) {
      ms_ssim[p] = product;
      for (size_t j = 0; j < count; ++j)
        by_plane[p * count + j] =
            of_group[j] * (weights[kContrastStructure] * groups / planes) / scales[j].positions;
    }
  }
  // Then means over the planes of each value.
  auto* const means = static_cast<double*>(out.mutable_data_ptr());
  auto* const values = static_cast<double*>(value.mutable_data_ptr());
  for (int64_t g = 0; g < groups; ++g) {
    values[g] = 0;
    for (int t = 0; t < kTerms; ++t) {
      double total = 0;
      for (int64_t p = g * planes / groups; p < (g + 1) * planes / groups; ++p)
        total += t == kContrastStructure ? ms_ssim[p] : scales[0].terms[p * kTerms + t];
      means[g * kTerms + t] = total / (double(planes) / double(groups));
      if (weights[t] != 0) values[g] += weights[t] * means[g * kTerms + t];
    }
    values[g] += constant;
  }
  return {value, out, slopes};
}

// Memory of tensors that wait to be written.
class Space {
 public:
  Space() = default;
  explicit Space(std::vector<Tensor> tensors) : tensors(std::move(tensors)) {
    for (const Tensor& tensor : this->tensors)
      parts.push_back({static_cast<char*>(tensor.mutable_data_ptr()),
                       tensor.numel() * int64_t(tensor.element_size())});
  }

  // Tensors for the images of the next scale, there if they fit, else with memory of their own.
  std::vector<Tensor> new_pooled(const Tensor& x, int64_t pooling) {
    const std::vector<int64_t> shape = pooled_shape(x, pooling);
    return {new_image(x, shape), new_image(x, shape)};
  }

 private:
  struct Part {
    char* data;
    int64_t size;
  };
  std::vector<Tensor> tensors;
  std::vector<Part> parts;

  Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape) {
    constexpr int64_t kLine = 64;
    const ScalarType dtype = arithmetic_dtype(like);
    const std::vector<int64_t> strides{shape[1] * shape[2] * shape[3], shape[2] * shape[3],
                                       shape[3], 1};
    const int64_t bytes = shape[0] * strides[0] * (dtype == ScalarType::Double ? 8 : 4);
    for (Part& part : parts) {
      if (part.size < bytes) continue;
      void* const data = part.data;
      const int64_t taken = std::min(divide_up(bytes, kLine) * kLine, part.size);
      part = {part.data + taken, part.size - taken};
      return torch::stable::from_blob(data, {shape.data(), shape.size()},
                                      {strides.data(), strides.size()}, like.device(), dtype);
    }
    return new_tensor(like, shape, dtype);
  }
};

// Makes the images of the next scale and nothing else.
void pool(const Tensor& x, const Tensor& y, const Settings& settings, int64_t pooling,
          const std::vector<Tensor>& pooled) {
  Request request;
  request.pooling = pooling;
  Similarity results = new_results(x, y, request);
  std::get<3>(results) = pooled;
  sweep(x, y, settings, request, results);
}

// The plane weights of a finest scale that waits for backward, in `weights`; its slopes change.
template <class A>
void set_finest_weights(const ScalesRequest& request, double positions, int64_t planes,
                        double* slopes, A* weights) {
  for (int64_t p = 0; p < planes; ++p) {
    double& slope = slopes[p * request.scales()];
    const FinestWeights finest =
        finest_weights_of(request.mean_of(0), slope, request.weights[kSsim], positions);
    weights[2 * p + kSsim] = A(finest.ssim);
    weights[2 * p + kContrastStructure] = A(finest.contrast_structure);
    slope = finest.slope;
  }
}

}  // namespace

SweptScales sweep_scales(Tensor x, Tensor y, Settings settings, const ScalesRequest& request) {
  check(request, x);
  const int scales = request.scales();
  const Tensor finest_x = x, finest_y = y;
  const Settings finest_settings = settings;
  const bool finest_last = scales > 1 && request.gradients > 0 && !request.late;
  Similarity finest;
  Space space;
  std::vector<Tensor> terms, grads;
  std::vector<int64_t> positions;
  for (int j = 0; j < scales; ++j) {
    Request asked = request.sweep_of(j);
    check_scale(x, y, settings, asked, j);
    const std::vector<int64_t> map = map_shape(x, settings);
    positions.push_back(map[2] * map[3]);
    asked.count = positions[j];  // makes means of sums
    Similarity results = new_results(x, y, asked);
    terms.push_back(std::get<1>(results));
    const auto& by_images = std::get<2>(results);
    auto& pooled = std::get<3>(results);
    grads.insert(grads.end(), by_images.begin(), by_images.end());
    if (j == 0) finest = results;
    // If gradients wait for backward, memory that malloc may give out again for one of them.
    if (j == 0 && scales > 1)
      space = Space(request.late ? new_gradients(x, y, std::min<int64_t>(request.gradients, 1))
                                 : by_images);
    if (j + 1 < scales) pooled = space.new_pooled(x, request.pooling);
    if (j == 0 && finest_last)
      pool(x, y, settings, request.pooling, pooled);
    else
      sweep(x, y, settings, asked, results);
    if (pooled.empty()) break;
    x = pooled[0];
    y = pooled[1];
    settings.low = 0;
    settings.scale = 1;
  }
  if (finest_last) {
    Request asked = request.sweep_of(0);
    asked.count = positions[0];
    asked.pooling = int64_t(Pooling::kNone);
    sweep(finest_x, finest_y, finest_settings, asked, finest);
  }

  const auto [exact, means, slopes] =
      combine_scales(std::move(terms), request.scale_weights, request.absolute, request.joint,
                     request.weights, request.constant, request.kept, positions);
  const ScalarType dtype = arithmetic_dtype(finest_x);
  const Tensor value = new_tensor(finest_x, kept_shape(finest_x, request.kept), dtype);
  const Tensor weights = new_tensor(finest_x, request.finest_weights_shape(finest_x), dtype);
  const auto* const values = static_cast<const double*>(exact.const_data_ptr());
  auto* const by_plane = static_cast<double*>(slopes.mutable_data_ptr());
  const int64_t groups = value.numel(), planes = finest_x.size(0) * finest_x.size(1);
  const double of_value = double(positions[0] * (planes / groups));
  dispatch_images(finest_x, [&](auto zero) {
    using A = Arithmetic<decltype(zero)>;
    std::copy(values, values + groups, static_cast<A*>(value.mutable_data_ptr()));
    if (request.late)
      set_finest_weights(request, of_value, planes, by_plane,
                         static_cast<A*>(weights.mutable_data_ptr()));
  });
  return {value, means, slopes, weights, grads};
}

}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, m) {
  m.impl("combine_scales", TORCH_BOX(&ssimfast::cpu::combine_scales));
}
