"""The ops ``torch.ops.ssimfast.*``: what they are told, and what they return.

Arguments that the ops share:

- ``x``, ``y``: images (N, C, H, W) of one dtype; for ``ssim_nd_*`` also volumes
  (N, C, D, H, W). float16 and bfloat16 are computed in float32, which is then the dtype of values
  and maps; gradients have the dtype of the images. uint8 is computed in float32, too, and has none.
- ``window``: K odd taps of the separable, symmetric filter, summing to 1.
- ``low``, ``scale``: ``(value - low) * scale`` maps the value range to [0, 1], the unit range;
  ``c1``, ``c2`` are the constants of Wang et al. 2004 for that range.
- ``same``: zero padding (of the mapped images), else windows inside the image only.
- ``mask``: weights of the pixels, of the shape of ``x`` and the dtype of the map.
- ``gradients``: how many are returned: 1 by ``x``, 2 by both. (For ``y`` alone, swap the images:
  everything here is symmetric.)

``similarity`` is one sweep over the images. It sums up to five terms (``reference.SSIM`` and so
on), which are sums over positions or pixels divided by ``count``, those over pixels after they were
brought to the number of positions: with ``count`` the positions of a group, all are means.

- ``wanted``: bit t asks for term t; ``weights``: five, of the value that is their weighted sum plus
  ``constant``.
- ``kept``: how many leading dimensions the results keep: () , (N,) or (N, C).
- the gradient is that of the weighted sum if it is ``finished``. Else it is that *times count*, by
  images in unit range, divided by the largest weight if it is more than 1 (``reference.bound_of``):
  so it fits float16. ``plane_weights`` (N, C, 2) takes the place of the first two weights in it.
- ``rows`` (H,), ``columns`` (W,): their product is what a pixel's |x - y| counts in the blurred L1.
- ``pooling``: ``reference.POOLINGS``; unless "none", the images of the next scale are returned, in
  unit range.

It returns the value, the terms (float64 where the device has it), the gradients and the pooled
images. ``scale_grad`` turns a gradient into that by the images: ``* upstream * scale / count``;
``scale_grad_`` in its place, where 1 is a factor that leaves it alone. ``ssim_nd_mean`` is the same
of SSIM alone, for volumes, and never finished.
``combine_scales`` makes MS-SSIM of the terms of all scales: the value ``weights`` times (SSIM,
MS-SSIM, L1, L2, blurred L1) plus ``constant``, these five, and the slopes of the value by the sums
of each scale.
``sweep_scales`` is the sweeps of all scales and what combines them, for a backend that does it in
fewer launches or less memory: the value, the terms, the slopes, ``plane_weights`` of the finest
scale, and the gradients scale by scale. Only if ``late`` are there plane weights, else none (0,):
then the finest scale is left out of the gradients, its slope is that of the gradient which these
weights make.
Of a negative mean both take the size (``absolute``) or 0; means are averaged over channels first if
``joint``. ``combine_scales_or_raise`` raises a ValueError.
``collapse`` sums the gradients of all scales, times these slopes, and adds those of the terms over
pixels (weights: L1, L2, blurred L1). ``collapse_`` leaves the sum in the gradient of the finest.
"""

import hashlib

_SETTINGS = "float[] window, float c1, float c2, float low, float scale, bool same"
_PAIR = f"Tensor x, Tensor y, {_SETTINGS}"
_MASKED_PAIR = f"Tensor x, Tensor y, Tensor? mask, {_SETTINGS}"
SCHEMAS = {
    "ssim_map": f"({_PAIR}) -> Tensor",
    "ssim_map_grad": f"(Tensor upstream, {_PAIR}, int gradients) -> Tensor[]",
    "ssim_nd_map": f"({_MASKED_PAIR}) -> Tensor",
    "ssim_nd_map_grad": f"(Tensor upstream, {_MASKED_PAIR}, int gradients) -> Tensor[]",
    "ssim_nd_mean": f"({_PAIR}, SymInt count, int kept, int gradients) -> (Tensor, Tensor[])",
    "components_map": f"({_PAIR}) -> (Tensor, Tensor)",
    "components_map_grad": (
        f"(Tensor by_luminance, Tensor by_contrast_structure, {_PAIR}, int gradients) -> Tensor[]"
    ),
    "similarity": (
        f"({_PAIR}, int wanted, float[] weights, float constant, Tensor? plane_weights, "
        "Tensor? rows, Tensor? columns, SymInt count, int kept, int gradients, int pooling, "
        "bool finished) -> (Tensor, Tensor, Tensor[], Tensor[])"
    ),
    "scale_grad": "(Tensor grad, Tensor upstream, float scale, SymInt count) -> Tensor",
    "scale_grad_": "(Tensor(a!) grad, Tensor upstream, float scale, SymInt count) -> ()",
    "combine_scales": (
        "(Tensor[] terms, float[] scale_weights, bool absolute, bool joint, float[] weights, "
        "float constant, int kept, SymInt[] positions) -> (Tensor, Tensor, Tensor)"
    ),
    "combine_scales_or_raise": (
        "(Tensor[] terms, float[] scale_weights, bool joint, float[] weights, "
        "float constant, int kept, SymInt[] positions) -> (Tensor, Tensor, Tensor)"
    ),
    "sweep_scales": (
        f"({_PAIR}, float[] scale_weights, int pooling, bool absolute, bool joint, "
        "float[] weights, float constant, Tensor? rows, Tensor? columns, int kept, int gradients, "
        "bool late) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor[])"
    ),
    "collapse": (
        "(Tensor[] grads, Tensor slopes, Tensor upstream, float scale, int pooling, Tensor? x, "
        "Tensor? y, float[] pixel_weights, Tensor? rows, Tensor? columns) -> Tensor"
    ),
    "collapse_": (
        "(Tensor(a!) finest, Tensor[] coarser, Tensor slopes, Tensor upstream, float scale, "
        "int pooling, Tensor? x, Tensor? y, float[] pixel_weights, Tensor? rows, Tensor? columns) "
        "-> ()"
    ),
}

# Compiled kernels are called with the arguments in this order, and nothing else checks that: they
# carry the digest of the schemas that they were compiled for.
DIGEST = hashlib.sha256(repr(SCHEMAS).encode()).hexdigest()[:16]
