"""Checkpoints, and runs that go on from them bit for bit, however they ended."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from cyclegan_runs import OPTIONS, data, one_thread, settings  # noqa: F401 - fixtures
from safetensors.torch import load_file

from cyclegan import checkpoints
from cyclegan.demo_data import write_demo_data
from cyclegan.errors import UserError
from cyclegan.files import fingerprint
from cyclegan.log import RunLog
from cyclegan.model import NETWORKS
from cyclegan.report import sample_grids
from cyclegan.trainer import Trainer

MODULES = (*NETWORKS, "averaged_generator_ab", "averaged_generator_ba")
# Pools that are full and trade, averages, clipping: all that has a state.
STATEFUL = {"pool_size": 3, "ema_decay": 0.5, "clip_norm": 1.0, "learning_rate": 1e-3}


def start(processes: int, *arguments, command: str = "train") -> subprocess.Popen:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    if processes == 1:
        launcher = []
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "cyclegan", command, *map(str, arguments)],
        cwd=Path(__file__).parent,  # not the root, whose sources would hide the package
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a signal can reach all of its processes
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_bits(one: Path, other: Path) -> None:
    """Everything that two checkpoints hold, but for times and places."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for name in MODULES:
        mine, theirs = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    for path in one.glob("*.pt"):
        mine, theirs = (torch.load(f / path.name, weights_only=True) for f in (one, other))
        assert_same(mine, theirs, path.name)


def assert_same(mine, theirs, where: str) -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs), where
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key in mine:
            assert_same(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), where
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert mine == theirs, where


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_has_the_bits_of_one_that_went_through(settings, tmp_path, workers):
    whole = Trainer(replace(settings, steps=9, save_every=4, workers=workers, **STATEFUL))
    whole.train()
    assert len(whole.model.pools["a"].images) == 3  # it has traded
    other = replace(whole.settings, run_dir=str(tmp_path / "other"))
    at_4 = checkpoints.folder_of(whole.run_dir, 4)
    torch.rand(7)  # what other code drew must not matter
    resumed = Trainer(other, resume=str(at_4))
    assert resumed.step == 4
    resumed.train()
    assert resumed.step == 9
    for step in (8, 9):
        folders = [checkpoints.folder_of(t.run_dir, step) for t in (whole, resumed)]
        assert_same_bits(*folders)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_run_goes_on_with_the_bits_of_one_that_went_through(data, tmp_path, processes):
    steps = 60
    options = [*OPTIONS, f"--data={data}", f"--steps={steps}", "--save-every=3", "--log-every=2"]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in STATEFUL.items()]
    killed, through = tmp_path / "killed", tmp_path / "through"
    process = start(processes, *options, f"--run-dir={killed}")
    wait_for(lambda: checkpoints.folder_of(killed, 6).exists(), process)
    family = psutil.Process(process.pid)
    for one in (*family.children(recursive=True), family):
        one.kill()
    process.communicate()
    last = checkpoints.in_run(killed)[0]
    assert last.name < f"step_{steps:07d}"
    # As if the kill had come in the middle of the latest one: the one before is used.
    (last / "training.pt").write_bytes((last / "training.pt").read_bytes()[:-1])
    output = finish(start(processes, f"--run-dir={killed}", "--resume=auto"))
    assert f"passed over broken checkpoint {last}: training.pt has changed" in output
    finish(start(processes, *options, f"--run-dir={through}"))
    assert_same_bits(*(checkpoints.folder_of(run, steps) for run in (killed, through)))
    logs = [RunLog(run) for run in (killed, through)]
    for kind in ("losses", "test"):  # nothing twice, nothing missing
        mine, theirs = ([(r["step"], r[kind]) for r in log.records(kind)] for log in logs)
        assert mine == theirs


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM],
    ids=lambda n: n.name,
)
def test_an_interrupted_run_saves_and_exits_with_0(data, tmp_path, number):
    run = tmp_path / "run"
    options = [*OPTIONS, f"--data={data}", "--steps=100000", "--save-every=100000", "--workers=2"]
    process = start(1, *options, "--log-every=1", f"--run-dir={run}")
    log = run / "log.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, process)
    os.killpg(process.pid, number)  # loader processes get it too
    output = finish(process)
    [checkpoint] = checkpoints.in_run(run)
    step = checkpoints.read_config(checkpoint)["step"]
    assert step >= 3 and f"stopped at step {step}; --resume auto goes on" in output
    assert f"{number.name}: saving, then stopping" in output
    assert "Traceback" not in output
    assert checkpoints.why_broken(checkpoint) is None


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_second_run_is_kept_out_of_the_folder_of_one_that_trains(data, tmp_path, processes):
    """Before there is a checkpoint too; what was killed keeps nobody out."""
    run = tmp_path / "run"
    options = [*OPTIONS, f"--data={data}", f"--run-dir={run}", "--log-every=1", "--workers=2"]
    first = start(processes, *options, "--steps=100000", "--save-every=100000")
    log = run / "log.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, first)
    second = start(processes, *options, "--steps=2", "--resume=auto")
    output, _ = second.communicate(timeout=120)
    assert second.returncode != 0
    assert output.count(f"error: another process trains in {run}; ") == 1
    assert output.count(f"error: the first process cannot train in {run}") == processes - 1
    assert RunLog(run).records()[0]["step"] == 0 and not checkpoints.in_run(run)
    family = psutil.Process(first.pid)
    for one in (*family.children(recursive=True), family):
        one.kill()
    first.communicate()
    finish(start(processes, *options, "--steps=2", "--resume=auto"))
    assert [path.name for path in checkpoints.in_run(run)] == ["step_0000002"]


def test_trainers_of_one_process_take_turns(settings):
    first, second = Trainer(settings), Trainer(settings)
    train_step = first.train_step

    def step(*images):
        with pytest.raises(ValueError, match=f"another process trains in {second.run_dir}"):
            second.train()
        return train_step(*images)

    first.train_step = step
    first.train()
    assert (first.step, second.step) == (4, 0) and checkpoints.in_run(first.run_dir)
    kept = checkpoints.in_run(first.run_dir)
    with pytest.raises(ValueError, match="another process has trained there"):
        second.train()  # which found an empty folder, and would empty it again
    assert checkpoints.in_run(first.run_dir) == kept
    first.train()  # nothing is left to do
    Trainer(replace(settings, steps=5), resume="auto").train()


@pytest.mark.long
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path):
    """Pools included, which are full after two steps. Of photographs: where gradients are next to
    nothing, Adam makes whole steps of their rounding."""
    data = tmp_path / "data"
    write_demo_data(data, train_count=8)
    options = [*OPTIONS, f"--data={data}", "--steps=8", "--log-every=4", "--pool-size=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    runs = (
        start(1, *options, "--batch-size=2", f"--run-dir={one}"),
        start(2, *options, "--batch-size=1", f"--run-dir={two}"),
    )
    for process in runs:
        finish(process)
    mine, theirs = (checkpoints.folder_of(run, 8) for run in (one, two))
    for name in NETWORKS:
        weights = [load_file(folder / f"{name}.safetensors") for folder in (mine, theirs)]
        for key in weights[0]:
            # Biases in front of instance norm do nothing, and their gradients are rounding.
            if "weight" in key:
                torch.testing.assert_close(weights[0][key], weights[1][key], atol=1e-6, rtol=1e-5)
    logs = [RunLog(run) for run in (one, two)]
    for kind in ("losses", "test"):
        for ours, others in zip(*(log.records(kind) for log in logs), strict=True):
            assert ours[kind] == pytest.approx(others[kind], abs=1e-4)
    compared = tmp_path / "compared"
    options = [*OPTIONS, f"--data={data}", "--steps=2", f"--run-dir={compared}"]
    output = finish(start(2, *options, "--cycle-losses=l1,ssim", command="compare"))
    assert output.count(f"comparison: {compared / 'compare.html'}") == 1
    assert not (theirs / "process_2.pt").exists() and (theirs / "process_1.pt").exists()


def test_the_last_checkpoints_are_kept(settings):
    trainer = Trainer(replace(settings, steps=9, save_every=2, keep=2))
    trainer.train()
    folder = trainer.run_dir / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_0000008", "step_0000009"]
    assert all(checkpoints.why_broken(path) is None for path in folder.iterdir())


@pytest.fixture
def run(settings):
    """A run with checkpoints at steps 2 and 4."""
    trainer = Trainer(replace(settings, save_every=2))
    trainer.train()
    return trainer


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def another_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "manifest missing": lambda f: (f / "manifest.json").unlink(),
    "manifest cut short": lambda f: cut_short(f / "manifest.json"),
    "weights cut short": lambda f: cut_short(f / "generator_ba.safetensors"),
    "weights changed": lambda f: another_byte(f / "generator_ba.safetensors"),
    "state missing": lambda f: (f / "training.pt").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(run, damage):
    DAMAGE[damage](checkpoints.folder_of(run.run_dir, 4))
    with pytest.warns(UserWarning, match="passed over broken checkpoint .*step_0000004"):
        resumed = Trainer(run.settings, resume="auto")
    assert resumed.step == 2
    resumed.train()  # and the broken one is replaced
    assert checkpoints.why_broken(checkpoints.folder_of(run.run_dir, 4)) is None


def test_a_run_without_a_whole_checkpoint_is_not_begun_again(run):
    for folder in checkpoints.in_run(run.run_dir):
        cut_short(folder / "config.json")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no checkpoint .* is whole"):
        Trainer(run.settings, resume="auto")


def test_auto_begins_where_there_is_nothing(settings):
    assert Trainer(settings, resume="auto").step == 0


def test_what_a_kill_left_behind_is_no_checkpoint_and_goes(run):
    folder = run.run_dir / "checkpoints"
    shutil.copytree(folder / "step_0000004", folder / ".step_0000006.writing")
    assert checkpoints.latest_whole(run.run_dir).name == "step_0000004"
    resumed = Trainer(replace(run.settings, steps=5), resume="auto")
    resumed.train()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("when", ["weights", "rename"])
def test_a_failing_save_leaves_the_old_checkpoints(run, monkeypatch, when):
    before = {p: p.read_bytes() for p in run.run_dir.rglob("*") if p.is_file()}

    def full(*_):
        raise OSError("disk full")

    owner, name = (Path, "write_bytes") if when == "weights" else (checkpoints.os, "replace")
    monkeypatch.setattr(owner, name, full)
    run.step = 5
    with pytest.raises(UserError, match=r"cannot write .*step_0000005 \(\d\.\d MB\): disk full"):
        run.save_checkpoint()
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in run.run_dir.rglob("*") if p.is_file()} == before


def test_a_run_is_not_written_over(run):
    with pytest.raises(FileExistsError, match="step_0000004 exists; resume the run"):
        Trainer(run.settings)
    early = checkpoints.folder_of(run.run_dir, 2)
    with pytest.raises(ValueError, match="holds step_0000004, which .* would write over"):
        Trainer(run.settings, resume=str(early))
    other = replace(run.settings, seed=0, run_dir=run.settings.run_dir + "_copy")
    shutil.copytree(run.run_dir, other.run_dir)
    with pytest.raises(ValueError, match="holds step_0000004, which .* would write over"):
        Trainer(other, resume=str(checkpoints.folder_of(run.run_dir, 4)))


def test_of_checkpoints_that_were_passed_over_none_outlives_what_comes_after(run):
    """They would count as the latest ones that are kept."""
    cut_short(checkpoints.folder_of(run.run_dir, 4) / "training.pt")
    settings = replace(run.settings, steps=3, keep=1)
    with pytest.warns(UserWarning, match="passed over"):
        Trainer(settings, resume="auto").train()
    [kept] = checkpoints.in_run(run.run_dir)
    assert kept.name == "step_0000003" and checkpoints.why_broken(kept) is None


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_broken(run, monkeypatch):
    """It would be removed for an earlier one."""

    def failing(path):
        raise OSError(errno.EIO, "input/output error")  # of a read, which names no file

    monkeypatch.setattr(checkpoints, "fingerprint", failing)
    with pytest.raises(UserError, match="cannot read .*step_0000004.*input/output error.*move it"):
        Trainer(run.settings, resume="auto")


def test_a_folder_where_a_file_should_be_is_a_broken_checkpoint(run):
    file = checkpoints.folder_of(run.run_dir, 4) / "training.pt"
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="passed over broken checkpoint .*step_0000004"):
        assert Trainer(run.settings, resume="auto").step == 2


def test_sample_grids_are_ordered_by_step(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("step_10000000", "step_9999999", "step_0000020", "step_last"):
        (tmp_path / "samples" / f"{name}.jpg").touch()
    assert [step for step, _ in sample_grids(tmp_path)] == [20, 9999999, 10000000]


def test_an_early_checkpoint_can_be_named_where_the_later_ones_are_broken(run):
    cut_short(checkpoints.folder_of(run.run_dir, 4) / "training.pt")
    early = checkpoints.folder_of(run.run_dir, 2)
    assert Trainer(run.settings, resume=str(early)).step == 2


def test_a_run_that_begins_again_logs_and_shows_its_beginning_once(settings, monkeypatch):
    first = Trainer(replace(settings, steps=3))

    def killed(*_):
        first.log.append(step=1, losses={}, seconds=1.0, images_per_second=1.0)
        first.step = 2
        first.save_samples()
        raise RuntimeError("killed")

    monkeypatch.setattr(first, "train_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        first.train()
    second = Trainer(first.settings, resume="auto")
    second.train()
    steps = [record["step"] for record in second.log.records() if "test" in record]
    assert steps == [0, 3]
    grids = [path.stem for _, path in sample_grids(second.run_dir)]
    assert grids == ["step_0000000", "step_0000003"]


def test_a_finished_run_can_go_on_in_another_folder(run, tmp_path):
    fork = Trainer(replace(run.settings, run_dir=str(tmp_path / "fork")), resume=str(run.run_dir))
    fork.train()
    folders = [checkpoints.folder_of(trainer.run_dir, 4) for trainer in (run, fork)]
    assert checkpoints.why_broken(folders[1]) is None
    weights = [load_file(folder / "generator_ab.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert [record["step"] for record in fork.log.records("test")] == [4]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed must be 0, as in the checkpoint .*; got 1"),
        ({"batch_size": 1}, "batch_size must be 2"),
        ({"cycle_loss": "l1"}, "cycle_loss must be 'ssim_l1'"),
        ({"steps": 3}, "steps must be at least 4"),
    ],
    ids=str,
)
def test_a_run_goes_on_with_its_own_settings(run, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(replace(run.settings, **changes), resume="auto")


def test_a_run_goes_on_with_its_own_images_and_number_of_processes(run, data, tmp_path):
    elsewhere = tmp_path / "moved"
    shutil.copytree(data, elsewhere)
    moved = replace(run.settings, data=str(elsewhere), steps=5, workers=1, keep=9)
    assert Trainer(moved, resume="auto").step == 4  # the same images in another place
    (elsewhere / "trainA" / "0.png").unlink()
    with pytest.raises(ValueError, match="it has other images"):
        Trainer(moved, resume="auto")
    folder = checkpoints.folder_of(run.run_dir, 4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "processes": 2}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config.json"] = fingerprint(folder / "config.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="it has 2 processes, and here there are 1"):
        Trainer(run.settings, resume="auto")


def test_a_checkpoint_of_another_format_is_refused(run):
    folder = checkpoints.folder_of(run.run_dir, 4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 0}))
    with pytest.raises(ValueError, match=f"has format 0; this version reads {checkpoints.FORMAT}"):
        checkpoints.read_config(folder)
