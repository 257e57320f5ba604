"""How well a pair of generators does on test images."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cyclegan.data import centre_crops
from cyclegan.errors import UserError, cause
from cyclegan.features import read_weights
from cyclegan.images import to_8_bit
from cyclegan.settings import Settings
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
    """(real, fake, reconstruction), each (N, C, H, W) on the CPU with N up to `batch`, of images
    (C, H, W)."""
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
    generators: dict[str, nn.Module], settings: Settings, device: torch.device, batch: int = 8
) -> dict[str, dict[str, float]]:
    """`cycle_scores` of testA ("aba") and testB ("bab"), and their "mean".

    Args:
        generators: by "ab" and "ba".
        settings: of their run; of data, the folder that holds testA and testB.
    """
    results = {}
    for there, back, domain in (("ab", "ba", "A"), ("ba", "ab", "B")):
        real = centre_crops(settings, domain)
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


def check_inception(weights: str) -> None:
    """Reads the weights that torch-fidelity computes FID and KID with, or downloads them: before
    it does, which would run what a pickle says, and before images are translated.

    Args:
        weights: a file; "": torch-fidelity's own, which are downloaded once.

    Raises:
        UserError: torch-fidelity is not installed, the weights cannot be had, or are others.
    """
    fidelity()
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    if weights:
        read_weights(weights, "inception_weights")
    try:
        with redirect_stdout(sys.stderr):
            if not weights:
                torch.hub.load_state_dict_from_url(inception.URL_INCEPTION_V3, weights_only=True)
            inception.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights or None
            )
    except OSError as error:
        raise UserError(
            f"torch-fidelity's weights cannot be downloaded: {cause(error)}; fetch "
            f"{inception.URL_INCEPTION_V3} in another way, and give the file to --inception-weights"
        ) from error
    except (RuntimeError, UnpicklingError) as error:
        raise UserError(f"inception_weights are of another network: {cause(error)}") from error


def distribution_scores(
    generator: nn.Module,
    settings: Settings,
    direction: str,
    device: torch.device,
    batch_size: int = 8,
    **options,
) -> dict[str, float]:
    """FID and KID between the translations of the test images of one domain and the test images of
    the other, as `to_8_bit` shows them, through torch-fidelity.

    Args:
        direction: "ab" or "ba".
        options: more arguments of ``torch_fidelity.calculate_metrics``, such as
            feature_extractor_weights_path for machines without internet.

    Raises:
        UserError: torch-fidelity is not installed, or there are fewer than two images.
    """
    calculate_metrics = fidelity()
    source, target = direction.upper()
    with torch.no_grad():
        batches = _batched(centre_crops(settings, source), batch_size)
        translated = (generator(images.to(device)).cpu() for images in batches)
        fakes = _Images8Bit(fake for batch in translated for fake in batch)
    reals = _Images8Bit(centre_crops(settings, target))
    fewest = min(len(fakes), len(reals))
    if fewest < 2:
        raise UserError(f"FID and KID need two images; got {fewest} in testA or testB")
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
