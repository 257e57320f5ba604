"""Bad input: each mistake gets an error that names the argument and prints what came.

One table serves all functions: a mistake gets the same message from each that can meet it.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch

import ssimfast
from ssimfast.compat.fused_ssim import fused_ssim

X = torch.rand(2, 3, 48, 50)
META = X.to("meta")
SMALL = X[..., :16, :18]
NARROW = X[..., :3]
LAST = X.movedim(1, 3)  # (N, H, W, C), a common mistake
VOLUME = torch.rand(1, 2, 12, 13, 14)
MASK = torch.ones(48, 50)
NAN, INFINITY = float("nan"), float("inf")
TWO = {"weights": (0.4, 0.6)}


class Function(NamedTuple):
    of: Callable
    arguments: dict  # with which X is right
    modules: tuple[type, ...] = ()


FUNCTIONS = {
    "ssim": Function(ssimfast.ssim, {}, (ssimfast.SSIM, ssimfast.SSIMLoss)),
    "ssim_components": Function(ssimfast.ssim_components, {}),
    "ms_ssim": Function(ssimfast.ms_ssim, TWO, (ssimfast.MSSSIM, ssimfast.MSSSIMLoss)),
    "similarity_loss": Function(
        ssimfast.similarity_loss, {"ms_ssim": 0.5, **TWO}, (ssimfast.SimilarityLoss,)
    ),
}
EVERY = tuple(FUNCTIONS)
MAPS = ("ssim", "ssim_components")
PYRAMIDS = ("ms_ssim", "similarity_loss")
REDUCED = ("ssim", "ms_ssim")
IMAGES_ONLY = ("ssim_components", "ms_ssim", "similarity_loss")


class Mistake(NamedTuple):
    error: type[Exception]
    message: str
    functions: tuple[str, ...] = EVERY
    arguments: dict = {}
    images: tuple = (X, X)


OF_IMAGES = {
    "shape": Mistake(ValueError, r"\(2, 3, 48, 50\) and \(2, 3, 48, 49\)", images=(X, X[..., :-1])),
    "broadcastable_shape": Mistake(ValueError, r"same shape.*\(1, 3, 48, 50\)", images=(X, X[:1])),
    "device": Mistake(ValueError, "device, got cpu and meta", images=(X, META)),
    "integer": Mistake(
        TypeError, "x must be float16.*got torch.int32.*float", images=(X.int(), X.int())
    ),
    "complex": Mistake(TypeError, "got torch.complex64", images=(X.cfloat(), X.cfloat())),
    "rank": Mistake(
        ValueError, r"x must have shape \(N, C, H, W\).*\(3, 48, 50\)", images=(X[0], X[0])
    ),
    "rank_of_y": Mistake(ValueError, r"y must have shape \(N, C, H, W\)", images=(X, X[0])),
    "volumes": Mistake(
        ValueError,
        r"\(N, C, H, W\).*50\); only ssim takes vol",
        IMAGES_ONLY,
        images=(X[None], X[None]),
    ),
    "four_dimensions_of_space": Mistake(
        ValueError,
        r"\(N, C, H, W\) or \(N, C, D, H, W\)",
        ("ssim",),
        images=(VOLUME[None], VOLUME[None]),
    ),
    "y_is_no_tensor": Mistake(TypeError, "y must be a tensor, got ndarray", images=(X, X.numpy())),
    "x_is_no_tensor": Mistake(TypeError, "x must be a tensor, got ndarray", images=(X.numpy(), X)),
    "no_pixels": Mistake(ValueError, "48 x 0 pixels", MAPS, images=(X[..., :0], X[..., :0])),
}
# Images that are too small: only a call can find these.
OF_SIZES = {
    "small_image": Mistake(
        ValueError,
        "16 x 18 pixels.*window_size 17",
        (*MAPS, "similarity_loss"),
        {"window_size": 17, "weights": (1.0,)},
        (SMALL, SMALL),
    ),
    "small_for_reflection": Mistake(
        ValueError,
        "16 x 18 pixels.*window_size 33.*reflect",
        MAPS,
        {"window_size": 33, "padding": "reflect"},
        (SMALL, SMALL),
    ),
    "small_for_channels_are_last": Mistake(
        ValueError,
        r'50 x 3 pixels.*"same", or x.permute\(0, 3, 1, 2\) if x is \(N, H, W, C\)$',
        (*MAPS, "ms_ssim"),
        {"weights": "auto"},
        (LAST, LAST),
    ),
    "small_to_reflect_for_channels_are_last": Mistake(
        ValueError,
        r"50 x 3 pixels.*or x.permute\(0, 3, 1, 2\)",
        MAPS,
        {"padding": "reflect"},
        (LAST, LAST),
    ),
    "small_however_it_is_turned": Mistake(
        ValueError, 'padding="same"$', MAPS, {}, (NARROW, NARROW)
    ),
    "small_for_five_scales": Mistake(
        ValueError, "48 x 50.*176", PYRAMIDS, {"weights": oracle.WANG}
    ),
    "small_for_five_scales_that_drop_nothing": Mistake(
        ValueError, "48 x 50.*161", ("ms_ssim",), {"weights": oracle.WANG, "odd": "pad"}
    ),
    "small_for_five_scales_of_a_small_window": Mistake(
        ValueError,
        "48 x 50.*97",
        ("ms_ssim",),
        {"weights": oracle.WANG, "odd": "replicate", "window_size": 7},
    ),
    "no_scale_fits": Mistake(
        ValueError,
        "48 x 10",
        ("ms_ssim",),
        {"weights": "auto"},
        (X[..., :10], X[..., :10]),
    ),
    "small_volume": Mistake(
        ValueError,
        "12 x 13 x 14 pixels.*window_size 13",
        ("ssim",),
        {"window_size": 13},
        (VOLUME, VOLUME),
    ),
    "small_volume_to_reflect": Mistake(
        ValueError,
        "12 x 13 x 5 pixels.*window_size 11.*reflect",
        ("ssim",),
        {"padding": "reflect"},
        (VOLUME[..., :5], VOLUME[..., :5]),
    ),
}
# Modules find these as they are made.
OF_NUMBERS = {
    "even_window": Mistake(
        ValueError, "window_size must be odd.*got 8", arguments={"window_size": 8}
    ),
    "large_window": Mistake(ValueError, "between 1 and 33, got 35", arguments={"window_size": 35}),
    "no_window": Mistake(ValueError, "window_size.*got 0", arguments={"window_size": 0}),
    "window_size_float": Mistake(
        TypeError, "must be an int, got 11.0", arguments={"window_size": 11.0}
    ),
    "window_size_bool": Mistake(
        TypeError, "must be an int, got True", arguments={"window_size": True}
    ),
    "sigma_zero": Mistake(
        ValueError, "sigma must be greater than 0, got 0", arguments={"sigma": 0}
    ),
    "sigma_negative": Mistake(ValueError, "sigma.*got -1.5", arguments={"sigma": -1.5}),
    "sigma_nan": Mistake(ValueError, "sigma must be between.*got nan", arguments={"sigma": NAN}),
    "sigma_text": Mistake(
        TypeError, "sigma must be a number, got '1.5'", arguments={"sigma": "1.5"}
    ),
    "sigma_of_a_uniform_window": Mistake(
        ValueError,
        "sigma must be greater than 0, got -1",
        arguments={"window": "uniform", "sigma": -1},
    ),
    "k1_negative": Mistake(
        ValueError, "k1 must be between 0 and 1e.15, got -0.1", arguments={"k1": -0.1}
    ),
    "k2_huge": Mistake(ValueError, "k2 must be between", arguments={"k2": 1e200}),
    "range_upside_down": Mistake(
        ValueError, r"low < high, got \(1, 0\)", arguments={"value_range": (1, 0)}
    ),
    "range_empty": Mistake(
        ValueError, r"low < high, got \(1, 1\)", arguments={"value_range": (1, 1)}
    ),
    "range_infinite": Mistake(ValueError, "got inf", arguments={"value_range": (0, INFINITY)}),
    "range_one_number": Mistake(
        TypeError, r"pair \(low, high\), got 255", arguments={"value_range": 255}
    ),
    "range_tiny": Mistake(ValueError, "at least 1e-15 wide", arguments={"value_range": (0, 1e-39)}),
    "range_twice": Mistake(
        ValueError,
        r"not both: got \(0, 1\) and 2",
        arguments={"value_range": (0, 1), "data_range": 2},
    ),
    "data_range_zero": Mistake(
        ValueError, "data_range.*at least 1e-15, got 0", arguments={"data_range": 0}
    ),
    "data_range_tiny": Mistake(
        ValueError, "at least 1e-15, got 1e-39", arguments={"data_range": 1e-39}
    ),
    "data_range_huge": Mistake(ValueError, "between.*got 1000", arguments={"data_range": 10**400}),
    "window": Mistake(
        ValueError, "window.*gaussian, uniform, got 'box'", arguments={"window": "box"}
    ),
    "window_number": Mistake(ValueError, "window.*got 11", arguments={"window": 11}),
    "padding": Mistake(
        ValueError,
        "valid, same, reflect, got 'zeros'",
        (*MAPS, "ms_ssim"),
        {"padding": "zeros"},
    ),
    "padding_of_the_loss": Mistake(
        ValueError,
        'padding="reflect", which preset="torchmetrics" sets',
        ("similarity_loss",),
        {"padding": "reflect"},
    ),
    "sample_covariance": Mistake(
        TypeError, "sample_covariance must be.*got 1", arguments={"sample_covariance": 1}
    ),
    "sample_covariance_of_one_pixel": Mistake(
        ValueError,
        "sample_covariance.*window_size.*got 1",
        arguments={"sample_covariance": True, "window_size": 1},
    ),
    "reduction": Mistake(
        ValueError, "mean, sum, batch, none, got 'avg'", REDUCED, {"reduction": "avg"}
    ),
    "reduction_of_the_loss": Mistake(
        ValueError, "mean, batch, got 'none'", ("similarity_loss",), {"reduction": "none"}
    ),
    "preset": Mistake(
        ValueError, "preset must be .*skimage.*, got 'SKIMAGE'", arguments={"preset": "SKIMAGE"}
    ),
    "preset_empty": Mistake(ValueError, "preset must be .*, got ''", arguments={"preset": ""}),
    "weights_empty": Mistake(
        ValueError, "weights must be 1 to 16.*got 0", PYRAMIDS, {"weights": ()}
    ),
    "weights_many": Mistake(
        ValueError, "weights must be 1 to 16.*got 17", PYRAMIDS, {"weights": [0.1] * 17}
    ),
    "weights_negative": Mistake(ValueError, "weights.*-0.5", PYRAMIDS, {"weights": (1, -0.5)}),
    "weights_nan": Mistake(ValueError, "weights.*nan", PYRAMIDS, {"weights": (1, NAN)}),
    "weights_infinite": Mistake(ValueError, "weights.*inf", PYRAMIDS, {"weights": (INFINITY,)}),
    "weights_text": Mistake(TypeError, "weights.*'1'", PYRAMIDS, {"weights": ("1",)}),
    "weights_name": Mistake(
        (TypeError, ValueError), "weights.*auto.*'wang'", PYRAMIDS, {"weights": "wang"}
    ),
    "weights_number": Mistake(TypeError, "weights.*got 1.0", PYRAMIDS, {"weights": 1.0}),
    "weights_bool": Mistake(TypeError, "weights.*True", PYRAMIDS, {"weights": (True,)}),
    "odd": Mistake(ValueError, "odd.*floor, pad, replicate, got 'ceil'", PYRAMIDS, {"odd": "ceil"}),
    "negative": Mistake(
        ValueError, "negative.*relu, abs, raise, got 'clip'", PYRAMIDS, {"negative": "clip"}
    ),
    "channels": Mistake(
        ValueError, "channels.*separate, joint, got 'all'", PYRAMIDS, {"channels": "all"}
    ),
    "ssim_negative": Mistake(
        ValueError, "ssim must be between 0.*got -1", ("similarity_loss",), {"ssim": -1.0}
    ),
    "ms_ssim_negative": Mistake(
        ValueError, "ms_ssim.*got -0.1", ("similarity_loss",), {"ms_ssim": -0.1}
    ),
    "no_factor": Mistake(
        ValueError,
        "ssim, ms_ssim, l1, l2, .* 0, got 0 for all",
        ("similarity_loss",),
        {"ssim": 0, "ms_ssim": 0},
    ),
    "l1_nan": Mistake(ValueError, "l1 must be between.*got nan", ("similarity_loss",), {"l1": NAN}),
    "l2_infinite": Mistake(
        ValueError, "l2 must be between.*got inf", ("similarity_loss",), {"l2": INFINITY}
    ),
    "gaussian_l1_text": Mistake(
        TypeError, "gaussian_l1.*number, got '1'", ("similarity_loss",), {"gaussian_l1": "1"}
    ),
    "l1_bool": Mistake(
        TypeError, "l1 must be a number, got True", ("similarity_loss",), {"l1": True}
    ),
    "return_terms": Mistake(
        TypeError, "return_terms.*got 1", ("similarity_loss",), {"return_terms": 1}
    ),
}


def is_refused(call: Callable, mistake: Mistake) -> bool:
    try:
        call()
    except mistake.error as error:
        return re.search(mistake.message, str(error)) is not None
    return False


def calls_of(mistake: Mistake, at_once: bool) -> Iterator[tuple[str, Callable]]:
    """Every call that makes the mistake; modules make it ``at_once``, or when they are called."""
    for name in mistake.functions:
        function = FUNCTIONS[name]
        arguments = {**function.arguments, **mistake.arguments}
        if name in MAPS:
            arguments.pop("weights", None)
        yield name, lambda f=function.of, a=arguments: f(*mistake.images, **a)
        for module in function.modules:
            if at_once:
                yield module.__name__, lambda m=module, a=arguments: m(**a)
            else:
                ready = module(**arguments)
                yield module.__name__, lambda m=ready: m(*mistake.images)


@pytest.mark.parametrize(
    "mistakes", [OF_IMAGES, OF_SIZES, OF_NUMBERS], ids=["images", "sizes", "numbers"]
)
def test_mistakes(mistakes):
    wrong = [
        (name, caller)
        for name, mistake in mistakes.items()
        for caller, call in calls_of(mistake, mistakes is OF_NUMBERS)
        if not is_refused(call, mistake)
    ]
    assert not wrong, "taken, or refused with another message"


# Images, mask, error, message.
OF_MASKS = {
    "shape": (X, torch.rand(48, 49), ValueError, r"mask.*\(48, 49\).*48, 50\)"),
    "rank": (X, torch.rand(1, 2, 3, 48, 50), ValueError, r"mask.*\(1, 2, 3, 48, 50\)"),
    "without_channels": (
        X,
        torch.rand(2, 48, 50),
        ValueError,
        r"mask.*\(2, 48, 50\).*48, 50\); mask\[:, None\] is one mask for each image$",
    ),
    "of_volumes_without_channels": (
        VOLUME.expand(3, -1, -1, -1, -1),
        torch.rand(3, 12, 13, 14),
        ValueError,
        r"mask\[:, None\] is one mask for each image$",
    ),
    "without_channels_of_another_size": (
        X,
        torch.rand(2, 48, 49),
        ValueError,
        r"mask.*\(2, 48, 49\).*48, 50\)$",
    ),
    "larger": (X[:1], torch.rand(2, 1, 48, 50), ValueError, r"mask.*\(2, 1, 48, 50\)"),
    "of_volumes": (VOLUME, torch.rand(12, 13), ValueError, r"mask.*\(12, 13\).*13, 14\)"),
    "that_needs_a_gradient": (
        X,
        torch.rand(48, 50, requires_grad=True),
        ValueError,
        "mask.*requires_grad",
    ),
    "of_integers": (X, MASK.int(), TypeError, "mask.*torch.int32; `mask > 0` makes it bool"),
    "negative": (X, -0.5 * MASK, ValueError, r"mask must lie in \[0, 1\], got -0.5"),
    "complex": (X, MASK.cfloat(), TypeError, "mask.*complex64$"),
    "array": (X, np.ones((48, 50)), TypeError, "mask must be a tensor, got ndarray"),
    "device": (X, MASK.to("meta"), ValueError, "mask.*meta"),
}


@pytest.mark.parametrize("mistake", OF_MASKS)
def test_mistakes_of_masks(mistake):
    x, mask, error, message = OF_MASKS[mistake]
    for call in (ssimfast.SSIM(), ssimfast.SSIMLoss(), lambda x, y, m: ssimfast.ssim(x, y, mask=m)):
        with pytest.raises(error, match=message):
            call(x, x, mask)


def test_what_masks_do_not_go_with():
    with pytest.raises(ValueError, match="mask.*reflect"):
        ssimfast.ssim(X, X, mask=MASK, padding="reflect")
    with pytest.raises(ValueError, match="mask.*reflect"):
        ssimfast.SSIM(padding="reflect")(X, X, MASK)
    with pytest.raises(TypeError, match="mask"):
        ssimfast.ssim_components(X, X, mask=X > 0.5)
    with pytest.raises(ValueError, match="mask does not go with gaussian_l1, got 0.1"):
        ssimfast.similarity_loss(X, X, gaussian_l1=0.1, mask=X > 0.5)


WINDOWS = {
    "of_images": ({"window_size": (5, 11, 11)}, ValueError, r"one number or 2 for \(N, C, H, W\)"),
    "sigma": ({"window_size": (5, 7), "sigma": (1.0,) * 3}, ValueError, r"sigma.*\(5, 7\).*1.0, 1"),
    "even": ({"window_size": (5, 4)}, ValueError, "window_size must be odd.*got 4"),
    "reflect": ({"window_size": (5, 7), "padding": "reflect"}, ValueError, "reflect.*one window"),
}


def test_mistakes_of_windows_by_axis():
    for arguments, error, message in WINDOWS.values():
        with pytest.raises(error, match=message):
            ssimfast.ssim(X, X, **arguments)
    with pytest.raises(TypeError, match="single numbers, except for ssim"):
        ssimfast.ms_ssim(X, X, window_size=(5, 7))
    with pytest.raises(TypeError, match="single numbers, except for ssim"):
        ssimfast.ms_ssim(X, X, window_size=(5, 5, 5))
    with pytest.raises(ValueError, match="one number or 2"):
        ssimfast.ssim(X, X, window_size=(5, 5, 5))


def test_equal_windows_by_axis_are_one_window():
    for measure in (ssimfast.ssim, ssimfast.similarity_loss):
        by_axis = measure(X, X / 2, window_size=(5, 5), sigma=[0.9, 0.9])
        assert torch.equal(by_axis, measure(X, X / 2, window_size=5, sigma=0.9))
    ssimfast.ssim(X, X, window_size=(5, 5), padding="reflect")


def test_video_is_told_to_be_flattened():
    video = torch.rand(1, 4, 3, 24, 24)
    for measure in (ssimfast.ssim, ssimfast.ms_ssim, ssimfast.similarity_loss, fused_ssim):
        with pytest.raises(ValueError, match=r"flatten\(0, 1\)"):
            measure(video, video)


def test_mistakes_of_ranges_and_maps():
    for wrong, message in (
        (torch.tensor([1.0, 2.0, 3.0]), r"each of 2 images, got \(3,\)"),
        (torch.tensor([1.0, 0.0]), r"between 1e-15 and 1e\+15, got \[1.0, 0.0\]"),
        (torch.tensor(float("inf")), "between 1e-15 and .*got inf"),
        (torch.tensor(1e-16), "between 1e-15 and .*got 1.0"),
        (torch.ones(2, 1), r"shape \(\) or \(N,\), got \(2, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ssimfast.ssim(X, X, data_range=wrong)
    with pytest.raises(ValueError, match="return_map must be.*got 'luminance'"):
        ssimfast.ssim(X, X, return_map="luminance")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"alpha": 1.5}, ValueError, "alpha must be between 0 and 1, got 1.5"),
        ({"alpha": -0.1}, ValueError, "alpha must be between 0.*got -0.1"),
        ({"alpha": "1"}, TypeError, "alpha must be a number, got '1'"),
        ({"l1": 0.5}, TypeError, "MixLoss.*'l1'"),
        ({"windowsize": 5}, TypeError, "windowsize"),
        ({"preset": "matlab"}, ValueError, "preset must be .*, got 'matlab'"),
    ],
    ids=str,
)
def test_mistakes_of_mix_loss(arguments, error, message):
    with pytest.raises(error, match=message):
        ssimfast.MixLoss(**arguments)


def test_arguments_are_keyword_only():
    for function in FUNCTIONS.values():
        with pytest.raises(TypeError, match="positional"):
            function.of(X, X, (0, 1))
    with pytest.raises(TypeError, match="reduction"):
        ssimfast.ssim_components(X, X, reduction="mean")


def test_numpy_scalars_are_numbers():
    arguments = {"window_size": np.int64(7), "sigma": np.float32(1.5), "data_range": np.float32(2)}
    want = ssimfast.ssim(X, X.flip(-1), window_size=7, sigma=1.5, data_range=2)
    assert torch.equal(ssimfast.ssim(X, X.flip(-1), **arguments), want)
    weights = tuple(np.float32([0.5, 0.25]))
    want = ssimfast.ms_ssim(X, X.flip(-1), weights=(0.5, 0.25))
    assert torch.equal(ssimfast.ms_ssim(X, X.flip(-1), weights=weights), want)


def test_the_message_about_a_small_image_says_what_to_do():
    with pytest.raises(ValueError, match="weights") as caught:
        ssimfast.ms_ssim(X, X)
    message = str(caught.value)
    assert "48 x 50" in message and "176" in message and "auto" in message
    assert ssimfast.ms_ssim(X, X, weights="auto") == 1
