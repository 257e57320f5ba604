"""Generators that start from other weights, also from those of the reference implementation."""

from dataclasses import replace

import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cyclegan import checkpoints
from cyclegan.__main__ import main
from cyclegan.errors import UserError
from cyclegan.networks import make_generator
from cyclegan.trainer import Trainer
from cyclegan.translate import load_generators
from cyclegan.weights import describe, read_generators

# The reference's networks, from the layers that are published: module names are positions in
# Sequentials, as in its files; norms have no weights, convolutions have biases.


class Block(nn.Module):
    def __init__(self, width: int, dropout: bool):
        super().__init__()
        first = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        last = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        between = [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
        self.conv_block = nn.Sequential(*first, *between, *last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Resnet(nn.Module):
    def __init__(self, blocks: int, width: int, channels: int = 3, dropout: bool = False):
        super().__init__()
        w = width
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(channels, w, 7), nn.InstanceNorm2d(w), nn.ReLU()]
        for a, b in ((w, 2 * w), (2 * w, 4 * w)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.InstanceNorm2d(b), nn.ReLU()]
        layers += [Block(4 * w, dropout) for _ in range(blocks)]
        for a, b in ((4 * w, 2 * w), (2 * w, w)):
            up = nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.InstanceNorm2d(b), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(w, channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Level(nn.Module):
    """A level of a U-Net around the next one; it shows its input beside its output."""

    def __init__(self, levels: int, level: int, width: int, channels: int):
        super().__init__()
        widths = [channels, *(width * min(2**i, 8) for i in range(levels))]
        outer, inner = level == 0, level == levels - 1
        above, here = widths[level : level + 2]
        down = nn.Conv2d(above, here, 4, stride=2, padding=1)
        up = nn.ConvTranspose2d(here if inner else 2 * here, above, 4, stride=2, padding=1)
        layers = [] if outer else [nn.LeakyReLU(0.2)]
        layers += [down] if outer or inner else [down, nn.InstanceNorm2d(here)]
        layers += [] if inner else [Level(levels, level + 1, width, channels)]
        layers += [nn.ReLU(), up, nn.Tanh() if outer else nn.InstanceNorm2d(above)]
        if not (outer or inner) and level > 3:
            layers.append(nn.Dropout(0.5))
        self.outer = outer
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outer else torch.cat([x, self.model(x)], 1)


class Unet(nn.Module):
    def __init__(self, levels: int, width: int, channels: int = 3):
        super().__init__()
        self.model = Level(levels, 0, width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def loud(network: nn.Module) -> nn.Module:
    """With weights and biases that all show in the output."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network.eval()


@pytest.mark.parametrize(
    "reference, name, width, channels",
    [
        (Resnet(9, 4), "resnet_9", 4, 3),
        (Resnet(6, 2, channels=5), "resnet_6", 2, 5),
        (Resnet(2, 4, dropout=True), "resnet_2", 4, 3),
        (Unet(7, 2), "unet_128", 2, 3),
        (Unet(8, 2, channels=1), "unet_256", 2, 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_references_generators_give_the_same_images(reference, name, width, channels, tmp_path):
    torch.save(loud(reference).state_dict(), tmp_path / "latest_net_G.pth")
    [state] = read_generators(tmp_path).values()
    assert describe(state, tmp_path) == {
        "generator": name,
        "base_width": width,
        "channels": channels,
    }
    ours = make_generator(name, (256, 256), width, channels)
    ours.load_state_dict(state)
    side = 256 if "unet_256" in name else 128
    x = torch.rand(2, channels, side, side) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), atol=1e-4, rtol=0)


def save_reference(folder, prefix: str, seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    networks = {"A": loud(Resnet(1, 4)), "B": loud(Resnet(1, 4))}
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{prefix}_net_G_{name}.pth")
        torch.save(network.state_dict(), folder / f"{prefix}_net_D_{name}.pth")  # is not read
    return networks


def test_of_several_epochs_the_latest_is_taken(tmp_path):
    for seed, prefix in enumerate(("5", "iter_40", "100")):
        reference = save_reference(tmp_path, prefix, seed)
    for _ in range(2):
        found = read_generators(tmp_path)
        for direction, name in (("ab", "A"), ("ba", "B")):
            want = reference[name].model[1].weight
            assert torch.equal(found[direction]["layers.1.weight"], want)
        reference = save_reference(tmp_path, "latest", 9)
    alone = read_generators(tmp_path / "100_net_G_B.pth")
    assert list(alone) == ["ba"]


def test_old_files_with_unused_statistics_and_prefixes_are_read(tmp_path):
    state = Resnet(1, 4).state_dict()
    old = {f"module.{key}": value for key, value in state.items()}
    old |= {
        "module.model.2.running_mean": torch.zeros(4),
        "module.model.2.running_var": torch.ones(4),
    }
    torch.save(old, tmp_path / "latest_net_G.pth")
    assert len(read_generators(tmp_path)["ab"]) == len(state)


@pytest.mark.parametrize(
    "state, message",
    [
        (
            {"model.1.weight": torch.zeros(4, 3, 7, 7), "model.2.weight": torch.zeros(4)},
            "norms with",
        ),
        ([1, 2], "holds no state_dict"),
        ({"epoch": 3}, "holds no state_dict"),
        (
            {"conv.weight": torch.zeros(4, 3, 7, 7)},
            "does not hold the weights of a ResNet or U-Net",
        ),
    ],
    ids=["batch norm", "list", "numbers", "another network"],
)
def test_files_of_something_else_are_named(state, message, tmp_path, capsys):
    file = tmp_path / "latest_net_G_A.pth"
    torch.save(state, file)
    assert main(["import", str(file), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(file) in error
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_not_run(tmp_path, capsys):
    file = tmp_path / "latest_net_G_A.pth"
    torch.save(Resnet(1, 4), file)  # a whole module, as pickle writes it
    assert main(["import", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is no file of weights" in capsys.readouterr().err


def test_an_imported_run_translates_and_cannot_be_resumed(tmp_path, data, settings, capsys):  # noqa: F811
    source, run = tmp_path / "source", tmp_path / "imported"
    source.mkdir()
    reference = save_reference(source, "latest", 0)
    assert main(["import", str(source), str(run)]) == 0
    generators, _ = load_generators(run, ("ab", "ba"), torch.device("cpu"))
    x = torch.rand(1, 3, 40, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(generators["ab"](x), reference["A"](x), atol=1e-4, rtol=0)
        torch.testing.assert_close(generators["ba"](x), reference["B"](x), atol=1e-4, rtol=0)
    image, out = str(data / "testA" / "0.png"), str(tmp_path / "out.png")
    assert main(["translate", image, out, "--checkpoint", str(run), "--device", "cpu"]) == 0
    with Image.open(out) as result:
        assert result.size == (40, 40)
    assert main(["import", str(source), str(run)]) == 2  # never over another run
    assert "step_0000000 exists" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds generators only; --init-from starts a run"):
        Trainer(replace(settings, run_dir=str(run), base_width=4), resume="auto")
    started = Trainer(replace(settings, init_from=str(run)))
    assert torch.equal(started.generators()["ab"].layers[1].weight, reference["A"].model[1].weight)


def test_a_run_starts_from_the_generators_of_another_only(settings, tmp_path):  # noqa: F811
    first = Trainer(replace(settings, steps=2, ema_decay=0.5))
    first.train()
    folder = checkpoints.folder_of(first.run_dir, 2)
    loose = tmp_path / "loose"  # files of ours without a checkpoint around them
    loose.mkdir()
    for path in folder.glob("averaged_*"):
        path.rename(loose / path.name.removeprefix("averaged_"))
    averages = {d: load_file(loose / f"generator_{d}.safetensors") for d in ("ab", "ba")}
    other = replace(settings, run_dir=str(tmp_path / "other"), seed=5, ema_decay=0.9)
    fresh = Trainer(other)
    started = Trainer(replace(other, init_from=str(loose)))
    for direction, state in averages.items():
        for networks in (started.model.networks, started.model.averaged):
            for key, value in networks[f"generator_{direction}"].state_dict().items():
                assert torch.equal(value, state[key])
    for name in ("discriminator_a", "discriminator_b"):
        pair = zip(
            started.model.networks[name].parameters(),
            fresh.model.networks[name].parameters(),
            strict=True,
        )
        assert all(torch.equal(mine, theirs) for mine, theirs in pair)
    file = loose / "generator_ba.safetensors"
    one = Trainer(replace(other, init_from=str(file)))
    for mine, theirs in (("ba", averages["ba"]), ("ab", fresh.generators()["ab"].state_dict())):
        state = one.generators()[mine].state_dict()
        assert all(torch.equal(state[key], theirs[key]) for key in state)
    with pytest.raises(
        UserError, match=f"{file} holds weights of generator resnet_1, base_width 4"
    ):
        Trainer(replace(other, init_from=str(file), base_width=8))
    with pytest.raises(UserError, match="no such folder: nowhere"):
        Trainer(replace(other, init_from="nowhere"))
