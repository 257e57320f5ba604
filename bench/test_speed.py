"""Every loss, window 11, sigma 1.5, float32, on the CPU: ``make bench``.

``pytest bench -k "SSIM-"`` and the like select tasks by the names in tasks.py.
"""

import pytest
import torch
from memory import extra_images
from tasks import EVERY_TASK, TASKS, VOLUME_TASKS, inputs, training_step

IMAGES = [(1, 3, 1080, 1920), (16, 3, 256, 256), (1, 3, 256, 256)]
VOLUMES = [(1, 1, 64, 128, 128)]
CASES = [
    pytest.param(task, shape, library, id=f"{task}-{'x'.join(map(str, shape))}-{library}")
    for tasks, shapes in ((TASKS, IMAGES), (VOLUME_TASKS, VOLUMES))
    for task in tasks
    for shape in shapes
    for library in tasks[task]
]
each_case = pytest.mark.parametrize("task, shape, library", CASES)


def describe(benchmark, task: str, what: str, shape: tuple[int, ...], library: str) -> None:
    benchmark.group = f"{task}, {what}, {'x'.join(map(str, shape))}"
    benchmark.extra_info["library"] = library
    benchmark.extra_info["pixels"] = torch.Size(shape).numel()


@pytest.mark.parametrize("task", EVERY_TASK)
def test_libraries_agree(task):
    """Within the rounding of float32, where they compute the same."""
    libraries = EVERY_TASK[task]
    if any("(" in library for library in libraries):
        pytest.skip("no other library computes it")
    shape = (1, 1, 24, 32, 32) if task in VOLUME_TASKS else (2, 3, 200, 210)
    x, y = inputs(shape)
    values = [loss(x, y).item() for loss in libraries.values()]
    assert max(values) - min(values) < 1e-5


@each_case
def test_forward(benchmark, task, shape, library):
    describe(benchmark, task, "forward", shape, library)
    x, y = inputs(shape)
    with torch.no_grad():
        benchmark.pedantic(EVERY_TASK[task][library], (x, y), rounds=9, warmup_rounds=2)


@each_case
def test_forward_and_backward(benchmark, task, shape, library):
    describe(benchmark, task, "forward+backward", shape, library)
    x, y = inputs(shape)
    arguments = (EVERY_TASK[task][library], x, y)
    benchmark.pedantic(training_step, arguments, rounds=9, warmup_rounds=2)
    extra = extra_images(task, library, shape)
    if extra is not None:
        benchmark.extra_info["extra_images"] = extra
