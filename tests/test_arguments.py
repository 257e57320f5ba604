"""Bad input: each mistake gets an error that names the argument and prints what came."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

import ssimfast

X = torch.rand(2, 3, 16, 18)

MISTAKES = {
    "shape": ((X, X[..., :-1]), {}, ValueError, r"\(2, 3, 16, 18\) and \(2, 3, 16, 17\)"),
    "broadcastable_shape": ((X, X[:1]), {}, ValueError, r"same shape.*\(1, 3, 16, 18\)"),
    "dtype": ((X, X.double()), {}, ValueError, "dtype, got torch.float32 and torch.float64"),
    "dtype_on_meta": ((X.to("meta"), X.half().to("meta")), {}, ValueError, "dtype, got torch.f"),
    "device": ((X, X.to("meta")), {}, ValueError, "device, got cpu and meta"),
    "integer": ((X.int(), X.int()), {}, TypeError, "x must be float16.*got torch.int32.*float"),
    "complex": ((X.cfloat(), X.cfloat()), {}, TypeError, "got torch.complex64"),
    "rank": ((X[0], X[0]), {}, ValueError, r"x must have shape \(N, C, H, W\).*\(3, 16, 18\)"),
    "rank_of_y": ((X, X[0]), {}, ValueError, r"y must have shape \(N, C, H, W\)"),
    "no_tensor": ((X, X.numpy()), {}, TypeError, "y must be a tensor, got ndarray"),
    "even_window": ((X, X), {"window_size": 8}, ValueError, "window_size must be odd.*got 8"),
    "large_window": ((X, X), {"window_size": 35}, ValueError, "between 1 and 33, got 35"),
    "no_window": ((X, X), {"window_size": 0}, ValueError, "got 0"),
    "window_float": ((X, X), {"window_size": 11.0}, TypeError, "must be an int, got 11.0"),
    "window_bool": ((X, X), {"window_size": True}, TypeError, "must be an int, got True"),
    "small_image": ((X, X), {"window_size": 17}, ValueError, "16 x 18 pixels.*window_size 17"),
    "small_for_channels_are_last": (
        (X.movedim(1, 3), X.movedim(1, 3)),
        {},
        ValueError,
        r'18 x 3 pixels.*"same", or x.permute\(0, 3, 1, 2\) if x is \(N, H, W, C\)$',
    ),
    "small_to_reflect_for_channels_are_last": (
        (X.movedim(1, 3), X.movedim(1, 3)),
        {"padding": "reflect"},
        ValueError,
        r"18 x 3 pixels.*or x.permute\(0, 3, 1, 2\)",
    ),
    "small_however_it_is_turned": ((X[..., :3], X[..., :3]), {}, ValueError, 'padding="same"$'),
    "no_pixels": ((X[..., :0], X[..., :0]), {}, ValueError, "16 x 0 pixels"),
    "sigma_zero": ((X, X), {"sigma": 0}, ValueError, "sigma must be greater than 0, got 0"),
    "sigma_negative": ((X, X), {"sigma": -1.5}, ValueError, "got -1.5"),
    "sigma_nan": ((X, X), {"sigma": float("nan")}, ValueError, "sigma must be between.*got nan"),
    "sigma_text": ((X, X), {"sigma": "1.5"}, TypeError, "sigma must be a number, got '1.5'"),
    "k1_negative": ((X, X), {"k1": -0.1}, ValueError, "k1 must be between 0 and 1e.15, got -0.1"),
    "range_upside_down": ((X, X), {"value_range": (1, 0)}, ValueError, r"low < high, got \(1, 0\)"),
    "range_empty": ((X, X), {"value_range": (1, 1)}, ValueError, r"low < high, got \(1, 1\)"),
    "range_infinite": ((X, X), {"value_range": (0, float("inf"))}, ValueError, "got inf"),
    "range_one_number": ((X, X), {"value_range": 255}, TypeError, r"pair \(low, high\), got 255"),
    "range_twice": (
        (X, X),
        {"value_range": (0, 1), "data_range": 2},
        ValueError,
        r"not both: got \(0, 1\) and 2",
    ),
    "data_range_zero": ((X, X), {"data_range": 0}, ValueError, "data_range.*at least 1e-15, got 0"),
    "data_range_tiny": ((X, X), {"data_range": 1e-39}, ValueError, "at least 1e-15, got 1e-39"),
    "data_range_huge": ((X, X), {"data_range": 10**400}, ValueError, "between.*got 1000"),
    "range_tiny": ((X, X), {"value_range": (0, 1e-39)}, ValueError, "at least 1e-15 wide"),
    "k2_huge": ((X, X), {"k2": 1e200}, ValueError, "k2 must be between"),
    "padding": ((X, X), {"padding": "zeros"}, ValueError, "valid, same, reflect, got 'zeros'"),
    "reduction": ((X, X), {"reduction": "avg"}, ValueError, "mean, sum, batch, none, got 'avg'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    images, arguments, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        ssimfast.ssim(*images, **arguments)
    if arguments and not mistake.startswith("small"):  # modules find these before any image
        for module in (ssimfast.SSIM, ssimfast.SSIMLoss):
            with pytest.raises(error, match=message):
                module(**arguments)


def test_numpy_scalars_are_numbers():
    arguments = {"window_size": np.int64(7), "sigma": np.float32(1.5), "data_range": np.float32(2)}
    want = ssimfast.ssim(X, X.flip(-1), window_size=7, sigma=1.5, data_range=2)
    assert torch.equal(ssimfast.ssim(X, X.flip(-1), **arguments), want)


def test_arguments_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        ssimfast.ssim(X, X, (0, 1))


def test_modules():
    y = torch.rand_like(X)
    arguments = {"value_range": (-1, 1), "window_size": 7, "padding": "same", "k2": 0.05}
    for reduction in ("mean", "batch", "none"):
        want = ssimfast.ssim(X, y, reduction=reduction, **arguments)
        torch.testing.assert_close(ssimfast.SSIM(reduction=reduction, **arguments)(X, y), want)
        loss = ssimfast.SSIMLoss(reduction=reduction, **arguments)
        torch.testing.assert_close(loss(X, y), 1 - want)
    want = (1 - ssimfast.ssim(X, y, reduction="none")).sum()
    torch.testing.assert_close(ssimfast.SSIMLoss(reduction="sum")(X, y), want)
    assert "window_size=7" in repr(ssimfast.SSIM(**arguments))


def test_a_mix_shows_its_own_arguments():
    shown = repr(ssimfast.MixLoss(alpha=0.7, weights="auto"))
    assert "alpha=0.7" in shown and "weights='auto'" in shown and "ssim=" not in shown
    assert list(inspect.signature(ssimfast.MixLoss).parameters)[0] == "alpha"


def test_modules_survive_copying_and_pickling():
    module = ssimfast.SSIMLoss(window_size=7, value_range=(-1, 1))
    want = module(X, X.flip(-1))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(X, X.flip(-1)), want)
    assert not list(module.parameters()) and not module.state_dict()
