"""Runs that fail, not in training: one line says why, nothing is left over, and nothing hangs."""

import io
import multiprocessing
import os
import re
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from cyclegan_runs import OPTIONS, data, largest_file, one_thread, settings  # noqa: F401
from test_cyclegan_resume import finish, start, wait_for
from torch.utils.data import DataLoader, Dataset

from cyclegan import __main__, checkpoints, evaluate, progress
from cyclegan.__main__ import main
from cyclegan.errors import UserError
from cyclegan.features import Features
from cyclegan.loading import batches_of, ignore_interrupts
from cyclegan.trainer import Trainer


def fail_to_connect(*_, **__):
    raise OSError("<urlopen error no network>")


# ---- Loader processes ---------------------------------------------------------------------------


class Samples(Dataset):
    """Does `then` in place of sample 2."""

    def __init__(self, then):
        self.then = then

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            self.then()
        return torch.zeros(1000)


def loader(then=lambda: None, **options) -> DataLoader:
    options = {"num_workers": 2, "persistent_workers": True, **options}
    if options["num_workers"]:
        options["multiprocessing_context"] = "fork"  # which pickles nothing
    return DataLoader(Samples(then), worker_init_fn=ignore_interrupts, **options)


def read_all(batches_loader: DataLoader) -> int:
    with batches_of(batches_loader) as batches:
        return sum(len(batch) for batch in batches)


def unreadable():
    raise UserError("unreadable image x.png: gone")


def out_of_shared_memory():
    """What torch then shares is a file, which may be no larger than this."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))


@pytest.mark.parametrize(
    "then, message",
    [
        (unreadable, "^unreadable image x.png: gone$"),
        (lambda: open("/nowhere"), "^.Errno 2. No such file or directory: '/nowhere'$"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "^SIGKILL ended a loader process: .*memory"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "^SIGBUS ended a loader process: .*/dev/shm"),
        (out_of_shared_memory, "^a loader process failed: shared memory is full: .*shm-size"),
    ],
    ids=["image", "file", "killed", "bus error", "shared memory"],
)
def test_an_error_in_a_loader_process_is_one_line_and_ends_them_all(then, message):
    with pytest.raises(UserError, match=message) as raised:
        read_all(loader(then))
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


def test_a_bug_in_a_loader_process_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        read_all(loader(lambda: 1 / 0))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_end_however_the_block_is_left(workers):
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    assert read_all(loader(**options)) == 6
    assert not multiprocessing.active_children()
    for error in (KeyboardInterrupt, ValueError("of training")):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            with batches_of(loader(**options)) as batches:
                next(batches)
                assert len(multiprocessing.active_children()) == workers
                raise error
        assert not multiprocessing.active_children()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's __del__
def test_loader_processes_end_where_not_all_can_be_started(monkeypatch):
    start, started = multiprocessing.process.BaseProcess.start, []

    def start_one(process):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_one)
    with pytest.raises(
        UserError, match="^cannot start 2 workers: Resource temporarily unavailable"
    ):
        read_all(loader())
    assert not started[0].is_alive()


def test_a_loader_process_that_hangs_is_killed(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(ValueError, match="of training"):
        with batches_of(loader(signal.pause)) as batches:
            next(batches)
            raise ValueError("of training")
    assert not multiprocessing.active_children()


def test_a_run_whose_loader_process_fails_ends(data, tmp_path):
    """The exit of Python waits for processes that ignore its SIGTERM."""
    run = tmp_path / "run"
    mine = tmp_path / "data"
    mine.mkdir()
    for folder in ("trainA", "testA", "testB"):
        (mine / folder).symlink_to(data / folder)
    (mine / "trainB").mkdir()
    for path in (data / "trainB").iterdir():
        (mine / "trainB" / path.name).write_bytes(path.read_bytes())
    options = [*OPTIONS, f"--data={mine}", "--steps=100000", "--save-every=2", "--workers=1"]
    process = start(1, *options, f"--run-dir={run}")
    family = psutil.Process(process.pid)
    wait_for(lambda: checkpoints.folder_of(run, 2).exists(), process)
    family = [family, *family.children(recursive=True)]
    gone = mine / "trainB" / "0.png"
    gone.unlink()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert output.splitlines()[-1] == (
        f"error: 1 of 3 images in {gone.parent} cannot be read: 0.png (unreadable image {gone}: No "
        "such file or directory)"
    )
    assert "Traceback" not in output
    assert len(family) > 1 and not any(one.is_running() for one in family)
    assert checkpoints.latest_whole(run) is not None
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.long
def test_where_one_of_two_processes_fails_both_end(data, tmp_path):
    run = tmp_path / "run"
    mine = tmp_path / "data"
    mine.mkdir()
    for folder in ("trainA", "trainB", "testA", "testB"):
        (mine / folder).symlink_to(data / folder)
    options = [*OPTIONS, f"--data={mine}", "--steps=100000", "--save-every=2", "--workers=1"]
    process = start(2, *options, f"--run-dir={run}")
    wait_for(lambda: checkpoints.folder_of(run, 2).exists(), process)
    (mine / "trainB").unlink()
    output, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert f"error: 1 of 3 images in {mine / 'trainB'} cannot be read" in output
    assert "RuntimeError" not in output
    assert checkpoints.latest_whole(run) is not None


@pytest.mark.long
def test_loader_processes_end_after_a_run_that_was_killed(data, tmp_path):
    """They have the lock of its folder, too."""
    run = tmp_path / "run"
    options = [*OPTIONS, f"--data={data}", "--save-every=2", "--workers=2", f"--run-dir={run}"]
    process = start(1, *options, "--steps=100000")
    wait_for(lambda: checkpoints.folder_of(run, 2).exists(), process)
    loaders = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(loaders, timeout=60)
    assert len(loaders) >= 2 and not alive
    step = checkpoints.step_of(checkpoints.latest_whole(run))
    finish(start(1, *options, f"--steps={step + 1}", "--resume=auto"))


# ---- Disks --------------------------------------------------------------------------------------


# Between these sizes are those of settings, report, weights, sample grid and moments.
@pytest.mark.parametrize("size", [0, 3_000, 20_000, 40_000, 200_000])
def test_a_full_disk_is_one_line_with_the_path_and_the_space_needed(settings, capsys, size):
    Trainer(replace(settings, steps=2)).train()
    [before] = checkpoints.in_run(Path(settings.run_dir))
    capsys.readouterr()
    with largest_file(size):
        code = main(["train", "--resume=auto", f"--run-dir={settings.run_dir}", "--steps=4"])
    assert code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    # Without any space, the log fails first.
    path, needs = ("log.jsonl", "0.1") if size == 0 else ("checkpoints/step_0000004", "0.8")
    path = Path(settings.run_dir) / path
    assert line == f"error: cannot write {path} ({needs} MB): File too large"
    assert checkpoints.in_run(Path(settings.run_dir)) == [before]
    assert checkpoints.why_broken(before) is None
    assert [path.name for path in Path(settings.run_dir).rglob(".*")] == [".lock"]


def test_a_log_that_cannot_be_written_is_named(settings):
    run = Trainer(settings)
    with largest_file(10), pytest.raises(UserError, match=r"cannot write .*log.jsonl \(0.1 MB\)"):
        run.log.append(step=1, losses={})


@pytest.mark.needs("tensorboard")
def test_tensorboard_has_one_run_and_its_errors_are_named(settings, monkeypatch):
    run = Trainer(replace(settings, steps=2, trackers="tensorboard"))
    run.train()
    found = [path for path in run.run_dir.rglob("*tfevents*")]
    assert [path.parent for path in found] == [run.run_dir / "cyclegan"]

    def full(*_):
        raise OSError(28, "No space left on device")

    run = Trainer(replace(run.settings, steps=4), resume="auto")
    monkeypatch.setattr(run.accelerator, "log", full)
    with pytest.raises(UserError, match=f"cannot write {run.run_dir / 'cyclegan'}: No space"):
        run.train()


# ---- The command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "error: .Errno 28. No space left on device"),
        (UserError("one\ntwo"), 2, "error: one two"),
        (
            torch.OutOfMemoryError("CUDA: 2 GB"),
            2,
            "error: the GPU is out of memory; .*: CUDA: 2 GB",
        ),
        (RuntimeError("[.../gloo/pair.cc:5] closed"), 2, "error: another process has ended, .*"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_that_are_no_bugs_are_one_line(tmp_path, monkeypatch, capsys, error, code, line):
    def failing(*_):
        raise error

    monkeypatch.setattr(__main__, "write_demo_data", failing)
    assert main(["demo-data", str(tmp_path)]) == code
    [printed] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(line, printed)


def test_a_launcher_that_starts_one_process_of_several_is_named(settings, monkeypatch):
    for name, value in (("ACCELERATE_USE_CPU", "True"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.warns(UserWarning, match="training has one here; torchrun --nproc-per-node"):
        assert Trainer(settings).processes == 1


def test_a_run_says_what_it_begins_with(settings, capsys):
    Trainer(settings).train()
    images, loading, machine, precision, first, *_ = capsys.readouterr().err.splitlines()
    assert precision == "precision: float32"
    assert images == "images: 3 of A, 3 of B; 4 steps of 2 are 2.667 epochs of 3"
    assert loading == "training images: decoded in memory (0.0 MB)"
    assert machine == "device: cpu; processes: 1; in each, threads: 1, workers: 0"
    assert first.startswith("training: 0/4 ")


# ---- Progress -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
def test_a_log_gets_a_line_now_and_then_and_a_terminal_a_bar(monkeypatch, stderr):
    written = stderr()
    monkeypatch.setattr(sys, "stderr", written)
    with progress.progress("counting", "step", 10_000) as bar:
        for i in range(10_000):
            bar.set_postfix({"loss": i}, refresh=False)
            bar.update()
    lines = written.getvalue().splitlines()
    if stderr is Terminal:
        assert "\r" in written.getvalue() and "counting: 100%|" in lines[-1]
        return
    first, *_, last = lines
    assert first.startswith("counting: 0/10000 [00:00<?")
    assert last.startswith("counting: 10000/10000 [") and last.endswith(", loss=9999]")
    assert len(lines) <= 3  # a minute between two
    assert "\r" not in written.getvalue()


@pytest.mark.parametrize("rank, shown", [("0", True), ("1", False)])
def test_the_first_of_several_processes_shows_progress(monkeypatch, rank, shown):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress("counting", "step", 3):
        pass
    assert bool(sys.stderr.getvalue()) == shown


# ---- Weights from elsewhere ---------------------------------------------------------------------


class Trap:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_are_a_pickle_are_not_run(tmp_path):
    file, made = tmp_path / "weights.pth", tmp_path / "made"
    torch.save({"x": Trap(made)}, file)
    with pytest.raises(UserError, match=f"feature_weights {file} is no file of weights"):
        Features("alexnet", ["conv1"], str(file))
    assert not made.exists()
    for other in (b"", b"notes", "€".encode("cp1252") * 40, b"\x80\x02(", b"1.5 2.5"):
        file.write_bytes(other)
        with pytest.raises(UserError, match=f"feature_weights {file} is no file of weights"):
            Features("alexnet", ["conv1"], str(file))


@pytest.mark.needs("torch_fidelity")
def test_inception_weights_are_read_as_weights_before_torch_fidelity_runs_them(tmp_path):
    file, made = tmp_path / "weights.pth", tmp_path / "made"
    torch.save({"x": Trap(made)}, file)
    with pytest.raises(UserError, match=f"inception_weights {file} is no file of weights"):
        evaluate.check_inception(str(file))
    assert not made.exists()
    torch.save({"x": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="inception_weights are of another network: Missing key"):
        evaluate.check_inception(str(file))


@pytest.mark.needs("torch_fidelity")
def test_without_a_network_the_option_that_takes_inception_weights_is_named(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail_to_connect)
    with pytest.raises(UserError, match="no network.*; fetch https.* to --inception-weights"):
        evaluate.check_inception("")


def test_without_a_network_the_option_that_takes_feature_weights_is_named(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail_to_connect)
    with pytest.raises(
        UserError, match="weights of alexnet cannot .*no network.*--feature-weights"
    ):
        Features("alexnet", ["conv1"])
