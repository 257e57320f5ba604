// The CPU as a device of csrc/ops.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tile.h"
#include "ops.h"

namespace ssimfast::cpu {

class CpuDevice {
 public:
  using Records = std::vector<TileSums>;  // of all tiles, plane by plane

  // The images of levels lie in memory of the finest gradients, which are written last: a step of
  // MS-SSIM then needs the gradients of all levels, 4/3 of an image, and nothing else. Pooling
  // alone takes a small part of the time of a sweep. (Half types are pooled to float, which needs
  // some memory of its own.)
  static constexpr bool kFinestLast = true;

  class Levels {
   public:
    // Both images of the next level, in the memory of `by_images` if they fit.
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
  static bool computes_in_double(bool is_volume, bool has_mask) { return is_volume || has_mask; }

  static Tensor output(Tensor tensor) { return tensor; }

  template <class A>
  Records sweep(const Problem<A>& problem);
  template <class A>
  void reduce(const std::vector<Records>& records, const Reduction<A>& reduction);
  void scale(const ScaleRequest& request);
  void collapse(const CollapseRequest& request);
};

// Sweeps volumes, and images with a mask (separable.cpp). Leaves one record a plane.
CpuDevice::Records sweep_separable(const Problem<double>& problem);

}  // namespace ssimfast::cpu
