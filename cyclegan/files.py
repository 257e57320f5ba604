"""Image files: found, read as 8-bit RGB, turned into tensors and back, and written in one step."""

import hashlib
import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cyclegan.errors import UserError

MOST_UNREADABLE = 0.05  # of a folder to train on: more is a mistake, not bad luck
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What Pillow raises on files that are damaged, no images, or far too large.
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block succeeds.

    A reader sees the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name; at least one, or an error naming it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"no images in {folder} (looked for {', '.join(SUFFIXES)})")
    return paths


def usable_images(folder: Path) -> list[Path]:
    """The image files of `folder` that can be read, by name: every one is decoded once, in threads.

    Raises:
        UserError: more than 5 % of them cannot be read. Fewer are named and skipped.
    """
    paths = list_images(folder)
    with ThreadPoolExecutor() as threads:
        errors = list(threads.map(_why_unreadable, paths))
    bad = [(path, error) for path, error in zip(paths, errors, strict=True) if error is not None]
    if len(bad) > MOST_UNREADABLE * len(paths):
        names = ", ".join(path.name for path, _ in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise UserError(
            f"{len(bad)} of {len(paths)} images in {folder} cannot be read: {names} ({bad[0][1]})"
        )
    for path, error in bad:
        warnings.warn(f"skipped unreadable image {path}: {error}", stacklevel=2)
    return [path for path, error in zip(paths, errors, strict=True) if error is None]


def _why_unreadable(path: Path) -> str | None:
    try:
        read_rgb(path)
    except UNREADABLE as error:
        return str(error)
    return None


def read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return to_rgb(image)


def readable_images(paths: Iterable[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """Each path with its image, read when it is asked for; unreadable files are named and skipped.

    Python shows a repeated warning once, so a file that stays broken is named once a process.
    """
    for path in paths:
        try:
            rgb = read_rgb(path)
        except UNREADABLE as error:
            warnings.warn(f"skipped unreadable image {path}: {error}", stacklevel=2)
        else:
            yield path, rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB.

    Transparency is laid over white; gray becomes three equal channels; 16-bit gray
    (modes I;16 and I) is divided by 257, which takes 65535 to 255; of 16-bit colours, in PNG and
    TIFF, Pillow keeps the upper eight bits. Floating-point images are refused: nothing in the file
    says which value is white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        gray16 = np.asarray(image).clip(0, 65535)
        return Image.fromarray((gray16 / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit RGB image -> float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_8_bit(tensor: Tensor) -> Tensor:
    """An image in [-1, 1] -> the nearest values of uint8, on the CPU."""
    return ((tensor.detach().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)


def to_image(tensor: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> 8-bit RGB image."""
    return Image.fromarray(to_8_bit(tensor).permute(1, 2, 0).numpy())


def fingerprint(path: Path) -> dict:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def write_png(image: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def write_text(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
