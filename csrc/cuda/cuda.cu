// The CUDA device of the ops (csrc/ops.h): turns problems into kernel launches.
//
// A loss takes two launches: the sweep, whose blocks write records of their sums, and the
// reduction, which adds the records in a fixed order. MS-SSIM takes one launch that pools the
// images, one that sweeps all levels and one that combines them; its backward one per image.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/launcher.h"
#include "cuda/plan.h"
#include "cuda/pool.cuh"
#include "cuda/pyramid.cuh"
#include "cuda/reduce.cuh"
#include "cuda/select.cuh"
#include "cuda/separable.cuh"
#include "ops.h"

namespace ssimfast::cuda {

extern template Fused select_sweep<7>(Dtype, Kind, bool);
extern template FusedLevels select_levels<7>(Kind);
extern template Fused select_sweep<9>(Dtype, Kind, bool);
extern template FusedLevels select_levels<9>(Kind);
extern template Fused select_sweep<11>(Dtype, Kind, bool);
extern template FusedLevels select_levels<11>(Kind);
extern template Fused select_beside_bytes<11>(Dtype, Kind, bool);
extern template Fused select_masked<11>(Dtype, Dtype, Kind);

namespace {

// All kernels but sweep_levels launch on drivers that allow 4 KiB of parameters only.
static_assert(sizeof(Job<double>) + 256 <= 4096 && sizeof(CombineLevels<double>) <= 4096 &&
              sizeof(Collapse<double>) <= 4096 && sizeof(LevelJobs) <= 32764);

// Number of blocks for a kernel that loops over items.
int64_t grid_of(int64_t items) {
  return std::min<int64_t>(items, std::numeric_limits<int32_t>::max());
}

// ---- choosing a kernel --------------------------------------------------------------------------

Kind kind_of(const Problem<float>& problem) {
  return problem.gradients == 0   ? Kind::kForward
         : problem.gradients == 1 ? Kind::kGradientX
                                  : Kind::kGradientBoth;
}

// True if a sweep computes the gradient of SSIM alone, with one weight for all planes.
bool is_plain(const Problem<float>& problem) {
  return problem.pass == Pass::kGradient && !problem.wants_pixel_terms() &&
         !problem.has_pixel_slope() && !problem.wanted[kContrastStructure] &&
         problem.weight[kContrastStructure] == 0 && problem.plane_weights == nullptr &&
         !problem.has_mask() &&
         std::none_of(problem.map, problem.map + kMaps, [](const View& map) { return map.data; });
}

// The fused kernel for a problem. `kernel` is null if there is none. Kernels for masks and for an
// 8-bit y exist for windows of 11 only. With other windows the separable path serves both: a copy
// of y in float32 would be faster there, but costs an image of memory, and few calls need it.
Fused fused_of(const Problem<float>& problem) {
  const Window<float>& window = problem.window();
  if (problem.is_volume || !problem.one_window ||
      window.taps[window.half()] >= float(kLargestCentreTap))
    return {};
  const Kind kind = kind_of(problem);
  const bool plain = is_plain(problem);
  if (problem.has_mask() || problem.x.dtype != problem.y.dtype) {
    if (window.size != 11) return {};
    return problem.has_mask() ? select_masked<11>(problem.x.dtype, problem.y.dtype, kind)
                              : select_beside_bytes<11>(problem.x.dtype, kind, plain);
  }
  if (window.size == 7) return select_sweep<7>(problem.x.dtype, kind, plain);
  if (window.size == 9) return select_sweep<9>(problem.x.dtype, kind, plain);
  if (window.size == 11) return select_sweep<11>(problem.x.dtype, kind, plain);
  return {};
}

// True if each row of (images, channels, height, ...) begins at a multiple of `elements` elements.
bool rows_are_aligned(const View& view, int64_t images, int64_t channels, int64_t height,
                      int64_t elements) {
  return reinterpret_cast<intptr_t>(view.data) % (elements * size_of(view.dtype)) == 0 &&
         (height == 1 || view.by_row % elements == 0) &&
         (channels == 1 || view.by_channel % elements == 0) &&
         (images == 1 || view.by_image % elements == 0);
}

// Number of neighbours in a row of an image that the fused kernel reads or writes at once: the
// largest of 4, 2 and 1 whose accesses are aligned and lie inside or outside of the image as a
// whole. 0 if neighbours are not contiguous.
int access_width(const View& image, const Problem<float>& problem) {
  if (image.by_column != 1 && problem.width > 1) return 0;
  const int64_t images = problem.planes / problem.channels;
  for (int width : {4, 2})
    if (problem.width % width == 0 &&
        rows_are_aligned(image, images, problem.channels, problem.height, width))
      return width;
  return 1;
}

FusedLevels levels_of(int window, Kind kind) {
  return window == 7   ? select_levels<7>(kind)
         : window == 9 ? select_levels<9>(kind)
                       : select_levels<11>(kind);
}

template <class A>
void check_size(const Problem<A>& problem, int64_t blocks) {
  constexpr int64_t kMostPixels = int64_t(1) << 30;  // kernels use 32-bit rows and columns
  const int64_t side = std::max(problem.depth, std::max(problem.height, problem.width));
  STD_TORCH_CHECK(side < kMostPixels, "ssimfast: a side of an image must be less than ",
                  kMostPixels, ", got ", side);
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31),
                  "ssimfast: too many blocks for one launch: ", blocks);
}

// ---- scale_ -------------------------------------------------------------------------------------

int64_t stride_or_zero(const Tensor& tensor, int64_t dimension) {
  return dimension < tensor.dim() ? tensor.stride(dimension) : 0;
}

// Dimensions of a gradient, outermost in memory first. Merges two dimensions if, in both tensors,
// the outer stride is the inner stride times the inner size.
std::vector<Dimension> axes_of(const Tensor& grad, const Tensor& upstream) {
  std::vector<Dimension> axes;
  for (int64_t i = 0; i < grad.dim(); ++i)
    if (grad.size(i) > 1)
      axes.push_back({grad.size(i), grad.stride(i), stride_or_zero(upstream, i)});
  std::stable_sort(axes.begin(), axes.end(),
                   [](const Dimension& a, const Dimension& b) { return a.grad > b.grad; });
  std::vector<Dimension> joined;
  for (const Dimension& axis : axes) {
    if (!joined.empty()) {
      Dimension& outer = joined.back();
      if (outer.grad == axis.size * axis.grad && outer.upstream == axis.size * axis.upstream) {
        outer = {outer.size * axis.size, axis.grad, axis.upstream};
        continue;
      }
    }
    joined.push_back(axis);
  }
  return joined;
}

// Parameter of scale_runs if its `run` is positive, else of scale_elements.
template <class A>
ScaleGrad<A> scale_grad_of(const ScaleRequest& request) {
  const Tensor& grad = request.grad;
  std::vector<Dimension> axes = axes_of(grad, request.upstream);
  ScaleGrad<A> p;
  p.grad = data<void>(grad);
  p.dtype = dtype_of(grad);
  p.upstream = numbers<A>(request.upstream);
  p.factor = request.factor;
  p.items = grad.numel();
  const int64_t piece = kPieceBytes / grad.element_size();
  if (axes.empty()) {
    p.run = 1;
  } else if (const Dimension& inner = axes.back();
             inner.grad == 1 && inner.upstream == 0 &&
             (axes.size() == 1 || inner.size >= piece / 4)) {  // else most threads would idle
    p.run = inner.size;
    axes.pop_back();
  }
  if (p.run > 0) {
    p.pieces = divide_up(p.run, piece);
    p.items = p.items / p.run * p.pieces;
  }
  p.axis_count = static_cast<int>(axes.size());
  std::copy(axes.begin(), axes.end(), p.axes);
  return p;
}

// ---- collapse_ ----------------------------------------------------------------------------------

template <class A>
Level<A> level_of(const Tensor& grad, Pooling pooling) {
  const PooledAxis rows(pooling, grad.size(2)), columns(pooling, grad.size(3));
  Level<A> level{.by_image = grad.stride(0),
                 .by_channel = grad.stride(1),
                 .by_row = grad.stride(2),
                 .by_column = grad.stride(3),
                 .height = static_cast<int>(grad.size(2)),
                 .width = static_cast<int>(grad.size(3)),
                 .row_shift = static_cast<int>(rows.shift),
                 .column_shift = static_cast<int>(columns.shift)};
  if (pooling == Pooling::kReplicate) {
    if (level.height % 2 == 1) level.twice_row = level.height - 1;
    if (level.width % 2 == 1) level.twice_column = level.width - 1;
  }
  return level;
}

// column_shift: number of columns by which the first patch extends beyond the image.
template <class A>
Patches<A> patches_of(const View& view, int64_t images, int64_t channels, int64_t height,
                      int column_shift) {
  const bool packed = column_shift == 0 && view.by_column == 1 &&
                      rows_are_aligned(view, images, channels, height, kPatch);
  return {view, packed};
}

template <class A>
Collapse<A> collapse_of(const CollapseRequest& request) {
  const std::vector<Tensor>& grads = request.grads;
  const Tensor& finest = grads[0];
  Collapse<A> p;
  p.level_count = static_cast<int>(grads.size());
  for (size_t j = 0; j < grads.size(); ++j) {
    p.levels[j] = level_of<A>(grads[j], Pooling(request.pooling));
    if (j > 0) p.levels[j].grad = numbers<A>(grads[j]);
  }
  // A patch covers one pixel of level 2, even if the pyramid has no such level.
  const Level<A> next = grads.size() > 1 ? p.levels[1] : Level<A>{};
  p.row_shift = p.levels[0].row_shift + 2 * next.row_shift;
  p.column_shift = p.levels[0].column_shift + 2 * next.column_shift;
  p.rows_of_patches = static_cast<int>(divide_up(finest.size(2) + p.row_shift, kPatch));
  p.patches_per_row = static_cast<int>(divide_up(finest.size(3) + p.column_shift, kPatch));
  const auto patches = [&](const View& view) {
    return patches_of<A>(view, finest.size(0), finest.size(1), finest.size(2), p.column_shift);
  };
  p.grad = patches(written_view_of(finest));
  if (request.x.has_value()) {
    p.x = patches(view_of(*request.x));
    p.y = patches(view_of(*request.y));
    const ElementRange range = range_of_y(*request.x, *request.y, request.low, request.scale);
    p.y_low = range.low;
    p.y_step = range.step;
  }
  p.slopes = numbers<double>(request.slopes);
  p.upstream = numbers<A>(request.upstream);
  p.upstream_by_image = stride_or_zero(request.upstream, 0);
  p.upstream_by_channel = stride_or_zero(request.upstream, 1);
  p.scale = request.scale;
  const double per_pixel = double(request.upstream.numel()) / double(finest.numel());
  for (int i = 0; i < kPixelTerms; ++i) p.pixel_weights[i] = request.pixel_weights[i] * per_pixel;
  p.rows = numbers<A>(request.rows);
  p.columns = numbers<A>(request.columns);
  p.channels = finest.size(1);
  return p;
}

// ---- pooling ------------------------------------------------------------------------------------

// Pools the images of problem `first` so many times.
template <class A>
Pool<A> pool_of(const std::vector<Problem<A>>& problems, size_t first, size_t count) {
  const Problem<A>& source = problems[first];
  Pool<A> p;
  for (size_t level = 0; level < count; ++level) {
    const Problem<A>& from = problems[first + level];
    p.levels[level] = {{from.pooled[0], from.pooled[1]}, from.pooled_rows, from.pooled_columns};
    p.row_shift += int(from.pooled_rows.shift) << level;
    p.column_shift += int(from.pooled_columns.shift) << level;
  }
  const auto patches = [&](const View& view) {
    return patches_of<A>(view, source.planes / source.channels, source.channels, source.height,
                         p.column_shift);
  };
  p.images[0] = patches(source.x);
  p.images[1] = patches(source.y);
  p.low = source.low;
  p.scale = source.scale;
  p.y_low = source.y_low;
  p.y_step = source.y_step;
  p.height = static_cast<int>(source.height);
  p.width = static_cast<int>(source.width);
  p.channels = source.channels;
  p.replicate = source.pooling == Pooling::kReplicate;
  p.level_count = static_cast<int>(count);
  p.across = static_cast<int>(divide_up(source.width + p.column_shift, kPoolSide));
  p.squares = divide_up(source.height + p.row_shift, kPoolSide) * p.across;
  p.items = source.planes * p.squares;
  return p;
}

// ---- plans --------------------------------------------------------------------------------------

// make_plans, which takes some microseconds, for shapes that come again.
std::vector<Plan> plans_of(const std::vector<Extent>& extents, const DeviceLimits& device,
                           int (*shared_bytes)(int threads)) {
  using Key = std::vector<int64_t>;
  constexpr size_t kMostPlans = 256;
  thread_local std::map<Key, std::vector<Plan>> known;
  Key key{device.multiprocessors, device.shared_bytes};
  for (const Extent& e : extents)
    key.insert(key.end(), {e.planes, e.channels, e.height, e.width, e.margin, e.window, e.gradients,
                           e.masked});
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  if (known.size() >= kMostPlans) known.clear();
  return known[key] = make_plans(extents, device, shared_bytes);
}

}  // namespace

// The Device of csrc/ops.h. Serves one call, on the device and the current stream of a tensor.
class CudaDevice {
 public:
  // Records of a sweep. `memory` is empty if the sweep computes no sum.
  struct Records {
    std::optional<Tensor> memory;
    int64_t tiles = 0;  // records per plane

    template <class A>
    RecordList<A> of_planes(int64_t planes) const {
      return {memory ? static_cast<const StoredSum<A>*>(memory->const_data_ptr()) : nullptr,
              planes * tiles};
    }
  };

  // Allocates the images of pyramid levels as new tensors.
  struct Levels {
    std::vector<Tensor> new_images(const Tensor& x, const std::vector<Tensor>&, int64_t pooling,
                                   int, bool) const {
      const std::vector<int64_t> shape = pooled_shape(x, pooling);
      const auto image = [&] { return new_tensor(x, shape, arithmetic_dtype(x)); };
      return {image(), image()};
    }
  };

  static constexpr bool kDoubleByAxis = false;

  explicit CudaDevice(const Tensor& like) : like(like), launch(like) {}

  template <class A>
  std::vector<Records> sweep(const std::vector<Problem<A>>& problems) const {
    check_size(problems[0], 0);
    pool(problems);
    std::vector<Records> records;
    if constexpr (std::is_same_v<A, float>) {
      // One launch has the levels of float32 images with the same gradients: all but the finest of
      // a half type, or one that is swept again.
      const Problem<A>&finest = problems[0], &coarsest = problems.back();
      const bool alone = finest.x.dtype != Dtype::kFloat32 || finest.y.dtype != Dtype::kFloat32 ||
                         finest.gradients != coarsest.gradients;
      if (problems.size() > 1 + size_t(alone) && fused_of(coarsest).kernel != nullptr &&
          Launcher::allows_large_parameters()) {
        if (alone) records.push_back(sweep_one(finest));
        const std::vector<Problem<A>> rest(problems.begin() + alone, problems.end());
        for (Records& level : sweep_together(rest)) records.push_back(std::move(level));
        return records;
      }
    }
    for (const Problem<A>& problem : problems) records.push_back(sweep_one(problem));
    return records;
  }

  template <class A>
  void reduce(const std::vector<Records>& records, const Reduction<A>& reduction) const {
    if (reduction.slopes == nullptr) {
      finish(records[0], reduction);
    } else {
      combine(records, reduction);
    }
  }

  void scale(const ScaleRequest& request) const {
    dispatch_arithmetic(request.grad, [&](auto zero) {
      using A = decltype(zero);
      const ScaleGrad<A> p = scale_grad_of<A>(request);
      if (p.run > 0) {
        launch(scale_runs<A>, p.items, kScaleThreads, 0, p);
      } else {
        launch(scale_elements<A>, grid_of(divide_up(p.items, kScaleThreads)), kScaleThreads, 0, p);
      }
    });
  }

  // The sum overwrites the finest gradient, so each pixel is read before it is written.
  void collapse(const CollapseRequest& request) const {
    const Tensor& finest = request.grads[0];
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 2 * kPatch;
    STD_TORCH_CHECK(finest.size(2) <= kMost && finest.size(3) <= kMost,
                    "ssimfast: an image has at most ", kMost, " rows and columns");
    dispatch_arithmetic(finest, [&](auto zero) {
      using A = decltype(zero);
      Collapse<A> p = collapse_of<A>(request);
      const int64_t patches = int64_t{p.rows_of_patches} * p.patches_per_row;
      const int threads =
          static_cast<int>(std::min<int64_t>(kCollapseThreads, divide_up(patches, kWarp) * kWarp));
      p.pieces = divide_up(patches, threads);
      p.items = finest.size(0) * p.channels * p.pieces;
      launch(collapse_pyramid<A>, grid_of(p.items), threads, PlaneState<A>::kBytes, p);
    });
  }

 private:
  template <class A>
  Tensor scratch(int64_t numbers) const {
    constexpr bool kDouble = sizeof(A) == sizeof(double);
    return new_tensor(like, {numbers}, kDouble ? ScalarType::Double : ScalarType::Float);
  }

  // Allocates records if the job wants any sum.
  template <class A>
  Records new_records(Job<A>& job, int64_t tiles) const {
    check_size(job, job.planes * tiles);
    Records records;
    if (std::none_of(job.wanted, job.wanted + kTerms, [](bool wanted) { return wanted; }))
      return records;
    records = {scratch<A>(2 * job.planes * tiles * kTerms), tiles};
    job.records = data<StoredSum<A>>(*records.memory);
    return records;
  }

  template <class A>
  Records sweep_one(const Problem<A>& problem) const {
    if constexpr (std::is_same_v<A, float>) {
      if (const Fused fused = fused_of(problem); fused.kernel != nullptr)
        return sweep_fused(problem, fused);
    }
    return problem.has_mask() ? sweep_separable<A, true>(problem)
                              : sweep_separable<A, false>(problem);
  }

  Job<float> fused_job(const Problem<float>& problem) const {
    Job<float> job{problem};
    for (int i = 0; i < job.window().size; ++i)
      job.weighted_taps[i] = float(4 * double(job.weight[kSsim]) * double(job.grad_scale) *
                                   double(job.window().taps[i]));
    job.load_width = std::min(access_width(job.x, job), access_width(job.y, job));
    if (job.has_mask()) job.load_width = std::min(job.load_width, access_width(job.mask, job));
    job.store_width = 4;
    for (int i = 0; i < job.gradients; ++i)
      job.store_width = std::min(job.store_width, access_width(job.grad[i], job));
    return job;
  }

  static Extent extent_of(const Problem<float>& problem) {
    return {problem.planes,          problem.channels,      problem.height,    problem.width,
            problem.window().margin, problem.window().size, problem.gradients, problem.has_mask()};
  }

  Records sweep_fused(const Problem<float>& problem, const Fused& fused) const {
    Job<float> job = fused_job(problem);
    const Plan plan = plans_of({extent_of(job)}, launch.limits(), fused.shared_bytes)[0];
    const Records records = new_records(job, plan.tiles.divisor);
    launch(fused.kernel, job.planes * plan.tiles.divisor, plan.threads,
           fused.shared_bytes(plan.threads), job, plan);
    return records;
  }

  std::vector<Records> sweep_together(const std::vector<Problem<float>>& problems) const {
    std::vector<Extent> extents;
    for (const Problem<float>& problem : problems) extents.push_back(extent_of(problem));
    const auto shared_bytes = fused_of(problems[0]).shared_bytes;
    const std::vector<Plan> plans = plans_of(extents, launch.limits(), shared_bytes);
    LevelJobs all{static_cast<int>(problems.size())};
    std::vector<Records> records;
    int64_t blocks = 0;
    for (size_t level = 0; level < problems.size(); ++level) {
      const int64_t tiles = plans[level].tiles.divisor;
      Job<float>& job = all.jobs[level] = fused_job(problems[level]);
      all.plans[level] = plans[level];
      all.first_block[level] = static_cast<int>(blocks);
      records.push_back(new_records(job, tiles));
      blocks += job.planes * tiles;
    }
    check_size(problems[0], blocks);
    const int threads = plans[0].threads;
    launch(levels_of(problems[0].window().size, kind_of(problems[0])), blocks, threads,
           shared_bytes(threads), all);
    return records;
  }

  // Intermediate images alternate between two buffers.
  template <class A, bool kMasked>
  Records sweep_separable(const Problem<A>& problem) const {
    Job<A> job{problem};
    const int64_t pixels = job.depth * job.height * job.width;
    const PixelGrid grid{divide_up(pixels, kPixelThreads)};
    const Records records = new_records(job, grid.tiles);
    const int64_t blocks = job.planes * grid.tiles;
    std::vector<Tensor> memory;  // must live until the launches are queued
    const auto numbers = [&](int64_t a_pixel) {
      memory.push_back(scratch<A>(job.planes * pixels * a_pixel));
      return data<A>(memory.back());
    };
    const auto intermediate = [&] {
      auto* const values = reinterpret_cast<Four<A>*>(numbers(4));
      return Intermediate<A>{values, kMasked ? numbers(1) : nullptr};
    };
    const bool gradient = job.gradients > 0;
    Intermediate<A> from = intermediate(), to{};
    if (gradient || job.is_volume) to = intermediate();
    const Line in_row = line_of(job, kWidth), in_column = line_of(job, kHeight);
    const Line across_slices = line_of(job, kDepth);
    launch(row_moments<A, kMasked>, blocks, kPixelThreads, 0, job, grid, in_row, from);
    if (job.is_volume) {
      launch(column_moments<A, kMasked>, blocks, kPixelThreads, 0, job, grid, in_column, from, to);
      std::swap(from, to);
    }
    launch(statistics<A, kMasked>, blocks, kPixelThreads, sums_bytes<A>(kPixelThreads), job, grid,
           job.is_volume ? across_slices : in_column, from, gradient ? to.values : nullptr);
    if (gradient) {
      const auto adjoint = [&](const Line& line) {
        std::swap(from, to);
        launch(axis_adjoint<A, kMasked>, blocks, kPixelThreads, 0, job, grid, line, from.values,
               to.values);
      };
      if (job.is_volume) adjoint(across_slices);
      adjoint(in_column);
      launch(gradients<A, kMasked>, blocks, kPixelThreads, 0, job, grid, in_row, to.values);
    }
    return records;
  }

  // Threads of a block that adds so many items, each by a thread (or by a warp).
  static int sum_threads(int64_t items) {
    return static_cast<int>(
        std::clamp<int64_t>(divide_up(items, kWarp) * kWarp, kWarp, kMostSumThreads));
  }

  // Computes the images of coarser levels, kPooledAtOnce in a launch.
  template <class A>
  void pool(const std::vector<Problem<A>>& problems) const {
    size_t levels = 0;
    while (levels < problems.size() && problems[levels].pooling != Pooling::kNone) ++levels;
    for (size_t first = 0; first < levels; first += kPooledAtOnce) {
      const Pool<A> p = pool_of(problems, first, std::min<size_t>(levels - first, kPooledAtOnce));
      launch(pool_pyramid<A>, divide_up(p.items * kPoolLanes, kPoolThreads), kPoolThreads, 0, p);
    }
  }

  // Folds long lists of records first, because a single block per group adds the rest.
  template <class A>
  void finish(const Records& records, const Reduction<A>& reduction) const {
    constexpr int64_t kLongList = 1 << 16, kFoldedRun = 1 << 12;
    const int64_t planes = reduction.planes / reduction.groups;
    Finish<A> p{records.of_planes<A>(planes), reduction, reduction.positions[0] * double(planes),
                1 / reduction.count};
    std::optional<Tensor> memory;
    if (p.from.count > kLongList) {
      FoldRecords<A> fold{p.from, reduction.groups, kFoldedRun, {reduction.wanted}, nullptr};
      memory = scratch<A>(2 * fold.groups * fold.runs() * kTerms);
      fold.out = data<StoredSum<A>>(*memory);
      launch(fold_records<A>, fold.groups * fold.runs(), kMostSumThreads,
             sums_bytes<A>(kMostSumThreads), fold);
      p.from = {fold.out, fold.runs()};
    }
    const int threads = sum_threads(divide_up(p.from.count, 4));
    launch(finish_terms<A>, reduction.groups, threads, sums_bytes<A>(threads), p);
  }

  template <class A>
  void combine(const std::vector<Records>& records, const Reduction<A>& reduction) const {
    const int64_t planes = reduction.planes / reduction.groups;
    const int64_t together = reduction.joint ? reduction.channels : 1, products = planes / together;
    CombineLevels<A> p{.to = reduction,
                       .together = together,
                       .products = products,
                       .per_product = 1 / double(products),
                       .per_plane = 1 / double(planes)};
    for (int level = 0; level < reduction.levels; ++level) {
      p.levels[level] = records[level].of_planes<A>(1);
      p.per_position[level] = 1 / (reduction.positions[level] * double(together));
    }
    const int threads = sum_threads(products * reduction.levels * kWarp);
    launch(combine_levels<A>, reduction.groups, threads,
           std::max(kItemBytes, sums_bytes<double>(threads)), p);
  }

  const Tensor like;
  const Launcher launch;
};

int runtime_version() { return kToolkit; }

}  // namespace ssimfast::cuda

SSIMFAST_CUDA_LIBRARY(m) {
  using ssimfast::cuda::CudaDevice;
  if (!ssimfast::cuda::is_chosen()) return;
  SSIMFAST_REGISTER(m, CudaDevice);
}
