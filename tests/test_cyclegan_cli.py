"""The command line, as a user calls it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclegan.__main__ import main
from cyclegan.files import list_images, readable_images, to_tensor
from cyclegan.networks import ResnetGenerator
from cyclegan.translate import translate

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "train --steps 3 --image-size 32 --base-width 4 --blocks 1 --discriminator-width 4"


def cyclegan(*arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "cyclegan", *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Demo data and a run on it; nothing is written beside them."""
    root = tmp_path_factory.mktemp("cli")
    cyclegan("demo-data", "data", "--train-count", 3, "--test-count", 2, cwd=root)
    run = cyclegan(*TRAIN.split(), "--data", "data", "--run-dir", "run", cwd=root)
    assert sorted(path.name for path in root.iterdir()) == ["data", "run"]
    return root, run


def test_train_reports_ssim_before_and_after_and_where_the_results_are(trained):
    root, run = trained
    ssim_line, checkpoint_line, grid_line = run.stdout.splitlines()
    found = re.fullmatch(
        r"cycle SSIM on test images: (\S+) before training, (\S+) after \((\S+)\)", ssim_line
    )
    before, after, change = map(float, found.groups())
    assert -1 <= before <= 1 and -1 <= after <= 1
    assert change == pytest.approx(after - before, abs=2e-3)
    assert (root / checkpoint_line.removeprefix("checkpoint: ")).is_file()
    assert (root / grid_line.removeprefix("sample grid: ")).is_file()
    assert "3/3" in run.stderr  # the progress bar leaves stdout alone


@pytest.fixture
def odd_images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (33, 50), dtype=np.uint8)).save(folder / "gray.png")
    Image.fromarray(rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)).save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (18, 31), dtype=np.uint16)).save(folder / "deep.tif")
    Image.fromarray(rng.integers(0, 256, (1, 1, 3), dtype=np.uint8)).save(folder / "dot.JPG")
    (folder / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_translate_writes_every_readable_image_at_its_size(trained, odd_images, tmp_path):
    root, _ = trained
    out = tmp_path / "out" / "ab"
    done = cyclegan("translate", "--checkpoint", root / "run/checkpoint.pt", odd_images, out)
    assert f"translated 4 images into {out}" in done.stdout
    [warning] = done.stderr.splitlines()
    assert warning.startswith(f"warning: skipped unreadable image {odd_images / 'broken.png'}")
    sizes = {path.name: image.size for path, image in readable_images(out.iterdir())}
    assert sizes == {
        "gray.png": (50, 33),
        "rgba.png": (5, 7),
        "deep.png": (31, 18),
        "dot.png": (1, 1),
    }


@pytest.mark.parametrize("direction", ["ab", "ba"])
def test_translate_uses_the_generator_of_the_direction(trained, tmp_path, direction):
    root, _ = trained
    source = root / "data" / "testA"
    checkpoint = root / "run" / "checkpoint.pt"
    options = f"--checkpoint {checkpoint} --direction {direction} --device cpu"
    assert main(["translate", *options.split(), str(source), str(tmp_path)]) == 0
    generator = ResnetGenerator(base_width=4, blocks=1)
    state = torch.load(checkpoint, weights_only=True)
    generator.load_state_dict(state["networks"][f"generator_{direction}"])
    for (_, image), (_, got) in zip(
        readable_images(list_images(source)), readable_images(list_images(tmp_path)), strict=True
    ):
        expected = translate(generator, to_tensor(image))
        torch.testing.assert_close(to_tensor(got), expected, atol=1.01 / 127.5, rtol=0)


def test_padding_does_not_move_the_image():
    generator = torch.nn.Identity()
    image = torch.rand(3, 5, 13)
    assert torch.equal(translate(generator, image), image)


def test_user_errors_are_one_line_that_names_the_cause(trained, tmp_path, capsys):
    root, _ = trained
    data, checkpoint = root / "data", root / "run" / "checkpoint.pt"
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("x.png", "x.bmp"):
        Image.new("RGB", (8, 8)).save(twins / name)
    out = tmp_path / "out"
    train = [*TRAIN.split(), "--run-dir", out, "--data"]
    translate = ["translate", "--checkpoint"]
    cases = {
        "no such folder: nowhere/trainA": [*train, "nowhere"],
        "cycle_loss must be one of l1, ssim; got 'l3'": [*train, data, "--cycle-loss", "l3"],
        "no such folder: nowhere": [*translate, checkpoint, "nowhere", out],
        "no images in": [*translate, checkpoint, root / "run", out],
        "IN and OUT are both": [*translate, checkpoint, data / "testA", data / "testA"],
        "several images would be written to": [*translate, checkpoint, twins, out],
        "no such checkpoint: none.pt": [*translate, "none.pt", data / "testA", out],
        "text.pt is no checkpoint": [*translate, text, data / "testA", out],
    }
    for message, arguments in cases.items():
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not out.exists()
