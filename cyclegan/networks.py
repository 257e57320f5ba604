"""Generators and discriminator of CycleGAN (Zhu et al. 2017, section 7.2 of arXiv:1703.10593), with
as many parameters as the authors' code: convolutions have biases in front of instance norm too."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cyclegan.errors import UserError
from cyclegan.instance_norm import InstanceNorm


def parse_generator(name: str, crop: tuple[int, int]) -> tuple[str, int, int]:
    """The kind of generator that settings name, of which its images' sides must be a multiple, and
    its number: of residual blocks, or of levels.

    Raises:
        UserError: another name.
    """
    if name == "auto":
        name = "resnet_9" if min(crop) >= 256 else "resnet_6"
    match = re.fullmatch(r"(resnet|unet)_([1-9][0-9]{0,3})", name)
    kind, number = (match[1], int(match[2])) if match else ("", 0)
    if kind == "resnet":
        return kind, 4, number
    if kind == "unet" and number >= 4 and number & (number - 1) == 0:
        return kind, number, number.bit_length() - 1
    raise UserError(
        "generator must be auto, resnet_6, resnet_9 (any number of blocks), unet_128 or unet_256 "
        f"(any power of 2 from 4 on); got {name!r}"
    )


def make_generator(
    name: str, crop: tuple[int, int], base_width: int, channels: int = 3
) -> nn.Module:
    """(N, channels, H, W) in [-1, 1] -> the same; see `parse_generator`."""
    kind, _, number = parse_generator(name, crop)
    return (ResnetGenerator if kind == "resnet" else UnetGenerator)(base_width, number, channels)


class ResnetGenerator(nn.Module):
    """(N, channels, H, W) in [-1, 1] -> the same shape and range.

    7x7 stem, two convolutions of stride 2, residual blocks at a quarter of the resolution, two
    transposed convolutions, 7x7 head with tanh. Instance norm (no affine parameters) throughout.
    H and W are multiples of 4, at least 8.

    Args:
        base_width: channels of the stem; the blocks have four times as many (paper: 64).
        blocks: residual blocks (paper: 9 for 256x256 and larger, 6 for 128x128).
    """

    smallest, multiple = 8, 4  # of the sides of images

    def __init__(self, base_width: int = 64, blocks: int = 9, channels: int = 3):
        super().__init__()
        w = base_width
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, w, 7),
            *norm_relu(),
            nn.Conv2d(w, 2 * w, 3, stride=2, padding=1),
            *norm_relu(),
            nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1),
            *norm_relu(),
            *(ResidualBlock(4 * w) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, padding=1, output_padding=1),
            *norm_relu(),
            nn.ConvTranspose2d(2 * w, w, 3, 2, padding=1, output_padding=1),
            *norm_relu(),
            nn.ReflectionPad2d(3),
            nn.Conv2d(w, channels, 7),
            nn.Tanh(),
        )
        self.apply(init_normal)

    def forward(self, x: Tensor) -> Tensor:
        *layers, pad, head, tanh = self.layers
        for layer in layers:
            x = layer(x)
        return in_float32(lambda x: tanh(head(pad(x))), x)


class ResidualBlock(nn.Module):
    """(N, width, H, W) -> the same shape; no activation after the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            *norm_relu(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            InstanceNorm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class UnetGenerator(nn.Module):
    """(N, channels, H, W) in [-1, 1] -> the same shape and range; H and W multiples of 2 ** levels.

    Convolutions of stride 2 down to a pixel (for images of side 2 ** levels) and up again; what
    goes down a level is shown again on the way up (Ronneberger et al. 2015; Isola et al. 2017).
    Instance norm but at the outer and innermost levels.

    Args:
        base_width: channels of the first level; they double per level up to 8 * base_width.
        levels: 8 for 256x256, 7 for 128x128.
    """

    def __init__(self, base_width: int = 64, levels: int = 8, channels: int = 3):
        super().__init__()
        self.smallest = self.multiple = 2**levels
        widths = [base_width * min(2**level, 8) for level in range(levels)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            outer, inner = level == 0, level == levels - 1
            above = channels if outer else widths[level - 1]
            down = nn.Conv2d(above, width, 4, stride=2, padding=1)
            up = nn.ConvTranspose2d(width if inner else 2 * width, above, 4, stride=2, padding=1)
            leak = [] if outer else [nn.LeakyReLU(0.2)]
            norm = [] if outer or inner else [InstanceNorm()]
            end = nn.Tanh() if outer else InstanceNorm()
            self.down.append(nn.Sequential(*leak, down, *norm))
            self.up.append(nn.Sequential(nn.ReLU(), up, end))
        self.apply(init_normal)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        x = self.up[-1](levels.pop())
        for up in self.up[-2:0:-1]:
            x = up(torch.cat([levels.pop(), x], dim=1))
        return in_float32(self.up[0], torch.cat([levels.pop(), x], dim=1))


class PatchDiscriminator(nn.Module):
    """(N, channels, H, W) in [-1, 1] -> (N, 1, h, w), a score of each overlapping patch.

    Args:
        base_width: channels of the first layer; they double per layer up to 8 * base_width.
        n_layers: convolutions of stride 2; three of them make patches of 70x70 pixels.
    """

    def __init__(self, base_width: int = 64, n_layers: int = 3, channels: int = 3):
        super().__init__()
        layers = [nn.Conv2d(channels, base_width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_width
        for depth in range(1, n_layers + 1):
            width_in, width = width, base_width * min(2**depth, 8)
            layers += [
                nn.Conv2d(width_in, width, 4, 2 if depth < n_layers else 1, 1),
                *norm_relu(0.2),
            ]
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(init_normal)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def in_float32(layers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layers(x), outside of autocast: near -1 and 1 bfloat16 has steps of 1 / 256 and 1 / 128,
    as coarse as 8-bit images, and tanh would end in them."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return layers(x)
    with torch.autocast(kind, enabled=False):
        return layers(x.float())


def norm_relu(slope: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """Both, and nothing in the activation's place: the names of weights count the layers."""
    return InstanceNorm(slope), nn.Identity()


def init_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
