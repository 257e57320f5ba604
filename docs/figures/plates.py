"""Photographs in, figures and Markdown tables out: what the scripts beside this one share."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

SIDE = 256  # of a photograph, in pixels
COLUMNS = 3

_DPI = 200
_CELL = 2 * SIDE / _DPI  # inches: two pixels of the figure for each of the photograph
_GAP, _ABOVE, _BELOW = 0.12, 0.30, 0.26
_STYLE = {
    "font.family": "DejaVu Sans",  # which comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Panel(NamedTuple):
    """An image with a line above and one below."""

    title: str
    caption: str
    image: Tensor


def photograph(name: str, top: int, left: int, margin: int = 0) -> Tensor:
    """SIDE x SIDE pixels of a photograph inside scikit-image, and a margin around them, as
    (1, 3, H, W) in [0, 1]."""
    rows, columns = (slice(at - margin, at + SIDE + margin) for at in (top, left))
    return from_array(getattr(skimage.data, name)()[rows, columns] / 255)


def from_array(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


def to_array(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).numpy()


def jpeg(image: Tensor, quality: int) -> Tensor:
    """The image after compression."""
    file = io.BytesIO()
    pixels = (to_array(image) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return from_array(np.asarray(Image.open(file)) / 255)


def number(value: float, digits: int) -> str:
    """Rounded, without the sign of a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def figure(panels: Sequence[Panel | None], path: Path) -> Iterator[list[Axes]]:
    """Writes a figure with the panels in rows, which includes what is drawn meanwhile into the axes
    that it gives: those of a panel None are empty, and leave room for labels."""
    with plt.rc_context(_STYLE):
        rows = -(-len(panels) // COLUMNS)
        width = COLUMNS * _CELL + (COLUMNS + 1) * _GAP
        height = rows * (_ABOVE + _CELL + _BELOW) + _GAP
        whole = plt.figure(figsize=(width, height), dpi=_DPI)
        for index, panel in enumerate(panels):
            row, column = divmod(index, COLUMNS)
            left = _GAP + column * (_CELL + _GAP)
            bottom = height - (row + 1) * (_ABOVE + _CELL) - row * _BELOW
            wide, high = _CELL, _CELL
            if panel is None:
                left, bottom, wide, high = left + 0.3, bottom + 0.2, wide - 0.4, high - 0.2
            axes = whole.add_axes((left / width, bottom / height, wide / width, high / height))
            if panel is not None:
                _show(axes, panel)
        yield whole.axes
        whole.savefig(path, pil_kwargs={"quality": 90, "subsampling": 0})
        plt.close(whole)


def _show(axes: Axes, panel: Panel) -> None:
    axes.imshow(to_array(panel.image).clip(0, 1), interpolation="bicubic")
    axes.set_axis_off()
    axes.set_title(panel.title)
    axes.text(0.5, -0.025, panel.caption, transform=axes.transAxes, ha="center", va="top")
