"""What functions of the package promise, checked in one way; and what tests of them need."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
import torch
from comparison import TERMS
from hypothesis import HealthCheck, settings
from torch import Tensor

import ssimfast

needs_extension = pytest.mark.needs("extension")

# The same values laid out in other ways, of images and of volumes.
LAYOUTS = {
    "channels_last": lambda image: image.contiguous(memory_format=channels_last(image)),
    "sliced": lambda image: torch.nn.functional.pad(image, (3, 5, 2, 1))[..., 2:-1, 3:-5],
    "every_second_column": lambda image: torch.stack((image, image * 0), -1)[..., 0],
    "transposed": lambda image: image.movedim(2, -1).contiguous().movedim(-1, 2),
    "batch_innermost": lambda image: image.movedim(0, -1).contiguous().movedim(-1, 0),
}


def channels_last(image: Tensor) -> torch.memory_format:
    return torch.channels_last if image.dim() == 4 else torch.channels_last_3d


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two images in [0, 1] that are neither equal nor unrelated."""
    x = torch.rand(shape, dtype=torch.float64)
    y = (0.7 * x + 0.3 * torch.rand(shape, dtype=torch.float64)).clamp(0, 1)
    return x.to(dtype), y.to(dtype)


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Two images for hypothesis, alike, unrelated or each other's negative."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.rand(2, *shape, dtype=torch.float64, generator=generator)
    return x, (1 - seed % 4 / 2) * x + seed % 7 / 10 * noise


class Function(NamedTuple):
    """A function of two images, and a shape that they may have. What it returns is differentiable,
    or has no graph."""

    of: Callable[..., Tensor | tuple[Tensor, ...]]
    shape: tuple[int, ...]
    arguments: dict

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        result = self.of(x, y, **self.arguments)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def of_equal_images(self) -> list[float]:
        """What each of its values is for equal images, and for none."""
        if self.of is not mixture:
            return [1.0] * (2 if self.of is ssimfast.ssim_components else 1)
        return [0.0, *(float("ssim" in name) for name in TERMS if self.arguments[name] > 0)]


def _mask_for(x: Tensor) -> Tensor:
    """Weights of columns, a quarter of which are hidden."""
    return torch.arange(x.shape[-1], device=x.device) % 4 / 3


def _masked(x: Tensor, y: Tensor, of: Callable = ssimfast.ssim, **arguments) -> Tensor:
    return of(x, y, mask=_mask_for(x), **arguments)


def mixture(x: Tensor, y: Tensor, masked: bool = False, **factors: float) -> tuple[Tensor, ...]:
    arguments = {"weights": (0.4, 0.6), "return_terms": True, **factors}
    mask = _mask_for(x) if masked else None
    loss, terms = ssimfast.similarity_loss(x, y, mask=mask, **arguments)
    return loss, *terms.values()


IMAGES, PYRAMIDS, VOLUMES = (2, 3, 20, 23), (2, 3, 23, 26), (2, 2, 8, 9, 10)
_ALL = {"ssim": 0.3, "ms_ssim": 0.5, "l1": 0.7, "l2": 0.9, "gaussian_l1": 1.1}
_PLANES = {"reduction": "none", "padding": "same", "odd": "replicate", "negative": "abs"}
_JOINT = {"reduction": "batch", "channels": "joint", "odd": "pad", "padding": "reflect"}
_UNIFORM = {"window": "uniform", "sample_covariance": True, "value_range": (-1, 1)}
# Every way through the package that has a kernel or an autograd Function of its own.
FUNCTIONS = {
    "ssim": Function(ssimfast.ssim, IMAGES, {}),
    "images": Function(ssimfast.ssim, IMAGES, {"reduction": "batch"}),
    "map": Function(ssimfast.ssim, IMAGES, {"reduction": "none"}),
    "reflected": Function(ssimfast.ssim, IMAGES, {"padding": "reflect"}),
    "components": Function(ssimfast.ssim_components, IMAGES, {}),
    "reflected_components": Function(
        ssimfast.ssim_components, IMAGES, {"padding": "reflect", **_UNIFORM}
    ),
    "masked": Function(_masked, IMAGES, {}),
    "masked_map": Function(_masked, IMAGES, {"reduction": "none", "padding": "same"}),
    "volume": Function(ssimfast.ssim, VOLUMES, {"window_size": 5}),
    "volume_map": Function(
        ssimfast.ssim,
        VOLUMES,
        {"window_size": 5, "padding": "reflect", "reduction": "none"},
    ),
    "masked_volume": Function(_masked, VOLUMES, {"window_size": 5}),
    "volume_by_axis": Function(
        ssimfast.ssim, VOLUMES, {"window_size": (3, 7, 5), "sigma": (0.8, 1.5, 1.2)}
    ),
    "ms_ssim": Function(ssimfast.ms_ssim, PYRAMIDS, {"weights": (0.4, 0.6)}),
    "ms_ssim_planes": Function(ssimfast.ms_ssim, PYRAMIDS, {"weights": (0.4, 0.6), **_PLANES}),
    "ms_ssim_joint": Function(ssimfast.ms_ssim, PYRAMIDS, {"weights": (0.4, 0.6), **_JOINT}),
    "ms_ssim_or_raise": Function(
        ssimfast.ms_ssim,
        PYRAMIDS,
        {"weights": (0.4, 0.6), "negative": "raise", **_UNIFORM},
    ),
    "masked_ms_ssim": Function(
        _masked, PYRAMIDS, {"of": ssimfast.ms_ssim, "weights": (0.4, 0.6), "odd": "pad"}
    ),
    "mixture": Function(mixture, PYRAMIDS, _ALL),
    "masked_mixture": Function(mixture, PYRAMIDS, {**_ALL, "gaussian_l1": 0.0, "masked": True}),
    "mixture_of_one_scale": Function(mixture, PYRAMIDS, {**_ALL, "weights": (0.9,)}),
    "mixture_without_ms_ssim": Function(
        mixture, PYRAMIDS, {**_ALL, "ms_ssim": 0.0, "reduction": "batch"}
    ),
    "pixels": Function(mixture, PYRAMIDS, {**_ALL, "ssim": 0.0, "ms_ssim": 0.0}),
}
# One function for each autograd Function, and the compositions of them.
DERIVATIVES = {"ssim", "map", "reflected", "components", "masked_map", "volume"}
DERIVATIVES |= {"ms_ssim_joint", "ms_ssim_or_raise", "masked_ms_ssim", "mixture"}
# Marks of functions whose kernels are those of others.
QUICKER = {
    "volume_by_axis": pytest.mark.long,
    "masked_ms_ssim": pytest.mark.long_with("cuda-emulated"),
    "masked_mixture": pytest.mark.long_with("cuda-emulated"),
}

# Examples of hypothesis: the same ones every time, and few, for each runs kernels.
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the seed of every test
)


def assert_same_bits_for_every_number_of_threads(run: Callable[[], Iterable[torch.Tensor]]) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(tuple(run()))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(result, results[0], strict=True))


def assert_compiles(
    loss_of: Callable, net: torch.nn.Module, inputs: Iterable[tuple], dynamic: bool
) -> None:
    """A training step of ``net`` gives the same compiled, in one graph, for each of the inputs.

    ``loss_of`` returns the loss, or the loss and what goes with it.
    """
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for images in inputs:
        results = []
        for step in (loss_of, compiled):
            net.zero_grad()
            result = step(*images)
            loss, *others = result if isinstance(result, tuple) else (result,)
            loss.backward()
            results.append((loss.detach(), net.weight.grad.clone(), others))
        torch.testing.assert_close(*results)
