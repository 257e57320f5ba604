"""Calls drawn at random, and what the oracle says of them: every function, argument, dtype and
layout."""

import faulthandler
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import emulated
import numpy as np
import oracle
import pytest
import torch
from comparison import (
    HARD,
    MASKED_FLOAT32,
    NARROW,
    REDUCTIONS,
    TERMS,
    TOLERANCES,
    as_float64,
    assert_near,
    mean_tolerance,
    ms_ssim_tolerance,
)
from conftest import use_reference
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

import ssimfast
from ssimfast import presets

# ---- images -------------------------------------------------------------------------------------

PLAIN = ("noise", "related")
HALVES = {torch.float16, torch.bfloat16}
KINDS = (
    *PLAIN,
    "equal",
    "nearly_equal",
    "opposite",
    "constants",
    "black",
    "black_beside_noise",
    "bright_pixels",
    "checks",
    "faint",
    "far_from_the_range",
    "outside_of_the_range",
)
# Tolerances for hard data that are as small as a window. A mean has half of that of one number.
SMALL = {**HARD, "mean": 5e-7}
# Narrow windows with small constants, too.
NARROWEST = {**NARROW, "grad": 8e-5, "pyramid": 8e-5}


def unit_images(kind: str, shape: tuple[int, ...], seed: int, far: float) -> tuple[Tensor, Tensor]:
    """Two images in which black is 0 and white is 1, in float64."""
    random = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, *shape, dtype=torch.float64, generator=random)
    zero = torch.zeros(shape, dtype=torch.float64)
    spots = zero.clone()
    spots.view(-1)[:: 1 + seed % 97] = 1
    checks = ((torch.arange(shape[-2])[:, None] // 3 + torch.arange(shape[-1]) // 3) % 2) + zero
    return {
        "noise": lambda: (a, b),
        "related": lambda: (a, 0.7 * a + 0.3 * b),
        "equal": lambda: (a, a),
        "nearly_equal": lambda: (a, a + 1e-6 * (b - 0.5)),
        "opposite": lambda: (a, 1 - a),
        "constants": lambda: (zero + seed % 11 / 10, zero + seed % 7 / 6),
        "black": lambda: (zero, zero),
        "black_beside_noise": lambda: (zero, b),
        "bright_pixels": lambda: (spots, spots.flip(-1)),
        "checks": lambda: (checks, 0.6 * checks + 0.2 + 0.01 * b),
        "faint": lambda: (0.6 + 1e-4 * a, 0.6 + 1e-4 * b),
        "far_from_the_range": lambda: (far + a, far + 0.8 * a + 0.2 * b),
        "outside_of_the_range": lambda: (10 * a - 5, 10 * b - 5),
    }[kind]()


def laid_out(image: Tensor, layout: str) -> Tensor:
    """The same values in another layout; "expanded" repeats the first image."""
    wide = image.repeat_interleave(2, -1)
    tall = image.repeat_interleave(3, -2)
    edge = torch.nn.functional.pad(image.double(), (3, 2, 1, 4)).to(image.dtype)
    flat = torch.empty(image.numel() + 5, dtype=image.dtype)
    flat[5:] = image.flatten()
    dense = torch.channels_last if image.dim() == 4 else torch.channels_last_3d
    return {
        "contiguous": lambda: image,
        "channels_last": lambda: image.contiguous(memory_format=dense),
        "transposed": lambda: image.transpose(-1, -2).contiguous().transpose(-1, -2),
        "every_second_column": lambda: wide[..., ::2],
        "every_third_row": lambda: tall[..., ::3, :],
        "inside": lambda: edge[..., 1:-4, 3:-2],
        "with_offset": lambda: flat[5:].view(image.shape),
        "batch_innermost": lambda: image.movedim(0, -1).contiguous().movedim(-1, 0),
        "expanded": lambda: image[:1, :1].expand(image.shape),
    }[layout]()


LAYOUTS = (
    *("contiguous", "channels_last", "transposed", "every_second_column", "every_third_row"),
    *("inside", "with_offset", "batch_innermost", "expanded"),
)


# ---- calls --------------------------------------------------------------------------------------

DTYPES = (*TOLERANCES, torch.uint8)


@dataclass
class Call:
    function: str
    kind: str
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, torch.dtype]
    layouts: tuple[str, str]
    needs: tuple[bool, bool]  # which of the images require a gradient
    seed: int
    arguments: dict
    mask: str | None = None
    given: dict | None = None  # what the function gets, where that is not `arguments` themselves
    x: Tensor = field(init=False, repr=False)
    y: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        far = 1000.0 if {*self.dtypes}.isdisjoint(HALVES) else 30.0
        low, high = map(torch.as_tensor, range_of(self.resolved(), self.shape))
        mask = None
        if self.mask is not None:
            mask = self._mask()
            self.arguments = {**self.arguments, "mask": mask}
        images = []
        units = unit_images(self.kind, self.shape, self.seed, far)
        for unit, dtype, layout in zip(units, self.dtypes, self.layouts, strict=True):
            image = 255 * unit if self.is_beside_bytes(dtype) else low + (high - low) * unit
            if dtype == torch.uint8:
                image = image.round().clamp(0, 255)
            elif mask is not None and layout != "expanded":  # which would show what is hidden
                image = image.where(mask > 0, torch.nan)
            images.append(laid_out(image.to(dtype), layout))
        self.x, self.y = images

    def _mask(self) -> Tensor:
        random = torch.Generator().manual_seed(self.seed + 1)
        weights = torch.rand(self.shape, generator=random)
        return {
            "weights": lambda: weights[0, 0],
            "holes": lambda: weights[:, :1] * (weights[:, :1] > 0.5),
            "bool": lambda: weights > 0.3,
            "bytes": lambda: (400 * weights - 100).clamp(0, 255).byte(),
            "columns": lambda: weights[0, 0, ..., :1, :].double(),
            "faint": lambda: 1e-6 * weights,
            "nothing": lambda: weights[:1] < 0,
            "number": lambda: torch.tensor(0.3),
        }[self.mask]()

    def is_beside_bytes(self, dtype: torch.dtype) -> bool:
        """Whether an image of that dtype is the 8-bit one beside a floating one."""
        return dtype == torch.uint8 and self.dtypes[0] != self.dtypes[1]

    @property
    def axes(self) -> int:
        return len(self.shape) - 2

    @property
    def arithmetic(self) -> torch.dtype:
        """The floating dtype whose tolerances hold."""
        floating = [dtype for dtype in self.dtypes if dtype.is_floating_point]
        return functools.reduce(torch.promote_types, floating or [torch.float32])

    @property
    def value_dtype(self) -> torch.dtype:
        return torch.float64 if self.arithmetic == torch.float64 else torch.float32

    @property
    def rounding(self) -> float:
        return torch.finfo(self.value_dtype).eps / 2

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """What the oracle is shown: both in one range, what is hidden as black."""
        low, high = range_of(self.resolved(), self.shape)
        images = []
        for image in (self.x, self.y):
            values = as_float64(image)
            if self.is_beside_bytes(image.dtype):
                values = low + (high - low) * values / 255
            images.append(np.where(np.isnan(values), low, values))
        return images[0], images[1]

    def resolved(self) -> dict:
        """The arguments with what the preset and the dtypes say."""
        arguments = presets.resolve(dict(self.arguments), known_of(self.function))
        if {*self.dtypes} == {torch.uint8} and "value_range" not in arguments:
            arguments.setdefault("data_range", 255.0)
        return arguments

    def run(self, x: Tensor, y: Tensor):
        arguments = self.arguments if self.given is None else self.given
        result = getattr(ssimfast, self.function)(x, y, **arguments)
        return torch.stack(result) if self.function == "ssim_components" else result


def parts_of(result) -> tuple[Tensor, dict[str, Tensor]]:
    """The value of a call, and whatever else it returns."""
    value, *others = result if isinstance(result, tuple) else (result,)
    parts = {}
    for other in others:
        parts |= other if isinstance(other, dict) else {"map": other}
    return value, parts


def range_of(settled: dict, shape: tuple[int, ...]) -> tuple[float, float | np.ndarray]:
    """The values of black and white; the latter may differ from image to image."""
    high = settled.get("data_range", 1.0)
    if isinstance(high, Tensor):
        high = as_float64(high).reshape(-1, *[1] * (len(shape) - 1))
    return settled.get("value_range", (0.0, high))


def sizes_of(settled: dict, axes: int) -> tuple[int, ...]:
    """The size of the window along each axis."""
    size = settled.get("window_size", 11)
    return tuple(size) if isinstance(size, (tuple, list)) else (size,) * axes


def known_of(function: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(ssimfast, function)).parameters)


def sometimes(draw, **strategies) -> dict:
    """Some of these arguments."""
    return {name: draw(values) for name, values in strategies.items() if draw(st.booleans())}


def least_side(window_size: int, padding: str) -> int:
    return {"valid": window_size, "same": 1, "reflect": window_size // 2 + 1}[padding]


def one_in(draw, count: int) -> bool:
    return draw(st.integers(1, count)) == count


ranges = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-100.0, 300.0), (0.0, 0.05)])
ranges_of_bytes = st.sampled_from([(0.0, 255.0), (-100.0, 300.0), (16.0, 235.0)])
one_dtype = st.sampled_from([torch.float32, *DTYPES]).map(lambda dtype: (dtype, dtype))
dtypes = st.one_of(one_dtype, one_dtype, st.tuples(*[st.sampled_from(DTYPES)] * 2))
factors = st.sampled_from([0.0, 0.2, 0.84, 1.0, 30.0])
level_weights = st.sampled_from([0.0, 0.1333, 0.2856, 0.5, 1.0, 2.0])
MASKS = ("weights", "holes", "bool", "bytes", "columns", "faint", "nothing", "number")


def drawn_window(draw, function: str, axes: int) -> dict:
    """Arguments of the window and its padding."""
    most = 2 if axes == 3 else draw(st.sampled_from([3, 6, 16]))
    size = st.integers(0, most).map(lambda halo: 2 * halo + 1)
    sigma = st.sampled_from([0.3, 0.8, 1.5, 2.0, 7.0])
    if function == "ssim" and one_in(draw, 4):
        size, sigma = (st.one_of(one, st.tuples(*[one] * axes)) for one in (size, sigma))
    arguments = sometimes(
        draw,
        window=st.sampled_from(["gaussian", "uniform"]),
        window_size=size,
        sigma=sigma,
        padding=st.sampled_from(["valid", "same", "reflect"]),
        preset=st.sampled_from([None, *presets.PRESETS]),
    )
    if axes == 3:
        arguments.setdefault("window_size", draw(st.sampled_from([1, 3, 5])))
    settled = presets.resolve(dict(arguments), known_of(function))
    by_axis = any(isinstance(settled.get(name), tuple) for name in ("window_size", "sigma"))
    if settled.get("padding") == "reflect" and (by_axis or function == "similarity_loss"):
        arguments["padding"] = "same"
    if np.prod(sizes_of(settled, axes)) > 1:
        arguments |= sometimes(draw, sample_covariance=st.booleans())
    elif settled.get("sample_covariance"):
        arguments["sample_covariance"] = False
    return arguments


def drawn_range(draw, images: int, of_bytes: bool) -> dict:
    low, high = draw(ranges_of_bytes if of_bytes else ranges)
    if low != 0 or one_in(draw, 3):
        return {"value_range": (low, high)}
    several = (high * (1 + torch.arange(images))).tolist()
    return {"data_range": draw(st.sampled_from([high, torch.tensor(high), torch.tensor(several)]))}


def drawn_levels(draw, most: int) -> dict:
    """Arguments of MS-SSIM, with at most so many levels."""
    count = draw(st.integers(1, most))
    weights = draw(st.lists(level_weights, min_size=count, max_size=count).map(tuple))
    return {"weights": weights} | sometimes(
        draw,
        odd=st.sampled_from(["floor", "pad", "replicate"]),
        negative=st.sampled_from(["relu", "abs", "raise"]),
        channels=st.sampled_from(["separate", "joint"]),
    )


@st.composite
def calls(draw) -> Call:
    """Drawn in one piece: most arguments limit those that come after them."""
    function = draw(st.sampled_from(["ssim", "ssim", *OF]))
    axes = 3 if function == "ssim" and one_in(draw, 4) else 2
    kind = draw(st.sampled_from([*PLAIN, *PLAIN, *KINDS]))  # plain data have the tightest limits
    of_images = draw(dtypes)
    images = draw(st.integers(1, 3))
    arguments = drawn_window(draw, function, axes)
    settled = presets.resolve(dict(arguments), known_of(function))
    padding, sizes = settled.get("padding", "valid"), sizes_of(settled, axes)
    if draw(st.booleans()):
        arguments |= drawn_range(draw, images, {*of_images} == {torch.uint8})
    constants = {
        "k1": st.sampled_from([0.001, 0.01, 0.05, 0.2]),
        "k2": st.sampled_from([0.01, 0.03, 0.1, 0.4]),
    }
    arguments |= sometimes(draw, **constants)
    defined = kind in PLAIN and np.prod(sizes) > 1  # without constants, too: nothing is flat
    if defined and one_in(draw, 6):
        arguments |= {name: 0.0 for name in draw(st.sampled_from([("k1",), ("k2",), ("k1", "k2")]))}

    sides = [least_side(size, padding) for size in sizes]
    if function in ("ms_ssim", "similarity_loss"):
        size = sizes[0]
        arguments |= drawn_levels(draw, 1 if size > 17 else 2 if size > 7 else 3)
        coarser = len(arguments["weights"]) - 1
        # Enough for any way to pool: pooled sides are at least the half, rounded down.
        side = least_side(size, padding) << coarser
        if padding == "reflect" and coarser > 0:
            side = max(side, size << (coarser - 1))
        sides = [side, side]
        if one_in(draw, 6):
            arguments["weights"] = "auto"
    if function == "similarity_loss":
        arguments |= sometimes(draw, **dict.fromkeys(TERMS, factors), return_terms=st.booleans())
        if not any({"ssim": 1.0, **arguments}.get(name) for name in TERMS):
            arguments["ssim"] = 1.0
    if function != "ssim_components":
        reductions = ["mean", "batch"] if function == "similarity_loss" else list(REDUCTIONS)
        arguments |= sometimes(draw, reduction=st.sampled_from(reductions))
    if "return_map" in known_of(function) and one_in(draw, 3):
        arguments["return_map"] = draw(st.sampled_from([True, "ssim", "contrast_structure"]))

    flat = 0.0 in (arguments.get("k1"), arguments.get("k2"))  # where a window sees one pixel
    can_be_masked = "mask" in known_of(function) and padding != "reflect" and not flat
    mask = None
    if can_be_masked and not arguments.get("gaussian_l1") and one_in(draw, 3):
        mask = draw(st.sampled_from(MASKS))
    more = st.integers(0, 3 if axes == 3 else 12)
    return Call(
        function=function,
        kind=kind,
        shape=(
            images,
            draw(st.integers(1, 1 if axes == 3 else 3)),
            *(side + draw(more) for side in sides),
        ),
        dtypes=of_images,
        layouts=(draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))),
        needs=tuple(dtype != torch.uint8 and draw(st.booleans()) for dtype in of_images),
        seed=draw(st.integers(0, 2**16)),
        arguments=arguments,
        mask=mask,
    )


# ---- what the oracle says -----------------------------------------------------------------------


@dataclass
class Answer:
    value: np.ndarray
    gradients: tuple[np.ndarray, np.ndarray]  # under the upstream gradient
    magnitudes: float = 0.0  # of what they are sums of
    tolerance: float | np.ndarray = 0.0  # of the value
    # The results beside the value, each with its tolerance.
    parts: dict[str, tuple[np.ndarray, float]] = field(default_factory=dict)
    means: np.ndarray | None = None  # of the scales of MS-SSIM


def spread(numbers: np.ndarray, dims: int) -> np.ndarray:
    return numbers.reshape(*numbers.shape, *[1] * (dims - numbers.ndim))


def largest(arrays: Iterable[np.ndarray]) -> float:
    return max(np.abs(array).max() for array in arrays)


def auto_weights(call: Call, settled: dict) -> tuple[float, ...]:
    """As many of Wang's as have a window at every scale, with the sum of all."""
    size, padding = settled.get("window_size", 11), settled.get("padding", "valid")
    up = settled.get("odd", "floor") != "floor"
    fitting, side = 0, min(call.shape[2:])
    for scale in range(len(oracle.WANG)):
        if side >= least_side(size, padding):
            fitting = scale + 1
        if side < least_side(size, "valid" if padding == "reflect" else padding):
            break
        side = (side + up) // 2
    part = oracle.WANG[:fitting]
    return tuple(weight * sum(oracle.WANG) / sum(part) for weight in part)


def independent(count: int, call: Call, settled: dict) -> int:
    """Of so many windows, those that do not overlap: the errors of others do not average out."""
    return max(1, count // int(np.prod(sizes_of(settled, call.axes))))


STATISTIC = ("window", "sigma", "k1", "k2", "sample_covariance", "padding")
LEVELS = ("weights", "odd", "negative", "channels")


def definition_of(call: Call, settled: dict, names: tuple[str, ...] = STATISTIC) -> dict:
    """Arguments of the oracle."""
    own = {name: settled[name] for name in names if name in settled}
    own["low"], own["high"] = range_of(settled, call.shape)
    if "window_size" in settled:
        own["size"] = settled["window_size"]
    if own.get("negative") == "raise":
        own["negative"] = "relu"  # the oracle is to say the means that are refused
    if "mask" in settled:
        mask = settled["mask"]
        own["mask"] = as_float64(mask) / (255 if mask.dtype == torch.uint8 else 1)
    return own


def shown(call: Call, x, y, allowed: dict, settled: dict) -> dict:
    """The map that is returned beside the value, if it is."""
    which, own = settled.get("return_map", False), definition_of(call, settled)
    if which is False:
        return {}
    of_contrast = which == "contrast_structure"
    one = oracle.components(x, y, **own)[1] if of_contrast else oracle.ssim(x, y, **own)[0]
    return {"map": (one, allowed["map"])}


def of_ssim(call: Call, x, y, upstream: Callable, allowed: dict, settled: dict) -> Answer:
    own = definition_of(call, settled)
    reduction = settled.get("reduction", "mean")
    axes = tuple(range(1 if reduction == "batch" else 0, x.ndim))
    centres = oracle.centres(x.shape, **own)
    shares = oracle.shares_of(centres, axes)
    # The weight of each position of the map in the result.
    by = {
        "mean": lambda: upstream(()) * shares,
        "sum": lambda: upstream(()) * centres,
        "batch": lambda: spread(upstream(x.shape[:1]), x.ndim) * shares,
        "none": lambda: upstream(centres.shape),
    }[reduction]()
    full, *gradients = oracle.ssim(x, y, upstream=by, **own)
    value = {
        "sum": lambda: (centres * full).sum(),
        "none": lambda: full,
    }.get(reduction, lambda: oracle.mean_of(full, shares, axes, of_nothing=1.0))()
    count = oracle.alike(shares, axes)
    tolerance = mean_tolerance(allowed, independent(count, call, settled))
    if reduction == "none":
        tolerance = allowed["map"]
    if reduction == "sum":
        tolerance = tolerance * full.size + 2 * call.rounding * abs(value)
    _, *parts = oracle.ssim(x, y, upstream=by, magnitudes=True, **own)
    also = shown(call, x, y, allowed, settled)
    return Answer(np.asarray(value), tuple(gradients), largest(parts), tolerance, also)


def of_ssim_components(
    call: Call, x, y, upstream: Callable, allowed: dict, settled: dict
) -> Answer:
    own = definition_of(call, settled)
    luminance, contrast, *_ = oracle.components(x, y, **own)
    value = np.stack((luminance, contrast))
    by = tuple(upstream(value.shape))
    *_, grad_x, grad_y = oracle.components(x, y, upstream=by, **own)
    *_, part_x, part_y = oracle.components(x, y, upstream=by, magnitudes=True, **own)
    off = allowed["map"]
    if call.kind not in PLAIN:  # a mean near 0 beside large deviations is rounded like these
        off += call.rounding * reach(call, settled, x, y) / own.get("k1", 0.01)
    return Answer(value, (grad_x, grad_y), largest((part_x, part_y)), off)


def tolerance_of_scales(want: oracle.MultiScale, call: Call, settled: dict, allowed: dict):
    counts = tuple(independent(count, call, settled) for count in want.counts)
    of_dtype = torch.empty(0, dtype=call.arithmetic)
    return ms_ssim_tolerance(want._replace(counts=counts), of_dtype, settled, allowed)


def of_ms_ssim(call: Call, x, y, upstream: Callable, allowed: dict, settled: dict) -> Answer:
    own = definition_of(call, settled, STATISTIC + LEVELS)
    reduction = settled.get("reduction", "mean")
    joint = own.get("channels") == "joint"
    shape = x.shape[: 1 if joint else 2]
    share = 1 / np.prod(shape[1:])
    by = {
        "mean": lambda: np.broadcast_to(upstream(()) / np.prod(shape), shape),
        "sum": lambda: np.broadcast_to(upstream(()), shape),
        "batch": lambda: np.broadcast_to(spread(upstream(shape[:1]) * share, len(shape)), shape),
        "none": lambda: upstream(shape),
    }[reduction]()
    want = oracle.ms_ssim(x, y, upstream=by, **own)
    reduced = {
        "mean": lambda values: values.mean(),
        "sum": lambda values: values.sum(),
        "batch": lambda values: values.reshape(shape[0], -1).mean(1),
        "none": lambda values: values,
    }[reduction]
    off = tolerance_of_scales(want, call, settled, allowed)
    if reduction == "sum":  # which is rounded as it is added up
        off = off + 2 * call.rounding * np.abs(want.value)
    gradients = want.grad_x, want.grad_y
    parts = oracle.ms_ssim(x, y, upstream=by, magnitudes=True, **own)
    size = largest((parts.grad_x, parts.grad_y))
    return Answer(np.asarray(reduced(want.value)), gradients, size, reduced(off), means=want.means)


def of_similarity_loss(
    call: Call, x, y, upstream: Callable, allowed: dict, settled: dict
) -> Answer:
    own = definition_of(call, settled, STATISTIC + LEVELS)
    together = settled.get("reduction", "mean") == "mean"
    factors = {name: settled.get(name, float(name == "ssim")) for name in TERMS}
    want = oracle.similarity_loss(x, y, factors=factors, together=together, **own)
    by = upstream(want.value.shape)
    gradients = tuple(spread(by, 4) * grad for grad in (want.grad_x, want.grad_y))
    off = {name: np.full(want.value.shape, allowed["map"]) for name in want.terms}
    means = None
    if factors["ms_ssim"] > 0:
        scales = oracle.ms_ssim(x, y, **own)
        means = scales.means
        of_planes = tolerance_of_scales(scales, call, settled, allowed).reshape(len(x), -1)
        off["ms_ssim"] = of_planes.mean() if together else of_planes.mean(1)
    eps = 2 * call.rounding
    for name, term in want.terms.items():
        off[name] = off[name] + 4 * eps * np.abs(term)
    total = sum(factors[name] * off[name] for name in off)
    total = total + 4 * eps * np.maximum(want.value, sum(factors.values()))
    also = shown(call, x, y, allowed, settled)
    if settled.get("return_terms"):
        also |= {name: (np.asarray(term), np.max(off[name])) for name, term in want.terms.items()}
    windowed = {name: factors[name] for name in ("ssim", "ms_ssim")}
    parts = oracle.similarity_loss(
        x, y, factors=windowed, together=together, magnitudes=True, **own
    )
    size = np.max(by) * largest((parts.grad_x, parts.grad_y))
    return Answer(np.asarray(want.value), gradients, size, total, also, means)


OF = {
    "ssim": of_ssim,
    "ssim_components": of_ssim_components,
    "ms_ssim": of_ms_ssim,
    "similarity_loss": of_similarity_loss,
}


def settle(call: Call) -> dict:
    """All arguments, with what the preset, the dtype and "auto" stand for."""
    settled = call.resolved()
    if settled.get("weights") == "auto":
        settled["weights"] = auto_weights(call, settled)
    return settled


def reach(call: Call, settled: dict, x: np.ndarray, y: np.ndarray) -> float:
    """The largest deviation from the level that is subtracted, in unit range."""
    low, high = range_of(settled, call.shape)
    x, y = ((image - low) / (high - low) for image in (x, y))
    # Only data far from the range has a level of its own, and x - y has none.
    return max(min(largest((x, y)), 4 + max(np.ptp(x), np.ptp(y))), largest([x - y]))


def moved(
    call: Call, settled: dict, x: np.ndarray, y: np.ndarray, draw: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images that differ from those by what the arithmetic rounds off of them.

    A pixel is as exact as its distance from a level; x - y is exact. But images of coarser scales
    are rounded, each by itself, and so are those that are brought to a range beforehand, and those
    of the oracle, far from 0 in float64.
    """
    random = np.random.default_rng([call.seed, draw])
    low, high = range_of(settled, call.shape)
    coarser = len(settled.get("weights", ())) > 1 and (
        call.function == "ms_ssim" or settled.get("ms_ssim", 0) > 0
    )
    apart = coarser or isinstance(settled.get("data_range"), Tensor)
    apart = apart or any(map(call.is_beside_bytes, call.dtypes))
    if apart or call.arithmetic == torch.float64:
        step = largest((image - low) / (high - low) for image in (x, y))
        step = max(step, np.max(np.abs(low) / (high - low)))
    else:
        step = reach(call, settled, x, y)
    step = call.rounding * step * (high - low)
    common, of_difference = random.uniform(-1, 1, (2, *x.shape))
    if apart:
        return x + step * common, y + step * of_difference
    return x + step * common, y + step * common + call.rounding * (y - x) * of_difference


# So many times what the rounding of the images does to a result may be wrong with it. One draw of
# the rounding may do next to nothing by chance; three do not.
RESPONSES = 8
DRAWS = 3


class Responses(NamedTuple):
    """What changes as small as the rounding of the images make of an answer."""

    answer: Answer
    others: list[Answer]

    def allow(self, part: Callable[[Answer], np.ndarray]) -> np.ndarray:
        """How wrong each number of a part may be for them."""
        changes = (np.abs(part(other) - part(self.answer)) for other in self.others)
        return RESPONSES * functools.reduce(np.maximum, changes)


def allowed_of(call: Call, settled: dict) -> dict:
    allowed = dict(TOLERANCES[call.arithmetic])
    tables = []
    gaussian = settled.get("window", "gaussian") == "gaussian"
    narrow = gaussian and np.min(settled.get("sigma", 1.5)) < 0.5
    if narrow:
        tables.append(NARROWEST)
    if call.kind not in PLAIN:
        tables.append(SMALL)
    if "mask" in settled:
        tables.append(MASKED_FLOAT32)
    if "mask" in settled and narrow:
        # One pixel far from the centre may be nearly all that a window sees: its variance is lost
        # in the squares of distances from another pixel.
        lost = 2 * call.rounding / settled.get("k2", 0.03) ** 2
        tables.append(dict.fromkeys(HARD, lost))
    if call.arithmetic != torch.float64:
        for table in tables:
            allowed = {name: max(table[name], value) for name, value in allowed.items()}
    return allowed


def wrong_means(responses: Responses, allowed: dict) -> np.ndarray:
    return allowed["map"] + responses.allow(lambda answer: answer.means)


def wrong_slopes(responses: Responses, allowed: dict) -> float:
    """How wrong the slopes of MS-SSIM may be, relative to the gradient, for the means' errors; not
    finite where the sign of a mean is not known."""
    means = responses.answer.means
    if means is None:
        return 0.0
    off, size = wrong_means(responses, allowed), np.abs(means)
    if (size < off).any():
        return np.inf
    return 2 * np.max(np.sum(off / np.maximum(size, oracle.SLOPE_BOUND), 0))


def is_refused(settled: dict, responses: Responses, allowed: dict) -> bool | None:
    """Whether a mean of the scales that count is negative; None where rounding decides it."""
    means = responses.answer.means
    if settled.get("negative") != "raise" or means is None:
        return False
    counts = np.asarray(settled["weights"]) > 0
    off, means = wrong_means(responses, allowed)[counts], means[counts]
    if (means < -off).any():
        return True
    return None if (means < off).any() else False


def upstream_of(call: Call) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Of any shape, the upstream gradient of that call."""

    def upstream(shape: tuple[int, ...]) -> np.ndarray:
        numbers = np.random.default_rng(call.seed).uniform(0.1, 1, shape)
        return np.asarray(numbers, np.float32).astype(np.float64)

    return upstream


class Expected(NamedTuple):
    """What the oracle says, and how far from it each number may be."""

    answer: Answer
    of_value: float | np.ndarray
    of_parts: dict[str, float]
    of_gradients: list[float]
    refused: bool | None  # see is_refused


def expected(call: Call) -> Expected:
    settled = settle(call)
    allowed = allowed_of(call, settled)
    x, y = call.images()
    function = OF[call.function]
    answer, *others = (
        function(call, *images, upstream_of(call), allowed, settled)
        for images in ((x, y), *(moved(call, settled, x, y, draw) for draw in range(DRAWS)))
    )
    responses = Responses(answer, others)
    low, high = range_of(settled, call.shape)
    longest = np.max(1 / (high - low))
    rounding, of_float64 = answer.magnitudes, 0.0
    if call.arithmetic == torch.float64 and call.kind not in PLAIN:
        # Its variances are differences of squares of deviations from one level of a plane.
        deviation, c2 = reach(call, settled, x, y), settled.get("k2", 0.03) ** 2
        of_float64 = RESPONSES * call.rounding * deviation**2 / c2
        rounding = rounding * (1 + deviation**2 / c2) + deviation / c2 * longest
    of_one_pixel = 0.0
    if "mask" in settled and np.prod(sizes_of(settled, call.axes)) == 1:
        # Its weighted mean is rounded: where the gradient is 0, that leaves a deviation.
        of_one_pixel = call.rounding / settled.get("k2", 0.03) ** 2 * longest
    of_value = responses.allow(lambda answer: answer.value).max() + answer.tolerance + of_float64
    of_parts = {
        name: responses.allow(lambda answer, name=name: answer.parts[name][0]).max()
        + off
        + of_float64
        for name, (_, off) in answer.parts.items()
    }
    kind = "grad" if answer.means is None else "pyramid"
    of_gradients = []
    for i, (grad, dtype) in enumerate(zip(answer.gradients, call.dtypes, strict=True)):
        own = dtype if dtype.is_floating_point else call.arithmetic
        relative = max(allowed[kind], TOLERANCES[own][kind]) + wrong_slopes(responses, allowed)
        # float16 keeps no relative precision of numbers next to 0: as stored, and as returned.
        stored = torch.finfo(own)
        spacing = stored.smallest_normal * stored.eps
        spacing *= max(1.0, *(settled.get(name, 1.0) for name in TERMS)) * max(1, longest)
        of_gradients.append(
            relative * max(largest([grad]), 1e-300)  # inf stays inf
            + responses.allow(lambda answer, i=i: answer.gradients[i]).max()
            + RESPONSES * call.rounding * rounding
            + of_one_pixel
            + 2 * spacing
        )
    return Expected(
        answer, of_value, of_parts, of_gradients, is_refused(settled, responses, allowed)
    )


HANGS = 300  # a call that has not returned after so many seconds
USE = {"cpu": lambda _: None, "reference": use_reference, "cuda-emulated": emulated.use}


def check(call: Call, backends: list[str]) -> None:
    """The value, the terms and the gradients of a call, on each of the backends.

    A case does not count, though what can be compared is, where the oracle cannot tell a gradient
    (a mean of MS-SSIM may be 0 within rounding, where the slope of its power jumps) or whether the
    call is refused.
    """
    want = expected(call)
    for backend in backends:
        with pytest.MonkeyPatch.context() as patch:
            USE[backend](patch)
            faulthandler.dump_traceback_later(HANGS, exit=True)
            try:
                compare(call, want, backend)
            finally:
                faulthandler.cancel_dump_traceback_later()
    limits = [limit for limit, need in zip(want.of_gradients, call.needs, strict=True) if need]
    assume(want.refused is not None and np.isfinite(limits).all())


def compare(call: Call, want: Expected, backend: str) -> None:
    x, y = (
        image.detach().requires_grad_(need)
        for image, need in zip((call.x, call.y), call.needs, strict=True)
    )
    try:
        result = call.run(x, y)
    except ValueError as error:
        if want.refused is False or 'negative="raise"' not in str(error):
            raise
        return
    assert not want.refused
    value, parts = parts_of(result)
    assert value.dtype == call.value_dtype and value.requires_grad == any(call.needs)
    assert_near(value, want.answer.value, want.of_value, f"{backend}: value")
    assert parts.keys() == want.of_parts.keys()
    for name, part in parts.items():
        assert part.dtype == call.value_dtype and not part.requires_grad
        assert_near(part, want.answer.parts[name][0], want.of_parts[name], f"{backend}: {name}")
    equal = np.array_equal(*call.images()) and not any(map(call.is_beside_bytes, call.dtypes))
    if equal and call.function != "similarity_loss" and call.arguments.get("reduction") != "sum":
        assert (value == 1).all()
    if any(call.needs):
        upstream = upstream_of(call)(tuple(value.shape))
        value.backward(torch.tensor(upstream, dtype=value.dtype))
    gradients = zip((x, y), want.answer.gradients, want.of_gradients, strict=True)
    for name, (image, gradient, limit) in zip("xy", gradients, strict=True):
        if not image.requires_grad:
            assert image.grad is None
            continue
        assert image.grad.dtype == image.dtype and image.grad.isfinite().all()
        assert not equal or not image.grad.any()
        assert_near(image.grad, gradient, limit, f"{backend}: gradient by {name}")
