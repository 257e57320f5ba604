// The separable path: SSIM of volumes and of images with different windows along their axes, with
// or without a mask, and its gradient.
//
// A volume is processed slice by slice:
//
//   pixels -> sums along rows -> down columns -> ring of slices -> along the depth -> SSIM, slopes
//   slopes -> ring of slices -> along the depth -> down columns -> along rows -> (pixels) gradient
//
// The rings hold a few slices more than a window; no buffer has the size of the volume. Each step
// processes kTogether slices in a few phases. The rows of a phase are independent of each other,
// and so are planes and parts of a plane, if the halo between parts is computed twice. Each number
// is computed in the same way for every division of the work, so the result has the same bits for
// every number of threads.
//
// All arithmetic is in double, whatever the dtype of the images. tile.h can use float because it
// subtracts the pixel at the centre of the window. A mask may hide that pixel, and each window
// divides its sums by its own weight. In double, plain sums of squares have an error of 1e-7 for
// pixels within a thousand value ranges of the offset (1e-5 within ten thousand). They cost no more
// than centred sums in float and need one division, after the last axis.
#include "cpu/separable.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/cpu.h"

namespace ssimfast::cpu {
namespace {

// Least number of parts of a volume that run in parallel. Fewer parts run one after another, and
// the rows of each run in parallel. The parts of images always run in parallel, because their
// slices have one row.
constexpr int64_t kManyParts = 8;
// Images: wanted number of parts of all planes, and least number of rows of a part, because each
// part has a halo at both ends.
constexpr int64_t kWantedParts = 16, kLeastRun = 64;
// Volumes: numbers in the rings of a strip of rows (32 MiB), and least number of rows of a strip.
constexpr int64_t kRingNumbers = int64_t(1) << 22, kLeastStrip = 16;
// Least amount of work for a thread, in numbers of a row.
constexpr int64_t kGrain = 2048;

struct Interval {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  bool has(int64_t i) const { return begin <= i && i < end; }
  // The interval extended by `margin` at both ends and clipped to `bounds`. May be empty.
  Interval grown(int64_t margin, const Interval& bounds) const {
    const int64_t first = std::max(begin - margin, bounds.begin);
    return {first, std::max(first, std::min(end + margin, bounds.end))};
  }
};
using Box = std::array<Interval, kAxes>;

// A row of a volume. An image (N, C, H, W) is treated as a volume of H slices with one row each.
struct Row {
  int64_t n, c, z, r;
};

// Turns the rows of an image's view into slices. Returns the view of a volume unchanged.
View as_volume(const Problem<double>& problem, View view) {
  if (!problem.is_volume) {
    view.by_slice = view.by_row;
    view.by_row = 0;
  }
  return view;
}

// A tensor whose rows are read as double. `box` is the region that the tensor covers: all pixels,
// or the window centres.
struct Reader {
  Source<double> source;
  Box box;

  bool is_there() const { return source.data != nullptr; }
  void read(const Row& row, double* to, int64_t column, int64_t count) const {
    const char* const plane = source.plane(row.n, row.c, row.z - box[kDepth].begin);
    source.read(source.address(plane, row.r - box[kHeight].begin, column), count, to);
  }
  void read(const Row& row, double* to) const { read(row, to, 0, box[kWidth].size()); }
};

struct Writer {
  Sink<double> sink;
  Box box;

  bool is_there() const { return sink.data != nullptr; }
  void write(const Row& row, const double* from) const {
    sink.write(from, box[kWidth].size(),
               sink.address(row.n, row.c, row.r - box[kHeight].begin, 0, row.z - box[kDepth].begin),
               sink.strides.w / sink.element_size);
  }
};

// A problem in the form that this path uses: images are volumes.
struct Task {
  Reader x, y, mask, upstream;
  Writer ssim_map, contrast_map, grad[2];
  Window<double> windows[kAxes];
  double c1, c2, low, scale, grad_scale;
  bool masked, is_volume;
  int gradients;
  double* row_sums;            // sums of (1 - SSIM) / 2, ordered by plane; null if not wanted
  const double* mask_factors;  // see Problem
  int64_t group_planes;
  int64_t planes, channels;
  Box pixels, centres;

  explicit Task(const Problem<double>& problem);

  int half(Axis axis) const { return windows[axis].half(); }
  int sums() const { return masked ? kSums : kSumWeight; }
  int slopes() const { return gradients == 0 ? 0 : gradients == 2 ? kPartials : kConstantD; }
  int64_t width() const { return pixels[kWidth].end; }
  // Numbers from row to row of a map: a whole number of cache lines, with room for the padding.
  int64_t pitch() const { return (width() + 2 * half(kWidth) + 15) / 8 * 8; }
  int64_t ring_slices() const { return windows[kDepth].size + 2 * kTogether; }
};

Task::Task(const Problem<double>& problem)
    : c1(problem.twice_c1 / 2),
      c2(problem.twice_c2 / 2),
      low(problem.low),
      scale(problem.scale),
      grad_scale(problem.grad_scale),
      masked(problem.has_mask()),
      is_volume(problem.is_volume),
      gradients(problem.gradients),
      row_sums(nullptr),
      mask_factors(problem.mask_factors),
      group_planes(problem.group_planes),
      planes(problem.planes),
      channels(problem.channels) {
  const auto set = [&](Axis axis, int64_t size, const Window<double>& window) {
    pixels[axis] = {0, size};
    centres[axis] = {window.margin, size - window.margin};
    windows[axis] = window;
  };
  const Window<double>& height = problem.windows[kHeight];
  set(kDepth, is_volume ? problem.depth : problem.height,
      is_volume ? problem.windows[kDepth] : height);
  set(kHeight, is_volume ? problem.height : 1, is_volume ? height : Window<double>{});
  set(kWidth, problem.width, problem.windows[kWidth]);
  const auto source = [&](const View& view) { return Source<double>(as_volume(problem, view)); };
  x = {source(problem.x), pixels};
  y = {Source<double>(as_volume(problem, problem.y), problem.y_low, problem.y_step), pixels};
  mask = {source(problem.mask), pixels};
  upstream = {source(problem.upstream[kSsimMap]), centres};
  ssim_map = {Sink<double>(as_volume(problem, problem.map[kSsimMap])), centres};
  contrast_map = {Sink<double>(as_volume(problem, problem.map[kContrastMap])), centres};
  for (int i = 0; i < 2; ++i) grad[i] = {Sink<double>(as_volume(problem, problem.grad[i])), pixels};
}

// The work of one Stream: some slices and rows of a plane. They are slices and rows of pixels if
// there are gradients, else of window centres.
struct Part {
  int64_t plane;
  Interval slices, rows;
};

// Rows of several maps of several slices, ordered by slice, map and row.
class Maps {
 public:
  Maps(int64_t slices, int maps, Interval rows, int64_t pitch)
      : maps(maps), rows(rows), pitch(pitch), numbers(slices * maps * rows.size() * pitch) {}

  double* row(int64_t slice, int map, int64_t r) {
    return numbers.data() + ((slice * maps + map) * rows.size() + r - rows.begin) * pitch;
  }
  // Numbers from a row to the same row of the next map.
  int64_t map_pitch() const { return rows.size() * pitch; }

 private:
  int maps;
  Interval rows;
  int64_t pitch;
  std::vector<double> numbers;
};

class Stream {
 public:
  Stream(const Task& task, const Part& part)
      : task(task),
        part(part),
        ring(task.ring_slices()),
        width(task.width()),
        pitch(task.pitch()),
        columns(task.centres[kWidth]),
        centres(
            part.slices.grown(task.gradients > 0 ? task.half(kDepth) : 0, task.centres[kDepth])),
        centre_rows(
            part.rows.grown(task.gradients > 0 ? task.half(kHeight) : 0, task.centres[kHeight])),
        pixel_rows(centre_rows.grown(task.half(kHeight), task.pixels[kHeight])),
        offset(choose_offset()),
        offset_s(2 * (offset - task.low) * task.scale),
        along_rows(task.is_volume ? kTogether : 0, task.sums(), pixel_rows, pitch),
        sums(ring, task.sums(), centre_rows, pitch),
        slopes(task.gradients > 0 ? ring : 0, task.slopes(), centre_rows, pitch),
        along_depth(task.gradients > 0 ? kTogether : 0, task.slopes(), centre_rows, pitch),
        zeros(pitch),
        ones(pitch, 1.0) {
    for (int map = 0; map < task.sums(); ++map) paddings.emplace_back(pitch, padding(map));
  }

  void run() {
    const int half = task.half(kDepth);
    int64_t loaded = std::max<int64_t>(centres.begin - half, 0);
    int64_t written = part.slices.begin;
    for (int64_t first = centres.begin; first < centres.end; first += kTogether) {
      const Interval together{first, std::min(first + kTogether, centres.end)};
      const int64_t seen = std::min(together.end + half, task.pixels[kDepth].end);
      for (; loaded < seen; loaded = std::min(loaded + kTogether, seen))
        load({loaded, std::min(loaded + kTogether, seen)});
      for_each(centre_rows, [&](int64_t r, double* scratch) { statistics(together, r, scratch); });
      for (; task.gradients > 0 && written + kTogether + half <= together.end; written += kTogether)
        gradients({written, written + kTogether});
    }
    for (; task.gradients > 0 && written < part.slices.end; written += kTogether)
      gradients({written, std::min(written + kTogether, part.slices.end)});
  }

 private:
  const Task& task;
  const Part part;
  const int64_t ring, width, pitch;
  const Interval columns;  // columns of window centres
  // Slices and rows of the statistics, which reach beyond the part if there are gradients, and rows
  // of the pixels that their windows cover.
  const Interval centres, centre_rows, pixel_rows;
  const double offset, offset_s;  // subtracted from both images, and from s
  Maps along_rows;                // volumes: sums along rows, of the slices that are being loaded
  Maps sums;                      // ring: sums along rows and down columns
  Maps slopes;                    // ring
  Maps along_depth;  // slopes filtered along the depth, of the slices that are being written
  std::vector<double> zeros, ones;
  std::vector<std::vector<double>> paddings;  // rows outside the image, by map

  Row row_of(int64_t z, int64_t r) const {
    return {part.plane / task.channels, part.plane % task.channels, z, r};
  }

  // Calls body(row, scratch) for all rows, in parallel unless the parts run in parallel.
  template <class Body>
  void for_each(const Interval& rows, Body&& body) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / pitch);
    torch::stable::parallel_for(rows.begin, rows.end, grain, [&](int64_t begin, int64_t end) {
      double* const scratch = workspace<double>(kScratchRows * pitch);
      for (int64_t r = begin; r < end; ++r) body(r, scratch);
    });
  }
  static constexpr int kScratchRows = kSums * kTogether + 2 * kPartials + 8;

  // Chooses the offset as tile.h does, from pixels that the mask does not hide. Far from the value
  // range, squares would lose digits even in double.
  double choose_offset() const {
    constexpr size_t kSamples = 50;
    constexpr int64_t kTries = 4096;
    const int64_t height = task.pixels[kHeight].end;
    const int64_t count = task.pixels[kDepth].end * height * width;
    std::vector<double> pixels;
    const auto sample = [&](int64_t at) {
      const Row row = row_of(at / width / height, at / width % height);
      double weight = 1, value;
      if (task.masked) task.mask.read(row, &weight, at % width, 1);
      if (weight == 0) return;
      for (const Reader* image : {&task.x, &task.y}) {
        image->read(row, &value, at % width, 1);
        if (std::isfinite(value)) pixels.push_back(value);
      }
    };
    // Steps of the golden ratio spread any number of samples evenly.
    int64_t step = std::max<int64_t>(1, static_cast<int64_t>(count * 0.6180339887498949));
    while (std::gcd(step, count) != 1) ++step;
    int64_t at = 0;
    for (int64_t i = 0; i < std::min(count, kTries) && pixels.size() < kSamples; ++i) {
      at = (at + step) % count;
      sample(at);
    }
    // The mask hid all samples: uses the first visible pixels instead.
    for (at = 0; at < count && pixels.empty(); ++at) sample(at);
    return offset_of(pixels, task.low, task.scale);
  }

  // Value of a sum outside the image. Pixels there are black (`low`) or, with a mask, hidden.
  double padding(int map) const {
    if (task.masked) return 0;
    return map == kSumS ? -offset_s : map == kSumS2 ? offset_s * offset_s : 0;
  }

  // Loads s and d of a row, in unit range minus the offset, and the weights of its pixels. Hidden
  // pixels become 0, even if they are NaN.
  void load_pixels(const Row& row, double* s, double* d, double* w) const {
    task.x.read(row, s);
    task.y.read(row, d);
    std::fill(w, w + width, 1.0);
    if (task.masked) task.mask.read(row, w);
    for (int64_t i = 0; i < width; ++i) {
      const double x = s[i], y = d[i];
      s[i] = w[i] == 0 ? 0 : ((x - offset) + (y - offset)) * task.scale;
      d[i] = w[i] == 0 ? 0 : (x - y) * task.scale;
    }
  }

  // Filters kTogether neighbouring windows along an axis across rows; from(k) is input row k of
  // window + kTogether - 1. Outputs that are null go to `nowhere`.
  template <class From>
  void correlate_rows(Axis axis, const std::array<double*, kTogether>& to, int64_t count,
                      double* nowhere, From&& from) const {
    CorrelateRows kernel;
    kernel.taps = task.windows[axis].taps;
    kernel.window = task.windows[axis].size;
    for (int k = 0; k < kernel.window + kTogether - 1; ++k) kernel.from[k] = from(k);
    for (int b = 0; b < kTogether; ++b) kernel.to[b] = to[b] == nullptr ? nowhere : to[b];
    sweep(kernel, count);
  }

  // Loads slices of pixels into the ring of sums.
  void load(const Interval& slices) {
    const int64_t rows = pixel_rows.size();
    for_each({0, slices.size() * rows}, [&](int64_t i, double* scratch) {
      sum_along_row(slices.begin, i / rows, pixel_rows.begin + i % rows, scratch);
    });
    if (!task.is_volume) return;
    const int64_t blocks = divide_up(centre_rows.size(), kTogether);
    for_each({0, slices.size() * blocks}, [&](int64_t i, double* scratch) {
      const int64_t z = slices.begin + i / blocks;
      const int64_t first = centre_rows.begin + i % blocks * kTogether;
      for (int map = 0; map < task.sums(); ++map) {
        std::array<double*, kTogether> to{};
        for (int b = 0; b < kTogether && first + b < centre_rows.end; ++b)
          to[b] = sums.row(z % ring, map, first + b);
        correlate_rows(kHeight, to, columns.size(), scratch, [&](int k) -> const double* {
          const int64_t r = first + k - task.half(kHeight);
          return pixel_rows.has(r) ? along_rows.row(i / blocks, map, r) : paddings[map].data();
        });
      }
    });
  }

  void sum_along_row(int64_t first_slice, int64_t slice, int64_t r, double* scratch) {
    double *s = scratch, *d = s + pitch, *w = d + pitch, *lines = w + pitch;
    const int64_t z = first_slice + slice;
    load_pixels(row_of(z, r), s, d, w);
    const int half = task.half(kWidth);
    for (int map = 0; map < task.sums(); ++map) {
      std::fill_n(lines + map * pitch, half, padding(map));
      std::fill_n(lines + map * pitch + half + width, half, padding(map));
    }
    for (int64_t i = 0; i < width; ++i) {
      double* const to = lines + half + i;
      to[kSumS * pitch] = w[i] * s[i];
      to[kSumD * pitch] = w[i] * d[i];
      to[kSumS2 * pitch] = w[i] * s[i] * s[i];
      to[kSumD2 * pitch] = w[i] * d[i] * d[i];
      to[kSumWeight * pitch] = w[i];
    }
    for (int map = 0; map < task.sums(); ++map) {
      double* const to =
          task.is_volume ? along_rows.row(slice, map, r) : sums.row(z % ring, map, r);
      sweep(Correlate{lines + map * pitch + columns.begin, 1, task.windows[kWidth].taps, half, to},
            columns.size());
    }
  }

  // Computes row r of SSIM of some slices. If there are gradients, writes the slopes to their ring.
  void statistics(const Interval& slices, int64_t r, double* scratch) {
    double* const windows = scratch;  // kTogether * kSums rows
    double* const ssim = windows + kTogether * kSums * pitch;
    double *const upstream = ssim + pitch, *const nowhere = upstream + pitch;
    double* const contrast = task.contrast_map.is_there() ? nowhere + pitch : nullptr;
    double* const weights = nowhere + 2 * pitch;  // of the centre pixels
    std::copy(ones.begin(), ones.end(), weights);
    for (int map = 0; map < task.sums(); ++map) {
      std::array<double*, kTogether> to{};
      for (int b = 0; b < slices.size(); ++b) to[b] = windows + (b * kSums + map) * pitch;
      correlate_rows(kDepth, to, columns.size(), nowhere, [&](int k) -> const double* {
        const int64_t z = slices.begin + k - task.half(kDepth);
        // Outside the volume. Without padding only the unused outputs read this row.
        if (!task.pixels[kDepth].has(z)) return paddings[map].data();
        return sums.row(z % ring, map, r);
      });
    }
    for (int b = 0; b < slices.size(); ++b) {
      const int64_t z = slices.begin + b;
      const Row row = row_of(z, r);
      const Windows of{windows + b * kSums * pitch, pitch, task.masked, offset_s, task.c1, task.c2};
      if (task.masked) task.mask.read(row, weights, columns.begin, columns.size());
      if (task.gradients > 0) {
        const double* by = weights;
        if (task.upstream.is_there()) {
          task.upstream.read(row, upstream);
          by = upstream;
        }
        sweep(WriteSlopes{of,
                          task.gradients == 2,
                          by,
                          {ssim, contrast},
                          slopes.row(z % ring, 0, r),
                          slopes.map_pitch()},
              columns.size());
      } else {
        sweep(WriteMaps{of, {ssim, contrast}}, columns.size());
      }
      const bool is_own = part.slices.has(z) && part.rows.has(r);
      if (is_own && task.ssim_map.is_there()) task.ssim_map.write(row, ssim);
      if (is_own && contrast != nullptr) task.contrast_map.write(row, contrast);
      if (is_own && task.row_sums != nullptr) {
        const int64_t height = task.pixels[kHeight].end;
        task.row_sums[(part.plane * task.pixels[kDepth].end + z) * height + r] =
            sum_of_distances(ssim, weights);
      }
    }
  }

  // Sum of (1 - SSIM) / 2 over a row of window centres, weighted by the mask.
  double sum_of_distances(const double* ssim, const double* weights) const {
    double sum = 0;
    for (int64_t i = 0; i < columns.size(); ++i) sum += weights[i] * (0.5 * (1 - ssim[i]));
    return sum;
  }

  // Writes the gradients of some slices. The ring must have the slopes of all windows that cover
  // them.
  void gradients(const Interval& slices) {
    for_each(centre_rows, [&](int64_t r, double* scratch) {
      for (int map = 0; map < task.slopes(); ++map) {
        std::array<double*, kTogether> to{};
        for (int b = 0; b < slices.size(); ++b) to[b] = along_depth.row(b, map, r);
        correlate_rows(kDepth, to, columns.size(), scratch, [&](int k) -> const double* {
          const int64_t z = slices.begin + k - task.half(kDepth);
          return centres.has(z) ? slopes.row(z % ring, map, r) : zeros.data();
        });
      }
    });
    const int64_t blocks = divide_up(part.rows.size(), kTogether);
    for_each({0, slices.size() * blocks}, [&](int64_t i, double* scratch) {
      const int64_t slice = i / blocks, first = part.rows.begin + i % blocks * kTogether;
      const int64_t end = std::min(first + kTogether, part.rows.end);
      double* const rows = scratch + kRowScratch * pitch;  // kTogether * kPartials rows
      for (int map = 0; map < task.slopes(); ++map) {
        std::array<double*, kTogether> to{};
        for (int64_t r = first; r < end; ++r)
          to[r - first] = rows + ((r - first) * kPartials + map) * pitch;
        const auto along = [&](int64_t r) -> const double* {
          return centre_rows.has(r) ? along_depth.row(slice, map, r) : zeros.data();
        };
        if (task.is_volume) {
          correlate_rows(kHeight, to, columns.size(), scratch,
                         [&](int k) { return along(first + k - task.half(kHeight)); });
        } else {
          std::copy_n(along(first), columns.size(), to[0]);
        }
      }
      for (int64_t r = first; r < end; ++r)
        write_gradient(row_of(slices.begin + slice, r), rows + (r - first) * kPartials * pitch,
                       scratch);
    });
  }
  static constexpr int kRowScratch = 4 + kPartials;

  // Filters the slopes along a row, combines them with the pixels and writes the gradients.
  void write_gradient(const Row& row, const double* slopes, double* scratch) const {
    double *s = scratch, *d = s + pitch, *w = d + pitch, *line = w + pitch;
    load_pixels(row, s, d, w);
    std::fill_n(line, pitch, 0.0);
    const int half = task.half(kWidth);
    std::array<double*, kPartials> slope;
    for (int map = 0; map < task.slopes(); ++map) {
      slope[map] = line + (1 + map) * pitch;
      std::copy_n(slopes + map * pitch, columns.size(), line + half + columns.begin);
      sweep(Correlate{line, 1, task.windows[kWidth].taps, half, slope[map]}, width);
    }
    const double* const rest_d = task.gradients == 2 ? slope[kConstantD] : zeros.data();
    const double of_group =
        mask_factor(task.mask_factors, part.plane / task.group_planes, kSsim) * task.grad_scale;
    for (int64_t i = 0; i < width; ++i) {
      const double factor = w[i] * of_group;
      const double by_s = (slope[kConstantS][i] + slope[kByVarS][i] * s[i]) * factor;
      const double by_d = (rest_d[i] + slope[kByVarD][i] * d[i]) * factor;
      // Hidden pixels have a gradient of 0, even if a window that covers them has a NaN.
      s[i] = w[i] == 0 ? 0 : by_s + by_d;
      d[i] = w[i] == 0 ? 0 : by_s - by_d;
    }
    task.grad[0].write(row, s);
    if (task.gradients == 2) task.grad[1].write(row, d);
  }
};

// Divides the wanted pixels or window centres into parts.
std::vector<Part> parts_of(const Task& task) {
  const Box& wanted = task.gradients > 0 ? task.pixels : task.centres;
  int64_t runs = 1, strips = 1;
  if (task.is_volume) {
    const int64_t of_a_row = (task.sums() + task.slopes()) * task.ring_slices() * task.pitch();
    strips = wanted[kHeight].size() / std::max(kRingNumbers / of_a_row, kLeastStrip);
  } else {
    runs = std::min(divide_up(kWantedParts, task.planes), wanted[kDepth].size() / kLeastRun);
  }
  const auto cut = [](const Interval& whole, int64_t count, int64_t i) {
    const auto [begin, end] = part(whole.begin, whole.end, count, i);
    return Interval{begin, end};
  };
  runs = std::max<int64_t>(runs, 1);
  strips = std::max<int64_t>(strips, 1);
  std::vector<Part> parts;
  for (int64_t plane = 0; plane < task.planes; ++plane)
    for (int64_t i = 0; i < runs * strips; ++i)
      parts.push_back(
          {plane, cut(wanted[kDepth], runs, i / strips), cut(wanted[kHeight], strips, i % strips)});
  return parts;
}

void run(const Task& task) {
  const std::vector<Part> parts = parts_of(task);
  const int64_t count = static_cast<int64_t>(parts.size());
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Stream(task, parts[i]).run();
  };
  if (task.is_volume && count < kManyParts) return some(0, count);
  torch::stable::parallel_for(0, count, 1, some);
}

}  // namespace

CpuDevice::Records sweep_separable(const Problem<double>& problem) {
  Task task(problem);
  CpuDevice::Records records;
  std::vector<double> rows;
  const bool sums = problem.wanted[kSsim];
  const int64_t each = task.pixels[kDepth].end * task.pixels[kHeight].end;
  if (problem.pass == Pass::kGradient) task.grad_scale *= problem.weight[kSsim];
  if (sums) {
    rows.resize(problem.planes * each);
    task.row_sums = rows.data();
  }
  run(task);
  for (int64_t plane = 0; sums && plane < problem.planes; ++plane) {
    const auto first = rows.begin() + plane * each;
    records.emplace_back();
    records.back().term[kSsim] = std::accumulate(first, first + each, 0.0);
  }
  return records;
}

}  // namespace ssimfast::cpu
