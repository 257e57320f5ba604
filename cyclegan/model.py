"""Four networks, their optimizers, and one training step (Zhu et al. 2017, arXiv:1703.10593)."""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cyclegan import cuda_graphs
from cyclegan.image_pool import ImagePool
from cyclegan.losses import discriminator_loss, generator_loss
from cyclegan.networks import PatchDiscriminator
from cyclegan.settings import Settings
from cyclegan.weights import load_into, read_generators

GENERATORS = ("generator_ab", "generator_ba")
DISCRIMINATORS = ("discriminator_a", "discriminator_b")
NETWORKS = GENERATORS + DISCRIMINATORS
LOSSES = tuple(
    f"{kind}_{domain}"
    for kind in ("gan", "cycle", "identity", "discriminator")
    for domain in ("a", "b")
)


class CycleGan:
    """Two generators, two discriminators, and what a training step needs beside them.

    Images are (N, channels, H, W) in [-1, 1]. generator_ab turns real_a into fake_b, generator_ba
    turns fake_b into rec_a; discriminator_b tells real_b from fake_b. A loss of domain a is about
    images that are, or shall look like, those of A.

    Attributes:
        networks: the four networks by name, in float32, as they are saved and as they translate.
        averaged: moving averages of the generators by name; empty if ema_decay is 0.
        last_images: (source, translation) of the last step, detached, by generator.

    Args:
        settings: see `Settings`.
        accelerator: gives the device, the processes and the precision.
        networks: the four networks by name; None: those that the settings name.
        cycle_loss: module(reconstruction, image) -> scalar; None: the one that the settings name.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        networks: Mapping[str, nn.Module] | None = None,
        cycle_loss: nn.Module | None = None,
    ):
        self.settings = s = settings
        self.accelerator = accelerator
        self.device = accelerator.device
        self.memory_format = torch.channels_last if s.channels_last else torch.contiguous_format
        self.networks = nn.ModuleDict(networks or make_networks(s))
        self.networks.to(self.device, memory_format=self.memory_format)
        self.averaged = nn.ModuleDict()
        if s.ema_decay:
            copies = {name: copy.deepcopy(self.networks[name]) for name in GENERATORS}
            self.averaged.update(copies)
            self.averaged.requires_grad_(False)
        self.cycle_loss = (cycle_loss or s.make_cycle_loss()).to(self.device)
        # The networks as training calls them: compiled, and adding up the gradients of all
        # processes. A judge is a discriminator without the latter, for it does not learn.
        compiled = {
            name: torch.compile(network, dynamic=False) if s.compile else network
            for name, network in self.networks.items()
        }
        self.trained = {name: self._in_all_processes(one) for name, one in compiled.items()}
        self.judges = {name[-1]: compiled[name] for name in DISCRIMINATORS}
        # One tensor for both optimizers, or a CUDA graph would keep the first step's rate.
        self.rate = torch.tensor(s.learning_rate, device=self.device)
        self.optimizers = [self._make_optimizer(names) for names in (GENERATORS, DISCRIMINATORS)]
        self._set_groups()
        self.pools = {d: ImagePool(s.pool_size, s.seed + i) for i, d in enumerate("ab")}
        lambdas = {"a": s.lambda_a, "b": s.lambda_b}
        scale = {"gan": 0.0, "cycle": 1.0, "identity": s.lambda_identity}
        weights = [scale[kind] * lambdas[d] for kind, d in (n.split("_") for n in LOSSES[2:6])]
        self.weights = torch.tensor([1.0, 1.0, *weights], device=self.device)
        self.last_images: dict[str, tuple[Tensor, Tensor]] = {}
        self._half_steps = (self._train_generators, self._train_discriminators)
        if s.cuda_graphs:
            cuda_graphs.check(accelerator)
            pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
            self._half_steps = [cuda_graphs.Replayed(half, pool) for half in self._half_steps]

    def _in_all_processes(self, network: nn.Module) -> nn.Module:
        if self.accelerator.num_processes == 1:
            return network
        index = None if self.device.type == "cpu" else [self.device.index]
        return DistributedDataParallel(network, device_ids=index)

    def _make_optimizer(self, names: tuple[str, ...]) -> Adam:
        parameters = chain.from_iterable(self.networks[name].parameters() for name in names)
        rates = (self.rate, (self.settings.beta1, 0.999))
        fused = self.device.type in ("cpu", "cuda", "mps", "xpu")
        return self.accelerator.prepare(Adam(parameters, *rates, fused=fused))

    def _set_groups(self) -> None:
        for group in chain.from_iterable(o.param_groups for o in self.optimizers):
            group.update(lr=self.rate, capturable=self.device.type == "cuda")

    # ---- One step -------------------------------------------------------------------------------

    def train_step(
        self, real_a: Tensor, real_b: Tensor, rate: float, step: int
    ) -> dict[str, Tensor]:
        """Updates the generators, then the discriminators. Nothing here waits for the device.

        Args:
            real_a, real_b: this process's images, on the device.
            rate: learning rate.
            step: number of steps done before.

        Returns:
            This process's losses by the names in `LOSSES`, detached.
        """
        self.rate.fill_(rate)
        train_generators, train_discriminators = self._half_steps
        losses, fake_a, fake_b = train_generators(real_a, real_b)
        shown = self._from_pool("a", fake_a), self._from_pool("b", fake_b)
        (more,) = train_discriminators(real_a, real_b, *shown)
        if self.averaged:
            decay = min(self.settings.ema_decay, (1 + step) / (10 + step))
            averages, now = (
                [p for name in GENERATORS for p in networks[name].parameters()]
                for networks in (self.averaged, self.networks)
            )
            get_ema_multi_avg_fn(decay)(averages, now, step)
        self.last_images = {"generator_ab": (real_a, fake_b), "generator_ba": (real_b, fake_a)}
        return dict(zip(LOSSES, torch.cat([losses, more]).unbind(), strict=True))

    def _train_generators(self, real_a: Tensor, real_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of the generators (6,), fakes of A and fakes of B."""
        self._set_learning(False)
        losses, fakes_a, fakes_b = [], [], []

        def loss(a: Tensor, b: Tensor) -> Tensor:
            found, fake_a, fake_b = self._generator_losses(a, b)
            losses.append(found.detach())
            fakes_a.append(fake_a.detach())
            fakes_b.append(fake_b.detach())
            return self.weights @ found

        self._descend(0, GENERATORS, loss, real_a, real_b)
        return torch.stack(losses).mean(0), torch.cat(fakes_a), torch.cat(fakes_b)

    def _generator_losses(self, real_a: Tensor, real_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = self.settings
        with self.accelerator.autocast():
            fake_b, idt_b = self._fake_and_identity("generator_ab", real_a, real_b)
            fake_a, idt_a = self._fake_and_identity("generator_ba", real_b, real_a)
            rec_a = self.trained["generator_ba"](fake_b)
            rec_b = self.trained["generator_ab"](fake_a)
            scores_a, scores_b = self.judges["a"](fake_a), self.judges["b"](fake_b)
        losses = [
            generator_loss(s.gan_loss, scores_a.float()),
            generator_loss(s.gan_loss, scores_b.float()),
            self.cycle_loss(rec_a, real_a),
            self.cycle_loss(rec_b, real_b),
            F.l1_loss(idt_a, real_a),
            F.l1_loss(idt_b, real_b),
        ]
        return torch.stack(losses), fake_a, fake_b

    def _fake_and_identity(
        self, generator: str, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """generator(source) and generator(target), in one batch: instance norm keeps them apart.

        With lambda_identity 0 the second is `target` itself: no work, and an identity loss of 0.
        """
        if self.settings.lambda_identity == 0:
            return self.trained[generator](source), target
        fake, identity = self.trained[generator](torch.cat([source, target])).chunk(2)
        return fake, identity

    def _train_discriminators(self, *images: Tensor) -> tuple[Tensor]:
        """The losses of the discriminators (2,), of real_a, real_b and the fakes they are shown."""
        self._set_learning(True)
        losses = []

        def loss(real_a: Tensor, real_b: Tensor, fake_a: Tensor, fake_b: Tensor) -> Tensor:
            pairs = {"a": torch.cat([real_a, fake_a]), "b": torch.cat([real_b, fake_b])}
            with self.accelerator.autocast():
                scores = [self.trained[f"discriminator_{d}"](pair) for d, pair in pairs.items()]
            found = torch.stack(
                [discriminator_loss(self.settings.gan_loss, *s.float().chunk(2)) for s in scores]
            )
            losses.append(found.detach())
            return found.sum()

        self._descend(1, DISCRIMINATORS, loss, *images)
        return (torch.stack(losses).mean(0),)

    def _set_learning(self, learns: bool) -> None:
        for name in DISCRIMINATORS:
            self.networks[name].requires_grad_(learns)

    def _descend(
        self, index: int, names: tuple[str, ...], loss: Callable[..., Tensor], *images: Tensor
    ) -> None:
        """One step of an optimizer down the mean loss of the `accumulate` pieces of a batch."""
        optimizer = self.optimizers[index]
        optimizer.zero_grad()
        pieces = [batch.chunk(self.settings.accumulate) for batch in images]
        pieces = list(zip(*pieces, strict=True))
        for number, piece in enumerate(pieces, 1):
            with ExitStack() as alone:
                if number < len(pieces):  # the processes add up their gradients in the last one
                    for name in names:
                        alone.enter_context(self.accelerator.no_sync(self.trained[name]))
                self.accelerator.backward(loss(*piece))  # which divides by the number of pieces
        if self.settings.clip_norm:
            # Accelerate's own clipping would unscale, and then judge, the other networks' as well.
            self.accelerator.unscale_gradients(optimizer)
            parameters = [p for name in names for p in self.networks[name].parameters()]
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        optimizer.step()

    def _from_pool(self, domain: str, fake: Tensor) -> Tensor:
        """This process's share of what the pool returns for the fakes of all."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return self.pools[domain].query(fake)
        shown = self.pools[domain].query(accelerator.gather(fake))
        return shown.chunk(accelerator.num_processes)[accelerator.process_index]

    # ---- State ----------------------------------------------------------------------------------

    def start_from(self, path: Path) -> None:
        """Gives the generators weights from elsewhere; see `read_generators`."""
        for direction, state in read_generators(path).items():
            for networks in (self.networks, self.averaged):
                if f"generator_{direction}" in networks:
                    load_into(networks[f"generator_{direction}"], state, path)

    def generators(self) -> dict[str, nn.Module]:
        """The generators that translate, by "ab" and "ba": the averaged ones if there are any."""
        networks = self.averaged or self.networks
        return {name[-2:]: networks[name] for name in GENERATORS}

    def weights_by_file(self) -> dict[str, nn.Module]:
        """The modules whose weights a checkpoint holds, by the name of their file."""
        averaged = {f"averaged_{name}": network for name, network in self.averaged.items()}
        return {**self.networks, **averaged}

    def state_dict(self) -> dict:
        """State of training beside the weights, as plain types and tensors."""
        scaler = self.accelerator.scaler
        return {
            "optimizers": [optimizer.optimizer.state_dict() for optimizer in self.optimizers],
            "pools": [pool.state_dict() for pool in self.pools.values()],
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` gave."""
        for optimizer, loaded in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.optimizer.load_state_dict(loaded)
        self._set_groups()
        for pool, loaded in zip(self.pools.values(), state["pools"], strict=True):
            pool.load_state_dict(loaded, self.device)
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def precision_of(settings: Settings, device: torch.device) -> str:
    """In words, what the networks compute in."""
    if settings.precision != "no":
        return f"{settings.precision}, losses and last layers float32"
    return "float32" + (" rounded to TF32" if settings.tf32 and device.type == "cuda" else "")


def make_networks(settings: Settings) -> dict[str, nn.Module]:
    """The four networks by name, with new weights from torch's random numbers."""
    s = settings
    discriminator = (s.discriminator_width, s.discriminator_layers, s.channels)
    return {name: s.make_generator() for name in GENERATORS} | {
        name: PatchDiscriminator(*discriminator) for name in DISCRIMINATORS
    }
