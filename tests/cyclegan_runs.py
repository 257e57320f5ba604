"""Fixtures of the smallest runs that train; tests of the trainer import them."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from cyclegan.settings import Settings

FOLDERS = ("trainA", "trainB", "testA", "testB")
# The smallest networks and images that train, as settings and on the command line.
SMALLEST = {
    "crop_size": "32",
    "base_width": 4,
    "generator": "resnet_1",
    "discriminator_width": 4,
    "device": "cpu",
}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALLEST.items()]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks as small as these lose more to handing work around than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three 40x40 images a folder: A has vertical, B horizontal waves of several colours."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (root / folder).mkdir()
        for i in range(3):
            wave = np.sin(np.arange(40) * rng.uniform(0.2, 0.6) + rng.uniform(0, 6))
            colour = rng.uniform(40, 120, 3)
            pixels = 127 + wave[None, :, None] * colour + np.zeros((40, 1, 1))
            if folder.endswith("B"):
                pixels = pixels.transpose(1, 0, 2)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{i}.png")
    return root


@pytest.fixture
def settings(data, tmp_path):
    run_dir = str(tmp_path / "run")
    return Settings(data=str(data), run_dir=run_dir, steps=4, batch_size=2, **SMALLEST)


@contextmanager
def largest_file(size: int):
    """Files of this process can grow no larger: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
