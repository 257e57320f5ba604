"""The ops of schemas.py: fake kernels, who implements them on this machine, and the autograd
Functions around them."""

import os
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves
from typing_extensions import Unpack

from ssimfast import reference
from ssimfast.checks import checked
from ssimfast.schemas import DIGEST, SCHEMAS

_FOLDER = Path(__file__).parent
# The weights of the scales, the pooling, what to do with negative means, whether channels are
# joined, whether the coarsest scale is padded by reflection.
Scales = tuple[list[float], int, str, bool, bool]
# The weights of the terms, the constant, rows, columns, kept, gradients, late: as of sweep_scales.
_Shared = tuple[list[float], float, Tensor | None, Tensor | None, int, int, bool]
_Sweep = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]  # what sweep_scales returns
_OfPairs = Callable[..., tuple[Tensor, Tensor]]


def _load_extension() -> ModuleType | None:
    """Imports ``ssimfast._C``, which registers the compiled kernels; None if it was not built."""
    if find_spec("ssimfast._C") is None:
        if (_FOLDER.parent / "setup.py").exists():
            warnings.warn(
                "ssimfast runs without its compiled kernels, from its sources in "
                f"{_FOLDER.parent}; run Python elsewhere to use an installed ssimfast, or "
                "pip install -e . there",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
    try:
        extension = import_module("ssimfast._C")
    except ImportError as error:
        raise ImportError(
            f"ssimfast._C does not load with torch {torch.__version__} ({error}); it needs torch "
            "2.10 or newer, and otherwise to be built again where the sources are: "
            "pip install --force-reinstall --no-deps --no-cache-dir ."
        ) from error
    if getattr(extension, "schemas", None) != DIGEST:
        raise ImportError(
            f"ssimfast._C ({extension.__file__}) was compiled from other sources than those in "
            f"{_FOLDER}: build it again, with pip install -e . or setup.py build_ext --inplace"
        )
    extension.instruction_set()  # raises if SSIMFAST_CPU_ISA asks for one that is not there
    return extension


extension = _load_extension()  # before ops are defined: a second import then says the same


def _implement(name: str, function: Callable[..., Any]) -> None:
    """For every device for which nothing better is registered: the dispatcher's fallback."""
    op = checked(name, function)
    torch.library.impl(f"ssimfast::{name}", "CompositeExplicitAutograd")(op)


for _name, _schema in SCHEMAS.items():
    torch.library.define(f"ssimfast::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    if _name != "sweep_scales":  # made of the others, below
        _implement(_name, getattr(reference, _name))

# What triton_backend.py has kernels for.
_OF_OTHERS = ("combine_scales_or_raise", "sweep_scales")  # no kernel of their own
TRITON_OPS = [name for name in SCHEMAS if "_nd_" not in name and name not in _OF_OTHERS]


def _has_kernel(key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("ssimfast::ssim_map", key)


def _by_triton(name: str) -> Callable[..., Any]:
    """An op that imports its kernels, and Triton with them, when it is called first."""

    def op(*arguments: Any) -> Any:
        from ssimfast import triton_backend

        return triton_backend.OPS[name](*arguments)

    return op


def _register_triton() -> set[str]:
    """Triton kernels for GPUs that have no compiled ones; the dispatch keys that they serve."""
    chosen = os.environ.get("SSIMFAST_CUDA_BACKEND", "")
    if chosen not in ("", "cuda", "triton"):
        raise ValueError(f'SSIMFAST_CUDA_BACKEND must be "cuda" or "triton", got {chosen!r}')
    keys = set()
    if torch.version.cuda is not None or torch.version.hip is not None:
        if chosen == "cuda" and not _has_kernel("CUDA"):
            raise ImportError("SSIMFAST_CUDA_BACKEND=cuda, but ssimfast was built without nvcc")
        if not _has_kernel("CUDA"):  # compiled ones stay away if Triton is chosen
            keys.add("CUDA")
    if torch.xpu.is_available():  # sums are in float64, which not all of them have
        devices = range(torch.xpu.device_count())
        if all(torch.xpu.get_device_properties(i).has_fp64 for i in devices):
            keys.add("XPU")
    if find_spec("triton") is None:
        if keys and chosen == "triton":
            raise ImportError("SSIMFAST_CUDA_BACKEND=triton, but triton is not installed")
        return set()
    for key in keys:
        for name in TRITON_OPS:
            torch.library.impl(f"ssimfast::{name}", key)(_by_triton(name))
    return keys


_triton_keys = _register_triton()


def backends() -> dict[str, str]:
    """The backend that serves each kind of device: ``cpu``, ``cuda``, ``triton`` or ``reference``.

    ``cpu`` and ``cuda`` are kernels compiled at installation, ``triton`` kernels compiled at first
    use, ``reference`` is plain PyTorch operations.
    """
    keys = {"cpu": "CPU", "cuda": "CUDA", "xpu": "XPU", "mps": "MPS"}
    served = {}
    for device, key in keys.items():
        compiled = device if _has_kernel(key) else "reference"
        served[device] = "triton" if key in _triton_keys else compiled
    return served


# ---- fake kernels: shapes, dtypes and strides of the results ------------------------------------


def _on_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        tensors = (leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
        devices = sorted({str(tensor.device) for tensor in tensors})
        torch._check(len(devices) < 2, lambda: f"ssimfast: tensors are on {' and '.join(devices)}")
        return fake(*arguments)

    return kernel


def _fake_map(x: Tensor, y: Tensor, window: list[float], *settings: Any) -> Tensor:
    lost = 0 if settings[-1] else len(window) - 1  # the last one is `same`
    shape = (*x.shape[:2], *(size - lost for size in x.shape[2:]))
    return x.new_empty(shape, dtype=reference.result_dtype(x.dtype))


def _fake_grads(x: Tensor, y: Tensor, gradients: int) -> list[Tensor]:
    return [torch.empty_like(image) for image in (x, y)[:gradients]]


def _fake_similarity(
    x: Tensor, y: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    *_, kept, gradients, pooling, _ = arguments
    dtype = reference.result_dtype(x.dtype)
    value = x.new_empty(x.shape[:kept], dtype=dtype)
    terms = x.new_empty((*x.shape[:kept], reference.TERMS), dtype=reference.widest_dtype(x))
    pooled = []
    if pooling != reference.POOLINGS["none"]:
        pooled = [new_pooled(x, pooling) for _ in range(2)]
    return value, terms, _fake_grads(x, y, gradients), pooled


def new_pooled(x: Tensor, pooling: int) -> Tensor:
    """For an image of the next scale."""
    up = 0 if pooling == reference.POOLINGS["floor"] else 1
    shape = (*x.shape[:2], *((size + up) // 2 for size in x.shape[2:]))
    return x.new_empty(shape, dtype=reference.result_dtype(x.dtype))


def _fake_sweep_scales(x: Tensor, y: Tensor, *arguments: Any) -> _Sweep:
    scale_weights, pooling, *_, kept, gradients, late = arguments[6:]  # the first are settings
    widest = reference.widest_dtype(x)
    value = x.new_empty(x.shape[:kept], dtype=reference.result_dtype(x.dtype))
    terms = x.new_empty((*x.shape[:kept], reference.TERMS), dtype=widest)
    slopes = x.new_empty((*x.shape[:2], len(scale_weights)), dtype=widest)
    finest_weights = x.new_empty((*x.shape[:2], 2) if late else (0,), dtype=value.dtype)
    grads: list[Tensor] = []
    for scale in range(len(scale_weights)):
        if scale > 0:
            x, y = new_pooled(x, pooling), new_pooled(y, pooling)
        if scale > 0 or not late:
            grads += _fake_grads(x, y, gradients)
    return value, terms, slopes, finest_weights, grads


def _fake_combine_scales(terms: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, kept, _ = arguments
    batch, channels = terms[0].shape[:2]
    shape = (batch, channels)[:kept]
    return (
        terms[0].new_empty(shape),
        terms[0].new_empty((*shape, reference.TERMS)),
        terms[0].new_empty((batch, channels, len(terms))),
    )


_FAKES: dict[str, Callable[..., Any]] = {
    "ssim_map": _fake_map,
    "ssim_map_grad": lambda upstream, x, y, *a: _fake_grads(x, y, a[-1]),
    "ssim_nd_map": lambda x, y, mask, *a: _fake_map(x, y, *a),
    "ssim_nd_map_grad": lambda upstream, x, y, *a: _fake_grads(x, y, a[-1]),
    "ssim_nd_mean": lambda x, y, *a: (
        x.new_empty(x.shape[: a[-2]], dtype=reference.result_dtype(x.dtype)),
        _fake_grads(x, y, a[-1]),
    ),
    "components_map": lambda x, y, *a: (_fake_map(x, y, *a), _fake_map(x, y, *a)),
    "components_map_grad": lambda by_l, by_cs, x, y, *a: _fake_grads(x, y, a[-1]),
    "similarity": _fake_similarity,
    "scale_grad": lambda grad, upstream, scale, count: torch.empty_like(grad),
    "scale_grad_": lambda grad, upstream, scale, count: None,
    "combine_scales": _fake_combine_scales,
    "combine_scales_or_raise": _fake_combine_scales,
    "sweep_scales": _fake_sweep_scales,
    "collapse": lambda grads, *_: torch.empty_like(grads[0]),
    "collapse_": lambda finest, coarser, *_: None,
}

for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"ssimfast::{_name}")(_on_one_device(_fake))


# ---- autograd -----------------------------------------------------------------------------------

# Bound once: looking an op up by attribute costs as much as a small kernel.
_ssim_map = torch.ops.ssimfast.ssim_map.default
_ssim_map_grad = torch.ops.ssimfast.ssim_map_grad.default
_ssim_nd_map = torch.ops.ssimfast.ssim_nd_map.default
_ssim_nd_map_grad = torch.ops.ssimfast.ssim_nd_map_grad.default
_ssim_nd_mean = torch.ops.ssimfast.ssim_nd_mean.default
_components_map = torch.ops.ssimfast.components_map.default
_components_map_grad = torch.ops.ssimfast.components_map_grad.default
_similarity = torch.ops.ssimfast.similarity.default
_scale_grad = torch.ops.ssimfast.scale_grad.default
_scale_grad_ = torch.ops.ssimfast.scale_grad_.default
_combine_scales = torch.ops.ssimfast.combine_scales.default
_combine_scales_or_raise = torch.ops.ssimfast.combine_scales_or_raise.default
_sweep_scales = torch.ops.ssimfast.sweep_scales.default
_collapse = torch.ops.ssimfast.collapse.default
_collapse_ = torch.ops.ssimfast.collapse_.default


_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def _check_backward(*upstream: Tensor) -> None:
    """Refuses, in backward, what it is not made for."""
    if torch.is_grad_enabled():  # in backward only if a second derivative was asked for
        raise RuntimeError(
            "ssimfast is differentiable once: call backward or torch.autograd.grad without "
            "create_graph=True"
        )
    if torch.compiler.is_compiling():
        return
    for grad in upstream:
        if _is_batched(grad) or _is_legacy_batched(grad):
            raise RuntimeError(
                "ssimfast takes one upstream gradient at a time: call torch.autograd.grad for "
                "each, with retain_graph=True, instead of for all with is_grads_batched=True or "
                "vmap"
            )


# Whether the pass of backward that is running was asked to retain the graph; where torch does not
# tell, as if it was.
_retains_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


# The hooks of torch.autograd.graph.saved_tensors_hooks that see what forward saves, or None; where
# torch does not tell, as if there were some.
_hooks_of_saved = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: True
)


def _save_gradients(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves tensors, gradients among them that backward may overwrite if nobody else has them."""
    ctx.save_for_backward(*tensors)
    # A hook may keep the tensor that it is given.
    ctx.owns_saved = torch.compiler.is_compiling() or _hooks_of_saved(True) is None


def _may_overwrite(ctx: Any) -> bool:
    """Whether backward may use the memory of what was saved for it: nobody will need it again."""
    return not torch.compiler.is_compiling() and ctx.owns_saved and not _retains_graph()


def _scaled(
    ctx: Any,
    factors: tuple[Tensor, float, int],
    in_place: Callable[..., None],
    copied: Callable[..., Tensor],
) -> Sequence[Tensor]:
    """The gradients that were saved for backward, scaled in their place where that may be."""
    grads: Sequence[Tensor] = ctx.saved_tensors
    if not _may_overwrite(ctx):
        return [copied(grad, *factors) for grad in grads]
    for grad in grads:
        in_place(grad, *factors)
    return grads


def _in_order(x: Tensor, y: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """The images, such that the first one needs a gradient."""
    return (x, y) if needs[0] else (y, x)


def _by_need(
    grads: Sequence[Tensor], needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the images in that order, as gradients by x and y."""
    return grads[0] if needs[0] else None, grads[-1] if needs[1] else None


class SSIMMap(torch.autograd.Function):
    """The map of SSIM; backward computes the statistics again rather than keeping them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *settings: Any) -> Any:
        ctx.save_for_backward(x, y)
        ctx.settings = settings
        return _ssim_map(x, y, *settings)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        _check_backward(upstream)
        needs = ctx.needs_input_grad[:2]
        x, y = ctx.saved_tensors
        x, y = _in_order(x, y, needs)
        grads = _ssim_map_grad(upstream, x, y, *ctx.settings, sum(needs))
        return *_by_need(grads, needs), *[None] * len(ctx.settings)


class SSIMNdMap(torch.autograd.Function):
    """The same for volumes and with masks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mask: Tensor | None, *settings: Any) -> Any:
        ctx.save_for_backward(x, y, mask)
        ctx.settings = settings
        return _ssim_nd_map(x, y, mask, *settings)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        _check_backward(upstream)
        needs = ctx.needs_input_grad[:2]
        x, y, mask = ctx.saved_tensors
        x, y = _in_order(x, y, needs)
        grads = _ssim_nd_map_grad(upstream, x, y, mask, *ctx.settings, sum(needs))
        return *_by_need(grads, needs), None, *[None] * len(ctx.settings)


class SSIMNdMean(torch.autograd.Function):
    """The mean over volumes; the gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, settings: reference.Settings, count: int, kept: int
    ) -> Any:
        needs = ctx.needs_input_grad[:2]
        x, y = _in_order(x, y, needs)
        value, grads = _ssim_nd_mean(x, y, *settings, count, kept, sum(needs))
        _save_gradients(ctx, *grads)
        ctx.scale, ctx.count = settings[4], count
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        _check_backward(upstream)
        factors = (upstream, ctx.scale, ctx.count)
        # The ops are of images.
        grads = _scaled(ctx, factors, reference.scale_grad_, reference.scale_grad)
        return *_by_need(grads, ctx.needs_input_grad[:2]), *[None] * 3


class ComponentsMap(torch.autograd.Function):
    """The maps of luminance and contrast-structure; backward computes the statistics again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *settings: Any) -> Any:
        ctx.save_for_backward(x, y)
        ctx.settings = settings
        return _components_map(x, y, *settings)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        _check_backward(*upstream)
        needs = ctx.needs_input_grad[:2]
        x, y = ctx.saved_tensors
        x, y = _in_order(x, y, needs)
        grads = _components_map_grad(*upstream, x, y, *ctx.settings, sum(needs))
        return *_by_need(grads, needs), *[None] * len(ctx.settings)


class Similarity(torch.autograd.Function):
    """A weighted sum of terms and a constant; the gradient is computed in the forward pass, on the
    same tiles."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        settings: reference.Settings,
        weights: list[float],
        constant: float,
        rows: Tensor | None,
        columns: Tensor | None,
        count: int,
        kept: int,
    ) -> Any:
        needs = ctx.needs_input_grad[:2]
        x, y = _in_order(x, y, needs)
        # Of float32, what is left for backward is often a factor of 1. float16 could not hold the
        # gradient of a mean over many pixels or times a large weight: those factors wait.
        finished = x.dtype == reference.result_dtype(x.dtype)
        value, terms, grads, _ = _similarity(
            *(x, y, *settings, _bits(weights), weights, constant, None, rows, columns),
            *(count, kept, sum(needs), 0, finished),
        )
        _save_gradients(ctx, *grads)
        ctx.scale, ctx.count = 1.0, 1
        if not finished:
            ctx.scale, ctx.count = settings[4] * reference.bound_of(weights), count
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # of the terms: zeros that nobody reads
        return value, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> Any:
        if upstream is None:  # nothing depends on the value
            return (None,) * 9
        _check_backward(upstream)
        factors = (upstream, ctx.scale, ctx.count)
        grads = _scaled(ctx, factors, _scale_grad_, _scale_grad)
        return *_by_need(grads, ctx.needs_input_grad[:2]), *[None] * 7


class MultiScale(torch.autograd.Function):
    """A weighted sum of MS-SSIM and the terms of the finest scale, and a constant.

    Each scale is one sweep, which leaves its gradient and the images of the next one; only backward
    knows what each gradient counts, and sums the pyramid. With SSIM beside MS-SSIM, two gradients
    of the finest scale would have to be kept apart: there, backward computes their sum instead.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        settings: reference.Settings,
        scales: Scales,
        weights: list[float],
        constant: float,
        rows: Tensor | None,
        columns: Tensor | None,
        kept: int,
    ) -> Any:
        needs = ctx.needs_input_grad[:2]
        x, y = _in_order(x, y, needs)
        late = weights[reference.SSIM] != 0
        ctx.call = (settings, scales, weights, late)
        value, terms, slopes, finest_weights, grads = _of_all_scales(
            x, y, settings, scales, weights, constant, rows, columns, kept, sum(needs), late
        )
        keeps_images = late or any(weights[reference.L1 :])
        images = (x, y) if keeps_images else (None, None)
        _save_gradients(ctx, slopes, finest_weights, *images, rows, columns, *grads)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # of the terms: zeros that nobody reads
        return value, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> Any:
        if upstream is None:  # nothing depends on the value
            return (None,) * 9
        _check_backward(upstream)
        needs = ctx.needs_input_grad[:2]
        count = sum(needs)
        slopes, finest_weights, x, y, rows, columns, *grads = ctx.saved_tensors
        settings, (scale_weights, pooling, *_), weights, late = ctx.call
        scales = len(scale_weights)
        # One list a scale, of one gradient an image that needs one.
        grads = [grads[i : i + count] for i in range(0, len(grads), count)]
        if late:
            finest = _similarity(
                *(x, y, *settings, 0, [0.0] * reference.TERMS, 0.0, finest_weights),
                *(None, None, 1, 0, count, 0, False),
            )[2]
            grads = [finest, *grads]
        pixel_weights = weights[reference.L1 :]
        if not any(pixel_weights):
            x = y = None
        in_place = _may_overwrite(ctx)
        out = []
        for i in range(count):  # by y, x - y has the other sign
            signed = [weight * (1 - 2 * i) for weight in pixel_weights]
            finest, *coarser = (grads[j][i] for j in range(scales))
            rest = (slopes, upstream, settings[4], pooling, x, y, signed, rows, columns)
            if in_place:
                _collapse_(finest, coarser, *rest)
            else:
                finest = _collapse([finest, *coarser], *rest)
            out.append(finest)
        return *_by_need(out, needs), *[None] * 7


def _bits(weights: list[float]) -> int:
    return sum(1 << term for term, weight in enumerate(weights) if weight != 0)


def _finest_weights(slopes: Tensor, by_ssim: float, group: int) -> tuple[Tensor, Tensor]:
    """The weights of SSIM and contrast-structure in the gradient of the finest scale, such that it
    fits float16, and the slopes that go with it. ``group``: the windows that a value is over."""
    finest = slopes[..., 0] * group
    if slopes.shape[-1] == 1:
        plane_weights = torch.stack((finest + by_ssim, torch.zeros_like(finest)), -1)
    else:
        plane_weights = torch.stack((torch.full_like(finest, by_ssim), finest), -1)
    largest = max(1.0, abs(by_ssim))  # float16 could not hold the gradient that it makes
    plane_weights = plane_weights / largest
    slopes = torch.cat((torch.full_like(slopes[..., :1], largest / group), slopes[..., 1:]), -1)
    return plane_weights, slopes


def positions(
    image: Tensor, settings: tuple[list[float], Unpack[tuple[float, ...]], bool], kept: int
) -> int:
    """The number of windows in one group of planes, of which ``kept`` dimensions are kept."""
    window, *_, same = settings
    lost = 0 if same else len(window) - 1
    count = 1
    for size in image.shape[kept:2]:
        count = count * size
    for size in image.shape[2:]:
        count = count * (size - lost)
    return count


class Reflected(torch.autograd.Function):
    """The border of ``reflected``, with the same bits in every backward. (Backward of torch's own
    padding sums with atomics on CUDA.)"""

    @staticmethod
    def forward(ctx: Any, image: Tensor, halo: int) -> Any:
        ctx.halo = halo
        return _reflect(image, halo)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return _folded(upstream, ctx.halo), None


def reflected(x: Tensor, y: Tensor, halo: int) -> tuple[Tensor, Tensor]:
    """The images or volumes with a reflected border of ``halo`` on every side.

    Half types become float32: the gradient by a pixel is the sum of those by its reflections.
    """
    differentiable = _needs_autograd(x, y) and not _torch_folds_well(x)
    reflect: Callable[..., Tensor] = Reflected.apply if differentiable else _reflect
    if x.is_floating_point():
        dtype = reference.result_dtype(x.dtype)
        x, y = x.to(dtype), y.to(dtype)
    return reflect(x, halo), reflect(y, halo)


def _torch_folds_well(image: Tensor) -> bool:
    """True for small images on the CPU: torch's own backward is one call, and deterministic."""
    return not torch.compiler.is_compiling() and image.is_cpu and image.numel() < 2**16


def _reflect(image: Tensor, halo: int) -> Tensor:
    pads = [halo] * (2 * (image.dim() - 2))
    mode = "reflect" if image.numel() > 0 else "constant"  # reflection wants channels
    return torch.nn.functional.pad(image, pads, mode=mode)


def _unreflected(grad: Tensor, halo: int) -> Tensor:
    """The gradient by an image, from that by the image with a reflected border."""
    if not _torch_folds_well(grad):
        return _folded(grad, halo)
    like = grad.new_empty((*grad.shape[:2], *(size - 2 * halo for size in grad.shape[2:])))
    out: Tensor = torch.ops.aten.reflection_pad2d_backward(grad.contiguous(), like, [halo] * 4)
    return out


def _folded(grad: Tensor, halo: int, dim: int = 2) -> Tensor:
    """``grad`` without its border from ``dim`` on, whose values are added where they came from."""
    if dim == grad.dim():
        return grad.clone()
    size = grad.shape[dim] - 2 * halo
    left, inside, right = (
        _folded(grad.narrow(dim, start, count), halo, dim + 1)
        for start, count in ((0, halo), (halo, size), (halo + size, halo))
    )
    inside.narrow(dim, 1, halo).add_(left.flip(dim))
    inside.narrow(dim, size - 1 - halo, halo).add_(right.flip(dim))
    return inside


def _of_all_scales(
    x: Tensor,
    y: Tensor,
    settings: reference.Settings,
    scales: Scales,
    *shared: Unpack[_Shared],
) -> _Sweep:
    scale_weights, pooling, negative, joint, reflect = scales
    if reflect or negative == "raise":  # a border before the last sweep; means to be looked at
        return _compose_scales(x, y, settings, scales, *shared)
    swept: _Sweep = _sweep_scales(
        *(x, y, *settings, scale_weights, pooling, negative == "abs", joint, *shared)
    )
    return swept


def _sweep_scales_by_ops(x: Tensor, y: Tensor, *arguments: Any) -> _Sweep:
    window, c1, c2, low, scale, same, scale_weights, pooling, absolute, joint = arguments[:-7]
    scales = (scale_weights, pooling, "abs" if absolute else "relu", joint, False)
    settings = (window, c1, c2, low, scale, same)
    return _compose_scales(x, y, settings, scales, *arguments[-7:])


_implement("sweep_scales", _sweep_scales_by_ops)


def _compose_scales(
    x: Tensor,
    y: Tensor,
    settings: reference.Settings,
    scales: Scales,
    *shared: Unpack[_Shared],
) -> _Sweep:
    scale_weights, pooling, negative, joint, reflect = scales
    weights, constant, rows, columns, kept, gradients, late = shared
    window, c1, c2, *_, same = settings
    dtype = reference.result_dtype(x.dtype)
    group = positions(x, settings, kept)
    terms: list[Tensor] = []
    grads: list[Tensor] = []
    counts: list[int] = []
    for scale in range(len(scale_weights)):
        finest, coarsest = scale == 0, scale == len(scale_weights) - 1
        halo = len(window) // 2 if coarsest and reflect else 0
        if halo:
            dtype_of_images = x.dtype
            x, y = (_reflect(image.to(dtype), halo) for image in (x, y))
        counts.append(positions(x, settings, 2))
        mean = reference.SSIM if coarsest else reference.CONTRAST_STRUCTURE
        wanted = 1 << mean
        if finest:
            wanted = wanted | (_bits(weights) & ~(1 << reference.MS_SSIM))
        _, term, grad, pooled = _similarity(
            *(x, y, *settings, wanted, [float(t == mean) for t in range(reference.TERMS)], 0.0),
            *(None, rows if finest else None, columns if finest else None, counts[-1], 2),
            *(0 if finest and late else gradients, 0 if coarsest else pooling, False),
        )
        if halo:
            grad = [_unreflected(g, halo).to(dtype_of_images) for g in grad]
        terms.append(term)
        grads += grad
        if not coarsest:
            x, y = pooled
            settings = (window, c1, c2, 0.0, 1.0, same)
    rest = (joint, weights, constant, kept, counts)
    if negative == "raise":
        value, out, slopes = _combine_scales_or_raise(terms, scale_weights, *rest)
    else:
        value, out, slopes = _combine_scales(terms, scale_weights, negative == "abs", *rest)
    finest_weights = slopes.new_empty((0,))
    if late:
        finest_weights, slopes = _finest_weights(slopes, weights[reference.SSIM], group)
    return value.to(dtype), out, slopes, finest_weights.to(dtype), grads


def _is_transformed(*inputs: Tensor | None) -> bool:
    """Whether a transform of torch.func differentiates or batches one of them."""
    active = torch._C._are_functorch_transforms_active()
    if not active or torch.compiler.is_compiling():  # which can tell only that there is one
        return active
    tests = (torch._C._functorch.is_gradtrackingtensor, _is_batched)
    return any(test(tensor) for test in tests for tensor in inputs if tensor is not None)


def _needs_autograd(x: Tensor, y: Tensor, mask: Tensor | None = None) -> bool:
    if _is_transformed(x, y, mask):
        raise RuntimeError(
            "ssimfast does not go through torch.func (grad, vmap, jvp): call backward or "
            'torch.autograd.grad. reduction="batch" gives a value for each image, and the gradient '
            "of their sum is that of each image"
        )
    if forward_ad._current_level >= 0:  # a dual number requires no grad; autograd refuses it
        return True
    return torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)


def ssim_map(x: Tensor, y: Tensor, *settings: Unpack[reference.Settings]) -> Tensor:
    op: Callable[..., Tensor] = SSIMMap.apply if _needs_autograd(x, y) else _ssim_map
    return op(x, y, *settings)


def ssim_nd_map(
    x: Tensor, y: Tensor, mask: Tensor | None, *settings: Unpack[reference.Settings]
) -> Tensor:
    op: Callable[..., Tensor] = SSIMNdMap.apply if _needs_autograd(x, y, mask) else _ssim_nd_map
    return op(x, y, mask, *settings)


def ssim_nd_mean(
    x: Tensor, y: Tensor, settings: reference.Settings, count: int, kept: int
) -> Tensor:
    """The sum of SSIM over all but the first ``kept`` dimensions, divided by ``count``."""
    if _needs_autograd(x, y):
        value: Tensor = SSIMNdMean.apply(x, y, settings, count, kept)
    else:
        value, _ = _ssim_nd_mean(x, y, *settings, count, kept, 0)
    return value


def components_map(
    x: Tensor, y: Tensor, *settings: Unpack[reference.Settings]
) -> tuple[Tensor, Tensor]:
    op: _OfPairs = ComponentsMap.apply if _needs_autograd(x, y) else _components_map
    return op(x, y, *settings)


def similarity(
    x: Tensor,
    y: Tensor,
    settings: reference.Settings,
    weights: list[float],
    constant: float,
    rows: Tensor | None,
    columns: Tensor | None,
    count: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms, plus a constant, and the terms, which are not differentiable.

    (The constant makes a loss of a similarity without a node of autograd of its own, which would
    take as long as a small image.)
    """
    if _needs_autograd(x, y):
        differentiable: _OfPairs = Similarity.apply
        rest = (rows, columns, count, kept)
        return differentiable(x, y, settings, weights, constant, *rest)
    value: Tensor
    terms: Tensor
    value, terms, *_ = _similarity(
        *(x, y, *settings, _bits(weights), weights, constant, None, rows, columns),
        *(count, kept, 0, 0, False),
    )
    return value, terms


def multi_scale(
    x: Tensor,
    y: Tensor,
    settings: reference.Settings,
    scales: Scales,
    weights: list[float],
    constant: float,
    rows: Tensor | None,
    columns: Tensor | None,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of (SSIM, MS-SSIM, L1, L2, blurred L1), plus a constant, and these five."""
    rest = (rows, columns, kept)
    if _needs_autograd(x, y):
        differentiable: _OfPairs = MultiScale.apply
        return differentiable(x, y, settings, scales, weights, constant, *rest)
    value, terms, *_ = _of_all_scales(x, y, settings, scales, weights, constant, *rest, 0, False)
    return value, terms
