"""Images of all kinds: 1 to 16 bands, 8 bits to float32, from files to tensors and back."""

import struct
from dataclasses import replace
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
import tifffile
import torch
from cyclegan_runs import FOLDERS, OPTIONS, SMALLEST, one_thread  # noqa: F401 - fixture
from PIL import Image
from test_cyclegan_data import unpaired

from cyclegan import images
from cyclegan.__main__ import main
from cyclegan.evaluate import evaluate
from cyclegan.images import (
    as_dtype,
    output_dtype,
    read_header,
    read_pixels,
    readable_images,
    scale,
    to_image,
    to_pixels,
    to_tensor,
    write_pixels,
)
from cyclegan.settings import Settings
from cyclegan.trainer import Trainer
from cyclegan.translate import load_generator

RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-1000, 3000), "float32": (-2.5, 7.25)}


def noise(dtype, channels: int, size=(20, 24), seed=0) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(*RANGES[dtype], (*size, channels))
    return as_dtype(values, np.dtype(dtype))


# ---- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4, 16])
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_values_survive_the_way_to_a_tensor_and_to_a_file_and_back(
    tmp_path, suffix, dtype, channels
):
    pixels, path = noise(dtype, channels), tmp_path / f"x{suffix}"
    tensor = to_tensor(pixels, RANGES[dtype])
    assert tensor.shape == (channels, 20, 24) and tensor.abs().max() <= 1
    back = to_pixels(tensor, dtype, RANGES[dtype])
    if dtype == "float32":
        np.testing.assert_allclose(back, pixels, atol=1e-6)
    else:
        assert np.array_equal(back, pixels) and back.dtype == dtype
    if suffix == ".png" and (dtype in ("int16", "float32") or channels == 16):
        with pytest.raises(ValueError, match=f"must be a .tif or .npy file for {channels} channel"):
            write_pixels(pixels, path)
        return
    write_pixels(pixels, path)
    read = read_pixels(path, channels)
    assert read.dtype == dtype and np.array_equal(read, pixels)
    assert read_header(path, channels) == ((20, 24), np.dtype(dtype))


def save_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)


RGB = noise("uint16", 3)
FIVE = noise("float32", 5)
FORMS = {
    "planes of bands": (FIVE, lambda p: save_tiff(p, np.moveaxis(FIVE, 2, 0))),
    "separate planes": (
        FIVE,
        lambda p: save_tiff(
            p, np.moveaxis(FIVE, 2, 0), photometric="minisblack", planarconfig="separate"
        ),
    ),
    "big-endian": (FIVE, lambda p: save_tiff(p, FIVE, byteorder=">", planarconfig="contig")),
    "BigTIFF, LZW, tiles": (
        RGB,
        lambda p: save_tiff(p, RGB, bigtiff=True, compression="lzw", tile=(16, 16)),
    ),
    "black where others are white": (
        65535 - RGB[..., :1],
        lambda p: save_tiff(p, RGB[..., 0], photometric="miniswhite"),
    ),
    "8 bits, five bands": (
        noise("uint8", 5),
        lambda p: save_tiff(p, noise("uint8", 5), photometric="minisblack", planarconfig="contig"),
    ),
    "doubles": (FIVE, lambda p: save_tiff(p, FIVE.astype(float), planarconfig="contig")),
    "a first page": (FIVE[..., :1], lambda p: save_tiff(p, np.moveaxis(FIVE[..., :2], 2, 0))),
    "on its side": (
        np.rot90(RGB, -1),
        lambda p: save_tiff(p, RGB, photometric="rgb", extratags=[(274, "H", 1, 6, True)]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_tiffs_of_every_form_are_read(tmp_path, form):
    expected, save = FORMS[form]
    save(tmp_path / "x.tif")
    read = read_pixels(tmp_path / "x.tif", expected.shape[2])
    assert read.dtype == expected.dtype and np.array_equal(read, expected)


def png_of_16_bits(colours: np.ndarray) -> bytes:
    """Written without the library that reads it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    height, width, bands = colours.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_16_bit_pngs_keep_all_bits(tmp_path, bands):
    pixels, path = noise("uint16", bands), tmp_path / "x.png"
    path.write_bytes(png_of_16_bits(pixels))
    assert np.array_equal(read_pixels(path, bands), pixels)
    rgb = read_pixels(path, 3)
    if bands == 3:
        return
    colours = pixels[..., : bands - (bands in (2, 4))].astype(float)
    if bands in (2, 4):  # over white
        cover = pixels[..., -1:] / 65535
        colours = colours * cover + 65535 * (1 - cover)
    assert rgb.dtype == np.uint16 and np.abs(rgb - colours).max() <= 0.5


MODES = [
    (Image.new("L", (1, 1), 77), (77, 77, 77)),
    (Image.new("1", (1, 1), 1), (255, 255, 255)),
    (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), (10, 20, 30)),
    (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), (255, 255, 255)),
    (Image.new("LA", (1, 1), (0, 51)), (204, 204, 204)),
    (Image.new("P", (1, 1), 0), (0, 0, 0)),
]


def test_every_mode_of_8_bits_becomes_rgb(tmp_path):
    for image, expected in MODES:
        image.save(tmp_path / "x.png")
        pixels = read_pixels(tmp_path / "x.png")
        assert pixels.dtype == np.uint8 and tuple(pixels[0, 0]) == expected
        image.convert("RGBA" if image.mode != "1" else "L").save(tmp_path / "y.tif")
        assert tuple(read_pixels(tmp_path / "y.tif")[0, 0]) == expected


def test_of_one_channel_colours_become_the_luma_of_pillow(tmp_path):
    rgb = noise("uint8", 3)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    gray = read_pixels(tmp_path / "x.png", 1)
    assert np.array_equal(gray[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
    save_tiff(tmp_path / "deep.tif", rgb.astype(np.uint16) * 257, photometric="rgb")
    deep = read_pixels(tmp_path / "deep.tif", 1)
    assert np.abs(deep / 257 - gray).max() < 1 and deep.dtype == np.uint16


@pytest.mark.parametrize(
    "array, channels, message",
    [
        (np.zeros((4, 4, 5), np.float32), 3, "it has 5 bands where channels is 3"),
        (np.zeros((4, 4), np.float32), 4, "it has 1 bands where channels is 4"),
        (np.zeros((4, 4, 3, 2), np.float32), 3, r"its array has the shape \(4, 4, 3, 2\)"),
        (np.zeros((0, 4), np.float32), 1, r"its array has the shape \(0, 4, 1\)"),
        (np.full((4, 4), np.nan), 1, "some pixels are NaN or infinite"),
        (np.full((4, 4), None), 1, "Array can't be memory-mapped: Python objects in dtype."),
    ],
)
def test_arrays_that_do_not_fit_say_why(tmp_path, array, channels, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=f"unreadable image {tmp_path}/x.npy: {message}"):
        read_pixels(tmp_path / "x.npy", channels)


@pytest.mark.parametrize(
    "suffix, dtype",
    [
        (".png", "uint8"),
        (".png", "uint16"),
        (".tif", "uint8"),
        (".tif", "float32"),
        (".npy", "int16"),
    ],
)
def test_half_a_file_is_named(tmp_path, suffix, dtype):
    path = tmp_path / f"x{suffix}"
    write_pixels(noise(dtype, 3), path)
    whole = path.read_bytes()
    for length in (0, 3, 30, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match=f"skipped unreadable image {path}: ."):
            assert not list(readable_images([path]))


def test_an_image_with_half_an_exif_header_is_unreadable(tmp_path):
    """Pillow's struct.error, which is no OSError, must not end a run."""
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", exif=b"MM\0*")
    with pytest.raises(ValueError, match="unreadable image .*x.png: unpack requires"):
        read_pixels(tmp_path / "x.png")


def test_rotated_photographs_are_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert read_pixels(tmp_path / "x.jpg").shape == (8, 4, 3)


def test_orientations_are_undone_as_pillow_does(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(noise("uint8", 3)).save(tmp_path / "x.png", exif=exif)
        upright = images._upright(noise("uint8", 3), orientation)
        assert np.array_equal(read_pixels(tmp_path / "x.png"), upright)


def test_scans_of_any_size_are_read(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "scan.png")
    assert read_pixels(tmp_path / "scan.png", 1).shape == (10_000, 20_000, 1)


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125], ids=["ascii", "two bytes each"])
def test_names_may_be_as_long_as_files_can_have(tmp_path, stem):
    for suffix in (".png", ".npy"):
        write_pixels(noise("uint8", 3), tmp_path / f"{stem}{suffix}")
        assert read_pixels(tmp_path / f"{stem}{suffix}").shape == (20, 24, 3)


# ---- Values -------------------------------------------------------------------------------------


def test_all_values_of_a_dtype_survive_the_way_through_a_tensor():
    for dtype in (np.uint8, np.uint16):
        count = np.iinfo(dtype).max + 1
        pixels = np.arange(count, dtype=dtype).reshape(16, -1, 1)
        tensor = to_tensor(pixels)
        assert (tensor.min(), tensor.max()) == (-1, 1)
        assert np.array_equal(to_pixels(tensor, dtype), pixels)


def test_values_out_of_range_are_clipped():
    tensor = to_tensor(np.array([[[-5.0], [0], [5], [10], [11]]], np.float32), (0, 10))
    assert tensor.flatten().tolist() == [-1, -1, 0, 1, 1]
    with pytest.raises(ValueError, match="value_range must be LOW,HIGH for pixels of float32"):
        to_tensor(np.zeros((1, 1, 1), np.float32))


OUTPUT_DTYPES = [
    ("uint8", None, "uint8"),
    ("uint16", None, "uint16"),
    ("float32", None, "uint16"),  # of a domain of photographs, with nothing lost
    ("float32", (0, 255), "float32"),
    ("uint16", (0, 4095), "uint16"),
    ("uint8", (0, 4095), "uint16"),
    ("int16", (0, 4095), "int16"),
    ("uint16", (-1000, 3000), "int16"),
    ("uint8", (0, 1), "float32"),
    ("uint16", (0, 1e6), "float32"),
]


def test_results_have_the_dtype_of_the_image_or_one_that_holds_the_range():
    for dtype, value_range, expected in OUTPUT_DTYPES:
        assert output_dtype(np.dtype(dtype), value_range) == expected


def test_previews_show_three_bands_or_gray():
    for channels in (1, 2, 3, 4, 16):
        pixels = noise("uint8", channels)
        shown = np.asarray(to_image(to_tensor(pixels)))
        expected = pixels[..., :3] if channels >= 3 else pixels[..., [0, 0, 0]]
        assert np.array_equal(shown, expected)


def test_every_dtype_is_scaled_alike():
    for dtype, (low, high) in RANGES.items():
        smooth = np.linspace(low, high, 40)[:, None, None] + np.zeros((40, 40, 5))
        scaled = scale(as_dtype(smooth, np.dtype(dtype)), (20, 30))
        assert scaled.shape == (20, 30, 5) and scaled.dtype == dtype
        expected = np.linspace(low, high, 40).reshape(20, 2).mean(1)
        step = (high - low) / 20 + 0.5 * (dtype != "float32")
        assert np.abs(scaled - expected[:, None, None]).max() < step


@pytest.mark.parametrize(
    "a, b, value_range, measured",
    [
        ((0, 255, "uint8"), (0, 255, "uint8"), "auto", []),
        ((0, 65535, "uint16"), (0, 255, "uint8"), "auto", []),
        ((7, 4095, "uint16"), (7, 4095, "uint16"), "7,4095", ["A", "B"]),
        ((7, 4095, "uint16"), (0, 255, "uint8"), "7,4095/auto", ["A"]),
        ((-1000, 3000, "int16"), (0.1, 0.75, "float32"), "-1000,3000/0.100000001,0.75", ["A", "B"]),
    ],
)
def test_ranges_are_measured_where_the_dtype_does_not_tell(tmp_path, a, b, value_range, measured):
    for domain, (low, high, dtype) in {"A": a, "B": b}.items():
        folder = tmp_path / f"train{domain}"
        folder.mkdir()
        for i in range(3):
            values = np.linspace(low, high, 3 * 20 * 24).reshape(3, 20, 24)[i]
            write_pixels(values.astype(dtype)[..., None], folder / f"{i}.tif")
    pairs = unpaired(tmp_path, channels=1)
    assert pairs.settings.value_range == value_range
    lines = pairs.describe().splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f"value range of train{x}" for x in measured]
    given = unpaired(tmp_path, channels=1, value_range="0,5000/auto")
    assert given.settings.value_range.startswith("0,5000/")
    for folder, image in zip("AB", pairs[0], strict=True):
        kept = (a if folder == "A" else b)[2] == "uint8"
        assert image.dtype == (torch.uint8 if kept else torch.float32)


def test_images_of_one_value_have_no_range(tmp_path):
    (tmp_path / "trainA").mkdir()
    np.save(tmp_path / "trainA" / "x.npy", np.ones((20, 20), np.float32))
    with pytest.raises(ValueError, match="value_range must be LOW,HIGH: all of .*trainA is 1"):
        unpaired(tmp_path, channels=1)


# ---- Runs ---------------------------------------------------------------------------------------

KINDS = [
    ("uint8", 1, ".png"),
    ("uint16", 3, ".png"),
    ("uint16", 4, ".tif"),
    ("int16", 1, ".tif"),
    ("float32", 16, ".npy"),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def run(request, tmp_path_factory):
    """A trained run on images of a kind, as (Trainer, dtype, channels, suffix)."""
    dtype, channels, suffix = request.param
    root = tmp_path_factory.mktemp("run")
    for seed, folder in enumerate(FOLDERS):
        (root / folder).mkdir()
        for i in range(2):
            pixels = noise(dtype, channels, (40, 44), 10 * seed + i)
            write_pixels(pixels, root / folder / f"{i}{suffix}")
    settings = Settings(
        data=str(root), run_dir=str(root / "run"), steps=2, channels=channels, **SMALLEST
    )
    trainer = Trainer(settings)
    trainer.train()
    return trainer, dtype, channels, suffix


def test_training_translates_and_scores_images_of_every_kind(run, tmp_path):
    trainer, dtype, channels, suffix = run
    root, out = Path(trainer.settings.data), tmp_path / "out"
    command = ["translate", "--checkpoint", str(trainer.run_dir), str(root / "testA"), str(out)]
    assert main([*command, "--device=cpu"]) == 0
    assert [path.name for path in sorted(out.iterdir())] == [f"0{suffix}", f"1{suffix}"]
    result, given = (
        read_pixels(folder / f"1{suffix}", channels) for folder in (out, root / "testA")
    )
    assert result.dtype == dtype and result.shape == given.shape
    generator, settings = load_generator(trainer.run_dir, "ab", torch.device("cpu"))
    tensor = to_tensor(given, settings.ranges["a"])
    expected = to_pixels(generator(tensor[None])[0], dtype, settings.ranges["b"])
    np.testing.assert_allclose(result.astype(float), expected.astype(float), atol=1.01, rtol=1e-4)
    assert (settings.value_range == "auto") == dtype.startswith("uint")
    scores = evaluate(trainer.generators(), trainer.tests(), trainer.device)
    assert np.isfinite(list(scores["mean"].values())).all()
    with Image.open(trainer.samples_path) as grid:
        assert grid.mode == "RGB" and grid.size == (6 * 34 + 2, 2 * 34 + 2)


def test_a_resumed_run_of_every_kind_has_the_bits_of_one_that_went_through(run, tmp_path):
    trainer, *_ = run
    asked = replace(trainer.settings, value_range="auto", steps=4, save_every=2, workers=0)
    whole = Trainer(replace(asked, run_dir=str(tmp_path / "whole")))
    whole.train()
    half = whole.run_dir / "checkpoints" / "step_0000002"
    resumed = Trainer(replace(asked, run_dir=str(tmp_path / "again"), workers=1), str(half))
    resumed.train()
    for name, network in whole.model.networks.items():
        mine, theirs = network.state_dict(), resumed.model.networks[name].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.long
@pytest.mark.needs("onnxruntime")
def test_generators_of_every_kind_are_exported(run, tmp_path):
    trainer, _, channels, _ = run
    path = tmp_path / "x.onnx"
    assert main(["export", "--checkpoint", str(trainer.run_dir), str(path)]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1] == channels


def test_a_result_that_its_file_cannot_hold_is_refused_before_it_is_made(run, tmp_path, capsys):
    trainer, dtype, channels, suffix = run
    source = str(Path(trainer.settings.data) / "testA" / f"0{suffix}")
    command = ["translate", "--checkpoint", str(trainer.run_dir), source]
    code = main([*command, str(tmp_path / "x.png")])
    if dtype.startswith("uint"):
        assert code == 0 and read_pixels(tmp_path / "x.png", channels).dtype == dtype
    else:
        assert code == 2 and "OUT must be a .tif or .npy file" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "x.jpg")]) == 2
    assert "OUT must be a .npy, .png, .tif, .tiff file" in capsys.readouterr().err
