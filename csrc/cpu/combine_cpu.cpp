// MS-SSIM of the means of all scales, and what the value changes by with the sums of each: see
// `combine_scales` in ssimfast/schemas.py. A few numbers a plane, of which two dozen operations of
// torch would take a tenth of the time of a small image.
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../tensor.h"
#include "../terms.h"

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
  double product = 1;
  for (size_t j = 0; j < scales.size(); ++j) {
    double mean = 0;
    for (int64_t p = first; p < first + planes; ++p)
      mean += scales[j].terms[p * kTerms + scales[j].mean];
    mean /= double(planes);
    product *= std::pow(base_of_power(mean, absolute), scales[j].exponent);
    slopes[j] = mean;  // till the product is known
  }
  for (size_t j = 0; j < scales.size(); ++j)
    slopes[j] = slope_of_power(scales[j].exponent, product, slopes[j], absolute);
  return product;
}

Combined combine_scales(std::vector<Tensor> terms, std::vector<double> scale_weights, bool absolute,
                        bool joint, std::vector<double> weights, int64_t kept,
                        std::vector<int64_t> positions) {
  const size_t count = terms.size();
  STD_TORCH_CHECK(1 <= count && count <= kMostScales && scale_weights.size() == count &&
                      positions.size() == count,
                  "ssimfast: terms, scale_weights and positions must be of 1 to ", kMostScales,
                  " scales, got ", count, ", ", scale_weights.size(), " and ", positions.size());
  check_weights(weights);
  check_kept(kept);
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
  std::vector<int64_t> shape{batch, channels};
  shape.resize(kept);
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
  }
  return {value, out, slopes};
}

}  // namespace
}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, m) {
  m.impl("combine_scales", TORCH_BOX(&ssimfast::cpu::combine_scales));
}
