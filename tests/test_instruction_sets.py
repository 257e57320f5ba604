"""The oracle's tests again in processes that are held to narrower instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from promises import needs_extension

from ssimfast import ops

FOLDER = Path(__file__).parent
FILES = ("components", "masks_and_volumes", "ms_ssim", "similarity_loss", "ssim", "uint8")
# Every kernel, in every dtype, with rows that are no multiple of a vector.
TESTS = (
    "test_every_dtype or test_every_window or test_every_mixture or test_every_mask "
    "or test_every_call or test_flat_bright or test_gradcheck"
)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
@needs_extension
def test_instruction_sets(instruction_set, tmp_path):
    names = ["baseline", "avx2", "avx512"]
    if names.index(instruction_set) >= names.index(ops.extension.instruction_set()):
        pytest.skip(f"this processor has {ops.extension.instruction_set()}, which all tests use")
    files = [str(FOLDER / f"test_{name}.py") for name in FILES]
    elsewhere = {"HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)}  # not beside the tests
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, "-k", f"({TESTS}) and cpu"],
        env={**os.environ, "SSIMFAST_CPU_ISA": instruction_set, **elsewhere},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
