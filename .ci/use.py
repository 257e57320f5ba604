"""Computes losses with an installation, and compares SSIM with its formula.

Usage: use.py BACKEND, the one that a CPU should have.
"""

import sys

import torch
from torch.nn.functional import conv2d

import ssimfast

taps = torch.exp(-((torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2) / 2)
window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2


def textbook(x, y):
    """Wang et al. 2004, eq. 13, of images (N, 1, H, W) in [0, 1]."""
    mean_x, mean_y = conv2d(x, window), conv2d(y, window)
    variances = conv2d(x * x + y * y, window) - mean_x**2 - mean_y**2
    covariance = conv2d(x * y, window) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()


x, y = torch.rand(2, 2, 1, 48, 48, dtype=torch.float64).requires_grad_().unbind()
expected = torch.autograd.grad(textbook(x, y), (x, y))
images = [image.detach().float().requires_grad_() for image in (x, y)]
got = torch.autograd.grad(ssimfast.ssim(*images), images)
torch.testing.assert_close(got, expected, check_dtype=False, rtol=1e-4, atol=1e-7)
loss = ssimfast.MixLoss(weights="auto")(*images)
assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, images))
assert ssimfast.backends()["cpu"] == sys.argv[1], ssimfast.backends()
