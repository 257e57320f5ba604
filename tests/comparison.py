"""Comparison of the package with the oracle: one place for the tolerances."""

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

import ssimfast

# Absolute for values (they lie in [-1, 1]); gradients relative to the largest of the image.
# "pyramid" takes the place of "grad" where there are several scales.
TOLERANCES = {
    torch.float64: {"mean": 1e-13, "map": 1e-12, "grad": 1e-11, "pyramid": 1e-11},
    # The coarser scales are images in float32: x - y has lost digits where x and y are alike.
    torch.float32: {"mean": 5e-8, "map": 1e-6, "grad": 2e-6, "pyramid": 5e-6},
    # Values of half images are float32; a gradient is rounded to half twice: as it is stored by
    # the forward pass, and after it was scaled in the backward pass.
    torch.float16: {"mean": 5e-8, "map": 1e-6, "grad": 2 * 2**-11, "pyramid": 2 * 2**-11},
    torch.bfloat16: {"mean": 5e-8, "map": 1e-6, "grad": 2 * 2**-8, "pyramid": 2 * 2**-8},
}
# In the place of the former for the CUDA kernels, whose adjoint filters do not centre and whose
# reciprocals are right to one unit in the last place (docs/mathematics.md, "Centring").
CUDA_FLOAT32 = {"mean": 6e-8, "map": 1e-6, "grad": 5e-6, "pyramid": 1e-5}
# Masked float32 images: a window may see a few pixels only.
MASKED_FLOAT32 = {"mean": 2e-7, "map": 2e-5, "grad": 1e-5, "pyramid": 1e-5}
# Of float32 data in which much cancels: constants, for one, whose errors do not average out.
HARD = {"mean": 2e-7, "map": 1e-6, "grad": 1e-5, "pyramid": 1e-5}
# And of windows that hardly reach a neighbour.
NARROW = {**HARD, "grad": 2e-5, "pyramid": 2e-5}
# Where what remains of a gradient is small against its parts, those kernels are off by more.
CUDA_SLACK = 6
# The CPU kernel cuts planes at multiples of these (csrc/cpu/cpu.cpp): of pixels where there is
# a gradient, of windows (10 fewer) where there is none.
TILE_ROWS, TILE_COLUMNS = 64, 480
TERMS = ("ssim", "ms_ssim", "l1", "l2", "gaussian_l1")


def loosened(tolerances: dict, backend: str) -> dict:
    """The tolerances of a test of hard data, as they are for that backend."""
    if not backend.startswith(("cuda", "triton")):
        return tolerances
    gradients = {"grad", "pyramid"} & tolerances.keys()
    return {**tolerances, **{key: CUDA_SLACK * tolerances[key] for key in gradients}}


def to_oracle(arguments: dict) -> dict:
    """The oracle's names for arguments of ssimfast."""
    own = ("value_range", "data_range", "mask", *TERMS)
    out = {name: value for name, value in arguments.items() if name not in own}
    if "window_size" in out:
        out["size"] = out.pop("window_size")
    out["low"], out["high"] = arguments.get("value_range", (0.0, arguments.get("data_range", 1.0)))
    return out


def as_float64(image: Tensor) -> np.ndarray:
    return image.detach().to(torch.float64).cpu().numpy()


def on_default_device(*images: Tensor) -> list[Tensor]:
    """The images where new ones would be: on the device of the backend that is tested."""
    return [image.to(torch.get_default_device()) for image in images]


def value_dtype(image: Tensor) -> torch.dtype:
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def assert_near(
    actual: Tensor, expected: np.ndarray, tolerance: float | np.ndarray, what: str
) -> None:
    assert actual.shape == expected.shape, what
    error = np.abs(as_float64(actual) - expected)
    # Not error > tolerance: NaN is not near.
    assert np.all(error <= tolerance), (
        f"{what}: off by {np.max(error):.2e}, allowed {np.max(tolerance):.2e}"
    )


def assert_gradients_near(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    upstream: np.ndarray,
    expected: tuple[np.ndarray, np.ndarray],
    tolerance: float,
    what: str,
) -> Tensor:
    """The gradients by both images; returns the function's value."""
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    result = function(a, b)
    assert result.dtype == value_dtype(x), what
    result.backward(torch.tensor(upstream, dtype=result.dtype).reshape(result.shape))
    for name, image, want in (("x", a, expected[0]), ("y", b, expected[1])):
        assert image.grad.dtype == x.dtype
        limit = tolerance * max(np.abs(want).max(), 1e-300)
        assert_near(image.grad, want, limit, f"{what}: gradient by {name}")
    return result.detach()


def mean_tolerance(allowed: dict, count: int) -> float:
    # The rounding of single values averages out only where there are many of them.
    return max(allowed["mean"], allowed["map"] / count**0.5 / 3)


REDUCTIONS = ("mean", "sum", "batch", "none")


def assert_matches_oracle(
    x: Tensor,
    y: Tensor,
    tolerances: dict | None = None,
    reductions: tuple[str, ...] = REDUCTIONS,
    **arguments,
):
    """Values, maps and both gradients of every reduction against the float64 oracle."""
    x, y = on_default_device(x, y)
    allowed = tolerances or TOLERANCES[x.dtype]
    images = as_float64(x), as_float64(y)
    of_oracle = to_oracle(arguments)
    mask = np.ones(())
    if arguments.get("mask") is not None:
        if x.dtype != torch.float64:
            allowed = {key: max(most, MASKED_FLOAT32[key]) for key, most in allowed.items()}
        mask = as_float64(arguments["mask"])
        of_oracle["mask"] = mask
    centres = oracle.centres(x.shape, mask=mask, **to_oracle(arguments))
    # Images are independent, so that one gradient serves all sums and means.
    expected, *of_sum = oracle.ssim(*images, upstream=centres, **of_oracle)
    axes = tuple(range(1, x.dim()))
    total = (centres * expected).sum(axes)
    # Where nothing is compared the mean is 1, and there is nothing to distribute.
    in_image = centres.sum(axes)
    batch = np.where(in_image == 0, 1, total / np.where(in_image == 0, 1, in_image))
    in_all = in_image.sum()
    mean = total.sum() / in_all if in_all else np.ones(())
    by_image = torch.rand(x.shape[0], dtype=torch.float64).numpy()
    by_position = torch.rand(expected.shape, dtype=torch.float64).numpy()
    _, *of_map = oracle.ssim(*images, upstream=by_position, **of_oracle)
    share = by_image / np.where(in_image == 0, 1, in_image)
    share = share.reshape(-1, *[1] * len(axes))
    # reduction: value, upstream gradient, gradients
    results = {
        "mean": (mean, np.ones(()), [grad / (in_all or 1) for grad in of_sum]),
        "sum": (total.sum(), np.ones(()), of_sum),
        "batch": (batch, by_image, [grad * share for grad in of_sum]),
        "none": (expected, by_position, of_map),
    }
    for reduction in reductions:
        value, upstream, gradients = results[reduction]
        result = assert_gradients_near(
            lambda a, b, reduction=reduction: ssimfast.ssim(a, b, reduction=reduction, **arguments),
            x,
            y,
            upstream,
            gradients,
            allowed["grad"],
            reduction,
        )
        count = expected.size // (x.shape[0] if reduction == "batch" else 1)
        tolerance = mean_tolerance(allowed, count)
        if reduction == "none":
            tolerance = allowed["map"]
        if reduction == "sum":  # and a large sum is rounded itself
            tolerance = tolerance * expected.size + torch.finfo(result.dtype).eps / 2 * abs(value)
        assert_near(result, np.asarray(value), tolerance, f"{reduction}: value")
        if reduction != "none":
            # Without a gradient it is another kernel, which cuts the image into other tiles.
            alone = ssimfast.ssim(x, y, reduction=reduction, **arguments)
            assert_near(alone, np.asarray(value), tolerance, f"{reduction}: value alone")


def assert_small_losses_keep_their_digits(noise: float) -> None:
    """``1 - SSIM`` of images that differ by little is not the difference of two float32 numbers: a
    value next to 1 would leave few digits of it, or none."""
    x, y = torch.rand(2, 1, 2, 24, 30)
    x = 0.3 + 0.4 * x
    y = x + noise * y
    images, weights = (as_float64(x), as_float64(y)), (0.5, 0.5)
    by_ssim = 1 - oracle.ssim(*images)[0].mean()
    by_ms_ssim = 1 - oracle.ms_ssim(*images, weights=weights).value.mean()
    rounding = 1e-7 / noise  # of pooled pixels, of which the noise remains
    losses = (
        (ssimfast.SSIMLoss(), by_ssim, 1e-5),
        (ssimfast.SimilarityLoss(ssim=3.0), 3 * by_ssim, 1e-5),
        (ssimfast.MSSSIMLoss(weights=weights), by_ms_ssim, rounding),
        (
            ssimfast.SimilarityLoss(ssim=3.0, ms_ssim=0.5, weights=weights),
            3 * by_ssim + by_ms_ssim / 2,
            rounding,
        ),
    )
    for loss, want, tolerance in losses:
        for a in (x, x.clone().requires_grad_()):
            assert loss(a, y).item() == pytest.approx(want, rel=tolerance)


def assert_components_match_oracle(
    x: Tensor, y: Tensor, tolerances: dict | None = None, **arguments
):
    """Both maps of ssim_components, the gradients of each and of both together."""
    x, y = on_default_device(x, y)
    allowed = tolerances or TOLERANCES[x.dtype]
    images = as_float64(x), as_float64(y)
    of_oracle = to_oracle(arguments)
    luminance, contrast, *_ = oracle.components(*images, **of_oracle)
    result = ssimfast.ssim_components(x, y, **arguments)
    assert not result.luminance.requires_grad and not result.contrast_structure.requires_grad
    assert_near(result.luminance, luminance, allowed["map"], "luminance")
    assert_near(result.contrast_structure, contrast, allowed["map"], "contrast_structure")
    by_luminance, by_contrast = torch.rand(2, *luminance.shape, dtype=torch.float64).numpy()
    for what, factors in {
        "luminance": (1, 0),
        "contrast_structure": (0, 1),
        "both": (1, 1),
    }.items():
        upstream = (factors[0] * by_luminance, factors[1] * by_contrast)
        *_, want_x, want_y = oracle.components(*images, upstream=upstream, **of_oracle)
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        maps = ssimfast.ssim_components(a, b, **arguments)
        assert maps.luminance.dtype == maps.contrast_structure.dtype == value_dtype(x)
        used = [index for index in (0, 1) if factors[index]]
        torch.autograd.backward(
            [maps[index] for index in used],
            [torch.tensor(upstream[index], dtype=value_dtype(x)) for index in used],
        )
        for name, image, want in (("x", a, want_x), ("y", b, want_y)):
            assert image.grad.dtype == x.dtype
            limit = allowed["grad"] * max(np.abs(want).max(), 1e-300)
            assert_near(image.grad, want, limit, f"{what}: gradient by {name}")


def ms_ssim_tolerance(want: oracle.MultiScale, x: Tensor, arguments: dict, allowed: dict):
    """What the errors that are allowed of each scale's mean may make of the value."""
    weights = np.asarray(arguments.get("weights", oracle.WANG))
    shape = (-1, *[1] * want.value.ndim)
    each = np.reshape([mean_tolerance(allowed, count) for count in want.counts], shape)
    if arguments.get("negative") == "abs":
        largest = np.abs(want.means) + each
    else:
        largest = np.maximum(want.means + each, 0)
    rounding = torch.finfo(value_dtype(x)).eps / 2
    return (largest ** weights.reshape(shape)).prod(0) - want.value + rounding


def assert_ms_ssim_matches_oracle(
    x: Tensor,
    y: Tensor,
    tolerances: dict | None = None,
    reductions: tuple[str, ...] = REDUCTIONS,
    **arguments,
):
    """Values and both gradients of every reduction. Planes (or images) are independent, so that
    the oracle's gradients of their sum serve all reductions."""
    x, y = on_default_device(x, y)
    allowed = tolerances or TOLERANCES[x.dtype]
    want = oracle.ms_ssim(as_float64(x), as_float64(y), **to_oracle(arguments))
    off = ms_ssim_tolerance(want, x, arguments, allowed)
    images = x.shape[0]
    per_image = want.value.size // images
    by_image = torch.rand(images, dtype=torch.float64).numpy()
    by_value = torch.rand(want.value.shape, dtype=torch.float64).numpy()
    # reduction: value, its tolerance, upstream gradient, what that makes of each value
    results = {
        "mean": (want.value.mean(), off.mean(), np.ones(()), 1 / want.value.size),
        "sum": (want.value.sum(), off.sum(), np.ones(()), 1.0),
        "batch": (
            want.value.reshape(images, -1).mean(1),
            off.reshape(images, -1).mean(1),
            by_image,
            by_image.reshape(-1, *[1] * (want.value.ndim - 1)) / per_image,
        ),
        "none": (want.value, off, by_value, by_value),
    }
    for reduction in reductions:
        value, tolerance, upstream, weight = results[reduction]
        weight = np.broadcast_to(weight, want.value.shape)
        weight = weight.reshape(*weight.shape, *[1] * (4 - weight.ndim))
        result = assert_gradients_near(
            lambda a, b, reduction=reduction: ssimfast.ms_ssim(
                a, b, reduction=reduction, **arguments
            ),
            x,
            y,
            upstream,
            (weight * want.grad_x, weight * want.grad_y),
            allowed["grad" if len(want.counts) == 1 else "pyramid"],
            reduction,
        )
        assert_near(result, np.asarray(value), tolerance, f"{reduction}: value")
        alone = ssimfast.ms_ssim(x, y, reduction=reduction, **arguments)
        assert_near(alone, np.asarray(value), tolerance, f"{reduction}: value alone")


def assert_similarity_matches_oracle(
    x: Tensor,
    y: Tensor,
    tolerances: dict | None = None,
    reductions: tuple[str, ...] = ("mean", "batch"),
    **arguments,
):
    """The loss, its terms and both gradients of every reduction."""
    x, y = on_default_device(x, y)
    allowed = tolerances or TOLERANCES[x.dtype]
    factors = {name: arguments.get(name, float(name == "ssim")) for name in TERMS}
    images = as_float64(x), as_float64(y)
    of_oracle = to_oracle(arguments)
    want = oracle.similarity_loss(*images, factors=factors, **of_oracle)
    count = x.shape[0]
    off = {name: mean_tolerance(allowed, x[0].numel()) for name in want.terms}
    lost = arguments.get("window_size", 11) - 1 if arguments.get("padding") != "same" else 0
    if "ssim" in off:
        off["ssim"] = mean_tolerance(allowed, x[0, ..., lost:, lost:].numel())
    if factors["ms_ssim"]:
        scales = oracle.ms_ssim(*images, **of_oracle)
        planes = ms_ssim_tolerance(scales, x, arguments, allowed)
        off["ms_ssim"] = planes.reshape(count, -1).mean(1)
    rounding = torch.finfo(value_dtype(x)).eps * np.maximum(want.value, 1)
    off_loss = sum(factors[name] * off[name] for name in want.terms) + rounding
    by_image = torch.rand(count, dtype=torch.float64).numpy()
    spread = by_image.reshape(-1, 1, 1, 1)
    results = {
        "mean": (np.mean, np.ones(()), 1 / count),
        "batch": (lambda values: values, by_image, spread),
    }
    for reduction in reductions:
        reduce, upstream, weight = results[reduction]
        reduced = {**arguments, "reduction": reduction}
        result = assert_gradients_near(
            lambda a, b, reduced=reduced: ssimfast.similarity_loss(a, b, **reduced),
            x,
            y,
            upstream,
            (weight * want.grad_x, weight * want.grad_y),
            allowed["pyramid" if factors["ms_ssim"] else "grad"],
            reduction,
        )
        value = np.asarray(reduce(want.value))
        assert_near(result, value, reduce(off_loss), f"{reduction}: value")
        alone = ssimfast.similarity_loss(x, y, **reduced)
        assert_near(alone, value, reduce(off_loss), f"{reduction}: value alone")
        a = x.clone().requires_grad_()
        loss, terms = ssimfast.similarity_loss(a, y, return_terms=True, **reduced)
        assert_near(loss, value, reduce(off_loss), f"{reduction}: value beside terms")
        assert set(terms) == set(want.terms)
        for name, term in terms.items():
            assert not term.requires_grad and term.dtype == value_dtype(x), name
            expected = np.asarray(reduce(want.terms[name]))
            tolerance = reduce(np.broadcast_to(off[name], want.value.shape))
            tolerance = tolerance + torch.finfo(term.dtype).eps * np.abs(expected)
            assert_near(term, expected, tolerance, f"{reduction}: {name}")
