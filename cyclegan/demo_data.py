"""A small unpaired data set from the photographs inside the scikit-image wheel (no download).

Domain A is photographs, domain B painted versions of photographs. Training images are crops of two
photographs, their hues turned at random; no pixel is in both domains. Test images are three other
photographs, each scaled and cropped to a square, and the same three painted.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cyclegan.errors import UserError, check_seed
from cyclegan.files import write_text
from cyclegan.images import write_pixels

TRAIN_PHOTOGRAPHS = ("coffee", "stereo_motorcycle")
TEST_PHOTOGRAPHS = ("astronaut", "chelsea", "rocket")  # by the names of skimage.data
TEST_SIZE = 256  # side of the test images, in pixels
CROP_SIZE = 71  # side of the training images, in pixels: no scaling to train on crops of 64
SMALLEST_CROP, LARGEST_CROP = 64, 128  # sides of the regions that are scaled to CROP_SIZE
COLUMNS = 4  # strips of each photograph, an even number: A and B take turns
BRUSH = 4  # side of the windows that are painted flat, in pixels
MARKER = "demo-data.txt"  # lies in a folder whose images demo-data wrote, and may write over
# The painter's palette: RGB of its darkest to its lightest tone.
PALETTE = np.array([(24, 20, 66), (32, 84, 112), (196, 110, 48), (240, 190, 92), (255, 246, 214)])


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
    tests = [f"{name}.png" for name in TEST_PHOTOGRAPHS]
    to_train, to_test = (
        [load_photograph(name) for name in names] for names in (TRAIN_PHOTOGRAPHS, TEST_PHOTOGRAPHS)
    )
    claim(root, {"trainA": crops, "trainB": crops, "testA": tests, "testB": tests})
    write_text("photo\npainting\n", root / "domains.txt")
    for stream, (domain, finish) in enumerate((("A", np.asarray), ("B", paint))):
        rng = np.random.default_rng((seed, stream))
        for index, name in enumerate(crops):
            photograph = to_train[index % len(to_train)]
            part = region(photograph.size, domain, strip=int(rng.integers(COLUMNS // 2)))
            crop = turn_hues(random_crop(photograph.crop(part), rng, crop_size), rng)
            write_pixels(finish(crop), root / f"train{domain}" / name)
        for photograph, name in zip(to_test, tests, strict=True):
            whole = ImageOps.fit(photograph, (TEST_SIZE, TEST_SIZE), Image.Resampling.BICUBIC)
            write_pixels(finish(whole), root / f"test{domain}" / name)


def claim(root: Path, files: dict[str, list[str]]) -> None:
    """Mark `root` as demo data, unless its folders hold other files than an earlier call's. Images
    of an earlier, larger set count as others: they would silently become part of this one."""
    ours = (root / MARKER).is_file()
    for folder, names in files.items():
        present = {path.name for path in (root / folder).glob("*")}
        if others := present.difference(names if ours else ()):
            raise FileExistsError(f"{root / folder} holds other files, such as {min(others)}")
    text = "Written by `python -m cyclegan demo-data`, which may write over the images beside it.\n"
    write_text(text, root / MARKER)


def load_photograph(name: str) -> Image.Image:
    from skimage import data  # training and translating do not need scikit-image

    pixels = getattr(data, name)()
    # stereo_motorcycle returns left view, right view and disparity; the left view is enough.
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)


def region(size: tuple[int, int], domain: str, strip: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a part of a photograph that a domain may use: its strips, which
    are vertical, lie between those of the other, and show the same things."""
    width, height = size
    column = 2 * strip + (domain == "B")
    return column * width // COLUMNS, 0, (column + 1) * width // COLUMNS, height


def random_crop(
    image: Image.Image, rng: np.random.Generator, crop_size: int = CROP_SIZE
) -> Image.Image:
    """A random square of a random size, as crop_size x crop_size pixels."""
    scale = crop_size / CROP_SIZE
    largest = min(round(scale * LARGEST_CROP), *image.size)
    side = int(rng.integers(min(round(scale * SMALLEST_CROP), largest), largest + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    square = image.crop((left, top, left + side, top + side))
    return square.resize((crop_size, crop_size), Image.Resampling.BICUBIC)


def turn_hues(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same image with all hues turned by a random angle: there are few photographs."""
    hue, saturation, value = image.convert("HSV").split()
    turn = int(rng.integers(256))
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def paint(image: Image.Image) -> np.ndarray:
    """Flat strokes in bright warm colours, on canvas: (H, W, 3) of uint8."""
    pixels = kuwahara(np.asarray(image, dtype=np.float64))
    luma = pixels @ (0.299, 0.587, 0.114)
    tones = np.linspace(0, 255, len(PALETTE))
    ramp = np.stack([np.interp(luma, tones, channel) for channel in PALETTE.T], axis=-1)
    gray = luma[..., None]
    coloured = (gray + 1.6 * (pixels - gray) + ramp) / 2  # more saturated; half of it palette
    rows, columns = np.indices(luma.shape) // 2  # threads of the canvas, two pixels wide
    weave = 15 * (-1.0) ** (rows + columns)
    return (coloured + weave[..., None]).clip(0, 255).astype(np.uint8)


def kuwahara(pixels: np.ndarray) -> np.ndarray:
    """Each pixel (H, W, 3) becomes the mean of the calmest of the four windows it is a corner of.

    Kuwahara et al. 1976: noise and texture go, edges stay sharp.
    """
    from scipy.ndimage import uniform_filter  # scikit-image brings it

    sides = (BRUSH // 2 - 1, -(BRUSH // 2))
    corners = [(y, x, 0) for y in sides for x in sides]
    options = {"size": (BRUSH, BRUSH, 1), "mode": "nearest"}
    means = [uniform_filter(pixels, origin=corner, **options) for corner in corners]
    squares = [uniform_filter(pixels**2, origin=corner, **options) for corner in corners]
    spread = [(s - m**2).sum(axis=-1) for s, m in zip(squares, means, strict=True)]
    return np.choose(np.argmin(spread, axis=0)[..., None], means)
