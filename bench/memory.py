"""Peak memory of one step, measured from outside in a process of its own (Linux).

``python memory.py TASK LIBRARY N C H W`` prints how many image-sized float32 tensors a step of
forward and backward needs beyond its two inputs; the gradient itself is one of them.
"""

import subprocess
import sys
from pathlib import Path

from tasks import EVERY_TASK, inputs, training_step


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def extra_images(task: str, library: str, shape: tuple[int, ...]) -> float | None:
    """Runs this file in a fresh process; None where the system cannot tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, task, library, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return float(done.stdout)


def main() -> None:
    task, library, *sizes = sys.argv[1:]
    shape = tuple(map(int, sizes))
    loss = EVERY_TASK[task][library]
    small = (1, 1, 192, 192) if len(shape) == 4 else (1, 1, 16, 16, 16)
    training_step(loss, *inputs(small))  # loads code and starts threads
    x, y = inputs(shape)
    Path("/proc/self/clear_refs").write_text("5")  # peak := current
    before = _status("VmRSS")
    training_step(loss, x, y)
    print((_status("VmHWM") - before) / (x.numel() * x.element_size()))


if __name__ == "__main__":
    main()
