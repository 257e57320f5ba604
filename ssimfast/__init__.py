"""Fast, memory-efficient SSIM and MS-SSIM losses for PyTorch."""

from importlib import metadata as _metadata

from ssimfast.functional import ms_ssim, similarity_loss, ssim, ssim_components
from ssimfast.measures import SSIMComponents
from ssimfast.modules import MSSSIM, SSIM, MixLoss, MSSSIMLoss, SimilarityLoss, SSIMLoss
from ssimfast.ops.library import backends
from ssimfast.warming import warmup

try:
    __version__ = _metadata.version("ssimfast")
except _metadata.PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "MSSSIM",
    "SSIM",
    "MSSSIMLoss",
    "MixLoss",
    "SSIMComponents",
    "SSIMLoss",
    "SimilarityLoss",
    "backends",
    "ms_ssim",
    "similarity_loss",
    "ssim",
    "ssim_components",
    "warmup",
]
