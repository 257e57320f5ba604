"""Presets, and the plain arguments, that give what other libraries give.

The values of the libraries are recorded (record_peers.py), so they need not be installed; where one
is, it is called as well, and its gradient is compared too.
"""

import json
from functools import cache
from itertools import product

import numpy as np
import pytest
import record_peers
import torch
from comparison import as_float64, on_default_device
from peer_images import images
from torch import Tensor

import ssimfast

PRESETS = ("wang2004", "pytorch-msssim", "torchmetrics", "skimage", "tf", "fused-ssim", "3dgs")
# Of values, which lie in [-1, 1], and of gradients, relative to the largest. What is used of it is
# the libraries' own: pytorch_msssim and 3D Gaussian Splatting round the window to float32, so that
# its taps do not quite sum to 1 (6e-5 of the gradient), kornia has an eps (1e-5).
TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


def turned_ms_ssim(x: Tensor, y: Tensor, **arguments) -> Tensor:
    """MS-SSIM of the images turned by half: their first rows and columns become the last."""
    return ssimfast.ms_ssim(x.flip(-2, -1), y.flip(-2, -1), **arguments)


# What calls of other libraries (record_peers.PEERS) are in ours. They cannot be reproduced
# - in piq.ssim with its default downsample=True, for images of 384 pixels or more, which it pools;
# - in piq.multi_scale_ssim where, at some scale, one side of the image is odd and the other even:
#   it then repeats the first row and the first column, and so shifts the pairs of the even side.
#   Where both are odd, that is repeating the last ones of the image turned by half, as below;
# - in torchmetrics with normalize=None, which has NaN where a mean is negative, or "simple", which
#   takes (mean + 1) / 2, and with a range (low, high), to which it clamps the images. Its
#   kernel_size means nothing beside a Gaussian, where sigma decides (11 pixels for 1.5);
# - in kornia.metrics.ssim where both images are black: eps=1e-12 in its denominator takes 1.1e-5
#   away there. kornia.losses.MS_SSIMLoss is another statistic: several Gaussians, no pyramid;
# - in pytorch_msssim with nonnegative_ssim=True, which takes a channel's mean below 0 as 0, and for
#   images smaller than the window, where it leaves out the blur;
# - in skimage with gradient=True: that is the gradient of a mean that includes the borders, which
#   the value does not.
OURS = {
    "skimage_wang2004": (ssimfast.ssim, {"preset": "wang2004"}),
    "skimage_default": (ssimfast.ssim, {"preset": "skimage"}),
    "pytorch_msssim_ssim": (ssimfast.ssim, {"preset": "pytorch-msssim"}),
    "pytorch_msssim_ms_ssim": (ssimfast.ms_ssim, {"preset": "pytorch-msssim"}),
    "torchmetrics_ssim": (ssimfast.ssim, {"preset": "torchmetrics"}),
    "torchmetrics_ssim_uniform": (
        ssimfast.ssim,
        {"preset": "torchmetrics", "window": "uniform", "window_size": 7},
    ),
    "torchmetrics_ms_ssim": (ssimfast.ms_ssim, {"preset": "torchmetrics"}),
    "piq_ssim": (ssimfast.ssim, {}),
    "piq_ms_ssim": (turned_ms_ssim, {"odd": "replicate"}),
    "kornia_ssim_valid": (ssimfast.ssim, {}),
    "kornia_ssim_default": (ssimfast.ssim, {"padding": "reflect"}),
    "kornia_ssim3d_valid": (ssimfast.ssim, {}),
    "tf_ssim": (ssimfast.ssim, {"preset": "tf"}),
    "tf_ms_ssim": (ssimfast.ms_ssim, {"preset": "tf"}),
    "3dgs_ssim": (ssimfast.ssim, {"preset": "3dgs"}),
    "fused_ssim": (ssimfast.ssim, {"preset": "fused-ssim"}),
}

# The presets spelled out. Those that say nothing about MS-SSIM leave its arguments as they are.
WINDOWS = {
    "wang2004": {},
    "pytorch-msssim": {},
    "torchmetrics": {"padding": "reflect"},
    "skimage": {"window": "uniform", "window_size": 7, "sample_covariance": True},
    "tf": {},
    "fused-ssim": {"padding": "same"},
    "3dgs": {"padding": "same"},
}
PYRAMIDS = {
    "pytorch-msssim": {"odd": "pad", "negative": "relu", "channels": "separate"},
    "torchmetrics": {"odd": "floor", "negative": "relu", "channels": "joint"},
    "tf": {"odd": "replicate", "negative": "relu", "channels": "separate"},
}


@cache
def pair(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(image).to(dtype) for image in images(name))
    return x, y


RECORDS = {
    f"{record['peer']}-{record['image']}": record
    for record in json.loads(record_peers.RECORDS.read_text())
}


def test_all_peers_are_recorded():
    recorded = {(r["peer"], r["image"], str(r["arguments"])) for r in RECORDS.values()}
    assert recorded == {
        (name, image, str(peer.arguments))
        for name, peer in record_peers.PEERS.items()
        for image in peer.images
    }
    assert OURS.keys() == record_peers.PEERS.keys()
    assert {arguments.get("preset") for _, arguments in OURS.values()} == {None, *PRESETS}


def without_kernels(record: str) -> bool:
    """True if GPUs have no kernel of ours for the call: volumes, and borders by reflection."""
    _, arguments = OURS[RECORDS[record]["peer"]]
    window = {**WINDOWS.get(arguments.get("preset"), {}), **arguments}
    return RECORDS[record]["image"] == "volume" or window.get("padding") == "reflect"


def assert_gives(records: list[str]) -> None:
    for record in records:
        peer, image, value = (RECORDS[record][key] for key in ("peer", "image", "value"))
        function, arguments = OURS[peer]
        for dtype in (torch.float64, torch.float32):
            x, y = on_default_device(*pair(image, dtype))
            what = f"{record}, {dtype}"
            assert_near(function(x, y, reduction="batch", **arguments), value, what)
            assert_near(function(x, y, **arguments), np.mean(value), what)


SERVED = [record for record in RECORDS if not without_kernels(record)]


@pytest.mark.backends("cpu", "reference", "cuda", "triton")
def test_recorded_values(backend):
    assert len(SERVED) > 25
    assert_gives(SERVED)


@pytest.mark.long  # a minute for the pyramids
@pytest.mark.backends("cuda-emulated")
def test_recorded_values_by_emulated_kernels(backend):
    assert_gives(SERVED)


@pytest.mark.backends("cpu", "reference")
def test_recorded_values_of_volumes_and_reflections(backend):
    others = RECORDS.keys() - SERVED
    assert len(others) > 5
    assert_gives(sorted(others))


def assert_near(actual: Tensor, expected, what: str = "") -> None:
    expected = np.asarray(expected)
    assert actual.numel() == expected.size  # peers give one image's value as a scalar, too
    error = np.abs(as_float64(actual).ravel() - expected.ravel()).max()
    assert error <= TOLERANCE, f"{what} off by {error:.2e}: {actual} is not {expected}"


# Those that run beside PyTorch on the CPU, with what each needs of the machine.
TOOLS = {
    "scikit-image": "skimage",
    "pytorch-msssim": "pytorch_msssim",
    "torchmetrics": "torchmetrics",
    "piq": "piq",
    "kornia": "kornia",
}
SLOW = ("torchmetrics_ms_ssim", "kornia_ssim3d_valid")  # seconds; elsewhere the recorded values


def of_installed(name: str, *rest: str, long: bool = False):
    marks = [pytest.mark.needs(TOOLS[record_peers.PEERS[name].library])]
    return pytest.param(name, *rest, marks=[*marks, pytest.mark.long] if long else marks)


@pytest.mark.parametrize(
    "name",
    [
        of_installed(name, long=name in SLOW)
        for name, peer in record_peers.PEERS.items()
        if peer.library in TOOLS
    ],
)
def test_installed_libraries(name):
    for image in record_peers.PEERS[name].images:
        assert_agrees(name, image)


def assert_agrees(name: str, image: str) -> None:
    peer = record_peers.PEERS[name]
    function, arguments = OURS[name]
    x, y = (value.clone().requires_grad_() for value in pair(image, torch.float64))
    actual = function(x, y, reduction="batch", **arguments)
    if peer.call is not record_peers.of_tensors:  # no gradient, or not that of the value
        assert_near(actual, record_peers.value(peer, image))
        return
    expected = peer.call(peer.load(), x, y, peer.arguments)
    assert_near(actual, expected.detach().numpy())
    want = torch.autograd.grad(expected.mean(), (x, y))
    for dtype in (torch.float64, torch.float32):
        a, b = (value.clone().requires_grad_() for value in pair(image, dtype))
        grads = torch.autograd.grad(function(a, b, **arguments), (a, b))
        for grad, theirs in zip(grads, want, strict=True):
            assert theirs.isfinite().all() and theirs.abs().max() > 0
            error = (grad.double() - theirs).abs().max() / theirs.abs().max()
            assert error <= GRADIENT_TOLERANCE, f"{dtype}: gradient off by {error:.2e}"


@pytest.mark.parametrize(
    "name, image",
    [
        of_installed("skimage_default", "even"),
        of_installed("pytorch_msssim_ssim", "even"),
        of_installed("pytorch_msssim_ms_ssim", "pyramid_odd"),
        of_installed("torchmetrics_ms_ssim", "pyramid_odd", long=True),
    ],
)
def test_images_up_to_255(name, image):
    peer = record_peers.PEERS[name]
    function, arguments = OURS[name]
    x, y = (255 * value for value in pair(image, torch.float64))
    theirs = (x, y) if peer.call is record_peers.of_tensors else (x.numpy(), y.numpy())
    expected = peer.call(peer.load(), *theirs, {**peer.arguments, "data_range": 255.0})
    for dtype in (torch.float64, torch.float32):
        actual = function(x.to(dtype), y.to(dtype), data_range=255, reduction="batch", **arguments)
        assert_near(actual, expected)


def spelled_out(function: str, preset: str) -> dict:
    return WINDOWS[preset] | (PYRAMIDS.get(preset, {}) if function == "ms_ssim" else {})


FUNCTIONS = {"ssim": (ssimfast.ssim, "even"), "ms_ssim": (ssimfast.ms_ssim, "pyramid_odd")}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_arguments(preset):
    for function, (call, image) in FUNCTIONS.items():
        x, y = pair(image, torch.float32)
        want = call(x, y, **spelled_out(function, preset))
        assert torch.equal(call(x, y, preset=preset), want)
    x, y = pair("even", torch.float32)
    parts = ssimfast.ssim_components(x, y, preset=preset)
    want = ssimfast.ssim(x, y, **spelled_out("ssim", preset))
    assert_near((parts.luminance * parts.contrast_structure).mean(), want.item())


def test_no_preset():
    for call, image in FUNCTIONS.values():
        x, y = pair(image, torch.float32)
        assert torch.equal(call(x, y, preset=None), call(x, y))


# Also where what is given is the default of an argument that the preset changes.
@pytest.mark.parametrize(
    "function, preset, given",
    [
        ("ssim", "fused-ssim", {"padding": "valid"}),
        ("ssim", "torchmetrics", {"padding": "same", "value_range": (-1, 1)}),
        ("ssim", "skimage", {"window": "gaussian"}),
        ("ssim", "skimage", {"window_size": 11}),
        ("ssim", "skimage", {"sample_covariance": False}),
        ("ssim", "tf", {"window_size": 7, "sigma": 1.0, "k1": 0.02, "k2": 0.05}),
        ("ms_ssim", "fused-ssim", {"padding": "valid"}),
        ("ms_ssim", "torchmetrics", {"padding": "valid"}),
        ("ms_ssim", "torchmetrics", {"channels": "separate"}),
        ("ms_ssim", "pytorch-msssim", {"odd": "floor", "weights": (0.5, 0.5)}),
        ("ms_ssim", "tf", {"odd": "pad", "negative": "abs", "channels": "joint"}),
    ],
)
def test_arguments_take_precedence(function, preset, given):
    call, image = FUNCTIONS[function]
    x, y = pair(image, torch.float32)
    actual = call(x, y, preset=preset, **given)
    assert torch.equal(actual, call(x, y, **(spelled_out(function, preset) | given)))
    assert not torch.equal(actual, call(x, y, preset=preset))


MODULES = {
    "SSIM": (ssimfast.SSIM, "ssim"),
    "SSIMLoss": (ssimfast.SSIMLoss, "ssim"),
    "MSSSIM": (ssimfast.MSSSIM, "ms_ssim"),
    "MSSSIMLoss": (ssimfast.MSSSIMLoss, "ms_ssim"),
}


@pytest.mark.parametrize("module", MODULES)
def test_modules_take_presets(module):
    make, function = MODULES[module]
    call, image = FUNCTIONS[function]
    x, y = pair(image, torch.float32)
    for preset, given in product(PRESETS, ({}, {"padding": "valid", "value_range": (0, 2)})):
        want = call(x, y, preset=preset, **given)
        want = 1 - want if module.endswith("Loss") else want
        torch.testing.assert_close(make(preset=preset, **given)(x, y), want)


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_take_presets(preset):
    x, y = pair("pyramid_odd", torch.float32)
    factors = {"ssim": 0.5, "ms_ssim": 0.25}
    given = {}
    if preset == "torchmetrics":  # the loss has no gradient through a reflected border
        for call in (
            lambda: ssimfast.similarity_loss(x, y, preset=preset, **factors),
            lambda: ssimfast.SimilarityLoss(preset=preset, **factors),
            lambda: ssimfast.MixLoss(preset=preset),
        ):
            with pytest.raises(ValueError, match="padding.*reflect"):
                call()
        given = {"padding": "valid"}  # as for every argument: what is given counts
    want = 0.5 * (1 - ssimfast.ssim(x, y, preset=preset, **given))
    want = want + 0.25 * (1 - ssimfast.ms_ssim(x, y, preset=preset, **given))
    actual = ssimfast.similarity_loss(x, y, preset=preset, **factors, **given)
    torch.testing.assert_close(actual, want)
    module = ssimfast.SimilarityLoss(preset=preset, **factors, **given)
    torch.testing.assert_close(module(x, y), want)


def test_mix_loss_takes_presets():
    x, y = pair("pyramid_odd", torch.float32)
    for preset in ("pytorch-msssim", "3dgs"):
        want = ssimfast.similarity_loss(
            x, y, ssim=0, ms_ssim=0.84, gaussian_l1=0.16, **spelled_out("ms_ssim", preset)
        )
        torch.testing.assert_close(ssimfast.MixLoss(preset=preset)(x, y), want)


def test_loss_of_3d_gaussian_splatting():
    x, y = pair("even", torch.float64)
    recorded = np.mean(RECORDS["3dgs_ssim-even"]["value"])
    want = 0.8 * (x - y).abs().mean().item() + 0.2 * (1 - recorded)
    assert_near(ssimfast.similarity_loss(x, y, l1=0.8, ssim=0.2, preset="3dgs"), want)


@pytest.mark.parametrize("preset", ["matlab", "SKIMAGE", ""])
def test_unknown_preset(preset):
    x, y = pair("even", torch.float32)
    for call in (
        lambda: ssimfast.ssim(x, y, preset=preset),
        lambda: ssimfast.ssim_components(x, y, preset=preset),
        lambda: ssimfast.ms_ssim(x, y, preset=preset),
        lambda: ssimfast.similarity_loss(x, y, preset=preset),
        *(
            lambda make=make: make(preset=preset)
            for make in (
                ssimfast.SSIM,
                ssimfast.SSIMLoss,
                ssimfast.MSSSIM,
                ssimfast.MSSSIMLoss,
                ssimfast.SimilarityLoss,
                ssimfast.MixLoss,
            )
        ),
    ):
        with pytest.raises(ValueError, match=f"preset must be .*, got {preset!r}") as error:
            call()
        for choice in PRESETS:
            assert choice in str(error.value)
