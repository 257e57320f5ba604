"""Numbers and dtypes that every backend in Python shares. csrc/terms.h has the same numbers."""

import torch
from torch import Tensor

# Terms of a loss, in the order of every list of five: bit t of `wanted` asks for term t.
SSIM, CONTRAST_STRUCTURE, L1, L2, BLURRED_L1 = range(5)
TERMS = 5
MS_SSIM = CONTRAST_STRUCTURE  # MS-SSIM takes the place of its finest level's term

# How an odd number of rows or columns is pooled: see ms_ssim's argument `odd`.
POOLINGS = {"none": 0, "floor": 1, "pad": 2, "replicate": 3}
# How a negative mean is treated: see ms_ssim's argument `negative`.
NEGATIVES = {"relu": 0, "abs": 1, "raise": 2}

MAX_WINDOW_SIZE = 33
MAX_LEVELS = 16  # of a pyramid: the finest has 32768 pixels for each pixel of the coarsest

# Below this mean the slope of a power is taken as if the mean were this: a root is infinitely
# steep at 0.
LEAST_MEAN = 1e-4

# Windows that share one centre need a wide Gaussian: its centre tap is below this (sigma > 1.15).
LARGEST_CENTRE_TAP = 0.35

# Images farther from `low` than this many value ranges are far: they are brought near before
# anything is squared (docs/mathematics.md, "Centring").
FAR = 4.0

_WITHOUT_FLOAT64 = {"mps", "xpu"}  # device types


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of values and maps for images of ``dtype``: float32 for half types and uint8."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest_dtype(x: Tensor) -> torch.dtype:
    """The widest floating dtype of the device of ``x``, which terms and slopes have."""
    return torch.float32 if x.device.type in _WITHOUT_FLOAT64 else torch.float64
