"""Checks of tests/emulator/emulator.h: it finds planted bugs, and runs what has none.

Where a test of emulated kernels passes, that is worth as much as these checks.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "emulator"
CUDA_INCLUDE = Path("/usr/local/cuda/include")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

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
    "clean_after_errors",
    "conversions",
    "copy",
    "counters",
    "global_vector",
    "halves_of_a_word",
    "images_of_halves",
    "in_place",
    "interleaved",
    "orders",
    "partial_warps",
    "poison",
    "reciprocals",
    "shared_allowed",
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
    "shared_not_allowed": ["more shared memory than the kernel is allowed", "50176 of 49152"],
    "shared_allowed_by_each_launch": ["allowed 61440 bytes", "and then 51200", "two host threads"],
}


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> dict[str, Path]:
    """The program of planted bugs, in each build."""
    if COMPILER is None or os.name != "posix":
        pytest.skip("no C++ compiler: the emulator cannot be built")
    folder = tmp_path_factory.mktemp("emulator")
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-DSSIMFAST_EMULATED", f"-I{HERE}"]
    commands = {
        build: [COMPILER, *flags, *BUILDS[build], str(HERE / "planted.cpp"), "-o"]
        for build in BUILDS
    }
    running = {
        build: subprocess.Popen(
            [*command, str(folder / build)], stderr=subprocess.PIPE, text=True, errors="replace"
        )
        for build, command in commands.items()
    }
    errors = {build: process.communicate()[1] for build, process in running.items()}
    for build, process in running.items():
        assert process.returncode == 0, f"{build}:\n{errors[build]}"
    return {build: folder / build for build in BUILDS}


def run(program: Path, case: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SSIMFAST_EMULATOR_")}
    return subprocess.run(
        [program, case], capture_output=True, text=True, timeout=100, env=kept | environment
    )


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("case", CLEAN)
def test_runs_what_is_right(programs, build, case):
    result = run(programs[build], case)
    assert result.returncode == RIGHT, result.stdout + result.stderr


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("case", PLANTED)
def test_finds_planted_bug(programs, build, case):
    result = run(programs[build], case)
    assert result.returncode == CAUGHT, result.stdout + result.stderr
    assert not result.stderr
    for words in PLANTED[case]:
        assert words in result.stdout


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("case", [case for case in PLANTED if case.startswith("race")])
def test_finds_races_in_any_order(programs, case, order):
    result = run(programs["plain"], case, SSIMFAST_EMULATOR_ORDER=order)
    assert result.returncode == CAUGHT, result.stdout + result.stderr
    assert "race on shared memory" in result.stdout


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("case", ["orders", "shuffles", "counters"])
def test_right_in_any_order(programs, case, order):
    result = run(
        programs["plain"], case, SSIMFAST_EMULATOR_ORDER=order, SSIMFAST_EMULATOR_BLOCKS="3"
    )
    assert result.returncode == RIGHT, result.stdout + result.stderr


@pytest.mark.parametrize("case", ["global_out_of_bounds", "global_out_of_bounds_below"])
def test_sanitizer_guards_global_memory(programs, case):
    result = run(programs["sanitized"], case)
    assert result.returncode not in (RIGHT, CAUGHT)
    assert "heap-buffer-overflow" in result.stderr
    assert "ssimfast::cuda::read<float>" in result.stderr


def test_environment(programs):
    settings = {"SSIMFAST_EMULATOR_BLOCKS": "2", "SSIMFAST_EMULATOR_ORDER": "reverse"}
    result = run(programs["plain"], "environment", **settings)
    assert result.returncode == RIGHT, result.stdout + result.stderr
    for name in settings:
        result = run(programs["plain"], "environment", **{name: "sideways"})
        assert result.returncode == CAUGHT and f"{name} must be" in result.stdout


def test_every_case_is_tested(programs):
    listed = set(run(programs["plain"], "").stdout.split())
    elsewhere = {"environment", "global_out_of_bounds", "global_out_of_bounds_below"}
    assert listed == set(CLEAN) | set(PLANTED) | elsewhere
