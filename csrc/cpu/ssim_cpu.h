// One sweep over a pair of images, and the sweeps of all scales, which are made of it.
#pragma once

#include "../request.h"

namespace ssimfast::cpu {

// Tensors for what a sweep leaves, but none for the images of the next scale.
Similarity new_results(const Tensor& x, const Tensor& y, const Request& request);

// Of images that have pixels; what it is asked for was checked. Pooled images are contiguous.
void sweep(const Tensor& x, const Tensor& y, const Settings& settings, const Request& request,
           const Similarity& results);

SweptScales sweep_scales(Tensor x, Tensor y, Settings settings, const ScalesRequest& request);

}  // namespace ssimfast::cpu
