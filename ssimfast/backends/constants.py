"""Numbers and dtypes that all Python backends share. csrc/terms.h has the same numbers."""

import torch
from torch import Tensor

# Terms of a loss, in the order of every list of five numbers. Bit t of `wanted` stands for term t.
SSIM, CONTRAST_STRUCTURE, L1, L2, BLURRED_L1 = range(5)
TERMS = 5
MS_SSIM = CONTRAST_STRUCTURE  # a loss with MS-SSIM has no contrast-structure term of its own

# How an odd number of rows or columns is pooled (argument `odd` of ms_ssim).
POOLINGS = {"none": 0, "floor": 1, "pad": 2, "replicate": 3}
# How a negative mean is treated (argument `negative` of ms_ssim).
NEGATIVES = {"relu": 0, "abs": 1, "raise": 2}

MAX_WINDOW_SIZE = 33
MAX_LEVELS = 16  # the finest pyramid level is then 2**15 = 32768 times as wide as the coarsest

# For means below this, the slope of a power with an exponent below 1 is computed at this mean,
# because it grows without bound towards 0.
LEAST_MEAN = 1e-4

# Neighbouring windows take differences from one shared pixel only if the centre tap is below this
# (a Gaussian with sigma > 1.15): in narrower windows that pixel is not close to all centres.
LARGEST_CENTRE_TAP = 0.35

# Distance from `low`, in value ranges, beyond which a constant is subtracted from the images before
# anything is squared (docs/mathematics.md, "Centring").
FAR = 4.0

_WITHOUT_FLOAT64 = {"mps", "xpu"}  # device types that are assumed to have no float64


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of values and maps for images of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest_dtype(x: Tensor) -> torch.dtype:
    """Widest floating dtype of the device of ``x``: the dtype of terms and slopes."""
    return torch.float32 if x.device.type in _WITHOUT_FLOAT64 else torch.float64
