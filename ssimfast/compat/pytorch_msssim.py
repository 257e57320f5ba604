"""The functions and modules of pytorch-msssim 1.0 (https://github.com/VainF/pytorch-msssim).

They differ in this: images smaller than the window are an error, where pytorch-msssim leaves out
the blur along that axis and warns; ``ms_ssim`` takes images only, and smaller ones where fewer
``weights`` ask for fewer scales; ``win`` must be symmetric, not negative, of sum 1 and the same for
all channels; the modules have no ``win``. Half types give float32. Errors call the images x and y.
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
    """SSIM of two batches: :func:`ssimfast.ssim` by the names of pytorch-msssim.

    Args:
        X: images (N, C, H, W) or volumes (N, C, D, H, W), of which spatial sides of 1 are dropped.
        Y: of the same shape, dtype and device.
        data_range: the value of white, black being 0; 255 unless you say otherwise.
        size_average: True for the mean of all, False for one value an image.
        win_size: side of the Gaussian window in pixels, odd, 1 to 33.
        win_sigma: its standard deviation in pixels, > 0.
        win: the window in place of a Gaussian, (C, 1, [1,] 1, size); symmetric, of sum 1 and the
            same for all channels. Its values are read by the host, which waits for a GPU and
            breaks a compiled graph.
        K: (K1, K2) of Wang et al. 2004, >= 0.
        nonnegative_ssim: takes 0 for each channel of an image whose mean is negative.

    Returns:
        Shape () or (N,); float32, or float64 for float64.

    Raises:
        TypeError, ValueError: that name the argument and what came.
    """
    measure = _measure(SSIMMeasure, data_range, size_average, win_size, win_sigma, win, K)
    x, y = _images(X, Y)
    if not flag("nonnegative_ssim", nonnegative_ssim):
        return measure(x, y)
    planes = x.shape[:2]  # each an image of its own
    values = measure.reduced(x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None], None, "batch")
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
    """MS-SSIM of two batches of images: :func:`ssimfast.ms_ssim` by the names of pytorch-msssim.

    Args:
        X: images (N, C, H, W).
        Y: of the same shape, dtype and device.
        data_range, size_average, win_size, win_sigma, win, K: as in :func:`ssim`.
        weights: exponents, one a scale from fine to coarse; those of Wang et al. 2003 unless given.

    Returns:
        Shape () or (N,), values in [0, 1]; float32, or float64 for float64.

    Raises:
        TypeError, ValueError: that name the argument and what came.
    """
    window = (data_range, size_average, win_size, win_sigma, win, K)
    return _measure(MSSSIMMeasure, *window, **_pyramid(weights))(*_images(X, Y))


@not_scriptable
class SSIM(nn.Module):
    """:func:`ssim` with fixed arguments; ``channel`` and ``spatial_dims`` are those of the images,
    whatever is given here."""

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
        # Raises now what it would raise later. Not kept: attributes may be assigned to.
        _measure(SSIMMeasure, data_range, size_average, win_size, win_sigma, None, K)

    if TYPE_CHECKING:  # nn.Module takes and returns anything

        def __call__(self, X: Tensor, Y: Tensor) -> Tensor: ...

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Images or volumes to SSIM: shape () or, with ``size_average=False``, (N,)."""
        window = (self.data_range, self.size_average, self.win_size, self.win_sigma, None, self.K)
        return ssim(X, Y, *window, self.nonnegative_ssim)


@not_scriptable
class MS_SSIM(nn.Module):
    """:func:`ms_ssim` with fixed arguments; ``channel`` and ``spatial_dims`` as for SSIM."""

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
        _measure(MSSSIMMeasure, *window, **_pyramid(weights))  # as for SSIM

    if TYPE_CHECKING:

        def __call__(self, X: Tensor, Y: Tensor) -> Tensor: ...

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Images to MS-SSIM: shape () or, with ``size_average=False``, (N,)."""
        window = (self.data_range, self.size_average, self.win_size, self.win_sigma, None)
        return ms_ssim(X, Y, *window, self.weights, self.K)


def _measure(
    kind: type[_Measure],
    data_range: float | None,
    size_average: bool,
    win_size: int,
    win_sigma: float,
    win: Tensor | None,
    K: tuple[float, float] | list[float],
    **arguments: Any,
) -> _Measure:
    """The measure in the arguments of ours."""
    if not isinstance(K, (tuple, list)) or len(K) != 2:
        raise TypeError(f"K must be a pair (K1, K2), got {K!r}")
    reduction: Reduction = "mean" if flag("size_average", size_average) else "batch"
    if win is not None:
        win_size, win_sigma = 1, 1.0  # of which nothing is asked beside another window
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
    """The checked images or volumes; without spatial sides of 1, a volume is an image."""
    X, Y = checked_images(X, Y, ranks=(4, 5))
    if X.dim() == 5:
        sides = [size for size in X.shape[2:] if size != 1]
        X, Y = (image.reshape(*image.shape[:2], *sides) for image in (X, Y))
    return X, Y
