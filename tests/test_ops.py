"""The ops as PyTorch sees them: registration, fake kernels, torch.compile, who serves what."""

from typing import Any

import promises
import pytest
import torch
from promises import needs_extension

import ssimfast
from ssimfast.arguments import gaussian_taps
from ssimfast.backends.constants import NEGATIVES, TERMS, value_dtype
from ssimfast.ops import library
from ssimfast.ops.schemas import ARGUMENTS, Loss

SETTINGS = (gaussian_taps(2, 1.5), [5], 1e-4, 9e-4, 0.0, 1.0)
LAYOUTS = {
    "contiguous": lambda image: image,
    "channels_last": promises.LAYOUTS["channels_last"],
    "transposed": promises.LAYOUTS["transposed"],
    "expanded": lambda image: image[:, :1].expand(image.shape),
}


def arguments(name: str, more: bool, dtype: torch.dtype, layout: str) -> dict[str, Any]:
    """Arguments of an op, in the order of its schema; with ``more``, everything that is
    optional."""
    x, y = torch.rand(2, 2, 3, 12, 13).to(dtype)
    x, y = LAYOUTS[layout](x), LAYOUTS[layout](y)
    out_dtype = value_dtype(dtype)
    size = (12, 13) if more else (8, 9)
    maps = torch.rand(2, 2, 3, *size, dtype=out_dtype)
    gradients = 1 + more
    loss = {"kept": gradients, "gradients": gradients}
    if name.startswith("sweep"):
        rows, columns = torch.rand(12, dtype=out_dtype), torch.rand(13, dtype=out_dtype)
        loss |= {"rows": rows if more else None, "columns": columns if more else None}
        loss |= {"constant": 0.7 * more}
    given = {
        "maps": {"components": False, "mask": None},
        "maps_grad": {"upstream": [maps[0]], "mask": None, "gradients": gradients},
        "sweep": loss
        | {
            "weights": [0.5, 0.2, 3.0, 0.4, 0.6] if more else [1.0, 0.0, 0.0, 0.0, 0.0],
            "wanted": 31 if more else 1,
            "count": 72,
            "grad_scale": 0.4 if more else 1.0,
            "grad_count": 3 if more else 1,
            "plane_weights": torch.rand(2, 3, 2, dtype=out_dtype) if more else None,
            "pooling": 2,
            "map_term": 1 if more else -1,
            "mask": None,
            "mask_factors": None,
        },
        "sweep_levels": loss
        | {
            "weights": [0.5, 0.2, 0.3, 0.4, 0.6] if more else [0.0, 1.0, 0.0, 0.0, 0.0],
            "kept": int(more),
            "exponents": [0.2, 0.3, 0.5][: 1 + 2 * more],
            "pooling": 2,
            "negative": int(more),
            "joint": more,
        },
        "combine_levels": {
            "terms": [torch.rand(2, 3, TERMS, dtype=torch.float64) for _ in range(3)],
            "positions": [72, 20, 6],
            "exponents": [0.2, 0.3, 0.5],
            "negative": int(more),
            "joint": more,
            "weights": [0.1, 0.2, 0.3, 0.4, 0.5],
            "constant": 0.7 * more,
            "kept": int(more),
        },
        "scale_": {"factor": 0.5, "count": 72},
        "collapse_": {
            "coarser": [torch.rand(2, 3, *shape, dtype=out_dtype) for shape in ((6, 7), (3, 4))],
            "slopes": torch.rand(2, 3, 3, dtype=torch.float64),
            "low": 0.1,
            "scale": 0.5,
            "pooling": 2,
            "x": x if more else None,
            "y": y if more else None,
            "pixel_weights": [0.1, 0.2, 0.3] if more else [0.0] * 3,
            "rows": torch.rand(12, dtype=out_dtype) if more else None,
            "columns": torch.rand(13, dtype=out_dtype) if more else None,
        },
    }[name]
    if name == "sweep_levels":
        x, y = (LAYOUTS[layout](image) for image in torch.rand(2, 2, 3, 21, 22).to(dtype))
        if more:
            given |= {"rows": torch.rand(21, dtype=out_dtype)}
            given |= {"columns": torch.rand(22, dtype=out_dtype)}
    changed = x.clone() if layout == "expanded" else x  # nothing can be written to an expanded one
    every = dict(zip(("window", "sizes", "c1", "c2", "low", "scale"), SETTINGS, strict=True))
    every |= {"x": x, "y": y, "same": more, "grad": changed, "finest": changed}
    every |= {"upstream": torch.rand((2,) if more else (), dtype=out_dtype)}
    return {argument: (every | given)[argument] for argument in ARGUMENTS[name]}


def calls(name: str, dtype: torch.dtype, layout: str) -> list[dict[str, Any]]:
    """Arguments of an op, for every way that it goes."""
    plain, full = (arguments(name, more, dtype, layout) for more in (False, True))
    out_dtype = value_dtype(dtype)
    mask = torch.rand(2, 3, 12, 13, dtype=out_dtype)
    volumes = {
        image: full[image].reshape(2, 3, 4, 3, 13)
        for image in ("x", "y")
        if name in ("maps", "maps_grad", "sweep")
    }
    by_axis = {"window": [*gaussian_taps(2, 1.5), 0.2, 0.6, 0.2], "sizes": [5, 3]}
    beside_bytes = [as_bytes(full)] if "y" in full and dtype != torch.float64 else []
    if name == "maps":
        others = ({"components": True}, {"mask": mask}, volumes, by_axis)
        return [plain, full, *beside_bytes, *(full | other for other in others)]
    if name == "maps_grad":
        maps = list(torch.rand(2, 2, 3, 12, 13, dtype=out_dtype))
        of_volume = {"upstream": [maps[0].reshape(2, 3, 4, 3, 13)]}
        others = ({"upstream": maps}, {"mask": mask}, volumes | of_volume, by_axis)
        return [plain, full, *beside_bytes, *(full | other for other in others)]
    if name == "sweep":
        of_volume = {"weights": [0.5, 0.0, 0.0, 0.0, 0.0], "wanted": 1, "pooling": 0}
        of_volume |= {"rows": None, "columns": None, "plane_weights": None}
        others = ({"plane_weights": None}, volumes | of_volume, by_axis | of_volume)
        factors = torch.rand(*full["x"].shape[: full["kept"]], 2, dtype=torch.float64)
        factors[0] = 0  # as if all weights were 0
        masked = {"mask": mask, "mask_factors": factors}
        masks = (masked | {"plane_weights": None, "pooling": 0}, masked | by_axis | of_volume)
        return [
            plain,
            full,
            *beside_bytes,
            *(full | other for other in others + masks),
        ]
    if name == "scale_":
        volume = full["grad"].reshape(2, 3, 4, 3, 13)
        return [plain, full, full | {"grad": volume}]
    if name == "combine_levels":
        positive = {"negative": NEGATIVES["raise"]}
        return [plain, full, full | positive]
    if name == "sweep_levels":
        # SSIM beside MS-SSIM of one level, whose weights are added; without SSIM; no gradients.
        without_ssim = [0.0, *full["weights"][1:]]
        return [plain, full, *beside_bytes] + [
            full | {"exponents": exponents, "gradients": gradients, "weights": weights}
            for exponents, gradients, weights in (
                ([0.7], 2, full["weights"]),
                ([0.2, 0.3, 0.5], 1, without_ssim),
                ([0.4, 0.6], 2, without_ssim),
                ([0.2, 0.3, 0.5], 0, full["weights"]),
            )
        ]
    return [plain, full, *beside_bytes]


def as_bytes(given: dict[str, Any]) -> dict[str, Any]:
    """The call with an 8-bit y, which has no gradient."""
    changed = {"y": (given["y"] * 255).byte()}
    return given | changed | ({"gradients": 1} if "gradients" in given else {})


# Keywords of a plain sweep in Python.
SWEEP = {
    "mask": None,
    "mask_factors": None,
    "loss": Loss([1.0, 0.0, 0.0, 0.0, 0.0]),
    "kept": 1,
    "gradients": 0,
    "wanted": 1,
    "count": 1,
    "grad_scale": 1.0,
    "grad_count": 1,
    "plane_weights": None,
    "pooling": 0,
    "map_term": -1,
}


def flat(result) -> list[torch.Tensor]:
    """All tensors in the result of an op."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def results(name: str, op, given: dict[str, Any]) -> list[torch.Tensor]:
    """All tensors that an op makes; of one that works in place, what it makes of a copy."""
    first, *others = given.values()
    if not name.endswith("_"):
        return flat(op(first, *others))
    changed = first.clone()
    op(changed, *others)
    return [changed]


def assert_same_tensors(name: str, kernel, dtype: torch.dtype, layout: str, **tolerances) -> None:
    """As the reference gives, to ``tolerances`` by the names of dtypes."""
    by_reference = library.by_position(name, library.REFERENCE[name])
    allowed = {"float32": 1e-5, "bfloat16": 1e-2, "float64": 1e-9, **tolerances}
    tolerance = allowed[str(dtype).removeprefix("torch.")]
    for given in calls(name, dtype, layout):
        got, want = results(name, kernel, given), results(name, by_reference, given)
        for g, w in zip(got, want, strict=True):
            assert g.stride() == w.stride() and g.dtype == w.dtype
            torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", library.SCHEMAS)
def test_opcheck(name):
    op = getattr(torch.ops.ssimfast, name).default
    for given in calls(name, torch.float32, "contiguous"):
        torch.library.opcheck(op, tuple(given.values()))


@pytest.mark.long
@pytest.mark.parametrize("pooling", [0, 1, 2, 3])
@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("gradients", [0, 1, 2])
def test_opcheck_of_every_request(gradients, kept, pooling):
    given = arguments("sweep", True, torch.float32, "contiguous")
    given |= {"gradients": gradients, "kept": kept, "pooling": pooling}
    torch.library.opcheck(torch.ops.ssimfast.sweep.default, tuple(given.values()))


@pytest.mark.parametrize("name", library.SCHEMAS)
@needs_extension
def test_kernel_and_reference_give_the_same_tensors(name):
    """In every dtype and layout; the fake kernels promise what the reference returns."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for layout in LAYOUTS:
            assert_same_tensors(name, getattr(torch.ops.ssimfast, name), dtype, layout)


def test_combining_levels_with_a_negative_mean():
    given = arguments("combine_levels", True, torch.float32, "contiguous")
    terms, exponents = given["terms"], given["exponents"]
    raising = given | {"negative": NEGATIVES["raise"]}
    terms[1][0, 0] = -9
    with pytest.raises(ValueError, match='negative="raise": a mean of contrast-structure is -'):
        torch.ops.ssimfast.combine_levels(*raising.values())
    exponents[1] = 0.0  # where it does not count
    torch.ops.ssimfast.combine_levels(*raising.values())


@needs_extension
def test_direct_calls_write_what_they_should():
    volume = torch.rand(1, 1, 12, 12, 12)
    given = arguments("sweep", False, torch.float32, "contiguous")
    unwanted = given | {"x": volume, "y": volume.flip(2), "wanted": 0, "pooling": 0}
    value, terms, *_ = torch.ops.ssimfast.sweep(*unwanted.values())
    assert not value.any() and not terms.any()
    ones = torch.ones(1, 1, 4, 4)
    clone = torch._lazy_clone(ones)
    torch.ops.ssimfast.scale_(clone, torch.tensor(3.0), 1.0, 1)
    assert (ones == 1).all() and (clone == 3).all()


def test_a_direct_call_is_guarded():
    x = torch.rand(1, 1, 16, 16)

    def call(x, y, window=SETTINGS[0]):
        rest = (*SETTINGS[2:], False, False)
        return torch.ops.ssimfast.maps(x, y, None, window, [len(window)], *rest)

    bad = {
        "dimension 3": (x, x[..., :-1]),
        "dtype": (x, x.double()),
        "dimensions": (x[0], x[0]),
        "floating point": (x.int(), x.int()),
        "smaller than the window": (x[..., :4, :4], x[..., :4, :4]),
    }
    for message, (a, b) in bad.items():
        with pytest.raises(RuntimeError, match=message):
            call(a, b)
    with pytest.raises(RuntimeError, match="tensors are on cpu and meta"):
        call(x, x.to("meta"))
    for window in ([0.5, 0.5], [1.0] * 35, [0.1, 0.2, 0.3], []):
        with pytest.raises(RuntimeError, match="window"):
            call(x, x, window)
    with pytest.raises(RuntimeError, match="does not fit the map"):
        torch.ops.ssimfast.maps_grad([x], x, x, None, *SETTINGS, False, 1)
    with pytest.raises(RuntimeError, match="does not fit the result"):
        torch.ops.ssimfast.scale_(x, torch.rand(3), 1.0, 1)
    given = arguments("sweep_levels", False, torch.float32, "contiguous") | {"same": True}
    for thin in (x[..., :1, :], x[..., :1]):
        thin_pair = {"x": thin, "y": thin, "exponents": [0.5, 0.5], "pooling": 1}
        with pytest.raises(RuntimeError, match="level 1 is empty"):
            torch.ops.ssimfast.sweep_levels(*(given | thin_pair).values())
    small = {"x": x, "y": x, "exponents": [0.5, 0.5], "pooling": 1, "same": False}
    by_reference = library.by_position("sweep_levels", library.REFERENCE["sweep_levels"])
    for sweep_levels in (torch.ops.ssimfast.sweep_levels, by_reference):
        with pytest.raises((RuntimeError, ValueError), match="smaller than the window"):
            sweep_levels(*(given | small | {"window": [0.2] * 9, "sizes": [9]}).values())
    for count in (0, 17):
        with pytest.raises(RuntimeError, match="levels must be 1 to 16"):
            torch.ops.ssimfast.sweep_levels(*(given | {"exponents": [0.5] * count}).values())
    given = arguments("combine_levels", False, torch.float32, "contiguous")
    terms = given["terms"][0]
    for of_levels in ([terms.float()], [terms, terms[:1]], [terms] * 17):
        lists = {"exponents": [0.5] * len(of_levels), "positions": [9] * len(of_levels)}
        with pytest.raises(RuntimeError, match="ssimfast: .*terms"):
            torch.ops.ssimfast.combine_levels(*(given | lists | {"terms": of_levels}).values())


# Dynamo and Inductor call deprecated parts of torch themselves.
ignore_deprecation = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@ignore_deprecation
@pytest.mark.needs("compiler")
def test_compile_with_inductor():
    torch._dynamo.reset()
    module = ssimfast.SSIMLoss(value_range=(-1, 1))
    x = torch.rand(1, 3, 20, 20, requires_grad=True)
    y = torch.rand(1, 3, 20, 20)

    def step(x, y):
        return module(torch.tanh(x), y)

    (want,) = torch.autograd.grad(step(x, y), x)
    (got,) = torch.autograd.grad(torch.compile(step, fullgraph=True)(x, y), x)
    torch.testing.assert_close(got, want)


def test_backends_are_the_dispatchers_choice():
    expected = "reference" if library.extension is None else "cpu"
    assert ssimfast.backends()["cpu"] == expected
    assert ssimfast.backends()["mps"] == "reference"
