"""Writes peers.json: what other libraries say about the images of peer_images.py.

    python tests/record_peers.py

records every library of PEERS that is installed; what is recorded of the others stays. So one
library can be recorded in an environment of its own: TensorFlow in one without PyTorch, say.

Each value is a list with one number an image, computed in float64 wherever the library does that:
in float32 it would hold the library's rounding, which is large in flat regions, where most subtract
the squared mean from the mean square.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peer_images import images

RECORDS = Path(__file__).with_name("peers.json")
SSIM = ("even", "odd")
PYRAMIDS = ("pyramid_even", "pyramid_odd", "pyramid_negative")


@dataclass(frozen=True)
class Peer:
    """A function of a library, called with certain arguments for certain images."""

    library: str
    function: str  # module.name
    arguments: dict
    images: tuple[str, ...]
    # (the library's function, x, y, arguments) -> one value an image
    call: Callable

    @property
    def module(self) -> str:
        return self.function.rpartition(".")[0]

    def load(self) -> Callable:
        return getattr(importlib.import_module(self.module), self.function.rpartition(".")[2])


def of_tensors(function: Callable, x, y, arguments: dict):
    """Functions of PyTorch tensors, which give one value an image, or a map."""
    value = function(x, y, **arguments)
    return value.flatten(1).mean(1) if value.dim() > 1 else value


def of_arrays(function: Callable, x: np.ndarray, y: np.ndarray, arguments: dict) -> list[float]:
    """Functions of single images (channel, row, column)."""
    return [float(function(a, b, **arguments)) for a, b in zip(x, y, strict=True)]


def of_channels_last(function: Callable, x: np.ndarray, y: np.ndarray, arguments: dict):
    """TensorFlow's functions: channels come last, and everything is rounded to float32."""
    x, y = (np.moveaxis(image, 1, -1).astype(np.float32) for image in (x, y))
    return function(x, y, **arguments).numpy()


class LossOf3DGS(Peer):
    """The loss of 3D Gaussian Splatting, by itself: its package wants a GPU and a renderer."""

    def load(self) -> Callable:
        package = importlib.util.find_spec("gaussian_splatting")
        if package is None:
            raise ModuleNotFoundError("No module named 'gaussian_splatting'")
        file = Path(package.origin).parent / "utils" / "loss.py"
        spec = importlib.util.spec_from_file_location("loss_of_3dgs", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.ssim


class Definition(Peer):
    """No library at all, but the formula that a library computes."""

    def load(self) -> Callable:
        return globals()[self.function]


def zero_padded_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """What fused-ssim defines, which itself runs on GPUs only: the mean over all pixels of SSIM,
    with a Gaussian window of 11 pixels and sigma 1.5, zeros outside, C1 = 0.01² and C2 = 0.03²."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()

    def blurred(image: np.ndarray) -> np.ndarray:
        for axis in (-2, -1):  # mode "same" takes what lies outside as 0
            image = np.apply_along_axis(np.convolve, axis, image, taps, mode="same")
        return image

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    cov = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def _skimage(images: tuple[str, ...], **arguments) -> Peer:
    function = "skimage.metrics.structural_similarity"
    arguments = {"data_range": 1.0, "channel_axis": 0, **arguments}
    return Peer("scikit-image", function, arguments, images, of_arrays)


def _pytorch_msssim(name: str, images: tuple[str, ...]) -> Peer:
    arguments = {"data_range": 1.0, "size_average": False}
    return Peer("pytorch-msssim", f"pytorch_msssim.{name}", arguments, images, of_tensors)


def _torchmetrics(name: str, images: tuple[str, ...], **arguments) -> Peer:
    function = f"torchmetrics.functional.image.{name}_index_measure"
    arguments = {"data_range": 1.0, "reduction": "none", **arguments}
    return Peer("torchmetrics", function, arguments, images, of_tensors)


def _piq(name: str, images: tuple[str, ...], **arguments) -> Peer:
    arguments = {"data_range": 1.0, "reduction": "none", **arguments}
    return Peer("piq", f"piq.{name}", arguments, images, of_tensors)


def _kornia(name: str, images: tuple[str, ...], **arguments) -> Peer:
    arguments = {"window_size": 11, "max_val": 1.0, **arguments}
    return Peer("kornia", f"kornia.metrics.{name}", arguments, images, of_tensors)


def _tensorflow(name: str, images: tuple[str, ...]) -> Peer:
    function = f"tensorflow.image.{name}"
    return Peer("tensorflow", function, {"max_val": 1.0}, images, of_channels_last)


PEERS: dict[str, Peer] = {
    "skimage_wang2004": _skimage(
        (*SSIM, "volume"), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    ),
    "skimage_default": _skimage((*SSIM, "volume")),
    "pytorch_msssim_ssim": _pytorch_msssim("ssim", (*SSIM, "volume")),
    "pytorch_msssim_ms_ssim": _pytorch_msssim("ms_ssim", (*PYRAMIDS, "pyramid_161")),
    "torchmetrics_ssim": _torchmetrics("structural_similarity", (*SSIM, "volume")),
    "torchmetrics_ssim_uniform": _torchmetrics(
        "structural_similarity", SSIM, gaussian_kernel=False, kernel_size=7
    ),
    "torchmetrics_ms_ssim": _torchmetrics("multiscale_structural_similarity", PYRAMIDS),
    "piq_ssim": _piq("ssim", SSIM, downsample=False),
    "piq_ms_ssim": _piq("multi_scale_ssim", ("pyramid_even", "pyramid_161")),
    "kornia_ssim_valid": _kornia("ssim", SSIM, padding="valid"),
    "kornia_ssim_default": _kornia("ssim", SSIM),
    "kornia_ssim3d_valid": _kornia("ssim3d", ("volume",), padding="valid"),
    "tf_ssim": _tensorflow("ssim", SSIM),
    "tf_ms_ssim": _tensorflow("ssim_multiscale", (*PYRAMIDS, "pyramid_161")),
    "3dgs_ssim": LossOf3DGS(
        "gaussian-splatting",
        "gaussian_splatting.utils.loss.ssim",
        {"size_average": False},
        SSIM,
        of_tensors,
    ),
    "fused_ssim": Definition("definition", "zero_padded_ssim", {}, SSIM, of_arrays),
}


def value(peer: Peer, name: str) -> list[float]:
    """What the library says about the images ``name``: one number an image."""
    x, y = images(name)
    if peer.call is of_tensors:
        import torch

        x, y = torch.from_numpy(x), torch.from_numpy(y)
    return [float(each) for each in peer.call(peer.load(), x, y, peer.arguments)]


def main() -> None:
    records = {}
    if RECORDS.exists():
        for record in json.loads(RECORDS.read_text()):
            records[record["peer"], record["image"]] = record
    for name, peer in PEERS.items():
        try:
            peer.load()
        except ModuleNotFoundError as error:
            print(f"{name}: not recorded: {error}")
            continue
        # By the module's name: tensorflow may have come as tensorflow_cpu.
        distributions = importlib.metadata.packages_distributions()
        found = distributions.get(peer.function.partition(".")[0])
        version = importlib.metadata.version(found[0]) if found else None
        for image in peer.images:
            records[name, image] = {
                "peer": name,
                "library": peer.library,
                "version": version,
                "function": peer.function,
                "arguments": peer.arguments,
                "image": image,
                "value": value(peer, image),
            }
            print(name, image, records[name, image]["value"])
    # In the order of PEERS; what is no longer in it goes.
    wanted = [(name, image) for name, peer in PEERS.items() for image in peer.images]
    lines = [json.dumps(records[key]) for key in wanted if key in records]
    missing = [key for key in wanted if key not in records]
    temporary = RECORDS.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    os.replace(temporary, RECORDS)
    if missing:
        sys.exit(f"still to be recorded: {missing}")


if __name__ == "__main__":
    main()
