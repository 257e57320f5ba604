"""Files: found, and written in one step."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cyclegan.errors import UserError, cause

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".npy", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# Files that systems and archivers put beside images, in lower case. Hidden ones are not listed.
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")


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
    temporary = path.with_name(f".{uuid4().hex}.tmp")  # path.name may be as long as names can be
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
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            others[path.suffix.lower() or "without a suffix"] += 1
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    if not images:
        found = f"; found {left_out}" if left_out else ""
        raise UserError(f"no images in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}{found})")
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


def write_text(text: str, path: Path) -> None:
    write_bytes(text.encode(), path)
