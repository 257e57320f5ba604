"""The tools and devices that tests need. A test names them with ``@pytest.mark.needs("nvcc")``.

A test whose tool is missing is not collected, unless SSIMFAST_REQUIRE names the tool, or is "all":
then the test fails. Set it where the tool must be there, on a machine with a GPU for example.
"""

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import sass
import torch

from ssimfast.ops import library

TESTS = Path(__file__).parent


def compiler() -> str | None:
    """The C++ compiler that tests use."""
    return next((c for c in (os.environ.get("CXX"), "g++", "c++") if c and shutil.which(c)), None)


def address_sanitizer() -> Path:
    """The library that a process must preload in which sanitized code is to run."""
    command = [compiler(), "-print-file-name=libasan.so"]
    return Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())


def _has_address_sanitizer() -> bool:
    return compiler() is not None and address_sanitizer().is_file()


def _has_instruction_set(*names: str) -> bool:
    return library.extension is not None and library.extension.instruction_set() in names


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and library.backends()["cuda"] == "cuda"


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def _has_browser() -> bool:
    return bool(chromium() and shutil.which("chromedriver") and find_spec("selenium"))


# For each tool: whether this machine has it.
TOOLS = {
    "extension": lambda: library.extension is not None,  # ssimfast's compiled CPU kernels
    "sources": lambda: (TESTS.parent / "csrc").is_dir(),  # beside the tests
    "site": lambda: (TESTS.parent / "site" / "index.html").is_file(),  # by `make docs`
    "compiler": lambda: compiler() is not None,  # a C++ compiler
    "address sanitizer": _has_address_sanitizer,
    "avx2": lambda: _has_instruction_set("avx2", "avx512"),
    "avx512": lambda: _has_instruction_set("avx512"),
    "x86": lambda: platform.machine() == "x86_64",
    "posix": lambda: os.name == "posix",
    "peak memory": lambda: Path("/proc/self/clear_refs").exists(),  # Linux can reset it
    "nvcc": lambda: sass.tool("nvcc") is not None,
    # Of CUDA, or of the triton that came with torch.
    "nvdisasm": lambda: sass.tool("nvdisasm") is not None,
    "cuobjdump": lambda: sass.tool("cuobjdump") is not None,
    "make": lambda: shutil.which("make") is not None,
    "cuda": torch.cuda.is_available,  # a GPU
    "cuda kernels": _has_cuda_kernels,  # a GPU, and ssimfast built for it
    "cuda torch": lambda: torch.version.cuda is not None,  # a CUDA build of torch
    "browser": _has_browser,  # Chromium, its driver and selenium
    # Older ones do not know the metadata of pyproject.toml.
    "setuptools": lambda: find_spec("setuptools")
    and int(version("setuptools").split(".")[0]) >= 77,
    **{
        library: lambda library=library: find_spec(library) is not None
        for library in (
            *("kornia", "matplotlib", "mypy", "onnxruntime", "piq", "pytest_benchmark"),
            *("pytorch_msssim", "skimage", "tensorboard", "torch_fidelity", "torchmetrics"),
            "triton",
        )
    },
}


@cache
def has(tool: str) -> bool:
    return bool(TOOLS[tool]())


def is_required(tool: str) -> bool:
    """True if a test that needs the missing tool must fail."""
    required = os.environ.get("SSIMFAST_REQUIRE", "").split(",")
    return "all" in required or tool in required


def missing() -> list[str]:
    return [tool for tool in TOOLS if not has(tool)]
