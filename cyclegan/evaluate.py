"""How well a pair of generators does on test images: the same numbers during training, in the
command `evaluate` and in `compare`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import islice
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from cyclegan.data import centre_crops
from cyclegan.errors import UserError, cause
from cyclegan.features import read_weights
from cyclegan.images import as_rgb, to_8_bit
from cyclegan.settings import Settings
from ssimfast import ms_ssim, ssim

BATCH = 8  # images translated at once: another number may change the last bits of a score
METRICS = {  # of reconstructions, with their titles
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "psnr": "PSNR (dB)",
    "colour_error": "colour error (of 255)",
    "lpips": "LPIPS",
}
DISTANCES = {"fid": "FID", "kid": "KID"}  # between translations and the other domain
TITLES = {**METRICS, **DISTANCES}
HIGHER_IS_BETTER = ("ssim", "ms_ssim", "psnr")


@torch.no_grad()
def run_plain(generator: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """generator(images) in float32, on the CPU: without autocast and TF32."""
    plain = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with plain, torch.autocast(device.type, enabled=False):
        return generator(images.to(device)).cpu()


def round_trips(
    real: Iterable[Tensor], there: nn.Module, back: nn.Module, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(real, fake, reconstruction), each (N, C, H, W) on the CPU with N up to BATCH, of images
    (C, H, W)."""
    for images in _batched(real):
        fake = run_plain(there, images, device)
        yield images, fake, run_plain(back, fake, device)


def _batched(images: Iterable[Tensor]) -> Iterator[Tensor]:
    images = iter(images)
    while held := list(islice(images, BATCH)):
        yield torch.stack(held)


def cycle_scores(
    trips: Iterable[tuple[Tensor, Tensor, Tensor]], lpips: nn.Module | None = None
) -> dict[str, float]:
    """Mean over images of SSIM, MS-SSIM (as many scales as fit), PSNR in dB (of a mean squared
    error of at least 1e-10), `colour_error` and, where its network is given, LPIPS between images
    and their reconstructions."""
    scores: dict[str, list[Tensor]] = {name: [] for name in METRICS if name != "lpips" or lpips}
    for real, _, rec in trips:
        arguments = {"value_range": (-1, 1), "reduction": "batch"}
        scores["ssim"].append(ssim(rec, real, **arguments))
        scores["ms_ssim"].append(ms_ssim(rec, real, weights="auto", **arguments))
        error = ((rec - real) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        scores["psnr"].append(-10 * error.log10())
        scores["colour_error"].append(colour_error(rec, real))
        if lpips:
            with torch.no_grad():
                scores["lpips"].append(lpips(as_rgb(rec), as_rgb(real)).flatten())
    return {name: torch.cat(parts).mean().item() for name, parts in scores.items()}


def colour_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the mean colours of blocks of 16x16 pixels, in levels of 8-bit
    images: (N, C, H, W) twice, in [-1, 1] -> (N,). Structure that is wrong hardly counts."""
    return 127.5 * F.avg_pool2d(x - y, 16).abs().mean((1, 2, 3))


def evaluate(
    generators: Mapping[str, nn.Module],
    tests: Mapping[str, Iterable[Tensor]],
    device: torch.device,
    lpips: nn.Module | None = None,
) -> dict[str, dict[str, float]]:
    """`cycle_scores` of the test images of A ("aba") and B ("bab"), and their "mean".

    Args:
        generators: by "ab" and "ba".
        tests: images (C, H, W) in [-1, 1] by "a" and "b".
        lpips: see `lpips_network`.
    """
    results = {}
    for a, b in ("ab", "ba"):
        trips = round_trips(tests[a], generators[a + b], generators[b + a], device)
        results[a + b + a] = cycle_scores(trips, lpips)
    results["mean"] = mean_scores(*results.values())
    return results


def mean_scores(*scores: dict[str, float]) -> dict[str, float]:
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}


def lpips_network(weights: str) -> nn.Module:
    """LPIPS (Zhang et al. 2018) of images (N, 3, H, W) in [-1, 1], by torchmetrics, which brings
    all its weights but those of AlexNet.

    Args:
        weights: file with the state_dict of torchvision's AlexNet.

    Raises:
        UserError: torchmetrics is not installed, or the file holds something else.
    """
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError:
        raise UserError("LPIPS needs torchmetrics: pip install torchmetrics") from None
    state = read_weights(weights, "lpips_weights")
    network = _LPIPS(net="alex", pnet_rand=True)  # its own way to get AlexNet is a download
    try:
        own = {key: state[f"features.{key.split('.', 1)[1]}"] for key in network.net.state_dict()}
        network.net.load_state_dict(own)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"lpips_weights {weights} are not AlexNet's: {cause(error)}") from None
    return network


def fidelity() -> Callable[..., dict]:
    """The function that computes FID and KID.

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


def distances(
    generators: Mapping[str, nn.Module],
    settings: Settings,
    device: torch.device,
    weights: str = "",
) -> dict[str, dict[str, float]]:
    """`distribution_scores` of the translations of all test images, "ab" and "ba", and their
    "mean".

    Args:
        settings: of their run; of data, the folder that holds testA and testB.
        weights: file with torch-fidelity's weights; "": it downloads them.
    """
    options = {"feature_extractor_weights_path": weights or None}
    results = {
        direction: distribution_scores(generator, settings, direction, device, **options)
        for direction, generator in generators.items()
    }
    results["mean"] = mean_scores(*results.values())
    return results


def distribution_scores(
    generator: nn.Module, settings: Settings, direction: str, device: torch.device, **options
) -> dict[str, float]:
    """FID and KID between the translations of the test images of one domain and the test images of
    the other, through torch-fidelity.

    Args:
        direction: "ab" or "ba".
        options: more arguments of ``torch_fidelity.calculate_metrics``.

    Raises:
        UserError: torch-fidelity is not installed, or there are fewer than two images.
    """
    calculate_metrics = fidelity()
    source, target = direction
    batches = _batched(centre_crops(settings, source))
    translated = (run_plain(generator, images, device) for images in batches)
    fakes, reals = (
        [to_8_bit(image) for images in several for image in images]
        for several in (translated, _batched(centre_crops(settings, target)))
    )
    fewest = min(len(fakes), len(reals))
    if fewest < 2:
        raise UserError(f"FID and KID need two images; got {fewest} in testA or testB")
    with torch.random.fork_rng(devices=[]):  # torch-fidelity's loaders draw from the global stream
        metrics = calculate_metrics(
            input1=Subset(fakes, range(len(fakes))),
            input2=Subset(reals, range(len(reals))),
            fid=True,
            kid=True,
            kid_subset_size=min(1000, fewest),
            cuda=device.type == "cuda",
            batch_size=BATCH,
            save_cpu_ram=True,  # no loader processes: the images are in memory
            verbose=False,
            **options,
        )
    return {
        "fid": float(metrics["frechet_inception_distance"]),
        "kid": float(metrics["kernel_inception_distance_mean"]),
    }
