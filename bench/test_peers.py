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
GROUPS = [
    Group(task, shape, part)
    for task in ("SSIM", "MS-SSIM")
    for shape in SHAPES
    for part in PARTS
    if part != "both gradients" or (task == "SSIM" and shape[0] * shape[1] != 1)
]
CASES = [
    pytest.param(group, library, id=f"{group}-{library}")
    for group in GROUPS
    for library in [*BACKENDS, *peers(group)]
]


@pytest.mark.parametrize("group, library", CASES)
def test_peers(benchmark, group, library):
    found = measured(group, (*BACKENDS, *peers(group)))
    require_compared(found, group, library)
    hand_over(benchmark, group, found.times[library])
    note(benchmark, "peers", group, library)
