"""Losses between the deep features of two images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cyclegan.errors import UserError, cause

FEATURE_NETWORKS = ("vgg16", "vgg19", "alexnet")
# Channel means and deviations of torchvision's training images, in [0, 1].
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(nn.Module):
    """Some layers of a network that was trained on ImageNet, frozen.

    Args:
        network: "vgg16", "vgg19" or "alexnet" of torchvision.
        layers: "conv3_2", "relu4_1" (block and number in it) of VGG; "conv3", "relu5" of AlexNet.
        weights_file: a state_dict of torchvision's model or of its `features`, for machines
            without internet; "" takes those that torchvision downloads.

    Raises:
        UserError: an unknown network or layer; no torchvision; a file with other weights.
    """

    def __init__(self, network: str, layers: Iterable[str], weights_file: str = ""):
        super().__init__()
        if network not in FEATURE_NETWORKS:
            raise UserError(
                f"feature_network must be one of {', '.join(FEATURE_NETWORKS)}; got {network}"
            )
        try:
            from torchvision import models
        except ImportError:
            raise UserError(
                "perceptual and contextual losses need torchvision: pip install torchvision"
            ) from None
        make = getattr(models, network)
        with torch.device("meta"):  # before weights are read, or come over the network
            names = layer_names(make().features)
        layers = list(layers)
        for layer in layers or [""]:
            if layer not in names:
                raise UserError(
                    f"feature_layers of {network} must be some of {', '.join(names)}; got {layer!r}"
                )
        try:
            trunk = make(weights=None if weights_file else "DEFAULT").features
        except OSError as error:
            raise UserError(
                f"the weights of {network} cannot be downloaded: {cause(error)}; --feature-weights "
                "(feature_weights) takes a file of them"
            ) from error
        if weights_file:
            _load(trunk, weights_file)
        self.indices = sorted(names[layer] for layer in layers)
        self.trunk = trunk[: self.indices[-1] + 1]
        for module in self.trunk:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # the layer before may be one that is asked for
        self.requires_grad_(False)
        self.eval()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) in [-1, 1] to the features (N, C, h, w) of each layer."""
        x = ((images + 1) / 2 - self.mean) / self.deviation
        found = []
        for index, module in enumerate(self.trunk):
            x = module(x)
            if index in self.indices:
                found.append(x)
        return found


def layer_names(trunk: nn.Sequential) -> dict[str, int]:
    """Where the layers are, by the names that papers give them: blocks end with a pooling."""
    by_block = sum(isinstance(module, nn.Conv2d) for module in trunk) > 5  # AlexNet has five
    names: dict[str, int] = {}
    block, number = 1, 0
    for index, module in enumerate(trunk):
        if isinstance(module, nn.Conv2d):
            number += 1
        if isinstance(module, nn.MaxPool2d) and by_block:
            block, number = block + 1, 0
        kind = {nn.Conv2d: "conv", nn.ReLU: "relu"}.get(type(module))
        if kind is not None:
            names[f"{kind}{block}_{number}" if by_block else f"{kind}{number}"] = index
    return names


def read_weights(file: str, name: str) -> dict[str, Tensor]:
    """The state_dict in a file, which may hold nothing else: no pickle is run.

    Args:
        name: of the setting that gave the file.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # bytes that are something else make torch raise nearly anything
        raise UserError(
            f"{name} {file} is no file of weights, which a state_dict that was saved is "
            f"({type(error).__name__})"
        ) from error


def _load(trunk: nn.Sequential, file: str) -> None:
    state = read_weights(file, "feature_weights")
    prefix = "features."
    try:
        if any(key.startswith(prefix) for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        trunk.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"feature_weights {file} are of another network: {cause(error)}") from None


def perceptual_loss(x: Tensor, y: Tensor) -> Tensor:
    """The mean absolute difference of features (N, C, h, w), in float32."""
    return F.l1_loss(x.float(), y.float())


def contextual_loss(x: Tensor, y: Tensor, bandwidth: float = 0.5, rows: int = 512) -> Tensor:
    """Whether each feature of y has its like somewhere in x, wherever it is: the mean of -log of
    the contextual similarity of features (N, C, h, w) and (N, C, h', w').

    Mechrez, Talmi and Zelnik-Manor, "The contextual loss for image transformation with non-aligned
    data", ECCV 2018, equations 2 to 5. The similarity of a feature of x to all of y is a softmax:
    no exponential can overflow. ``rows`` features of x at a time, and again in backward: memory
    grows with h w, not its square. float32, inside autocast too: in half precision the softmax is
    NaN soon.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = (features.float().flatten(2) for features in (x, y))
        centre = y.mean(2, keepdim=True)
        x, y = (F.normalize(features - centre, dim=1) for features in (x, y))
        parts = [
            # Nothing here is random, and a CUDA graph cannot save the generators' states.
            checkpoint(
                *(_best_of_rows, part, y, bandwidth), use_reentrant=False, preserve_rng_state=False
            )
            for part in x.split(rows, 2)
        ]
        best = torch.stack(parts).amax(0)  # of each feature of y, the likeness of its best match
        return -best.mean(1).log().mean()


def _best_of_rows(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    distance = (1 - x.transpose(1, 2) @ y).clamp_min(0)  # rounding makes some a little negative
    relative = distance / (distance.amin(2, keepdim=True) + 1e-5)
    return F.softmax(-relative / bandwidth, dim=2).amax(1)
