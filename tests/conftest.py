"""Collection: tests of values run once for each backend that this machine has. Of a test with
several parameters, `make test` runs enough items to show each pair of values; the rest is long."""

import os
from collections.abc import Callable, Iterator
from itertools import combinations, groupby

import comparison
import emulated
import machine
import pytest
import torch

from ssimfast.ops import library

# Without a card, Triton kernels are interpreted; Triton must know when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def use(monkeypatch: pytest.MonkeyPatch, functions: dict[str, Callable]) -> None:
    """Calls these implementations of ops in place of whatever the dispatcher would choose."""
    for name, function in functions.items():
        monkeypatch.setitem(library.OPS, name, library.by_position(name, function))


def use_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the PyTorch reference."""
    use(monkeypatch, library.REFERENCE)


def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the Triton kernels, on the CPU interpreted."""
    from ssimfast.backends.triton import launch

    use(monkeypatch, launch.OPS)


# Tools of machine.py that each backend needs.
BACKENDS = {
    "cpu": ("extension",),
    "reference": (),
    "cuda-emulated": ("compiler", "sources"),
    "cuda": ("cuda kernels",),
    "triton": ("cuda", "triton"),  # test_triton.py interprets
}


@pytest.fixture
def backend(request, monkeypatch):
    if not request.param.startswith(("cpu", "reference")):
        monkeypatch.setitem(comparison.TOLERANCES, torch.float32, comparison.CUDA_FLOAT32)
    if request.param == "reference":
        use_reference(monkeypatch)
    elif request.param == "cuda-emulated":
        emulated.use(monkeypatch)
    elif request.param == "triton":
        use_triton(monkeypatch)
    if request.param in ("cuda", "triton"):
        with torch.device("cuda"):
            yield request.param
    else:
        yield request.param


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "needs(*tools): tools of machine.py without which the test is not collected",
        "backends(*names): the only backends that the test runs with",
        "long_with(*names): backends with which the test is long",
    ):
        config.addinivalue_line("markers", line)


def pytest_report_header() -> str:
    tools = ", ".join(machine.missing()) or "nothing"
    return f"missing here: {tools} (SSIMFAST_REQUIRE=all: what needs it fails)"


@pytest.hookimpl(trylast=True)  # backends last: they take turns, and share the oracle's answers
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = [pytest.param(b, marks=pytest.mark.needs(*tools)) for b, tools in BACKENDS.items()]
        metafunc.parametrize("backend", chosen, indirect=True)


def _lacks(item: pytest.Item) -> list[str]:
    needed = (tool for marker in item.iter_markers("needs") for tool in marker.args)
    return [tool for tool in needed if not machine.has(tool)]


def _is_optional(item: pytest.Item) -> bool:
    return any(not machine.is_required(tool) for tool in _lacks(item))


def _backend_of(item: pytest.Item) -> str | None:
    return item.callspec.params.get("backend") if hasattr(item, "callspec") else None


def _runs_with_its_backend(item: pytest.Item) -> bool:
    backend = _backend_of(item)
    return backend is None or all(backend in m.args for m in item.iter_markers("backends"))


def _beyond_pairs(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """The items of one test without which every pair of parameter values still occurs."""
    pairs = [
        set(combinations([(name, id(value)) for name, value in item.callspec.params.items()], 2))
        for item in items
    ]
    missing = set().union(*pairs)
    left = dict(enumerate(pairs))
    while missing:
        best = max(left, key=lambda index: len(left[index] & missing))
        missing -= left.pop(best)
    yield from (items[index] for index in left)


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _runs_with_its_backend(item)]
    left_out = [item for item in items if _is_optional(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_optional(item)]
    for item in items:
        if any(_backend_of(item) in marker.args for marker in item.iter_markers("long_with")):
            item.add_marker(pytest.mark.long)
    for _, group in groupby(items, key=lambda item: (item.path, item.originalname)):
        several = [
            item
            for item in group
            if hasattr(item, "callspec")
            and len(item.callspec.params) > 1
            and item.get_closest_marker("long") is None
        ]
        for item in _beyond_pairs(several):
            item.add_marker(pytest.mark.long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if lacking := _lacks(item):
        pytest.fail(f"needs {', '.join(lacking)}, not found; see SSIMFAST_REQUIRE in machine.py")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What modules draw as they are imported is the same in every run, too."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Not `seed`: a test with a parameter of that name would go without it."""
    torch.manual_seed(0)
