"""Images as arrays (H, W, C): read, scaled, turned into tensors and back, and written.

Pillow reads images of 8 bits. tifffile and imagecodecs read what Pillow would cut down to 8 bits or
to three bands. NumPy reads .npy.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cyclegan.errors import UserError, cause
from cyclegan.files import write_bytes

Range = tuple[float, float]  # values of black and white

SUFFIXES = (".npy", ".png", ".tif", ".tiff")  # of the files that `write_pixels` writes
NATURAL_RANGES = {np.dtype(np.uint8): (0, 255), np.dtype(np.uint16): (0, 65535)}
KEPT = ("u1", "u2", "i2", "f4")  # dtypes that stay as they are; others become float32
FEWEST_LEVELS = 16  # that an integer dtype must offer in a value range to be written in it
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow weighs colours
EXIF_ORIENTATION = 0x0112
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Scans have more than the 179 million pixels that Pillow takes for an attack.
Image.MAX_IMAGE_PIXELS = None


class _Opened(NamedTuple):
    size: tuple[int, int]  # height, width as stored
    dtype: np.dtype  # of the pixels that `read` returns
    read: Callable[[], np.ndarray]  # (H, W) or (H, W, bands), upright
    alpha: str = ""  # whether the last band is transparency: "straight", "premultiplied" or ""


def read_pixels(path: Path, channels: int = 3) -> np.ndarray:
    """The image in a file, upright: (H, W, channels) of uint8, uint16, int16 or float32.

    With three channels, gray becomes equal ones and transparency is laid over white; with one,
    colours become their luma. Images of 8 bits are what Pillow makes of them.

    Raises:
        UserError: the file cannot be read, or has another number of bands.
    """
    try:
        with _opened(path, channels) as opened:
            pixels = _fit_bands(_kept(opened.read()), channels, opened.alpha)
            if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
                raise ValueError("some pixels are NaN or infinite")
            return pixels
    except Exception as error:  # damaged bytes make readers raise nearly anything
        raise UserError(f"unreadable image {path}: {cause(error)}") from error


def read_header(path: Path, channels: int = 3) -> tuple[tuple[int, int], np.dtype]:
    """(height, width) as stored, and the dtype of `read_pixels`; pixels are not decoded.

    Raises:
        UserError: the file is no image.
    """
    try:
        with _opened(path, channels) as opened:
            height, width = opened.size
            if not height * width:
                raise ValueError("it has no pixels")
            return (height, width), opened.dtype
    except Exception as error:  # as above
        raise UserError(f"unreadable image {path}: {cause(error)}") from error


def readable_images(paths: Iterable[Path], channels: int = 3) -> Iterator[tuple[Path, np.ndarray]]:
    """Each path with its pixels, read when they are asked for; unreadable files are named and
    skipped. Python shows a repeated warning once, so a file is named once a process."""
    for path in paths:
        try:
            pixels = read_pixels(path, channels)
        except UserError as error:
            warn(f"skipped {error}", stacklevel=2)
        else:
            yield path, pixels


@contextmanager
def _opened(path: Path, channels: int) -> Iterator[_Opened]:
    with path.open("rb") as file:
        head = file.read(26)
    if head.startswith(b"\x93NUMPY"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        yield _Opened(array.shape[:2], _kept(array[:0]).dtype, lambda: array)
        return
    if head[:4] in TIFF_HEADS:
        with tifffile.TiffFile(path) as tiff:
            if opened := _open_deep_tiff(tiff, channels):
                yield opened
                return
    with Image.open(path) as image:
        size = image.size[::-1]
        if head.startswith(b"\x89PNG") and head[24:25] == b"\x10":  # 16 bits
            turn = image.getexif().get(EXIF_ORIENTATION, 1) if "exif" in image.info else 1
            alpha = "straight" if image.mode.endswith("A") else ""

            def read() -> np.ndarray:
                return _upright(imagecodecs.png_decode(path.read_bytes()), turn)

            yield _Opened(size, np.dtype(np.uint16), read, alpha)
            return
        deep = {"F": np.float32, "I": np.uint16}.get(image.mode[0], np.uint8)
        yield _Opened(size, np.dtype(deep), lambda: _from_pillow(image, channels))


def _open_deep_tiff(tiff: tifffile.TiffFile, channels: int) -> _Opened | None:
    """A TIFF that Pillow would not keep whole; None for others. Pages of one band are bands, if
    there are `channels` of them; else the first page is the image."""
    page, series = tiff.pages.first, tiff.series[0]
    pages_are_bands = channels > 1 and series.shape == (channels, *page.shape)
    if page.bitspersample <= 8 and len(page.extrasamples) <= 1 and not pages_are_bands:
        return None
    source = series if pages_are_bands else page
    bands_first = pages_are_bands or page.axes.startswith("S")
    tag = page.tags.get(EXIF_ORIENTATION)

    def read() -> np.ndarray:
        pixels = source.asarray()
        if bands_first:
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = 2**page.bitspersample - 1 - pixels
        return _upright(pixels, tag.value if tag else 1)

    alphas = {1: "premultiplied", 2: "straight"}
    alpha = alphas.get(page.extrasamples[-1], "") if page.extrasamples else ""
    size = (page.imagelength, page.imagewidth)
    return _Opened(size, _kept(np.empty(0, page.dtype)).dtype, read, alpha)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an orientation, 1 to 8 as EXIF and TIFF number them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits in 32, or in another byte order
        return np.asarray(image).clip(0, 65535).astype(np.uint16)
    if image.mode == "F" or channels not in (1, 3):
        return np.asarray(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return np.asarray(image if channels == 3 else image.convert("L"))


def _kept(pixels: np.ndarray) -> np.ndarray:
    """A copy in the machine's byte order, of a dtype that is kept, or float32."""
    kind = pixels.dtype.str[1:]
    return pixels.astype(kind if kind in KEPT else np.float32)


def _fit_bands(pixels: np.ndarray, channels: int, alpha: str) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not pixels.size:
        raise ValueError(f"its array has the shape {pixels.shape}")
    if alpha and pixels.shape[2] != channels:
        white = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1.0
        cover = pixels[..., -1:] / white
        colours = pixels[..., :-1] * (cover if alpha == "straight" else 1)
        pixels = as_dtype(colours + white * (1 - cover), pixels.dtype)
    bands = pixels.shape[2]
    if (bands, channels) == (1, 3):
        pixels = pixels.repeat(3, axis=2)
    elif (bands, channels) == (3, 1):
        pixels = as_dtype(pixels @ np.array(LUMA)[:, None], pixels.dtype)
    elif bands != channels:
        raise ValueError(f"it has {bands} bands where channels is {channels}")
    return pixels


def as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The nearest values of a dtype."""
    if np.dtype(dtype).kind in "ui":
        limits = np.iinfo(dtype)
        values = values.round().clip(limits.min, limits.max)
    return values.astype(dtype)


# ---- Sizes --------------------------------------------------------------------------------------


def scale(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (*size, C), bicubic."""
    if pixels.shape[:2] == size:
        return pixels
    return _in_pillow(pixels, lambda im: im.resize(size[::-1], Image.Resampling.BICUBIC))


def scale_and_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (*size, C): the middle of the image, scaled to be as large as fits."""
    return _in_pillow(pixels, lambda im: ImageOps.fit(im, size[::-1], Image.Resampling.BICUBIC))


def _in_pillow(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Pillow has RGB of 8 bits, and single bands of 8 bits or float32."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(change(Image.fromarray(pixels)))
    wide = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    bands = [change(Image.fromarray(np.ascontiguousarray(b))) for b in np.moveaxis(wide, 2, 0)]
    return as_dtype(np.stack([np.asarray(band) for band in bands], axis=2), pixels.dtype)


def covering(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """The smallest height and width of the same aspect that are at least `least`."""
    (height, width), (least_height, least_width) = size, least
    if least_height * width >= least_width * height:
        return least_height, int(least_height * width / height)
    return int(least_width * height / width), least_width


# ---- Tensors ------------------------------------------------------------------------------------


def natural_range(dtype: np.dtype) -> Range:
    """Black and white of a dtype.

    Raises:
        UserError: nothing in such pixels says which value is white.
    """
    if dtype not in NATURAL_RANGES:
        raise UserError(f"value_range must be LOW,HIGH for pixels of {dtype}; got 'auto'")
    return NATURAL_RANGES[dtype]


def normalise(values: Tensor, value_range: Range = (0, 255)) -> Tensor:
    """Values of any dtype and device -> float32 in [-1, 1]; what is out of range is clipped.

    (It has no division, which rounds otherwise on a GPU.)
    """
    low, high = value_range
    return ((values.float() - low) * (1 / (high - low)) - 0.5).mul(2).clamp(-1, 1)


def to_tensor(pixels: np.ndarray, value_range: Range | None = None) -> Tensor:
    """(H, W, C) -> float32 (C, H, W) in [-1, 1].

    Args:
        value_range: black and white; None: those of the dtype.
    """
    planes = torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32, order="C"))
    return normalise(planes, value_range or natural_range(pixels.dtype))


def to_pixels(tensor: Tensor, dtype: np.dtype, value_range: Range | None = None) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> (H, W, C), the nearest values of a dtype; `to_tensor` undone."""
    low, high = value_range or natural_range(np.dtype(dtype))
    values = (tensor.detach().float().clamp(-1, 1) + 1) * ((high - low) / 2) + low
    return as_dtype(values.movedim(0, 2).cpu().numpy(), dtype)


def output_dtype(dtype: np.dtype, value_range: Range | None) -> np.dtype:
    """The dtype in which to write translations of images of `dtype`: the same, or the smallest one
    that holds the value range of the translations."""
    if value_range is None:
        return dtype if dtype in NATURAL_RANGES else np.dtype(np.uint16)
    low, high = value_range
    for one in map(np.dtype, (dtype, np.uint8, np.uint16, np.int16)):
        if one.kind == "f":
            return one
        fits = np.iinfo(one).min <= low and high <= np.iinfo(one).max
        if fits and high - low >= FEWEST_LEVELS:
            return one
    return np.dtype(np.float32)


def as_rgb(images: Tensor) -> Tensor:
    """(..., C, H, W) -> (..., 3, H, W): the first three bands, or the first one as gray."""
    return images[..., :3, :, :] if images.shape[-3] >= 3 else images[..., [0, 0, 0], :, :]


def to_8_bit(tensor: Tensor) -> Tensor:
    """(..., C, H, W) in [-1, 1] -> uint8 (..., 3, H, W) on the CPU, `as_rgb`."""
    shown = as_rgb(tensor).detach().float().clamp(-1, 1)
    return ((shown + 1) * 127.5).round().to("cpu", torch.uint8)


def to_image(tensor: Tensor) -> Image.Image:
    """(C, H, W) in [-1, 1] -> 8-bit RGB image, as `to_8_bit` shows it."""
    return Image.fromarray(to_8_bit(tensor).movedim(0, 2).numpy())


# ---- Files --------------------------------------------------------------------------------------


def output_suffix(source: Path, dtype: np.dtype, channels: int) -> str:
    """The kind of file that keeps an image made of `source`."""
    if source.suffix.lower() == ".npy":
        return ".npy"
    four = channels <= 4 and source.suffix.lower() == ".png"  # the fourth band was in one, too
    return ".png" if dtype in NATURAL_RANGES and (channels in (1, 3) or four) else ".tif"


def check_holds(path: Path, dtype: np.dtype, channels: int) -> None:
    """
    Raises:
        UserError: a file of this name cannot hold such an image.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"OUT must be a {', '.join(SUFFIXES)} file where IN is a file; got {path}")
    if suffix == ".png" and (dtype not in NATURAL_RANGES or channels > 4):
        raise UserError(
            f"OUT must be a .tif or .npy file for {channels} channels of {dtype}; got {path}"
        )


def write_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W, C) as .png, .tif or .npy, after the suffix of `path`."""
    check_holds(path, pixels.dtype, pixels.shape[2])
    image = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(buffer, image)
    elif path.suffix.lower() == ".png":
        buffer.write(imagecodecs.png_encode(image))
    else:
        kind = "rgb" if pixels.shape[2] == 3 else "minisblack"
        planes = {"planarconfig": "contig"} if image.ndim == 3 else {}
        tifffile.imwrite(
            buffer, image, photometric=kind, compression="zlib", metadata=None, **planes
        )
    write_bytes(buffer.getvalue(), path)
