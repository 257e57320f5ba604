"""The losses and maps in plain PyTorch operations, which can be differentiated any number of times,
in both modes, and transformed by ``torch.func``.

The functions have the arguments and results of those in ``autograd.py``, which are much faster.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssimfast.backends import reference
from ssimfast.backends.constants import POOLINGS
from ssimfast.ops import multiscale
from ssimfast.ops.multiscale import wanted_bits
from ssimfast.ops.schemas import Levels, Loss, Statistic


def maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool
) -> Sequence[Tensor]:
    return reference.maps(x, y, mask, statistic, components)


def loss_of(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    count: int,
    kept: int,
    mask: Tensor | None,
    mask_factors: Tensor | None,
    map_term: int,
) -> tuple[Tensor, ...]:
    value, terms, _, _, maps = reference.sweep(
        x,
        y,
        mask=mask,
        mask_factors=mask_factors,
        statistic=statistic,
        loss=loss,
        kept=kept,
        gradients=0,
        wanted=wanted_bits(loss.weights),
        count=count,
        grad_scale=1.0,
        grad_count=1,
        plane_weights=None,
        pooling=POOLINGS["none"],
        map_term=map_term,
    )
    return value, terms.detach(), *(values.detach() for values in maps)


def multi_scale_loss_of(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    reflect: bool,
    kept: int,
) -> tuple[Tensor, Tensor]:
    value, terms, *_ = multiscale.sweep_levels(
        reference.sweep,
        reference.combine_levels,
        x,
        y,
        statistic,
        loss,
        levels,
        kept=kept,
        gradients=0,
        reflect=reflect,
    )
    return value, terms.detach()


def gradients_of(
    function: Callable[[Tensor, Tensor], Sequence[Tensor]],
    images: tuple[Tensor, Tensor],
    needs: tuple[bool, bool],
    upstream: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Gradients w.r.t. those images that need one, with a graph that leads to the images and to
    ``upstream`` if grad mode is enabled.

    ``upstream`` are the gradients w.r.t. the first results of ``function``.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one image may be computed from the other: a gradient w.r.t. a view does not
        # contain the path through the other image.
        views = [image.view_as(image) for image in images]
        results = function(*views)[: len(upstream)]
    wanted = [view for view, needed in zip(views, needs, strict=True) if needed]
    return torch.autograd.grad(results, wanted, upstream, create_graph=create_graph)
