"""Values, terms and gradients of ssimfast.similarity_loss against an independent float64 oracle."""

import copy
import itertools
import pickle

import numpy as np
import oracle
import pytest
import torch
from comparison import (
    HARD,
    TERMS,
    TILE_COLUMNS,
    TILE_ROWS,
    TOLERANCES,
    as_float64,
    assert_near,
    assert_similarity_matches_oracle,
)
from hypothesis import given
from hypothesis import strategies as st
from promises import assert_same_bits_for_every_number_of_threads, drawn, few, pair

import ssimfast

TWO, THREE = (0.4, 0.6), (0.2, 0.3, 0.5)
ONLY = {name: {"ssim": 0.0, name: 1.0} for name in TERMS}
ALL = {"ssim": 0.3, "ms_ssim": 0.5, "l1": 0.7, "l2": 0.9, "gaussian_l1": 1.1}
MIXTURES = {
    **ONLY,
    "3dgs": {"ssim": 0.2, "l1": 0.8},  # Kerbl et al. 2023
    "zhao": {"ssim": 0.0, "ms_ssim": 0.84, "gaussian_l1": 0.16},  # Zhao et al. 2017
    "pixels": {"ssim": 0.0, "l1": 0.25, "l2": 4.0, "gaussian_l1": 0.5},
    "both_similarities": {"ssim": 0.3, "ms_ssim": 2.0},  # 2.3 - 0.3 - 2.0 is not 0
    "one_scale": {"ssim": 0.5, "ms_ssim": 0.5, "weights": (0.9,)},
    "all_without_ms_ssim": {**ALL, "ms_ssim": 0.0},
    "all": ALL,
}

SIZES = {
    "one_window": (1, 1, 11, 11, (1.0,)),
    "one_window_of_two_scales": (2, 3, 22, 23, TWO),
    "primes": (2, 3, 47, 53, THREE),
    "many_planes": (40, 3, 22, 24, TWO),
    # Narrower than the blur of the coarsest scale, which has a radius of 20 pixels.
    "narrow": (1, 2, 44, 150, THREE),
    # The smallest image of the paper's five scales: the blur has a radius of 80 pixels.
    "paper": (1, 1, 176, 180, oracle.WANG),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_mixture(backend, mixture, padding):
    assert_similarity_matches_oracle(
        *pair(2, 3, 28, 33), **{"weights": TWO, "padding": padding, **mixture}
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_shape(backend, size):
    *shape, weights = SIZES[size]
    assert_similarity_matches_oracle(*pair(*shape), weights=weights, **ALL)


def test_every_pair_of_terms(backend):
    """Terms share a sweep: each with each other, and in each order of magnitude."""
    x, y = pair(1, 2, 24, 27)
    for one, other in itertools.permutations(TERMS, 2):
        factors = {"ssim": 0.0, one: 2.0, other: 0.01}
        assert_similarity_matches_oracle(x, y, weights=TWO, **factors)


@pytest.mark.parametrize(
    "height, width",
    [
        (2 * TILE_ROWS, 24),
        (2 * TILE_ROWS + 11, 24),
        (22, TILE_COLUMNS + 1),
        (24, 2 * TILE_COLUMNS + 10),
    ],
)
@pytest.mark.parametrize("mixture", ["all_without_ms_ssim", "all"])
def test_boundaries_of_tiles(backend, mixture, height, width):
    assert_similarity_matches_oracle(*pair(1, 1, height, width), weights=TWO, **MIXTURES[mixture])


def test_boundaries_of_both(backend):
    assert_similarity_matches_oracle(*pair(1, 1, 150, 1000), weights=TWO, window_size=5, **ALL)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 8), (2, 1, 10, 10)], ids=str)
@pytest.mark.parametrize("odd", ["floor", "replicate"])
def test_smaller_than_the_window(backend, shape, odd):
    weights = (1.0,) if shape[2] == 1 and odd == "floor" else TWO
    assert_similarity_matches_oracle(*pair(*shape), padding="same", odd=odd, weights=weights, **ALL)


@pytest.mark.parametrize("name", ["l1", "l2", "gaussian_l1"])
def test_losses_of_pixels_need_no_window(backend, name):
    assert_similarity_matches_oracle(*pair(2, 1, 3, 5), **ONLY[name])
    assert_similarity_matches_oracle(*pair(2, 1, 13, 15), **ONLY[name], k1=0.0, k2=0.0)


ARGUMENTS = {
    "window_3": {"window_size": 3, "sigma": 0.9},
    "window_1": {"window_size": 1},
    "window_13": {"window_size": 13, "sigma": 3.0},
    "uniform": {"window": "uniform", "window_size": 7},
    "sample_covariance": {"sample_covariance": True, "window_size": 7},
    "constants": {"k1": 0.05, "k2": 0.2},
    "tanh": {"value_range": (-1, 1)},
    "8_bit": {"data_range": 255},
    "pad": {"odd": "pad"},
    "replicate": {"odd": "replicate"},
    "joint": {"channels": "joint"},
    "abs": {"negative": "abs"},
    "raise": {"negative": "raise"},
    "no_weight": {"weights": (0.0, 0.0)},
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_every_argument(backend, case):
    arguments = {"weights": TWO, **ARGUMENTS[case]}
    low, high = arguments.get("value_range", (0, arguments.get("data_range", 1)))
    x, y = (low + (high - low) * image for image in pair(2, 3, 29, 32))
    assert_similarity_matches_oracle(x, y, **arguments, **ALL)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("window_size", [3, 11, 33])
def test_blurred_l1_of_every_window(backend, window, window_size):
    x, y = pair(1, 2, 37, 41)
    arguments = {"window": window, "window_size": window_size, "sigma": window_size / 5}
    assert_similarity_matches_oracle(x, y, **ONLY["gaussian_l1"], **arguments)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("mixture", ["3dgs", "zhao", "all"])
def test_every_dtype(backend, mixture, dtype):
    x, y = pair(2, 3, 33, 40, dtype=dtype)
    assert_similarity_matches_oracle(x, y, weights=TWO, **MIXTURES[mixture])


def test_auto_weights(backend):
    x, y = pair(1, 1, 44, 50)
    weights = [weight * 1.0001 / sum(oracle.WANG[:3]) for weight in oracle.WANG[:3]]
    got, terms = ssimfast.similarity_loss(x, y, weights="auto", return_terms=True, **ALL)
    want, parts = ssimfast.similarity_loss(x, y, weights=weights, return_terms=True, **ALL)
    torch.testing.assert_close(got, want)
    for name in TERMS:  # the blur, too, is that of three scales
        torch.testing.assert_close(terms[name], parts[name])


def test_default_is_1_minus_ssim(backend):
    x, y = pair(2, 3, 24, 27)
    torch.testing.assert_close(ssimfast.similarity_loss(x, y), 1 - ssimfast.ssim(x, y))


def test_terms_are_the_other_functions(backend):
    x, y = (2 * image - 1 for image in pair(2, 3, 24, 27))
    arguments = {"value_range": (-1, 1), "reduction": "batch"}
    loss, terms = ssimfast.similarity_loss(x, y, return_terms=True, weights=TWO, **ALL, **arguments)
    d = (x - y) / 2
    torch.testing.assert_close(terms["ssim"], ssimfast.ssim(x, y, **arguments))
    torch.testing.assert_close(terms["ms_ssim"], ssimfast.ms_ssim(x, y, weights=TWO, **arguments))
    torch.testing.assert_close(terms["l1"], d.abs().mean((1, 2, 3)))
    torch.testing.assert_close(terms["l2"], d.square().mean((1, 2, 3)))
    assert list(terms) == list(TERMS)


def test_blurred_l1_is_a_convolution(backend):
    x, y = pair(1, 1, 60, 64)
    taps = torch.tensor(oracle.taps("gaussian", 21, 3.0), dtype=torch.float32)
    blurred = torch.nn.functional.conv2d((x - y).abs(), taps.outer(taps)[None, None], padding=10)
    factors = {"ssim": 0.0, "ms_ssim": 0.5, "gaussian_l1": 0.5}
    _, terms = ssimfast.similarity_loss(x, y, weights=TWO, return_terms=True, **factors)
    torch.testing.assert_close(terms["gaussian_l1"], blurred.mean())


# ---- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_equal_images_give_exactly_zero_and_no_gradient(backend, mixture, dtype):
    flat = torch.full((1, 1, 25, 28), 0.3)
    for image in (torch.rand(2, 3, 25, 28), flat, flat * 0, flat + 1000):
        for reduction in ("mean", "batch"):
            x, y = (image.to(dtype).clone().requires_grad_() for _ in range(2))
            arguments = {"weights": TWO, "reduction": reduction, "return_terms": True, **mixture}
            loss, terms = ssimfast.similarity_loss(x, y, **arguments)
            assert (loss == 0).all()
            for name, term in terms.items():
                assert (term == (1 if "ssim" in name else 0)).all()
            loss.sum().backward()
            assert not x.grad.any() and not y.grad.any()


def test_negative_means(backend):
    x = torch.rand(1, 2, 24, 26)
    y = 1 - x
    arguments = {"ssim": 0.5, "ms_ssim": 0.5, "l1": 0.5, "weights": TWO}
    assert_similarity_matches_oracle(x, y, **arguments)
    tolerances = {**TOLERANCES[x.dtype], "pyramid": 1e-5}  # x + y keeps next to nothing of them
    assert_similarity_matches_oracle(x, y, tolerances, negative="abs", **arguments)
    with pytest.raises(ValueError, match="negative"):
        ssimfast.similarity_loss(x, y, negative="raise", **arguments)


def test_far_from_the_range(backend):
    x, y = 1000 + torch.rand(1, 1, 30, 33), 1000 + torch.rand(1, 1, 30, 33)
    assert_similarity_matches_oracle(x, y, HARD, **MIXTURES["all_without_ms_ssim"])


def test_differences_far_outside_of_the_range(backend):
    """The loss of pixels is not bounded; its gradient is that of the difference, however large."""
    x, y = 50 * torch.randn(1, 2, 20, 20), 50 * torch.randn(1, 2, 20, 20)
    assert_similarity_matches_oracle(x, y, {"mean": 1e-3, "grad": 2e-6, "map": 1e-3}, **ONLY["l2"])
    assert_similarity_matches_oracle(x, y, {"mean": 1e-5, "grad": 2e-6, "map": 1e-5}, **ONLY["l1"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", TERMS)
def test_nan_and_infinity_reach_their_image_and_no_other(backend, name, bad):
    x, y = pair(2, 1, 26, 27)
    arguments = {"weights": TWO, "reduction": "batch", **ONLY[name]}
    clean = ssimfast.similarity_loss(x.clone().requires_grad_(), y, **arguments)
    x[0, 0, 12, 13] = bad
    x.requires_grad_()
    losses = ssimfast.similarity_loss(x, y, **arguments)
    assert not losses[0].isfinite() and losses[1] == clean[1]
    losses.sum().backward()
    assert x.grad[1].isfinite().all()
    if "l1" not in name:  # of infinity, the difference still has a sign
        assert not x.grad[0, 0, 12, 13].isfinite()


@pytest.mark.parametrize("mixture", ["3dgs", "zhao", "all"])
def test_float16_gradients_survive_a_tiny_range(backend, mixture):
    x, y = torch.zeros(1, 1, 24, 24), 1e-4 * torch.rand(1, 1, 24, 24)
    x, y = x.half().requires_grad_(), y.half()
    arguments = {"data_range": 1e-3, "weights": TWO, **MIXTURES[mixture]}
    ssimfast.similarity_loss(x, y, **arguments).backward()
    want = oracle.similarity_loss(
        as_float64(x),
        as_float64(y),
        factors={"ssim": 1.0, **{name: arguments.get(name, 0) for name in TERMS}},
        high=1e-3,
        weights=TWO,
    ).grad_x
    limit = TOLERANCES[x.dtype]["pyramid"] * np.abs(want).max()
    assert x.grad.isfinite().all()
    assert_near(x.grad, want, limit, "gradient")


# ---- nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3, 24, 24), (2, 0, 24, 24)], ids=str)
@pytest.mark.parametrize("mixture", ["all", "all_without_ms_ssim", "l1"])
def test_empty_batch(backend, mixture, shape):
    x, y = torch.rand(shape).requires_grad_(), torch.rand(shape).requires_grad_()
    arguments = {"weights": TWO, "return_terms": True, **MIXTURES[mixture]}
    loss, terms = ssimfast.similarity_loss(x, y, **arguments)
    assert loss == 0
    assert all(term == (1 if "ssim" in name else 0) for name, term in terms.items())
    loss.backward()
    assert x.grad.shape == y.grad.shape == shape
    batch, terms = ssimfast.similarity_loss(x, y, reduction="batch", **arguments)
    assert batch.shape == shape[:1] and not batch.any()
    assert all(term.shape == shape[:1] for term in terms.values())


# ---- which gradients, how often -----------------------------------------------------------------


@pytest.mark.parametrize("mixture", ["zhao", "all_without_ms_ssim", "all"])
@pytest.mark.parametrize("reduction", ["mean", "batch"])
def test_gradcheck(backend, reduction, mixture):
    x, y = pair(2, 1, 5, 6, dtype=torch.float64)
    y = torch.where((x - y).abs() < 0.01, y + 0.02, y)  # |x - y| has a kink at 0
    arguments = {"window_size": 3, "weights": TWO, "value_range": (-1, 1), "odd": "pad"}
    assert torch.autograd.gradcheck(
        lambda a, b: ssimfast.similarity_loss(
            a, b, reduction=reduction, **arguments, **MIXTURES[mixture]
        ),
        (x.requires_grad_(), y.requires_grad_()),
    )


# ---- determinism --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 150, 130), (1, 1, 300, 1100)], ids=str)
@pytest.mark.parametrize("mixture", ["all", "all_without_ms_ssim"])
def test_same_bits_for_every_number_of_threads(mixture, shape):
    x, y = pair(*shape)
    arguments = {"weights": TWO, "return_terms": True, **MIXTURES[mixture]}

    def run():
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss, terms = ssimfast.similarity_loss(a, b, **arguments)
        loss.backward()
        return loss.detach(), a.grad, b.grad, *terms.values()

    assert_same_bits_for_every_number_of_threads(run)


# ---- properties ---------------------------------------------------------------------------------

factors = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.3, 2.0]) for name in TERMS}).filter(
    lambda factors: any(factors.values())
)
arguments_of_similarity_loss = st.fixed_dictionaries(
    {
        "weights": st.sampled_from([(1.0,), TWO, THREE]),
        "window_size": st.sampled_from([1, 3, 5]),
        "odd": st.sampled_from(["floor", "pad", "replicate"]),
        "channels": st.sampled_from(["separate", "joint"]),
        "padding": st.sampled_from(["valid", "same"]),
        "window": st.sampled_from(["gaussian", "uniform"]),
        "reduction": st.sampled_from(["mean", "batch"]),
    }
)
sides = st.integers(20, 40)
seeds = st.integers(0, 10**6)


@few
@given(seeds, sides, sides, factors, arguments_of_similarity_loss)
def test_linear_in_the_factors(seed, height, width, factors, arguments):
    x, y = drawn(seed, 2, 2, height, width)
    # The blur depends on whether there is MS-SSIM: a factor next to 0 keeps it.
    least = {"ssim": 0.0, "ms_ssim": 1e-12 if factors["ms_ssim"] else 0.0}
    loss, terms = ssimfast.similarity_loss(x, y, return_terms=True, **factors, **arguments)
    total = torch.zeros_like(loss)
    for name, factor in factors.items():
        if factor:
            alone = {**least, name: 1.0}
            total = total + factor * ssimfast.similarity_loss(x, y, **alone, **arguments)
    torch.testing.assert_close(loss, total, rtol=1e-9, atol=1e-9)
    of_terms = torch.zeros_like(loss)
    for name, term in terms.items():
        of_terms += factors[name] * (1 - term if "ssim" in name else term)
    torch.testing.assert_close(loss, of_terms, rtol=1e-12, atol=1e-12)


@few
@given(seeds, sides, sides, factors, arguments_of_similarity_loss)
def test_symmetric_and_not_negative(seed, height, width, factors, arguments):
    x, y = drawn(seed, 2, 2, height, width)
    loss = ssimfast.similarity_loss(x, y, **factors, **arguments)
    swapped = ssimfast.similarity_loss(y, x, **factors, **arguments)
    torch.testing.assert_close(loss, swapped, rtol=1e-12, atol=1e-12)
    assert (loss >= 0).all()


@few
@given(
    seeds,
    sides,
    sides,
    factors,
    arguments_of_similarity_loss,
    st.floats(-100, 100),
    st.floats(0.1, 300),
)
def test_images_and_range_may_be_mapped_together(
    seed, height, width, factors, arguments, low, length
):
    x, y = drawn(seed, 2, 2, height, width)
    mapped = ssimfast.similarity_loss(
        low + length * x,
        low + length * y,
        value_range=(low, low + length),
        **factors,
        **arguments,
    )
    plain = ssimfast.similarity_loss(x, y, **factors, **arguments)
    torch.testing.assert_close(mapped, plain, rtol=1e-6, atol=1e-6)


@few
@given(seeds, sides, sides, factors, arguments_of_similarity_loss)
def test_mean_is_the_mean_of_the_batch(seed, height, width, factors, arguments):
    x, y = drawn(seed, 2, 2, height, width)
    mean, batch = (
        ssimfast.similarity_loss(x, y, **factors, **{**arguments, "reduction": reduction})
        for reduction in ("mean", "batch")
    )
    torch.testing.assert_close(mean, batch.mean(), rtol=1e-12, atol=1e-12)


# ---- modules ------------------------------------------------------------------------------------


def test_modules():
    x, y = pair(2, 3, 25, 28)
    arguments = {"weights": TWO, "odd": "pad", "channels": "joint", "value_range": (-1, 1), **ALL}
    arguments |= {"window_size": 7, "padding": "same", "k2": 0.05, "negative": "abs"}
    for reduction in ("mean", "batch"):
        want = ssimfast.similarity_loss(x, y, reduction=reduction, **arguments)
        module = ssimfast.SimilarityLoss(reduction=reduction, **arguments)
        torch.testing.assert_close(module(x, y), want)
    _, terms = ssimfast.SimilarityLoss(return_terms=True, **arguments)(x, y)
    assert set(terms) == set(TERMS)
    for text in ("window_size=7", "odd='pad'", "weights=(0.4, 0.6)", "l2=0.9"):
        assert text in repr(ssimfast.SimilarityLoss(**arguments))


def test_mix_loss():
    x, y = pair(2, 3, 25, 28)
    arguments = {"weights": TWO, "value_range": (-1, 1), "window_size": 7}
    for alpha in (0.0, 0.3, 1.0):
        want = ssimfast.similarity_loss(
            x, y, ssim=0.0, ms_ssim=alpha, gaussian_l1=1 - alpha, **arguments
        )
        torch.testing.assert_close(ssimfast.MixLoss(alpha=alpha, **arguments)(x, y), want)
    x, y = pair(1, 1, 176, 176)
    want = ssimfast.similarity_loss(x, y, ssim=0.0, ms_ssim=0.84, gaussian_l1=0.16)
    torch.testing.assert_close(ssimfast.MixLoss()(x, y), want)


def test_modules_survive_copying_and_pickling():
    x, y = pair(1, 1, 25, 28)
    for module in (
        ssimfast.SimilarityLoss(weights=TWO, **ALL),
        ssimfast.MixLoss(weights="auto", alpha=0.5),
    ):
        want = module(x, y)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(copied(x, y), want)
        assert not list(module.parameters()) and not module.state_dict()


# ---- mistakes -----------------------------------------------------------------------------------

X = torch.rand(2, 3, 30, 32)
NAN = float("nan")

MISTAKES = {
    "shape": ((X, X[..., :-1]), {}, ValueError, r"\(2, 3, 30, 32\) and \(2, 3, 30, 31\)"),
    "dtype": ((X, X.double()), {}, ValueError, "dtype, got torch.float32 and torch.float64"),
    "device": ((X, X.to("meta")), {}, ValueError, "device, got cpu and meta"),
    "integer": ((X.int(), X.int()), {}, TypeError, "x must be float16.*got torch.int32"),
    "rank": ((X[0], X[0]), {}, ValueError, r"x must have shape \(N, C, H, W\).*\(3, 30, 32\)"),
    "volumes": ((X[None], X[None]), {}, ValueError, r"\(N, C, H, W\).*32\); only ssim takes vol"),
    "no_tensor": ((X.numpy(), X), {}, TypeError, "x must be a tensor, got ndarray"),
    "small_image": ((X, X), {"window_size": 33}, ValueError, "30 x 32.*window_size 33"),
    "small_image_of_scales": ((X, X), {"ms_ssim": 1.0}, ValueError, "30 x 32.*176"),
    "ssim_negative": ((X, X), {"ssim": -1.0}, ValueError, "ssim must be between 0.*got -1"),
    "ms_ssim_negative": ((X, X), {"ms_ssim": -0.1}, ValueError, "ms_ssim.*got -0.1"),
    "no_factor": ((X, X), {"ssim": 0}, ValueError, "ssim, ms_ssim, l1, l2, .* 0, got 0 for all"),
    "l1_nan": ((X, X), {"l1": NAN}, ValueError, "l1 must be between.*got nan"),
    "l2_infinite": ((X, X), {"l2": float("inf")}, ValueError, "l2 must be between.*got inf"),
    "gaussian_l1_text": ((X, X), {"gaussian_l1": "1"}, TypeError, "gaussian_l1.*number, got '1'"),
    "l1_bool": ((X, X), {"l1": True}, TypeError, "l1 must be a number, got True"),
    "weights": ((X, X), {"weights": (1, -0.5)}, ValueError, "weights.*-0.5"),
    "reflect": ((X, X), {"padding": "reflect"}, ValueError, "valid, same, got 'reflect'"),
    "reduction": ((X, X), {"reduction": "none"}, ValueError, "mean, batch, got 'none'"),
    "return_terms": ((X, X), {"return_terms": 1}, TypeError, "return_terms.*got 1"),
    "odd": ((X, X), {"odd": "ceil"}, ValueError, "odd.*floor, pad, replicate, got 'ceil'"),
    "negative": (
        (X, X),
        {"negative": "clip"},
        ValueError,
        "negative.*relu, abs, raise, got 'clip'",
    ),
    "channels": ((X, X), {"channels": "all"}, ValueError, "channels.*separate, joint, got 'all'"),
    "window": ((X, X), {"window": "box"}, ValueError, "window.*gaussian, uniform, got 'box'"),
    "window_size": ((X, X), {"window_size": 8}, ValueError, "window_size must be odd.*got 8"),
    "range": ((X, X), {"value_range": (1, 0)}, ValueError, r"low < high, got \(1, 0\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    images, arguments, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        ssimfast.similarity_loss(*images, **arguments)
    if arguments and not mistake.startswith("small"):  # found before any image
        with pytest.raises(error, match=message):
            ssimfast.SimilarityLoss(**arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"alpha": 1.5}, ValueError, "alpha must be between 0 and 1, got 1.5"),
        ({"alpha": -0.1}, ValueError, "alpha must be between 0.*got -0.1"),
        ({"alpha": "1"}, TypeError, "alpha must be a number, got '1'"),
        ({"l1": 0.5}, TypeError, "MixLoss.*'l1'"),
        ({"windowsize": 5}, TypeError, "windowsize"),
    ],
    ids=str,
)
def test_mistakes_of_mix_loss(arguments, error, message):
    with pytest.raises(error, match=message):
        ssimfast.MixLoss(**arguments)


def test_arguments_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        ssimfast.similarity_loss(X, X, 1.0)


@pytest.mark.parametrize(
    "factors", [{"ssim": 0, "l2": 2e5}, {"ssim": 1e5, "ms_ssim": 1, "l2": 2e5}]
)
def test_float16_gradients_survive_large_factors(backend, factors):
    x, y = torch.rand(2, 1, 3, 48, 48).half()
    grads = []
    for dtype in (torch.float16, torch.float64):
        a = x.clone().to(dtype).requires_grad_()
        ssimfast.similarity_loss(a, y.to(dtype), weights=(0.5, 0.5), **factors).backward()
        grads.append(a.grad.double())
    torch.testing.assert_close(*grads, rtol=0, atol=3e-3 * grads[1].abs().max().item())
