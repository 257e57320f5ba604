// The CPU kernels behind the ops of ssimfast/ops.py: tensors in, tiles over threads, tensors out.
//
// The cut into tiles depends on the shape alone and each tile's sum has a place of its own, so
// the result has the same bits for every number of threads.
#include <cstdint>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "../tensor.h"
#include "dispatch.h"

namespace ssimfast::cpu {
namespace {

// Rows of this width keep a tile's rings within a level-2 cache of 512 KiB.
constexpr int64_t kTileColumns = 640;
// Enough tiles for the threads of a workstation, but none so low that its halo dominates.
constexpr int64_t kWantedTiles = 48;
constexpr int64_t kLeastTileRows = 64;

template <class T>
void read_row(const void* from, int64_t stride, int64_t n, Arithmetic<T>* to) {
  const T* source = static_cast<const T*>(from);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Arithmetic<T>>(source[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Arithmetic<T>>(source[i * stride]);
  }
}

template <class T>
void write_row(const Arithmetic<T>* from, int64_t n, void* to, int64_t stride) {
  T* target = static_cast<T*>(to);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) target[i * stride] = static_cast<T>(from[i]);
  }
}

template <class T>
Strides byte_strides(const Tensor& tensor) {
  const int64_t size = sizeof(T);
  return {tensor.stride(0) * size, tensor.stride(1) * size, tensor.stride(2) * size,
          tensor.stride(3) * size};
}

template <class T>
Source<Arithmetic<T>> source(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), byte_strides<T>(tensor), sizeof(T),
          std::is_same_v<T, Arithmetic<T>>, read_row<T>};
}

template <class T>
Sink<Arithmetic<T>> sink(const Tensor& tensor) {
  return {static_cast<char*>(tensor.mutable_data_ptr()), byte_strides<T>(tensor), sizeof(T),
          write_row<T>};
}

// What every op is told about the statistic: see ssimfast/ops.py for the meaning of each.
struct Settings {
  std::vector<double> window;
  double c1, c2, low, scale;
  bool same;
};

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
  job.margin = settings.same ? 0 : job.window / 2;
  for (int i = 0; i < job.window; ++i) job.taps[i] = A(settings.window[i]);
  job.c1 = A(settings.c1);
  job.c2 = A(settings.c2);
  job.low = A(settings.low);
  job.scale = A(settings.scale);
  job.grad_scale = A(1);
  return job;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An even cut of [begin, end) into `count` parts.
std::pair<int64_t, int64_t> part(int64_t begin, int64_t end, int64_t count, int64_t index) {
  const int64_t size = end - begin;
  return {begin + size * index / count, begin + size * (index + 1) / count};
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

// Scratch memory of one thread, kept between calls.
template <class A>
A* workspace(int64_t size) {
  constexpr std::align_val_t alignment{64};
  struct Buffer {
    A* data = nullptr;
    int64_t size = 0;
    ~Buffer() { ::operator delete(data, alignment); }
  };
  thread_local Buffer buffer;
  if (buffer.size < size) {
    ::operator delete(buffer.data, alignment);
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = static_cast<A*>(::operator new(size * sizeof(A), alignment));
    buffer.size = size;
    // Vectors run past the ends of rows; what they read there must at least be numbers.
    std::fill(buffer.data, buffer.data + size, A(0));
  }
  return buffer.data;
}

// Runs every tile; the sums of SSIM, tile by tile, plane by plane.
template <class A>
std::vector<double> run_tiles(const Job<A>& job, const Cut& cut, Pass pass, bool both) {
  std::vector<double> sums(cut.count());
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

// Sum over everything, or over each image, divided by `count`.
template <class A>
void reduce(const std::vector<double>& sums, int64_t images, bool per_image, int64_t count,
            A* out) {
  const int64_t groups = per_image ? images : 1;
  const int64_t each = static_cast<int64_t>(sums.size()) / groups;
  for (int64_t g = 0; g < groups; ++g) {
    double total = 0;
    for (int64_t i = 0; i < each; ++i) total += sums[g * each + i];
    out[g] = A(total / double(count));
  }
}

void check(const Tensor& x, const Tensor& y, const Settings& settings) {
  check_pair(x, y);
  check_window(x, settings.window, settings.same, kMaxWindow);
}

Tensor new_result(const Tensor& x, bool per_image) {
  if (per_image) return torch::stable::new_empty(x, {x.size(0)}, arithmetic_dtype(x));
  return torch::stable::new_empty(x, {}, arithmetic_dtype(x));
}

// The result of a reduction over x and y; with gradients where the sinks are given.
Tensor reduced(const Tensor& x, const Tensor& y, const Settings& settings, int64_t count,
               bool per_image, const Tensor* grad_x, const Tensor* grad_y) {
  check(x, y, settings);
  Tensor result = new_result(x, per_image);
  if (x.numel() == 0) {
    torch::stable::fill_(result, 0);
    return result;
  }
  dispatch_floating(x, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    Job<A> job = make_job<T>(x, y, settings);
    if (grad_x != nullptr) job.grad_x = sink<T>(*grad_x);
    if (grad_y != nullptr) job.grad_y = sink<T>(*grad_y);
    const int64_t margin = grad_x != nullptr ? 0 : job.margin;
    const Cut cut(x.size(0) * x.size(1), job.height, job.width, margin);
    const auto sums =
        run_tiles(job, cut, grad_x != nullptr ? Pass::kGradient : Pass::kValue, grad_y != nullptr);
    reduce(sums, x.size(0), per_image, count, static_cast<A*>(result.mutable_data_ptr()));
  });
  return result;
}

void map_gradient(const Tensor& upstream, const Tensor& x, const Tensor& y,
                  const Settings& settings, const Tensor& grad_x, const Tensor* grad_y) {
  check(x, y, settings);
  const int64_t margin = settings.same ? 0 : static_cast<int64_t>(settings.window.size()) / 2;
  STD_TORCH_CHECK(upstream.dim() == 4 && upstream.size(0) == x.size(0) &&
                      upstream.size(1) == x.size(1) && upstream.size(2) == x.size(2) - 2 * margin &&
                      upstream.size(3) == x.size(3) - 2 * margin &&
                      upstream.scalar_type() == arithmetic_dtype(x),
                  "ssimfast: the gradient of the map does not fit the map");
  if (x.numel() == 0) return;
  dispatch_floating(x, [&](auto zero) {
    using T = decltype(zero);
    Job<Arithmetic<T>> job = make_job<T>(x, y, settings);
    job.upstream = source<Arithmetic<T>>(upstream);
    job.grad_scale = job.scale;
    job.grad_x = sink<T>(grad_x);
    if (grad_y != nullptr) job.grad_y = sink<T>(*grad_y);
    const Cut cut(x.size(0) * x.size(1), job.height, job.width, 0);
    run_tiles(job, cut, Pass::kMapGradient, grad_y != nullptr);
  });
}

// ---- ops ------------------------------------------------------------------------------------

Tensor ssim_map(const Tensor& x, const Tensor& y, std::vector<double> window, double c1, double c2,
                double low, double scale, bool same) {
  const Settings settings{std::move(window), c1, c2, low, scale, same};
  check(x, y, settings);
  const int64_t lost = same ? 0 : static_cast<int64_t>(settings.window.size()) - 1;
  const Tensor map = torch::stable::new_empty(
      x, {x.size(0), x.size(1), x.size(2) - lost, x.size(3) - lost}, arithmetic_dtype(x));
  if (x.numel() == 0) return map;
  dispatch_floating(x, [&](auto zero) {
    using T = decltype(zero);
    Job<Arithmetic<T>> job = make_job<T>(x, y, settings);
    job.map = sink<Arithmetic<T>>(map);
    const Cut cut(x.size(0) * x.size(1), job.height, job.width, job.margin);
    run_tiles(job, cut, Pass::kMap, false);
  });
  return map;
}

Tensor ssim_map_grad(const Tensor& upstream, const Tensor& x, const Tensor& y,
                     std::vector<double> window, double c1, double c2, double low, double scale,
                     bool same) {
  const Tensor grad_x = torch::stable::empty_like(x);
  map_gradient(upstream, x, y, {std::move(window), c1, c2, low, scale, same}, grad_x, nullptr);
  return grad_x;
}

std::tuple<Tensor, Tensor> ssim_map_grad_both(const Tensor& upstream, const Tensor& x,
                                              const Tensor& y, std::vector<double> window,
                                              double c1, double c2, double low, double scale,
                                              bool same) {
  const Tensor grad_x = torch::stable::empty_like(x), grad_y = torch::stable::empty_like(y);
  map_gradient(upstream, x, y, {std::move(window), c1, c2, low, scale, same}, grad_x, &grad_y);
  return {grad_x, grad_y};
}

Tensor ssim_reduced(const Tensor& x, const Tensor& y, std::vector<double> window, double c1,
                    double c2, double low, double scale, bool same, int64_t count, bool per_image) {
  return reduced(x, y, {std::move(window), c1, c2, low, scale, same}, count, per_image, nullptr,
                 nullptr);
}

std::tuple<Tensor, Tensor> ssim_reduced_grad(const Tensor& x, const Tensor& y,
                                             std::vector<double> window, double c1, double c2,
                                             double low, double scale, bool same, int64_t count,
                                             bool per_image) {
  const Tensor grad_x = torch::stable::empty_like(x);
  return {reduced(x, y, {std::move(window), c1, c2, low, scale, same}, count, per_image, &grad_x,
                  nullptr),
          grad_x};
}

std::tuple<Tensor, Tensor, Tensor> ssim_reduced_grad_both(const Tensor& x, const Tensor& y,
                                                          std::vector<double> window, double c1,
                                                          double c2, double low, double scale,
                                                          bool same, int64_t count,
                                                          bool per_image) {
  const Tensor grad_x = torch::stable::empty_like(x), grad_y = torch::stable::empty_like(y);
  return {reduced(x, y, {std::move(window), c1, c2, low, scale, same}, count, per_image, &grad_x,
                  &grad_y),
          grad_x, grad_y};
}

// grad * upstream * scale / count, upstream one number or one an image.
Tensor scale_grad(const Tensor& grad, const Tensor& upstream, double scale, int64_t count) {
  STD_TORCH_CHECK(grad.dim() == 4, "ssimfast: the gradient must have 4 dimensions, got ",
                  grad.dim());
  STD_TORCH_CHECK(
      upstream.scalar_type() == arithmetic_dtype(grad) &&
          (upstream.dim() == 0 || (upstream.dim() == 1 && upstream.size(0) == grad.size(0))),
      "ssimfast: the upstream gradient does not fit the result");
  const Tensor out = torch::stable::empty_like(grad);
  if (grad.numel() == 0) return out;
  dispatch_floating(grad, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Source<A> from = source<T>(grad);
    const Sink<A> to = sink<T>(out);
    const A* factors = static_cast<const A*>(upstream.const_data_ptr());
    const int64_t stride = upstream.dim() == 0 ? 0 : upstream.stride(0);
    const int64_t channels = grad.size(1), height = grad.size(2), width = grad.size(3);
    const int64_t rows = grad.size(0) * channels * height;
    const int64_t grain = std::max<int64_t>(1, 32768 / width);
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      A* const scratch = workspace<A>(2 * width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = i % height, c = i / height % channels, n = i / height / channels;
        const A factor = A(double(factors[n * stride]) * scale / double(count));
        const A* row = from.row(from.plane(n, c), r, 0, width, scratch);
        for (int64_t j = 0; j < width; ++j) scratch[width + j] = row[j] * factor;
        to.row(n, c, r, 0, width, scratch + width);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, m) {
  using namespace ssimfast::cpu;
  m.impl("ssim_map", TORCH_BOX(&ssim_map));
  m.impl("ssim_map_grad", TORCH_BOX(&ssim_map_grad));
  m.impl("ssim_map_grad_both", TORCH_BOX(&ssim_map_grad_both));
  m.impl("ssim_reduced", TORCH_BOX(&ssim_reduced));
  m.impl("ssim_reduced_grad", TORCH_BOX(&ssim_reduced_grad));
  m.impl("ssim_reduced_grad_both", TORCH_BOX(&ssim_reduced_grad_both));
  m.impl("scale_grad", TORCH_BOX(&scale_grad));
}
