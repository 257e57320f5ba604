"""Questions about the transforms of ``torch.func``, forward mode and batches of gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual

# torch has no public functions for these questions. If a version lacks the private ones, torch
# raises an error for the transform or the batch.
# True inside a transform of torch.func: grad, vmap, jvp and so on.
in_func_transform: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)
# True for a tensor inside of torch.autograd.grad(..., is_grads_batched=True).
_in_batch_of_gradients: Callable[[Tensor], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", lambda tensor: False
)


def is_batch_of_gradients(upstream: Tensor) -> bool:
    """True in a backward pass that ``vmap`` or ``is_grads_batched=True`` calls for many upstream
    gradients at once."""
    if torch.compiler.is_compiling():  # which cannot trace the second question
        return False
    return in_func_transform() or _in_batch_of_gradients(upstream)


def _in_forward_mode() -> bool:
    """False if there are no dual tensors. Asking each tensor takes 1 % of the time of a small loss.
    If a version of torch lacks the private number of the level, each tensor is asked."""
    level: int = getattr(forward_ad, "_current_level", 0)
    return level >= 0


def has_tangent(tensor: Tensor) -> bool:
    """True for a dual tensor of forward-mode AD."""
    return _in_forward_mode() and _unpack(tensor).tangent is not None


def is_transformed(*tensors: Tensor) -> bool:
    """True if a result of the tensors must be made of plain PyTorch operations: inside a transform
    of ``torch.func``, or in forward mode."""
    return in_func_transform() or (_in_forward_mode() and any(map(has_tangent, tensors)))
