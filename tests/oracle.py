"""SSIM and its gradient in float64 NumPy, straight from Wang et al. 2004: nothing of the package.

Every window is cut out and multiplied by the two-dimensional Gaussian; variances are means of
squared deviations; the gradient is the quotient rule on the textbook formula. Slow and plain.
"""

import numpy as np


def gaussian(size: int, sigma: float) -> np.ndarray:
    offset = np.arange(size) - (size - 1) / 2
    taps = np.exp(-0.5 * (offset / sigma) ** 2)
    window = np.outer(taps, taps)
    return window / window.sum()


def ssim(
    x: np.ndarray,
    y: np.ndarray,
    *,
    low: float = 0.0,
    high: float = 1.0,
    size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "valid",
    upstream: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The map of SSIM, and the gradients by x and y of ``sum(upstream * map)`` (default: ones)."""
    length = high - low
    x = (np.asarray(x, np.float64) - low) / length
    y = (np.asarray(y, np.float64) - low) / length
    halo = size // 2 if padding == "same" else 0
    width = [(0, 0), (0, 0), (halo, halo), (halo, halo)]
    x, y = np.pad(x, width), np.pad(y, width)
    window = gaussian(size, sigma)
    c1, c2 = k1**2, k2**2

    patches_x = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    patches_y = np.lib.stride_tricks.sliding_window_view(y, (size, size), (2, 3))
    ssim_map = np.empty(patches_x.shape[:4])
    grad_x, grad_y = np.zeros_like(x), np.zeros_like(y)
    if upstream is None:
        upstream = np.ones_like(ssim_map)
    for row in range(ssim_map.shape[2]):
        px, py = patches_x[:, :, row], patches_y[:, :, row]  # (N, C, W', size, size)
        mean_x = np.einsum("ncwij,ij->ncw", px, window)[..., None, None]
        mean_y = np.einsum("ncwij,ij->ncw", py, window)[..., None, None]
        dx, dy = px - mean_x, py - mean_y
        var_x = np.einsum("ncwij,ij->ncw", dx * dx, window)[..., None, None]
        var_y = np.einsum("ncwij,ij->ncw", dy * dy, window)[..., None, None]
        cov = np.einsum("ncwij,ij->ncw", dx * dy, window)[..., None, None]
        a1, a2 = 2 * mean_x * mean_y + c1, 2 * cov + c2
        b1, b2 = mean_x**2 + mean_y**2 + c1, var_x + var_y + c2
        value = a1 * a2 / (b1 * b2)
        ssim_map[:, :, row] = value[..., 0, 0]
        weight = upstream[:, :, row][..., None, None] * window
        luminance, contrast = a1 / b1, a2 / b2
        by_x = contrast * 2 * (mean_y - luminance * mean_x) / b1
        by_x = by_x + luminance * 2 * (dy - contrast * dx) / b2
        by_y = contrast * 2 * (mean_x - luminance * mean_y) / b1
        by_y = by_y + luminance * 2 * (dx - contrast * dy) / b2
        for column in range(ssim_map.shape[3]):
            at = (..., slice(row, row + size), slice(column, column + size))
            grad_x[at] += (weight * by_x)[:, :, column]
            grad_y[at] += (weight * by_y)[:, :, column]
    inside = (..., slice(halo, x.shape[2] - halo), slice(halo, x.shape[3] - halo))
    return ssim_map, grad_x[inside] / length, grad_y[inside] / length
