"""SSIM, window 11, sigma 1.5, float32, on the CPU: ``make bench``."""

import pytest
import torch
from memory import extra_images
from tasks import LIBRARIES, inputs, training_step

SHAPES = [(1, 3, 1080, 1920), (16, 3, 256, 256), (1, 3, 256, 256)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
each_library = pytest.mark.parametrize("library", LIBRARIES)


def describe(benchmark, task: str, library: str, shape: tuple[int, ...]) -> None:
    benchmark.group = f"{task} {'x'.join(map(str, shape))}"
    benchmark.extra_info["library"] = library
    benchmark.extra_info["pixels"] = torch.Size(shape).numel()


@each_shape
def test_libraries_agree(shape):
    x, y = inputs(shape)
    values = [similarity(x, y).item() for similarity in LIBRARIES.values()]
    assert max(values) - min(values) < 1e-5


@each_shape
@each_library
def test_forward(benchmark, library, shape):
    describe(benchmark, "forward", library, shape)
    x, y = inputs(shape)
    with torch.no_grad():
        benchmark.pedantic(LIBRARIES[library], (x, y), rounds=15, warmup_rounds=3)


@each_shape
@each_library
def test_forward_and_backward(benchmark, library, shape):
    describe(benchmark, "forward+backward", library, shape)
    x, y = inputs(shape)
    arguments = (LIBRARIES[library], x, y)
    benchmark.pedantic(training_step, arguments, rounds=15, warmup_rounds=3)
    extra = extra_images(library, shape)
    if extra is not None:
        benchmark.extra_info["extra_images"] = extra
