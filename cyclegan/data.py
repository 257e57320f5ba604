"""Unpaired images from folders: training pairs, and test images."""

import hashlib
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cyclegan.errors import UserError
from cyclegan.files import list_images
from cyclegan.images import (
    NATURAL_RANGES,
    Range,
    covering,
    read_header,
    read_pixels,
    readable_images,
    scale,
    scale_and_crop,
    to_tensor,
)
from cyclegan.loading import processes_here
from cyclegan.progress import progress
from cyclegan.settings import Settings, parse_size

# Training images are enlarged by this factor before the random crop (Zhu et al. 2017: 286 -> 256).
CROP_MARGIN = 286 / 256
MOST_UNREADABLE = 0.05  # of a folder to train on: more is a mistake, not bad luck
MEMORY_SHARE = 1 / 4  # of the free memory, which decoded training images may fill
MEASURED_IMAGES = 100  # of each folder, whose values show the range
LEAST_FILLED = 1 / 16  # of their range, which 16-bit images fill if that is their range


class TrainingFolder:
    """The images of a folder, scaled for the crops. Files without a readable header are named and
    left out; one that turns out to be damaged is named, and the next one stands in for it.

    Args:
        path: the folder.
        settings: of the run.
        value_range: black and white; None: those of the images' dtype, or as they are measured.

    Raises:
        UserError: more than 5 % of the files cannot be read (here, or later from `pixels`).
    """

    def __init__(self, path: Path, settings: Settings, value_range: Range | None):
        self.path, self.settings = path, settings
        self.held: list[np.ndarray | None] | None = None
        self.unreadable: dict[Path, UserError] = {}
        files = list_images(path)
        self.count = len(files)
        found = self._in_threads("checking", read_header, files)
        headers = {file: header for file, header in zip(files, found, strict=True) if header}
        self.paths = [*headers]
        self.dtypes = {dtype for _, dtype in headers.values()}
        sizes = [(*self._scaled_size(size), dtype) for size, dtype in headers.values()]
        self.nbytes = sum(h * w * settings.channels * dtype.itemsize for h, w, dtype in sizes)
        self.value_range = value_range or self._measure()
        # Pixels that a batch holds as they are, and that the device normalises.
        self.is_8_bit = self.value_range is None and self.dtypes == {np.dtype(np.uint8)}

    def hold(self) -> None:
        """Decode all images into memory."""
        self.held = self._in_threads("loading", self._load, self.paths)

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, C): image number `index`, scaled, or the next one that can be read."""
        for number in chain(range(index, len(self.paths)), range(index)):
            path = self.paths[number]
            if path in self.unreadable:
                continue
            if self.held is not None:
                return self.held[number]
            try:
                return self._load(path, self.settings.channels)
            except UserError as error:
                self._leave_out({path: error})
        raise UserError(f"no readable image in {self.path}")

    def crop(self, index: int, generator: torch.Generator) -> Tensor:
        """(C, height, width): a random part of `pixels`, as uint8, or float32 in [-1, 1]."""
        pixels = self.pixels(index)
        for axis, side in enumerate(self.settings.crop):
            spare = pixels.shape[axis] - side
            start = int(torch.randint(spare + 1, (), generator=generator)) if spare else 0
            pixels = pixels[start : start + side] if axis == 0 else pixels[:, start : start + side]
        if self.settings.flip and torch.rand(1, generator=generator) < 0.5:
            pixels = pixels[:, ::-1]
        if self.is_8_bit:
            return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, 2, 0)))
        return to_tensor(pixels, self.value_range)

    def _load(self, path: Path, channels: int) -> np.ndarray:
        pixels = read_pixels(path, channels)
        return scale(pixels, self._scaled_size(pixels.shape[:2]))

    def _scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        crop, load = self.settings.crop, self.settings.load_size
        if not load:
            size = covering(size, tuple(round(side * CROP_MARGIN) for side in crop))
        elif load != "native":
            size = size_after("load_size", load, size)
        fits = size[0] >= crop[0] and size[1] >= crop[1]
        return size if fits else covering(size, crop)

    def _in_threads(self, verb: str, read, paths: list[Path]) -> list:
        """`read(path, channels)` of each path, in threads; None where it cannot be read, which a
        warning says."""
        results = []

        def attempt(path: Path):
            try:
                return read(path, self.settings.channels)
            except UserError as error:
                return error

        what = f"{verb} {self.path.name}"
        bar = progress(what, "image", len(paths), delay=2, leave=False)
        with ThreadPoolExecutor() as threads, bar:
            for result in threads.map(attempt, paths):
                results.append(result)
                bar.update()
        errors = {p: r for p, r in zip(paths, results, strict=True) if isinstance(r, UserError)}
        self._leave_out(errors)
        return [None if isinstance(result, UserError) else result for result in results]

    def _leave_out(self, errors: dict[Path, UserError]) -> None:
        self.unreadable |= errors
        if len(self.unreadable) > MOST_UNREADABLE * self.count:
            names = [path.name for path in self.unreadable]
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            first = next(iter(self.unreadable.values()))
            raise UserError(
                f"{len(names)} of {self.count} images in {self.path} cannot be read: {some} "
                f"({first})"
            )
        for error in errors.values():
            warnings.warn(f"skipped {error}", stacklevel=2)

    def _measure(self) -> Range | None:
        """The least and greatest value of some images; None if these fill the dtype's range."""
        if np.dtype(np.uint8) in self.dtypes and self.dtypes <= NATURAL_RANGES.keys():
            return None
        some = self.paths[:: -(-len(self.paths) // MEASURED_IMAGES)]
        limits = [
            (float(pixels.min()), float(pixels.max()))
            for _, pixels in readable_images(some, self.settings.channels)
        ]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        if self.dtypes <= NATURAL_RANGES.keys() and high - low >= LEAST_FILLED * 65535:
            return None
        if low == high:
            raise UserError(f"value_range must be LOW,HIGH: all of {self.path} is {low:g}")
        return low, high


def size_after(name: str, text: str, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image of this size after scaling: "512" gives the shorter side,
    "512x768" both. `name` is the setting, for errors."""
    asked = parse_size(name, text)
    return asked if "x" in text else covering(size, asked)


class Order:
    """The item that each sample takes: every pass goes through all, in an order of its own."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._pass, self._items = -1, np.empty(0, int)

    def __getitem__(self, index: int) -> int:
        number, position = divmod(index, self.count)
        if number != self._pass:
            self._items = np.random.default_rng((self.seed, 0, number)).permutation(self.count)
            self._pass = number
        return int(self._items[position])


class UnpairedImages(Dataset):
    """Training pairs (real_a, real_b) without end, each (channels, height, width), from trainA and
    trainB: uint8 if all images of the folder have 8 bits (see `normalise`), else float32 in
    [-1, 1].

    Sample i depends on (seed, i) alone: not on the number of workers or processes, nor on what was
    read before. A goes through its folder in a new order in every pass, B is drawn at random.

    Attributes:
        settings: those given; value_range is what was measured, if anything was.
        in_memory: whether all images are held, decoded and scaled.

    Args:
        settings: of the run. With workers above 0 nothing is held in memory.
        memory: bytes that held images may take; None: a quarter of what is free.
    """

    def __init__(self, settings: Settings, memory: float | None = None):
        root, ranges = Path(settings.data), settings.ranges
        self.a, self.b = (
            TrainingFolder(root / f"train{x.upper()}", settings, ranges[x]) for x in "ab"
        )
        found = [
            one.value_range and "{:.9g},{:.9g}".format(*one.value_range) for one in self.folders
        ]
        parts = dict.fromkeys(text or "auto" for text in found)
        self.measured = [
            f"value range of {one.path.name}: {text}, measured"
            for one, text, given in zip(self.folders, found, ranges.values(), strict=True)
            if text and given is None
        ]
        self.settings = replace(settings, value_range="/".join(parts))
        if memory is None:
            memory = MEMORY_SHARE * psutil.virtual_memory().available / processes_here()
        self.nbytes = sum(one.nbytes for one in self.folders)
        self.in_memory = settings.workers <= 0 and self.nbytes <= memory
        if self.in_memory:
            for one in self.folders:
                one.hold()
        self._order = Order(len(self.a.paths), settings.seed)

    @property
    def folders(self) -> tuple[TrainingFolder, TrainingFolder]:
        return self.a, self.b

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.settings.seed, 1, index))
        partner = rng.integers(len(self.b.paths))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return (
            self.a.crop(self._order[index], generator),
            self.b.crop(partner, generator),
        )

    def describe(self) -> str:
        """Lines for the user: how images are loaded, and what was measured."""
        where = "decoded in memory" if self.in_memory else "decoded again for each crop"
        return "\n".join(
            [f"training images: {where} ({self.nbytes / 1e6:,.1f} MB)", *self.measured]
        )

    def digest(self) -> str:
        """Tells apart other images than these, by name."""
        names = [[p.relative_to(one.path).as_posix() for p in one.paths] for one in self.folders]
        return hashlib.sha256(repr(names).encode()).hexdigest()


class Batches:
    """Sample numbers of each batch, from step `first` on. All processes together take the samples
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


def centre_crops(settings: Settings, domain: str, limit: int | None = None) -> Iterator[Tensor]:
    """The test images of domain "a" or "b", or the first `limit`: the middle, scaled to
    settings.test, as (channels, height, width) in [-1, 1]. Files that cannot be read are named and
    left out."""
    folder, empty = Path(settings.data) / f"test{domain.upper()}", True
    images = readable_images(list_images(folder), settings.channels)
    for _, pixels in islice(images, limit):
        empty = False
        yield to_tensor(scale_and_crop(pixels, settings.test), settings.ranges[domain])
    if empty:
        raise UserError(f"no readable image in {folder}")


def load_test_images(settings: Settings, domain: str) -> Tensor:
    """(N, channels, height, width) of the first test images, settings.test_images at most;
    0: all."""
    return torch.stack([*centre_crops(settings, domain, settings.test_images or None)])
