"""How well a pair of generators does on test images."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cyclegan.data import centre_crops
from cyclegan.errors import UserError
from cyclegan.files import to_8_bit
from ssimfast import ms_ssim, ssim

METRICS = {  # with their titles
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "psnr": "PSNR (dB)",
    "colour_error": "colour error (of 255)",
}


@torch.no_grad()
def round_trips(
    real: Iterable[Tensor], there: nn.Module, back: nn.Module, device: torch.device, batch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(real, fake, reconstruction), each (N, 3, H, W) on the CPU with N up to `batch`, of images
    (3, H, W)."""
    for images in _batched(real, batch):
        fake = there(images.to(device))
        yield images, fake.cpu(), back(fake).cpu()


def _batched(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    if size < 1:
        raise UserError(f"batch_size must be positive; got {size}")
    held: list[Tensor] = []
    for image in images:
        held.append(image)
        if len(held) == size:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def cycle_scores(trips: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Mean over images of SSIM, MS-SSIM (as many scales as fit), PSNR in dB (of a mean squared
    error of at least 1e-10) and `colour_error` between images and their reconstructions."""
    scores: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    for real, _, rec in trips:
        arguments = {"value_range": (-1, 1), "reduction": "batch"}
        scores["ssim"].append(ssim(rec, real, **arguments))
        scores["ms_ssim"].append(ms_ssim(rec, real, weights="auto", **arguments))
        error = ((rec - real) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        scores["psnr"].append(-10 * error.log10())
        scores["colour_error"].append(colour_error(rec, real))
    return {name: torch.cat(parts).mean().item() for name, parts in scores.items()}


def colour_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the mean colours of blocks of 16x16 pixels, in levels of 8-bit
    images: (N, C, H, W) twice, in [-1, 1] -> (N,). Structure that is wrong hardly counts."""
    return 127.5 * F.avg_pool2d(x - y, 16).abs().mean((1, 2, 3))


def evaluate(
    generators: dict[str, nn.Module],
    data: Path,
    image_size: int,
    device: torch.device,
    batch: int = 8,
) -> dict[str, dict[str, float]]:
    """`cycle_scores` of testA ("aba") and testB ("bab"), and their "mean".

    Args:
        generators: by "ab" and "ba".
        data: folder with testA and testB.
        image_size: side of the centre crops.
    """
    results = {}
    for there, back, folder in (("ab", "ba", "testA"), ("ba", "ab", "testB")):
        real = centre_crops(data / folder, image_size)
        trips = round_trips(real, generators[there], generators[back], device, batch)
        results[there + back[1]] = cycle_scores(trips)
    results["mean"] = mean_scores(*results.values())
    return results


def mean_scores(*scores: dict[str, float]) -> dict[str, float]:
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}


class _Images8Bit(Dataset):
    """(3, H, W) of uint8, as torch-fidelity takes them."""

    def __init__(self, images: Iterable[Tensor]):
        self.images = [to_8_bit(image) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def fidelity() -> Callable[..., dict]:
    """What computes FID and KID.

    Raises:
        UserError: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError:
        raise UserError("FID and KID need torch-fidelity: pip install torch-fidelity") from None
    return calculate_metrics


def distribution_scores(
    generator: nn.Module,
    source: Path,
    target: Path,
    image_size: int,
    device: torch.device,
    batch_size: int = 8,
    **options,
) -> dict[str, float]:
    """FID and KID between translations of the images of `source` and those of `target`, through
    torch-fidelity.

    Args:
        options: more arguments of ``torch_fidelity.calculate_metrics``, such as
            feature_extractor_weights_path for machines without internet.

    Raises:
        UserError: torch-fidelity is not installed, or there are fewer than two images.
    """
    calculate_metrics = fidelity()
    with torch.no_grad():
        batches = _batched(centre_crops(source, image_size), batch_size)
        translated = (generator(images.to(device)).cpu() for images in batches)
        fakes = _Images8Bit(fake for batch in translated for fake in batch)
    reals = _Images8Bit(centre_crops(target, image_size))
    fewest = min(len(fakes), len(reals))
    if fewest < 2:
        raise UserError(f"FID and KID need two images; got {fewest} in {source} or {target}")
    metrics = calculate_metrics(
        input1=fakes,
        input2=reals,
        fid=True,
        kid=True,
        kid_subset_size=min(1000, fewest),
        cuda=device.type == "cuda",
        batch_size=batch_size,
        save_cpu_ram=True,  # no loader processes: the images are in memory
        verbose=False,
        **options,
    )
    return {
        "fid": float(metrics["frechet_inception_distance"]),
        "kid": float(metrics["kernel_inception_distance_mean"]),
    }
