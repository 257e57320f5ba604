"""Fused structural similarity (SSIM) for PyTorch: forward and backward in one pass."""

from importlib.metadata import PackageNotFoundError, version

from ssimfast.functional import ssim
from ssimfast.modules import SSIM, SSIMLoss
from ssimfast.ops import backends

try:
    __version__ = version("ssimfast")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["SSIM", "SSIMLoss", "backends", "ssim"]
