"""The ops ``torch.ops.ssimfast.*``: schemas, fake kernels, who implements them on this machine,
and the autograd Functions around them.

Arguments that the ops share:

- ``x``, ``y``: images (N, C, H, W) of one floating dtype. float16 and bfloat16 are computed in
  float32, which is then the dtype of values and maps; gradients have the dtype of the images.
- ``window``: K odd taps of the separable, symmetric filter, summing to 1.
- ``low``, ``scale``: ``(value - low) * scale`` maps the value range to [0, 1]; ``c1``, ``c2`` are
  the constants of Wang et al. 2004 for that range.
- ``same``: zero padding (of the mapped images), else windows inside the image only.
- ``count``: what a sum of SSIM is divided by; ``per_image``: one result an image, else one in all.

The gradient that ``ssim_reduced_grad`` returns is that of the plain *sum* of SSIM by images in unit
range, so that it fits float16; ``scale_grad`` multiplies it by ``upstream * scale / count``.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssimfast import reference

_FOLDER = Path(__file__).parent
_SETTINGS = "float[] window, float c1, float c2, float low, float scale, bool same"
_REDUCTION = f"{_SETTINGS}, SymInt count, bool per_image"
_SCHEMAS = {
    "ssim_map": f"(Tensor x, Tensor y, {_SETTINGS}) -> Tensor",
    "ssim_map_grad": f"(Tensor upstream, Tensor x, Tensor y, {_SETTINGS}) -> Tensor",
    "ssim_map_grad_both": f"(Tensor upstream, Tensor x, Tensor y, {_SETTINGS}) -> (Tensor, Tensor)",
    "ssim_reduced": f"(Tensor x, Tensor y, {_REDUCTION}) -> Tensor",
    "ssim_reduced_grad": f"(Tensor x, Tensor y, {_REDUCTION}) -> (Tensor, Tensor)",
    "ssim_reduced_grad_both": f"(Tensor x, Tensor y, {_REDUCTION}) -> (Tensor, Tensor, Tensor)",
    "scale_grad": "(Tensor grad, Tensor upstream, float scale, SymInt count) -> Tensor",
}

for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"ssimfast::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    # The dispatcher's fallback: every device for which nothing better is registered.
    torch.library.impl(f"ssimfast::{_name}", "CompositeExplicitAutograd")(getattr(reference, _name))


def _load_extension() -> Any:
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
        from ssimfast import _C
    except ImportError as error:
        raise ImportError(
            f"ssimfast._C does not load with torch {torch.__version__} ({error}); it needs torch "
            "2.10 or newer, and otherwise to be built again where the sources are: "
            "pip install --force-reinstall --no-deps --no-cache-dir ."
        ) from error
    _C.instruction_set()  # raises if SSIMFAST_CPU_ISA asks for one that is not there
    return _C


extension = _load_extension()


def backends() -> dict[str, str]:
    """The backend that serves each kind of device: ``cpu`` or ``reference``.

    ``cpu`` is the compiled C++ kernel, ``reference`` plain PyTorch operations.
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = {"cpu": "CPU", "cuda": "CUDA", "xpu": "XPU", "mps": "MPS"}
    return {
        device: device if has_kernel("ssimfast::ssim_map", key) else "reference"
        for device, key in keys.items()
    }


# ---- fake kernels: shapes, dtypes and strides of the results ------------------------------------


def _check_devices(x: Tensor, y: Tensor) -> None:
    torch._check(x.device == y.device, lambda: f"x is on {x.device}, y on {y.device}")


def _fake_map(x, y, window, c1, c2, low, scale, same):
    _check_devices(x, y)
    lost = 0 if same else len(window) - 1
    height, width = x.shape[-2:]
    shape = (*x.shape[:-2], height - lost, width - lost)
    return x.new_empty(shape, dtype=reference.result_dtype(x.dtype))


def _fake_reduced(x, y, window, c1, c2, low, scale, same, count, per_image):
    _check_devices(x, y)
    shape = (x.shape[0],) if per_image else ()
    return x.new_empty(shape, dtype=reference.result_dtype(x.dtype))


_FAKES = {
    "ssim_map": _fake_map,
    "ssim_map_grad": lambda upstream, x, y, *_: torch.empty_like(x),
    "ssim_map_grad_both": lambda upstream, x, y, *_: (torch.empty_like(x), torch.empty_like(y)),
    "ssim_reduced": _fake_reduced,
    "ssim_reduced_grad": lambda x, y, *a: (_fake_reduced(x, y, *a), torch.empty_like(x)),
    "ssim_reduced_grad_both": lambda x, y, *a: (
        _fake_reduced(x, y, *a),
        torch.empty_like(x),
        torch.empty_like(y),
    ),
    "scale_grad": lambda grad, upstream, scale, count: torch.empty_like(grad),
}

for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"ssimfast::{_name}")(_fake)


# ---- autograd -----------------------------------------------------------------------------------

# Bound once: looking an op up by attribute costs as much as a small kernel.
_ssim_map = torch.ops.ssimfast.ssim_map.default
_ssim_map_grad = torch.ops.ssimfast.ssim_map_grad.default
_ssim_map_grad_both = torch.ops.ssimfast.ssim_map_grad_both.default
_ssim_reduced = torch.ops.ssimfast.ssim_reduced.default
_ssim_reduced_grad = torch.ops.ssimfast.ssim_reduced_grad.default
_ssim_reduced_grad_both = torch.ops.ssimfast.ssim_reduced_grad_both.default
_scale_grad = torch.ops.ssimfast.scale_grad.default


def _refuse_second_derivative() -> None:
    # Called in backward, where gradients are recorded only if a second derivative was asked for.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "ssimfast.ssim is differentiable once: call backward or torch.autograd.grad without "
            "create_graph=True"
        )


class SSIMMap(torch.autograd.Function):
    """The map of SSIM; backward computes the statistics again rather than keeping them."""

    @staticmethod
    def forward(ctx, x, y, window, c1, c2, low, scale, same):
        ctx.save_for_backward(x, y)
        ctx.settings = (window, c1, c2, low, scale, same)
        return _ssim_map(x, y, *ctx.settings)

    @staticmethod
    def backward(ctx, upstream):
        _refuse_second_derivative()
        x, y = ctx.saved_tensors
        grad_x = grad_y = None
        need_x, need_y = ctx.needs_input_grad[:2]
        if need_x and need_y:
            grad_x, grad_y = _ssim_map_grad_both(upstream, x, y, *ctx.settings)
        elif need_x:
            grad_x = _ssim_map_grad(upstream, x, y, *ctx.settings)
        elif need_y:  # SSIM is symmetric
            grad_y = _ssim_map_grad(upstream, y, x, *ctx.settings)
        return grad_x, grad_y, *[None] * 6


class SSIMReduced(torch.autograd.Function):
    """SSIM reduced to numbers; the gradient is computed in the forward pass, on the same tiles."""

    @staticmethod
    def forward(ctx, x, y, window, c1, c2, low, scale, same, count, per_image):
        settings = (window, c1, c2, low, scale, same, count, per_image)
        need_x, need_y = ctx.needs_input_grad[:2]
        if need_x and need_y:
            value, grad_x, grad_y = _ssim_reduced_grad_both(x, y, *settings)
            ctx.save_for_backward(grad_x, grad_y)
        elif need_x:
            value, grad_x = _ssim_reduced_grad(x, y, *settings)
            ctx.save_for_backward(grad_x, None)
        else:  # SSIM is symmetric
            value, grad_y = _ssim_reduced_grad(y, x, *settings)
            ctx.save_for_backward(None, grad_y)
        ctx.scale, ctx.count = scale, count
        return value

    @staticmethod
    def backward(ctx, upstream):
        _refuse_second_derivative()
        grads = [
            None if grad is None else _scale_grad(grad, upstream, ctx.scale, ctx.count)
            for grad in ctx.saved_tensors
        ]
        return *grads, *[None] * 8


def _needs_autograd(x: Tensor, y: Tensor) -> bool:
    if forward_ad._current_level >= 0:  # a dual number requires no grad; autograd refuses it
        return True
    return torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)


def ssim_map(x: Tensor, y: Tensor, *settings: Any) -> Tensor:
    return (SSIMMap.apply if _needs_autograd(x, y) else _ssim_map)(x, y, *settings)


def ssim_reduced(x: Tensor, y: Tensor, *settings: Any) -> Tensor:
    return (SSIMReduced.apply if _needs_autograd(x, y) else _ssim_reduced)(x, y, *settings)
