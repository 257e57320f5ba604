"""Loader processes: the batches that they bring, and how they end."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children

from torch.utils.data import DataLoader

from cyclegan.errors import UserError, cause

SHARED_MEMORY = (
    "shared memory is full: fewer workers, a smaller batch_size or a larger /dev/shm (docker run "
    "--shm-size) may help; workers=0 needs none"
)
MOST_WORKERS = 8
# Why a signal may have ended a loader process.
REASONS = {
    "SIGKILL": "the system may be out of memory: fewer workers need less",
    "SIGBUS": SHARED_MEMORY,
}


def processes_here() -> int:
    """How many processes of the run this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def count_workers(asked: int, in_memory: bool, device_type: str, processes: int) -> int:
    """Number of loader processes of each of `processes` on this machine.

    Args:
        asked: the setting; -1: none where they do not pay, which is on a CPU, on Windows (they
            start slowly there), and where the images are in memory.
    """
    if asked >= 0:
        return asked
    if in_memory or device_type == "cpu" or sys.platform == "win32":
        return 0
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(MOST_WORKERS, cores // processes)


def ignore_interrupts(_: int) -> None:
    """Makes a loader process survive signals to its group: it is needed until the run has saved.
    Only `batches_of` can end it then; the SIGTERM of Python and torch has no effect."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator]:
    """An iterator over the batches of `loader`. Its processes have ended when the block is left,
    whatever ends it.

    Raises:
        UserError: an image cannot be read; a loader process cannot be started, has died, or found
            no shared memory.
    """
    before = active_children()
    try:
        batches = iter(loader)
    except OSError as error:
        for worker in set(active_children()).difference(before):
            worker.kill()
            worker.join()
        raise UserError(f"cannot start {loader.num_workers} workers: {cause(error)}") from error
    try:
        yield batches
    except (EOFError, OSError, RuntimeError, UserError) as error:
        # That a process died shows in several errors, one of which a signal handler of torch raises
        # anywhere in the block; its exit code is sure.
        if died := _end(batches):
            name = signal.Signals(died[0]).name
            reason = REASONS.get(name, "start the run again with --resume auto")
            raise UserError(f"{name} ended a loader process: {reason}") from error
        message = str(error)
        if "in DataLoader worker process" not in message:
            raise
        if "</torch_" in message:  # a file that torch shares memory with
            raise UserError(f"a loader process failed: {SHARED_MEMORY}") from error
        if isinstance(error, UserError | OSError):
            # The last line of the process's traceback, which torch puts in the message.
            raise UserError(message.strip().rpartition("\n")[2].partition(": ")[2]) from error
        raise
    finally:
        _end(batches)


def _end(batches: Iterator) -> list[int]:
    """Ends the processes of an iterator; returns the signals that had ended some before."""
    workers = getattr(batches, "_workers", [])  # the training process loads images itself
    if workers:
        with suppress(RuntimeError):  # of torch's signal handler, about one that has died
            batches._shutdown_workers()  # asks them to end, and waits
    died = [-worker.exitcode for worker in workers if (worker.exitcode or 0) < 0]
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
    return died
