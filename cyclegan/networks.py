"""Generator and discriminator of CycleGAN (Zhu et al. 2017, section 7.2 of arXiv:1703.10593)."""

from torch import Tensor, nn


class ResnetGenerator(nn.Module):
    """(N, 3, H, W) in [-1, 1] -> the same shape and range; H and W multiples of 4, at least 8.

    7x7 stem, two convolutions of stride 2, residual blocks at a quarter of the resolution, two
    transposed convolutions, 7x7 head with tanh. Instance norm (no affine parameters) throughout.

    Args:
        base_width: channels of the stem; the blocks have four times as many (paper: 64).
        blocks: residual blocks (paper: 9 for 256x256 and larger, 6 for 128x128).
    """

    def __init__(self, base_width: int = 64, blocks: int = 9):
        super().__init__()
        w = base_width
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, w, 7, bias=False),
            *norm_relu(w),
            nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False),
            *norm_relu(2 * w),
            nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1, bias=False),
            *norm_relu(4 * w),
            *(ResidualBlock(4 * w) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, padding=1, output_padding=1, bias=False),
            *norm_relu(2 * w),
            nn.ConvTranspose2d(2 * w, w, 3, 2, padding=1, output_padding=1, bias=False),
            *norm_relu(w),
            nn.ReflectionPad2d(3),
            nn.Conv2d(w, 3, 7),
            nn.Tanh(),
        )
        self.apply(init_normal)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualBlock(nn.Module):
    """(N, width, H, W) -> the same shape; no activation after the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3, bias=False),
            *norm_relu(width),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3, bias=False),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PatchDiscriminator(nn.Module):
    """(N, 3, H, W) in [-1, 1] -> (N, 1, h, w): one unbounded score for each overlapping patch.

    Args:
        base_width: channels of the first layer; they double per layer up to 8 * base_width.
        n_layers: convolutions of stride 2; three of them make patches of 70x70 pixels.
    """

    def __init__(self, base_width: int = 64, n_layers: int = 3):
        super().__init__()
        layers = [nn.Conv2d(3, base_width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_width
        for depth in range(1, n_layers + 1):
            width_in, width = width, base_width * min(2**depth, 8)
            layers += [
                nn.Conv2d(width_in, width, 4, 2 if depth < n_layers else 1, 1, bias=False),
                nn.InstanceNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(init_normal)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def norm_relu(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(width), nn.ReLU()


def init_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
