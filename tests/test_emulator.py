"""Checks of tests/emulator/emulator.h: it finds planted bugs, and runs what has none.

Where a test of emulated kernels passes, that is worth as much as these checks.
"""

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import machine
import pytest

pytestmark = pytest.mark.needs("compiler", "posix")

HERE = Path(__file__).parent / "emulator"
CSRC = Path(__file__).parents[1] / "csrc"
CUDA_INCLUDE = Path("/usr/local/cuda/include")

RIGHT, CAUGHT = 0, 3  # exit codes

# Builds by their flags. The second does without CUDA's headers and the assembly of the first.
BUILDS = {
    "plain": ["-O1", f"-I{CUDA_INCLUDE}"],
    "portable": ["-O1", "-DSSIMFAST_EMULATOR_OWN_TYPES", "-DSSIMFAST_EMULATOR_UCONTEXT"],
    "sanitized": [
        "-O1",
        "-g1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-DSSIMFAST_EMULATOR_OWN_TYPES",
    ],
}

CLEAN = [
    "broadcast_mask",
    "clean_after_errors",
    "conversions",
    "copy",
    "counters",
    "global_vector",
    "halves_of_a_word",
    "hidden_pixels",
    "images_of_halves",
    "in_place",
    "interleaved",
    "orders",
    "partial_warps",
    "poison",
    "reciprocals",
    "shared_in_bounds",
    "shared_vector",
    "shuffle_segments",
    "shuffles",
    "two_blocks_write_unchecked",
    "uninitialised_allowed",
]

BARRIER, SHUFFLE, SYNCWARP = "__syncthreads (", "__shfl_xor_sync (", "__syncwarp ("

# What the message of a bug must name.
PLANTED = {
    "race": ["race on shared memory", "thread 1 writes word 1 ", "thread 0 read"],
    "race_across_warps": ["race on shared memory", "thread 32 ", "thread 0 "],
    "race_between_others": ["race on shared memory", "thread 32 ", "thread 0 "],
    "race_after_read": ["race on shared memory", "thread 3 writes word 7 (byte 28)", " read,"],
    "race_after_read_across_warps": ["race on shared memory", "thread 63 writes word 7", " read,"],
    "race_after_one_read": ["race on shared memory", "thread 5 writes word 0", "thread 2 read"],
    "race_after_one_read_across_warps": [
        "race on shared memory",
        "thread 40 writes word 0",
        "thread 2 read",
    ],
    "race_of_writes": ["race on shared memory", "thread 1 writes word 0", "thread 0 wrote"],
    "race_of_writes_across_warps": ["race on shared memory", "thread 32 writes", "thread 0 wrote"],
    "left_before_barrier": ["divergent barrier", "thread 5 has left", BARRIER, "planted.cpp:"],
    "last_left_before_barrier": ["divergent barrier", "thread 63 has left", BARRIER],
    "two_barriers": ["different barriers of a block", "thread 0 ", "thread 5 ", BARRIER],
    "left_before_shuffle": ["divergent warp barrier", "thread 37 has left", SHUFFLE],
    "shuffle_or_barrier": ["divergent warp barrier", "thread 3 waits at", BARRIER, SYNCWARP],
    "two_warp_barriers": ["different barriers of a warp", "thread 3 ", SYNCWARP],
    "lane_outside_mask": ["mask without the lane itself", "lane 1"],
    "shuffle_from_outside_mask": ["shuffle reads a lane that takes no part", "lane 20"],
    "shared_out_of_bounds": ["shared memory out of bounds", "4 bytes at byte 128 of 128"],
    "shared_out_of_bounds_below": ["shared memory out of bounds", "at byte -4 of 128"],
    "shared_partly_out_of_bounds": ["shared memory out of bounds", "at byte 124 of 126"],
    "no_shared_at_all": ["shared memory out of bounds", "at byte 0 of 0"],
    "uninitialised": ["uninitialised shared memory read", "word 4 (byte 16)"],
    "hidden_pixels_not_kept": ["uninitialised shared memory read", "word 4 (byte 16)", "thread 4"],
    "broadcast_mask_as_dense": [
        "global memory read that this launch has written",
        "thread 0 of block 1 reads",
        "thread 0 of block 0 wrote",
    ],
    "uninitialised_in_second_block": ["uninitialised shared memory read", "word 4"],
    "misaligned_shared_vector": ["misaligned access to shared memory", "16 bytes", "8 past"],
    "misaligned_global_vector": ["misaligned access to global memory", "8 bytes", "4 past"],
    "null_pointer": ["null pointer", "thread 0 reads"],
    "shared_as_global": ["shared memory used as global memory"],
    "two_threads_write": ["two threads write the same global address", "thread 1 of block 0"],
    "two_blocks_write": ["two threads write the same global address", "of block 0", "of block 1"],
    "read_of_written": ["global memory read that this launch has written", "thread 1 of block 0"],
    "write_of_read": ["global memory written that this launch has read"],
    "write_of_anothers_own": ["global memory written that this launch has read"],
    "read_own_of_written": ["global memory read that this launch has written", "thread 0"],
    "own_of_two": ["global memory read that this launch has written", "thread 1 of block 0"],
    "too_many_threads": ["1 to 1024 threads, not 1025"],
    "no_blocks": ["no such grid"],
    "too_much_shared": ["too much shared memory"],
    "shared_not_allowed": ["more shared memory than a kernel is allowed", "50176 of 49152"],
}

# Cases that only AddressSanitizer finds.
OUT_OF_BOUNDS = ("global_out_of_bounds", "global_out_of_bounds_below", "mask_out_of_bounds")


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[[str], Path]:
    """Compiles the program of planted bugs, once for each of BUILDS."""
    folder = tmp_path_factory.mktemp("emulator")

    @cache
    def compiled(name: str) -> Path:
        flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        flags += [f"-I{HERE}", f"-I{CSRC}"]
        command = [machine.compiler(), *flags, *BUILDS[name], str(HERE / "planted.cpp")]
        done = subprocess.run([*command, "-o", str(folder / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder / name

    return compiled


def run(program: Path, case: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SSIMFAST_EMULATOR_")}
    return subprocess.run(
        [program, case], capture_output=True, text=True, timeout=100, env=kept | environment
    )


def wrongly_refused(program: Path, case: str, **environment: str) -> str | None:
    """What the emulator says of a case that is right; None if it finds nothing."""
    result = run(program, case, **environment)
    return None if result.returncode == RIGHT else result.stdout + result.stderr


def not_found(program: Path, case: str, words: list[str], **environment: str) -> str | None:
    """What the emulator says of a planted bug, if that is not the message with those words."""
    result = run(program, case, **environment)
    found = result.returncode == CAUGHT and all(word in result.stdout for word in words)
    return None if found and not result.stderr else result.stdout + result.stderr


def those_wrong(found: dict[str, str | None]) -> dict[str, str]:
    return {case: said for case, said in found.items() if said is not None}


# The plain build finds all bugs in a second; the others show that it is not only that build.
every_build = pytest.mark.parametrize(
    "name",
    [
        "plain",
        pytest.param("portable", marks=pytest.mark.long),
        pytest.param("sanitized", marks=[pytest.mark.long, pytest.mark.needs("address sanitizer")]),
    ],
)


@every_build
def test_runs_what_is_right(build, name):
    assert those_wrong({case: wrongly_refused(build(name), case) for case in CLEAN}) == {}


@every_build
def test_finds_planted_bugs(build, name):
    found = {case: not_found(build(name), case, words) for case, words in PLANTED.items()}
    assert those_wrong(found) == {}


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_orders_of_threads(build, order):
    """Races are found in any order, and what is right stays right."""
    in_order, race = {"SSIMFAST_EMULATOR_ORDER": order}, ["race on shared memory"]
    races = [case for case in PLANTED if case.startswith("race")]
    found = {case: not_found(build("plain"), case, race, **in_order) for case in races}
    assert len(races) == 9 and those_wrong(found) == {}
    in_order["SSIMFAST_EMULATOR_BLOCKS"] = "3"
    right = ("orders", "shuffles", "counters")
    found = {case: wrongly_refused(build("plain"), case, **in_order) for case in right}
    assert those_wrong(found) == {}


@pytest.mark.long
@pytest.mark.needs("address sanitizer")
def test_sanitizer_guards_global_memory(build):
    for case in OUT_OF_BOUNDS:
        result = run(build("sanitized"), case)
        assert result.returncode not in (RIGHT, CAUGHT), case
        assert "heap-buffer-overflow" in result.stderr, case
        assert "ssimfast::cuda::read<float>" in result.stderr, case


def test_environment(build):
    settings = {"SSIMFAST_EMULATOR_BLOCKS": "2", "SSIMFAST_EMULATOR_ORDER": "reverse"}
    result = run(build("plain"), "environment", **settings)
    assert result.returncode == RIGHT, result.stdout + result.stderr
    for name in settings:
        result = run(build("plain"), "environment", **{name: "sideways"})
        assert result.returncode == CAUGHT and f"{name} must be" in result.stdout


def test_every_case_is_tested(build):
    listed = set(run(build("plain"), "").stdout.split())
    assert listed == {*CLEAN, *PLANTED, *OUT_OF_BOUNDS, "environment"}
