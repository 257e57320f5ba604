"""What README and docs say: their code runs, their commands and links exist, their figures and
tables are those that the scripts beside them make."""

import functools
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import comparison
import numpy as np
import pytest
import torch
from PIL import Image

from cyclegan.__main__ import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURES = ROOT / "docs" / "figures"
TRAINER = make_parser()._subparsers._group_actions[0].choices  # a parser for each command
OPTIONS = {option for parser in TRAINER.values() for option in parser._option_string_actions}


def python_blocks(page: Path) -> list[str]:
    """Each after as many empty lines as the page has before it, for the lines of tracebacks."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in found]


def prose(text: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```|^ {4}.*?$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [*filter(python_blocks, PAGES)], ids=lambda page: page.name)
def test_code_runs(page, tmp_path, monkeypatch):
    """In order, in one namespace a page."""
    monkeypatch.chdir(tmp_path)
    # Traced as a whole, but without a compiler's twenty seconds; test_torch_tools.py has these.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    namespace: dict = {}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.needs("matplotlib")
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its code cells in order, in one namespace."""
    from matplotlib import pyplot as plt

    path = ROOT / "docs" / "tour.ipynb"
    assert path.stat().st_size < 200_000
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    namespace: dict = {}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], number
            exec(compile("".join(cell["source"]), f"{path}, cell {number}", "exec"), namespace)
    plt.close("all")


def commands(text: str) -> list[str]:
    """Lines of indented blocks and pieces in backticks, without comments, continuations joined."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    return [re.split(r"\s#\s", line)[0].strip() for line in lines]


ALL_COMMANDS = [(page.name, command) for page in PAGES for command in commands(page.read_text())]


def test_goals_of_make_exist():
    goals = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, command in ALL_COMMANDS:
        if command.startswith("make "):
            named = [word for word in command.split()[1:] if "=" not in word]
            assert set(named) <= goals, (page, command)


def test_commands_of_the_trainer_parse():
    for page, command in ALL_COMMANDS:
        if not (match := re.search(r"-m cyclegan (?!COMMAND)(.+)", command)):
            continue
        words = shlex.split(match[1])
        assert {word for word in words if word.startswith("--")} <= OPTIONS, (
            page,
            command,
        )  # in full
        if "..." in words:
            assert words[0] in TRAINER
        else:
            make_parser().parse_args(words)


def test_options_exist():
    """Those in backticks, of the trainer or of the tools named here."""
    for page in PAGES:
        text = page.read_text()
        if page.name == "coming_from_junyanz.md":  # its tables begin with another program's
            text = re.sub(r"^\|(?:\\\||[^|])*\|", "", text, flags=re.MULTILINE)
        for option in re.findall(r"`(--[\w-]+)[^`]*`", text):
            assert option in OPTIONS | {"--no-build-isolation"}, (page.name, option)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), (page.name, link)
            assert not anchor or anchor in anchors(target), (page.name, link)


@pytest.mark.needs("matplotlib", "sources")
def test_the_readme_has_the_table_of_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    report = importlib.import_module("report")
    kept = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    table = report.readme_table(kept["machine"], kept["results"])
    assert table.count("\n") > 8
    assert table in (ROOT / "README.md").read_text()


def test_the_tolerances_are_those_of_the_tests():
    page = (ROOT / "docs" / "mathematics.md").read_text()
    for name, tolerances in {
        "CPU": comparison.TOLERANCES[torch.float32],
        "CUDA (emulated) and Triton (interpreted)": comparison.CUDA_FLOAT32,
        "with a mask": comparison.MASKED_FLOAT32,
        "constants, hard edges": comparison.HARD,
        "narrow windows (sigma below 0.5)": comparison.NARROW,
    }.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        printed = [float(cell) for cell in row.strip("|").split("|")[1:]]
        assert printed == [tolerances[key] for key in ("mean", "map", "grad", "pyramid")], name


@pytest.fixture(scope="module")
def scripts():
    """Imports a script of docs/figures, once."""
    sys.path.insert(0, str(FIGURES))
    yield importlib.import_module
    sys.path.remove(str(FIGURES))


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def check_page(table: str) -> None:
    """Such a table is in the page, with these numbers but for one in the last digit."""
    text = (ROOT / "docs" / "choosing_a_loss.md").read_text()
    ours = rows_of(table)
    start = text.index(table.splitlines()[0])
    theirs = rows_of("\n".join(text[start:].splitlines()[: len(ours)]))
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert our_row[0] == their_row[0]
        for computed, printed in zip(our_row[1:], their_row[1:], strict=True):
            if re.fullmatch(r"[\d.]+", computed):
                last_digit = 10.0 ** -len(printed.partition(".")[2])
                assert float(printed) == pytest.approx(float(computed), abs=1.01 * last_digit)
            else:
                assert computed == printed


def made(script: ModuleType, folder: Path, monkeypatch) -> dict:
    """Runs a script, checks its table and its figure, and returns what it measured."""
    found = script.measure()
    monkeypatch.setattr(script, "measure", lambda: found)
    check_page(script.main(folder))
    name = f"{script.__name__}.jpg"
    new, kept = (np.asarray(Image.open(f / name), float) for f in (folder, FIGURES))
    assert new.shape == kept.shape
    assert np.abs(new - kept).mean() < 1  # fonts and codecs may differ a little
    return found


def test_figure_of_equal_errors(scripts, tmp_path, monkeypatch):
    found = made(scripts("equal_mse"), tmp_path, monkeypatch)
    original = found.pop("Photograph")
    assert original.ssim == original.ms_ssim == 1
    errors = [image.mean_squared_error for image in found.values()]
    assert max(errors) < 1.01 * min(errors)
    order = sorted(found, key=lambda name: found[name].ssim, reverse=True)
    assert (order[0], order[-1]) == ("Brighter", "Noisy")
    assert found["Noisy"].ms_ssim > 1.5 * found["Noisy"].ssim  # to which MS-SSIM is milder


def test_figure_of_moves(scripts, tmp_path, monkeypatch):
    found = list(made(scripts("geometric"), tmp_path, monkeypatch).values())
    original, moved, spoilt = found[0], found[1:4], found[4:]
    assert original.ssim == 1
    for measure in ("ssim", "ms_ssim"):
        worst = min(getattr(image, measure) for image in spoilt)
        assert all(getattr(image, measure) < worst for image in moved)
    assert max(image.contextual for image in moved) < min(image.contextual for image in spoilt) / 5


def test_figure_of_colours(scripts, tmp_path, monkeypatch):
    script = scripts("colour_shift")
    _, runs = made(script, tmp_path, monkeypatch)
    text = " ".join((ROOT / "docs" / "choosing_a_loss.md").read_text().split())
    red, green, blue = script.CAST
    assert f"red times {red}, green times {green}, blue times {blue}." in text
    assert f"{script.STEPS} steps of Adam with a learning rate of {script.LEARNING_RATE}" in text
    assert "by `ssim={ssim}, l1={l1}`".format(**script.LOSSES["SSIM and L1"]) in text
    cup = scripts("equal_mse").measure()
    del cup["Photograph"]
    start = runs["SSIM"][0]
    alone, pyramid, mixed = (runs[name][-1] for name in script.LOSSES)
    assert start.ssim > max(image.ssim for image in cup.values())
    assert alone.ssim > 0.995 and mixed.ssim > 0.995
    assert pyramid.ssim < start.ssim
    assert 3 * mixed.colours_off < alone.colours_off < pyramid.colours_off < start.colours_off
