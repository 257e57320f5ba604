"""SSIM and MS-SSIM over a whole data set, as metrics for torchmetrics, which must be installed.

A metric stores two states: the sum of the values of all images, and the number of images. It keeps
no images and no graph. Both states are summed across processes. They are float64, even if the
metric is cast to another dtype, and stay on the CPU if the device has no float64.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssimfast.backends.constants import widest_dtype
from ssimfast.modules import MSSSIM, SSIM

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "ssimfast.metrics needs torchmetrics: pip install 'ssimfast[metrics]'"
    ) from error

__all__ = ["MultiScaleStructuralSimilarity", "StructuralSimilarity"]


class _MeanOverImages(Metric):
    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    _module: type[SSIM[Any]] | type[MSSSIM]

    # Any, because torchmetrics does not annotate its own keyword arguments.
    def __init__(self, **arguments: Any) -> None:
        known = {*inspect.signature(self._module).parameters} - {"reduction", "return_map"}
        ours = {name: arguments.pop(name) for name in known & arguments.keys()}
        super().__init__(**arguments)  # raises an error for unknown arguments
        self._measure = self._module(reduction="batch", **ours)
        # Names of the states depend on the arguments, because MetricCollection shares the states of
        # metrics whose states have equal names and values.
        digest = hashlib.sha256(repr(self._measure).encode()).hexdigest()[:16]
        self._total, self._count = f"total_{digest}", f"count_{digest}"
        for name in (self._total, self._count):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    @property
    def total(self) -> Tensor:
        """Sum of the values of all images so far: a scalar in float64."""
        total: Tensor = getattr(self, self._total)
        return total

    @property
    def count(self) -> Tensor:
        """Number of images so far: a scalar in float64."""
        count: Tensor = getattr(self, self._count)
        return count

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds the values of a batch.

        Args:
            preds: images, uint8 or floating point.
            target: images of the same shape and device.
        """
        with torch.no_grad():
            values = self._measure(preds, target).to(self.total.device)
        self.total.add_(values.sum(dtype=torch.float64))
        self.count.add_(len(values))

    def compute(self) -> Tensor:
        """Mean over all images so far: a scalar in float32, NaN before the first image."""
        return (self.total / self.count).float().to(self.device)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()
    ) -> nn.Module:
        """Moves or casts the metric. Its states change their device but not their dtype."""
        super()._apply(fn, (*exclude_state, *self._defaults))
        for name in (self._total, self._count):
            default: Any = self._defaults[name]
            self._defaults[name] = _moved(default, fn)
            setattr(self, name, _moved(getattr(self, name), fn))
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        for name in (self._total, self._count):  # a model that was cast saved another dtype
            setattr(self, name, getattr(self, name).double())


def _moved(state: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """The state on the device to which ``fn`` moves a tensor, if that device has float64."""
    goal = fn(state.new_empty(0, dtype=torch.float32))
    if widest_dtype(goal) != torch.float64:
        return state.cpu()
    if state.is_meta:  # a meta tensor has no data to copy
        return torch.zeros_like(state, device=goal.device)
    return state.to(goal.device)


class StructuralSimilarity(_MeanOverImages):
    """Mean SSIM of all images, computed by :func:`ssimfast.ssim`.

    Args:
        arguments: keyword arguments of :class:`ssimfast.SSIM`, except ``reduction`` and
            ``return_map``, and of
            :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``. The default value range is
            (0, 255) for uint8 images and (0, 1) for all others.

    Images are (N, C, H, W), volumes (N, C, D, H, W). Raises the errors of :func:`ssimfast.ssim`.
    """

    _module = SSIM


class MultiScaleStructuralSimilarity(_MeanOverImages):
    """Mean MS-SSIM of all images, computed by :func:`ssimfast.ms_ssim`.

    Args:
        arguments: keyword arguments of :class:`ssimfast.MSSSIM`, except ``reduction`` and
            ``return_map``, and of
            :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``. The default value range is
            (0, 255) for uint8 images and (0, 1) for all others.

    Images are (N, C, H, W). Raises the errors of :func:`ssimfast.ms_ssim`.
    """

    _module = MSSSIM
