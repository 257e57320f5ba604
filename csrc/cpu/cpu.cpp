// Runs tiles on threads and turns their sums into values.
//
// The tiles depend on the shape alone and each has its own record, so the result has the same bits
// for every number of threads.
#include "cpu/cpu.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace ssimfast::cpu {
namespace {

// kWantedTiles: enough tiles for the threads of a workstation. kLeastTileRows: in a lower tile the
// halo would dominate; tests/comparison.py repeats this number and kTileColumns.
constexpr int64_t kWantedTiles = 48;
constexpr int64_t kLeastTileRows = 64;

// How planes are cut into tiles.
struct Cut {
  int64_t planes, strips, columns;  // tiles of a plane: strips x columns
  int64_t row_begin, row_end, column_begin, column_end;

  Cut(int64_t planes, int64_t height, int64_t width, int64_t margin)
      : planes(planes),
        row_begin(margin),
        row_end(height - margin),
        column_begin(margin),
        column_end(width - margin) {
    const int64_t rows = row_end - row_begin;
    columns = divide_up(column_end - column_begin, kTileColumns);
    const int64_t wanted = divide_up(kWantedTiles, planes * columns);
    strips = std::max<int64_t>(1, std::min(wanted, rows / kLeastTileRows));
  }

  int64_t count() const { return planes * strips * columns; }
  int64_t width() const { return divide_up(column_end - column_begin, columns); }

  Tile tile(int64_t index, int64_t channels) const {
    const int64_t column = index % columns;
    const int64_t strip = index / columns % strips;
    const int64_t plane = index / columns / strips;
    const auto [r0, r1] = part(row_begin, row_end, strips, strip);
    const auto [c0, c1] = part(column_begin, column_end, columns, column);
    return {plane / channels, plane % channels, r0, r1, c0, c1};
  }
};

// True if the tiles must cover all pixels, as gradients, pixel terms and pooling need. Values and
// maps need only the window centres.
template <class A>
bool concerns_every_pixel(const Problem<A>& problem) {
  return problem.gradients > 0 || problem.pooling != Pooling::kNone || problem.wants_pixel_terms();
}

// Sum of a term over the planes [begin, end), as in TileSums. The records are ordered by plane.
double sum_of(const CpuDevice::Records& records, int64_t planes, int64_t begin, int64_t end,
              int term) {
  const int64_t each = static_cast<int64_t>(records.size()) / planes;
  double total = 0;
  for (int64_t i = begin * each; i < end * each; ++i) total += records[i].term[term];
  return total;
}

// Writes the terms and the value of a group of planes.
template <class A>
void set_value(const Reduction<A>& reduction, int64_t group, const double* means) {
  double value = 0;
  for (int t = 0; t < kTerms; ++t) {
    reduction.terms[group * kTerms + t] = means[t];
    if (reduction.weights[t] != 0) value += reduction.weights[t] * means[t];
  }
  reduction.value[group] = A(value + reduction.constant);
}

// Reduces the sums of one sweep: each term is its sum divided by the count.
template <class A>
void reduce_sweep(const CpuDevice::Records& records, const Reduction<A>& reduction) {
  const int64_t planes = reduction.planes, each = planes / reduction.groups;
  const double positions = reduction.positions[0] * double(each);
  for (int64_t group = 0; group < reduction.groups; ++group) {
    double terms[kTerms] = {};
    for (int t = 0; t < kTerms; ++t) {
      if ((reduction.wanted >> t & 1) == 0) continue;
      const double sum = mask_factor(reduction.mask_factors, group, t) *
                         sum_of(records, planes, group * each, (group + 1) * each, t);
      terms[t] = t < kL1 ? positions - 2 * sum : sum * reduction.positions_per_pixel;
      terms[t] /= reduction.count;
    }
    set_value(reduction, group, terms);
  }
}

// Computes MS-SSIM and its slopes for the planes [first, first + count), whose means are averaged,
// and the terms of each plane.
template <class A>
void combine_planes(const std::vector<CpuDevice::Records>& records, const Reduction<A>& reduction,
                    int64_t first, int64_t count, double* plane_terms) {
  const int levels = reduction.levels;
  const double planes_of_value = double(reduction.planes / reduction.groups);
  double values[kMaxLevels], slopes[kMaxLevels];
  for (int level = 0; level < levels; ++level) {
    const double sum =
        sum_of(records[level], reduction.planes, first, first + count, reduction.mean_of(level));
    const double mean = 1 - 2 * sum / (reduction.positions[level] * double(count));
    const LevelPower power = level_power(mean, reduction.exponents[level], reduction.absolute);
    values[level] = power.value;
    slopes[level] = power.slope;
  }
  const double weight = reduction.weights[kContrastStructure] / planes_of_value;
  for (int64_t plane = first; plane < first + count; ++plane) {
    double* const terms = plane_terms + plane * kTerms;
    for (int t = 0; t < kTerms; ++t) {
      terms[t] = 0;
      if ((reduction.wanted >> t & 1) == 0) continue;
      const double mean =
          sum_of(records[0], reduction.planes, plane, plane + 1, t) / reduction.positions[0];
      terms[t] = t < kL1 ? 1 - 2 * mean : mean * reduction.positions_per_pixel;
    }
    terms[kContrastStructure] = product_except(values, levels, -1);
    for (int level = 0; level < levels; ++level)
      reduction.slopes[plane * levels + level] = slopes[level] *
                                                 product_except(values, levels, level) * weight /
                                                 reduction.positions[level];
    if (reduction.plane_weights == nullptr) continue;
    double& slope = reduction.slopes[plane * levels];
    const FinestWeights finest =
        finest_weights_of(reduction.mean_of(0), slope, reduction.weights[kSsim],
                          reduction.positions[0] * planes_of_value);
    reduction.plane_weights[2 * plane + kSsim] = A(finest.ssim);
    reduction.plane_weights[2 * plane + kContrastStructure] = A(finest.contrast_structure);
    slope = finest.slope;
  }
}

template <class A>
void reduce_levels(const std::vector<CpuDevice::Records>& records, const Reduction<A>& reduction) {
  const int64_t together = reduction.joint ? reduction.channels : 1;
  std::vector<double> plane_terms(reduction.planes * kTerms);
  for (int64_t first = 0; first < reduction.planes; first += together)
    combine_planes(records, reduction, first, together, plane_terms.data());
  const int64_t each = reduction.planes / reduction.groups;
  for (int64_t group = 0; group < reduction.groups; ++group) {
    double means[kTerms] = {};
    for (int64_t plane = group * each; plane < (group + 1) * each; ++plane)
      for (int t = 0; t < kTerms; ++t) means[t] += plane_terms[plane * kTerms + t];
    for (double& mean : means) mean /= double(each);
    set_value(reduction, group, means);
  }
}

template <class A>
CpuDevice::Records sweep_one(const Problem<A>& problem) {
  if constexpr (std::is_same_v<A, double>)
    if (problem.is_volume || !problem.one_window) return sweep_separable(problem);
  const Cut cut(problem.planes, problem.height, problem.width,
                concerns_every_pixel(problem) ? 0 : problem.window().margin);
  const Images<A> images(problem);
  CpuDevice::Records records(cut.count());
  const RunTile<A> run = select_tile(problem);
  const int64_t pitch = Workspace<A>::pitch(cut.width(), problem.window().size);
  const int64_t size = Workspace<A>::size(cut.width(), problem.window().size, problem.has_mask());
  torch::stable::parallel_for(0, cut.count(), 1, [&](int64_t begin, int64_t end) {
    A* const scratch = workspace<A>(size);
    for (int64_t i = begin; i < end; ++i)
      records[i] = run(problem, images, cut.tile(i, problem.channels), pitch, scratch);
  });
  return records;
}

}  // namespace

template <class A>
std::vector<CpuDevice::Records> CpuDevice::sweep(const std::vector<Problem<A>>& problems) {
  std::vector<Records> records(problems.size());
  const Problem<A>& finest = problems[0];
  const bool finest_last = problems.size() > 1 && finest.gradients > 0;  // see Levels
  if (finest_last) {
    Problem<A> pools = finest;
    pools.pass = Pass::kForward;
    pools.gradients = 0;
    std::fill_n(pools.wanted, kTerms, false);
    std::fill_n(pools.weight, kTerms, A(0));
    sweep_one(pools);
  } else {
    records[0] = sweep_one(finest);
  }
  for (size_t level = 1; level < problems.size(); ++level)
    records[level] = sweep_one(problems[level]);
  if (finest_last) {
    Problem<A> rest = finest;
    rest.pooling = Pooling::kNone;
    records[0] = sweep_one(rest);
  }
  return records;
}

template <class A>
void CpuDevice::reduce(const std::vector<Records>& records, const Reduction<A>& reduction) {
  if (reduction.slopes == nullptr) return reduce_sweep(records[0], reduction);
  reduce_levels(records, reduction);
}

template std::vector<CpuDevice::Records> CpuDevice::sweep(const std::vector<Problem<float>>&);
template std::vector<CpuDevice::Records> CpuDevice::sweep(const std::vector<Problem<double>>&);
template void CpuDevice::reduce(const std::vector<Records>&, const Reduction<float>&);
template void CpuDevice::reduce(const std::vector<Records>&, const Reduction<double>&);

std::vector<Tensor> CpuDevice::Levels::new_images(const Tensor& x,
                                                  const std::vector<Tensor>& by_images,
                                                  int64_t pooling, int level, bool twice) {
  if (level == 0) {
    tensors = by_images;
    // The second sweep allocates the finest gradients after the levels are freed. This placeholder
    // has the size of a gradient, so malloc can reuse its memory for one of them.
    if (twice) tensors = {torch::stable::empty_like(x)};
    for (const Tensor& tensor : tensors)
      parts.push_back({static_cast<char*>(tensor.mutable_data_ptr()),
                       tensor.numel() * int64_t(tensor.element_size())});
  }
  const std::vector<int64_t> shape = pooled_shape(x, pooling);
  return {new_image(x, shape), new_image(x, shape)};
}

Tensor CpuDevice::Levels::new_image(const Tensor& like, const std::vector<int64_t>& shape) {
  constexpr int64_t kLine = 64;
  const ScalarType dtype = arithmetic_dtype(like);
  const std::vector<int64_t> strides{shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3],
                                     1};
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

}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, library) {
  SSIMFAST_REGISTER(library, ssimfast::cpu::CpuDevice);
}
