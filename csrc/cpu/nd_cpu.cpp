// SSIM of images and volumes as a map, and its gradient, with a mask or without: ssim_nd_map and
// ssim_nd_map_grad.
//
//   pixels -> sums over windows, axis by axis -> SSIM, or slopes
//   slopes -> sums over the windows of a pixel, axis by axis -> (with the pixels) gradient
//
// Everything is in double, whatever the images are. tile.h does without by taking differences from
// the pixel at the centre; under a mask that pixel may be hidden, and each window's sums are
// divided by a weight of its own. In double plain sums of squares keep all digits that images of
// float have, cost no more than centred ones, and are divided once, after the last axis.
//
// Maps are as large as the images; what belongs to a window lies where its centre is. An axis is
// filtered in place, piece by piece through scratch memory. The cut into pieces depends on the
// shape alone, so the result has the same bits for every number of threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "../tensor.h"
#include "nd.h"
#include "plane.h"

namespace ssimfast::cpu {
namespace {

// Planes are worked on together as long as their maps hold no more numbers: 8 MiB.
constexpr int64_t kNumbersTogether = 1 << 20;
// Numbers that are worth a thread.
constexpr int64_t kGrain = 8192;
// A piece holds about kPieceNumbers, to stay in a level-2 cache, in a multiple of kPieceColumns.
constexpr int64_t kPieceNumbers = 1 << 16, kPieceColumns = 64;

enum Axis { kDepth, kHeight, kWidth, kAxes };

struct Interval {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
using Box = std::array<Interval, kAxes>;

struct Row {
  int64_t plane;  // among those that are worked on together
  int64_t n, c, z, r;
};

// A tensor (N, C, H, W) or (N, C, D, H, W) of any strides, as rows of double.
struct Image {
  char* data;
  Box box;  // where its numbers belong: to all pixels, or to the centres of windows
  int64_t strides[2 + kAxes];  // in bytes
  int64_t element_size;
  ReadRow<double> read_row;
  WriteRow<double> write_row;

  char* at(const Row& row, int64_t column) const {
    return data + row.n * strides[0] + row.c * strides[1] +
           (row.z - box[kDepth].begin) * strides[2] + (row.r - box[kHeight].begin) * strides[3] +
           column * strides[4];
  }
  void read(const Row& row, double* to, int64_t column, int64_t count) const {
    read_row(at(row, column), strides[4] / element_size, count, to);
  }
  void read(const Row& row, double* to) const { read(row, to, 0, box[kWidth].size()); }
  void write(const Row& row, const double* from) const {
    write_row(from, box[kWidth].size(), at(row, 0), strides[4] / element_size);
  }
};

template <class T>
Image image(const Tensor& tensor, const void* data, const Box& box) {
  const int64_t size = sizeof(T), last = tensor.dim() - 1;
  const auto read = [](const void* from, int64_t stride, int64_t n, double* to) {
    for (int64_t i = 0; i < n; ++i)
      to[i] = static_cast<Arithmetic<T>>(static_cast<const T*>(from)[i * stride]);
  };
  const auto write = [](const double* from, int64_t n, void* to, int64_t stride) {
    for (int64_t i = 0; i < n; ++i)
      static_cast<T*>(to)[i * stride] = static_cast<T>(static_cast<Arithmetic<T>>(from[i]));
  };
  return {
      static_cast<char*>(const_cast<void*>(data)),
      box,
      {tensor.stride(0) * size, tensor.stride(1) * size, last == 4 ? tensor.stride(2) * size : 0,
       tensor.stride(last - 1) * size, tensor.stride(last) * size},
      size,
      read,
      write};
}

struct Task {
  Image x, y, mask, upstream;
  Image map, grad_x, grad_y;
  std::vector<double> window;
  double c1, c2, low, scale;
  bool masked, both, is_volume;
  int64_t channels;
  Box pixels, centres;

  int sums() const { return masked ? kSums : kSumWeight; }
  int slopes() const { return both ? kPartials : kRestD; }
  int64_t numbers() const {
    return sums() * pixels[kDepth].end * pixels[kHeight].end * pixels[kWidth].end;
  }
};

// Calls body(index, scratch memory) on all threads; a call works on `each` numbers.
template <class Body>
void parallel(int64_t count, int64_t each, int64_t scratch_size, Body&& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / each);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) body(i, scratch.data());
  });
}

// Some planes, which are volumes where there is a depth, and their maps.
class Planes {
 public:
  Planes(const Task& task, Interval planes, double* maps)
      : task(task),
        planes(planes),
        maps(maps),
        half(static_cast<int>(task.window.size()) / 2),
        width(task.pixels[kWidth].end),
        padded(width + 2 * half),
        strides{task.pixels[kHeight].end * width, width},
        pitch(task.pixels[kDepth].end * strides[kDepth]),
        columns(task.centres[kWidth]) {
    for (int64_t i = 0; i < planes.size(); ++i) levels.push_back(choose_level(i));
  }

  void write_map() const {
    sum_windows();
    for_rows(task.centres, width, [&](const Row& row, double* scratch) {
      sweep(WriteSsim{windows(row), scratch}, columns.size());
      task.map.write(row, scratch);
    });
  }

  void write_gradient() const {
    sum_windows();
    for_rows(task.centres, width, [&](const Row& row, double* scratch) {
      task.upstream.read(row, scratch);
      sweep(WriteSlopes{windows(row), task.both, scratch}, columns.size());
    });
    const auto nothing = [](int64_t, int) { return 0.0; };
    Box known = task.centres;
    filter(kDepth, task.slopes(), known, task.pixels, nothing);
    filter(kHeight, task.slopes(), known, task.pixels, nothing);
    for_rows(task.pixels, (3 + kPartials) * width + padded,
             [&](const Row& row, double* scratch) { write_gradient_row(row, scratch); });
  }

 private:
  const Task& task;
  const Interval planes;
  double* const maps;  // those of a plane one after another
  const int half;
  const int64_t width, padded;
  const std::array<int64_t, 2> strides;  // of the maps, along depth and height
  const int64_t pitch;                   // from map to map
  const Interval columns;                // of the centres of windows
  std::vector<double> levels;            // subtracted from both images, plane by plane

  double* map_row(const Row& row, int map) const {
    return maps + (row.plane * task.sums() + map) * pitch + row.z * strides[kDepth] +
           row.r * strides[kHeight];
  }

  double level_s(int64_t plane) const { return 2 * (levels[plane] - task.low) * task.scale; }

  Windows windows(const Row& row) const {
    return {
        map_row(row, 0) + columns.begin, pitch, task.masked, level_s(row.plane), task.c1, task.c2};
  }

  Row row_of(int64_t plane, int64_t z, int64_t r) const {
    const int64_t index = planes.begin + plane;
    return {plane, index / task.channels, index % task.channels, z, r};
  }

  // Calls body(row, scratch memory) for the rows of the box in every plane.
  template <class Body>
  void for_rows(const Box& box, int64_t scratch_size, Body&& body) const {
    const int64_t depth = box[kDepth].size(), height = box[kHeight].size();
    parallel(planes.size() * depth * height, width, scratch_size, [&](int64_t i, double* scratch) {
      body(row_of(i / height / depth, box[kDepth].begin + i / height % depth,
                  box[kHeight].begin + i % height),
           scratch);
    });
  }

  // The median of some pixels, which outliers do not move. It matters to images far from zero:
  // their squares would lose digits even in double.
  double choose_level(int64_t plane) const {
    constexpr size_t kSamples = 50;
    constexpr int64_t kTries = 4096;
    int64_t step = pitch * 5 / 8;  // scattered, and through all pixels of a small plane
    while (std::gcd(step, pitch) != 1) ++step;
    std::vector<double> values;
    for (int64_t i = 0, at = 0; i < std::min(pitch, kTries) && values.size() < kSamples; ++i) {
      at = (at + step) % pitch;
      const Row row = row_of(plane, at / strides[kDepth], at % strides[kDepth] / width);
      double weight = 1, value;
      if (task.masked) task.mask.read(row, &weight, at % width, 1);
      if (weight == 0) continue;
      for (const Image* image : {&task.x, &task.y}) {
        image->read(row, &value, at % width, 1);
        if (std::isfinite(value)) values.push_back(value);
      }
    }
    if (values.empty()) return task.low;
    const auto middle = values.begin() + values.size() / 2;
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  // The pixels of a row, in unit range and less the level, and their weights. What the mask hides
  // is 0, whatever it was.
  void load_pixels(const Row& row, double* s, double* d, double* w) const {
    const double level = levels[row.plane];
    task.x.read(row, s);
    task.y.read(row, d);
    std::fill(w, w + width, 1.0);
    if (task.masked) task.mask.read(row, w);
    for (int64_t i = 0; i < width; ++i) {
      const double x = s[i], y = d[i];
      s[i] = w[i] == 0 ? 0 : ((x - level) + (y - level)) * task.scale;
      d[i] = w[i] == 0 ? 0 : (x - y) * task.scale;
    }
  }

  // Outside the image there is the lower end of the range, or, with a mask, nothing to be seen.
  double padding(int64_t plane, int map) const {
    if (task.masked) return 0;
    return map == kSumS ? -level_s(plane) : map == kSumS2 ? level_s(plane) * level_s(plane) : 0;
  }

  void sum_windows() const {
    for_rows(task.pixels, 3 * width + kSums * padded,
             [&](const Row& row, double* scratch) { sum_along_row(row, scratch); });
    const auto outside = [&](int64_t plane, int map) { return padding(plane, map); };
    Box known = task.pixels;
    known[kWidth] = columns;
    filter(kHeight, task.sums(), known, task.centres, outside);
    filter(kDepth, task.sums(), known, task.centres, outside);
  }

  void sum_along_row(const Row& row, double* scratch) const {
    double *s = scratch, *d = s + width, *w = d + width, *lines = w + width;
    load_pixels(row, s, d, w);
    for (int map = 0; map < kSums; ++map) {
      double* const line = lines + map * padded;
      std::fill_n(line, half, padding(row.plane, map));
      std::fill_n(line + half + width, half, padding(row.plane, map));
    }
    for (int64_t i = 0; i < width; ++i) {
      double* const to = lines + half + i;
      to[kSumS * padded] = w[i] * s[i];
      to[kSumD * padded] = w[i] * d[i];
      to[kSumS2 * padded] = w[i] * s[i] * s[i];
      to[kSumD2 * padded] = w[i] * d[i] * d[i];
      to[kSumWeight * padded] = w[i];
    }
    for (int map = 0; map < task.sums(); ++map)
      correlate(lines + map * padded + columns.begin, 1, columns.size(),
                map_row(row, map) + columns.begin);
  }

  void correlate(const double* from, int64_t step, int64_t count, double* to) const {
    sweep(Correlate{from, step, task.window.data(), half, to}, count);
  }

  // Filters the first `count` maps of each plane along depth or height, in place. They are known
  // inside a box, and outside(plane, map) elsewhere; along the axis the box becomes that of `to`.
  template <class Outside>
  void filter(Axis axis, int count, Box& known, const Box& to, Outside&& outside) const {
    if (axis == kDepth && !task.is_volume) return;
    const Axis across = axis == kDepth ? kHeight : kDepth;
    const Interval lines = known[across], piece = known[kWidth], source = known[axis];
    const Interval target = known[axis] = to[axis];
    const int64_t length = target.size() + 2 * half;
    const int64_t wide =
        std::min(piece.size(), (kPieceNumbers / length / kPieceColumns + 1) * kPieceColumns);
    const int64_t pieces = (piece.size() + wide - 1) / wide;
    parallel(planes.size() * count * lines.size() * pieces, length * wide, length * wide,
             [&](int64_t i, double* scratch) {
               const int64_t plane = i / pieces / lines.size() / count;
               const int map = static_cast<int>(i / pieces / lines.size() % count);
               const int64_t line = lines.begin + i / pieces % lines.size();
               const int64_t column = piece.begin + i % pieces * wide;
               const int64_t size = std::min(wide, piece.end - column);
               double* const first =
                   maps + (plane * task.sums() + map) * pitch + line * strides[across] + column;
               for (int64_t k = 0; k < length; ++k) {
                 const int64_t at = target.begin - half + k;
                 if (at >= source.begin && at < source.end) {
                   std::copy_n(first + at * strides[axis], size, scratch + k * wide);
                 } else {
                   std::fill_n(scratch + k * wide, size, outside(plane, map));
                 }
               }
               for (int64_t k = 0; k < target.size(); ++k)
                 correlate(scratch + k * wide, wide, size,
                           first + (target.begin + k) * strides[axis]);
             });
  }

  // Filters the slopes along a row, and puts the pixels in.
  void write_gradient_row(const Row& row, double* scratch) const {
    double *s = scratch, *d = s + width, *w = d + width;
    load_pixels(row, s, d, w);
    // What is never written to stays 0: kRestD where it is part of kRestS, and a line's padding.
    std::array<double*, kPartials + 1> slope;
    for (int map = 0; map <= kPartials; ++map) slope[map] = w + (1 + map) * width;
    double* const line = slope[kPartials];
    for (int map = 0; map < task.slopes(); ++map) {
      const double* from = map_row(row, map) + columns.begin;
      std::copy_n(from, columns.size(), line + half + columns.begin);
      correlate(line, 1, width, slope[map]);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double factor = w[i] * task.scale;
      const double by_s = (slope[kRestS][i] + slope[kByVarS][i] * s[i]) * factor;
      const double by_d = (slope[kRestD][i] + slope[kByVarD][i] * d[i]) * factor;
      // What is hidden has no gradient, even where its windows have none that is finite.
      s[i] = w[i] == 0 ? 0 : by_s + by_d;
      d[i] = w[i] == 0 ? 0 : by_s - by_d;
    }
    task.grad_x.write(row, s);
    if (task.both) task.grad_y.write(row, d);
  }
};

// ---- ops ----------------------------------------------------------------------------------------

using Mask = std::optional<Tensor>;

bool has_sizes(const Tensor& tensor, const std::vector<int64_t>& sizes) {
  bool has = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; has && i < tensor.dim(); ++i) has = tensor.size(i) == sizes[i];
  return has;
}

// Checks the arguments that the ops share; the sizes of the map.
std::vector<int64_t> map_sizes(const Tensor& x, const Tensor& y, const Mask& mask,
                               const std::vector<double>& window, bool same) {
  const int64_t count = static_cast<int64_t>(window.size());
  STD_TORCH_CHECK(x.dim() == 4 || x.dim() == 5,
                  "ssimfast: images must have 4 or 5 dimensions, got ", x.dim());
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  STD_TORCH_CHECK(has_sizes(y, sizes) && y.scalar_type() == x.scalar_type(),
                  "ssimfast: x and y differ in shape or dtype");
  STD_TORCH_CHECK(!mask || (has_sizes(*mask, sizes) && mask->scalar_type() == arithmetic_dtype(x)),
                  "ssimfast: the mask does not fit the images");
  STD_TORCH_CHECK(count % 2 == 1 && count <= kMaxWindow, "ssimfast: window must have 1, 3, ... ",
                  kMaxWindow, " taps, got ", count);
  STD_TORCH_CHECK(std::equal(window.begin(), window.end(), window.rbegin()),
                  "ssimfast: window must be symmetric");
  for (int64_t i = 2; !same && i < x.dim(); ++i) {
    STD_TORCH_CHECK(sizes[i] >= count, "ssimfast: dimension ", i, " of size ", sizes[i],
                    " is smaller than the window of ", count);
    sizes[i] -= count - 1;
  }
  return sizes;
}

template <class T>
Task make_task(const Tensor& x, const Tensor& y, const Mask& mask, std::vector<double> window,
               double c1, double c2, double low, double scale, bool same) {
  Task task{};
  task.is_volume = x.dim() == 5;
  const int64_t margin = same ? 0 : static_cast<int64_t>(window.size()) / 2;
  task.pixels[kDepth] = task.centres[kDepth] = {0, 1};
  for (int axis = task.is_volume ? kDepth : kHeight; axis < kAxes; ++axis) {
    const int64_t size = x.size(x.dim() - kAxes + axis);
    task.pixels[axis] = {0, size};
    task.centres[axis] = {margin, size - margin};
  }
  task.x = image<T>(x, x.const_data_ptr(), task.pixels);
  task.y = image<T>(y, y.const_data_ptr(), task.pixels);
  task.masked = mask.has_value();
  if (mask) task.mask = image<Arithmetic<T>>(*mask, mask->const_data_ptr(), task.pixels);
  task.channels = x.size(1);
  task.window = std::move(window);
  task.c1 = c1;
  task.c2 = c2;
  task.low = low;
  task.scale = scale;
  return task;
}

// Calls work(planes) for all planes, as many at a time as are worth it.
template <class Work>
void for_planes(const Tensor& x, const Task& task, Work&& work) {
  const int64_t count = x.size(0) * x.size(1);
  const int64_t together = std::min(count, std::max<int64_t>(1, kNumbersTogether / task.numbers()));
  const Tensor maps = torch::stable::new_empty(x, {together * task.numbers()}, ScalarType::Double);
  double* const data = static_cast<double*>(maps.mutable_data_ptr());
  for (int64_t i = 0; i < count; i += together)
    work(Planes(task, {i, std::min(count, i + together)}, data));
}

Tensor ssim_nd_map(const Tensor& x, const Tensor& y, const Mask& mask, std::vector<double> window,
                   double c1, double c2, double low, double scale, bool same) {
  const std::vector<int64_t> sizes = map_sizes(x, y, mask, window, same);
  const Tensor map = torch::stable::new_empty(x, sizes, arithmetic_dtype(x));
  if (x.numel() == 0) return map;
  dispatch_images(x, [&](auto zero) {
    using T = decltype(zero);
    Task task = make_task<T>(x, y, mask, std::move(window), c1, c2, low, scale, same);
    task.map = image<Arithmetic<T>>(map, map.mutable_data_ptr(), task.centres);
    for_planes(x, task, [](const Planes& planes) { planes.write_map(); });
  });
  return map;
}

std::vector<Tensor> ssim_nd_map_grad(const Tensor& upstream, const Tensor& x, const Tensor& y,
                                     const Mask& mask, std::vector<double> window, double c1,
                                     double c2, double low, double scale, bool same,
                                     int64_t gradients) {
  const std::vector<int64_t> sizes = map_sizes(x, y, mask, window, same);
  STD_TORCH_CHECK(has_sizes(upstream, sizes) && upstream.scalar_type() == arithmetic_dtype(x),
                  "ssimfast: the gradient of the map does not fit the map");
  STD_TORCH_CHECK(gradients > 0, "ssimfast: gradients must be 1 or 2, got ", gradients);
  const std::vector<Tensor> grads = new_gradients(x, y, gradients);
  const bool both = gradients > 1;
  if (x.numel() == 0) return grads;
  dispatch_floating(x, [&](auto zero) {
    using T = decltype(zero);
    Task task = make_task<T>(x, y, mask, std::move(window), c1, c2, low, scale, same);
    task.both = both;
    task.upstream = image<Arithmetic<T>>(upstream, upstream.const_data_ptr(), task.centres);
    task.grad_x = image<T>(grads[0], grads[0].mutable_data_ptr(), task.pixels);
    if (both) task.grad_y = image<T>(grads[1], grads[1].mutable_data_ptr(), task.pixels);
    for_planes(x, task, [](const Planes& planes) { planes.write_gradient(); });
  });
  return grads;
}

}  // namespace
}  // namespace ssimfast::cpu

STABLE_TORCH_LIBRARY_IMPL(ssimfast, CPU, m) {
  using namespace ssimfast::cpu;
  m.impl("ssim_nd_map", TORCH_BOX(&ssim_nd_map));
  m.impl("ssim_nd_map_grad", TORCH_BOX(&ssim_nd_map_grad));
}
