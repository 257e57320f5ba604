"""Unpaired images from folders, as tensors in [-1, 1]."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from cyclegan.errors import UserError
from cyclegan.files import list_images, readable_images, to_tensor

# Training images are enlarged by this factor before the random crop (Zhu et al. 2017: 286 -> 256).
CROP_MARGIN = 286 / 256


class UnpairedImages(Dataset):
    """Training pairs (real_a, real_b), each (3, image_size, image_size), from trainA and trainB.

    Sample i depends on (seed, i) alone: not on the number of workers, nor on what was read
    before. A goes through its folder in a new order in every pass, B is drawn at random.

    Args:
        root: folder that holds trainA and trainB.
        image_size: side of the crops in pixels.
        samples: how many pairs; more than the folders hold means several passes.
        seed: of order, partners, crops and flips.
    """

    def __init__(self, root: Path, image_size: int, samples: int, seed: int):
        self.paths_a = list_images(root / "trainA")
        self.paths_b = list_images(root / "trainB")
        for paths in (self.paths_a, self.paths_b):
            read_from(paths, 0)  # none that can be read: better an error now than in a worker
        self.image_size = image_size
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(index, len(self.paths_a))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.paths_a))
        rng = np.random.default_rng((self.seed, 1, index))
        image_a = read_from(self.paths_a, int(order[position]))
        image_b = read_from(self.paths_b, int(rng.integers(len(self.paths_b))))
        return self.augment(image_a, rng), self.augment(image_b, rng)

    def augment(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Resize, random crop, and in half of the cases a mirror image."""
        image = resize_shorter_side(image, round(self.image_size * CROP_MARGIN))
        left = int(rng.integers(image.width - self.image_size + 1))
        top = int(rng.integers(image.height - self.image_size + 1))
        image = image.crop((left, top, left + self.image_size, top + self.image_size))
        return to_tensor(ImageOps.mirror(image) if rng.random() < 0.5 else image)


def load_test_images(folder: Path, image_size: int, limit: int) -> Tensor:
    """The first `limit` images of a folder, centre-cropped: (N, 3, image_size, image_size)."""
    images = [
        to_tensor(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))
        for _, image in islice(readable_images(list_images(folder)), limit)
    ]
    if not images:
        raise UserError(f"no readable image in {folder}")
    return torch.stack(images)


def read_from(paths: list[Path], index: int) -> Image.Image:
    """The image at `index`, or the next one that can be read."""
    _, image = next(readable_images(paths[index:] + paths[:index]), (None, None))
    if image is None:
        raise UserError(f"no readable image in {paths[0].parent}")
    return image


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Scale, up or down, so that the shorter side is `size`; the aspect ratio stays."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
