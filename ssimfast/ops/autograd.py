"""Autograd Functions around the ops, and the functions that the measures call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssimfast.backends.constants import L1, NEGATIVES, value_dtype
from ssimfast.ops import library, multiscale
from ssimfast.ops.multiscale import wanted_bits
from ssimfast.ops.schemas import Levels, Loss, Statistic

_ValueAndTerms = Callable[..., tuple[Tensor, Tensor]]


# ---- gradients that forward saves for backward --------------------------------------------------

# torch has no public functions for these two questions. If a version lacks the private ones, the
# defaults below make backward copy gradients before it changes them, which is always safe.
_engine = getattr(torch._C, "_autograd", None)
# True if the running backward pass keeps the graph for another one.
_retains_graph: Callable[[], bool] = getattr(
    _engine, "_get_current_graph_task_keep_graph", lambda: True
)
# The innermost hooks of torch.autograd.graph.saved_tensors_hooks, or None.
_saved_tensors_hooks: Callable[[bool], Any] = getattr(
    _engine, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: True
)


def _save_gradients(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves gradients, and whether backward may overwrite them because nobody else holds them."""
    ctx.save_for_backward(*tensors)
    # A saved-tensor hook may keep the tensor that it receives.
    ctx.owns_saved = torch.compiler.is_compiling() or _saved_tensors_hooks(True) is None


def _ready_to_change(ctx: Any, grad: Tensor) -> Tensor:
    """The saved gradient itself if backward may overwrite it, else a copy."""
    if not torch.compiler.is_compiling() and ctx.owns_saved and not _retains_graph():
        return grad
    return grad.clone()


def _in_order(x: Tensor, y: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """The images, swapped if necessary such that the first one needs a gradient."""
    return (x, y) if needs[0] else (y, x)


def _by_need(
    grads: Sequence[Tensor], needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients w.r.t. x and y, or None, from the gradients w.r.t. the images ``_in_order``."""
    return grads[0] if needs[0] else None, grads[-1] if needs[1] else None


def _refuse_second_derivative() -> None:
    """Raises RuntimeError in a backward pass with create_graph=True.

    torch's once_differentiable would only detach the gradient, so a penalty on the gradient would
    silently have no effect.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "ssimfast is differentiable once: call backward or torch.autograd.grad without "
            "create_graph=True"
        )


# ---- autograd Functions -------------------------------------------------------------------------


class _Maps(torch.autograd.Function):
    """Maps of images or volumes. Backward computes the statistics again to save memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        statistic: Statistic,
        components: bool,
    ) -> Any:
        ctx.save_for_backward(x, y, mask)
        ctx.statistic = statistic
        return tuple(library.maps(x, y, mask, statistic, components))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        _refuse_second_derivative()
        needs = ctx.needs_input_grad[:2]
        x, y, mask = ctx.saved_tensors
        x, y = _in_order(x, y, needs)
        grads = library.maps_grad(list(upstream), x, y, mask, ctx.statistic, sum(needs))
        return *_by_need(grads, needs), None, None, None


class _Sweep(torch.autograd.Function):
    """A loss without MS-SSIM. The forward pass computes the gradient in the same sweep."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, statistic: Statistic, loss: Loss, count: int, kept: int
    ) -> Any:
        needs = ctx.needs_input_grad[:2]
        x, y = _in_order(x, y, needs)
        # For float32 and float64, the sweep writes the gradient of the value itself. In half types,
        # that gradient may underflow (a mean over many pixels) or overflow (a large weight), so
        # backward applies these factors.
        grad_scale, grad_count = statistic.scale, count
        ctx.factor, ctx.count = 1.0, 1
        if x.dtype != value_dtype(x.dtype):
            largest = max(1.0, *map(abs, loss.weights))
            grad_scale, grad_count = 1 / largest, 1
            ctx.factor, ctx.count = statistic.scale * largest, count
        value, terms, grads, *_ = library.sweep(
            x,
            y,
            statistic,
            loss,
            kept=kept,
            gradients=sum(needs),
            wanted=wanted_bits(loss.weights),
            count=count,
            grad_scale=grad_scale,
            grad_count=grad_count,
        )
        _save_gradients(ctx, *grads)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # backward gets None, not zeros, for the terms
        return value, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> Any:
        if upstream is None:  # the value has no gradient
            return (None,) * 6
        _refuse_second_derivative()
        grads = [_ready_to_change(ctx, grad) for grad in ctx.saved_tensors]
        for grad in grads:
            library.scale_(grad, upstream, ctx.factor, ctx.count)
        return *_by_need(grads, ctx.needs_input_grad[:2]), *[None] * 4


class _SweepLevels(torch.autograd.Function):
    """A loss with MS-SSIM. Forward computes a gradient at each level; backward adds them up."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        statistic: Statistic,
        loss: Loss,
        levels: Levels,
        reflect: bool,
        kept: int,
    ) -> Any:
        needs = ctx.needs_input_grad[:2]
        x, y = _in_order(x, y, needs)
        value, terms, slopes, grads = _sweep_levels(
            x, y, statistic, loss, levels, reflect, kept, gradients=sum(needs)
        )
        ctx.call = (statistic, loss.weights, levels)
        images = (x, y) if any(loss.weights[L1:]) else (None, None)
        _save_gradients(ctx, slopes, *images, loss.rows, loss.columns, *grads)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # backward gets None, not zeros, for the terms
        return value, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> Any:
        if upstream is None:  # the value has no gradient
            return (None,) * 7
        _refuse_second_derivative()
        needs = ctx.needs_input_grad[:2]
        images = sum(needs)
        slopes, x, y, rows, columns, *grads = ctx.saved_tensors
        statistic, weights, levels = ctx.call
        out = []
        for image in range(images):  # the pixel terms depend on x - y: for y the sign changes
            finest, *coarser = grads[image::images]
            finest = _ready_to_change(ctx, finest)
            library.collapse_(
                finest,
                coarser,
                slopes,
                upstream,
                low=statistic.low,
                scale=statistic.scale,
                pooling=levels.pooling,
                x=x,
                y=y,
                pixel_weights=[weight * (1 - 2 * image) for weight in weights[L1:]],
                rows=rows,
                columns=columns,
            )
            out.append(finest)
        return *_by_need(out, needs), *[None] * 5


def _sweep_levels(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    reflect: bool,
    kept: int,
    gradients: int,
) -> Any:
    if reflect or levels.negative == NEGATIVES["raise"]:
        call = (x, y, statistic, loss, levels, kept, gradients, reflect)
        return multiscale.sweep_levels(library.sweep, library.combine_levels, *call)
    return library.sweep_levels(x, y, statistic, loss, levels, kept=kept, gradients=gradients)


# ---- functions that the measures call -----------------------------------------------------------


def _is_differentiated(*images: Tensor) -> bool:
    """True if a result of the images needs an autograd Function.

    True for dual tensors of forward-mode AD as well: the Functions do not support them, so torch
    raises an error.
    """
    if torch.is_grad_enabled():
        for image in images:
            if image.requires_grad:
                return True
    unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
    return any(unpack(image).tangent is not None for image in images)


def maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool = False
) -> Sequence[Tensor]:
    """The SSIM map; with ``components``, the maps of luminance and contrast-structure."""
    if not _is_differentiated(x, y, *([] if mask is None else [mask])):
        return library.maps(x, y, mask, statistic, components)
    differentiable: Callable[..., Sequence[Tensor]] = _Maps.apply
    return differentiable(x, y, mask, statistic, components)


def loss_of(
    x: Tensor, y: Tensor, statistic: Statistic, loss: Loss, count: int, kept: int
) -> tuple[Tensor, Tensor]:
    """The value of a loss without MS-SSIM, and its terms (..., TERMS), which have no gradient.

    A term is a sum divided by ``count``. The loss has its own constant (as in 1 - SSIM) because
    another autograd node would take as long as a small image.
    """
    if _is_differentiated(x, y):
        differentiable: _ValueAndTerms = _Sweep.apply
        return differentiable(x, y, statistic, loss, count, kept)
    value, terms, *_ = library.sweep(
        x,
        y,
        statistic,
        loss,
        kept=kept,
        gradients=0,
        wanted=wanted_bits(loss.weights),
        count=count,
    )
    return value, terms


def multi_scale_loss_of(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    reflect: bool,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """The value of a loss with MS-SSIM, and its terms (..., TERMS), which have no gradient.

    All terms are means. ``reflect`` gives the coarsest level a reflected border.
    """
    if _is_differentiated(x, y):
        differentiable: _ValueAndTerms = _SweepLevels.apply
        return differentiable(x, y, statistic, loss, levels, reflect, kept)
    value, terms, *_ = _sweep_levels(x, y, statistic, loss, levels, reflect, kept, gradients=0)
    return value, terms
