"""Types of the public arguments: allowed values, and keywords that functions and modules share."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from torch import Tensor

Window = Literal["gaussian", "uniform"]
Padding = Literal["valid", "same", "reflect"]
Reduction = Literal["mean", "sum", "batch", "none"]
Odd = Literal["floor", "pad", "replicate"]
Negative = Literal["relu", "abs", "raise"]
Channels = Literal["separate", "joint"]
Preset = Literal[
    "wang2004", "pytorch-msssim", "torchmetrics", "skimage", "tf", "fused-ssim", "3dgs"
]
Shown = Literal[True, "ssim", "contrast_structure"]  # True: the SSIM map
ReturnMap = bool | Shown
Weights = Sequence[float] | Literal["auto"]
# Subsets of Padding and Reduction that similarity_loss accepts.
LossPadding = Literal["valid", "same"]
LossReduction = Literal["mean", "batch"]


class _Statistic(TypedDict, total=False):
    value_range: tuple[float, float] | None
    data_range: float | Tensor | None
    window: Window
    k1: float
    k2: float
    sample_covariance: bool
    preset: Preset | None


class WindowArguments(_Statistic, total=False):
    window_size: int
    sigma: float


class _Pyramid(TypedDict, total=False):
    weights: Weights
    odd: Odd
    negative: Negative
    channels: Channels


class SSIMArguments(_Statistic, total=False):
    window_size: int | Sequence[int]
    sigma: float | Sequence[float]
    padding: Padding
    reduction: Reduction


class MSSSIMArguments(WindowArguments, _Pyramid, total=False):
    padding: Padding
    reduction: Reduction


class MixLossArguments(WindowArguments, _Pyramid, total=False):
    padding: LossPadding
    reduction: LossReduction


class SimilarityLossArguments(MixLossArguments, total=False):
    ssim: float
    ms_ssim: float
    l1: float
    l2: float
    gaussian_l1: float
