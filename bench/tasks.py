"""What is measured: the same loss by each library, and one training step around it."""

from collections.abc import Callable

import torch
from torch import Tensor

import ssimfast

Loss = Callable[[Tensor, Tensor], Tensor]


def _peer_ssim(x: Tensor, y: Tensor) -> Tensor:
    from pytorch_msssim import ssim

    return 1 - ssim(x, y, data_range=1.0)


def _peer_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    from pytorch_msssim import ms_ssim

    return 1 - ms_ssim(x, y, data_range=1.0)


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


# By name of the task: the loss by each library. Libraries without the task are compared by the
# nearest that they have, which is said in brackets.
TASKS: dict[str, dict[str, Loss]] = {
    "SSIM": {
        "ssimfast": lambda x, y: 1 - ssimfast.ssim(x, y),
        "pytorch-msssim": _peer_ssim,
    },
    "MS-SSIM": {
        "ssimfast": lambda x, y: 1 - ssimfast.ms_ssim(x, y, preset="pytorch-msssim"),
        "pytorch-msssim": _peer_ms_ssim,
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
}
VOLUME_TASKS = {"SSIM of volumes": TASKS["SSIM"]}
EVERY_TASK = TASKS | VOLUME_TASKS


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two unlike images in [0, 1]; the first wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.rand(shape, generator=generator) for _ in range(2))
    # Half of it in common: unlike images have negative means, at which MS-SSIM has no gradient.
    return x.requires_grad_(), (x.detach() + noise) / 2


def training_step(loss: Loss, x: Tensor, y: Tensor) -> None:
    x.grad = None
    loss(x, y).backward()
