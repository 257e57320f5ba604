"""The command line, as a user calls it."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cyclegan_runs import OPTIONS
from PIL import Image
from safetensors.torch import load_file, save_file

import ssimfast
from cyclegan import __main__, checkpoints, threads
from cyclegan.__main__ import main, make_parser
from cyclegan.data import centre_crops
from cyclegan.evaluate import TITLES
from cyclegan.files import fingerprint, list_images
from cyclegan.images import readable_images, to_tensor
from cyclegan.log import RunLog
from cyclegan.losses import discriminator_loss
from cyclegan.networks import ResnetGenerator
from cyclegan.translate import load_generator, translate

TRAIN = ["train", "--steps", "3", *OPTIONS]


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
    cyclegan("demo-data", "data", "--train-count", 3, cwd=root)
    run = cyclegan(*TRAIN, "--data", "data", "--run-dir", "run", cwd=root)
    assert sorted(path.name for path in root.iterdir()) == ["data", "run"]
    return root, run


def test_train_reports_scores_before_and_after_and_where_the_results_are(trained):
    root, run = trained
    _, *score_lines, samples_line, checkpoint_line, report_line = run.stdout.splitlines()
    tests = [record["test"] for record in RunLog(root / "run").records("test")]
    assert len(tests) == 2
    for line, name in zip(score_lines, tests[0], strict=True):
        title = TITLES[name]
        numbers = re.fullmatch(rf"  {re.escape(title)}: (\S+) at first, (\S+) now", line).groups()
        assert [*map(float, numbers)] == pytest.approx([test[name] for test in tests], abs=6e-4)
    assert (root / samples_line.removeprefix("samples: ")).is_file()
    assert checkpoints.why_broken(root / checkpoint_line.removeprefix("checkpoint: ")) is None
    assert (root / report_line.removeprefix("report: ")).is_file()
    assert "3/3" in run.stderr  # the progress bar leaves stdout alone
    assert re.search(r"gan=\S+, cycle=\S+, identity=\S+, discriminator=\S+, images/s=", run.stderr)


WAITING = threads.VARIABLES
SPIN, SLEEP = {"GOMP_SPINCOUNT": "10000"}, {"OMP_WAIT_POLICY": "PASSIVE"}


def test_threads_sleep_at_once_where_other_programs_run(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    for others, wanted in ((0, SPIN), (1, SPIN), (2, SLEEP)):
        monkeypatch.setattr(threads, "running_others", lambda others=others: others)
        environment: dict[str, str] = {}
        threads.choose_waiting(environment)
        assert environment == wanted


def test_running_threads_are_counted():
    assert 0 <= threads.running_others() < 10_000


@pytest.mark.parametrize(
    "command, given, seen",
    [
        ("-m cyclegan", {}, [SPIN, SLEEP]),  # as busy as the machine is
        *(("-m cyclegan", {name: "7"}, [{name: "7"}]) for name in WAITING),
        ("-c import\tcyclegan.__main__", {}, [{}]),  # a library leaves its user's process alone
    ],
    ids=str,
)
def test_the_command_chooses_how_threads_wait_unless_the_user_did(tmp_path, command, given, seen):
    """A stand-in for torch prints the variables it is loaded with, and ends the process."""
    text = f"import os; print({{k: v for k, v in os.environ.items() if k in {WAITING}}}); exit(7)"
    (tmp_path / "torch.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    run = subprocess.run(
        [sys.executable, *command.split(" ")],
        env={**environment, **given, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 7 and run.stdout.strip() in map(str, seen), run.stderr


def test_resume_needs_no_settings_again_and_takes_new_ones(trained, tmp_path, capsys):
    root, _ = trained
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    data = root / "data"
    resume = ["train", "--resume", "auto", "--run-dir", str(run), "--data", str(data)]
    assert main([*resume, "--steps", "5"]) == 0
    assert f"checkpoint: {checkpoints.folder_of(run, 5)}" in capsys.readouterr().out
    assert main([*resume, "--steps", "5"]) == 0  # nothing is left to do
    assert f"checkpoint: {checkpoints.folder_of(run, 5)}" in capsys.readouterr().out
    assert main([*resume, "--base-width", "8"]) == 2
    assert "base_width must be 4, as in the checkpoint" in capsys.readouterr().err
    fork = ["train", "--resume", str(run), "--run-dir", str(tmp_path / "fork"), "--steps", "6"]
    assert main([*fork, "--data", str(data)]) == 0
    assert (tmp_path / "fork" / "checkpoints" / "step_0000006").is_dir()


def test_settings_that_are_needed_are_named(capsys):
    assert main(["train", "--steps", "3"]) == 2
    assert capsys.readouterr().err == "error: a new run needs --data, --run-dir\n"
    assert main(["compare", "--cycle-losses", "l1,ssim"]) == 2
    assert capsys.readouterr().err == "error: a new run needs --data, --run-dir, --epochs\n"
    # A run that ended before its first checkpoint.
    assert main(["train", "--run-dir", "nowhere", "--resume", "auto", "--steps", "3"]) == 2
    error = capsys.readouterr().err
    assert error == "error: nowhere holds no checkpoint to go on from, and a new run needs --data\n"


def test_every_setting_is_an_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--lambda-a LAMBDA_A weight of the cycle loss of A; the GAN losses have 1 (10.0)" in text
    assert "--compile, --no-compile" in text and "--resume no|auto|PATH" in text
    assert "trainA, trainB, testA, testB (needed, but where a run is resumed)" in text
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "trainA, trainB, testA, testB (needed)" in text and "resume" not in text


def test_every_option_says_what_it_is():
    commands = make_parser()._subparsers._group_actions[0].choices
    for name, parser in commands.items():
        for action in parser._actions:
            if action.option_strings:
                assert re.match("[^(]", action.help or ""), (name, action.option_strings)


@pytest.fixture
def odd_images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (33, 50), dtype=np.uint8)).save(folder / "gray.png")
    Image.fromarray(rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)).save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (18, 31), dtype=np.uint16)).save(folder / "deep.tif")
    (folder / "more").mkdir()
    dot = folder / "more" / "dot.JPG"
    Image.fromarray(rng.integers(0, 256, (1, 1, 3), dtype=np.uint8)).save(dot)
    (folder / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_translate_writes_every_readable_image_at_its_size(trained, odd_images, tmp_path):
    root, _ = trained
    out = tmp_path / "out" / "ab"
    done = cyclegan("translate", "--checkpoint", root / "run", odd_images, out)
    assert f"translated into {out}: 4" in done.stdout
    left_out, unreadable = done.stderr.splitlines()
    assert left_out == f"warning: left out of {odd_images}, which has 5 images: 1 .txt"
    assert unreadable.startswith(f"warning: skipped unreadable image {odd_images / 'broken.png'}")
    results = readable_images(list_images(out))
    assert {
        str(path.relative_to(out)): (image.dtype.name, image.shape) for path, image in results
    } == {
        "gray.png": ("uint8", (33, 50, 3)),
        "rgba.png": ("uint8", (7, 5, 3)),
        "deep.png": ("uint16", (18, 31, 3)),
        "more/dot.png": ("uint8", (1, 1, 3)),
    }


def test_results_beside_the_images_are_not_translated_again(trained, tmp_path, capsys):
    root, _ = trained
    source = tmp_path / "in"
    shutil.copytree(root / "data" / "testA", source)
    # Into the folder above, and twice into one inside.
    for out in (tmp_path, source / "out", source / "out"):
        command = ["translate", "--checkpoint", root / "run", source, out, "--device=cpu"]
        assert main([str(argument) for argument in command]) == 0
        assert capsys.readouterr().out == f"translated into {out}: 3\n"
    assert (tmp_path / "rocket.png").is_file()


@pytest.mark.parametrize("direction", ["ab", "ba"])
def test_translate_uses_the_generator_of_the_direction(trained, tmp_path, direction):
    root, _ = trained
    source = root / "data" / "testA"
    options = f"--checkpoint {root / 'run'} --direction {direction} --device cpu"
    out = tmp_path / "out"
    assert main(["translate", *options.split(), str(source), str(out)]) == 0
    single = tmp_path / "one" / "single.png"
    first = next(iter(list_images(source)))
    assert main(["translate", *options.split(), str(first), str(single)]) == 0
    assert single.read_bytes() == (out / first.name).read_bytes()
    generator = ResnetGenerator(base_width=4, blocks=1)
    folder = checkpoints.folder_of(root / "run", 3)
    generator.load_state_dict(load_file(folder / f"generator_{direction}.safetensors"))
    for (_, image), (_, got) in zip(
        readable_images(list_images(source)), readable_images(list_images(out)), strict=True
    ):
        expected = translate(generator, to_tensor(image))
        torch.testing.assert_close(to_tensor(got), expected, atol=1.01 / 127.5, rtol=0)


def test_user_errors_are_one_line_that_names_the_cause(trained, tmp_path, capsys):
    root, _ = trained
    data, run = root / "data", root / "run"
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints.folder_of(run, 3), broken)
    save_file({"x": torch.zeros(1)}, broken / "generator_ab.safetensors")
    others = tmp_path / "others"  # whole, but with other weights than its settings say
    shutil.copytree(broken, others)
    manifest = {
        path.name: fingerprint(path) for path in others.iterdir() if path.name != "manifest.json"
    }
    (others / "manifest.json").write_text(json.dumps(manifest))
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("x.png", "x.bmp"):
        Image.new("RGB", (8, 8)).save(twins / name)
    out = tmp_path / "out"
    train = [*TRAIN, "--run-dir", out, "--data"]
    translate = ["translate", "--checkpoint"]
    cases = {
        "no such folder: nowhere/trainA": [*train, "nowhere"],
        "or a sum like 0.84*ssim+0.16*paper_l1; got 'l3'": [*train, data, "--cycle-loss", "l3"],
        "seed must be in [0, 2**63 - 1]; got -1": [*train, data, "--seed", -1],
        "no such folder: elsewhere": [*train, data, "--resume", "elsewhere"],
        "cycle_losses must be different": [
            *("compare", "--steps", 1, "--run-dir", out, "--data", data),
            *("--cycle-losses", "l1,l1"),
        ],
        "data set must be one of": ["download", "cats2dogs", out],
        "no such file or folder: nowhere": [*translate, run, "nowhere", out],
        "no images in": [*translate, run, run / "checkpoints", out],
        "IN and OUT are both": [*translate, run, data / "testA", data / "testA"],
        f"IN and OUT are both {twins / 'x.png'}": [*translate, run, *[twins / "x.png"] * 2],
        "OUT must be a .npy, .png, .tif, .tiff file": [
            *translate,
            run,
            data / "testA" / "rocket.png",
            out,
        ],
        "several images would be written to": [*translate, run, twins, out],
        "tile must be 0 or more": [*translate, run, data / "testA", out, "--tile", -1],
        "no such folder: none": [*translate, "none", data / "testA", out],
        "no checkpoint in": [*translate, data, data / "testA", out],
        "generator_ab.safetensors has changed": [*translate, broken, data / "testA", out],
        "does not hold the weights of": [*translate, others, data / "testA", out],
        "OUT must be an .onnx file": ["export", "--checkpoint", run / "checkpoints", out],
        "no such folder: nowhere/testA": ["evaluate", "--checkpoint", run, "--data", "nowhere"],
    }
    for message, arguments in cases.items():
        assert main([str(argument) for argument in arguments]) == 2, message
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not out.exists()


def test_an_unreadable_domain_is_one_line(trained, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(trained[0] / "data", data)
    for path in (data / "trainB").iterdir():
        path.write_text("no image")
    assert main([*TRAIN, "--data", str(data), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: 3 of 3 images in {data / 'trainB'} cannot be read: 0000.png,")
    assert len(error.splitlines()) == 1


def test_training_that_diverges_is_one_line_and_keeps_the_last_checkpoint(
    trained, tmp_path, capsys
):
    run = tmp_path / "run"
    options = ["--data", str(trained[0] / "data"), "--run-dir", str(run), "--save-every", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclegan.model.discriminator_loss", nan_after(3))
        assert main([*TRAIN, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: training diverged: the loss discriminator_b is nan at step 2"
    assert [path.name for path in checkpoints.in_run(run)] == ["step_0000001"]
    assert main(["train", "--run-dir", str(run), "--resume", "auto"]) == 0


def nan_after(calls: int):
    def loss(name, scores_real, scores_fake):
        nonlocal calls
        calls -= 1
        return discriminator_loss(name, scores_real, scores_fake) * (1 if calls >= 0 else math.nan)

    return loss


def test_a_checkpoint_is_checked_once(trained, tmp_path, monkeypatch):
    root, _ = trained
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    folder = checkpoints.folder_of(run, 3)
    checked = []
    monkeypatch.setattr(checkpoints, "fingerprint", lambda p: checked.append(p) or fingerprint(p))
    files = sorted(path for path in folder.iterdir() if path.name != checkpoints.MANIFEST)
    needed = [*folder.glob("config.json"), *sorted(folder.glob("generator*"))]
    data = ["--data", str(root / "data")]
    for command in (
        ["train", "--resume", "auto", "--run-dir", str(run), *data],
        ["train", "--resume", str(folder), "--run-dir", str(tmp_path / "other"), *data],
        ["evaluate", "--checkpoint", str(run), *data],
    ):
        checked.clear()
        assert main(command) == 0
        expected = needed if command[0] == "evaluate" else files
        assert sorted(path for path in checked if path.parent == folder) == expected, command


def block_error(x, y, side=16):
    """How far the mean colours of 16 x 16 blocks of two images in [-1, 1] are apart, of 255."""
    difference = 127.5 * (x - y).double().numpy()
    corners = itertools.product(*(range(0, length, side) for length in difference.shape[1:]))
    blocks = [difference[:, top : top + side, left : left + side] for top, left in corners]
    return np.mean([np.abs(block.mean(axis=(1, 2))) for block in blocks])


@pytest.mark.parametrize("direction", ["aba", "bab", "mean"])
def test_evaluate_prints_the_scores_of_reconstructions(trained, capsys, direction):
    root, _ = trained
    run, data = root / "run", root / "data"
    assert main(["evaluate", "--checkpoint", str(run), "--data", str(data)]) == 0
    printed = json.loads(capsys.readouterr().out)
    scores = printed[direction]
    assert printed["images"] == {"a": 3, "b": 3}
    loaded = [load_generator(run, name, torch.device("cpu")) for name in ("ab", "ba")]
    generators, settings = [one[0] for one in loaded], replace(loaded[0][1], data=str(data))
    wanted = []
    for folder, (there, back) in (("testA", generators), ("testB", generators[::-1])):
        real = torch.stack([*centre_crops(settings, folder[-1].lower())])
        rec = torch.cat([back(there(image[None])) for image in real])
        error = ((rec - real) / 2).square().mean((1, 2, 3))
        wanted.append(
            {
                "ssim": ssimfast.ssim(rec, real, value_range=(-1, 1)).item(),
                "ms_ssim": ssimfast.ms_ssim(rec, real, value_range=(-1, 1), weights="auto").item(),
                "psnr": (10 * (1 / error).log10()).mean().item(),
                "colour_error": np.mean(
                    [block_error(*pair) for pair in zip(rec, real, strict=True)]
                ),
            }
        )
    wanted.append({name: (wanted[0][name] + wanted[1][name]) / 2 for name in wanted[0]})
    expected = wanted[["aba", "bab", "mean"].index(direction)]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_bugs_keep_their_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(__main__, "write_demo_data", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["demo-data", str(tmp_path)])
