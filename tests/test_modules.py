"""Modules: each gives what its function gives, shows its arguments, is copied and pickled."""

import copy
import inspect
import pickle

import pytest
import torch
from comparison import TERMS
from promises import pair

import ssimfast

TWO = (0.4, 0.6)
WINDOW = {"value_range": (-1, 1), "window_size": 7, "padding": "same", "k2": 0.05}
PYRAMID = {**WINDOW, "weights": TWO, "odd": "pad", "channels": "joint", "negative": "abs"}
FACTORS = {"ssim": 0.3, "ms_ssim": 0.5, "l1": 0.7, "l2": 0.9, "gaussian_l1": 1.1}
# The function, the module of the similarity and that of the loss, arguments, reductions.
MODULES = {
    "ssim": (
        ssimfast.ssim,
        ssimfast.SSIM,
        ssimfast.SSIMLoss,
        WINDOW,
        ("mean", "batch", "none"),
    ),
    "ms_ssim": (
        ssimfast.ms_ssim,
        ssimfast.MSSSIM,
        ssimfast.MSSSIMLoss,
        PYRAMID,
        ("mean", "batch", "none"),
    ),
    "similarity_loss": (
        ssimfast.similarity_loss,
        ssimfast.SimilarityLoss,
        None,
        {**PYRAMID, **FACTORS},
        ("mean", "batch"),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_their_functions(name):
    function, module, loss, arguments, reductions = MODULES[name]
    x, y = pair(2, 3, 25, 28)
    for reduction in reductions:
        want = function(x, y, reduction=reduction, **arguments)
        torch.testing.assert_close(module(reduction=reduction, **arguments)(x, y), want)
        if loss is not None:
            got = loss(reduction=reduction, **arguments)(x, y)
            torch.testing.assert_close(got, 1 - want)
    if loss is not None:  # the sum of 1 - SSIM, not 1 minus the sum
        want = (1 - function(x, y, reduction="none", **arguments)).sum()
        torch.testing.assert_close(loss(reduction="sum", **arguments)(x, y), want)
    shown = repr(module(**arguments))
    for text in (
        "window_size=7",
        "k2=0.05",
        *(["odd='pad'", "weights=(0.4, 0.6)"] * ("odd" in arguments)),
    ):
        assert text in shown


def test_similarity_loss_returns_its_terms():
    module = ssimfast.SimilarityLoss(return_terms=True, **PYRAMID, **FACTORS)
    _, terms = module(*pair(2, 3, 25, 28))
    assert set(terms) == set(TERMS) and "l2=0.9" in repr(module)


def test_mix_loss():
    x, y = pair(2, 3, 25, 28)
    arguments = {"weights": TWO, "value_range": (-1, 1), "window_size": 7}
    for alpha in (0.0, 0.3, 1.0):
        want = ssimfast.similarity_loss(
            x, y, ssim=0.0, ms_ssim=alpha, gaussian_l1=1 - alpha, **arguments
        )
        torch.testing.assert_close(ssimfast.MixLoss(alpha=alpha, **arguments)(x, y), want)
    x, y = pair(1, 1, 176, 176)  # the defaults are those of Zhao et al. 2017
    want = ssimfast.similarity_loss(x, y, ssim=0.0, ms_ssim=0.84, gaussian_l1=0.16)
    torch.testing.assert_close(ssimfast.MixLoss()(x, y), want)
    shown = repr(ssimfast.MixLoss(alpha=0.7, weights="auto"))
    assert "alpha=0.7" in shown and "weights='auto'" in shown and "ssim=" not in shown
    assert list(inspect.signature(ssimfast.MixLoss).parameters)[0] == "alpha"


@pytest.mark.parametrize(
    "module",
    [
        ssimfast.SSIMLoss(window_size=7, value_range=(-1, 1)),
        ssimfast.MSSSIM(weights=TWO),
        ssimfast.MSSSIMLoss(weights="auto"),
        ssimfast.SimilarityLoss(weights=TWO, **FACTORS),
        ssimfast.MixLoss(weights="auto", alpha=0.5),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_survive_copying_and_pickling(module):
    x, y = pair(1, 1, 25, 28)
    want = module(x, y)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x, y), want)
    assert not list(module.parameters()) and not module.state_dict()
