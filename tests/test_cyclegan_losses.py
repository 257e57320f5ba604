"""The registry of cycle losses, and the adversarial loss."""

import pytest
import torch

import ssimfast
from cyclegan.losses import CYCLE_LOSSES, lsgan_loss, make_cycle_loss


@pytest.mark.parametrize("name", ["SSIM", "l3", ""])
def test_unknown_names_are_rejected_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"cycle_loss .*l1, ssim; got '{name}'"):
        make_cycle_loss(name)


@pytest.mark.parametrize("name", CYCLE_LOSSES)
def test_equal_images_cost_nothing_and_others_something(name):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    loss = make_cycle_loss(name)
    torch.testing.assert_close(loss(x, x), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert loss(x, -x) > 0.1


def test_ssim_is_that_of_the_images_mapped_to_0_1():
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    loss = make_cycle_loss("ssim")(2 * x - 1, 2 * y - 1)
    torch.testing.assert_close(loss, 1 - ssimfast.ssim(x, y), atol=1e-5, rtol=1e-5)


def test_lsgan_loss_by_hand():
    scores = torch.tensor([[[[0.0, 3.0]]]])
    assert lsgan_loss(scores, 1) == (1 + 4) / 2
    assert lsgan_loss(scores, 0) == 9 / 2
