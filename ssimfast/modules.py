"""SSIM as ``nn.Module``: arguments are checked once, when the module is made."""

from torch import Tensor, nn

from ssimfast.functional import Statistic


class SSIM(nn.Module):
    """:func:`ssimfast.ssim` with fixed arguments; see there for their meaning."""

    def __init__(
        self,
        *,
        value_range: tuple[float, float] | None = None,
        data_range: float = 1.0,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "valid",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.arguments = {
            "value_range": value_range,
            "data_range": data_range,
            "window_size": window_size,
            "sigma": sigma,
            "k1": k1,
            "k2": k2,
            "padding": padding,
            "reduction": reduction,
        }
        self.statistic = Statistic.of(**self.arguments)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) to SSIM: shape (), (N,) or that of the map, by ``reduction``."""
        return self.statistic(x, y)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())


class SSIMLoss(SSIM):
    """``1 - SSIM``, from 0 (equal) to 2; arguments of :func:`ssimfast.ssim`.

    With ``reduction="sum"`` it is the sum of ``1 - SSIM`` over all positions.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) to the loss: shape (), (N,) or that of the map."""
        if self.statistic.reduction == "sum":
            return (1 - self.statistic.reduced(x, y, "mean")) * self.statistic.positions(x)
        return 1 - self.statistic(x, y)
