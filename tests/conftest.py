"""Fixtures: every test of values runs once for each backend that this machine has."""

import importlib.util
import os

import comparison
import emulated
import pytest
import torch
from promises import NO_EXTENSION

from ssimfast import ops, reference

# Without a card, Triton kernels are interpreted; Triton must know when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def use_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the PyTorch reference in place of whatever the dispatcher would choose."""
    for name in ops.SCHEMAS:
        monkeypatch.setattr(ops, f"_{name}", getattr(reference, name, ops._sweep_scales_by_ops))


def use_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the emulated CUDA kernels and, for the ops that have none, the reference."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    use_reference(monkeypatch)
    for name, op in emulated.load().items():
        monkeypatch.setattr(ops, f"_{name}", op)


def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the Triton kernels, on the CPU interpreted, and else the reference."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from ssimfast import triton_backend

    use_reference(monkeypatch)
    for name, op in triton_backend.OPS.items():
        monkeypatch.setattr(ops, f"_{name}", op)


@pytest.fixture(params=["cpu", "reference", "cuda-emulated", "cuda", "triton"])
def backend(request, monkeypatch):
    if not request.param.startswith(("cpu", "reference")):
        monkeypatch.setitem(comparison.TOLERANCES, torch.float32, comparison.CUDA_FLOAT32)
    if request.param == "reference":
        use_reference(monkeypatch)
    elif request.param == "cuda-emulated":
        use_emulated(monkeypatch)
    elif request.param in ("cuda", "triton"):
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")  # test_triton.py interprets
        if request.param == "triton":
            use_triton(monkeypatch)
        elif ops.backends()["cuda"] != "cuda":
            pytest.skip("built without CUDA kernels")
        with torch.device("cuda"):
            yield request.param
        return
    elif ops.extension is None:
        pytest.skip(NO_EXTENSION)
    yield request.param


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What modules draw as they are imported is the same in every run, too."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Not `seed`: a test with a parameter of that name would go without it."""
    torch.manual_seed(0)
