"""Functions of tensors that a GPU replays as one CUDA graph: no launches, no Python."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from cyclegan.errors import UserError

WARM_UP = 3  # steps in which libraries choose algorithms and optimizers make their state


def check(accelerator: Accelerator) -> None:
    """Raises UserError if training steps cannot be captured here."""
    device, precision = accelerator.device, accelerator.mixed_precision
    for fits, needs, got in (
        (device.type == "cuda", "a CUDA GPU", device),
        (accelerator.num_processes == 1, "one process", accelerator.num_processes),
        (precision != "fp16", "precision no or bf16, for fp16 decides about each step", precision),
    ):
        if not fits:
            raise UserError(f"cuda_graphs needs {needs}; got {got}")


class Replayed:
    """A function that runs as it is a few times, is then captured, and from then on replayed.

    It reads buffers into which each call copies its arguments. From the capture on it returns the
    same tensors, which the next call overwrites. Python is run for the last time in the capture:
    whatever changes from call to call must be in the contents of tensors.

    Args:
        function: tensors -> tensors, which waits for nothing on the device.
        pool: of memory, shared by functions that are always called in the same order.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], pool: object):
        self.function, self.pool = function, pool
        self.calls = 0
        self.buffers: tuple[Tensor, ...] = ()

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        if not self.calls:
            self.buffers = tuple(argument.clone() for argument in arguments)
        for buffer, argument in zip(self.buffers, arguments, strict=True):
            if buffer.shape != argument.shape:
                raise UserError(
                    "cuda_graphs needs batches of one shape; got "
                    f"{tuple(argument.shape)} after {tuple(buffer.shape)}"
                )
            buffer.copy_(argument)
        self.calls += 1
        if self.calls <= WARM_UP:
            return beside(lambda: self.function(*self.buffers))
        if self.calls == WARM_UP + 1:
            self.replay, self.results = record(lambda: self.function(*self.buffers), self.pool)
        self.replay()
        return self.results


def beside(function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The function's result, computed on another stream, as torch asks before a capture."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        results = function()
    current.wait_stream(stream)
    return results


def record(
    function: Callable[[], tuple[Tensor, ...]], pool: object
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Records the function; returns a function that replays it, and the tensors it writes to."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: the loader's thread goes on pinning batches, which other modes forbid.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        results = function()
    return graph.replay, results
