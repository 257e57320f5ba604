"""Presets: the conventions of other libraries as arguments of ssimfast, as ``preset="skimage"``."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ssimfast.arguments import choice, not_scriptable
from ssimfast.typing import Preset

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_WANG = {"window": "gaussian", "window_size": 11, "sigma": 1.5, "k1": 0.01, "k2": 0.03}
_WANG |= {"sample_covariance": False, "padding": "valid"}
_MULTI_SCALE = {"odd": "floor", "negative": "relu", "channels": "separate"}

PRESETS: dict[Preset, dict[str, Any]] = {
    "wang2004": _WANG | _MULTI_SCALE,
    "pytorch-msssim": _WANG | _MULTI_SCALE | {"odd": "pad"},
    "torchmetrics": _WANG | _MULTI_SCALE | {"padding": "reflect", "channels": "joint"},
    "skimage": _WANG
    | _MULTI_SCALE
    | {"window": "uniform", "window_size": 7, "sample_covariance": True},
    "tf": _WANG | _MULTI_SCALE | {"odd": "replicate"},
    "fused-ssim": _WANG | _MULTI_SCALE | {"padding": "same"},
    "3dgs": _WANG | _MULTI_SCALE | {"padding": "same"},
}


def resolve(arguments: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Replaces ``preset`` by its arguments. Given arguments win; names not in ``known`` are left
    out."""
    preset: Preset | None = arguments.pop("preset", None)
    if preset is None:
        return arguments
    values = PRESETS[choice("preset", preset, tuple(PRESETS))]
    return {name: values[name] for name in values if name in known} | arguments


def with_presets(
    function: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Makes a function take ``preset``, whose arguments replace those that are not given."""
    known = frozenset(function.__kwdefaults__ or ())

    @functools.wraps(function)
    def wrapper(*images: _Parameters.args, **arguments: _Parameters.kwargs) -> _Result:
        if "preset" in arguments:
            return function(*images, **resolve(arguments, known))
        return function(*images, **arguments)

    return not_scriptable(wrapper)
