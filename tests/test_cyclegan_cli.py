"""The command line, as a user calls it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclegan import __main__
from cyclegan.__main__ import main
from cyclegan.files import list_images, readable_images, to_tensor
from cyclegan.networks import ResnetGenerator
from cyclegan.translate import translate

TRAIN = "train --steps 3 --image-size 32 --base-width 4 --blocks 1 --discriminator-width 4"


def cyclegan(*arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "cyclegan", *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=cwd or Path(__file__).parent,  # not the root, whose sources would hide the package
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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


def test_small_images_are_padded_with_their_edge_and_no_graph_is_kept():
    class Recorder(ResnetGenerator):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    generator = Recorder(base_width=4, blocks=1)
    image = torch.rand(3, 5, 9)
    assert not translate(generator, image).requires_grad
    rows, columns = torch.arange(8).clamp(max=4), torch.arange(12).clamp(max=8)
    assert torch.equal(generator.seen[0], image[:, rows][:, :, columns])


def test_user_errors_are_one_line_that_names_the_cause(trained, tmp_path, capsys):
    root, _ = trained
    data, checkpoint = root / "data", root / "run" / "checkpoint.pt"
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    state = torch.load(checkpoint, weights_only=True)
    cut = {name: tmp_path / f"{name}.pt" for name in ("shapeless", "weightless")}
    torch.save({**state, "settings": {}}, cut["shapeless"])
    torch.save({**state, "networks": {"generator_ab": {}}}, cut["weightless"])
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("x.png", "x.bmp"):
        Image.new("RGB", (8, 8)).save(twins / name)
    out = tmp_path / "out"
    train = [*TRAIN.split(), "--run-dir", out, "--data"]
    translate = ["translate", "--checkpoint"]
    cases = {
        "no such folder: nowhere/trainA": [*train, "nowhere"],
        "or a sum like 0.84*ssim+0.16*l1; got 'l3'": [
            *train,
            data,
            "--cycle-loss",
            "l3",
        ],
        "seed must be in [0, 2**63 - 1]; got -1": [*train, data, "--seed", -1],
        "no such folder: nowhere": [*translate, checkpoint, "nowhere", out],
        "no images in": [*translate, checkpoint, root / "run", out],
        "IN and OUT are both": [*translate, checkpoint, data / "testA", data / "testA"],
        "several images would be written to": [*translate, checkpoint, twins, out],
        "no such checkpoint: none.pt": [*translate, "none.pt", data / "testA", out],
        "text.pt is no checkpoint": [*translate, text, data / "testA", out],
        "shapeless.pt is no checkpoint": [*translate, cut["shapeless"], data / "testA", out],
        "weightless.pt is no checkpoint": [*translate, cut["weightless"], data / "testA", out],
    }
    for message, arguments in cases.items():
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not out.exists()


def test_an_unreadable_domain_is_one_line_with_worker_processes_too(trained, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(trained[0] / "data", data)
    for path in (data / "trainB").iterdir():
        path.write_text("no image")
    options = f"--workers 2 --data {data} --run-dir {tmp_path / 'run'}"
    with pytest.warns(UserWarning, match="skipped unreadable image"):
        assert main([*TRAIN.split(), *options.split()]) == 2
    assert capsys.readouterr().err == f"error: no readable image in {data / 'trainB'}\n"


def test_bugs_keep_their_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(__main__, "write_demo_data", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["demo-data", str(tmp_path)])
