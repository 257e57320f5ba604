// The CUDA kernels behind the ops of ssimfast/schemas.py: tensors in, launches, tensors out.
//
// A loss is two launches: the sweep, whose blocks leave their sums in places of their own, and the
// reduction, which adds them in a fixed order. MS-SSIM is a sweep a scale and two launches more.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../request.h"
#include "any_window.cuh"
#include "host.h"
#include "plan.h"
#include "reduce.cuh"
#include "select.cuh"

namespace ssimfast::cuda {

extern template Fused select_sweep<7>(Dtype, Pass, bool);
extern template Fused select_sweep<9>(Dtype, Pass, bool);
extern template Fused select_sweep<11>(Dtype, Pass, bool);

namespace {

template <class A>
Job<A> make_job(const Tensor& x, const Tensor& y, const Settings& settings) {
  constexpr int64_t kMostPixels = int64_t(1) << 30;  // of a side: rows and columns are of 32 bits
  STD_TORCH_CHECK(x.size(2) < kMostPixels && x.size(3) < kMostPixels,
                  "ssimfast: a side of an image must be less than ", kMostPixels, ", got ",
                  x.size(2), " x ", x.size(3));
  Job<A> job{};
  job.x = image_of<A>(x);
  job.y = image_of<A>(y);
  job.planes = x.size(0) * x.size(1);
  job.channels = x.size(1);
  job.height = x.size(2);
  job.width = x.size(3);
  job.window = static_cast<int>(settings.size());
  job.margin = settings.margin();
  for (int i = 0; i < job.window; ++i) job.taps[i] = A(settings.window[i]);
  job.twice_c1 = A(2 * settings.c1);
  job.twice_c2 = A(2 * settings.c2);
  job.low = A(settings.low);
  job.scale = A(settings.scale);
  job.grad_scale = A(1);
  return job;
}

bool any_pixel_term(const Job<float>& job) {
  bool any = false;
  for (int t = kL1; t < kTerms; ++t) any = any || job.wanted[t] || job.weight[t] != 0;
  return any;
}

// The fused kernel of a job, if there is one.
Fused fused_of(const Job<float>& job, Pass pass) {
  const bool only_ssim = !any_pixel_term(job) && !job.wanted[kContrastStructure] &&
                         job.weight[kContrastStructure] == 0;
  const bool plain = only_ssim && job.plane_weight == nullptr && job.upstreams == 0 &&
                     job.pooling == Pooling::kNone;
  if (job.taps[job.window / 2] >= float(kLargestCentreTap)) return {};
  if (job.window == 7) return select_sweep<7>(job.x.dtype, pass, plain);
  if (job.window == 9) return select_sweep<9>(job.x.dtype, pass, plain);
  if (job.window == 11) return select_sweep<11>(job.x.dtype, pass, plain);
  return {};
}

void check_grid(int64_t blocks) {
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31),
                  "ssimfast: too many blocks for one launch: ", blocks);
}

// The sums that the tiles of a sweep left.
struct Records {
  Tensor of;
  int64_t tiles;  // of a plane

  const double* data() const { return static_cast<const double*>(of.const_data_ptr()); }
};

// Sweeps over the images; with sums, leaves them tile by tile, plane by plane.
template <class A>
std::optional<Records> sweep_images(Job<A> job, Pass pass, bool with_sums, const Tensor& x,
                                    const Launcher& launch) {
  std::optional<Records> records;
  const auto new_records = [&](int64_t tiles) {
    check_grid(job.planes * tiles);
    if (!with_sums) return;
    records = {output(x, {job.planes * tiles * kTerms}, ScalarType::Double), tiles};
    job.partial = data<double>(records->of);
  };
  const bool gradient = pass != Pass::kForward;
  if constexpr (std::is_same_v<A, float>) {
    if (const Fused fused = fused_of(job, pass); fused.kernel != nullptr) {
      const int halo = job.window / 2;
      const Plan plan =
          make_plan({job.planes, job.height, job.width, job.margin, halo, gradient ? halo : 0},
                    launch.multiprocessors());
      const int64_t tiles = int64_t(plan.strips) * plan.runs;
      new_records(tiles);
      const int64_t shared_bytes = fused.shared_bytes(plan.threads);
      if (shared_bytes > kSharedOfAnyKernel)
        launch.allow_shared(fused.kernel, fused.shared_bytes(kMostThreads));
      launch(fused.kernel, job.planes * tiles, plan.threads, shared_bytes, job, plan);
      return records;
    }
  }
  const PixelGrid grid{divide_up(job.height * job.width, kPixelThreads)};
  new_records(grid.tiles);
  const int64_t blocks = job.planes * grid.tiles;
  const ScalarType dtype = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
  const auto intermediate = [&] {
    return output(x, {job.planes * job.height * job.width * 4}, dtype);
  };
  const Tensor first = intermediate();
  std::optional<Tensor> second;
  if (gradient) second = intermediate();
  constexpr int64_t kSums = kPixelThreads / kWarp * kTerms * sizeof(double);
  launch(row_moments<A>, blocks, kPixelThreads, 0, job, grid, data<Four<A>>(first));
  launch(statistics<A>, blocks, kPixelThreads, kSums, job, grid, data<Four<A>>(first),
         gradient ? data<Four<A>>(*second) : nullptr);
  if (gradient) {
    launch(column_adjoint<A>, blocks, kPixelThreads, 0, job, grid, data<Four<A>>(*second),
           data<Four<A>>(first));
    launch(gradients<A>, blocks, kPixelThreads, 0, job, grid, data<Four<A>>(first),
           pass == Pass::kGradientBoth ? 2 : 1);
  }
  const int64_t pooled = job.planes * job.pooled_rows.size * job.pooled_columns.size;
  if (job.pooling != Pooling::kNone && pooled > 0)
    launch(pool_pair<A>, divide_up(pooled, kPixelThreads), kPixelThreads, 0, job);
  return records;
}

Pass pass_of(int64_t gradients) {
  return gradients == 0 ? Pass::kForward : gradients == 1 ? Pass::kGradientX : Pass::kGradientBoth;
}

template <class A>
void set_gradients(Job<A>& job, const std::vector<Tensor>& grads) {
  for (size_t i = 0; i < grads.size(); ++i) job.grad[i] = image_of<A>(grads[i]);
}

// What `similarity` asks for, for one pair of images.
template <class A>
void set_request(Job<A>& job, const Tensor& x, const Settings& settings, const Request& request) {
  const double per_pixel = positions_per_pixel(x, settings), bound = request.bound();
  job.grad_scale = A(request.grad_scale(settings));
  job.plane_weight = optional_numbers<A>(request.plane_weights, x, 2 * job.planes, "plane_weights");
  job.rows = optional_numbers<A>(request.rows, x, x.size(2), "rows");
  job.columns = optional_numbers<A>(request.columns, x, x.size(3), "columns");
  for (int t = 0; t < kTerms; ++t) {
    job.weight[t] = A(request.weights[t] / bound * (t >= kL1 ? per_pixel : 1));
    job.wanted[t] = request.wants(t);
  }
  for (int i = 0; i < job.window; ++i)
    job.weighted_taps[i] =
        A(4 * request.weights[kSsim] / bound * request.grad_scale(settings) * settings.window[i]);
}

std::vector<Tensor> new_pooled(const Tensor& x, int64_t pooling) {
  std::vector<Tensor> pooled;
  for (int i = 0; i < (Pooling(pooling) == Pooling::kNone ? 0 : 2); ++i)
    pooled.push_back(output(x, pooled_shape(x, pooling), arithmetic_dtype(x)));
  return pooled;
}

template <class A>
void set_pooled(Job<A>& job, int64_t pooling, const std::vector<Tensor>& pooled) {
  job.pooling = Pooling(pooling);
  job.pooled_rows = PooledAxis(job.pooling, job.height);
  job.pooled_columns = PooledAxis(job.pooling, job.width);
  for (size_t i = 0; i < pooled.size(); ++i) job.pooled[i] = data<A>(pooled[i]);
}

Tensor new_terms(const Tensor& x, int64_t kept) {
  std::vector<int64_t> shape = kept_shape(x, kept);
  shape.push_back(kTerms);
  return output(x, shape, ScalarType::Double);
}

ValueOf value_of(const std::vector<double>& weights, double constant) {
  ValueOf value_of{{}, constant};
  std::copy(weights.begin(), weights.end(), value_of.weights);
  return value_of;
}

// Long lists of records become short ones, for one block adds the rest.
constexpr int64_t kLongList = 1 << 16, kFoldedRun = 1 << 12;

struct Groups {
  int64_t groups, count;
  const double* data;
};

Groups folded(const Records& records, int64_t groups, int64_t planes, int wanted,
              std::optional<Tensor>& scratch, const Launcher& launch) {
  FoldRecords fold{records.data(), groups, planes * records.tiles, kFoldedRun, wanted, nullptr};
  if (fold.count <= kLongList) return {groups, fold.count, fold.records};
  scratch = output(records.of, {groups * fold.runs() * kTerms}, ScalarType::Double);
  fold.out = data<double>(*scratch);
  launch(fold_records, std::min<int64_t>(groups * fold.runs(), 1 << 16), kSumThreads, kSumShared,
         fold);
  return {groups, fold.runs(), fold.out};
}

std::vector<Tensor> maps(const Tensor& x, const Tensor& y, const Settings& settings,
                         bool components) {
  check(x, y, settings);
  std::vector<Tensor> out;
  for (int i = 0; i <= int(components); ++i)
    out.push_back(output(x, map_shape(x, settings), arithmetic_dtype(x)));
  if (x.numel() == 0) return out;
  const Launcher launch(x);
  dispatch_arithmetic(x, [&](auto zero) {
    using A = decltype(zero);
    Job<A> job = make_job<A>(x, y, settings);
    job.maps = static_cast<int>(out.size());
    for (int i = 0; i < job.maps; ++i) job.map[i] = image_of<A>(out[i]);
    sweep_images(job, Pass::kForward, false, x, launch);
  });
  return out;
}

std::vector<Tensor> map_gradients(const std::vector<Tensor>& upstream, const Tensor& x,
                                  const Tensor& y, const Settings& settings, int64_t gradients) {
  check(x, y, settings);
  check_upstream_maps(upstream, x, settings, gradients);
  const std::vector<Tensor> grads = poisoned(new_gradients(x, y, gradients));
  if (x.numel() == 0) return grads;
  const Launcher launch(x);
  dispatch_arithmetic(x, [&](auto zero) {
    using A = decltype(zero);
    Job<A> job = make_job<A>(x, y, settings);
    job.upstreams = static_cast<int>(upstream.size());
    for (int i = 0; i < job.upstreams; ++i) job.upstream[i] = image_of<A>(upstream[i]);
    job.grad_scale = job.scale;
    set_gradients(job, grads);
    sweep_images(job, pass_of(gradients), false, x, launch);
  });
  return grads;
}

Similarity similarity(const Tensor& x, const Tensor& y, const Settings& settings,
                      const Request& request) {
  check(x, y, settings);
  check(request, x);
  const Tensor value = output(x, kept_shape(x, request.kept), arithmetic_dtype(x));
  const Tensor terms = new_terms(x, request.kept);
  const std::vector<Tensor> pooled = new_pooled(x, request.pooling);
  const std::vector<Tensor> grads = poisoned(new_gradients(x, y, request.gradients));
  if (x.numel() == 0) {
    Tensor constant = value, zeros = terms;
    torch::stable::fill_(constant, request.constant);
    torch::stable::fill_(zeros, 0);
    return {value, terms, grads, pooled};
  }
  const Launcher launch(x);
  dispatch_arithmetic(x, [&](auto zero) {
    using A = decltype(zero);
    Job<A> job = make_job<A>(x, y, settings);
    set_request(job, x, settings, request);
    set_pooled(job, request.pooling, pooled);
    set_gradients(job, grads);
    const Records records = *sweep_images(job, pass_of(request.gradients), true, x, launch);
    const int64_t groups = value.numel(), planes = job.planes / groups;
    std::optional<Tensor> scratch;
    const Groups sums =
        folded(records, groups, planes, static_cast<int>(request.wanted), scratch, launch);
    const std::vector<int64_t> positions = map_shape(x, settings);
    const FinishTerms<A> finish{sums.data,
                                sums.groups,
                                sums.count,
                                double(positions[2] * positions[3] * planes),
                                double(request.count),
                                positions_per_pixel(x, settings),
                                static_cast<int>(request.wanted),
                                value_of(request.weights, request.constant),
                                data<double>(terms),
                                data<A>(value)};
    launch(finish_terms<A>, std::min<int64_t>(groups, 1 << 20), kSumThreads, kSumShared, finish);
  });
  return {value, terms, grads, pooled};
}

// All scales of MS-SSIM and what makes one loss of them: see `_compose_scales` in ssimfast/ops.py,
// which is the same in terms of the other ops.
SweptScales sweep_scales(Tensor x, Tensor y, Settings settings, const ScalesRequest& request) {
  check(request, x);
  const Request finest = request.sweep_of(0);
  check_scale(x, y, settings, finest, 0);
  const int scales = request.scales();
  const int64_t batch = x.size(0), channels = x.size(1), planes = batch * channels;
  const ScalarType dtype = arithmetic_dtype(x);
  const Tensor value = output(x, kept_shape(x, request.kept), dtype);
  const Tensor terms = new_terms(x, request.kept);
  const Tensor slopes = output(x, {batch, channels, scales}, ScalarType::Double);
  const Tensor plane_terms = output(x, {planes * kTerms}, ScalarType::Double);
  const Tensor finest_weights = output(x, request.finest_weights_shape(x), dtype);
  std::vector<Tensor> grads;
  std::vector<Records> records;  // what must live until the launches are queued
  const Launcher launch(x);
  dispatch_arithmetic(x, [&](auto zero) {
    using A = decltype(zero);
    CombinePlanes<A> combine{};
    combine.scale_count = scales;
    combine.groups = request.joint ? batch : planes;
    combine.planes = request.joint ? channels : 1;
    combine.absolute = request.absolute;
    combine.slope = request.weights[kContrastStructure] / double(planes / value.numel());
    combine.wanted = static_cast<int>(finest.wanted);
    combine.positions_per_pixel = positions_per_pixel(x, settings);
    combine.plane_terms = data<double>(plane_terms);
    combine.slopes = data<double>(slopes);
    if (request.late) combine.finest_weights = data<A>(finest_weights);
    combine.by_ssim = request.weights[kSsim];
    for (int j = 0; j < scales; ++j) {
      const Request sweep = request.sweep_of(j);
      check_scale(x, y, settings, sweep, j);
      Job<A> job = make_job<A>(x, y, settings);
      set_request(job, x, settings, sweep);
      const std::vector<Tensor> pooled = new_pooled(x, sweep.pooling);
      set_pooled(job, sweep.pooling, pooled);
      const std::vector<Tensor> by_images = poisoned(new_gradients(x, y, sweep.gradients));
      set_gradients(job, by_images);
      records.push_back(*sweep_images(job, pass_of(sweep.gradients), true, x, launch));
      const std::vector<int64_t> positions = map_shape(x, settings);
      combine.scales[j] = {records[j].data(), records[j].tiles,
                           double(positions[2] * positions[3])};
      combine.exponents[j] = request.scale_weights[j];
      grads.insert(grads.end(), by_images.begin(), by_images.end());
      if (pooled.empty()) break;
      x = pooled[0];
      y = pooled[1];
      settings.low = 0;
      settings.scale = 1;
    }
    combine.value_positions = combine.scales[0].positions * double(planes) / double(value.numel());
    launch(combine_planes<A>, std::min<int64_t>(combine.groups, 1 << 20), kSumThreads, kSumShared,
           combine);
    const CombineGroups<A> combined{
        combine.plane_terms,    value.numel(),
        planes / value.numel(), value_of(request.weights, request.constant),
        data<double>(terms),    data<A>(value)};
    launch(combine_groups<A>, std::min<int64_t>(combined.groups, 1 << 20), kSumThreads, kSumShared,
           combined);
  });
  return {value, terms, slopes, finest_weights, grads};
}

}  // namespace

struct Cuda {
  static constexpr auto maps = cuda::maps;
  static constexpr auto map_gradients = cuda::map_gradients;
  static constexpr auto similarity = cuda::similarity;
  static constexpr auto sweep_scales = cuda::sweep_scales;
};

#if !defined(SSIMFAST_EMULATED)
// Of the compiler: 13000 is CUDA 13.0.
int runtime_version() { return CUDART_VERSION; }
#endif

}  // namespace ssimfast::cuda

SSIMFAST_CUDA_LIBRARY(m) {
  if (!ssimfast::cuda::is_chosen()) return;
  SSIMFAST_REGISTER_OPS(m, ssimfast::cuda::Cuda);
}
