"""The tables of docs/losses.md: the factors give the losses that stand beside them."""

import math
import re
from pathlib import Path

import pytest
import torch

import ssimfast

TEXT = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
SHAPE = (2, 3, 24, 30)
N = math.prod(SHAPE[1:])


def factors_of(name: str) -> dict:
    """The arguments in the last column of the row of that name."""
    (row,) = re.findall(rf"^\| `{name}` \|.*\| `([^`]*)` \|$", TEXT, re.MULTILINE)
    return eval(f"dict({row})", {"n": N})


def blurred(image: torch.Tensor) -> torch.Tensor:
    taps = torch.exp(-((torch.arange(-5.0, 6) / 1.5) ** 2) / 2)
    window = torch.outer(taps, taps)
    window = (window / window.sum()).to(image.dtype).repeat(image.shape[1], 1, 1, 1)
    return torch.nn.functional.conv2d(image, window, padding=5, groups=image.shape[1])


# As they stand in the table, with sums over an image, averaged over the batch.
FORMULAS = {
    "l1": lambda s, d: d.abs().mean(),
    "l2": lambda s, d: N * d.square().mean(),
    "ssim": lambda s, d: 1 - s,
    "ssim_l1": lambda s, d: 0.84 * (1 - s) + 0.16 * blurred(d.abs()).mean(),
    "ssim_l2_a": lambda s, d: 1 - s + 5e-5 * N * d.square().mean(),
    "ssim_l2_b": lambda s, d: 0.84 * (1 - s) + 0.16 / 2 * d.square().mean(),
    "l1_l2": lambda s, d: N * d.abs().mean() + N * d.square().mean(),
    "ssim_l1l2_a": lambda s, d: (
        0.84 * (1 - s) + 0.16 * blurred(d.abs()).mean() + 5e-5 * N * d.square().mean()
    ),
    "ssim_l1l2_b": lambda s, d: (
        0.84 * (1 - s)
        + 2 / 3 * 0.16 * blurred(d.abs()).mean()
        + 1 / 3 * 0.16 / 2 * d.square().mean()
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_names_of_the_article(name):
    x, y = torch.rand(2, *SHAPE, dtype=torch.float64) * 2 - 1
    y = (x + y) / 2
    s = ssimfast.ssim(x, y, value_range=(-1, 1))
    loss = ssimfast.similarity_loss(x, y, value_range=(-1, 1), **factors_of(name))
    torch.testing.assert_close(loss, FORMULAS[name](s, x - y), rtol=1e-6, atol=0)


def test_every_name_in_the_table_is_tested():
    table = TEXT.split("| name there |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FORMULAS)


def test_losses_of_torch_and_of_gaussian_splatting():
    x, y = torch.rand(2, *SHAPE, dtype=torch.float64) * 2 - 1
    for arguments, loss in (
        ({"l1": 2}, torch.nn.L1Loss()),
        ({"l2": 4}, torch.nn.MSELoss()),
    ):
        got = ssimfast.similarity_loss(x, y, ssim=0, value_range=(-1, 1), **arguments)
        torch.testing.assert_close(got, loss(x, y))
    splatting = ssimfast.similarity_loss(x, y, ssim=0.2, l1=0.8, preset="3dgs")
    ssim = ssimfast.ssim(x, y, padding="same")
    torch.testing.assert_close(splatting, 0.8 * (x - y).abs().mean() + 0.2 * (1 - ssim))
