"""The types of the public functions, as mypy sees them with those of torch."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import ssimfast
from ssimfast import typing

ROOT = Path(__file__).parent.parent
PACKAGE = Path(ssimfast.__file__).parent


def run_mypy(name: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", f"--cache-dir=.mypy_cache/{name}", *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode < 2, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long  # mypy reads torch: half a minute
@pytest.mark.needs("mypy", "sources")
def test_the_package_is_strictly_typed():
    output = run_mypy("package", "--config-file=pyproject.toml")
    assert output.startswith("Success: no issues found"), output


@pytest.mark.long  # mypy reads torch: half a minute
@pytest.mark.needs("mypy")
def test_a_strict_program_sees_types_and_mistakes_are_refused():
    program = ROOT / "tests" / "typed_program.py"
    # Installed, it is found where every package is, and believed for its py.typed.
    installed = "site-packages" in PACKAGE.parts
    environment = {} if installed else {"MYPYPATH": str(PACKAGE.parent)}
    output = run_mypy("program", "--strict", "--config-file=", str(program), **environment)
    refused = set(re.findall(r"typed_program\.py:(\d+): error: .*\[([a-z-]+)\]$", output, re.M))
    expected = set()
    for number, line in enumerate(program.read_text().splitlines(), start=1):
        if mark := re.search(r"# refused: ([a-z-]+)$", line):
            expected.add((str(number), mark[1]))
    assert expected and refused == expected, output


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize(
    "function, of_module",
    [
        (ssimfast.ssim, typing.SSIMArguments),
        (ssimfast.ms_ssim, typing.MSSSIMArguments),
        (ssimfast.similarity_loss, typing.SimilarityLossArguments),
    ],
)
def test_modules_take_what_functions_take(function, of_module):
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name in ("mask", "return_terms", "return_map"):  # given with the images; in overloads
        keywords.pop(name, None)
    assert keywords == get_type_hints(of_module)
