// Guards and dispatch for tensors that arrive from torch. Users' mistakes are caught in Python;
// these checks keep a direct call of an op from touching memory that is not there, and from a
// result that means nothing. checks.py has the same for backends in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "terms.h"

namespace ssimfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_device(const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(
      tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(),
      "ssimfast: all tensors must be on one device");
}

inline bool is_floating(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_image_dtype(const Tensor& x) {
  STD_TORCH_CHECK(is_floating(x) || x.scalar_type() == ScalarType::Byte,
                  "ssimfast: images must be floating point or uint8, got ",
                  torch::headeronly::toString(x.scalar_type()));
}

inline void check_pair(const Tensor& x, const Tensor& y) {
  check_device(x, y);
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4, "ssimfast: images must have 4 dimensions, got ",
                  x.dim(), " and ", y.dim());
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(x.size(i) == y.size(i), "ssimfast: x and y differ in dimension ", i, ": ",
                    x.size(i), " and ", y.size(i));
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "ssimfast: x and y differ in dtype");
  check_image_dtype(x);
}

inline void check_window(const Tensor& x, const std::vector<double>& window, bool same,
                         int64_t largest) {
  const int64_t count = static_cast<int64_t>(window.size());
  STD_TORCH_CHECK(count % 2 == 1 && count <= largest, "ssimfast: window must have 1, 3, ... ",
                  largest, " taps, got ", count);
  for (int64_t i = 0; i < count / 2; ++i)
    STD_TORCH_CHECK(window[i] == window[count - 1 - i], "ssimfast: window must be symmetric");
  STD_TORCH_CHECK(same || (x.size(2) >= count && x.size(3) >= count), "ssimfast: image ", x.size(2),
                  " x ", x.size(3), " is smaller than the window of ", count);
}

// Calls body(T{}) with T the element type of the tensor.
template <class Body>
auto dispatch_floating(const Tensor& tensor, Body&& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, "ssimfast: images must be floating point, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

// The same for images that are only read: 8-bit ones too, which are computed as they lie.
template <class Body>
auto dispatch_images(const Tensor& tensor, Body&& body) {
  if (tensor.scalar_type() == ScalarType::Byte) return body(uint8_t{});
  return dispatch_floating(tensor, body);
}

// The type in which images of element type T are computed, and its dtype.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType arithmetic_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_tensor(const Tensor& x, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(x, {shape.data(), shape.size()}, dtype);
}

inline void check_gradients(const Tensor& x, int64_t count) {
  STD_TORCH_CHECK(0 <= count && count <= 2, "ssimfast: gradients must be 0, 1 or 2, got ", count);
  STD_TORCH_CHECK(count == 0 || x.scalar_type() != ScalarType::Byte,
                  "ssimfast: 8-bit images have no gradient");
}

inline std::vector<Tensor> new_gradients(const Tensor& x, const Tensor& y, int64_t count) {
  check_gradients(x, count);
  std::vector<Tensor> grads;
  if (count > 0) grads.push_back(torch::stable::empty_like(x));
  if (count > 1) grads.push_back(torch::stable::empty_like(y));
  return grads;
}

// The numbers of an optional argument, which are of the result's dtype; null if it was not given.
template <class A>
const A* optional_numbers(const std::optional<Tensor>& tensor, const Tensor& image, int64_t numel,
                          const char* name) {
  if (!tensor) return nullptr;
  check_device(*tensor, image);
  STD_TORCH_CHECK(tensor->numel() == numel && tensor->is_contiguous() &&
                      tensor->scalar_type() == arithmetic_dtype(image),
                  "ssimfast: ", name, " must be ", numel,
                  " contiguous numbers of the result's dtype");
  return static_cast<const A*>(tensor->const_data_ptr());
}

inline void check_pooling(int64_t pooling) {
  STD_TORCH_CHECK(0 <= pooling && pooling <= 3, "ssimfast: pooling must be 0, 1, 2 or 3, got ",
                  pooling);
}

inline void check_weights(const std::vector<double>& weights) {
  STD_TORCH_CHECK(weights.size() == kTerms, "ssimfast: weights must be ", int(kTerms),
                  " numbers, got ", weights.size());
}

// The divisor of a sum must be positive.
inline void check_count(int64_t count) {
  STD_TORCH_CHECK(count > 0, "ssimfast: count must be positive, got ", count);
}

inline void check_kept(int64_t kept) {
  STD_TORCH_CHECK(0 <= kept && kept <= 2, "ssimfast: kept must be 0, 1 or 2, got ", kept);
}

// The shape of a result that keeps so many leading dimensions.
inline std::vector<int64_t> kept_shape(const Tensor& x, int64_t kept) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < kept; ++i) shape.push_back(x.size(i));
  return shape;
}

// The upstream gradient of a result reduced to one number for all planes, for each image or plane.
inline void check_upstream(const Tensor& grad, const Tensor& upstream) {
  check_device(upstream, grad);
  STD_TORCH_CHECK(grad.dim() == 4, "ssimfast: the gradient must have 4 dimensions, got ",
                  grad.dim());
  STD_TORCH_CHECK(is_floating(grad), "ssimfast: the gradient must be floating point, got ",
                  torch::headeronly::toString(grad.scalar_type()));
  bool fits = upstream.scalar_type() == arithmetic_dtype(grad) && upstream.dim() <= 2;
  for (int64_t i = 0; fits && i < upstream.dim(); ++i) fits = upstream.size(i) == grad.size(i);
  STD_TORCH_CHECK(fits, "ssimfast: the upstream gradient does not fit the result");
}

// Refuses expanded tensors: several of their elements share memory.
inline void check_written(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.dim(); ++i)
    STD_TORCH_CHECK(tensor.size(i) <= 1 || tensor.stride(i) != 0,
                    "ssimfast: an expanded tensor cannot be written in place");
}

// Raises the version of a tensor that an op has changed, so that autograd notices a change of what
// was saved. The stable ABI has no function for that, so this calls an in-place op that does
// nothing else: it swaps a dimension with itself.
inline void raise_version(const Tensor& tensor) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(tensor), from(int64_t{0}), from(int64_t{0})};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::transpose_", "", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the reference that the op returns
}

}  // namespace ssimfast
