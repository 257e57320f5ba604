"""What kernels may take: figures that were measured, and a little more, in budgets.json.

Tests hold kernels to them. ``python tests/budgets.py`` measures again and writes the file anew, for
a change that is meant: the difference belongs into its commit. What this machine has not the tools
for (machine.py) stays as it is. Limits of hardware are no budgets and stand where they are checked.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import machine

FILE = Path(__file__).with_name("budgets.json")
Figures = dict[str, float]  # by the name of a kernel, a shape, a loss


def budgets() -> dict[str, Figures]:
    """By section."""
    return json.loads(FILE.read_text())


def beyond(section: str, measured: Figures) -> dict[str, str]:
    """The figures that are above their budgets; each has one, and each budget a figure."""
    allowed = budgets()[section]
    assert measured.keys() == allowed.keys(), f"{section}: renew the budgets (tests/budgets.py)"
    return {
        name: f"{figure:g}, allowed {allowed[name]:g}"
        for name, figure in measured.items()
        if not figure <= allowed[name]
    }


# ---- renewal ------------------------------------------------------------------------------------


def up(value: float, digits: int = 0) -> float:
    """Rounded up, past what is noise of float arithmetic."""
    factor = 10**digits
    rounded = math.ceil(value * factor - 1e-9)
    return rounded / factor if digits else rounded


# For each section what a measured figure becomes.
MARGINS: dict[str, Callable[[float], float]] = {
    "registers": lambda value: min(255, 8 * up(value / 8)),  # handed out by eight
    "barriers of an iteration": up,
    "FP instructions of a pixel": up,
    "words of shared memory of a pixel": lambda value: up(1.01 * value),
    "Triton, a pixel of the sweep's loop": lambda value: up(1.03 * value),
    "Triton, registers": lambda value: min(255, 8 * up(value / 8)),
    "emulated, a pixel": lambda value: up(1.01 * value, 1),
    "peak memory, images": lambda value: up(value + 0.09, 1),
}


def of_cuda() -> dict[str, Figures]:
    import sass

    with tempfile.TemporaryDirectory() as name:
        return sass.measured(sass.compile_all(sass.units(), Path(name)), Path(name))


def of_triton() -> dict[str, Figures]:
    import test_triton_static as static

    compiled = static.compile_in_a_process()
    return {
        "Triton, a pixel of the sweep's loop": static.measured(compiled),
        "Triton, registers": static.registers(compiled),
    }


def of_emulator() -> dict[str, Figures]:
    import test_cuda_emulated

    return {"emulated, a pixel": test_cuda_emulated.measured()}


def of_memory() -> dict[str, Figures]:
    import test_memory

    return {"peak memory, images": {loss: test_memory.peak(loss) for loss in test_memory.LOSSES}}


SOURCES = {
    of_cuda: ("nvcc", "nvdisasm", "compiler", "sources"),
    of_triton: ("triton", "cuobjdump", "nvdisasm"),
    of_emulator: ("compiler", "sources"),
    of_memory: ("extension", "peak memory"),
}


def renew() -> None:
    sections = budgets() if FILE.exists() else {}
    for measure, tools in SOURCES.items():
        if missing := [tool for tool in tools if not machine.has(tool)]:
            print(f"not renewed ({', '.join(missing)} missing): {measure.__name__}")
            continue
        for section, figures in measure().items():
            old = sections.get(section, {})
            sections[section] = {name: MARGINS[section](value) for name, value in figures.items()}
            for name, value in figures.items():
                change = f"{old.get(name, 0):g} -> {sections[section][name]:g}"
                print(f"{section}: {name}: measured {value:g}, budget {change}")
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(json.dumps({name: sections[name] for name in MARGINS}, indent=2) + "\n")
    os.replace(temporary, FILE)


if __name__ == "__main__":
    renew()
