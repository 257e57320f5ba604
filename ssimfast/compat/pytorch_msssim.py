"""Drop-in replacement for pytorch-msssim 1.0 (https://github.com/VainF/pytorch-msssim).

Differences from pytorch-msssim:

- Images smaller than the window raise an error. pytorch-msssim warns and does not blur that axis.
- ``ms_ssim`` does not accept volumes. It accepts smaller images if ``weights`` is shorter.
- ``win`` must be symmetric, non-negative, with sum 1, and the same for all channels. Modules have
  no ``win``.
- float16 and bfloat16 images give float32 values.
- Error messages call the images x and y.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ssimfast.arguments import checked_images, flag, not_scriptable
from ssimfast.backends.constants import MAX_WINDOW_SIZE
from ssimfast.measures import WANG_WEIGHTS, MSSSIMMeasure, SSIMMeasure
from ssimfast.typing import MSSSIMArguments, Reduction

__all__ = ["MS_SSIM", "SSIM", "ms_ssim", "ssim"]

_K = (0.01, 0.03)
_Measure = TypeVar("_Measure", SSIMMeasure, MSSSIMMeasure)


@not_scriptable
def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    K: tuple[float, float] | list[float] = _K,
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM of two batches: :func:`ssimfast.ssim` with the arguments of pytorch-msssim.

    Args:
        X: images (N, C, H, W) or volumes (N, C, D, H, W). Spatial sides of 1 of a volume are
            dropped.
        Y: images or volumes of the same shape, dtype and device.
        data_range: the value of white; black is 0.
        size_average: True for one mean over the batch, False for one value per image.
        win_size: side of the Gaussian window in pixels, odd, 1 to 33.
        win_sigma: standard deviation of the Gaussian in pixels, > 0.
        win: a window that replaces the Gaussian, with shape (C, 1, [1,] 1, size); symmetric,
            non-negative, with sum 1, and the same for all channels. The function copies it to the
            CPU, which waits for the GPU and breaks a compiled graph.
        K: (K1, K2) of Wang et al. 2004, >= 0.
        nonnegative_ssim: True to replace the negative mean of a channel of an image by 0.

    Returns:
        Shape () or (N,); float64 for float64 images, else float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the message names it.
    """
    window = (win_size, win_sigma, win, K)
    measure = _measure(SSIMMeasure, data_range, size_average, *window)
    x, y = _images(X, Y)
    if not flag("nonnegative_ssim", nonnegative_ssim):
        value: Tensor = measure(x, y)
        return value
    planes = x.shape[:2]  # passed as a batch of one-channel images
    by_plane = _measure(SSIMMeasure, data_range, False, *window)
    values: Tensor = by_plane(x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None])
    values = values.relu().reshape(planes)
    return values.mean() if size_average else values.mean(1)


@not_scriptable
def ms_ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    weights: Sequence[float] | None = None,
    K: tuple[float, float] | list[float] = _K,
) -> Tensor:
    """MS-SSIM of two batches: :func:`ssimfast.ms_ssim` with the arguments of pytorch-msssim.

    Args:
        X: images (N, C, H, W).
        Y: images of the same shape, dtype and device.
        data_range, size_average, win_size, win_sigma, win, K: as in :func:`ssim`.
        weights: exponents, one for each pyramid level, finest level first; by default those of Wang
            et al. 2003.

    Returns:
        Shape () or (N,), values in [0, 1]; float64 for float64 images, else float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the message names it.
    """
    window = (data_range, size_average, win_size, win_sigma, win, K)
    return _measure(MSSSIMMeasure, *window, **_pyramid(weights))(*_images(X, Y))


@not_scriptable
class SSIM(nn.Module):
    """:func:`ssim` with fixed arguments. ``channel`` and ``spatial_dims`` are ignored: the shape of
    the images decides."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: tuple[float, float] | list[float] = _K,
        nonnegative_ssim: bool = False,
    ) -> None:
        super().__init__()
        self.data_range, self.win_size, self.win_sigma, self.K = data_range, win_size, win_sigma, K
        self.size_average = size_average
        self.nonnegative_ssim = flag("nonnegative_ssim", nonnegative_ssim)
        # Only checks the arguments. `forward` makes a new measure, because users may change the
        # attributes of the module.
        _measure(SSIMMeasure, data_range, size_average, win_size, win_sigma, None, K)

    if TYPE_CHECKING:  # nn.Module declares no argument and result types

        def __call__(self, X: Tensor, Y: Tensor) -> Tensor: ...

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Returns SSIM of images or volumes: shape (), or (N,) with ``size_average=False``."""
        window = (self.data_range, self.size_average, self.win_size, self.win_sigma, None, self.K)
        return ssim(X, Y, *window, self.nonnegative_ssim)


@not_scriptable
class MS_SSIM(nn.Module):
    """:func:`ms_ssim` with fixed arguments. ``channel`` and ``spatial_dims`` are ignored."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        weights: Sequence[float] | None = None,
        K: tuple[float, float] | list[float] = _K,
    ) -> None:
        super().__init__()
        self.data_range, self.win_size, self.win_sigma, self.K = data_range, win_size, win_sigma, K
        self.size_average, self.weights = size_average, weights
        window = (data_range, size_average, win_size, win_sigma, None, K)
        _measure(MSSSIMMeasure, *window, **_pyramid(weights))  # only checks the arguments

    if TYPE_CHECKING:

        def __call__(self, X: Tensor, Y: Tensor) -> Tensor: ...

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Returns MS-SSIM of images: shape (), or (N,) with ``size_average=False``."""
        window = (self.data_range, self.size_average, self.win_size, self.win_sigma, None)
        return ms_ssim(X, Y, *window, self.weights, self.K)


def _measure(
    kind: type[_Measure],
    data_range: float | Tensor | None,
    size_average: bool,
    win_size: int,
    win_sigma: float,
    win: Tensor | None,
    K: tuple[float, float] | list[float],
    **arguments: Any,
) -> _Measure:
    """The measure for arguments of pytorch-msssim. Raises errors for wrong ones."""
    if not isinstance(K, (tuple, list)) or len(K) != 2:
        raise TypeError(f"K must be a pair (K1, K2), got {K!r}")
    reduction: Reduction = "mean" if flag("size_average", size_average) else "batch"
    if win is not None:
        win_size, win_sigma = 1, 1.0  # unused, so any values must be accepted
    measure = kind(
        data_range=data_range,
        window_size=win_size,
        sigma=win_sigma,
        k1=K[0],
        k2=K[1],
        reduction=reduction,
        **arguments,
    )
    if win is not None:
        measure.use_taps(_taps(win))
    return measure


def _pyramid(weights: Sequence[float] | None) -> MSSSIMArguments:
    return {"weights": WANG_WEIGHTS if weights is None else weights, "odd": "pad"}


def _taps(win: Tensor) -> list[float]:
    if not isinstance(win, Tensor):
        raise TypeError(f"win must be a tensor, got {type(win).__name__}")
    size = win.shape[-1] if win.dim() > 0 else 0
    if size % 2 == 0 or size > MAX_WINDOW_SIZE or not 0 < win.numel() == win.shape[0] * size:
        raise ValueError(
            "win must have shape (C, 1, [1,] 1, size) with size odd and at most "
            f"{MAX_WINDOW_SIZE}, got {tuple(win.shape)}"
        )
    rows = win.detach().to("cpu", torch.float64).reshape(-1, size)
    taps = rows[0]
    if not torch.allclose(rows, taps) or not torch.allclose(taps, taps.flip(0)):
        raise ValueError(f"win must be symmetric and the same for all channels, got {win}")
    if taps.min() < 0:
        raise ValueError(f"win must not be negative, got {win}")
    if abs(taps.sum().item() - 1) > 1e-6:
        raise ValueError(f"win must sum to 1, got {win} of sum {taps.sum().item()}")
    return ((taps + taps.flip(0)) / (2 * taps.sum())).tolist()


def _images(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Checks the images or volumes and drops the spatial sides of 1 of a volume."""
    X, Y = checked_images(X, Y, ranks=(4, 5))
    if X.dim() == 5:
        sides = [size for size in X.shape[2:] if size != 1]
        X, Y = (image.reshape(*image.shape[:2], *sides) for image in (X, Y))
    return X, Y
