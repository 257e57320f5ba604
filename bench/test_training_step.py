"""A step of the CycleGAN trainer against the same step written with torch in the ordinary way:
every pass on its own, pytorch-msssim for the loss. The same networks, images and run.

``pytest bench -k training_step``. Each result says which share of the step the cycle losses take,
when they are timed alone with their backward pass.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from cards import turns
from pytorch_msssim import ssim as peer_ssim
from torch import Tensor
from turns import CARD, clock, hand_over

from cyclegan.demo_data import write_demo_data
from cyclegan.model import NETWORKS
from cyclegan.settings import Settings
from cyclegan.trainer import Trainer

CASES = {
    "demo 4x3x64x64": {
        "crop_size": "64",
        "batch_size": 4,
        "generator": "resnet_4",
        "base_width": 16,
        "discriminator_width": 32,
    },
    "paper 1x3x256x256": {"crop_size": "256"},
}
LIBRARIES = ("ssimfast", "plain")


class PlainStep:
    """Zhu et al. 2017 with SSIM as most write it down, on copies of a trainer's networks."""

    def __init__(self, trainer: Trainer):
        self.ab, self.ba, self.d_a, self.d_b = (
            copy.deepcopy(trainer.model.networks[name]) for name in NETWORKS
        )
        self.settings = s = trainer.settings
        generators = [*self.ab.parameters(), *self.ba.parameters()]
        discriminators = [*self.d_a.parameters(), *self.d_b.parameters()]
        self.of_g = torch.optim.Adam(generators, s.learning_rate, (s.beta1, 0.999))
        self.of_d = torch.optim.Adam(discriminators, s.learning_rate, (s.beta1, 0.999))
        self.discriminators = discriminators

    @staticmethod
    def cycle_loss(x: Tensor, y: Tensor) -> Tensor:
        return 1 - peer_ssim((x + 1) / 2, (y + 1) / 2, data_range=1.0)

    def __call__(self, real_a: Tensor, real_b: Tensor) -> None:
        s = self.settings
        for parameter in self.discriminators:
            parameter.requires_grad_(False)
        fake_b, fake_a = self.ab(real_a), self.ba(real_b)
        cycle = self.cycle_loss(self.ba(fake_b), real_a) + self.cycle_loss(self.ab(fake_a), real_b)
        identity = (self.ba(real_a) - real_a).abs().mean() + (self.ab(real_b) - real_b).abs().mean()
        gan = ((self.d_a(fake_a) - 1) ** 2).mean() + ((self.d_b(fake_b) - 1) ** 2).mean()
        self.of_g.zero_grad()
        (gan + s.lambda_a * (cycle + s.lambda_identity * identity)).backward()
        self.of_g.step()
        for parameter in self.discriminators:
            parameter.requires_grad_(True)
        self.of_d.zero_grad()
        for judge, real, fake in ((self.d_a, real_a, fake_a), (self.d_b, real_b, fake_b)):
            loss = ((judge(real) - 1) ** 2).mean() + (judge(fake.detach()) ** 2).mean()
            (loss / 2).backward()
        self.of_d.step()


@pytest.fixture(autouse=True, scope="module")
def trained_precision():
    """The trainer allows TF32, as in training; other benchmarks compare results without it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_demo_data(root, train_count=4)
    return root


def make(case: str, data) -> tuple[Trainer, PlainStep, tuple[Tensor, Tensor]]:
    run = str(data / "run")
    same = {"steps": 1000, "cycle_loss": "ssim"}
    trainer = Trainer(Settings(data=str(data), run_dir=run, **same, **CASES[case]))
    generator = torch.Generator().manual_seed(0)
    shape = (2, trainer.settings.batch_size, 3, *trainer.settings.crop)
    batch = torch.rand(shape, generator=generator).mul(2).sub(1).to(trainer.device).unbind()
    return trainer, PlainStep(trainer), batch


def seconds_of_losses(loss: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor]):
    """Of both cycle losses, forward and backward, alone: the median of nine."""
    reconstructions = [(0.9 * image).requires_grad_() for image in batch]
    times = []
    for _ in range(11):
        begin = time.perf_counter()
        sum(loss(*pair) for pair in zip(reconstructions, batch, strict=True)).backward()
        if batch[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


@pytest.mark.parametrize("case", CASES)
def test_both_steps_compute_the_same(case, data):
    if "256" in case:
        pytest.skip("the other case shows it sooner")
    trainer, plain, batch = make(case, data)
    trainer.train_step(*batch)
    plain(*batch)
    networks = (plain.ab, plain.ba, plain.d_a, plain.d_b)
    for name, network in zip(NETWORKS, networks, strict=True):
        for (key, mine), theirs in zip(
            trainer.model.networks[name].named_parameters(), network.parameters(), strict=True
        ):
            if key.endswith("weight"):
                scale = mine.grad.abs().max().item()
                torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-3 * scale, rtol=1e-3)


@cache
def steps_in_turns(case: str, data) -> dict[str, tuple[list[float], float]]:
    """By library: milliseconds of the rounds, and which share of them the cycle losses take."""
    trainer, plain, batch = make(case, data)
    steps = {"ssimfast": partial(trainer.train_step, *batch), "plain": partial(plain, *batch)}
    losses = {"ssimfast": trainer.model.cycle_loss, "plain": plain.cycle_loss}
    times = turns(CARD, steps, rounds=3 if "256" in case else 15)
    return {
        name: (
            times[name],
            1e3 * seconds_of_losses(losses[name], batch) / statistics.median(times[name]),
        )
        for name in LIBRARIES
    }


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_training_step(benchmark, case, library, data):
    times, share = steps_in_turns(case, data)[library]
    hand_over(benchmark, f"training step, {case}", times)
    benchmark.extra_info.update(
        {
            "suite": "training step",
            "task": case,
            "library": library,
            "pixels": math.prod(map(int, case.split()[1].split("x"))),
            "share_of_cycle_losses": share,
        }
    )
