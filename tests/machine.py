"""The tools and devices that tests need. A test names them with ``@pytest.mark.needs("nvcc")``.

A test whose tool is missing is not collected, unless SSIMFAST_REQUIRE names the tool, or is "all":
then the test fails. Set it where the tool must be there, on a machine with a GPU for example.
"""

import os
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from ssimfast import ops

TESTS = Path(__file__).parent


def _has_compiler() -> bool:
    return any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++"))


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and ops.backends()["cuda"] == "cuda"


def _has_browser() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver") and find_spec("selenium"))


# For each tool: whether this machine has it.
TOOLS = {
    "extension": lambda: ops.extension is not None,  # ssimfast's compiled CPU kernels
    "sources": lambda: (TESTS.parent / "csrc").is_dir(),  # beside the tests
    "compiler": _has_compiler,  # a C++ compiler
    "make": lambda: shutil.which("make") is not None,
    "nvcc": lambda: shutil.which("nvcc") is not None,
    "cuda": torch.cuda.is_available,  # a GPU
    "cuda kernels": _has_cuda_kernels,  # a GPU, and ssimfast built for it
    "cuda torch": lambda: torch.version.cuda is not None,  # a CUDA build of torch
    "browser": _has_browser,  # Chromium, its driver and selenium
    **{
        library: lambda library=library: find_spec(library) is not None
        for library in (
            *("triton", "mypy", "onnxruntime", "pytorch_msssim", "setuptools", "skimage"),
            *("tensorboard", "torch_fidelity", "torchmetrics"),
        )
    },
}


@cache
def has(tool: str) -> bool:
    return TOOLS[tool]()


def is_required(tool: str) -> bool:
    """True if a test that needs the missing tool must fail."""
    required = os.environ.get("SSIMFAST_REQUIRE", "").split(",")
    return "all" in required or tool in required


def missing() -> list[str]:
    return [tool for tool in TOOLS if not has(tool)]
