"""The ops with the kernels of ``kernels.py``: plans and launches.

A plan depends only on the image size and the device. Nothing is autotuned, so results have the same
bits in every run. Kernels are compiled at the first call for a window, dtype and requested result
(not for an image size); ``warmup`` calls them ahead of time.

The reference serves ``combine_levels`` with ``negative`` "raise", which reads values on the host,
and ``scale_`` of gradients that are not dense.
"""

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from ssimfast.backends import constants, reference
from ssimfast.backends.constants import value_dtype, widest_dtype
from ssimfast.backends.triton import kernels, separable
from ssimfast.ops import multiscale
from ssimfast.ops.checks import checked
from ssimfast.ops.schemas import Loss, Statistic

# Number of threads of `sweep` that a multiprocessor runs at a time, in programs of 128. Registers
# limit it: there are 65536, and a thread takes 150 to 164 with window 11 (docs/triton.md).
_RESIDENT_THREADS = 384
_LEAST_ROWS = 16  # least number of rows of a tile, because each tile computes a halo as well
_LANES = 256  # number of lanes with which `finish_terms` adds records
_BLOCK = 1024  # number of elements per program in the elementwise kernels
_PIXELS = 512  # number of pixels per program in the separable path
_ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Context that makes ``device`` the current one, on which Triton launches kernels."""
    if device.type == "cpu":  # Triton's interpreter
        return nullcontext()
    return torch.accelerator.device_index(device.index)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    properties = torch.get_device_module(device).get_device_properties(device)
    for name in ("multi_processor_count", "gpu_subslice_count"):
        if count := getattr(properties, name, 0):
            return count
    return 64


def _contiguous(given: Tensor | None) -> Tensor | None:
    return given if given is None else given.contiguous()


def _alike_in_memory(
    strides: tuple[int, ...], others: tuple[int, ...], shape: tuple[int, ...]
) -> bool:
    """True if both strides address the same elements; axes of size 1 do not count."""
    return all(n == 1 or s == o for s, o, n in zip(strides, others, shape, strict=True))


def _strides_of_a_copy(image: Tensor) -> tuple[int, ...]:
    return torch.empty_like(image, device="meta").stride()


@lru_cache
def _warp(device: torch.device) -> int:
    """Number of threads of a warp (NVIDIA) or wavefront (AMD)."""
    if torch.version.hip is None or device.type != "cuda":
        return 32
    return getattr(torch.cuda.get_device_properties(device), "warp_size", 64)


def _dense(image: Tensor) -> Tensor:
    """The image, or a copy if its strides are not those of a dense copy."""
    if _alike_in_memory(_strides_of_a_copy(image), image.stride(), image.shape):
        return image
    return image.clone()


def _laid_out_like(dense: Tensor, image: Tensor) -> Tensor:
    """The image, or a copy if its strides are not those of ``dense``."""
    if _alike_in_memory(dense.stride(), image.stride(), image.shape):
        return image
    return torch.empty_like(dense, dtype=image.dtype).copy_(image)


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both images with the same dense strides."""
    x = _dense(x)
    return x, _laid_out_like(x, y)


def _terms_of(bits: int) -> tuple[bool, ...]:
    return tuple(bool(bits >> term & 1) for term in range(constants.TERMS))


def _pixel_terms(weights: list[float]) -> tuple[bool, ...]:
    """For each term, True if it is L1, L2 or blurred L1 and has a nonzero weight."""
    weights = [0.0] * constants.L1 + (weights or [0.0] * (constants.TERMS - constants.L1))
    return tuple(weight != 0 for weight in weights)


def _rows_of_a_step(size: int, arithmetic: torch.dtype, masked: bool) -> int:
    """Number of rows per step for which the state of a thread fits registers (docs/triton.md)."""
    words = size * (2 if arithmetic == torch.float64 else 1) * (1.5 if masked else 1)
    return 4 if words <= 15 else 2 if words <= 25 else 1


# Options for kernels in which ptxas would spill registers to run more threads: they allow all 255
# registers per thread (docs/triton.md). HIP has no such option.
_ALL_REGISTERS: dict[str, int] = {} if torch.version.cuda is None else {"maxnreg": 255}


# The maps that a launch writes: SSIM, luminance, contrast-structure.
_SSIM = (True, False, False)
_COMPONENTS = (False, True, True)
_CONTRAST_STRUCTURE = (False, False, True)


class _Launch(ABC):
    """Inputs, outputs and options of one pass over a pair of images or volumes."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        statistic: Statistic,
        gradients: int = 0,
    ) -> None:
        self.given = x, y
        self.x, self.y = _alike(x, y)
        self.mask = mask
        self.mask_factors: Tensor | None = None
        self.statistic, self.gradients = statistic, gradients
        self.arithmetic = value_dtype(x.dtype)
        self.weights = [0.0] * constants.TERMS
        self.grad_scale = 1.0
        self.maps: list[Tensor] = []
        self.written = (False, False, False)  # maps of SSIM, luminance, contrast-structure
        self.upstreams: list[Tensor] = []
        self.plane_weights: Tensor | None = None
        self.group_planes = 1  # number of planes that share a value
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None
        self.wanted = 0
        self.grads = [torch.empty_like(self.x) for _ in range(gradients)]
        self._plan()

    @abstractmethod
    def _plan(self) -> None:
        """Derives from the arguments what the kernels need to know."""

    def new_maps(self, written: tuple[bool, bool, bool]) -> list[Tensor]:
        """Uninitialised maps, which the launch writes: of SSIM, luminance, contrast-structure."""
        shape = (*self.x.shape[:2], *self.statistic.map_sizes(self.x.shape[2:]))
        self.written = written
        self.maps = [self.x.new_empty(shape, dtype=self.arithmetic) for _ in range(sum(written))]
        return self.maps

    @abstractmethod
    def launch(self) -> Tensor | None:
        """Runs the pass. Returns the records (sums) of all tiles, or None if no sums are wanted or
        the images are empty."""

    def _maps_and_upstreams(self, unused: Tensor) -> list[Tensor]:
        """Two maps and two upstream gradients, for the kernels."""
        # The map of contrast-structure is the second one, even if it is the only one.
        maps = [unused] * (self.written == _CONTRAST_STRUCTURE) + self.maps
        return [*(maps + [unused] * 2)[:2], *(self.upstreams + [unused] * 2)[:2]]

    def gradients_as_promised(self) -> list[Tensor]:
        """The gradients with the strides of a copy of each image, as the ops promise."""
        promised = []
        for image, grad in zip(self.given, self.grads, strict=False):
            same = _strides_of_a_copy(image) == grad.stride()
            promised.append(grad if same else torch.empty_like(image).copy_(grad))
        return promised


class _Sweep(_Launch):
    """Launches ``kernels.sweep``: images with one window for both axes."""

    def _plan(self) -> None:
        """Cuts planes into tiles. Chooses the strip width that needs the fewest lanes for a row of
        pixels, then the longest runs of rows for which there are tiles for the whole device."""
        self.window = tuple(self.statistic.window)
        self.halo = len(self.window) // 2
        self.margin = 0 if self.statistic.same else self.halo
        batch, channels, height, width = self.x.shape
        self.step = _rows_of_a_step(len(self.window), self.arithmetic, self.mask is not None)
        lost = 2 * self.halo * (2 if self.gradients else 1)
        # A multiprocessor runs three programs of 128 lanes but only one of 256. Wider strips pay
        # only if the halo (in columns) is wide.
        most = 128 if lost <= 40 else 256
        widths = [n for n in (32, 64, 128, 256) if lost < n <= most]
        strips = {n: math.ceil(width / (n - lost)) for n in widths}
        self.lanes = min(reversed(widths), key=lambda n: n * strips[n])  # widest on a tie
        self.strips = strips[self.lanes]
        at_a_time = _multiprocessors(self.x.device) * max(1, _RESIDENT_THREADS // self.lanes)
        planes = max(1, batch * channels)
        runs = max(1, at_a_time // max(1, planes * self.strips))
        rows = max(math.ceil(height / runs), _LEAST_ROWS)
        self.run_rows = math.ceil(rows / self.step) * self.step
        self.runs = math.ceil(height / self.run_rows)
        self.tiles = self.strips * self.runs  # per plane
        self.programs = max(1, min(planes * self.tiles, 2 * at_a_time))

    def launch(self) -> Tensor | None:
        x = self.x
        if x.numel() == 0:
            return None
        batch, channels, height, width = x.shape
        planes = batch * channels
        in_gradient = self.gradients > 0
        pixel_terms = _pixel_terms(self.weights[constants.L1 :] if in_gradient else [])
        size = len(self.window)
        fits = size <= 11 if self.gradients == 0 else size == 11 and self.gradients == 1
        fits = fits and not any(pixel_terms) and self.mask is None
        adjoints = 2 + self.gradients if self.gradients else 0
        moments = 4 if self.mask is None else 5
        scratch_size = (moments + 2 * adjoints) * self.step * (self.lanes + 2 * self.halo)
        scratch = x.new_empty(self.programs * scratch_size, dtype=self.arithmetic)
        records = None
        if self.wanted:
            shape = (planes * self.tiles, constants.TERMS)
            records = x.new_empty(shape, dtype=torch.float64)

        def given(tensor: Tensor | None) -> Tensor:
            return scratch if tensor is None else tensor

        with _on(x.device):
            kernels.sweep[(self.programs,)](
                *(x, self.y, given(self.mask), *(self.grads + [x, x])[:2]),
                *(*self._maps_and_upstreams(scratch), given(self.plane_weights)),
                *(given(self.mask_factors), given(self.rows), given(self.columns)),
                *(given(records), scratch, scratch_size, planes * self.tiles),
                *(self.strips, self.runs, self.run_rows, self.group_planes),
                *(channels, height, width, self.margin, *x.stride()),
                *((0,) * 4 if self.mask is None else self.mask.stride()),
                *(*self.statistic[2:6], *self.weights, self.grad_scale),
                TAPS=self.window,
                COLUMNS=self.lanes,
                ROWS=self.step,
                GRADIENTS=self.gradients,
                MAPS=self.written,
                UPSTREAMS=len(self.upstreams),
                PLANE_WEIGHTS=self.plane_weights is not None,
                MASKED=self.mask is not None,
                WANTED=_terms_of(self.wanted),
                PIXEL_TERMS=pixel_terms,
                A=_ARITHMETIC[self.arithmetic],
                num_warps=max(1, self.lanes // _warp(x.device)),
                num_stages=1,
                **({} if fits else _ALL_REGISTERS),
            )
        return records


@cache
def _taps_on(device: torch.device, dtype: torch.dtype, taps: tuple[float, ...]) -> Tensor:
    """The taps in the memory of a device. Calls share them, because a copy to the device waits for
    it and cannot be captured in a CUDA graph."""
    return torch.tensor(taps, dtype=dtype, device=device)


class _Separable(_Launch):
    """Launches the kernels of ``separable.py``: volumes, and images with several windows. Only the
    weight of SSIM counts."""

    def _plan(self) -> None:
        x, mask, axes = self.x, self.mask, self.x.dim() - 2
        self.axes = axes
        self.sizes = [1] * (3 - axes) + list(x.shape[2:])
        self.planes = x.shape[0] * x.shape[1]
        self.tiles = math.ceil(math.prod(self.sizes) / _PIXELS)  # per plane
        self.grid = (self.planes * self.tiles,)
        # Taps and half size of the window along each axis, as the kernels take them.
        self.windows = [
            (_taps_on(x.device, self.arithmetic, tuple(taps)), len(taps) // 2)
            for taps in self.statistic.windows(axes)
        ]
        self.offsets = x.new_empty(2 * self.planes, dtype=self.arithmetic)
        self.images = (x, self.y, self.offsets if mask is None else mask)
        self.mask_strides = _of_volume((x if mask is None else mask).stride())
        self.strides = (*_of_volume(x.stride()), *self.mask_strides)
        self.unit = (self.statistic.low, self.statistic.scale)
        self.options = {"MASKED": mask is not None, "A": _ARITHMETIC[self.arithmetic]}

    def launch(self) -> Tensor | None:
        x = self.x
        if x.numel() == 0:
            return None
        # Each pass reads one of two intermediates and writes the other one.
        moments = 4 if self.mask is None else 5
        adjoints = 2 + self.gradients if self.gradients else 0
        here, there = (
            x.new_empty(maps * x.numel(), dtype=self.arithmetic)
            for maps in (moments, moments if self.axes == 3 else adjoints)
        )
        with _on(x.device):
            separable.plane_offsets[(self.planes,)](
                *(*self.images, self.offsets, x.shape[1], *self.sizes, *self.strides, *self.unit),
                **self.options,
            )
            self._moments(self.windows[-1], here, here, pixels=True)
            if self.axes == 3:
                self._moments(self.windows[1], here, there, pixels=False)
                here, there = there, here
            records = self._statistics(here, there)
            if self.gradients:
                self._gradients(there, here)
        return records

    def _moments(
        self, window: tuple[Tensor, int], source: Tensor, to: Tensor, pixels: bool
    ) -> None:
        taps, half = window
        separable.moments[self.grid](
            *(*self.images, self.offsets, taps, source, to, self.x.numel(), self.tiles),
            *(self.x.shape[1], *self.sizes, *self.strides, half, *self.unit),
            PIXELS=pixels,
            BLOCK=_PIXELS,
            **self.options,
        )

    def _statistics(self, source: Tensor, to: Tensor) -> Tensor | None:
        """Filters along the last axis. Returns the records."""
        x, offsets = self.x, self.offsets
        records = None
        if self.wanted:
            records = x.new_empty((*self.grid, constants.TERMS), dtype=torch.float64)
        taps, half = self.windows[0]
        separable.last_statistics[self.grid](
            *(self.images[2], offsets if self.mask_factors is None else self.mask_factors),
            *(offsets, taps, source, to, *self._maps_and_upstreams(offsets)),
            *(offsets if records is None else records, x.numel(), self.tiles, self.group_planes),
            *(x.shape[1], *self.sizes, *self.mask_strides),
            *([0] * (3 - self.axes) + self.statistic.margins(self.axes)),
            *(half, int(any(half for _, half in self.windows))),
            *(self.statistic.c1, self.statistic.c2, *self.unit, self.weights[constants.SSIM]),
            DEEP=self.axes == 3,
            GRADIENTS=self.gradients,
            MAPS=self.written,
            UPSTREAMS=len(self.upstreams),
            SUMMED=records is not None,
            BLOCK=_PIXELS,
            **self.options,
        )
        return records

    def _gradients(self, source: Tensor, to: Tensor) -> None:
        """The adjoint filters, from the last axis to rows."""
        x = self.x
        *across, (taps_of_rows, half_of_rows) = self.windows
        for axis, (taps, half) in enumerate(across):
            separable.adjoint[self.grid](
                *(taps, source, to, x.numel(), self.tiles, *self.sizes, half),
                DEEP=self.axes == 3 and axis == 0,
                MAPS=2 + self.gradients,
                BLOCK=_PIXELS,
                A=self.options["A"],
            )
            source, to = to, source
        separable.gradients[self.grid](
            *(*self.images, *(self.grads * 2)[:2], self.offsets, taps_of_rows, source, x.numel()),
            *(self.tiles, x.shape[1], *self.sizes, *self.strides, half_of_rows, *self.unit),
            self.grad_scale,
            GRADIENTS=self.gradients,
            BLOCK=_PIXELS,
            **self.options,
        )


def _of_volume(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of images as those of volumes of one slice."""
    return strides if len(strides) == 5 else (*strides[:2], 0, *strides[2:])


def _launch_of(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, gradients: int = 0
) -> _Launch:
    """The fused sweep where there is one window for both axes of images, else the other path."""
    fused = x.dim() == 4 and len(statistic.sizes) == 1
    return (_Sweep if fused else _Separable)(x, y, mask, statistic, gradients)


# ---- maps ---------------------------------------------------------------------------------------


def maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool
) -> list[Tensor]:
    launch = _launch_of(x, y, mask, statistic)
    out = launch.new_maps(_COMPONENTS if components else _SSIM)
    launch.launch()
    return out


def maps_grad(
    upstream: list[Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    statistic: Statistic,
    gradients: int,
) -> list[Tensor]:
    launch = _launch_of(x, y, mask, statistic, gradients)
    launch.upstreams = [by_map.contiguous() for by_map in upstream]
    launch.grad_scale = statistic.scale
    launch.launch()
    return launch.gradients_as_promised()


# ---- losses -------------------------------------------------------------------------------------


def sweep(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    mask_factors: Tensor | None,
    statistic: Statistic,
    loss: Loss,
    kept: int,
    gradients: int,
    wanted: int,
    count: int,
    grad_scale: float,
    grad_count: int,
    plane_weights: Tensor | None,
    pooling: int,
    map_term: int,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    weights, constant, rows, columns = loss
    launch = _launch_of(x, y, mask, statistic, gradients)
    value = x.new_empty(x.shape[:kept], dtype=launch.arithmetic)
    terms = x.new_empty((*value.shape, constants.TERMS), dtype=widest_dtype(x))
    pooled = [] if pooling == constants.POOLINGS["none"] else _pooled(launch, pooling)
    per_plane = math.prod(statistic.map_sizes(x.shape[2:]))
    per_pixel = per_plane / max(1, math.prod(x.shape[2:]))
    launch.wanted = wanted
    if map_term >= 0:
        launch.new_maps(_SSIM if map_term == constants.SSIM else _CONTRAST_STRUCTURE)
    launch.mask_factors = _contiguous(mask_factors)
    launch.group_planes = planes = x.shape[0] * x.shape[1] // max(1, value.numel())
    launch.plane_weights = _contiguous(plane_weights)
    launch.rows, launch.columns = _contiguous(rows), _contiguous(columns)
    launch.grad_scale = grad_scale / grad_count
    launch.weights = [
        weight * (per_pixel if term >= constants.L1 else 1) for term, weight in enumerate(weights)
    ]
    records = launch.launch()
    grads = launch.gradients_as_promised()
    if records is None:
        return value.fill_(constant), terms.zero_(), grads, pooled, launch.maps
    groups = value.numel()
    with _on(x.device):
        kernels.finish_terms[(groups,)](
            *(records, terms, value, records if mask_factors is None else launch.mask_factors),
            *(records.shape[0] // groups, float(per_plane * planes), float(count), per_pixel),
            *(*weights, constant),
            WANTED=_terms_of(wanted),
            MEANS=False,
            MASKED=mask is not None,
            LANES=_LANES,
        )
    return value, terms, grads, pooled, launch.maps


def _pooled(launch: _Launch, pooling: int) -> list[Tensor]:
    x = launch.x
    height, width = x.shape[2:]
    pooled = [multiscale.new_pooled(x, pooling) for _ in range(2)]
    count = pooled[0].numel()
    if count == 0:
        return pooled
    shifted = pooling == constants.POOLINGS["pad"]
    shifts = (height % 2, width % 2) if shifted else (0, 0)
    with _on(x.device):
        kernels.pool_pair[(math.ceil(count / _BLOCK),)](
            *(x, launch.y, *pooled, count, x.shape[1], height, width, *pooled[0].shape[2:]),
            *(*shifts, *x.stride(), launch.statistic.low, launch.statistic.scale),
            BLOCK=_BLOCK,
            A=_ARITHMETIC[launch.arithmetic],
        )
    return pooled


def sweep_levels(**given: Any) -> Any:
    return multiscale.sweep_levels(sweep, combine_levels, **given)


def combine_levels(
    terms: list[Tensor],
    positions: list[int],
    exponents: list[float],
    negative: int,
    joint: bool,
    weights: list[float],
    constant: float,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if terms[0].numel() == 0 or negative == constants.NEGATIVES["raise"]:
        rest = (exponents, negative, joint, weights, constant, kept)
        return reference.combine_levels(terms, positions, *rest)
    like = terms[0]
    batch, channels = like.shape[:2]
    shape = (batch, channels)[:kept]
    groups = math.prod(shape)
    planes = batch * channels // groups  # per group
    plane_terms = like.new_empty((batch * channels, constants.TERMS), dtype=torch.float64)
    slopes = like.new_empty((batch, channels, len(terms)))
    out, value = like.new_empty((*shape, constants.TERMS)), like.new_empty(shape)
    with _on(like.device):
        kernels.combine_levels[(batch if joint else batch * channels,)](
            *(torch.stack(terms), plane_terms, slopes, channels if joint else 1),
            weights[constants.MS_SSIM] / planes,
            *(float(count) for count in positions),
            *(1.0 for _ in range(constants.MAX_LEVELS - len(terms))),
            batch * channels,
            EXPONENTS=tuple(exponents),
            ABSOLUTE=negative == constants.NEGATIVES["abs"],
        )
        kernels.finish_terms[(groups,)](
            *(plane_terms, out, value, plane_terms, planes, 0.0, 1.0, 1.0, *weights, constant),
            WANTED=(True,) * constants.TERMS,
            MEANS=True,
            MASKED=False,
            LANES=_LANES,
        )
    return value, out, slopes


def _upstream_strides(upstream: Tensor) -> tuple[int, int]:
    strides: tuple[int, ...] = upstream.stride()
    by_image, by_channel, *_ = (*strides, 0, 0)
    return by_image, by_channel


def scale_(grad: Tensor, upstream: Tensor, factor: float, count: int) -> None:
    batch, channels, *size = grad.shape
    image_size = channels * math.prod(size)
    if _dense(grad) is not grad or (batch > 1 and grad.stride(0) != image_size):
        return reference.scale_(grad, upstream, factor, count)
    if grad.numel() > 0:
        with _on(grad.device):
            kernels.scale[(math.ceil(grad.numel() / _BLOCK),)](
                *(grad, upstream, factor / count, grad.numel(), image_size, channels),
                *(grad.stride(1), *_upstream_strides(upstream)),
                BLOCK=_BLOCK,
                A=_ARITHMETIC[value_dtype(grad.dtype)],
            )
    increment_version(grad)


def collapse_(
    finest: Tensor,
    coarser: list[Tensor],
    slopes: Tensor,
    upstream: Tensor,
    low: float,
    scale: float,
    pooling: int,
    x: Tensor | None,
    y: Tensor | None,
    pixel_weights: list[float],
    rows: Tensor | None,
    columns: Tensor | None,
) -> None:
    out = _dense(finest)
    if out.numel() > 0:
        if x is not None and y is not None:
            x, y = _laid_out_like(out, x), _laid_out_like(out, y)
        rows, columns = (
            out if counts is None else counts.contiguous() for counts in (rows, columns)
        )
        per_pixel = upstream.numel() / out.numel()
        with _on(out.device):
            kernels.collapse[(math.ceil(out.numel() / _BLOCK),)](
                (out, *(grad.contiguous() for grad in coarser)),
                *(out if x is None else x, out if y is None else y, out, slopes.contiguous()),
                *(upstream, rows, columns, out.numel(), *out.shape[1:], *out.stride()),
                *(*_upstream_strides(upstream), low, scale, per_pixel, *pixel_weights),
                SCALES=1 + len(coarser),
                POOLING=pooling,
                PIXEL_TERMS=_pixel_terms([] if x is None else pixel_weights),
                BLOCK=_BLOCK,
                A=_ARITHMETIC[value_dtype(out.dtype)],
            )
    if out is finest:
        increment_version(finest)
    else:
        finest.copy_(out)


OPS = {
    op.__name__: checked(op.__name__, op)
    for op in (maps, maps_grad, sweep, sweep_levels, combine_levels, scale_, collapse_)
}
