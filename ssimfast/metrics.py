"""SSIM and MS-SSIM over a whole data set, as metrics of torchmetrics, which must be installed.

They keep a sum of the values of the images and their number, in float64, and so hold no images and
no graph; across processes both are summed.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

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
    total: Tensor
    count: Tensor

    # Any: most are torchmetrics' own, which says no more of them.
    def __init__(self, **arguments: Any) -> None:
        known = {*inspect.signature(self._module).parameters} - {"reduction"}
        ours = {name: arguments.pop(name) for name in known & arguments.keys()}
        super().__init__(**arguments)  # which refuses what it does not know
        self._measure = self._module(reduction="batch", **ours)
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            preds: images; uint8 or floating point.
            target: images of the same shape, dtype and device.
        """
        with torch.no_grad():
            values = self._measure(preds, target)
        self.total += values.sum(dtype=torch.float64)
        self.count += len(values)

    def compute(self) -> Tensor:
        """The mean over all images so far, a scalar in float32; NaN before the first."""
        return (self.total / self.count).float()


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
