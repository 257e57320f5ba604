"""How OpenMP threads wait for each other: chosen before torch is loaded, which reads it then."""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median

# A user who sets one of these has chosen.
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def choose_waiting(environment: MutableMapping[str, str]) -> None:
    """Sets how threads of libgomp, the OpenMP of torch on Linux, wait; other OpenMPs ignore it.

    A waiting thread spins for a while before it sleeps. On quiet cores that halves the time of a
    step of a small network; on busy cores it takes the core from the thread it waits for.

    Args:
        environment: changed, unless it says already how threads wait.
    """
    if environment.keys() & set(VARIABLES):
        return
    cores = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    if running_others() + own > cores:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        # A thirtieth of the usual spins: as quick on quiet cores, quicker if they get busy later.
        environment["GOMP_SPINCOUNT"] = "10000"


def running_others() -> int:
    """Threads of other programs that are running now; 0 where the system does not tell."""
    samples = []
    for _ in range(7):
        try:
            running = Path("/proc/loadavg").read_text().split()[3].split("/")[0]
        except OSError:
            return 0
        samples.append(int(running) - 1)  # without this thread
        time.sleep(0.01)
    return int(median(samples))
