"""Settings of a run, and their command-line options."""

import math
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from torch import nn

from cyclegan.errors import UserError, check_seed
from cyclegan.features import FEATURE_NETWORKS
from cyclegan.losses import (
    CYCLE_LOSSES,
    FEATURE_LOSSES,
    GAN_LOSSES,
    PRESETS,
    make_cycle_loss,
    parse_cycle_loss,
)
from cyclegan.networks import make_generator, parse_generator

PRECISIONS = ("no", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb")
MOST_CHANNELS = 16
SCORES = ("", "fid", "kid")


class Period(NamedTuple):
    """A period of a schedule: a number of steps, epochs ("e") or minutes ("m")."""

    amount: float
    unit: str = ""

    def in_steps(self, epoch: float) -> int:
        """The period in steps, at least 1; 0 if it is one of minutes.

        Args:
            epoch: steps of an epoch.
        """
        if self.unit == "m":
            return 0
        return max(1, round(self.amount * (epoch if self.unit == "e" else 1)))


def parse_period(name: str, text: str) -> Period:
    """ "500" (steps), "2e" (epochs) or "10m" (minutes), given as the setting `name`."""
    match = re.fullmatch(r"([0-9]+)|([0-9]*\.?[0-9]+)([em])", str(text))
    amount = float(match[1] or match[2]) if match else 0.0
    if not amount:
        raise UserError(
            f"{name} must be a number of steps (500), epochs (2e) or minutes (10m); got {text!r}"
        )
    return Period(amount, match[3] or "")


def setting(help: str, default: int | float | str | bool = MISSING, free: bool = False):
    """A field of Settings; the command line takes its name, type, default and help from it.
    A run that is resumed may change what is ``free``: the images it sees stay the same."""
    return field(default=default, metadata={"help": help, "free": free})


@dataclass(frozen=True)
class Settings:
    """All that a run depends on. The defaults are the paper's, for images of 256x256, but for the
    cycle loss."""

    data: str = setting("folder with trainA, trainB, testA, testB", free=True)
    run_dir: str = setting("folder for checkpoints, samples, log and report", free=True)
    epochs: float = setting(
        "how long to train; an epoch is as many images of each domain as the larger training "
        "folder holds (the paper: 200)",
        0.0,
        True,
    )
    steps: int = setting("updates of the generators, which override epochs", 0, True)
    crop_size: str = setting("training crops in pixels: 256, or 256x512 (height x width)", "256")
    load_size: str = setting(
        "what training images are scaled to before the crop: 286 (the shorter side), 286x572, "
        "native (not at all); none: 286/256 of the crop, which is then covered",
        "",
    )
    flip: bool = setting("mirror half of the training images", True)
    channels: int = setting(f"bands of the images of both domains, 1 to {MOST_CHANNELS}", 3)
    value_range: str = setting(
        "values of black and white, as 0,4095 (--value-range=-1000,3000), or those of A/those of "
        "B; auto: of the type for 8 and 16 bits, else measured and printed",
        "auto",
    )
    batch_size: int = setting("pairs per step and process", 1)
    accumulate: int = setting(
        "pieces that a batch is split into, whose gradients are added up: less memory, same step", 1
    )
    generator: str = setting(
        "resnet_6, resnet_9 (any number of blocks), unet_128, unet_256 (any power of 2); auto: "
        "resnet_9 for images of 256 pixels and more, else resnet_6",
        "auto",
    )
    init_from: str = setting(
        "what new generators start from: a run, a checkpoint, a folder or file of weights, also "
        "latest_net_G_A.pth of the reference implementation",
        "",
    )
    base_width: int = setting("channels of the generators' first layer", 64)
    discriminator_width: int = setting("channels of the discriminators' first layer", 64)
    discriminator_layers: int = setting("layers of stride 2; 3 judge patches of 70 pixels", 3)
    gan_loss: str = setting(f"{', '.join(GAN_LOSSES)}; the paper: lsgan", "lsgan")
    cycle_loss: str = setting(
        f"how a reconstruction is compared with the image: {', '.join(CYCLE_LOSSES)}, or a sum "
        "like 0.84*ssim+0.16*paper_l1; the paper: paper_l1",
        "ssim_l1",
    )
    loss_preset: str = setting(
        f"arithmetic of the cycle loss: {' or '.join(PRESETS)}; normalised has means, of images "
        "mapped to 0 .. 1, tandon what the article's code computes",
        "normalised",
    )
    feature_network: str = setting(
        f"of perceptual and contextual: {', '.join(FEATURE_NETWORKS)}", "vgg19"
    )
    feature_layers: str = setting("of this network, with commas", "conv3_2,conv4_2")
    feature_weights: str = setting(
        "file with its weights; none: torchvision downloads them", "", True
    )
    lambda_a: float = setting("weight of the cycle loss of A; the GAN losses have 1", 10.0)
    lambda_b: float = setting("weight of the cycle loss of B", 10.0)
    lambda_identity: float = setting(
        "weight of the identity losses, times lambda_a and lambda_b", 0.5
    )
    learning_rate: float = setting("of Adam, for all four networks", 2e-4)
    beta1: float = setting("Adam's first decay rate; GANs oscillate with its usual 0.9", 0.5)
    decay_start: float = setting("part of the steps after which the rate falls to 0", 0.5)
    clip_norm: float = setting("largest norm of a gradient; 0: no clipping", 0.0)
    pool_size: int = setting("older fakes kept for each discriminator", 50)
    ema_decay: float = setting(
        "of the averaged generators, which then translate, as 0.999; 0: no averaging", 0.0
    )
    precision: str = setting(f"of the networks: {', '.join(PRECISIONS)}", "no")
    tf32: bool = setting(
        "round factors of float32 products to 10 bits on GPUs that are faster then", True
    )
    compile: bool = setting("compile the networks: minutes at first, then faster steps", False)
    cuda_graphs: bool = setting(
        "replay steps as CUDA graphs, which spares small batches the launches", False, True
    )
    channels_last: bool = setting("memory format; its norms convert to the other and back", False)
    test_images: int = setting(
        "images of each test folder, the first by name, that are scored; 0: all", 16
    )
    test_size: str = setting("what test images are scaled to, as crop_size; none: as that", "")
    log_every: str = setting(
        "how often losses are read, which waits for a GPU: 20 (steps), 1e (epochs) or 0.5m "
        "(minutes)",
        "20",
        True,
    )
    save_every: str = setting(
        "how often a checkpoint, test scores and samples are written: 1000, 2e or 10m; in "
        "minutes, less often where that would take more than 2% of the time",
        "10m",
        True,
    )
    keep: int = setting("latest checkpoints that are kept", 3, True)
    score: str = setting(
        "fid or kid: compute it with every checkpoint and keep the best one too (torch-fidelity)",
        "",
        True,
    )
    inception_weights: str = setting(
        "file with torch-fidelity's weights for FID and KID; none: it downloads them", "", True
    )
    domain_names: str = setting(
        'what pages call A and B, as "photo,painting"; none: the lines of DATA/domains.txt, or '
        "the name of a folder like horse2zebra",
        "",
        True,
    )
    trackers: str = setting(f"where losses go too: {', '.join(TRACKERS)}, with commas", "", True)
    workers: int = setting(
        "processes that load images; 0: the training process does; -1: none on a CPU, or where the "
        "images fit in memory, else up to 8",
        -1,
        True,
    )
    seed: int = setting("of weights, order of images, crops and pools", 0)
    device: str = setting("auto: a GPU where there is one; cpu, cuda:1, mps", "auto", True)

    def __post_init__(self):
        for name in (
            *("batch_size", "accumulate", "base_width", "discriminator_width"),
            *("discriminator_layers", "learning_rate", "keep"),
        ):
            self._require(name, getattr(self, name) > 0, "positive")
        factors = ("lambda_a", "lambda_b", "lambda_identity", "clip_norm", "epochs")
        for name in (*factors, "steps", "pool_size", "test_images"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in (*factors, "learning_rate"):
            self._require(name, math.isfinite(getattr(self, name)), "finite")
        self._require("workers", self.workers >= -1, "-1 or more")
        self._require("steps", self.steps or self.epochs, "positive where epochs is 0")
        for name in ("log_every", "save_every"):
            parse_period(name, getattr(self, name))
        for name in ("beta1", "decay_start", "ema_decay"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        choices = {
            "gan_loss": GAN_LOSSES,
            "precision": PRECISIONS,
            "score": SCORES,
        }
        for name, known in choices.items():
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for tracker in self.tracker_names():
            self._require("trackers", tracker in TRACKERS, f"some of {', '.join(TRACKERS)}")
        self._check_images()
        fits = self.batch_size % self.accumulate == 0
        self._require("accumulate", fits, f"a divisor of batch_size, {self.batch_size}")
        check_seed(self.seed)
        losses = parse_cycle_loss(self.cycle_loss, self.loss_preset)  # rejects unknown names
        if self.loss_preset == "tandon":
            self._require("accumulate", self.accumulate == 1, "1 with the sums of tandon")
        if FEATURE_LOSSES.keys() & losses:
            self._require("channels", self.channels == 3, "3 for perceptual and contextual")

    def _check_images(self) -> None:
        # In smaller images the SSIM window or the discriminator's last two layers do not fit.
        smallest = max(16, 4 * 2**self.discriminator_layers)
        multiple = parse_generator(self.generator, self.crop)[1]
        for name, size in (("crop_size", self.crop), ("test_size", self.test)):
            fits = all(side % multiple == 0 and side >= smallest for side in size)
            what = f"of sides that are multiples of {multiple}, at least {smallest}"
            self._require(name, fits, what)
        if self.load_size not in ("", "native"):
            load, whole = parse_size("load_size", self.load_size), "x" in self.load_size
            least = self.crop if whole else [min(self.crop)] * 2
            fits = all(a >= b for a, b in zip(load, least, strict=True))
            self._require("load_size", fits, f"native, or at least the crop ({self.crop_size})")
        self._require("channels", 1 <= self.channels <= MOST_CHANNELS, f"1 to {MOST_CHANNELS}")
        _ = self.ranges  # rejects what is no range

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"{name} must be {what}; got {getattr(self, name)!r}")

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the training crops in pixels."""
        return parse_size("crop_size", self.crop_size)

    @property
    def test(self) -> tuple[int, int]:
        """Height and width of the test images in pixels."""
        return parse_size("test_size", self.test_size) if self.test_size else self.crop

    @property
    def ranges(self) -> dict[str, tuple[float, float] | None]:
        """Values of black and white by domain, "a" and "b"; None: those of the pixels' type."""
        parts = self.value_range.split("/")
        ranges = [_parse_range(part) for part in parts]
        fits = len(parts) <= 2 and all(one is None or one[0] < one[1] for one in ranges)
        self._require("value_range", fits, "auto, LOW,HIGH, or one for A/one for B, LOW < HIGH")
        return {"a": ranges[0], "b": ranges[-1]}

    def count_steps(self, images: int, per_step: int) -> int:
        """Steps of the run, at least 1: `steps`, else those that `epochs` take.

        Args:
            images: in an epoch, of each domain.
            per_step: of each domain that a step of all processes sees.
        """
        return self.steps or max(1, round(self.epochs * images / per_step))

    def names_of_domains(self) -> tuple[str, str]:
        """Names of A and B for people."""
        folder = Path(self.data)
        names = [name.strip() for name in self.domain_names.split(",") if name.strip()]
        if not names and (folder / "domains.txt").is_file():
            names = (folder / "domains.txt").read_text(encoding="utf-8").splitlines()
            names = [name.strip() for name in names if name.strip()]
        if not names:
            match = re.match("([a-z]+)2([a-z]+)", folder.resolve().name)
            names = match.groups() if match else ("A", "B")
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(f"domain_names must be two, as photo,painting; got {','.join(names)!r}")
        return tuple(names)

    def tracker_names(self) -> list[str]:
        return [name.strip() for name in self.trackers.split(",") if name.strip()]

    def make_generator(self) -> nn.Module:
        """A generator with new weights from torch's random numbers."""
        return make_generator(self.generator, self.crop, self.base_width, self.channels)

    def make_cycle_loss(self) -> nn.Module:
        layers = [name.strip() for name in self.feature_layers.split(",")]
        network = (self.feature_network, layers, self.feature_weights)
        return make_cycle_loss(self.cycle_loss, self.loss_preset, *network)

    def check_resumes(self, old: "Settings") -> None:
        """Refuses to go on with a run of other settings, but for those that are free."""
        for one in fields(self):
            ours, theirs = getattr(self, one.name), getattr(old, one.name)
            if ours != theirs and not one.metadata["free"]:
                raise UserError(
                    f"{one.name} must be {theirs!r}, as in the checkpoint that the run goes on "
                    f"from; got {ours!r}, which needs a new run in another run_dir"
                )


def parse_size(name: str, text: str) -> tuple[int, int]:
    """Height and width that "256" or "256x512", given as the setting `name`, says."""
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})?", text):
        raise UserError(f"{name} must be like 256 or 256x512 (height x width); got {text!r}")
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]


def _parse_range(text: str) -> tuple[float, float] | None:
    """LOW and HIGH of "LOW,HIGH"; None of "auto"; 0 and 0, which is no range, of others."""
    if text.strip() == "auto":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        return 0.0, 0.0
    return (low, high) if math.isfinite(high - low) else (0.0, 0.0)
