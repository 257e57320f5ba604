"""The functions of torchmetrics 1.9 (torchmetrics.functional.image), by its names and defaults.

They differ in this: a window is the same along every axis and at most 33 pixels wide, for a
Gaussian a sigma below 4.7; ``normalize="simple"`` is refused, and with ``normalize=None`` a
negative mean is an error, where torchmetrics gives NaN; MS-SSIM and contrast-structure are of
images only, and MS-SSIM takes smaller ones. Half types give float32. Errors call the images x, y.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from ssimfast.arguments import MAX_WINDOW_SIZE, choice, flag, not_scriptable, number
from ssimfast.functional import ms_ssim, ssim, ssim_components
from ssimfast.measures import WANG_WEIGHTS
from ssimfast.typing import WindowArguments

__all__ = [
    "multiscale_structural_similarity_index_measure",
    "structural_similarity_index_measure",
]

_Reduction = Literal["elementwise_mean", "sum", "none"] | None
_Range = float | tuple[float, float] | None
_REDUCTIONS = ("elementwise_mean", "sum", "none", None)
_Number = TypeVar("_Number", int, float)


@overload
def structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = ...,
    sigma: float | Sequence[float] = ...,
    kernel_size: int | Sequence[int] = ...,
    reduction: _Reduction = ...,
    data_range: _Range = ...,
    k1: float = ...,
    k2: float = ...,
    return_full_image: Literal[False] = ...,
    return_contrast_sensitivity: Literal[False] = ...,
) -> Tensor: ...


@overload
def structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = ...,
    sigma: float | Sequence[float] = ...,
    kernel_size: int | Sequence[int] = ...,
    reduction: _Reduction = ...,
    data_range: _Range = ...,
    k1: float = ...,
    k2: float = ...,
    return_full_image: bool = ...,
    return_contrast_sensitivity: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


@not_scriptable
def structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float | Sequence[float] = 1.5,
    kernel_size: int | Sequence[int] = 11,
    reduction: _Reduction = "elementwise_mean",
    data_range: _Range = None,
    k1: float = 0.01,
    k2: float = 0.03,
    return_full_image: bool = False,
    return_contrast_sensitivity: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """SSIM with a reflected border: :func:`ssimfast.ssim` by the names of torchmetrics.

    Args:
        preds: images (N, C, H, W) or volumes (N, C, D, H, W); floating point.
        target: of the same shape and device; converted to the dtype of ``preds``.
        gaussian_kernel: a Gaussian window, else a uniform one.
        sigma: standard deviation of the Gaussian in pixels, which decides its size too:
            ``2 int(3.5 sigma + 0.5) + 1``.
        kernel_size: side of the uniform window in pixels, odd. (For volumes with a Gaussian it must
            be what ``sigma`` makes it: torchmetrics would pad one axis by another size.)
        reduction: over the values of the images: "elementwise_mean", "sum", or "none" or None.
        data_range: the value of white, black being 0; (low, high) clamps to these, and takes the
            difference; None takes the larger range of both batches, which the host waits for, which
            breaks a compiled graph, and is a constant in the gradient. Images of one value have no
            range, which is an error.
        k1, k2: constants of Wang et al. 2004, >= 0.
        return_full_image: adds the map, of the shape of the images.
        return_contrast_sensitivity: adds the mean of contrast-structure of each image, (N,), from
            windows that lie inside it. Images only.

    Returns:
        Shape () or, for "none", (N,), and what was asked for besides.

    Raises:
        TypeError, ValueError: that name the argument and what came.
    """
    choice("reduction", reduction, _REDUCTIONS)
    preds, target = _of_one_dtype(preds, target)
    window = _window(preds.dim(), gaussian_kernel, sigma, kernel_size)
    preds, target, width = _in_range(preds, target, data_range)
    arguments: WindowArguments = {**window, "data_range": width, "k1": k1, "k2": k2}
    with_map = flag("return_full_image", return_full_image)
    with_contrast = flag("return_contrast_sensitivity", return_contrast_sensitivity)
    if with_map and with_contrast:
        raise ValueError(
            "give return_full_image or return_contrast_sensitivity, not both: got True and True"
        )
    if with_map:
        full = ssim(preds, target, padding="reflect", reduction="none", **arguments)
        return _reduced(full.flatten(1).mean(1), reduction), full
    values = ssim(preds, target, padding="reflect", reduction="batch", **arguments)
    if with_contrast:
        parts = ssim_components(preds, target, padding="valid", **arguments)
        return _reduced(values, reduction), parts.contrast_structure.flatten(1).mean(1)
    return _reduced(values, reduction)


@not_scriptable
def multiscale_structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float | Sequence[float] = 1.5,
    kernel_size: int | Sequence[int] = 11,
    reduction: _Reduction = "elementwise_mean",
    data_range: _Range = None,
    k1: float = 0.01,
    k2: float = 0.03,
    betas: tuple[float, ...] = WANG_WEIGHTS,
    normalize: Literal["relu"] | None = "relu",
) -> Tensor:
    """MS-SSIM: :func:`ssimfast.ms_ssim` by the names of torchmetrics.

    Args:
        preds: images (N, C, H, W); floating point.
        target: of the same shape and device; converted to the dtype of ``preds``.
        gaussian_kernel, sigma, kernel_size, reduction, data_range, k1, k2: as in
            :func:`structural_similarity_index_measure`. With None or (low, high) every scale
            is brought into range by itself, which takes more passes.
        betas: exponents, one a scale from fine to coarse.
        normalize: "relu" takes 0 for a negative mean of contrast-structure; None refuses one.

    Returns:
        Shape () or, for "none", (N,).

    Raises:
        TypeError, ValueError: that name the argument and what came.
    """
    choice("reduction", reduction, _REDUCTIONS)
    choice("normalize", normalize, ("relu", None))
    if not isinstance(betas, (tuple, list)) or not betas:
        raise TypeError(f"betas must be a tuple of numbers, one a scale, got {betas!r}")
    preds, target = _of_one_dtype(preds, target)
    arguments: dict[str, Any] = {
        **_window(preds.dim(), gaussian_kernel, sigma, kernel_size),
        **{"k1": k1, "k2": k2, "reduction": "batch", "preset": "torchmetrics"},
        "negative": "raise" if normalize is None else "relu",
    }
    if data_range is None or isinstance(data_range, tuple):
        values = _with_a_range_a_scale(preds, target, data_range, betas, arguments)
    else:
        values = ms_ssim(preds, target, data_range=data_range, weights=betas, **arguments)
    return _reduced(values, reduction)


def _with_a_range_a_scale(
    preds: Tensor,
    target: Tensor,
    data_range: tuple[float, float] | None,
    betas: tuple[float, ...],
    arguments: dict[str, Any],
) -> Tensor:
    """MS-SSIM of each image, where every scale is brought into a range by itself."""
    values = []
    for scale, beta in enumerate(betas):
        x, y, width = _in_range(preds, target, data_range)
        # A pyramid that starts here, of which only the first scale counts; the last one is SSIM.
        here = [beta] if scale == len(betas) - 1 else [beta, 0.0]
        values.append(ms_ssim(x, y, data_range=width, weights=here, **arguments))
        if len(here) > 1:
            preds, target = (torch.nn.functional.avg_pool2d(image, 2) for image in (preds, target))
    return reduce(torch.mul, values)


def _of_one_dtype(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    for name, image in (("preds", preds), ("target", target)):
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(image).__name__}")
        if not image.is_floating_point():  # integers would be cut off at their range
            raise TypeError(f"{name} must be floating point, got {image.dtype}")
    return preds, target.to(preds.dtype)


def _in_range(preds: Tensor, target: Tensor, data_range: _Range) -> tuple[Tensor, Tensor, float]:
    """The images, clamped if that was asked for, and the width of the range."""
    if data_range is None:
        images = [image for image in (preds, target) if image.numel() > 0]
        width = max(((image.max() - image.min()).item() for image in images), default=0.0)
        if not width > 0:
            raise ValueError(
                "data_range must be given where images, at one of the scales, have one value only, "
                "or NaN: got None"
            )
        return preds, target, width
    if not isinstance(data_range, tuple):
        return preds, target, data_range
    if len(data_range) != 2:
        raise ValueError(f"data_range must be a number or (low, high), got {data_range!r}")
    low, high = (number("data_range", bound) for bound in data_range)
    return preds.clamp(low, high), target.clamp(low, high), high - low


def _window(
    dimensions: int,
    gaussian_kernel: bool,
    sigma: float | Sequence[float],
    kernel_size: int | Sequence[int],
) -> WindowArguments:
    """The window in the arguments of ours, for tensors of so many dimensions."""
    axes = dimensions - 2
    if not flag("gaussian_kernel", gaussian_kernel):
        return {"window": "uniform", "window_size": _same("kernel_size", kernel_size, axes)}
    sigma = number("sigma", _same("sigma", sigma, axes))
    by_sigma = 2 * int(3.5 * sigma + 0.5) + 1
    if sigma <= 0 or by_sigma > MAX_WINDOW_SIZE:
        raise ValueError(
            f"sigma must be greater than 0 and make a window of at most {MAX_WINDOW_SIZE} pixels, "
            f"got {sigma}"
        )
    if dimensions == 5 and _same("kernel_size", kernel_size, axes) != by_sigma:
        raise ValueError(
            f"kernel_size must be {by_sigma} for volumes with sigma {sigma}, got {kernel_size}"
        )
    return {"window": "gaussian", "window_size": by_sigma, "sigma": sigma}


def _same(name: str, value: _Number | Sequence[_Number], axes: int) -> _Number:
    """The number that a sequence, one number an axis, repeats."""
    if not isinstance(value, Sequence):
        return value
    if len(value) != axes or len(set(value)) != 1:
        raise ValueError(f"{name} must be one number, the same along all axes, got {value!r}")
    return value[0]


def _reduced(values: Tensor, reduction: _Reduction) -> Tensor:
    if reduction == "elementwise_mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values
