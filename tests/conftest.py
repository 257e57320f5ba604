"""Fixtures: every test of values runs once for each backend that this machine has."""

import pytest
import torch

from ssimfast import ops, reference


def use_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the PyTorch reference in place of whatever the dispatcher would choose."""
    for name in ops._SCHEMAS:
        monkeypatch.setattr(ops, f"_{name}", getattr(reference, name))


@pytest.fixture(params=["cpu", "reference"])
def backend(request, monkeypatch) -> str:
    if request.param == "reference":
        use_reference(monkeypatch)
    elif ops.extension is None:
        pytest.skip("the extension was not built: no C++ compiler at install time")
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
