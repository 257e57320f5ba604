"""SSIM forward and backward in plain PyTorch: the specification of every other backend, and what
runs on devices that have no kernel of their own.

Formulation: docs/mathematics.md. Filters are sums of shifted slices rather than convolutions:
exact in the arithmetic type on every device, where a convolution may round to TF32.
"""

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = {"mps", "xpu"}  # kinds of device


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of values and maps for images of ``dtype``: half types lose nothing."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _working_dtype(x: Tensor) -> torch.dtype:
    # float64 needs no care against cancellation; most time goes into memory either way.
    return torch.float32 if x.device.type in _WITHOUT_FLOAT64 else torch.float64


def _filter(image: Tensor, window: list[float]) -> Tensor:
    """Correlates (..., H, W) with the separable window: (..., H - K + 1, W - K + 1)."""
    for dim in (-2, -1):
        size = image.shape[dim] - len(window) + 1
        out = image.narrow(dim, 0, size) * window[0]
        for offset, tap in enumerate(window[1:], start=1):
            out.add_(image.narrow(dim, offset, size), alpha=tap)
        image = out
    return image


class _Statistics:
    """Everything that SSIM and its gradient need, in the arithmetic type of the images."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        window: list[float],
        c1: float,
        c2: float,
        low: float,
        scale: float,
        same: bool,
    ) -> None:
        self.out_dtype = result_dtype(x.dtype)
        dtype = _working_dtype(x)
        x, y = x.to(dtype), y.to(dtype)
        self.window, self.c1, self.c2, self.scale, self.same = window, c1, c2, scale, same
        # Data far from the range (a bias, another unit) is brought near before it is squared.
        level = torch.maximum(x.amin((-2, -1), True), x.amax((-2, -1), True).clamp(max=low))
        far = ((level - low).abs() * scale > 4) & level.isfinite()
        level = torch.where(far, level, low)
        level_s = 2 * (level - low) * scale
        self.s = ((x - level) + (y - level)) * scale
        self.d = (x - y) * scale
        s, d = self.s, self.d
        if same:  # the padding is the lower end of the range
            s, d = self._pad(s, -level_s), self._pad(d, torch.zeros_like(level_s))
        self.mean_s, self.mean_d = _filter(s, window), _filter(d, window)
        self.var_s = self._variance(s, self.mean_s)
        self.var_d = self._variance(d, self.mean_d)
        self.mu_s, self.mu_d = self.mean_s + level_s, self.mean_d
        mu_s2, mu_d2 = self.mu_s.square(), self.mu_d.square()
        self.mu_s2, self.mu_d2 = mu_s2, mu_d2
        self.n1, self.d1 = (mu_s2 - mu_d2) * 0.5 + c1, (mu_s2 + mu_d2) * 0.5 + c1
        self.n2 = (self.var_s - self.var_d) * 0.5 + c2
        self.d2 = (self.var_s + self.var_d) * 0.5 + c2

    def _pad(self, image: Tensor, value: Tensor) -> Tensor:
        halo = len(self.window) // 2
        height, width = image.shape[-2:]
        shape = (*image.shape[:-2], height + 2 * halo, width + 2 * halo)
        padded = value.expand(shape).clone()
        padded[..., halo : halo + height, halo : halo + width] = image
        return padded

    def _variance(self, image: Tensor, mean: Tensor) -> Tensor:
        # Negative only through rounding. clamp_min keeps NaN.
        return (_filter(image.square(), self.window) - mean.square()).clamp_min(0)

    def _ssim(self) -> Tensor:
        return (self.n1 * self.n2) / (self.d1 * self.d2)

    def map(self) -> Tensor:
        return self._ssim().to(self.out_dtype).contiguous()

    def reduced(self, count: int, per_image: bool) -> Tensor:
        dims = (1, 2, 3) if per_image else (0, 1, 2, 3)
        return (self._ssim().sum(dims) / count).to(self.out_dtype)

    def gradients(self, upstream: Tensor | float) -> tuple[Tensor, Tensor]:
        """Gradients of the sum of ``upstream * map`` by s and by d of images in unit range."""
        r1, r2 = 1 / self.d1, 1 / self.d2
        luminance = upstream * (self.n2 * r2) * r1.square()
        contrast = upstream * (self.n1 * r1) * r2.square()
        by_var_s = contrast * self.var_d
        by_var_d = -contrast * (self.var_s + 2 * self.c2)
        by_mean_s = self.mu_s * self.mu_d2 * luminance - self.mean_s * by_var_s
        by_mean_d = -self.mu_d * (self.mu_s2 + 2 * self.c1) * luminance - self.mean_d * by_var_d
        by_s = self._adjoint(by_mean_s) + self.s * self._adjoint(by_var_s)
        by_d = self._adjoint(by_mean_d) + self.d * self._adjoint(by_var_d)
        return by_s, by_d

    def _adjoint(self, image: Tensor) -> Tensor:
        halo = len(self.window) // 2
        margin = halo if self.same else 2 * halo
        return _filter(torch.nn.functional.pad(image, [margin] * 4), self.window)


def _like(image: Tensor, grad: Tensor) -> Tensor:
    """``grad`` with the dtype and strides that the ops promise: those of a copy of ``image``."""
    return torch.empty_like(image).copy_(grad)


def ssim_map(x: Tensor, y: Tensor, *settings) -> Tensor:
    return _Statistics(x, y, *settings).map()


def ssim_map_grad(upstream: Tensor, x: Tensor, y: Tensor, *settings) -> Tensor:
    statistics = _Statistics(x, y, *settings)
    by_s, by_d = statistics.gradients(upstream * statistics.scale)
    return _like(x, by_s + by_d)


def ssim_map_grad_both(upstream: Tensor, x: Tensor, y: Tensor, *settings) -> tuple[Tensor, Tensor]:
    statistics = _Statistics(x, y, *settings)
    by_s, by_d = statistics.gradients(upstream * statistics.scale)
    return _like(x, by_s + by_d), _like(y, by_s - by_d)


def ssim_reduced(x: Tensor, y: Tensor, *settings) -> Tensor:
    *settings, count, per_image = settings
    return _Statistics(x, y, *settings).reduced(count, per_image)


def ssim_reduced_grad(x: Tensor, y: Tensor, *settings) -> tuple[Tensor, Tensor]:
    *settings, count, per_image = settings
    statistics = _Statistics(x, y, *settings)
    by_s, by_d = statistics.gradients(1.0)
    return statistics.reduced(count, per_image), _like(x, by_s + by_d)


def ssim_reduced_grad_both(x: Tensor, y: Tensor, *settings) -> tuple[Tensor, Tensor, Tensor]:
    *settings, count, per_image = settings
    statistics = _Statistics(x, y, *settings)
    by_s, by_d = statistics.gradients(1.0)
    value = statistics.reduced(count, per_image)
    return value, _like(x, by_s + by_d), _like(y, by_s - by_d)


def scale_grad(grad: Tensor, upstream: Tensor, scale: float, count: int) -> Tensor:
    return _like(grad, grad * (upstream.reshape(-1, 1, 1, 1) * (scale / count)))
