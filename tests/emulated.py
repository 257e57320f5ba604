"""The CUDA kernels compiled for this processor, with every thread a fiber (emulator/emulator.h).

They are the sources that nvcc compiles, called through ops of a namespace of their own with
tensors of the CPU: what is tested is the device code, and all that the launchers do but the launch.
"""

import ctypes
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import machine
import pytest
import torch
from torch.utils import cpp_extension

from ssimfast.ops import library

NAMESPACE = "ssimfast_emulated"
TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
# Set for a process in which AddressSanitizer is preloaded: see test_cuda_emulated.py.
SANITIZE = os.environ.get("SSIMFAST_EMULATED_SANITIZE") == "1"


def _flags() -> list[str]:
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    # The emulator's device.cuh and launcher.h come before those of csrc/cuda.
    includes = [TESTS / "emulator", CSRC, *cpp_extension.include_paths()]
    includes += [toolkit] if toolkit.is_dir() else []  # else the emulator has half types of its own
    flags = ["-std=c++20", "-O2", "-march=native", "-fPIC", "-w"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", *(f"-I{path}" for path in includes)]
    if SANITIZE:
        flags += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=vptr"]
        flags += ["-fno-sanitize-recover=undefined"]
    return flags


def _sources() -> list[Path]:
    kernels = sorted((CSRC / "cuda").glob("*.cu"), key=lambda path: "sweep" not in path.stem)
    return [*kernels, CSRC / "ops.cpp", TESTS / "emulator" / "counters.cpp"]


def _digest() -> str:
    """Hash of everything that the library is made of."""
    digest = hashlib.sha256(repr([machine.compiler(), _flags(), torch.__version__]).encode())
    folders = (CSRC, CSRC / "cuda", TESTS / "emulator", TESTS / "emulator" / "cuda")
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        if path.suffix in (".cu", ".cuh", ".h", ".cpp"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _build(library: Path) -> None:
    with TemporaryDirectory(dir=library.parent) as folder, ThreadPoolExecutor(2) as pool:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in _sources()]
        commands = [
            [machine.compiler(), *_flags(), "-x", "c++", "-c", str(source), "-o", out]
            for source, out in zip(_sources(), objects, strict=True)
        ]
        list(pool.map(_run, commands))
        linked = str(Path(folder) / library.name)
        torch_libraries = Path(torch.__file__).parent / "lib"
        link = [
            machine.compiler(),
            "-shared",
            *_flags(),
            "-o",
            linked,
            *objects,
            f"-L{torch_libraries}",
        ]
        _run([*link, "-ltorch", "-ltorch_cpu", "-lc10"])
        os.replace(linked, library)


@cache
def _library() -> Path:
    """The compiled kernels: once for all processes and for as long as no source changes."""
    cache_folder = TESTS.parent / ".pytest_cache" / "emulated"
    cache_folder.mkdir(parents=True, exist_ok=True)
    library = cache_folder / f"{_digest()}.so"
    with open(cache_folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(library)
    return library


@cache
def load() -> dict:
    """The ops of the emulated kernels by name, loaded once a process."""
    for name, schema in library.SCHEMAS.items():
        torch.library.define(f"{NAMESPACE}::{name}", schema)
    torch.ops.load_library(str(_library()))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in library.SCHEMAS if has_kernel(f"{NAMESPACE}::{name}", "CPU")]
    namespace = getattr(torch.ops, NAMESPACE)
    return {name: getattr(namespace, name).default for name in names}


def on_nan(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op with new tensors full of NaN, which shows what a kernel fails to write."""

    def call(*arguments: Any) -> Any:
        before = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("error")  # fills new tensors
        try:
            return op(*arguments)
        finally:
            torch.set_deterministic_debug_mode(before)

    return call


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the emulated kernels, and for ``combine_levels`` PyTorch, as on a GPU. A call that no
    kernel serves fails: nothing else stands in."""
    kernels = {name: on_nan(op) for name, op in load().items()}
    reference = library.by_position("combine_levels", library.REFERENCE["combine_levels"])
    for name in library.SCHEMAS:
        monkeypatch.setitem(library.OPS, name, kernels.get(name, reference))


class Counters(NamedTuple):
    """Of all launches since the last reset: bytes and words as requested by the threads; `unique`
    are those of each launch that differ."""

    launches: int
    block_barriers: int
    global_bytes_read: int
    global_bytes_written: int
    unique_global_bytes_read: int
    unique_global_bytes_written: int
    shared_words_read: int
    shared_words_written: int


def reset_counters() -> None:
    ctypes.CDLL(str(_library())).emulated_reset_counters()


def counters() -> Counters:
    values = (ctypes.c_int64 * len(Counters._fields))()
    ctypes.CDLL(str(_library())).emulated_counters(values)
    return Counters(*values)
