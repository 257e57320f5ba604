"""A small unpaired data set from the photographs inside the scikit-image wheel (no download).

Domain A is photographs, domain B painted versions of photographs. Training images are crops of two
photographs, their hues turned at random; no pixel is in both domains. Test images are three other
photographs, each scaled and cropped to a square, and the same three painted.
"""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageOps

from cyclegan.errors import UserError, check_seed
from cyclegan.files import write_png, write_text

TRAIN_PHOTOGRAPHS = ("coffee", "stereo_motorcycle")
TEST_PHOTOGRAPHS = ("astronaut", "chelsea", "rocket")  # by the names of skimage.data
TEST_SIZE = 256  # side of the test images, in pixels
CROP_SIZE = 71  # side of the training images, in pixels: no scaling to train on crops of 64
SMALLEST_CROP, LARGEST_CROP = 64, 128  # sides of the regions that are scaled to CROP_SIZE
COLUMNS = 4  # strips of each photograph, an even number
BRUSH_RADIUS = 3  # pixels; Kuwahara windows are one larger
# Lies in a folder whose images demo-data may write over, for it wrote them itself.
MARKER = "demo-data.txt"
MARKER_TEXT = """\
Made by `python -m cyclegan demo-data` from photographs inside the scikit-image package.
While this file is here, the same command may write over the images beside it.
"""
# The painter's palette: RGB of its darkest to its lightest tone.
PALETTE = np.array([(24, 20, 66), (32, 84, 112), (196, 110, 48), (240, 190, 92), (255, 246, 214)])
PALETTE_SHARE = 0.5  # how far colours are pulled towards the palette
SATURATION = 1.6  # factor of the difference between a colour and its gray
CANVAS = 15  # height of the weave, in levels
THREAD = 2  # width of the canvas's threads, in pixels


def write_demo_data(
    root: Path, train_count: int = 240, seed: int = 0, crop_size: int = CROP_SIZE
) -> None:
    """Write root/{trainA,trainB}/0000.png ... and root/{testA,testB}/<photograph>.png; the same
    arguments, the same bytes.

    Nothing is written where a folder holds files that no earlier call wrote.

    Args:
        crop_size: side of the training images in pixels; more than 143 are enlarged photographs.
    """
    for name, value in (("train_count", train_count), ("crop_size", crop_size)):
        if value < 1:
            raise UserError(f"{name} must be positive; got {value}")
    check_seed(seed)
    crops = [f"{index:04d}.png" for index in range(train_count)]
    wholes = [f"{name}.png" for name in TEST_PHOTOGRAPHS]
    files = {"trainA": crops, "trainB": crops, "testA": wholes, "testB": wholes}
    paths = {name: [root / name / file for file in files[name]] for name in files}
    to_train = [load_photograph(name) for name in TRAIN_PHOTOGRAPHS]
    to_test = [load_photograph(name) for name in TEST_PHOTOGRAPHS]
    claim(root, paths)
    write_text("photo\npainting\n", root / "domains.txt")
    for stream, name in enumerate(("trainA", "trainB")):
        rng = np.random.default_rng((seed, stream))
        for index, path in enumerate(paths[name]):
            photograph = to_train[index % len(to_train)]
            part = region(photograph.size, name, strip=int(rng.integers(COLUMNS // 2)))
            crop = turn_hues(random_crop(photograph.crop(part), rng, crop_size), rng)
            write_png(paint(crop) if name.endswith("B") else crop, path)
    for name in ("testA", "testB"):
        for photograph, path in zip(to_test, paths[name], strict=True):
            whole = ImageOps.fit(photograph, (TEST_SIZE, TEST_SIZE), Image.Resampling.BICUBIC)
            write_png(paint(whole) if name.endswith("B") else whole, path)


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


def load_photograph(name: str) -> Image.Image:
    # Imported here: training and translating do not need scikit-image.
    from skimage import data

    pixels = getattr(data, name)()
    # stereo_motorcycle returns left view, right view and disparity; the left view is enough.
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)


def region(size: tuple[int, int], name: str, strip: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of one of the parts of a photograph that folder `name` may use.

    Vertical strips belong to A and B in turn, which gives both domains the same things to show.
    """
    width, height = size
    column = 2 * strip + name.endswith("B")
    return column * width // COLUMNS, 0, (column + 1) * width // COLUMNS, height


def random_crop(
    image: Image.Image, rng: np.random.Generator, crop_size: int = CROP_SIZE
) -> Image.Image:
    """A random square of a random size, as crop_size x crop_size pixels."""
    scale = crop_size / CROP_SIZE
    largest = min(round(scale * LARGEST_CROP), *image.size)
    side = int(rng.integers(min(round(scale * SMALLEST_CROP), largest), largest + 1))
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    square = image.crop((left, top, left + side, top + side))
    return square.resize((crop_size, crop_size), Image.Resampling.BICUBIC)


def turn_hues(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same image with all hues turned by a random angle: there are few photographs."""
    hue, saturation, value = image.convert("HSV").split()
    turn = int(rng.integers(256))
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def paint(image: Image.Image) -> Image.Image:
    """Flat strokes in bright warm colours, on canvas."""
    pixels = kuwahara(np.asarray(image, dtype=np.float64), BRUSH_RADIUS)
    luma = pixels @ (0.299, 0.587, 0.114)
    tones = np.linspace(0, 255, len(PALETTE))
    ramp = np.stack([np.interp(luma, tones, channel) for channel in PALETTE.T], axis=-1)
    gray = luma[..., None]
    pixels = (1 - PALETTE_SHARE) * (gray + SATURATION * (pixels - gray)) + PALETTE_SHARE * ramp
    rows, columns = np.indices(luma.shape) // THREAD
    weave = CANVAS * (-1.0) ** (rows + columns)
    return Image.fromarray((pixels + weave[..., None]).clip(0, 255).astype(np.uint8))


def kuwahara(pixels: np.ndarray, radius: int) -> np.ndarray:
    """Each pixel (H, W, 3) becomes the mean of the calmest of the four windows it is a corner of.

    Kuwahara et al. 1976: noise and texture go, edges stay sharp.
    """
    padded = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    mean = window_means(padded, radius + 1)
    variance = (window_means(padded**2, radius + 1) - mean**2).sum(axis=-1)
    height, width, _ = pixels.shape
    corners = [
        (slice(y, y + height), slice(x, x + width)) for y in (0, radius) for x in (0, radius)
    ]
    calmest = np.argmin([variance[corner] for corner in corners], axis=0)
    return np.choose(calmest[..., None], [mean[corner] for corner in corners])


def window_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Means of all side x side windows: (H, W, C) to (H - side + 1, W - side + 1, C)."""
    for axis in (0, 1):
        pixels = sliding_window_view(pixels, side, axis=axis).mean(axis=-1)
    return pixels
