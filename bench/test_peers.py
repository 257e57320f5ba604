"""SSIM and MS-SSIM, window 11, sigma 1.5, float32, by every library that is installed.

A library is compared only where its loss is that of ssimfast by the same convention (tasks.py);
otherwise its test is skipped, and says why. ``pytest bench/test_peers.py -k 256`` selects sizes.
"""

import pytest
from turns import BACKENDS, PARTS, Group, clock, hand_over, measured, note, peers, require_compared

pytestmark = [
    pytest.mark.benchmark(timer=clock),
    pytest.mark.filterwarnings("default"),  # what libraries warn of is no reason to stop
]
SHAPES = [(1, 3, 1080, 1920), (16, 3, 256, 256), (1, 3, 256, 256), (1, 1, 2160, 3840)]
CASES = [
    pytest.param(Group(task, shape, part), library, id=f"{Group(task, shape, part)}-{library}")
    for task in ("SSIM", "MS-SSIM")
    for shape in SHAPES
    for part in PARTS
    for library in [*BACKENDS, *peers(task)]
    if task == "SSIM" or part != "both gradients"
]


@pytest.mark.parametrize("group, library", CASES)
def test_peers(benchmark, group, library):
    found = measured(group, (*BACKENDS, *peers(group.task)), rounds=9, seconds=20)
    require_compared(found, group, library)
    hand_over(benchmark, group, found.times[library])
    note(benchmark, "peers", group, library)
