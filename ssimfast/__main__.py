"""``python -m ssimfast``: versions, how the extension was built, and what serves which device."""

import platform
from pathlib import Path

import torch

import ssimfast
from ssimfast import ops


def report() -> str:
    extension = ops.extension
    lines = [
        f"ssimfast {ssimfast.__version__}",
        f"python {platform.python_version()} on {platform.machine()}, torch {torch.__version__}",
    ]
    if extension is None:
        lines.append(f"extension: not built ({_why_not_built()})")
    else:
        lines.append(
            f"extension: {extension.compiler}, C++ standard {extension.cpp_standard}, "
            f"built with torch {extension.built_with_torch}, stable ABI of torch 2.10"
        )
    for device, backend in ops.backends().items():
        lines.append(f"{device:5} -> {backend} ({_reason(device, backend)})")
    return "\n".join(lines)


def _why_not_built() -> str:
    root = Path(ssimfast.__file__).parents[1]
    if (root / "setup.py").exists():
        return f"{root} is the source tree; leave it, or install with pip install -e ."
    return "there was no C++ compiler at install time"


def _reason(device: str, backend: str) -> str:
    if backend == "cpu":
        return (
            f"compiled kernel, {ops.extension.instruction_set}, {torch.get_num_threads()} threads"
        )
    if device == "cpu":
        return "PyTorch operations: the extension was not built"
    return "PyTorch operations: this version has no kernel for it"


if __name__ == "__main__":
    print(report())
