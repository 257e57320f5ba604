// The CPU kernels behind the ops of ssimfast/schemas.py: tensors in, tiles over threads, tensors
// out.
//
// The cut into tiles depends on the shape alone and each tile's sum has a place of its own, so
// the result has the same bits for every number of threads.
#include "ssim_cpu.h"

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../request.h"
#include "dispatch.h"
#include "tensors.h"

namespace ssimfast::cpu {
namespace {

// Rows of this width keep a tile's rings within a level-2 cache of 512 KiB: 400 KB for a gradient
// in float32 with window 11. Where planes are cut, tests/comparison.py has to know.
constexpr int64_t kTileColumns = 480;
// Enough tiles for the threads of a workstation, but none so low that its halo dominates.
constexpr int64_t kWantedTiles = 48;
constexpr int64_t kLeastTileRows = 64;

template <class T>
Job<Arithmetic<T>> make_job(const Tensor& x, const Tensor& y, const Settings& settings) {
  using A = Arithmetic<T>;
  Job<A> job{};
  job.x = source<T>(x);
  job.y = source<T>(y);
  job.channels = x.size(1);
  job.height = x.size(2);
  job.width = x.size(3);
  job.window = static_cast<int>(settings.window.size());
  job.margin = settings.margin();
  for (int i = 0; i < job.window; ++i) job.taps[i] = A(settings.window[i]);
  job.twice_c1 = A(2 * settings.c1);
  job.twice_c2 = A(2 * settings.c2);
  job.low = A(settings.low);
  job.scale = A(settings.scale);
  job.grad_scale = A(1);
  return job;
}

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

// Runs every tile; their sums, tile by tile, plane by plane.
template <class A>
std::vector<Sums> run_tiles(const Job<A>& job, const Cut& cut, Pass pass, bool both) {
  std::vector<Sums> sums(cut.count());
  const RunTile<A> run = select_kernel<A>(pass, both, job);
  const int64_t pitch = Workspace<A>::pitch(cut.width(), job.window);
  const int64_t size = Workspace<A>::size(cut.width(), job.window);
  torch::stable::parallel_for(0, cut.count(), 1, [&](int64_t begin, int64_t end) {
    A* const scratch = workspace<A>(size);
    for (int64_t i = begin; i < end; ++i)
      sums[i] = run(job, cut.tile(i, job.channels), pitch, scratch);
  });
  return sums;
}

// Every map of the pass: one of SSIM, or two of its components.
std::vector<Tensor> maps(const Tensor& x, const Tensor& y, const Settings& settings,
                         bool components) {
  check(x, y, settings);
  std::vector<Tensor> out;
  for (int i = 0; i <= int(components); ++i)
    out.push_back(new_tensor(x, map_shape(x, settings), arithmetic_dtype(x)));
  if (x.numel() == 0) return out;
  dispatch_images(x, [&](auto zero) {
    using T = decltype(zero);
    Job<Arithmetic<T>> job = make_job<T>(x, y, settings);
    job.components = components;
    for (int i = 0; i <= int(components); ++i) job.map[i] = sink<Arithmetic<T>>(out[i]);
    const Cut cut(x.size(0) * x.size(1), job.height, job.width, job.margin);
    run_tiles(job, cut, Pass::kMap, false);
  });
  return out;
}

std::vector<Tensor> map_gradients(const std::vector<Tensor>& upstream, const Tensor& x,
                                  const Tensor& y, const Settings& settings, int64_t gradients) {
  check(x, y, settings);
  check_upstream_maps(upstream, x, settings, gradients);
  const std::vector<Tensor> grads = new_gradients(x, y, gradients);
  if (x.numel() == 0) return grads;
  dispatch_floating(x, [&](auto zero) {
    using T = decltype(zero);
    Job<Arithmetic<T>> job = make_job<T>(x, y, settings);
    job.components = upstream.size() > 1;
    for (size_t i = 0; i < upstream.size(); ++i)
      job.upstream[i] = source<Arithmetic<T>>(upstream[i]);
    job.grad_scale = job.scale;
    job.grad_x = sink<T>(grads[0]);
    if (gradients > 1) job.grad_y = sink<T>(grads[1]);
    const Cut cut(x.size(0) * x.size(1), job.height, job.width, 0);
    run_tiles(job, cut, Pass::kMapGradient, gradients > 1);
  });
  return grads;
}

// The terms of each group of planes, and their weighted sum. All are divided by `count`; those over
// pixels are first brought to the number of positions, so that with count = positions all are
// means.
template <class A>
void reduce(const std::vector<Sums>& sums, const Request& request, double positions_per_pixel,
            int64_t groups, double* terms, A* values) {
  const int64_t each = static_cast<int64_t>(sums.size()) / groups;
  for (int64_t g = 0; g < groups; ++g) {
    double value = 0;
    for (int t = 0; t < kTerms; ++t) {
      double total = 0;
      for (int64_t i = 0; i < each; ++i) total += sums[g * each + i].term[t];
      if (t >= kL1) total *= positions_per_pixel;
      terms[g * kTerms + t] = total / double(request.count);
      if (request.weights[t] != 0) value += request.weights[t] * terms[g * kTerms + t];
    }
    values[g] = A(value + request.constant);
  }
}

}  // namespace

Similarity new_results(const Tensor& x, const Tensor& y, const Request& request) {
  std::vector<int64_t> shape = kept_shape(x, request.kept);
  const Tensor value = new_tensor(x, shape, arithmetic_dtype(x));
  shape.push_back(kTerms);
  return {
      value, new_tensor(x, shape, ScalarType::Double), new_gradients(x, y, request.gradients), {}};
}

void sweep(const Tensor& x, const Tensor& y, const Settings& settings, const Request& request,
           const Similarity& results) {
  const auto& [value, terms, grads, pooled] = results;
  dispatch_images(x, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    Job<A> job = make_job<T>(x, y, settings);
    const int64_t planes = x.size(0) * x.size(1);
    const double per_pixel = positions_per_pixel(x, settings), bound = request.bound();
    job.grad_scale = A(request.grad_scale(settings));
    job.plane_weight = optional_numbers<A>(request.plane_weights, x, 2 * planes, "plane_weights");
    job.rows = optional_numbers<A>(request.rows, x, x.size(2), "rows");
    job.columns = optional_numbers<A>(request.columns, x, x.size(3), "columns");
    for (int t = 0; t < kTerms; ++t) {
      job.weight[t] = A(request.weights[t] / bound * (t >= kL1 ? per_pixel : 1));
      job.wanted[t] = request.wants(t);
    }
    job.pooling = Pooling(request.pooling);
    job.pooled_rows = PooledAxis(job.pooling, job.height);
    job.pooled_columns = PooledAxis(job.pooling, job.width);
    if (!pooled.empty()) {
      job.pooled_x = static_cast<A*>(pooled[0].mutable_data_ptr());
      job.pooled_y = static_cast<A*>(pooled[1].mutable_data_ptr());
    }
    if (grads.size() > 0) job.grad_x = sink<T>(grads[0]);
    if (grads.size() > 1) job.grad_y = sink<T>(grads[1]);
    // Gradients, pixel terms and pooling concern every pixel, a value only the windows' centres.
    const bool every_pixel = !grads.empty() || !pooled.empty() || job.wanted[kL1] ||
                             job.wanted[kL2] || job.wanted[kBlurredL1];
    const Cut cut(planes, job.height, job.width, every_pixel ? 0 : job.margin);
    const auto sums =
        run_tiles(job, cut, grads.empty() ? Pass::kValue : Pass::kGradient, grads.size() > 1);
    reduce(sums, request, per_pixel, value.numel(), static_cast<double*>(terms.mutable_data_ptr()),
           static_cast<A*>(value.mutable_data_ptr()));
  });
}

namespace {

Similarity similarity(const Tensor& x, const Tensor& y, const Settings& settings,
                      const Request& request) {
  check(x, y, settings);
  check(request, x);
  Similarity results = new_results(x, y, request);
  auto& [value, terms, grads, pooled] = results;
  for (int i = 0; i < (Pooling(request.pooling) == Pooling::kNone ? 0 : 2); ++i)
    pooled.push_back(new_tensor(x, pooled_shape(x, request.pooling), arithmetic_dtype(x)));
  if (x.numel() > 0) {
    sweep(x, y, settings, request, results);
  } else {
    torch::stable::fill_(value, request.constant);
    torch::stable::fill_(terms, 0);
  }
  return results;
}

}  // namespace

struct Cpu {
  static constexpr auto maps = cpu::maps;
  static constexpr auto map_gradients = cpu::map_gradients;
  static constexpr auto similarity = cpu::similarity;
  static constexpr auto sweep_scales = cpu::sweep_scales;
};

}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, m) { SSIMFAST_REGISTER_OPS(m, ssimfast::cpu::Cpu); }
