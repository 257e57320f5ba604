"""``python -m ssimfast`` prints versions, build facts and the backend of each device type."""

import platform
from pathlib import Path

import torch

import ssimfast
from ssimfast.ops import library


def report() -> str:
    extension = library.extension
    lines = [
        f"ssimfast {ssimfast.__version__}",
        f"python {platform.python_version()} on {platform.machine()}, torch {torch.__version__}",
    ]
    if extension is None:
        folder = Path(ssimfast.__file__).parent
        lines.append(
            f"extension: not built; no _C for this Python is in {folder} (no C++ compiler at "
            "install time, or these are sources that were never built)"
        )
    else:
        lines.append(
            f"extension: {extension.compiler}, C++ standard {extension.cpp_standard}, "
            f"built with torch {extension.built_with_torch}, stable ABI of torch 2.10"
        )
        if (number := extension.cuda_runtime_version) is not None:
            cuda = f"{number // 1000}.{number % 1000 // 10}"
            lines.append(f"CUDA kernels: compiled with CUDA {cuda}")
    for device, backend in library.backends().items():
        lines.append(f"{device:5} -> {backend} ({_reason(device, backend)})")
    return "\n".join(lines)


def _reason(device: str, backend: str) -> str:
    if backend == "cpu" and (extension := library.extension) is not None:
        return f"compiled kernel, {extension.instruction_set()}, {torch.get_num_threads()} threads"
    if backend == "triton":
        import triton  # optional dependency: imported only if this backend was chosen

        kernels = f"Triton {triton.__version__} kernels, compiled at first use"
        here = getattr(torch, device).is_available()
        return kernels if here else f"{kernels}; no such device here"
    if backend == "cuda":
        return f"compiled kernels, {torch.cuda.device_count()} devices"
    if device == "cuda" and library.extension is not None and torch.version.cuda is not None:
        return "PyTorch operations: the extension was built without nvcc, and there is no Triton"
    if device == "cpu" or (device == "cuda" and torch.version.cuda is not None):
        return "PyTorch operations: the extension was not built"
    if device == "cuda" and torch.version.hip is None:
        return "PyTorch operations: this torch was built without CUDA"
    if device == "xpu" and not torch.xpu.is_available():
        return "PyTorch operations: no such device here"
    return "PyTorch operations: this version has no kernel for it"


if __name__ == "__main__":
    print(report())
