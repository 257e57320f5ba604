"""A small unpaired data set from the photographs inside the scikit-image wheel (no download).

Domain A is crops of photographs, domain B painterly versions of crops of other regions. Every
part of a photograph belongs to one folder, so no pixel is in two.
"""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from cyclegan.errors import UserError, check_seed
from cyclegan.files import write_png

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "stereo_motorcycle")
CROP_SIZE = 96  # side of the images written, in pixels
SMALLEST_CROP = 80  # side of the smallest region that is scaled to CROP_SIZE
COLUMNS = 4  # strips of each photograph, an even number
TEST_PART = 1 / 3  # height of each photograph that is kept for the test folders
BRUSH_RADIUS = 3  # pixels; Kuwahara windows are one larger
# Lies in a folder whose images demo-data may write over, for it wrote them itself.
MARKER = "demo-data.txt"
MARKER_TEXT = """\
Made by `python -m cyclegan demo-data` from photographs inside the scikit-image package.
While this file is here, the same command may write over the images beside it.
"""
# The painter's palette: RGB of its darkest to its lightest tone.
PALETTE = np.array([(24, 20, 66), (32, 84, 112), (196, 110, 48), (240, 190, 92), (255, 246, 214)])
PALETTE_SHARE = 0.6  # how far colours are pulled towards the palette


def write_demo_data(root: Path, train_count: int = 320, test_count: int = 48, seed: int = 0):
    """Write root/{trainA,trainB,testA,testB}/0000.png ...; the same arguments, the same bytes.

    Nothing is written where a folder holds files that no earlier call wrote.
    """
    counts = {
        "trainA": train_count,
        "trainB": train_count,
        "testA": test_count,
        "testB": test_count,
    }
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"every folder needs at least one image; got {count} for {name}")
    check_seed(seed)
    paths = {
        name: [root / name / f"{index:04d}.png" for index in range(count)]
        for name, count in counts.items()
    }
    photographs = load_photographs()
    claim(root, paths)
    for stream, name in enumerate(paths):
        rng = np.random.default_rng((seed, stream))
        for index, path in enumerate(paths[name]):
            photograph = photographs[index % len(photographs)]
            part = region(photograph.size, name, strip=int(rng.integers(COLUMNS // 2)))
            crop = random_crop(photograph.crop(part), rng)
            write_png(paint(crop, rng) if name.endswith("B") else crop, path)


def claim(root: Path, paths: dict[str, list[Path]]) -> None:
    """Mark `root` as demo data, unless its folders hold other files than an earlier call's.

    Images of an earlier, larger set count as others: they would silently become part of this one.
    """
    marker = root / MARKER
    ours = marker.is_file()
    for folder in (root / name for name in paths):
        present = set(folder.iterdir()) if folder.exists() else set()
        if others := present - set(paths[folder.name]) if ours else present:
            raise FileExistsError(f"{folder} holds other files, such as {min(others).name}")
    if not ours:
        root.mkdir(parents=True, exist_ok=True)
        marker.write_text(MARKER_TEXT)


def load_photographs() -> list[Image.Image]:
    # Imported here: training and translating do not need scikit-image.
    from skimage import data

    arrays = [getattr(data, name)() for name in PHOTOGRAPHS]
    # stereo_motorcycle returns left view, right view and disparity; the left view is enough.
    return [Image.fromarray(a[0] if isinstance(a, tuple) else a) for a in arrays]


def region(size: tuple[int, int], name: str, strip: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of one of the parts of a photograph that folder `name` may use.

    Vertical strips belong to A and B in turn, which gives both domains the same things to show;
    the bottom of each strip is for testing.
    """
    width, height = size
    column = 2 * strip + name.endswith("B")
    split = round(height * (1 - TEST_PART))
    top, bottom = (0, split) if name.startswith("train") else (split, height)
    return column * width // COLUMNS, top, (column + 1) * width // COLUMNS, bottom


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of a random size, as CROP_SIZE x CROP_SIZE pixels."""
    side = int(rng.integers(SMALLEST_CROP, min(image.size) + 1))
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    square = image.crop((left, top, left + side, top + side))
    return square.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)


def paint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flat strokes with hard edges, few warm colours, and the grain of a brush."""
    pixels = kuwahara(np.asarray(image, dtype=np.float64), BRUSH_RADIUS)
    luma = pixels @ (0.299, 0.587, 0.114)
    tones = np.linspace(0, 255, len(PALETTE))
    ramp = np.stack([np.interp(luma, tones, channel) for channel in PALETTE.T], axis=-1)
    pixels = (1 - PALETTE_SHARE) * pixels + PALETTE_SHARE * ramp
    return Image.fromarray((pixels + brush_grain(luma.shape, rng)).clip(0, 255).astype(np.uint8))


def kuwahara(pixels: np.ndarray, radius: int) -> np.ndarray:
    """Each pixel (H, W, 3) becomes the mean of the calmest of the four windows it is a corner of.

    Kuwahara et al. 1976: noise and texture go, edges stay sharp.
    """
    padded = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    windows = sliding_window_view(padded, (radius + 1, radius + 1), axis=(0, 1))
    mean, variance = windows.mean(axis=(-2, -1)), windows.var(axis=(-2, -1)).sum(axis=-1)
    height, width, _ = pixels.shape
    corners = [
        (slice(y, y + height), slice(x, x + width)) for y in (0, radius) for x in (0, radius)
    ]
    calmest = np.argmin([variance[corner] for corner in corners], axis=0)
    return np.choose(calmest[..., None], [mean[corner] for corner in corners])


def brush_grain(shape: tuple[int, int], rng: np.random.Generator, length: int = 9) -> np.ndarray:
    """(H, W, 1) of gray levels around 0, drawn out along the diagonal like the hairs of a brush."""
    height, width = shape
    noise = rng.normal(0, 24, (height + length, width + length))
    strokes = [noise[i : i + height, i : i + width] for i in range(length)]
    return np.mean(strokes, axis=0)[..., None]
