"""What ssimfast itself costs: every loss, sizes from 64 x 64 to 8K, dtypes, threads, backends.

Sizes are run by the two libraries that matter most, too, as far as they go in reasonable time: the
plots of time and memory against pixels are made of these.
"""

import pytest
from cards import HALF
from tasks import EVERY_TASK, VOLUME_TASKS
from test_peers import GROUPS  # measured there
from turns import BACKENDS, CARD, Group, clock, hand_over, measured, note, require_compared

pytestmark = [
    pytest.mark.benchmark(timer=clock),
    pytest.mark.filterwarnings("default"),  # what libraries warn of is no reason to stop
]
SIZES = [(64, 64), (128, 128), (256, 256), (512, 512), (1080, 1920), (2160, 3840), (4320, 7680)]
MOST_FOR_PEERS = 2160 * 3840
# One thread and two; a GPU has none of its own.
THREADS = (1, 2) if CARD.device == "cpu" else ()


def groups() -> dict[Group, list[str]]:
    """With the libraries that are measured in turns."""
    found: dict[Group, list[str]] = {}
    for task, libraries in EVERY_TASK.items():
        shape = (1, 1, 64, 128, 128) if task in VOLUME_TASKS else (16, 3, 256, 256)
        known = [name for name in libraries if name.split(" (")[0] == "pytorch-msssim"]
        found[Group(task, shape)] = [*BACKENDS, *known]
    for height, width in SIZES:
        few = ["pytorch-msssim", "frame-analytics"] if height * width <= MOST_FOR_PEERS else []
        found[Group("SSIM", (1, 3, height, width))] = [*BACKENDS, *few]
        found[Group("SSIM", (1, 3, height, width), "forward")] = BACKENDS
        if min(height, width) > 160:
            found[Group("MS-SSIM", (1, 3, height, width))] = BACKENDS
    for dtype in HALF:
        for part in ("forward", "forward and backward"):
            found[Group("SSIM", (1, 3, 1080, 1920), part, dtype)] = BACKENDS
    for threads in THREADS:
        for part in ("forward", "forward and backward"):
            found[Group("SSIM", (1, 3, 1080, 1920), part, threads=threads)] = BACKENDS
    return {group: libraries for group, libraries in found.items() if group not in GROUPS}


CASES = [
    pytest.param(group, tuple(libraries), library, id=f"{group}-{library}")
    for group, libraries in groups().items()
    for library in libraries
]


@pytest.mark.parametrize("group, libraries, library", CASES)
def test_kernels(benchmark, group, libraries, library):
    found = measured(group, libraries)
    require_compared(found, group, library)
    hand_over(benchmark, group, found.times[library])
    note(benchmark, "kernels", group, library)
