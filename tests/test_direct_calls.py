"""Ops called directly, on every backend: with arguments that the public functions never give, which
must be refused before memory is touched; and in place, which autograd must notice."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import emulated
import pytest
import test_ops
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ssimfast.ops import library

Op = Callable[..., Any]


def by_reference(name: str) -> Op:
    """The op as a device without kernels of its own gets it."""
    op = getattr(torch.ops.ssimfast, name).default
    device = torch._C.DispatchKeySet(torch._C.DispatchKey.MPS)
    return lambda *arguments: op.redispatch(device, *arguments)


def by_triton(name: str) -> Op:
    from ssimfast.backends.triton import launch

    return library.by_position(name, launch.OPS[name])


class Kernels(NamedTuple):
    """The ops of a backend."""

    names: list[str]
    needs: tuple[str, ...]
    op: Callable[[str], Op]


EVERY = list(library.SCHEMAS)
KERNELS = {
    "cpu": Kernels(EVERY, ("extension",), lambda name: getattr(torch.ops.ssimfast, name)),
    "reference": Kernels(EVERY, (), by_reference),
    "cuda-emulated": Kernels(
        [name for name in EVERY if name != "combine_levels"],
        ("compiler", "sources"),
        lambda name: emulated.load()[name],
    ),
    "triton": Kernels(EVERY, ("triton",), by_triton),
}
every_backend = pytest.mark.parametrize(
    "kernels",
    [pytest.param(of, id=id, marks=pytest.mark.needs(*of.needs)) for id, of in KERNELS.items()],
)
# Lanes of interpreted Triton kernels that no result depends on hold anything.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def arguments(name: str) -> dict[str, Any]:
    """Arguments of an op, by their names, with everything that is optional."""
    return test_ops.arguments(name, True, torch.float32, "contiguous")


# ---- what must be refused -----------------------------------------------------------------------

# Arguments of which every value has a meaning.
FREE = {"c1", "c2", "low", "scale", "same", "constant", "joint", "components", "mask"}
FREE |= {"mask_factors"}
FREE |= {"factor", "grad_scale"}
BAD_NUMBERS = {
    "window": [[], [0.5, 0.5], [1.0] * 35, [0.1, 0.2, 0.3, 0.2, 0.2]],
    "sizes": [[], [4], [3], [7], [3, 3], [2, 3], [6, -1], [1, 1, 3], [3, 1, 1, 0]],
    "map_term": [-2, 2],
    "exponents": [[], [0.5] * 17],
    "weights": [[1.0] * 4, []],
    "pixel_weights": [[1.0] * 2, []],
    "positions": [[], [9, 9, 0], [9, 9, -9]],
    "wanted": [-1, 32],
    "count": [0, -72],
    "grad_count": [0, -3],
    "negative": [-1, 3],
    "kept": [-1, 3],
    "gradients": [-1, 3],
    "pooling": [-1, 4],
}


def kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def bad_tensors(tensor: Tensor) -> list[Tensor]:
    """Of another shape, of a dtype that no op takes there, elsewhere."""
    shape = tensor[..., 1:] if tensor.dim() else tensor[None]
    return [shape, tensor.to(torch.int32), tensor.to("meta")]


def bad_values(argument: str, value: Any) -> list[Any]:
    """What must be refused in the place of a value."""
    if argument in BAD_NUMBERS:
        return BAD_NUMBERS[argument]
    if isinstance(value, Tensor):
        bad = bad_tensors(value)
        return bad[1:] if argument == "grad" else bad  # which may have any shape
    lists = [
        [*value[:i], bad, *value[i + 1 :]]
        for i in range(len(value))
        for bad in bad_tensors(value[i])
    ]
    return [*lists, [], value * 17]


def bad_changes(right: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of arguments, by name, each of which must be refused."""
    for argument, value in right.items():
        if argument not in FREE:
            yield from ({argument: bad} for bad in bad_values(argument, value))
    if "window" in right:
        x, y = right["x"], right["y"]
        yield {"x": x.int(), "y": y.int()}
        yield {"x": x[0, 0], "y": y[0, 0]}
        yield {"x": x[..., :4, :4], "y": y[..., :4, :4], "same": False}
        if "gradients" in right:
            yield {"x": x.byte(), "y": y.byte()}
            yield {"y": y.byte(), "gradients": 2}
            yield {"x": x.byte(), "gradients": 1}
        if "upstream" in right:
            yield {"gradients": 0}
    if "mask" in right:
        mask = torch.rand_like(right["x"])
        together = {}
        if "mask_factors" in right:
            factors = torch.rand(*mask.shape[: right["kept"]], 2, dtype=torch.float64)
            together = {"mask_factors": factors, "plane_weights": None, "pooling": 0}
            yield {"mask": mask, "plane_weights": None, "pooling": 0}
            yield {"mask": mask} | together | {"pooling": 1}
            for bad in bad_tensors(factors):
                yield {"mask": mask} | together | {"mask_factors": bad}
        yield from ({"mask": bad} | together for bad in bad_tensors(mask))
    if "rows" in right:
        yield {"rows": None}
        yield {"rows": None, "columns": None}  # which the weights of `right` need, or a pair
    for grad in {"grad", "finest"} & right.keys():
        yield {grad: right[grad][0]}
    if "exponents" in right and "x" in right:
        yield {"pooling": 0}
        yield {"x": right["x"][..., :1, :], "y": right["y"][..., :1, :], "pooling": 1}
    if "coarser" in right:
        yield {"y": None}


@every_backend
def test_what_would_break_an_op_is_refused(kernels):
    for name in kernels.names:
        op, right = kernels.op(name), arguments(name)
        for change in bad_changes(right):
            with pytest.raises(RuntimeError, match="ssimfast"):
                op(*(right | change).values())
                pytest.fail(f"{name} accepts {tree_map_only(Tensor, kind, change)}")


# ---- in place -----------------------------------------------------------------------------------

IN_PLACE = [name for name in library.SCHEMAS if name.endswith("_")]


@every_backend
@pytest.mark.parametrize("name", IN_PLACE)
def test_autograd_notices_an_op_in_place(kernels, name):
    changed, *rest = arguments(name).values()
    saved = changed.clone().requires_grad_() * 1
    square = saved.square().sum()
    kernels.op(name)(saved.detach(), *rest)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@every_backend
@pytest.mark.parametrize("name", IN_PLACE)
def test_an_expanded_tensor_is_not_written_in_place(kernels, name):
    changed, *rest = arguments(name).values()
    one = changed[:, :1].clone()
    with pytest.raises(RuntimeError, match="expanded|single memory location"):
        kernels.op(name)(one.expand(changed.shape), *rest)
    assert torch.equal(one, changed[:, :1])
