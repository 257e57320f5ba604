"""Translation of images with a trained generator."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cyclegan import checkpoints
from cyclegan.data import size_after
from cyclegan.errors import UserError, cause
from cyclegan.files import list_images
from cyclegan.images import (
    Range,
    check_holds,
    output_dtype,
    output_suffix,
    read_header,
    readable_images,
    scale,
    to_pixels,
    to_tensor,
    write_pixels,
)
from cyclegan.settings import Settings

TILE = 1024  # side in pixels, where the whole image does not fit in memory
# Memory that translating takes, for each pixel and channel of the first layer: 9 to 18 bytes were
# measured on a CPU (ResNet and U-Net, 512 to 1536 pixels a side).
BYTES_PER_VALUE = 20


def load_generator(
    checkpoint: Path, direction: str, device: torch.device
) -> tuple[nn.Module, Settings]:
    """`load_generators` for one direction, "ab" or "ba"."""
    generators, settings = load_generators(checkpoint, (direction,), device)
    return generators[direction], settings


def load_generators(
    checkpoint: Path, directions: Sequence[str], device: torch.device
) -> tuple[dict[str, nn.Module], Settings]:
    """The generators of a run by direction, the averaged ones if there are any, and the settings of
    the run. Nothing but the checkpoint is needed, and no pickle is read.

    Args:
        checkpoint: a checkpoint's folder, or a run's, of which the latest is taken.
        directions: "ab", "ba" or both.
    """
    kinds = ("", "averaged_")
    files = [f"{kind}generator_{name}.safetensors" for kind in kinds for name in directions]
    folder = checkpoints.find(checkpoint, [checkpoints.CONFIG, *files])
    settings = Settings(**checkpoints.read_config(folder)["settings"])
    return {name: _load(folder, name, settings).to(device) for name in directions}, settings


def _load(folder: Path, direction: str, settings: Settings) -> nn.Module:
    averaged = folder / f"averaged_generator_{direction}.safetensors"
    file = averaged if averaged.exists() else folder / f"generator_{direction}.safetensors"
    generator = settings.make_generator()
    try:
        generator.load_state_dict(load_file(file))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{file} does not hold the weights of {settings.generator}: {cause(error)}"
        ) from error
    return generator.eval().requires_grad_(False)


def translate_files(
    generator: nn.Module,
    settings: Settings,
    direction: str,
    source: Path,
    target: Path,
    device: torch.device,
    size: str = "",
    tile: int | None = None,
    overlap: int | None = None,
) -> int:
    """Translate an image file, or every readable image of a folder and its subfolders. Results have
    the dtype of their image, and values in the range of the other domain.

    Args:
        settings: of the generator's run.
        direction: "ab" or "ba".
        source: a file, or a folder.
        target: of a file, the file to write; of a folder, the folder of the same names with .png,
            .tif or .npy.
        size: what images are scaled to before, as "512" (the shorter side) or "512x768"; "": not.
        tile: see `translate`; None: 0 where memory has room for the whole image, else 1024.
        overlap: see `translate`.

    Returns:
        How many were written.
    """
    given, made = (settings.ranges[domain] for domain in direction)
    targets = _targets(source, target, settings, made)
    count = 0
    for path, pixels in readable_images(targets, settings.channels):
        if size:
            pixels = scale(pixels, size_after("size", size, pixels.shape[:2]))
        largest = tile or 0
        if tile is None and not fits_in_memory(generator, pixels.shape[:2], device):
            largest = TILE
            warnings.warn(
                f"{path} is translated in tiles of {TILE} pixels, which may differ in tone: there "
                "is no memory for the whole image at once (--tile 0 tries it; --size scales it)",
                stacklevel=2,
            )
        result = translate(generator, to_tensor(pixels, given).to(device), largest, overlap)
        file, dtype = targets[path]
        write_pixels(to_pixels(result, dtype, made), file)
        count += 1
    if count == 0:
        raise UserError(f"no readable image in {source}")
    return count


def _sources(source: Path, target: Path) -> list[Path]:
    """The images to translate."""
    if source.exists() and source.resolve() == target.resolve():
        raise UserError(f"the images would overwrite themselves: IN and OUT are both {source}")
    if source.is_dir():
        # Results in a folder inside of the source are no images to translate.
        results = target.resolve()
        inside = source.resolve() in results.parents
        return [
            path
            for path in list_images(source)
            if not (inside and results in path.resolve().parents)
        ]
    if not source.exists():
        raise UserError(f"no such file or folder: {source}")
    return [source]


def _targets(
    source: Path, target: Path, settings: Settings, made: Range | None
) -> dict[Path, tuple[Path, np.dtype]]:
    """The file and the dtype of each image's translation. Files that are no images are named and
    left out.

    Args:
        made: value range of the translations.
    """
    targets = {}
    for path in _sources(source, target):
        try:
            dtype = output_dtype(read_header(path, settings.channels)[1], made)
        except UserError as error:
            warnings.warn(f"skipped {error}", stacklevel=3)
            continue
        if path == source:
            check_holds(target, dtype, settings.channels)
            targets[path] = (target, dtype)
        else:
            suffix = output_suffix(path, dtype, settings.channels)
            targets[path] = ((target / path.relative_to(source)).with_suffix(suffix), dtype)
    files = Counter(file for file, _ in targets.values())
    clashes = [file for file, count in files.items() if count > 1]
    if clashes:
        raise UserError(f"several images would be written to {clashes[0]}")
    return targets


def fits_in_memory(generator: nn.Module, size: tuple[int, int], device: torch.device) -> bool:
    """Whether translating an image of this height and width at once takes at most half of the free
    memory, as far as that can be known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    width = next(generator.parameters()).shape[0]  # channels of the first layer
    return math.prod(size) * width * BYTES_PER_VALUE <= free / 2


@torch.inference_mode()
def translate(
    generator: nn.Module, image: Tensor, tile: int = 0, overlap: int | None = None
) -> Tensor:
    """(C, H, W) in [-1, 1] -> the same, of any size: padded to what the generator takes.

    What is larger than a tile is translated in tiles, which fade into one another: memory depends
    on the tile. (Instance norm then takes its statistics from a tile, not the whole image.)

    Args:
        tile: largest side in pixels that is translated at once; 0: everything is.
        overlap: pixels that neighbouring tiles share, at most half of a tile; None: an eighth.
    """
    overlap = tile // 8 if overlap is None else overlap
    if tile < 0 or (tile and not 0 <= overlap <= tile // 2):
        raise UserError(
            f"tile must be 0 or more, and overlap in [0, tile / 2]; got {tile} and {overlap}"
        )
    height, width = image.shape[-2:]
    if not tile or max(height, width) <= tile:
        return _translate_whole(generator, image)
    total, weight = torch.zeros_like(image), torch.zeros_like(image[:1])
    for top, bottom in _cut(height, tile, overlap):
        for left, right in _cut(width, tile, overlap):
            here = (slice(None), slice(top, bottom), slice(left, right))
            fade = (
                _fade(top, bottom, height, overlap)[:, None] * _fade(left, right, width, overlap)
            ).to(image)
            total[here] += fade * _translate_whole(generator, image[here])
            weight[here] += fade
    return total / weight


def _translate_whole(generator: nn.Module, image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    smallest, multiple = generator.smallest, generator.multiple
    right, bottom = (
        max(smallest, -(-side // multiple) * multiple) - side for side in (width, height)
    )
    padded = F.pad(image[None], (0, right, 0, bottom), mode="replicate")
    return generator(padded)[0, :, :height, :width]


def _cut(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Tiles of one axis, evenly spread, that share at least `overlap`."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def _fade(start: int, end: int, length: int, overlap: int) -> Tensor:
    """The weight of each pixel of a tile: it falls to the sides that have a neighbour."""
    ramp = torch.ones(end - start)
    rising = torch.arange(1, overlap + 1) / (overlap + 1)
    if start > 0 and overlap:
        ramp[:overlap] = rising
    if end < length and overlap:
        ramp[-overlap:] = rising.flip(0)
    return ramp


def find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # no such name; no such device in this build of torch
        raise UserError(f"device must be auto or one that torch has here; got {name!r}") from None
