"""Training of CycleGAN (Zhu et al. 2017, arXiv:1703.10593): settings, one step, the loop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from cyclegan.data import UnpairedImages, load_test_images
from cyclegan.errors import UserError, check_seed
from cyclegan.files import replacing, to_image, write_png
from cyclegan.image_pool import ImagePool
from cyclegan.losses import CYCLE_LOSSES, PRESETS, lsgan_loss, make_cycle_loss, parse_cycle_loss
from cyclegan.networks import PatchDiscriminator, ResnetGenerator
from ssimfast import ssim

NETWORKS = ("generator_ab", "generator_ba", "discriminator_a", "discriminator_b")
GRID_COLUMNS = 8  # test images per direction in a sample grid


def setting(help: str, default: int | float | str = MISSING):
    """A field of Settings; the command line takes its name, type, default and help from it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """All that a run depends on. The defaults are the paper's, for images of 256x256."""

    data: str = setting("folder with trainA, trainB, testA, testB")
    run_dir: str = setting("folder for checkpoint.pt and samples/; must hold no checkpoint yet")
    steps: int = setting("updates of the generators; the paper: 200 passes over trainA")
    image_size: int = setting("side of the training crops in pixels, a multiple of 4", 256)
    batch_size: int = setting("pairs per step", 1)
    base_width: int = setting("channels of the generators' first layer", 64)
    blocks: int = setting("residual blocks; the paper: 9 at 256 pixels, 6 at 128", 9)
    discriminator_width: int = setting("channels of the discriminators' first layer", 64)
    discriminator_layers: int = setting("layers of stride 2; 3 judge patches of 70 pixels", 3)
    cycle_loss: str = setting(
        f"how a reconstruction is compared with the image: {', '.join(CYCLE_LOSSES)}, or a sum "
        "like 0.84*ssim+0.16*l1",
        "ssim",
    )
    loss_preset: str = setting(
        f"arithmetic of the cycle loss: {' or '.join(PRESETS)}; normalised has means, of images "
        "mapped to 0 .. 1, tandon what the article's code computes",
        "normalised",
    )
    feature_network: str = setting("of perceptual and contextual: vgg16, vgg19, alexnet", "vgg19")
    feature_layers: str = setting("of this network, with commas", "conv3_2,conv4_2")
    feature_weights: str = setting("file with its weights; none: torchvision downloads them", "")
    lambda_cycle: float = setting("weight of the cycle loss; the GAN loss has 1", 10.0)
    lambda_identity: float = setting("weight of the identity loss, times lambda_cycle", 0.5)
    learning_rate: float = setting("of Adam, for all four networks", 2e-4)
    beta1: float = setting("Adam's first decay rate; GANs oscillate with its usual 0.9", 0.5)
    decay_start: float = setting("part of the steps after which the rate falls to 0", 0.5)
    pool_size: int = setting("older fakes kept for each discriminator", 50)
    test_images: int = setting(
        "images of each test folder, by name; all are translated before and after training", 16
    )
    log_every: int = setting("steps between losses on the progress bar; each waits for a GPU", 20)
    save_every: int = setting("steps between checkpoints and sample grids; the end has one", 1000)
    workers: int = setting("processes that load images; 0: the training process does", 0)
    seed: int = setting("of weights, order of images, crops and pools", 0)
    device: str = setting("cpu, cuda, cuda:1, ...; auto is cuda where there is one", "auto")

    def __post_init__(self):
        for name in (
            *("steps", "batch_size", "base_width", "blocks", "discriminator_width"),
            *("discriminator_layers", "learning_rate", "test_images", "log_every", "save_every"),
        ):
            self._require(name, getattr(self, name) > 0, "positive")
        for name in ("lambda_cycle", "lambda_identity", "pool_size", "workers"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "lambda_cycle", "lambda_identity"):
            self._require(name, math.isfinite(getattr(self, name)), "finite")
        for name in ("beta1", "decay_start"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        # In smaller images the SSIM window or the discriminator's last two layers do not fit.
        smallest = max(16, 4 * 2**self.discriminator_layers)
        fits = self.image_size % 4 == 0 and self.image_size >= smallest
        self._require("image_size", fits, f"a multiple of 4, at least {smallest}")
        check_seed(self.seed)
        parse_cycle_loss(self.cycle_loss, self.loss_preset)  # rejects unknown names

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"{name} must be {what}; got {getattr(self, name)}")


class Trainer:
    """Two generators, two discriminators, and all that training them takes.

    Images are (N, 3, image_size, image_size) in [-1, 1]. generator_ab turns real_a into fake_b,
    generator_ba turns fake_b into rec_a; discriminator_b tells real_b from fake_b.
    """

    def __init__(self, settings: Settings):
        self.settings = s = settings
        self.run_dir = Path(s.run_dir)
        self.checkpoint_path = self.run_dir / "checkpoint.pt"
        if self.checkpoint_path.exists():
            raise FileExistsError(f"{self.checkpoint_path} exists; choose another run_dir")
        self.device = find_device(s.device)
        self.step = 0

        root = Path(s.data)
        self.pairs = UnpairedImages(root, s.image_size, s.steps * s.batch_size, s.seed)
        self.test_a = load_test_images(root / "testA", s.image_size, s.test_images)
        self.test_b = load_test_images(root / "testB", s.image_size, s.test_images)

        torch.manual_seed(s.seed)
        generator_shape = (s.base_width, s.blocks)
        discriminator_shape = (s.discriminator_width, s.discriminator_layers)
        self.generator_ab = ResnetGenerator(*generator_shape).to(self.device)
        self.generator_ba = ResnetGenerator(*generator_shape).to(self.device)
        self.discriminator_a = PatchDiscriminator(*discriminator_shape).to(self.device)
        self.discriminator_b = PatchDiscriminator(*discriminator_shape).to(self.device)
        self.discriminators = (self.discriminator_a, self.discriminator_b)

        layers = [name.strip() for name in s.feature_layers.split(",")]
        self.cycle_loss = make_cycle_loss(
            s.cycle_loss, s.loss_preset, s.feature_network, layers, s.feature_weights
        ).to(self.device)
        self.pool_a = ImagePool(s.pool_size, seed=s.seed)
        self.pool_b = ImagePool(s.pool_size, seed=s.seed + 1)
        self.generator_optimizer = self._make_optimizer(self.generator_ab, self.generator_ba)
        self.discriminator_optimizer = self._make_optimizer(*self.discriminators)
        self.optimizers = (self.generator_optimizer, self.discriminator_optimizer)
        decay = linear_decay(s.steps, s.decay_start)
        self.schedulers = [LambdaLR(optimizer, decay) for optimizer in self.optimizers]

    def _make_optimizer(self, *networks: nn.Module) -> Adam:
        parameters = chain.from_iterable(network.parameters() for network in networks)
        return Adam(parameters, self.settings.learning_rate, (self.settings.beta1, 0.999))

    def train(self) -> None:
        """All steps, with a progress bar on stderr; sample grids and checkpoints on the way."""
        s = self.settings
        self.save_samples()  # what training begins from; fails now if run_dir cannot be written
        pin_memory = self.device.type == "cuda"
        loader = DataLoader(self.pairs, s.batch_size, num_workers=s.workers, pin_memory=pin_memory)
        with tqdm(loader, desc="training", unit="step") as progress:
            for real_a, real_b in progress:
                losses = self.train_step(
                    real_a.to(self.device, non_blocking=True),
                    real_b.to(self.device, non_blocking=True),
                )
                if self.step % s.log_every == 0:  # reading a loss waits for the device
                    progress.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
                if self.step % s.save_every == 0 or self.step == s.steps:
                    self.save_samples()
                    self.save_checkpoint()

    def train_step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """Update the generators, then the discriminators; returns the losses, detached."""
        s = self.settings

        for discriminator in self.discriminators:
            discriminator.requires_grad_(False)  # they judge here, they do not learn
        fake_b, idt_b = self._fake_and_identity(self.generator_ab, real_a, real_b)
        fake_a, idt_a = self._fake_and_identity(self.generator_ba, real_b, real_a)
        rec_a = self.generator_ba(fake_b)
        rec_b = self.generator_ab(fake_a)
        gan_a = lsgan_loss(self.discriminator_a(fake_a), 1)
        gan_b = lsgan_loss(self.discriminator_b(fake_b), 1)
        cycle = self.cycle_loss(rec_a, real_a) + self.cycle_loss(rec_b, real_b)
        identity = F.l1_loss(idt_a, real_a) + F.l1_loss(idt_b, real_b)
        weighted = gan_a + gan_b + s.lambda_cycle * (cycle + s.lambda_identity * identity)
        descend(weighted, self.generator_optimizer)

        for discriminator in self.discriminators:
            discriminator.requires_grad_(True)
        loss_a = discriminator_loss(self.discriminator_a, real_a, self.pool_a.query(fake_a))
        loss_b = discriminator_loss(self.discriminator_b, real_b, self.pool_b.query(fake_b))
        descend(loss_a + loss_b, self.discriminator_optimizer)

        for scheduler in self.schedulers:
            scheduler.step()
        self.step += 1
        losses = {
            "gan": gan_a + gan_b,
            "cycle": cycle,
            "identity": identity,
            "discriminator": loss_a + loss_b,
        }
        return {name: loss.detach() for name, loss in losses.items()}

    def _fake_and_identity(
        self, generator: nn.Module, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """generator(source) and generator(target), in one batch: instance norm keeps them apart.

        With lambda_identity 0 the second is `target` itself: no work, and an identity loss of 0.
        """
        if self.settings.lambda_identity == 0:
            return generator(source), target
        fake, identity = generator(torch.cat([source, target])).chunk(2)
        return fake, identity

    @torch.no_grad()
    def round_trips(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(real, fake, reconstruction) of the test images on the CPU: A-B-A, then B-A-B."""
        for real, there, back in (
            (self.test_a[:limit], self.generator_ab, self.generator_ba),
            (self.test_b[:limit], self.generator_ba, self.generator_ab),
        ):
            fakes = [there(batch.to(self.device)) for batch in real.split(self.settings.batch_size)]
            yield real, torch.cat(fakes).cpu(), torch.cat([back(fake) for fake in fakes]).cpu()

    def cycle_ssim(self) -> float:
        """Mean SSIM of the test images and their reconstructions, over both directions."""
        scores = [
            ssim(rec, real, value_range=(-1, 1)).item() for real, _, rec in self.round_trips()
        ]
        return sum(scores) / len(scores)

    @property
    def samples_path(self) -> Path:
        """Where this step's sample grid is."""
        return self.run_dir / "samples" / f"step_{self.step:07d}.png"

    def save_samples(self) -> None:
        """A grid of test images: rows real_a, fake_b, rec_a, real_b, fake_a, rec_b."""
        columns = min(GRID_COLUMNS, len(self.test_a), len(self.test_b))
        rows = list(chain.from_iterable(self.round_trips(columns)))
        grid = torch.cat([torch.cat([*F.pad(row, [1] * 4, value=1)], dim=2) for row in rows], dim=1)
        write_png(to_image(grid), self.samples_path)

    def save_checkpoint(self) -> None:
        """Settings and what training has made of them, in plain types and tensors.

        Optimizers and schedulers: the generators', then the discriminators'.
        """
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "networks": {name: getattr(self, name).state_dict() for name in NETWORKS},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }
        with replacing(self.checkpoint_path) as temporary:
            torch.save(state, temporary)


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """LSGAN loss of both kinds, halved so that the discriminators learn more slowly."""
    scores_real, scores_fake = discriminator(torch.cat([real, fake])).chunk(2)
    return (lsgan_loss(scores_real, 1) + lsgan_loss(scores_fake, 0)) / 2


def descend(loss: Tensor, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def linear_decay(steps: int, decay_start: float) -> Callable[[int], float]:
    """Factor of the learning rate: 1 until decay_start * steps, then down to 0 at `steps`."""
    start = decay_start * steps
    return lambda step: max(0.0, min(1.0, (steps - step) / (steps - start)))


def find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # no such name; no such device in this build of torch
        raise UserError(f"device must be auto or one that torch has here; got {name!r}") from None
