"""Image files: found, read as 8-bit RGB, turned into tensors and back, and written in one step."""

import hashlib
import io
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cyclegan.errors import UserError, cause
from cyclegan.progress import progress

MOST_UNREADABLE = 0.05  # of a folder to train on: more is a mistake, not bad luck
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Files that systems and archivers put beside images, in lower case. Hidden ones are not listed.
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
# What Pillow raises on files that are damaged, no images, or far too large.
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns an OSError in the block, which writes `size` bytes to `path`, into a UserError that
    says so: the system's error often names no file, and never how much space it takes."""
    try:
        yield
    except OSError as error:
        takes = "" if size is None else f" ({max(size / 1e6, 0.1):,.1f} MB)"
        raise UserError(f"cannot write {path}{takes}: {cause(error)}") from error


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
    """The image files in `folder` and its subfolders, by name; at least one, or an error naming it.

    Hidden files and those of the system are no images. A warning counts the other files by kind.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    images, others = [], Counter()
    for path in _files(folder):
        if path.suffix.lower() in SUFFIXES:
            images.append(path)
        else:
            others[path.suffix.lower() or "without a suffix"] += 1
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    if not images:
        found = f"; found {left_out}" if left_out else ""
        raise UserError(f"no images in {folder} (looked for {', '.join(SUFFIXES)}{found})")
    if left_out:
        warnings.warn(
            f"left out of {folder}, which has {len(images)} images: {left_out}", stacklevel=2
        )
    return sorted(images)


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, links included; no hidden ones, none of systems."""

    def is_counted(name: str) -> bool:
        return not name.startswith(".") and name.lower() not in SYSTEM_FILES

    def fail(error: OSError) -> None:
        raise error

    visited = set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # a link may lead back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(filter(is_counted, folders))
        yield from (Path(root, name) for name in filter(is_counted, names))


def usable_images(folder: Path) -> list[Path]:
    """The image files of `folder` that can be read, by name: every one is decoded once, in threads.

    Raises:
        UserError: more than 5 % of them cannot be read. Fewer are named and skipped.
    """
    paths = list_images(folder)
    errors = []
    bar = progress(f"checking {folder.name}", "image", len(paths), delay=2, leave=False)
    with ThreadPoolExecutor() as threads, bar:
        for error in threads.map(_why_unreadable, paths):
            errors.append(error)
            bar.update()
    bad = [(path, error) for path, error in zip(paths, errors, strict=True) if error is not None]
    if len(bad) > MOST_UNREADABLE * len(paths):
        names = ", ".join(path.name for path, _ in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise UserError(
            f"{len(bad)} of {len(paths)} images in {folder} cannot be read: {names} ({bad[0][1]})"
        )
    for _, error in bad:
        warnings.warn(f"skipped {error}", stacklevel=2)
    return [path for path, error in zip(paths, errors, strict=True) if error is None]


def _why_unreadable(path: Path) -> str | None:
    try:
        read_rgb(path)
    except UserError as error:
        return str(error)
    return None


def read_rgb(path: Path) -> Image.Image:
    """The image as `to_rgb` makes it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UNREADABLE as error:
        raise UserError(f"unreadable image {path}: {cause(error)}") from error


def readable_images(paths: Iterable[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """Each path with its image, read when it is asked for; unreadable files are named and skipped.

    Python shows a repeated warning once, so a file that stays broken is named once a process.
    """
    for path in paths:
        try:
            rgb = read_rgb(path)
        except UserError as error:
            warnings.warn(f"skipped {error}", stacklevel=2)
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


def write_bytes(content: bytes, path: Path) -> None:
    with writing(path, len(content)), replacing(path) as temporary:
        temporary.write_bytes(content)


def write_png(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(buffer.getvalue(), path)


def write_text(text: str, path: Path) -> None:
    write_bytes(text.encode(), path)
