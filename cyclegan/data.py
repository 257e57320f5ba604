"""Unpaired images from folders, as tensors in [-1, 1]."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from cyclegan.errors import UserError
from cyclegan.files import list_images, read_rgb, readable_images, to_tensor, usable_images

# Training images are enlarged by this factor before the random crop (Zhu et al. 2017: 286 -> 256).
CROP_MARGIN = 286 / 256


class UnpairedImages(Dataset):
    """Training pairs (real_a, real_b), each (3, image_size, image_size), from trainA and trainB.

    Sample i depends on (seed, i) alone: not on the number of workers or processes, nor on what was
    read before. A goes through its folder in a new order in every pass, B is drawn at random.
    Files that cannot be read are named and left out; more than 5 % of them are an error.

    Args:
        root: folder that holds trainA and trainB.
        image_size: side of the crops in pixels.
        samples: how many pairs; more than the folders hold means several passes.
        seed: of order, partners, crops and flips.
    """

    def __init__(self, root: Path, image_size: int, samples: int, seed: int):
        self.root = root
        self.paths_a = usable_images(root / "trainA")
        self.paths_b = usable_images(root / "trainB")
        self.samples = samples
        self.seed = seed
        self.augment = v2.Compose(
            [
                v2.Resize(round(image_size * CROP_MARGIN), InterpolationMode.BICUBIC),
                v2.RandomCrop(image_size),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(index, len(self.paths_a))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.paths_a))
        rng = np.random.default_rng((self.seed, 1, index))
        image_a = read_rgb(self.paths_a[order[position]])
        image_b = read_rgb(self.paths_b[rng.integers(len(self.paths_b))])
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own stream
            torch.manual_seed(int(rng.integers(2**63)))
            return tuple(self.augment(image).as_subclass(Tensor) for image in (image_a, image_b))

    def digest(self) -> str:
        """Tells apart other images than these, by name."""
        domains = ((self.root / "trainA", self.paths_a), (self.root / "trainB", self.paths_b))
        names = [[path.relative_to(root).as_posix() for path in paths] for root, paths in domains]
        return hashlib.sha256(repr(names).encode()).hexdigest()


class Batches:
    """Which samples each batch holds, from step `first` on. All processes together take the samples
    in order, `size` each: two with batches of 4 see at each step what one with 8 sees."""

    def __init__(self, first: int, steps: int, size: int, process: int = 0, processes: int = 1):
        self.steps = range(first, steps)
        self.size = size
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = (step * self.processes + self.process) * self.size
            yield list(range(start, start + self.size))


def centre_crops(folder: Path, image_size: int, limit: int | None = None) -> Iterator[Tensor]:
    """The images of a folder, or the first `limit`, centre-cropped: (3, image_size, image_size).
    Files that cannot be read are named and left out."""
    empty = True
    for _, image in islice(readable_images(list_images(folder)), limit):
        empty = False
        yield to_tensor(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))
    if empty:
        raise UserError(f"no readable image in {folder}")


def load_test_images(folder: Path, image_size: int, limit: int) -> Tensor:
    """(N, 3, image_size, image_size) of `centre_crops`."""
    return torch.stack([*centre_crops(folder, image_size, limit)])
