"""Generator and discriminator: shapes, receptive field, initial weights."""

import pytest
import torch
from torch import nn

from cyclegan.instance_norm import InstanceNorm
from cyclegan.networks import (
    PatchDiscriminator,
    ResidualBlock,
    ResnetGenerator,
    UnetGenerator,
    make_generator,
    parse_generator,
)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((8, 8), id="smallest"),
        pytest.param((32, 64), id="oblong"),
    ],
)
def test_generator_keeps_shape_and_stays_in_range(size):
    generator = ResnetGenerator(base_width=4, blocks=2)
    with torch.no_grad():
        out = generator(torch.randn(2, 3, *size) * 100)
    assert out.shape == (2, 3, *size)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("network", [ResnetGenerator(4, 1), UnetGenerator(4, 3)])
def test_last_layers_are_float32_under_autocast(network):
    """Near -1 and 1, bfloat16 has steps as coarse as those of 8-bit images."""
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            out = network(x)
        assert out.dtype == torch.float32 and not torch.equal(out, out.bfloat16().float())
        torch.testing.assert_close(out, network(x), atol=0.02, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 16])
@pytest.mark.parametrize("name", ["resnet_1", "unet_16"])
def test_networks_take_other_channels_and_oblong_crops(name, channels):
    generator = make_generator(name, (16, 48), 4, channels)
    discriminator = PatchDiscriminator(4, 2, channels)
    with torch.no_grad():
        fake = generator(torch.randn(2, channels, 16, 48))
        assert fake.shape == (2, channels, 16, 48)
        assert discriminator(fake).shape == (2, 1, 2, 10)


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_published_sizes():
    # The figures that users of the paper's code report for 256x256.
    assert count(ResnetGenerator(64, 9)) == pytest.approx(11.378e6, abs=500)
    assert count(PatchDiscriminator(64, 3)) == pytest.approx(2.765e6, abs=500)


@pytest.mark.parametrize("levels", [7, 8])
def test_unet_has_the_parameters_of_its_layers(levels):
    """Isola et al. 2017, section 6.1.1: C64-C128-C256-C512-... down, as many up with skips."""
    w = [64, 128, 256] + [512] * (levels - 3)
    down = sum(16 * a * b + b for a, b in zip([3, *w], w, strict=False))
    up = [(w[-1], w[-2]), *((2 * w[i], w[i - 1]) for i in range(levels - 2, 0, -1)), (2 * w[0], 3)]
    assert count(UnetGenerator(64, levels)) == down + sum(16 * a * b + b for a, b in up)


@pytest.mark.parametrize("levels, size", [(2, (4, 8)), (3, (8, 8)), (5, (64, 32))])
def test_unet_keeps_shape_and_range_and_sees_everything(levels, size):
    generator = UnetGenerator(4, levels)
    x = torch.randn(2, 3, *size, requires_grad=True)
    out = generator(x * 100)
    assert out.shape == x.shape and out.abs().max() <= 1
    with torch.no_grad():  # of one pixel, the whole image: it came through the innermost level
        for parameter in generator.parameters():
            parameter.mul_(20)
    generator(x)[0, 0, 0, 0].backward()
    assert (x.grad[0] != 0).all() and not x.grad[1].any()


def test_unet_shows_what_went_down_again_on_the_way_up():
    generator = UnetGenerator(2, 3)
    seen = {}
    for index, up in enumerate(generator.up):
        up.register_forward_hook(lambda _, args, out, i=index: seen.update({i: (args[0], out)}))
    downs = []
    for down in generator.down:
        down.register_forward_hook(lambda _, args, out: downs.append(out))
    generator(torch.randn(1, 3, 8, 8))
    assert torch.equal(seen[2][0], downs[2])
    for level in (1, 0):
        assert torch.equal(seen[level][0], torch.cat([downs[level], seen[level + 1][1]], 1))


@pytest.mark.parametrize(
    "name, size, kind, number",
    [
        ("auto", 256, ResnetGenerator, 9),
        ("auto", 512, ResnetGenerator, 9),
        ("auto", 128, ResnetGenerator, 6),
        ("resnet_9", 128, ResnetGenerator, 9),
        ("unet_128", 128, UnetGenerator, 7),
        ("unet_256", 256, UnetGenerator, 8),
    ],
)
def test_generators_by_name(name, size, kind, number):
    network = make_generator(name, (size, 2 * size), 2)
    assert type(network) is kind
    assert count(network) == count(kind(2, number))
    assert parse_generator(name, (size, size))[1] == network.multiple


@pytest.mark.parametrize("name", ["resnet", "resnet_0", "unet_100", "unet_2", "vit_9", "auto_9"])
def test_unknown_generators_are_named(name):
    with pytest.raises(ValueError, match=f"generator must be .*got '{name}'"):
        parse_generator(name, (256, 256))


def modules(network):
    return [module for module in network.modules() if not list(module.children())]


def test_a_residual_block_adds_to_its_input():
    block = ResidualBlock(4)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_generator_pads_by_reflection_and_ends_in_tanh():
    layers = modules(ResnetGenerator(4, 1))
    assert isinstance(layers[-1], nn.Tanh)
    padded = [
        (before.padding, after.kernel_size)
        for before, after in zip(layers, layers[1:], strict=False)
        if isinstance(before, nn.ReflectionPad2d)
    ]
    stem_or_head, in_block = ((3,) * 4, (7, 7)), ((1,) * 4, (3, 3))
    assert padded == [stem_or_head, in_block, in_block, stem_or_head]
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.stride == (1, 1):
            assert layer.padding == (0, 0)


def test_discriminator_leaks_a_fifth_of_what_is_negative():
    layers = modules(PatchDiscriminator(4, 3))
    slopes = [getattr(m, "negative_slope", getattr(m, "slope", None)) for m in layers]
    assert [slope for slope in slopes if slope is not None] == [0.2] * 4
    assert {type(m) for m in layers} == {nn.Conv2d, nn.LeakyReLU, InstanceNorm, nn.Identity}


@pytest.mark.parametrize("n_layers, field", [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch_of_the_published_size(n_layers, field):
    size = 192
    x = torch.randn(1, 3, size, size, requires_grad=True)
    convolutions = [m for m in PatchDiscriminator(2, n_layers).layers if isinstance(m, nn.Conv2d)]
    scores = nn.Sequential(*convolutions)(x)  # without the norm, which looks at the whole image
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    seen = x.grad[0].abs().sum(dim=0) > 0
    assert seen.any(dim=0).sum() == field
    assert seen.any(dim=1).sum() == field


def test_images_of_a_batch_do_not_influence_each_other():
    """Merged batches in the trainer rest on this."""
    images = torch.randn(3, 3, 32, 32)
    for network in (ResnetGenerator(4, 1), UnetGenerator(4, 5), PatchDiscriminator(4, 3)):
        with torch.no_grad():
            together = network(images)
            alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    "network",
    [ResnetGenerator(32, 2), UnetGenerator(16, 6), PatchDiscriminator(32, 3)],
    ids=lambda network: type(network).__name__,
)
def test_initial_weights_are_normal_with_deviation_0_02(network):
    weights = torch.cat([p.flatten() for n, p in network.named_parameters() if "weight" in n])
    biases = torch.cat([p.flatten() for n, p in network.named_parameters() if "bias" in n])
    error = 0.02 / weights.numel() ** 0.5
    assert abs(weights.mean().item()) < 5 * error
    assert weights.std().item() == pytest.approx(0.02, abs=5 * error)
    within_one_deviation = (weights.abs() < 0.02).float().mean().item()
    assert within_one_deviation == pytest.approx(0.6827, abs=0.01)
    assert not biases.any()
