"""Checkpoints: folders that are there as a whole or not at all.

    RUN/checkpoints/step_0001000/
        config.json               settings, step, and what else a reader must know
        generator_ab.safetensors  and of the other networks; what translates needs no more
        training.pt               optimizers, pools, scaler: plain types and tensors
        process_0.pt              random state of each process
        manifest.json             size and SHA-256 of the others; written last

A folder is written under another name, forced to disk and renamed. One without a manifest, or
with other files than its manifest says, is no checkpoint.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from cyclegan.errors import UserError
from cyclegan.files import fingerprint, writing

MANIFEST, CONFIG = "manifest.json", "config.json"
FORMAT = 2
_NAME = re.compile(r"step_(\d{7,})")


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:07d}"


def step_of(folder: Path) -> int:
    return int(_NAME.fullmatch(folder.name)[1])


def run_of(folder: Path) -> Path:
    """The run that a checkpoint belongs to."""
    return folder.resolve().parent.parent


def in_run(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the latest first."""
    found = [path for path in run_dir.glob("checkpoints/*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def write(
    run_dir: Path, step: int, files: Mapping[str, bytes], main: bool, wait: Callable[[], None]
) -> Path:
    """Write a checkpoint of the files that all processes bring; it takes its name when every file
    is on disk.

    Args:
        files: contents by name, of this process.
        main: whether this process is the one that makes and renames the folder.
        wait: waits until every process has called it.

    Raises:
        UserError: a file cannot be written; the checkpoints before stay as they are.
    """
    final = folder_of(run_dir, step)
    temporary = final.with_name(f".{final.name}.writing")
    try:
        with writing(final, sum(map(len, files.values()))):
            if main:
                shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
                temporary.mkdir(parents=True)
            wait()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            wait()
            if main:
                sums = {path.name: fingerprint(path) for path in sorted(temporary.iterdir())}
                (temporary / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
                for path in (*temporary.iterdir(), temporary, final.parent.parent):
                    _force_to_disk(path)
                if final.exists():  # the run went on from an earlier checkpoint
                    _remove(final)
                os.replace(temporary, final)
                _force_to_disk(final.parent)
            wait()
    finally:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def keep_latest(run_dir: Path, count: int, others: Collection[int] = ()) -> None:
    """Remove all checkpoints but the last `count` and those of the steps in `others`."""
    for folder in in_run(run_dir)[count:]:
        if step_of(folder) not in others:
            _remove(folder)


def forget_after(run_dir: Path, step: int) -> None:
    """Remove what a run that goes on from `step` has passed over, and what a kill left behind."""
    for folder in in_run(run_dir):
        if step_of(folder) > step:
            _remove(folder)
    for leftover in (run_dir / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def why_broken(folder: Path, names: Collection[str] | None = None) -> str | None:
    """The flaw of a checkpoint; None if it is whole.

    Args:
        names: of the files that are checked; None: all.

    Raises:
        UserError: it cannot be read, and may be whole all the same.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in files.items():
            if (names is None or name in names) and fingerprint(folder / name) != expected:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"no {Path(error.filename).name}"
    except (NotADirectoryError, IsADirectoryError, ValueError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    except OSError as error:
        raise UserError(
            f"cannot read checkpoint {folder}, which may be whole all the same: {error}; try "
            "again, or move it away"
        ) from error
    return None


def latest_whole(run_dir: Path, names: Collection[str] | None = None) -> Path | None:
    """The latest checkpoint of a run that is whole; broken ones are named and passed over. None if
    the run has none at all.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    folders = in_run(run_dir)
    for folder in folders:
        broken = why_broken(folder, names)
        if broken is None:
            return folder
        warnings.warn(f"passed over broken checkpoint {folder}: {broken}", stacklevel=2)
    if folders:
        raise UserError(f"no checkpoint in {run_dir} is whole; choose another run_dir")
    return None


def find(path: Path, names: Collection[str] | None = None) -> Path:
    """The checkpoint `path`, or the latest of the run in `path`.

    Args:
        names: of the files that are needed, and checked; None: all.

    Raises:
        UserError: there is none, or it is broken.
    """
    if not path.is_dir():
        raise UserError(f"no such folder: {path}")
    if (path / CONFIG).exists() or (path / MANIFEST).exists():
        if broken := why_broken(path, names):
            raise UserError(f"broken checkpoint {path}: {broken}")
        return path
    found = latest_whole(path.parent if path.name == "checkpoints" else path, names)
    if found is None:
        raise UserError(f"no checkpoint in {path}")
    return found


class Start(NamedTuple):
    """The checkpoint that a run goes on from, if any, and all checkpoints in its folder."""

    checkpoint: Path | None
    existing: list[Path]


def choose(resume: str, run_dir: Path | None) -> Start:
    """Finds the checkpoint that `resume`, an argument of the trainer, means for a run in `run_dir`.
    None: in the folder of the run that goes on.

    Raises:
        UserError, FileExistsError: there is no such checkpoint, or others would be written over.
    """
    existing = [] if run_dir is None else in_run(run_dir)  # before one is chosen
    chosen = None if resume in ("no", "auto") else find(Path(resume))
    if run_dir is None:
        if chosen is None:
            return Start(None, [])
        run_dir = run_of(chosen)
        existing = in_run(run_dir)
    if resume == "auto":
        return Start(latest_whole(run_dir), existing)
    if chosen is None and existing:
        raise FileExistsError(f"{existing[0]} exists; resume the run, or choose another run_dir")
    if chosen is not None:
        run, step = run_of(chosen), read_config(chosen)["step"]
        for folder in existing:
            passed = run_of(folder) == run and step_of(folder) <= step
            if not passed and why_broken(folder) is None:
                raise UserError(
                    f"{run_dir} holds {folder.name}, which a run that goes on from {chosen} would "
                    "write over; choose another run_dir"
                )
    return Start(chosen, existing)


def read_config(folder: Path) -> dict:
    """The content of config.json of a whole checkpoint."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {config.get('format')!r}; this version reads {FORMAT}"
        )
    return config


def _force_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Under another name first: a folder half removed must not pass for a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.removing")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
