"""The ops of ``ssimfast/schemas.py`` by the kernels of ``triton_kernels.py``: plans and launches.

A plan is chosen by size, not measured: nothing is tuned when a shape is seen for the first time,
and results are the same bits from run to run. Kernels are compiled at their first call for a
window, dtype and request (not for a size); ``warmup`` does that ahead.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version
from typing_extensions import Unpack

from ssimfast import ops, reference, triton_kernels
from ssimfast.checks import checked

_RESIDENT_THREADS = 384  # of a multiprocessor, in blocks of 128, as registers allow
_LEAST_ROWS = 16
_LANES = 256  # that add up records
_BLOCK = 1024  # elements of a program of the kernels that do one element at a time
_ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu":  # interpreted
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
    """Whether both say the same. A step along a dimension of one element is never made."""
    return all(n == 1 or s == o for s, o, n in zip(strides, others, shape, strict=True))


def _strides_of_a_copy(image: Tensor) -> tuple[int, ...]:
    return torch.empty_like(image, device="meta").stride()


@lru_cache
def _warp(device: torch.device) -> int:
    """Threads of a warp or wavefront."""
    if torch.version.hip is None or device.type != "cuda":
        return 32
    return getattr(torch.cuda.get_device_properties(device), "warp_size", 64)


def _dense(image: Tensor) -> Tensor:
    """The image, or a copy, such that it lies in memory as a copy does."""
    if _alike_in_memory(_strides_of_a_copy(image), image.stride(), image.shape):
        return image
    return image.clone()


def _laid_out_like(dense: Tensor, image: Tensor) -> Tensor:
    """The image, or a copy, with the strides of one of the same shape."""
    if _alike_in_memory(dense.stride(), image.stride(), image.shape):
        return image
    return torch.empty_like(dense).copy_(image)


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both images with the same dense strides."""
    x = _dense(x)
    return x, _laid_out_like(x, y)


def _terms_of(bits: int) -> tuple[bool, ...]:
    return tuple(bool(bits >> term & 1) for term in range(reference.TERMS))


def _pixel_terms(weights: list[float]) -> tuple[bool, ...]:
    """Of the weights of L1, L2 and blurred L1: which terms have one."""
    weights = [0.0] * reference.L1 + (weights or [0.0] * 3)
    return tuple(weight != 0 for weight in weights)


def _rows_of_a_step(size: int, arithmetic: torch.dtype) -> int:
    """As many as the registers of a thread hold the state of: see docs/triton.md."""
    words = size * (2 if arithmetic == torch.float64 else 1)
    return 4 if words <= 15 else 2 if words <= 25 else 1


# To fit more threads, ptxas spills a few registers of most sweeps with gradients unless it is told
# how many there are (docs/triton.md). HIP knows no such option.
_ALL_REGISTERS: dict[str, int] = {} if torch.version.cuda is None else {"maxnreg": 255}


class _Sweep:
    """A launch of ``triton_kernels.sweep``, as it is put together."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        window: list[float],
        c1: float,
        c2: float,
        low: float,
        scale: float,
        same: bool,
        gradients: int = 0,
    ) -> None:
        self.given = x, y
        self.x, self.y = _alike(x, y)
        self.window, self.gradients = tuple(window), gradients
        self.constants = c1, c2, low, scale
        self.arithmetic = reference.result_dtype(x.dtype)
        self.halo = len(window) // 2
        self.margin = 0 if same else self.halo
        self.weights = [0.0] * reference.TERMS
        self.grad_scale = 1.0
        self.maps: list[Tensor] = []
        self.upstreams: list[Tensor] = []
        self.plane_weights: Tensor | None = None
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None
        self.wanted = 0
        self._plan()
        self.grads = [torch.empty_like(self.x) for _ in range(gradients)]

    def _plan(self) -> None:
        """Few lanes that no pixel needs; long runs, if as many programs as the device holds."""
        batch, channels, height, width = self.x.shape
        self.step = _rows_of_a_step(len(self.window), self.arithmetic)
        lost = 2 * self.halo * (2 if self.gradients else 1)
        # Three programs of 128 fit where one of 256 does: more only where the halo is wide.
        most = 128 if lost <= 40 else 256
        widths = [n for n in (32, 64, 128, 256) if lost < n <= most]
        strips = {n: math.ceil(width / (n - lost)) for n in widths}
        self.lanes = min(reversed(widths), key=lambda n: n * strips[n])  # the widest of the best
        self.strips = strips[self.lanes]
        at_a_time = _multiprocessors(self.x.device) * max(1, _RESIDENT_THREADS // self.lanes)
        planes = max(1, batch * channels)
        runs = max(1, at_a_time // max(1, planes * self.strips))
        rows = max(math.ceil(height / runs), _LEAST_ROWS)
        self.run_rows = math.ceil(rows / self.step) * self.step
        self.runs = math.ceil(height / self.run_rows)
        self.tiles = self.strips * self.runs  # of a plane
        self.programs = max(1, min(planes * self.tiles, 2 * at_a_time))

    def map_shape(self) -> tuple[int, ...]:
        lost = 2 * self.margin
        batch, channels, height, width = self.x.shape
        return batch, channels, height - lost, width - lost

    def new_maps(self, count: int) -> list[Tensor]:
        shape = self.map_shape()
        self.maps = [self.x.new_empty(shape, dtype=self.arithmetic) for _ in range(count)]
        return self.maps

    def launch(self) -> Tensor | None:
        """The records of all tiles, if sums are wanted, and there are tiles."""
        x = self.x
        if x.numel() == 0:
            return None
        batch, channels, height, width = x.shape
        planes = batch * channels
        in_gradient = self.gradients > 0
        pixel_terms = _pixel_terms(self.weights[reference.L1 :] if in_gradient else [])
        size = len(self.window)
        fits = size <= 11 if self.gradients == 0 else size == 11 and self.gradients == 1
        fits = fits and not any(pixel_terms)
        adjoints = 2 + self.gradients if self.gradients else 0
        scratch_size = (4 + 2 * adjoints) * self.step * (self.lanes + 2 * self.halo)
        scratch = x.new_empty(self.programs * scratch_size, dtype=self.arithmetic)
        records = None
        if self.wanted:
            shape = (planes * self.tiles, reference.TERMS)
            records = x.new_empty(shape, dtype=torch.float64)

        def pair(tensors: list[Tensor]) -> list[Tensor]:
            return (tensors + [scratch, scratch])[:2]

        with _on(x.device):
            triton_kernels.sweep[(self.programs,)](
                *(x, self.y, *(self.grads + [x, x])[:2], *pair(self.maps), *pair(self.upstreams)),
                scratch if self.plane_weights is None else self.plane_weights,
                *((scratch, scratch) if self.rows is None else (self.rows, self.columns)),
                *(
                    scratch if records is None else records,
                    scratch,
                    scratch_size,
                    planes * self.tiles,
                ),
                *(self.strips, self.runs, self.run_rows, channels, height, width, self.margin),
                *(*x.stride(), *self.constants, *self.weights, self.grad_scale),
                TAPS=self.window,
                COLUMNS=self.lanes,
                ROWS=self.step,
                GRADIENTS=self.gradients,
                MAPS=len(self.maps),
                UPSTREAMS=len(self.upstreams),
                PLANE_WEIGHTS=self.plane_weights is not None,
                WANTED=_terms_of(self.wanted),
                PIXEL_TERMS=pixel_terms,
                A=_ARITHMETIC[self.arithmetic],
                num_warps=max(1, self.lanes // _warp(x.device)),
                num_stages=1,
                **({} if fits else _ALL_REGISTERS),
            )
        return records

    def gradients_as_promised(self) -> list[Tensor]:
        """With the strides of a copy of each image."""
        promised = []
        for image, grad in zip(self.given, self.grads, strict=False):
            same = _strides_of_a_copy(image) == grad.stride()
            promised.append(grad if same else torch.empty_like(image).copy_(grad))
        return promised


# ---- maps ---------------------------------------------------------------------------------------


def _maps(x: Tensor, y: Tensor, settings: reference.Settings, count: int) -> list[Tensor]:
    sweep = _Sweep(x, y, *settings)
    maps = sweep.new_maps(count)
    sweep.launch()
    return maps


def _map_gradients(
    upstreams: list[Tensor], x: Tensor, y: Tensor, *request: Unpack[reference.GradRequest]
) -> list[Tensor]:
    sweep = _Sweep(x, y, *request)
    sweep.upstreams = [upstream.contiguous() for upstream in upstreams]
    sweep.grad_scale = request[4]
    sweep.launch()
    return sweep.gradients_as_promised()


def ssim_map(x: Tensor, y: Tensor, *settings: Unpack[reference.Settings]) -> Tensor:
    return _maps(x, y, settings, 1)[0]


def ssim_map_grad(
    upstream: Tensor, x: Tensor, y: Tensor, *request: Unpack[reference.GradRequest]
) -> list[Tensor]:
    return _map_gradients([upstream], x, y, *request)


def components_map(
    x: Tensor, y: Tensor, *settings: Unpack[reference.Settings]
) -> tuple[Tensor, Tensor]:
    luminance, contrast_structure = _maps(x, y, settings, 2)
    return luminance, contrast_structure


def components_map_grad(
    by_luminance: Tensor,
    by_contrast_structure: Tensor,
    x: Tensor,
    y: Tensor,
    *request: Unpack[reference.GradRequest],
) -> list[Tensor]:
    return _map_gradients([by_luminance, by_contrast_structure], x, y, *request)


# ---- losses -------------------------------------------------------------------------------------


def similarity(
    x: Tensor, y: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    settings, (wanted, weights, constant, plane_weights, *rest) = arguments[:6], arguments[6:]
    rows, columns, count, kept, gradients, pooling, finished = rest
    sweep = _Sweep(x, y, *(*settings, gradients))
    value = x.new_empty(x.shape[:kept], dtype=sweep.arithmetic)
    terms = x.new_empty((*value.shape, reference.TERMS), dtype=reference.widest_dtype(x))
    pooled = [] if pooling == reference.POOLINGS["none"] else _pooled(sweep, pooling)
    of_plane = math.prod(sweep.map_shape()[2:])
    per_pixel = of_plane / max(1, math.prod(x.shape[2:]))
    sweep.wanted = wanted
    sweep.plane_weights = _contiguous(plane_weights)
    sweep.rows, sweep.columns = _contiguous(rows), _contiguous(columns)
    bound = 1.0 if finished else reference.bound_of(weights)
    sweep.grad_scale = settings[4] / count if finished else 1.0
    sweep.weights = [
        weight / bound * (per_pixel if term >= reference.L1 else 1)
        for term, weight in enumerate(weights)
    ]
    records = sweep.launch()
    if records is None:
        return value.fill_(constant), terms.zero_(), sweep.gradients_as_promised(), pooled
    groups = value.numel()
    with _on(x.device):
        triton_kernels.finish_terms[(groups,)](
            *(records, terms, value, records.shape[0] // groups),
            *(float(of_plane * (x.shape[0] * x.shape[1] // groups)), float(count), per_pixel),
            *(*weights, constant),
            WANTED=_terms_of(wanted),
            MEANS=False,
            LANES=_LANES,
        )
    return value, terms, sweep.gradients_as_promised(), pooled


def _pooled(sweep: _Sweep, pooling: int) -> list[Tensor]:
    x = sweep.x
    height, width = x.shape[2:]
    pooled = [ops.new_pooled(x, pooling) for _ in range(2)]
    count = pooled[0].numel()
    if count == 0:
        return pooled
    shifted = pooling == reference.POOLINGS["pad"]
    shifts = (height % 2, width % 2) if shifted else (0, 0)
    with _on(x.device):
        triton_kernels.pool_pair[(math.ceil(count / _BLOCK),)](
            *(x, sweep.y, *pooled, count, x.shape[1], height, width, *pooled[0].shape[2:]),
            *(*shifts, *x.stride(), *sweep.constants[2:]),
            BLOCK=_BLOCK,
            A=_ARITHMETIC[sweep.arithmetic],
        )
    return pooled


def combine_scales(
    terms: list[Tensor],
    scale_weights: list[float],
    absolute: bool,
    joint: bool,
    weights: list[float],
    constant: float,
    kept: int,
    positions: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    if terms[0].numel() == 0:
        return reference.combine_scales(
            terms, scale_weights, absolute, joint, weights, constant, kept, positions
        )
    like = terms[0]
    batch, channels = like.shape[:2]
    shape = (batch, channels)[:kept]
    groups = math.prod(shape)
    planes = batch * channels // groups  # of each
    plane_terms = like.new_empty((batch * channels, reference.TERMS), dtype=torch.float64)
    slopes = like.new_empty((batch, channels, len(terms)))
    out, value = like.new_empty((*shape, reference.TERMS)), like.new_empty(shape)
    with _on(like.device):
        triton_kernels.combine_scales[(batch if joint else batch * channels,)](
            *(torch.stack(terms), plane_terms, slopes, channels if joint else 1),
            *(weights[reference.MS_SSIM] / planes, reference.LEAST_MEAN),
            *(float(count) for count in positions),
            *(1.0 for _ in range(reference.MOST_SCALES - len(terms))),
            batch * channels,
            EXPONENTS=tuple(scale_weights),
            ABSOLUTE=absolute,
        )
        triton_kernels.finish_terms[(groups,)](
            *(plane_terms, out, value, planes, 0.0, 1.0, 1.0, *weights, constant),
            WANTED=(True,) * reference.TERMS,
            MEANS=True,
            LANES=_LANES,
        )
    return value, out, slopes


def _upstream_strides(upstream: Tensor) -> tuple[int, int]:
    strides: tuple[int, ...] = upstream.stride()
    by_image, by_channel, *_ = (*strides, 0, 0)
    return by_image, by_channel


def scale_grad(grad: Tensor, upstream: Tensor, scale: float, count: int) -> Tensor:
    source = _dense(grad)
    out = torch.empty_like(source)
    if not _scale_into(out, source, upstream, scale / count):
        return reference.scale_grad(grad, upstream, scale, count)
    return out


def scale_grad_(grad: Tensor, upstream: Tensor, scale: float, count: int) -> None:
    if _dense(grad) is grad and _scale_into(grad, grad, upstream, scale / count):
        increment_version(grad)
    else:
        reference.scale_grad_(grad, upstream, scale, count)


def _scale_into(out: Tensor, grad: Tensor, upstream: Tensor, factor: float) -> bool:
    """False if images do not lie one after another in memory, which is what the kernel takes."""
    batch, channels, *size = grad.shape
    image_size = channels * math.prod(size)
    if batch > 1 and grad.stride(0) != image_size:
        return False
    if grad.numel() == 0:
        return True
    with _on(grad.device):
        triton_kernels.scale_grad[(math.ceil(grad.numel() / _BLOCK),)](
            *(grad, out, upstream, factor, grad.numel(), image_size, channels),
            *(grad.stride(1), *_upstream_strides(upstream), int(out is grad)),
            BLOCK=_BLOCK,
            A=_ARITHMETIC[reference.result_dtype(grad.dtype)],
        )
    return True


def collapse(grads: list[Tensor], *request: Unpack[reference.PyramidRequest]) -> Tensor:
    finest = _dense(grads[0])
    out = torch.empty_like(finest)
    _collapse_into(out, [finest, *grads[1:]], *request)
    return out


def collapse_(
    finest: Tensor, coarser: list[Tensor], *request: Unpack[reference.PyramidRequest]
) -> None:
    if _dense(finest) is finest:
        _collapse_into(finest, [finest, *coarser], *request)
        increment_version(finest)
    else:
        finest.copy_(collapse([finest, *coarser], *request))


def _collapse_into(
    out: Tensor,
    grads: list[Tensor],
    slopes: Tensor,
    upstream: Tensor,
    scale: float,
    pooling: int,
    x: Tensor | None,
    y: Tensor | None,
    pixel_weights: list[float],
    rows: Tensor | None,
    columns: Tensor | None,
) -> None:
    """``out`` may be the dense gradient of the finest scale, whose strides it has."""
    finest = grads[0]
    if finest.numel() == 0:
        return
    if x is not None and y is not None:
        x, y = _laid_out_like(out, x), _laid_out_like(out, y)
    rows, columns = (
        finest if counts is None else counts.contiguous() for counts in (rows, columns)
    )
    batch, channels, height, width = finest.shape
    arithmetic = reference.result_dtype(finest.dtype)
    per_pixel = upstream.numel() / finest.numel()
    with _on(finest.device):
        triton_kernels.collapse[(math.ceil(finest.numel() / _BLOCK),)](
            (finest, *(grad.contiguous() for grad in grads[1:])),
            *(finest if x is None else x, finest if y is None else y, out, slopes.contiguous()),
            *(upstream, rows, columns),
            *(finest.numel(), channels, height, width, *finest.stride()),
            *(*_upstream_strides(upstream), scale, per_pixel, *pixel_weights),
            SCALES=len(grads),
            POOLING=pooling,
            PIXEL_TERMS=_pixel_terms([] if x is None else pixel_weights),
            BLOCK=_BLOCK,
            A=_ARITHMETIC[arithmetic],
        )


OPS = {name: checked(name, globals()[name]) for name in ops.TRITON_OPS}
