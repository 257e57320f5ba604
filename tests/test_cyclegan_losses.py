"""The registry of cycle losses, and the adversarial loss."""

import pytest
import torch

import ssimfast
from cyclegan.losses import CYCLE_LOSSES, lsgan_loss, make_cycle_loss


@pytest.mark.parametrize("name", ["SSIM", "l3", ""])
def test_unknown_names_are_rejected_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"cycle_loss .*l1, ssim, ms_ssim, mix; got '{name}'"):
        make_cycle_loss(name)


@pytest.mark.parametrize("size", [16, 64, 200])
@pytest.mark.parametrize("name", CYCLE_LOSSES)
def test_equal_images_cost_nothing_and_others_something(name, size):
    x = torch.rand(2, 3, size, size) * 2 - 1
    loss = make_cycle_loss(name)
    torch.testing.assert_close(loss(x, x), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert loss(x, -x) > 0.1


def test_ssim_is_that_of_the_images_mapped_to_0_1():
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    loss = make_cycle_loss("ssim")(2 * x - 1, 2 * y - 1)
    torch.testing.assert_close(loss, 1 - ssimfast.ssim(x, y), atol=1e-5, rtol=1e-5)


def test_multi_scale_losses_are_those_of_the_images_mapped_to_0_1():
    x, y = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    y = 0.5 * (x + y)
    ms_ssim = 1 - ssimfast.ms_ssim(x, y, weights="auto")
    assert 0.01 < ms_ssim < 0.9
    loss = make_cycle_loss("ms_ssim")(2 * x - 1, 2 * y - 1)
    torch.testing.assert_close(loss, ms_ssim, atol=1e-5, rtol=1e-5)
    _, terms = ssimfast.similarity_loss(
        x, y, ssim=0, ms_ssim=1, gaussian_l1=1, weights="auto", return_terms=True
    )
    loss = make_cycle_loss("mix")(2 * x - 1, 2 * y - 1)
    want = 0.84 * ms_ssim + 0.16 * terms["gaussian_l1"]
    torch.testing.assert_close(loss, want, atol=1e-5, rtol=1e-5)


def test_lsgan_loss_by_hand():
    scores = torch.tensor([[[[0.0, 3.0]]]])
    assert lsgan_loss(scores, 1) == (1 + 4) / 2
    assert lsgan_loss(scores, 0) == 9 / 2
