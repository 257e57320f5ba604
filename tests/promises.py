"""What functions of the package promise, checked in one way; and what tests of them need."""

from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import HealthCheck, settings

from ssimfast import ops

NO_EXTENSION = "the extension was not built: no C++ compiler at install time"
needs_extension = pytest.mark.skipif(ops.extension is None, reason=NO_EXTENSION)

# Examples of hypothesis: the same ones every time, and few, for each runs kernels.
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the seed of every test
)


def assert_same_bits_for_every_number_of_threads(run: Callable[[], Iterable[torch.Tensor]]) -> None:
    if ops.extension is None:
        pytest.skip(NO_EXTENSION)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(tuple(run()))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(result, results[0], strict=True))


def assert_compiles(
    loss_of: Callable, net: torch.nn.Module, inputs: Iterable[tuple], dynamic: bool
) -> None:
    """A training step of ``net`` gives the same compiled, in one graph, for each of the inputs.

    ``loss_of`` returns the loss, or the loss and what goes with it.
    """
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for images in inputs:
        results = []
        for step in (loss_of, compiled):
            net.zero_grad()
            result = step(*images)
            loss, *others = result if isinstance(result, tuple) else (result,)
            loss.backward()
            results.append((loss.detach(), net.weight.grad.clone(), others))
        torch.testing.assert_close(*results)
