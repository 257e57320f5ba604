// The CPU as a Device of csrc/ops.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tile.h"
#include "ops.h"

namespace ssimfast::cpu {

class CpuDevice {
 public:
  using Records = std::vector<TileSums>;  // one per tile, ordered by plane

  // The images of coarser levels use the memory of the finest gradients, which sweep() writes last.
  // A step of MS-SSIM then allocates only the gradients of all levels, 4/3 of an image.
  // (Half-precision images need a little more, because they are pooled to float32.) The extra pass
  // that pools the finest images is much cheaper than a sweep.
  class Levels {
   public:
    // Allocates both images of the next level, in the memory of `by_images` if they fit.
    std::vector<Tensor> new_images(const Tensor& x, const std::vector<Tensor>& by_images,
                                   int64_t pooling, int level, bool twice);

   private:
    struct Part {
      char* data;
      int64_t size;
    };
    std::vector<Tensor> tensors;
    std::vector<Part> parts;

    Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape);
  };

  explicit CpuDevice(const Tensor&) {}

  // The separable path computes in double (separable.cpp says why).
  static constexpr bool kDoubleByAxis = true;

  template <class A>
  std::vector<Records> sweep(const std::vector<Problem<A>>& problems);
  template <class A>
  void reduce(const std::vector<Records>& records, const Reduction<A>& reduction);
  void scale(const ScaleRequest& request);
  void collapse(const CollapseRequest& request);
};

// Sweeps volumes, and images with different windows along their axes (separable.cpp). Returns one
// record per plane if sums are wanted, else none.
CpuDevice::Records sweep_separable(const Problem<double>& problem);

}  // namespace ssimfast::cpu
