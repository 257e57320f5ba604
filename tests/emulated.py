"""The CUDA kernels compiled for this processor, with every thread a fiber (emulator/emulator.h).

They are the sources that nvcc compiles, called through ops of a namespace of their own with
tensors of the CPU: what is tested is the device code, and all that the launchers do but the launch.
"""

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch.utils import cpp_extension

from ssimfast import ops

NAMESPACE = "ssimfast_emulated"
TESTS = Path(__file__).parent
KERNELS = TESTS.parent / "csrc" / "cuda"
# Set for a process in which AddressSanitizer is preloaded: see test_cuda_emulated.py.
SANITIZE = os.environ.get("SSIMFAST_EMULATED_SANITIZE") == "1"


def compiler() -> str | None:
    return next((c for c in (os.environ.get("CXX"), "g++", "c++") if c and shutil.which(c)), None)


def why_not() -> str | None:
    """Why the kernels cannot be emulated here, if so."""
    if not KERNELS.is_dir():
        return "the sources of the kernels are not beside the tests"
    return None if compiler() else "no C++ compiler"


def _compile(source: Path, folder: Path) -> Path:
    out = folder / f"{source.stem}.o"
    includes = [TESTS / "emulator", *cpp_extension.include_paths()]
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    command = [
        *(compiler(), "-std=c++20", "-x", "c++", "-c", str(source), "-o", str(out)),
        *("-O2", "-march=native", "-fPIC", "-w"),
        *("-DSSIMFAST_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
        *(f"-I{path}" for path in includes),
        *((f"-I{cuda}",) if cuda.is_dir() else ()),
        *(("-O1", "-g1", "-fsanitize=address,undefined") if SANITIZE else ()),
        *(("-fno-sanitize-recover=undefined", "-fno-sanitize=vptr") if SANITIZE else ()),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@cache
def load() -> dict:
    """Compiles and loads the kernels, once a process; the ops by name."""
    for name, schema in ops._SCHEMAS.items():
        torch.library.define(f"{NAMESPACE}::{name}", schema)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        sources = sorted(KERNELS.glob("*.cu"), key=lambda path: "sweep" not in path.stem)
        sources.append(TESTS / "emulator" / "counters.cpp")
        objects = list(pool.map(lambda source: _compile(source, Path(folder)), sources))
        library = Path(folder) / "emulated.so"
        torch_libraries = Path(torch.__file__).parent / "lib"
        command = [compiler(), "-shared", "-o", str(library), *map(str, objects)]
        command += [f"-L{torch_libraries}", "-ltorch", "-ltorch_cpu", "-lc10"]
        command += ["-fsanitize=address,undefined"] if SANITIZE else []
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        torch.ops.load_library(str(library))
        global _library
        _library = ctypes.CDLL(str(library))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in ops._SCHEMAS if has_kernel(f"{NAMESPACE}::{name}", "CPU")]
    namespace = getattr(torch.ops, NAMESPACE)
    return {name: getattr(namespace, name).default for name in names}


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
    _library.emulated_reset_counters()


def counters() -> Counters:
    values = (ctypes.c_int64 * len(Counters._fields))()
    _library.emulated_counters(values)
    return Counters(*values)
