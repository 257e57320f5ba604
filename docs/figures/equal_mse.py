"""Distortions of one mean squared error, and what SSIM and MS-SSIM say of them.

``python docs/figures/equal_mse.py FOLDER`` writes equal_mse.jpg and prints its numbers.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

import plates
import torch
from skimage.filters import gaussian
from torch import Tensor

import ssimfast

JPEG_QUALITY = 6  # is an integer, so the other distortions are brought to the error of this one


class Distorted(NamedTuple):
    image: Tensor
    mean_squared_error: float
    ssim: float
    ms_ssim: float


def brighter(image: Tensor, strength: float) -> Tensor:
    return (image + strength).clamp(0, 1)


def more_contrast(image: Tensor, strength: float) -> Tensor:
    return (image + strength * (image - image.mean())).clamp(0, 1)


def noisy(image: Tensor, strength: float) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + strength * noise).clamp(0, 1)


def blurred(image: Tensor, strength: float) -> Tensor:
    return plates.from_array(gaussian(plates.to_array(image), 20 * strength, channel_axis=2))


def mean_squared_error(x: Tensor, y: Tensor) -> float:
    return (x - y).square().mean().item()


def with_error(image: Tensor, distort: Callable[[Tensor, float], Tensor], error: float) -> Tensor:
    """The image, distorted as strongly as makes that mean squared error: by bisection."""
    weak, strong = 0.0, 1.0
    for _ in range(25):
        strength = (weak + strong) / 2
        if mean_squared_error(distort(image, strength), image) < error:
            weak = strength
        else:
            strong = strength
    return distort(image, strength)


def measure() -> dict[str, Distorted]:
    original = plates.photograph("coffee", 70, 150)
    compressed = plates.jpeg(original, JPEG_QUALITY)
    error = mean_squared_error(compressed, original)
    images = {
        "Photograph": original,
        "Brighter": with_error(original, brighter, error),
        "More contrast": with_error(original, more_contrast, error),
        "Blurred": with_error(original, blurred, error),
        "JPEG": compressed,
        "Noisy": with_error(original, noisy, error),
    }
    return {
        name: Distorted(
            image,
            mean_squared_error(image, original),
            ssimfast.ssim(image, original).item(),
            ssimfast.ms_ssim(image, original).item(),
        )
        for name, image in images.items()
    }


def main(folder: Path) -> str:
    panels, rows = [], []
    for name, found in measure().items():
        ssim, ms_ssim = (plates.number(value, 2) for value in (found.ssim, found.ms_ssim))
        panels.append(plates.Panel(name, f"SSIM {ssim}    MS-SSIM {ms_ssim}", found.image))
        rows.append((name, plates.number(found.mean_squared_error, 4), ssim, ms_ssim))
    with plates.figure(panels, folder / "equal_mse.jpg"):
        pass
    return plates.table(("image", "MSE", "SSIM", "MS-SSIM"), rows)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
