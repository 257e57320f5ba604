"""Instruction sets: what kernels are compiled for is what is looked for, and the oracle's tests
again in processes that are held to narrower ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = ("components", "masks_and_volumes", "ms_ssim", "similarity_loss", "ssim", "uint8")
# Every kernel, in every dtype, with rows that are no multiple of a vector.
TESTS = (
    *("test_every_dtype", "test_every_window", "test_every_mixture", "test_every_mask"),
    *("test_every_call", "test_flat_bright", "test_gradcheck"),
)


# Narrower ones than that of the processor, which all other tests use.
@pytest.mark.long
@pytest.mark.parametrize(
    "instruction_set",
    [
        pytest.param("baseline", marks=pytest.mark.needs("avx2")),
        pytest.param("avx2", marks=pytest.mark.needs("avx512")),
    ],
)
def test_instruction_sets(instruction_set, tmp_path):
    files = [str(FOLDER / f"test_{name}.py") for name in FILES]
    elsewhere = {"HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)}  # not beside the tests
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, "-m", "", "-k", f"({' or '.join(TESTS)}) and cpu"],
        env={**os.environ, "SSIMFAST_CPU_ISA": instruction_set, **elsewhere},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in TESTS:
        assert f"::{name}" in done.stdout, f"no {name} ran"


@pytest.mark.needs("sources")
def test_every_feature_that_is_used_is_looked_for():
    """Kernels are compiled for the lists in isa.h, in which each feature has its test."""
    root = FOLDER.parent
    code = "".join(path.read_text() for path in (root / "csrc").rglob("*") if path.is_file())
    features = re.findall(r'^ +X\("(\w+)", (.+)\)(?: +\\)?$', code, re.MULTILINE)
    assert len(features) == 7
    for name, is_there in features:
        assert is_there in (f'__builtin_cpu_supports("{name}")', f"supports_{name}()")
    assert re.findall(r"\btarget\((.+)\)\)\)$", code, re.MULTILINE) == [
        f'"sse2" SSIMFAST_{isa}_FEATURES(SSIMFAST_NAME)' for isa in ("AVX2", "AVX512")
    ]
    assert code.count("__attribute__((target") == 2 and "pragma GCC target" not in code
    assert not re.search(r"-m(arch|avx|fma|f16c|sse)", (root / "setup.py").read_text())
