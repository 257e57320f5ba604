"""The public functions as ``nn.Module``. Arguments are checked once, in the constructor."""

import inspect
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, cast, overload

from torch import Tensor, nn
from typing_extensions import TypeVar, Unpack

from ssimfast.arguments import not_scriptable, number
from ssimfast.measures import MixtureMeasure, MSSSIMMeasure, SSIMMeasure, Windowed
from ssimfast.presets import resolve
from ssimfast.typing import (
    MixLossArguments,
    MSSSIMArguments,
    ReturnMap,
    Shown,
    SimilarityLossArguments,
    SSIMArguments,
)

_Terms = tuple[Tensor, dict[str, Tensor]]
_Map = tuple[Tensor, Tensor]
_TermsAndMap = tuple[Tensor, dict[str, Tensor], Tensor]
# Result of SSIM: the value or, with ``return_map``, the value and the map.
_Value = TypeVar("_Value", bound=Tensor | _Map, default=Tensor)
# Result of SimilarityLoss: the loss, and its terms and its map if they are asked for.
_Loss = TypeVar("_Loss", bound=Tensor | _Terms | _Map | _TermsAndMap, default=Tensor)


def _keyword(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


@not_scriptable
class _Module(nn.Module):
    """Base class: a measure with fixed arguments.

    Subclasses declare ``__init__`` and ``__call__`` for type checkers, because nn.Module does not.
    """

    _measure: ClassVar[type[Windowed]]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = inspect.Signature(
            [_keyword(f.name, f.default) for f in fields(cls._measure)] + [_keyword("preset", None)]
        )

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        known = frozenset(field.name for field in fields(self._measure))
        arguments = resolve(arguments, known)
        for name in arguments:
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}")
        self.measure = self._measure(**arguments)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._shown().items())

    def _shown(self) -> dict[str, Any]:
        return {field.name: getattr(self.measure, field.name) for field in fields(self.measure)}


class SSIM(_Module, Generic[_Value]):
    """:func:`ssimfast.ssim` with fixed arguments, which that function documents."""

    _measure = SSIMMeasure
    measure: SSIMMeasure

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: "SSIM[Tensor]",
            *,
            return_map: Literal[False] = False,
            **arguments: Unpack[SSIMArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "SSIM[_Map]", *, return_map: Shown, **arguments: Unpack[SSIMArguments]
        ) -> None: ...

        @overload
        def __init__(
            self: "SSIM[Any]", *, return_map: ReturnMap, **arguments: Unpack[SSIMArguments]
        ) -> None: ...

        def __init__(self, **arguments: Any) -> None: ...

        def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> _Value: ...

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> _Value:
        """Returns SSIM: shape (), (N,) or that of the map, by ``reduction``; the map too if
        ``return_map``."""
        return cast(_Value, self.measure(x, y, mask))


class SSIMLoss(SSIM[_Value]):
    """``1 - SSIM``, from 0 for equal images to 2, with the arguments of :func:`ssimfast.ssim`.

    With ``reduction="sum"``, the loss is the sum of ``1 - SSIM`` over all windows, weighted by the
    mask if there is one.
    """

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> _Value:
        """Returns the loss: shape (), (N,) or that of the map, by ``reduction``; the map of SSIM
        too if ``return_map``."""
        return cast(_Value, self.measure.loss(x, y, mask))


class MSSSIM(_Module):
    """:func:`ssimfast.ms_ssim` with fixed arguments, which that function documents."""

    _measure = MSSSIMMeasure
    measure: MSSSIMMeasure

    if TYPE_CHECKING:

        def __init__(self, **arguments: Unpack[MSSSIMArguments]) -> None: ...

        def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns MS-SSIM of (N, C, H, W): shape (), (N,) or (N, C), by ``reduction``."""
        return self.measure(x, y, mask)


class MSSSIMLoss(MSSSIM):
    """``1 - MS-SSIM``, from 0 for equal images to 1, with the arguments of
    :func:`ssimfast.ms_ssim`.

    With ``reduction="sum"``, the loss is the sum of ``1 - MS-SSIM`` over images and channels (over
    images, with joint channels).
    """

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the loss of (N, C, H, W): shape (), (N,) or (N, C), by ``reduction``."""
        return self.measure.loss(x, y, mask)


class SimilarityLoss(_Module, Generic[_Loss]):
    """:func:`ssimfast.similarity_loss` with fixed arguments, which that function documents."""

    _measure = MixtureMeasure
    measure: MixtureMeasure

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: "SimilarityLoss[Tensor]",
            *,
            return_terms: Literal[False] = False,
            return_map: Literal[False] = False,
            **arguments: Unpack[SimilarityLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "SimilarityLoss[_Terms]",
            *,
            return_terms: Literal[True],
            return_map: Literal[False] = False,
            **arguments: Unpack[SimilarityLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "SimilarityLoss[_Map]",
            *,
            return_terms: Literal[False] = False,
            return_map: Shown,
            **arguments: Unpack[SimilarityLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "SimilarityLoss[_TermsAndMap]",
            *,
            return_terms: Literal[True],
            return_map: Shown,
            **arguments: Unpack[SimilarityLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "SimilarityLoss[Any]",
            *,
            return_terms: bool = False,
            return_map: ReturnMap = False,
            **arguments: Unpack[SimilarityLossArguments],
        ) -> None: ...

        def __init__(self, **arguments: Any) -> None: ...

        def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> _Loss: ...

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> _Loss:
        """Returns the loss of (N, C, H, W), shape () or (N,); its terms too if ``return_terms``,
        and the map if ``return_map``."""
        return cast(_Loss, self.measure(x, y, mask))


class MixLoss(SimilarityLoss[_Loss]):
    """``alpha (1 - MS-SSIM) + (1 - alpha) mean(G * |x - y|)``, with G the coarsest level's window.

    Zhao, Gallo, Frosio and Kautz, "Loss functions for image restoration with neural networks",
    IEEE TCI 3(1), 2017, section III.D, but with the pyramid of Wang et al. 2003 in place of the
    five Gaussians. Takes the arguments of :func:`ssimfast.similarity_loss` except its five factors.

    Args:
        alpha: weight of the MS-SSIM term, from 0 to 1.

    Raises:
        TypeError, ValueError: as in :func:`ssimfast.similarity_loss`, and for a wrong ``alpha``.
    """

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: "MixLoss[Tensor]",
            *,
            alpha: float = 0.84,
            return_terms: Literal[False] = False,
            return_map: Literal[False] = False,
            **arguments: Unpack[MixLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "MixLoss[_Terms]",
            *,
            alpha: float = 0.84,
            return_terms: Literal[True],
            return_map: Literal[False] = False,
            **arguments: Unpack[MixLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "MixLoss[_Map]",
            *,
            alpha: float = 0.84,
            return_terms: Literal[False] = False,
            return_map: Shown,
            **arguments: Unpack[MixLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "MixLoss[_TermsAndMap]",
            *,
            alpha: float = 0.84,
            return_terms: Literal[True],
            return_map: Shown,
            **arguments: Unpack[MixLossArguments],
        ) -> None: ...

        @overload
        def __init__(
            self: "MixLoss[Any]",
            *,
            alpha: float = 0.84,
            return_terms: bool = False,
            return_map: ReturnMap = False,
            **arguments: Unpack[MixLossArguments],
        ) -> None: ...

    def __init__(self, *, alpha: float = 0.84, **arguments: Any) -> None:
        alpha = number("alpha", alpha, least=0.0)
        if alpha > 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
        for name in MixtureMeasure.TERMS:
            if name in arguments:
                raise TypeError(f"MixLoss has no argument {name!r}; SimilarityLoss has")
        mixture = {"ssim": 0.0, "ms_ssim": alpha, "gaussian_l1": 1 - alpha}
        _Module.__init__(self, **mixture, **arguments)
        self.alpha = alpha

    def _shown(self) -> dict[str, Any]:
        others = super()._shown().items()
        return {"alpha": self.alpha} | {k: v for k, v in others if k not in MixtureMeasure.TERMS}


MixLoss.__signature__ = inspect.Signature(
    [_keyword("alpha", 0.84)]
    + [
        parameter
        for name, parameter in SimilarityLoss.__signature__.parameters.items()
        if name not in MixtureMeasure.TERMS
    ]
)
