"""Definition and registration of the ops: compiled extension, fallback, Triton and fake kernels.

For each op there is also one function that calls it with keyword arguments.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssimfast.backends import constants, reference
from ssimfast.backends.constants import value_dtype, widest_dtype
from ssimfast.ops import multiscale
from ssimfast.ops.checks import checked
from ssimfast.ops.multiscale import new_pooled
from ssimfast.ops.schemas import ARGUMENTS, DIGEST, SCHEMAS, Levels, Loss, Statistic

_PACKAGE = Path(__file__).parents[1]
_Function = Callable[..., Any]


def _load_extension() -> ModuleType | None:
    """Imports ``ssimfast._C``, which registers the compiled kernels. None if it was not built."""
    if find_spec("ssimfast._C") is None:
        if (_PACKAGE.parent / "setup.py").exists():
            warnings.warn(
                "ssimfast runs without its compiled kernels, from its sources in "
                f"{_PACKAGE.parent}; run Python elsewhere to use an installed ssimfast, or "
                "pip install -e . there",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
    try:
        extension = import_module("ssimfast._C")
    except ImportError as error:
        raise ImportError(
            f"ssimfast._C does not load with torch {torch.__version__} ({error}); it needs torch "
            "2.10 or newer, and otherwise to be built again where the sources are: "
            "pip install --force-reinstall --no-deps --no-cache-dir ."
        ) from error
    if getattr(extension, "schemas", None) != DIGEST:
        raise ImportError(
            f"ssimfast._C ({extension.__file__}) was compiled from other sources than those in "
            f"{_PACKAGE}: build it again, with pip install -e . or setup.py build_ext --inplace"
        )
    extension.instruction_set()  # raises if this CPU lacks the one in SSIMFAST_CPU_ISA
    return extension


# Loaded before the ops are defined, so that a second import after an error raises the same error.
extension = _load_extension()

for _name, _schema in SCHEMAS.items():
    torch.library.define(f"ssimfast::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))

# The ops by name. They are looked up once, because a lookup takes as long as a small kernel.
OPS: dict[str, _Function] = {name: getattr(torch.ops.ssimfast, name).default for name in SCHEMAS}


# ---- implementations in Python ------------------------------------------------------------------


def by_position(name: str, function: _Function) -> _Function:
    """Turns a function into a kernel for the dispatcher.

    The kernel passes its arguments by name and packs the fields of ``Statistic``, ``Loss`` and
    ``Levels`` into one argument each.
    """
    names = ARGUMENTS[name]
    kinds: dict[str, Any] = {"statistic": Statistic, "loss": Loss, "levels": Levels}
    packed = {key: kind for key, kind in kinds.items() if set(kind._fields) <= set(names)}

    def kernel(*values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        for key, kind in packed.items():
            given[key] = kind(*(given.pop(field) for field in kind._fields))
        return function(**given)

    return kernel


def _sweep_levels_by_reference(**given: Any) -> Any:
    return multiscale.sweep_levels(reference.sweep, reference.combine_levels, **given)


def _by_triton(name: str) -> _Function:
    """The Triton implementation of an op, which imports Triton at the first call."""

    def function(**given: Any) -> Any:
        from ssimfast.backends.triton import launch

        return launch.OPS[name](**given)

    return function


def _implement(name: str, key: str, function: _Function) -> None:
    torch.library.impl(f"ssimfast::{name}", key)(by_position(name, function))


REFERENCE: dict[str, _Function] = {
    name: checked(name, getattr(reference, name, _sweep_levels_by_reference)) for name in SCHEMAS
}

# The dispatcher uses these kernels for every device that has no kernel of its own.
for _name, _by_reference in REFERENCE.items():
    _implement(_name, "CompositeExplicitAutograd", _by_reference)


def _register_triton() -> set[str]:
    """Registers Triton kernels for GPUs without compiled ones; returns their device types."""
    chosen = os.environ.get("SSIMFAST_CUDA_BACKEND", "")
    if chosen not in ("", "cuda", "triton"):
        raise ValueError(f'SSIMFAST_CUDA_BACKEND must be "cuda" or "triton", got {chosen!r}')
    devices = set()
    if torch.version.cuda is not None or torch.version.hip is not None:
        compiled = extension is not None and extension.cuda_runtime_version is not None
        if chosen == "cuda" and not compiled:
            raise ImportError("SSIMFAST_CUDA_BACKEND=cuda, but ssimfast was built without nvcc")
        # The extension registers no CUDA kernels if the environment chooses Triton.
        if chosen == "triton" or not compiled:
            devices.add("cuda")
    if torch.xpu.is_available():  # the kernels sum in float64, which not all Intel GPUs have
        numbers = range(torch.xpu.device_count())
        if all(torch.xpu.get_device_properties(i).has_fp64 for i in numbers):
            devices.add("xpu")
    if find_spec("triton") is None:
        if devices and chosen == "triton":
            raise ImportError("SSIMFAST_CUDA_BACKEND=triton, but triton is not installed")
        return set()
    for device in devices:
        for name in SCHEMAS:
            _implement(name, device.upper(), _by_triton(name))
    return devices


_triton_devices = _register_triton()


def backends() -> dict[str, str]:
    """Maps each device type to its backend: ``cpu``, ``cuda``, ``triton`` or ``reference``.

    ``cpu`` and ``cuda`` are kernels compiled at installation, ``triton`` is kernels compiled at
    first use, and ``reference`` is plain PyTorch operations. The keys are "cpu", "cuda", "xpu" and
    "mps".
    """
    served = dict.fromkeys(("cpu", "cuda", "xpu", "mps"), "reference")
    if extension is not None:
        served["cpu"] = "cpu"
        if extension.cuda_runtime_version is not None:
            served["cuda"] = "cuda"
    return served | dict.fromkeys(sorted(_triton_devices), "triton")


# ---- fake kernels: shapes, dtypes and strides of the results ------------------------------------


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, Loss)):
            yield from _tensors(value)


def _on_one_device(fake: _Function) -> _Function:
    def kernel(**given: Any) -> Any:
        devices = sorted({str(tensor.device) for tensor in _tensors(given.values())})
        if len(devices) > 1:
            raise RuntimeError(f"ssimfast: tensors are on {' and '.join(devices)}")
        return fake(**given)

    return kernel


def _fake_grads(x: Tensor, y: Tensor, gradients: int) -> list[Tensor]:
    return [torch.empty_like(image) for image in (x, y)[:gradients]]


def _fake_maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool
) -> list[Tensor]:
    shape = (*x.shape[:2], *statistic.map_sizes(x.shape[2:]))
    return [x.new_empty(shape, dtype=value_dtype(x.dtype)) for _ in range(1 + components)]


def _fake_sweep(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    kept: int,
    gradients: int,
    pooling: int,
    map_term: int,
    **_: Any,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    value = x.new_empty(x.shape[:kept], dtype=value_dtype(x.dtype))
    terms = x.new_empty((*value.shape, constants.TERMS), dtype=widest_dtype(x))
    images = 0 if pooling == constants.POOLINGS["none"] else 2
    pooled = [new_pooled(x, pooling) for _ in range(images)]
    maps = _fake_maps(x, y, None, statistic, components=False) if map_term >= 0 else []
    return value, terms, _fake_grads(x, y, gradients), pooled, maps


def _fake_sweep_levels(
    x: Tensor, y: Tensor, levels: Levels, kept: int, gradients: int, **_: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    value = x.new_empty(x.shape[:kept], dtype=value_dtype(x.dtype))
    terms = x.new_empty((*value.shape, constants.TERMS), dtype=widest_dtype(x))
    slopes = x.new_empty((*x.shape[:2], len(levels.exponents)), dtype=widest_dtype(x))
    grads: list[Tensor] = []
    for level in range(len(levels.exponents)):
        if level > 0:
            x, y = new_pooled(x, levels.pooling), new_pooled(y, levels.pooling)
        grads += _fake_grads(x, y, gradients)
    return value, terms, slopes, grads


def _fake_combine_levels(terms: list[Tensor], kept: int, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = terms[0].shape[:2]
    shape = (batch, channels)[:kept]
    return (
        terms[0].new_empty(shape),
        terms[0].new_empty((*shape, constants.TERMS)),
        terms[0].new_empty((batch, channels, len(terms))),
    )


_FAKES: dict[str, _Function] = {
    "maps": _fake_maps,
    "maps_grad": lambda x, y, gradients, **_: _fake_grads(x, y, gradients),
    "sweep": _fake_sweep,
    "sweep_levels": _fake_sweep_levels,
    "combine_levels": _fake_combine_levels,
    "scale_": lambda **_: None,
    "collapse_": lambda **_: None,
}

for _name, _fake in _FAKES.items():
    _kernel = by_position(_name, _on_one_device(_fake))
    torch.library.register_fake(f"ssimfast::{_name}")(_kernel)


# ---- calls --------------------------------------------------------------------------------------


class Swept(NamedTuple):
    """Results of ``sweep``."""

    value: Tensor
    terms: Tensor
    grads: list[Tensor]
    pooled: list[Tensor]
    maps: list[Tensor]


class SweptLevels(NamedTuple):
    """Results of ``sweep_levels``."""

    value: Tensor
    terms: Tensor
    slopes: Tensor
    grads: list[Tensor]


def maps(
    x: Tensor, y: Tensor, mask: Tensor | None, statistic: Statistic, components: bool
) -> list[Tensor]:
    result: list[Tensor] = OPS["maps"](x, y, mask, *statistic, components)
    return result


def maps_grad(
    upstream: list[Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    statistic: Statistic,
    gradients: int,
) -> list[Tensor]:
    grads: list[Tensor] = OPS["maps_grad"](upstream, x, y, mask, *statistic, gradients)
    return grads


def sweep(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    *,
    mask: Tensor | None = None,
    mask_factors: Tensor | None = None,
    kept: int,
    gradients: int,
    wanted: int,
    count: int,
    grad_scale: float = 1.0,
    grad_count: int = 1,
    plane_weights: Tensor | None = None,
    pooling: int = constants.POOLINGS["none"],
    map_term: int = -1,
) -> Swept:
    rest = (wanted, count, grad_scale, grad_count, plane_weights, pooling, map_term)
    images = (x, y, mask, mask_factors)
    return Swept(*OPS["sweep"](*images, *statistic, *loss, kept, gradients, *rest))


def sweep_levels(
    x: Tensor,
    y: Tensor,
    statistic: Statistic,
    loss: Loss,
    levels: Levels,
    *,
    kept: int,
    gradients: int,
) -> SweptLevels:
    rest = (kept, gradients, *levels)
    return SweptLevels(*OPS["sweep_levels"](x, y, *statistic, *loss, *rest))


def combine_levels(
    terms: list[Tensor],
    *,
    positions: list[int],
    exponents: list[float],
    negative: int,
    joint: bool,
    weights: list[float],
    constant: float,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    combined: tuple[Tensor, Tensor, Tensor] = OPS["combine_levels"](
        terms, positions, exponents, negative, joint, weights, constant, kept
    )
    return combined


def scale_(grad: Tensor, upstream: Tensor, factor: float, count: int) -> None:
    OPS["scale_"](grad, upstream, factor, count)


def collapse_(
    finest: Tensor,
    coarser: list[Tensor],
    slopes: Tensor,
    upstream: Tensor,
    *,
    low: float,
    scale: float,
    pooling: int,
    x: Tensor | None,
    y: Tensor | None,
    pixel_weights: list[float],
    rows: Tensor | None,
    columns: Tensor | None,
) -> None:
    pixels = (x, y, pixel_weights, rows, columns)
    OPS["collapse_"](finest, coarser, slopes, upstream, low, scale, pooling, *pixels)


# ---- second derivatives under torch.compile -----------------------------------------------------

torch.library.define(
    "ssimfast::depend_on",
    "(Tensor upstream, Tensor[] images) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("ssimfast::depend_on", "CompositeExplicitAutograd")(
    lambda upstream, images: upstream.clone()
)
torch.library.register_fake("ssimfast::depend_on")(
    lambda upstream, images: torch.empty_like(upstream)
)


def depend_on(upstream: Tensor, images: list[Tensor]) -> Tensor:
    """A copy of ``upstream`` for which torch.compile keeps the images until the backward pass.

    torch.compile refuses second derivatives only w.r.t. tensors that it keeps. It would take the
    gradient for a constant w.r.t. others.
    """
    copy: Tensor = torch.ops.ssimfast.depend_on(upstream, images)
    return copy
