"""SSIM and MS-SSIM over a whole data set, as metrics of torchmetrics, which must be installed.

They keep a sum of the values of the images and their number, and so hold no images and no graph;
across processes both are summed. Both are float64, whatever dtype the metric is cast to, and stay
on the CPU if the device has no float64.
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

    _module: type[SSIM] | type[MSSSIM]

    # Any: most are torchmetrics' own, which says no more of them.
    def __init__(self, **arguments: Any) -> None:
        known = {*inspect.signature(self._module).parameters} - {"reduction"}
        ours = {name: arguments.pop(name) for name in known & arguments.keys()}
        super().__init__(**arguments)  # which refuses what it does not know
        self._measure = self._module(reduction="batch", **ours)
        # MetricCollection shares the states of metrics whose states have equal names and values.
        digest = hashlib.sha256(repr(self._measure).encode()).hexdigest()[:16]
        self._total, self._count = f"total_{digest}", f"count_{digest}"
        for name in (self._total, self._count):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    @property
    def total(self) -> Tensor:
        """The sum of the values of all images so far."""
        total: Tensor = getattr(self, self._total)
        return total

    @property
    def count(self) -> Tensor:
        """The number of images so far."""
        count: Tensor = getattr(self, self._count)
        return count

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            preds: images; uint8 or floating point.
            target: images of the same shape, dtype and device.
        """
        with torch.no_grad():
            values = self._measure(preds, target).to(self.total.device)
        self.total.add_(values.sum(dtype=torch.float64))
        self.count.add_(len(values))

    def compute(self) -> Tensor:
        """The mean over all images so far, a scalar in float32; NaN before the first."""
        return (self.total / self.count).float().to(self.device)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()
    ) -> nn.Module:
        """Moves the metric. Its states change their device and never their dtype."""
        super()._apply(fn, (*exclude_state, *self._defaults))
        for name in (self._total, self._count):
            default: Any = self._defaults[name]
            self._defaults[name] = _moved(default, fn)
            setattr(self, name, _moved(getattr(self, name), fn))
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        for name in (self._total, self._count):  # the file may be that of a model that was cast
            setattr(self, name, getattr(self, name).double())


def _moved(state: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """The state on the device to which ``fn`` moves a tensor, if that device has float64."""
    goal = fn(state.new_empty(0, dtype=torch.float32))
    if widest_dtype(goal) != torch.float64:
        return state.cpu()
    if state.is_meta:  # it has no images yet
        return torch.zeros_like(state, device=goal.device)
    return state.to(goal.device)


class StructuralSimilarity(_MeanOverImages):
    """The mean SSIM of all images, by :func:`ssimfast.ssim`.

    Args:
        arguments: those of :class:`ssimfast.SSIM` but ``reduction``, and those of
            :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``. Unless a range is given,
            it is 0 to 255 for uint8 images and 0 to 1 for all others.

    Images are (N, C, H, W), volumes (N, C, D, H, W). Raises the errors of :func:`ssimfast.ssim`.
    """

    _module = SSIM


class MultiScaleStructuralSimilarity(_MeanOverImages):
    """The mean MS-SSIM of all images, by :func:`ssimfast.ms_ssim`.

    Args:
        arguments: those of :class:`ssimfast.MSSSIM` but ``reduction``, and those of
            :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``. Unless a range is given,
            it is 0 to 255 for uint8 images and 0 to 1 for all others.

    Images are (N, C, H, W). Raises the errors of :func:`ssimfast.ms_ssim`.
    """

    _module = MSSSIM
