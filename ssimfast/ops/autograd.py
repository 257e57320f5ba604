"""Autograd Functions around the ops, and the functions that the measures call.

The Functions compute first derivatives by reverse mode. ``differentiable.py`` computes everything
else: gradients with ``create_graph=True``, forward mode, and the transforms of ``torch.func``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssimfast.backends.constants import L1, NEGATIVES, value_dtype
from ssimfast.ops import differentiable, library, multiscale
from ssimfast.ops.multiscale import wanted_bits
from ssimfast.ops.schemas import Levels, Loss, Statistic
from ssimfast.ops.transforms import is_batch_of_gradients, is_transformed

_Results = Callable[..., tuple[Tensor, ...]]


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


def _save_for_backward(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves the images for second derivatives, and the gradients; also notes whether backward may
    overwrite the gradients because nobody else holds them."""
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


def _is_first_order(upstream: Tensor) -> bool:
    """False in a backward pass that ops cannot compute: for a gradient that may be differentiated
    again (``create_graph=True``), or for a batch of upstream gradients."""
    return not (torch.is_grad_enabled() or is_batch_of_gradients(upstream))


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
        ctx.call = (statistic, components)
        return tuple(library.maps(x, y, mask, statistic, components))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        needs = ctx.needs_input_grad[:2]
        x, y, mask = ctx.saved_tensors
        statistic, components = ctx.call
        if not all(map(_is_first_order, upstream)):
            by_images = differentiable.gradients_of(
                lambda x, y: differentiable.maps(x, y, mask, statistic, components),
                (x, y),
                needs,
                upstream,
            )
            return *_by_need(by_images, needs), None, None, None
        x, y = _in_order(x, y, needs)
        grads = library.maps_grad(list(upstream), x, y, mask, statistic, sum(needs))
        return *_by_need(grads, needs), None, None, None


class _Sweep(torch.autograd.Function):
    """A loss without MS-SSIM. The forward pass computes the gradient in the same sweep."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        statistic: Statistic,
        loss: Loss,
        count: int,
        kept: int,
        mask: Tensor | None,
        mask_factors: Tensor | None,
        map_term: int,
    ) -> Any:
        needs = ctx.needs_input_grad[:2]
        first, second = _in_order(x, y, needs)
        # For float32 and float64, the sweep writes the gradient of the value itself. In half types,
        # that gradient may underflow (a mean over many pixels) or overflow (a large weight), so
        # backward applies these factors.
        grad_scale, grad_count = statistic.scale, count
        ctx.factor, ctx.count = 1.0, 1
        if x.dtype != value_dtype(x.dtype):
            largest = max(1.0, *map(abs, loss.weights))
            grad_scale, grad_count = 1 / largest, 1
            ctx.factor, ctx.count = statistic.scale * largest, count
        value, terms, grads, _, maps = library.sweep(
            first,
            second,
            statistic,
            loss,
            mask=mask,
            mask_factors=mask_factors,
            kept=kept,
            gradients=sum(needs),
            wanted=wanted_bits(loss.weights),
            count=count,
            grad_scale=grad_scale,
            grad_count=grad_count,
            map_term=map_term,
        )
        ctx.call = (statistic, loss, count, kept)
        _save_for_backward(ctx, x, y, mask, mask_factors, *grads)
        ctx.mark_non_differentiable(terms, *maps)
        ctx.set_materialize_grads(False)  # backward gets None, not zeros, for terms and map
        return value, terms, *maps

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> Any:
        if upstream is None:  # the value has no gradient
            return (None,) * 9
        needs = ctx.needs_input_grad[:2]
        x, y, mask, mask_factors, *grads = ctx.saved_tensors
        if not _is_first_order(upstream):
            call = (*ctx.call, mask, mask_factors, -1)
            by_images = differentiable.gradients_of(
                lambda x, y: differentiable.loss_of(x, y, *call), (x, y), needs, [upstream]
            )
            return *_by_need(by_images, needs), *[None] * 7
        if torch.compiler.is_compiling():
            upstream = library.depend_on(upstream, [x, y])
        grads = [_ready_to_change(ctx, grad) for grad in grads]
        for grad in grads:
            library.scale_(grad, upstream, ctx.factor, ctx.count)
        return *_by_need(grads, needs), *[None] * 7


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
        value, terms, slopes, grads = _sweep_levels(
            *_in_order(x, y, needs), statistic, loss, levels, reflect, kept, gradients=sum(needs)
        )
        ctx.call = (statistic, loss, levels, reflect, kept)
        _save_for_backward(ctx, x, y, slopes, *grads)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # backward gets None, not zeros, for the terms
        return value, terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> Any:
        if upstream is None:  # the value has no gradient
            return (None,) * 7
        needs = ctx.needs_input_grad[:2]
        x, y, slopes, *grads = ctx.saved_tensors
        if not _is_first_order(upstream):
            by_images = differentiable.gradients_of(
                lambda x, y: differentiable.multi_scale_loss_of(x, y, *ctx.call),
                (x, y),
                needs,
                [upstream],
            )
            return *_by_need(by_images, needs), *[None] * 5
        if torch.compiler.is_compiling():
            upstream = library.depend_on(upstream, [x, y])
        statistic, loss, levels, *_ = ctx.call
        pixel_weights = loss.weights[L1:]
        first, second = _in_order(x, y, needs) if any(pixel_weights) else (None, None)
        images = sum(needs)
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
                x=first,
                y=second,
                pixel_weights=[weight * (1 - 2 * image) for weight in pixel_weights],
                rows=loss.rows,
                columns=loss.columns,
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


def _is_differentiated(x: Tensor, y: Tensor) -> bool:
    """True if a result of the images needs an autograd Function."""
    return torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)


def maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool = False
) -> Sequence[Tensor]:
    """The SSIM map; with ``components``, the maps of luminance and contrast-structure."""
    if is_transformed(x, y):
        return differentiable.maps(x, y, mask, statistic, components)
    if _is_differentiated(x, y):
        apply: Callable[..., Sequence[Tensor]] = _Maps.apply
        return apply(x, y, mask, statistic, components)
    return library.maps(x, y, mask, statistic, components)


def loss_of(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    count: int,
    kept: int,
    mask: Tensor | None = None,
    mask_factors: Tensor | None = None,
    map_term: int = -1,
) -> tuple[Tensor, ...]:
    """The value of a loss without MS-SSIM, its terms (..., TERMS) and the map of ``map_term``, if
    any. Only the value has a gradient.

    A term is a sum divided by ``count``. The loss has its own constant (as in 1 - SSIM) because
    another autograd node would take as long as a small image.
    """
    if mask is not None and x.dtype == torch.float16 and _is_differentiated(x, y):
        # The sweep multiplies gradients by ``mask_factors``, and that may overflow in float16.
        x, y = (image if image.dtype == torch.uint8 else image.float() for image in (x, y))
    call = (x, y, statistic, loss, count, kept, mask, mask_factors, map_term)
    if is_transformed(x, y):
        return differentiable.loss_of(*call)
    if _is_differentiated(x, y):
        apply: _Results = _Sweep.apply
        return apply(*call)
    value, terms, _, _, maps = library.sweep(
        x,
        y,
        statistic,
        loss,
        mask=mask,
        mask_factors=mask_factors,
        kept=kept,
        gradients=0,
        wanted=wanted_bits(loss.weights),
        count=count,
        map_term=map_term,
    )
    return value, terms, *maps


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
    call = (x, y, statistic, loss, levels, reflect, kept)
    if is_transformed(x, y):
        return differentiable.multi_scale_loss_of(*call)
    if _is_differentiated(x, y):
        apply: _Results = _SweepLevels.apply
        value, terms = apply(*call)
        return value, terms
    value, terms, *_ = _sweep_levels(*call, gradients=0)
    return value, terms
