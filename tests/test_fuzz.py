"""Calls drawn at random, against the oracle, valid and invalid.

The short suite draws the same few every time. SSIMFAST_FUZZ_CASES=2000 draws so many others.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from numbers import Integral, Real
from typing import get_args

import numpy as np
import oracle
import pytest
import torch
from comparison import CUDA_FLOAT32, TERMS, TOLERANCES
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from random_calls import (
    PLAIN,
    Call,
    calls,
    check,
    known_of,
    least_side,
    parts_of,
    range_of,
    settle,
    sizes_of,
)
from torch import Tensor

import ssimfast
from ssimfast import presets, typing
from ssimfast.ops import library

CASES = os.environ.get("SSIMFAST_FUZZ_CASES")


def drawn(share: float):
    """The settings of a test of that share of the cases, but of ten at least."""
    return settings(
        max_examples=max(10, int(share * int(CASES or 40))),
        deadline=None,
        derandomize=CASES is None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


ON_CPU = ["reference"] if library.extension is None else ["cpu", "reference"]


@drawn(1)
@given(calls())
def test_calls(call):
    check(call, ON_CPU)


def has_cuda_kernels(call: Call) -> bool:
    """All others use operations of PyTorch on GPUs, at least in part."""
    settled = settle(call)
    return settled.get("padding") != "reflect" and settled.get("negative") != "raise"


@pytest.mark.needs("compiler", "sources")
@drawn(0.1)
@given(calls().filter(has_cuda_kernels))
def test_calls_of_emulated_cuda_kernels(call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOLERANCES, torch.float32, CUDA_FLOAT32)
        check(call, ["cuda-emulated"])


@drawn(0.2)
@given(calls(), st.sampled_from([(0, 3), (2, 0), (0, 0)]))
def test_calls_without_images(call, planes):
    """Two empty batches do not differ."""
    x, y = (torch.empty(*planes, *call.shape[2:], dtype=dtype) for dtype in call.dtypes)
    for image, need in ((x, call.needs[0]), (y, call.needs[1])):
        image.requires_grad_(need)
    call.arguments.pop("mask", None)
    if isinstance(call.arguments.get("data_range"), Tensor):
        call.arguments["data_range"] = torch.ones(planes[0])
    value, parts = parts_of(call.run(x, y))
    settled = settle(call)
    reduction = "none" if call.function == "ssim_components" else settled.get("reduction", "mean")
    sides = call.shape[2:]
    if settled.get("padding", "valid") == "valid":
        lost = sizes_of(settled, call.axes)
        sides = tuple(side - size + 1 for side, size in zip(sides, lost, strict=True))
    everything = {
        "ssim": (*planes, *sides),
        "ssim_components": (2, *planes, *sides),
        "ms_ssim": planes[: 1 if settled.get("channels") == "joint" else 2],
        "similarity_loss": planes[:1],
    }[call.function]
    shape = {"none": everything, "batch": planes[:1]}.get(reduction, ())
    assert value.dtype == call.value_dtype and value.shape == shape
    assert value.requires_grad == any(call.needs)
    assert ("map" in parts) == bool(settled.get("return_map"))
    assert "map" not in parts or parts["map"].shape == (*planes, *sides)
    if call.function == "similarity_loss" or (call.function == "ssim" and reduction == "sum"):
        assert not value.any()
    elif reduction != "sum":
        assert (value == 1).all()
    if value.requires_grad:
        value.sum().backward()
        for image, need in zip((x, y), call.needs, strict=True):
            assert (image.grad is not None) == need
            assert not need or image.grad.shape == image.shape


def result_or_refusal(run: Callable):
    try:
        return run()
    except ValueError as error:
        assert error.args[0].startswith('negative="raise"')
        return error.args[0]


@drawn(0.3)
@given(calls())
def test_modules_are_the_functions(call):
    assume(call.function != "ssim_components")  # which has no module
    module = {
        "ssim": ssimfast.SSIM,
        "ms_ssim": ssimfast.MSSSIM,
        "similarity_loss": ssimfast.SimilarityLoss,
    }[call.function]
    arguments = dict(call.arguments)
    images = [call.x, call.y, *([arguments.pop("mask")] if call.mask is not None else [])]
    got, want = (
        result_or_refusal(run)
        for run in (lambda: module(**arguments)(*images), lambda: call.run(call.x, call.y))
    )
    if isinstance(want, str):
        assert got == want
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=0)


# ---- mistakes -----------------------------------------------------------------------------------

numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([10**400, -(10**400)]))
anything = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(numbers, max_size=3),
    st.tuples(numbers, numbers),
    st.dictionaries(st.text(max_size=2), numbers, max_size=2),
    st.complex_numbers(),
    st.builds(object),
    st.just(torch.zeros(2)),
    st.just(np.zeros(2)),
)
CHOICES = {
    "window": get_args(typing.Window),
    "padding": get_args(typing.Padding),
    "reduction": get_args(typing.Reduction),
    "odd": get_args(typing.Odd),
    "negative": get_args(typing.Negative),
    "channels": get_args(typing.Channels),
    "preset": tuple(presets.PRESETS),
}
MAPS = ("ssim", "contrast_structure")
FLAGS = ("sample_covariance", "return_terms")
NUMBERS = ("data_range", "sigma", "k1", "k2", *TERMS)
real = st.one_of(
    st.floats(0.01, 0.5),
    st.sampled_from([1, 2, np.float32(0.5), np.float64(0.3), np.int64(1), Fraction(1, 2)]),
)
no_real = st.sampled_from([True, np.bool_(True), "0.5", -0.5, np.inf, np.nan, 1e16, 0.5j])
# Values that are taken where the rest of the call goes with them, and such that never are.
good: dict[str, st.SearchStrategy] = {
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    **dict.fromkeys(FLAGS, st.booleans()),
    **dict.fromkeys(NUMBERS, real),
    "window_size": st.sampled_from([1, 3, 5, 11, np.int64(5), np.uint8(7), (5, 3), [1, 3, 5]]),
    "sigma": st.one_of(real, st.lists(real, min_size=1, max_size=3)),
    "data_range": st.one_of(
        real, st.sampled_from([torch.tensor(2), torch.tensor(0.5), torch.rand(2) + 0.5])
    ),
    "value_range": st.sampled_from(
        [(0, 1), [-1.0, 1.0], (np.float32(0), np.int64(255)), (Fraction(1, 2), 2), None]
    ),
    "weights": st.sampled_from(
        ["auto", (1,), [0.5, 0.5], (np.float32(0.3), 1), range(1, 3), (Fraction(1, 3),)]
    ),
    "mask": st.sampled_from(
        [
            torch.ones(()),
            torch.tensor(True),
            torch.full((1, 1), 0.3),
            torch.tensor([[99]], dtype=torch.uint8),
            None,
        ]
    ),
    "return_map": st.sampled_from([False, True, *MAPS]),
}
bad: dict[str, st.SearchStrategy] = {
    **{name: st.sampled_from(["", "median", name, b"valid"]) for name in CHOICES},
    **dict.fromkeys(FLAGS, st.sampled_from([0, 1, np.bool_(True), "True"])),
    **dict.fromkeys(NUMBERS, no_real),
    "window_size": st.sampled_from([True, 3.0, 4, 0, -3, 35, "7", (), (5, 4), (5,) * 4, [3.0, 3]]),
    "sigma": st.one_of(no_real, st.sampled_from([(), (1.0, 0.0), (1.0,) * 4, ("1", "1")])),
    "data_range": st.one_of(
        no_real,
        st.sampled_from(
            [torch.tensor(0), torch.ones(1, 1), torch.tensor(True), torch.tensor([1.0, torch.nan])]
        ),
    ),
    "value_range": st.sampled_from(
        [(1, 0), (0, 0), (0,), (0, 1, 2), (False, 1), ("0", "1"), "01", range(0, 2)]
    ),
    "weights": st.sampled_from(
        [(), (True,), ("1",), "1", 1.0, np.ones(1), (-0.1,), (0.1,) * 17, b"\1", bytearray(b"\1")]
    ),
    "mask": st.sampled_from([torch.ones(1, 1, dtype=int), torch.full((), 1.1), 1.0, True]),
    "return_map": st.sampled_from([0, 1, None, "l1", b"ssim", np.bool_(True)]),
}


def is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def meaning(name: str, value) -> object:
    """A value that is taken, as the oracle is told it; fails for what must not be taken."""
    if value is None and name in ("value_range", "data_range", "mask", "preset"):
        return None
    if name in NUMBERS and is_number(value):
        return float(value)
    if name == "window_size" and is_number(value) and isinstance(value, Integral):
        return int(value)
    if name in ("window_size", "sigma") and isinstance(value, (tuple, list)):
        of_axes = tuple(meaning(name, one) for one in value)
        return of_axes if len(of_axes) > 1 else of_axes[0]
    if name in (*FLAGS, "return_map") and isinstance(value, bool):
        return value
    if name == "return_map" and isinstance(value, str) and value in MAPS:
        return value
    if name in CHOICES and isinstance(value, str) and value in CHOICES[name]:
        return value
    if name == "mask" and isinstance(value, Tensor):
        return value
    if name == "data_range" and isinstance(value, Tensor) and (value > 0).all():
        return value
    if name == "weights" and isinstance(value, str) and value == "auto":
        return value
    of_numbers = isinstance(value, (tuple, list, range)) and all(map(is_number, value))
    if (name == "weights" or (name == "value_range" and len(value) == 2)) and of_numbers:
        return tuple(map(float, value))
    raise AssertionError(f"{name}={value!r} was taken")


def is_moderate(call: Call) -> bool:
    """Whether the tolerances hold: they are those of numbers that people use."""
    settled = call.resolved()
    low, high = range_of(settled, call.shape)
    length = np.asarray(high - low)
    flat = call.kind not in PLAIN or np.prod(sizes_of(settled, call.axes)) == 1
    least = 1e-3 if flat or "mask" in settled else 0.0  # without constants flat images give NaN
    sigma = np.asarray(settled.get("sigma", 1.5))
    weights = settled.get("weights", oracle.WANG)
    return (
        (0.05 <= length).all()
        and (np.maximum(length / 500, abs(low) / length) <= 1).all()
        and (0.3 <= sigma).all()
        and (sigma <= 1e3).all()
        and all(least <= settled.get(name, 0.01) <= 0.5 for name in ("k1", "k2"))
        and (weights == "auto" or max(weights) <= 3)
        and all(settled.get(name, 0.0) <= 30 for name in TERMS)
    )


def in_their_place(call: Call, name: str, value) -> Call:
    """The call with another value of an argument, which may be what it likes."""
    given = {**call.arguments, name: value}
    wanted = meaning(name, value)
    arguments = {key: own for key, own in given.items() if key != name}
    if wanted is not None:
        arguments[name] = wanted
    return replace(call, arguments=arguments, mask=None, given=given)


def is_too_small(call: Call, arguments: dict) -> bool:
    """Whether some scale has no window."""
    settled = presets.resolve(dict(arguments), known_of(call.function))
    sizes, padding = sizes_of(settled, call.axes), settled.get("padding", "valid")
    scales = call.function == "ms_ssim" or settled.get("ms_ssim", 0) > 0
    if call.function == "similarity_loss" and not scales:
        if not settled.get("ssim", 1) and not settled.get("return_map"):
            return False
    weights = settled.get("weights", oracle.WANG) if scales else (1.0,)
    sides, up = call.shape[2:], settled.get("odd", "floor") != "floor"
    count = 1 if weights == "auto" else len(weights)
    for scale in range(count):
        finer = scale < count - 1 and padding == "reflect"
        least = [least_side(size, "valid" if finer else padding) for size in sizes]
        if any(side < size for side, size in zip(sides, least, strict=True)):
            return True
        sides = [(side + up) // 2 for side in sides]
    return False


def assert_names(error: Exception, name: str, call: Call, given: dict) -> None:
    """The message has the name, as a word, or it is one of a few that rightly name another."""
    message = str(error)
    if re.search(rf"\b{name}\b", message):
        return
    deciding_sizes = ("preset", "weights", "odd", "padding", "ssim", "ms_ssim")
    if message.startswith("x is ") and name in deciding_sizes:
        assert is_too_small(call, given), message  # it says which images would do
        return
    assert name == "preset", f"{name}={given[name]!r}: {message}"  # what it stands for is named
    meant = presets.PRESETS[given["preset"]]
    named = [word for word in meant if re.search(rf"\b{word}\b", message) and word not in given]
    assert named, message


@drawn(1)
@given(calls(), st.data())
def test_any_value_of_an_argument_is_taken_or_refused_by_name(call, data):
    name = data.draw(st.sampled_from(sorted(known_of(call.function) - {"x", "y"})))
    value = data.draw(st.one_of(good[name], good[name], bad[name], anything))
    given = {**call.arguments, name: value}
    try:
        getattr(ssimfast, call.function)(call.x, call.y, **given)
    except (TypeError, ValueError) as error:
        if not str(error).startswith('negative="raise": '):  # of these images; see `compare`
            assert_names(error, name, call, given)
            event("refused")
            return
    taken = in_their_place(call, name, value)
    assume(is_moderate(taken))
    check(taken, ON_CPU)
    event("taken")


def test_values_of_arguments_that_are_taken_and_refused():
    """That `meaning` and `assert_names` notice what is wrong, for what the above draws seldom."""
    for name, value in (
        ("window_size", True),
        ("window_size", 3.0),
        ("k1", np.bool_(True)),
        ("sample_covariance", 1),
        ("window_size", (5, 4.0)),
        ("data_range", torch.zeros(())),
        ("return_map", 1),
        ("return_map", np.zeros(2)),
        ("weights", b"\1"),
        ("weights", (True,)),
        ("value_range", (0, 1, 2)),
        ("padding", "mean"),
        ("sigma", None),
    ):
        with pytest.raises(AssertionError, match="was taken"):
            meaning(name, value)
        images = torch.rand(2, 1, 1, 16, 16)
        function = ssimfast.ms_ssim if name == "weights" else ssimfast.ssim
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            function(*images, **{name: value})
    twice = [(same,) * 2 for same in (torch.float32, "contiguous", False)]
    call = Call("ssim", "noise", (1, 1, 16, 16), *twice, seed=0, arguments={})
    too_small = "x is 16 x 16 pixels, smaller than window_size 11"
    for name, value, message in (
        ("k1", -1, "k12 must be a number"),
        ("k2", 0.1, too_small),
        ("preset", "tf", too_small),
        ("preset", "tf", "value_range must be a pair"),
        ("weights", (1,), "x and y must have the same shape"),
    ):
        with pytest.raises(AssertionError):
            assert_names(ValueError(message), name, call, {name: value})


def spoiled(call: Call, how: str) -> tuple:
    x, y = call.x, call.y
    return {
        "ranks": lambda: (x[0], y[0]) if x.dim() == 4 else (x[None], y[None]),
        "shape": lambda: (x, y[..., :-1]),
        "batch": lambda: (x, torch.cat((y, y))),
        "integer": lambda: (x.long(), y.long()),
        "one_integer": lambda: (x, y.short()),
        "complex": lambda: (x.to(torch.complex64), y.to(torch.complex64)),
        "device": lambda: (x, y.to("meta")),
        "no_tensor": lambda: (x, y.double().numpy()),
        "small": lambda: (x[..., :1, :1], y[..., :1, :1]),
    }[how]()


HOW = (
    "ranks",
    "shape",
    "batch",
    "integer",
    "one_integer",
    "complex",
    "device",
    "no_tensor",
    "small",
)


@drawn(0.3)
@given(calls(), st.sampled_from(HOW))
def test_images_that_do_not_go_together_are_refused(call, how):
    settled = settle(call)
    if how == "small":
        call.arguments |= {
            "padding": "valid",
            "window_size": max(3, *sizes_of(settled, call.axes)),
        }
        call.arguments |= {"ssim": 1.0} if call.function == "similarity_loss" else {}
    call.arguments.pop("mask", None)
    with pytest.raises((TypeError, ValueError), match=r"^(x|y) "):
        call.run(*spoiled(call, how))
