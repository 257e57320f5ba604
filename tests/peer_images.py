"""Pairs of images from formulas, the same on every machine, for comparison with other libraries.

Structure that a window resolves (sines), edges, flat black and white areas (a bar and corners), and
noise that is a hash of the pixel's number. Channels and images of a batch differ in how far the
second image is from the first, so that a mean over channels in the wrong place shows in the value.
"""

import numpy as np

# Name: (shape, distortion of the second image). Sizes are even, odd, and the smallest admissible.
IMAGES: dict[str, tuple[tuple[int, ...], str]] = {
    "even": ((2, 3, 64, 50), "mild"),
    "odd": ((1, 3, 37, 45), "mild"),
    "volume": ((2, 2, 14, 13, 17), "mild"),
    "pyramid_even": ((2, 3, 192, 176), "mild"),
    "pyramid_odd": ((2, 3, 181, 195), "mild"),
    # The smallest side for five scales; both sides are odd at every scale.
    "pyramid_161": ((1, 2, 161, 193), "mild"),
    # Contrast-structure means below 0: where a convention for those shows.
    "pyramid_negative": ((2, 3, 178, 177), "inverted"),
}


def images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The pair of this name: float64 in [0, 1], each value one that float32 holds too."""
    shape, distortion = IMAGES[name]
    x, y = np.empty(shape), np.empty(shape)
    for image in range(shape[0]):
        for channel in range(shape[1]):
            x[image, channel], y[image, channel] = _planes(shape[2:], image, channel, distortion)
    return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)


def _planes(size: tuple[int, ...], image: int, channel: int, distortion: str):
    grid = np.indices(size).astype(np.float64)
    relative = [axis / (length - 1) for axis, length in zip(grid, size, strict=True)]
    row, column = relative[-2:]
    phase = 0.9 * image + 1.7 * channel
    waves = np.sin(0.37 * grid[-2] + 0.11 * grid[-1] + phase)
    waves = waves + np.sin((4 + 3 * channel) * column + 5 * row * row + phase)
    if len(size) == 3:
        waves = waves + np.sin(0.6 * grid[0] + 0.3 * grid[-1])
    clean = 0.45 + 0.05 * channel + 0.15 * waves
    clean[(column > 0.55) & (column < 0.8)] *= 0.15 + 0.3 * image  # a bar with sharp sides
    clean[(row > 0.7) & (column < 0.35)] = 0.0
    clean[(row < 0.2) & (column < 0.3)] = 1.0
    noise = _noise(size, 2 * (5 * image + channel)) - 0.5
    other = _noise(size, 2 * (5 * image + channel) + 1) - 0.5
    strength = (0.04, 0.25, 0.7)[channel] * (1 + 0.5 * image)
    x = clean + 0.1 * noise
    y = (0.9 - 0.2 * channel) * clean + 0.05 * channel + strength * other
    if distortion == "inverted" and (image == 1 or channel == 2):
        y = 1 - clean  # every channel of the second image, one of the first
    return np.clip(x, 0, 1), np.clip(y, 0, 1)


def _noise(size: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform in [0, 1): each pixel's number, hashed in 32-bit arithmetic."""
    value = np.arange(np.prod(size), dtype=np.uint32) + np.uint32(seed * 0x01000193)
    for factor in (0x7FEB352D, 0x846CA68B):
        value ^= value >> np.uint32(16)
        value *= np.uint32(factor)
    value ^= value >> np.uint32(15)
    return (value / 2.0**32).reshape(size)
