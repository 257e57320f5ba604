"""The image pool: what it returns and what it keeps."""

import pytest
import torch

from cyclegan.image_pool import ImagePool


def numbered(first: int, count: int) -> torch.Tensor:
    """Images (count, 1, 1, 1) whose only pixel is their number."""
    return torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1)


def test_size_0_passes_everything_through():
    pool = ImagePool(size=0)
    for step in range(20):
        batch = numbered(4 * step, 4)
        torch.testing.assert_close(pool.query(batch), batch)


def test_a_filling_pool_returns_what_it_keeps():
    pool = ImagePool(size=5)
    torch.testing.assert_close(pool.query(numbered(0, 5)), numbered(0, 5))
    assert sorted(image.item() for image in pool.images) == [0, 1, 2, 3, 4]


def test_a_full_pool_trades_half_of_the_images():
    pool = ImagePool(size=50, seed=3)
    pool.query(numbered(0, 50))
    count = 4000
    batch = numbered(50, count)
    returned = pool.query(batch)
    traded = (returned != batch).flatten()
    assert traded.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / count**0.5)
    # A trade gives something older, and nothing is in two places or lost.
    assert (returned[traded] < batch[traded]).all()
    kept = [image.item() for image in pool.images]
    assert sorted(kept + returned.flatten().tolist()) == list(range(50 + count))
    # Every slot takes part: after 2000 trades the first 50 images have left.
    assert min(kept) >= 50


def test_result_is_detached_and_the_pool_keeps_its_own_copy():
    pool = ImagePool(size=2)
    fake = numbered(0, 2).requires_grad_()
    assert not pool.query(fake).requires_grad
    with torch.no_grad():
        fake.fill_(9)
    assert [image.item() for image in pool.images] == [0, 1]


def test_the_seed_decides_and_other_random_streams_do_not():
    def run(seed: int, torch_seed: int) -> torch.Tensor:
        torch.manual_seed(torch_seed)
        pool = ImagePool(size=3, seed=seed)
        return torch.cat([pool.query(numbered(4 * step, 4)) for step in range(10)])

    assert torch.equal(run(seed=1, torch_seed=0), run(seed=1, torch_seed=5))
    assert not torch.equal(run(seed=1, torch_seed=0), run(seed=2, torch_seed=0))
