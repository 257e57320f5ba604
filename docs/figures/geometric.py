"""Images that moved a little: SSIM falls, the contextual loss of small patches does not rise.

``python docs/figures/geometric.py FOLDER`` writes geometric.jpg and prints its numbers.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

import numpy as np
import plates
from skimage.filters import gaussian
from skimage.transform import SimilarityTransform, warp
from torch import Tensor
from torch.nn import functional as F

import ssimfast
from cyclegan.features import contextual_loss

MARGIN = 16  # pixels around the photograph, from where a move brings new ones
SHIFT, DEGREES, PER_CENT = 3, 2, 3
BLUR, JPEG_QUALITY = 2, 10
PATCH, STRIDE = 7, 3  # pixels: side of the patches, and from one that is looked for to the next
LOOKED_FOR, REACH = 96, 16  # pixels: side of the middle they are from, and how far around it


class Distorted(NamedTuple):
    image: Tensor
    ssim: float
    ms_ssim: float
    contextual: float


def cut(wide: np.ndarray, by: int = 0) -> Tensor:
    inside = slice(MARGIN + by, MARGIN + by + plates.SIDE)
    return plates.from_array(wide[inside, inside])


def moved(wide: np.ndarray, **how: float) -> Tensor:
    """Rotated or scaled about the middle."""
    middle = (np.array(wide.shape[1::-1]) - 1) / 2
    there, back = (SimilarityTransform(translation=at) for at in (-middle, middle))
    motion = there + SimilarityTransform(**how) + back
    return cut(warp(wide, motion.inverse, order=3, mode="reflect").clip(0, 1))


def patches(image: Tensor, reach: int) -> Tensor:
    """All patches of the middle and so many pixels around it, as features (1, C, h, w)."""
    edge = (plates.SIDE - LOOKED_FOR) // 2 - reach
    middle = image[..., edge:-edge, edge:-edge]
    positions = middle.shape[-1] - PATCH + 1
    return F.unfold(middle, PATCH).unflatten(2, (positions, positions))


def contextual(image: Tensor, original: Tensor) -> float:
    """Whether the patches of the original have their like in the image, wherever it is."""
    wanted = patches(original, reach=0)[..., ::STRIDE, ::STRIDE]
    return contextual_loss(patches(image, REACH), wanted).item()


def measure() -> dict[str, Distorted]:
    wide = plates.to_array(plates.photograph("chelsea", 22, 98, MARGIN))
    original = cut(wide)
    images = {
        "Photograph": original,
        f"Shifted by {SHIFT} pixels": cut(wide, by=SHIFT),
        f"Rotated by {DEGREES}°": moved(wide, rotation=np.deg2rad(DEGREES)),
        f"Enlarged by {PER_CENT} %": moved(wide, scale=1 + PER_CENT / 100),
        "Blurred": cut(gaussian(wide, BLUR, channel_axis=2)),
        "JPEG": plates.jpeg(original, JPEG_QUALITY),
    }
    return {
        name: Distorted(
            image,
            ssimfast.ssim(image, original).item(),
            ssimfast.ms_ssim(image, original).item(),
            contextual(image, original),
        )
        for name, image in images.items()
    }


def main(folder: Path) -> str:
    panels, rows = [], []
    for name, found in measure().items():
        ssim, ms_ssim, contextual = (plates.number(value, 2) for value in found[1:])
        panels.append(plates.Panel(name, f"SSIM {ssim}    contextual {contextual}", found.image))
        rows.append((name, ssim, ms_ssim, contextual))
    with plates.figure(panels, folder / "geometric.jpg"):
        pass
    return plates.table(("image", "SSIM", "MS-SSIM", "contextual loss of patches"), rows)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
