"""One small group of `make bench`, and the report made of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import machine
import pytest

BENCH = Path(__file__).parents[1] / "bench"


def run(*command: str) -> str:
    # pytest-benchmark does nothing in what it takes for a worker of xdist.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    # Not in the root of the repository, where Python would import the sources.
    done = subprocess.run(
        [sys.executable, *command],
        cwd=BENCH,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.needs("extension", "pytest_benchmark", "matplotlib", "pytorch_msssim")
def test_a_group_and_its_report(tmp_path):
    results = tmp_path / "results.json"
    chosen = "1x3x64x64"
    printed = run("-m", "pytest", "test_kernels.py", "-k", chosen, f"--benchmark-json={results}")
    assert "SSIM, forward and backward, 1x3x64x64" in printed
    run("report.py", str(results), str(tmp_path / "docs"))

    kept = json.loads((tmp_path / "docs" / "benchmarks.json").read_text())
    found = {(row["part"], row["library"]): row for row in kept["results"]}
    ours = found["forward and backward", "ssimfast"]
    peer = found["forward and backward", "pytorch-msssim"]
    assert ("forward", "ssimfast") in found and ours["pixels"] == 3 * 64 * 64
    assert 0 < ours["of_fma"] < 1.5 and 0 < ours["q1"] <= ours["median"] <= ours["q3"]
    assert (
        f"{peer['median'] / ours['median']:.1f} |"
        in (tmp_path / "docs" / "benchmarks.md").read_text()
    )
    for plot in ("time", "memory", "ratios", "step"):
        text = (tmp_path / "docs" / f"benchmarks_{plot}.svg").read_text()
        assert "<svg" in text and "</svg>" in text
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == [
        "benchmarks.json",
        "benchmarks.md",
        "benchmarks_memory.svg",
        "benchmarks_ratios.svg",
        "benchmarks_step.svg",
        "benchmarks_time.svg",
    ]


@pytest.mark.long
@pytest.mark.needs("x86", "compiler")
@pytest.mark.parametrize("flags", [["-mavx2", "-mfma"], ["-mavx512f"]], ids=lambda flags: flags[0])
def test_the_probe_of_multiply_adds_keeps_more_chains_than_the_latency_needs(flags):
    """A compiler that finds chains alike keeps one, whose latency would pass for the peak."""
    command = [machine.compiler(), "-O2", "-std=c++17", *flags, "-S", str(BENCH / "limits.cpp")]
    code = subprocess.run([*command, "-o", "-"], check=True, capture_output=True, text=True).stdout
    assert len(set(re.findall(r"\tvfmadd\d+ps\t.*%([yz]mm\d+)$", code, re.MULTILINE))) >= 10
