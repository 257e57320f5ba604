"""Values, terms and gradients of ssimfast.similarity_loss against an independent float64 oracle."""

import itertools

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
from promises import drawn, few, pair

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


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_mixture(backend, mixture, padding):
    assert_similarity_matches_oracle(
        *pair(2, 3, 28, 33), **{"weights": TWO, "padding": padding, **mixture}
    )


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("size", SIZES)
def test_every_shape(backend, size):
    *shape, weights = SIZES[size]
    assert_similarity_matches_oracle(*pair(*shape), weights=weights, **ALL)


@pytest.mark.long_with("reference")
def test_every_pair_of_terms(backend):
    """Terms share a sweep: each with each other, and in each order of magnitude."""
    x, y = pair(1, 2, 24, 27)
    for one, other in itertools.permutations(TERMS, 2):
        factors = {"ssim": 0.0, one: 2.0, other: 0.01}
        assert_similarity_matches_oracle(x, y, weights=TWO, **factors)


@pytest.mark.backends("cpu")
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


@pytest.mark.backends("cpu")
def test_boundaries_of_both(backend):
    assert_similarity_matches_oracle(*pair(1, 1, 150, 1000), weights=TWO, window_size=5, **ALL)


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 8), (2, 1, 10, 10)], ids=str)
@pytest.mark.parametrize("odd", ["floor", "replicate"])
def test_smaller_than_the_window(backend, shape, odd):
    weights = (1.0,) if shape[2] == 1 and odd == "floor" else TWO
    assert_similarity_matches_oracle(*pair(*shape), padding="same", odd=odd, weights=weights, **ALL)


@pytest.mark.long_with("reference")
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


@pytest.mark.long_with("reference")
@pytest.mark.parametrize("case", ARGUMENTS)
def test_every_argument(backend, case):
    arguments = {"weights": TWO, **ARGUMENTS[case]}
    low, high = arguments.get("value_range", (0, arguments.get("data_range", 1)))
    x, y = (low + (high - low) * image for image in pair(2, 3, 29, 32))
    assert_similarity_matches_oracle(x, y, **arguments, **ALL)


@pytest.mark.long_with("reference")
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


@pytest.mark.backends("cpu")
def test_auto_weights(backend):
    x, y = pair(1, 1, 44, 50)
    weights = [weight * 1.0001 / sum(oracle.WANG[:3]) for weight in oracle.WANG[:3]]
    got, terms = ssimfast.similarity_loss(x, y, weights="auto", return_terms=True, **ALL)
    want, parts = ssimfast.similarity_loss(x, y, weights=weights, return_terms=True, **ALL)
    torch.testing.assert_close(got, want)
    for name in TERMS:  # the blur, too, is that of three scales
        torch.testing.assert_close(terms[name], parts[name])


@pytest.mark.long_with("reference")
def test_default_is_1_minus_ssim(backend):
    x, y = pair(2, 3, 24, 27)
    torch.testing.assert_close(ssimfast.similarity_loss(x, y), 1 - ssimfast.ssim(x, y))


@pytest.mark.long_with("reference")
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


@pytest.mark.long_with("reference")
def test_blurred_l1_is_a_convolution(backend):
    x, y = pair(1, 1, 60, 64)
    taps = torch.tensor(oracle.taps("gaussian", 21, 3.0), dtype=torch.float32)
    blurred = torch.nn.functional.conv2d((x - y).abs(), taps.outer(taps)[None, None], padding=10)
    factors = {"ssim": 0.0, "ms_ssim": 0.5, "gaussian_l1": 0.5}
    _, terms = ssimfast.similarity_loss(x, y, weights=TWO, return_terms=True, **factors)
    torch.testing.assert_close(terms["gaussian_l1"], blurred.mean())


# ---- data ---------------------------------------------------------------------------------------


@pytest.mark.long_with("reference")
def test_negative_means(backend):
    x = torch.rand(1, 2, 24, 26)
    y = 1 - x
    arguments = {"ssim": 0.5, "ms_ssim": 0.5, "l1": 0.5, "weights": TWO}
    assert_similarity_matches_oracle(x, y, **arguments)
    tolerances = {**TOLERANCES[x.dtype], "pyramid": 1e-5}  # x + y keeps next to nothing of them
    assert_similarity_matches_oracle(x, y, tolerances, negative="abs", **arguments)
    with pytest.raises(ValueError, match="negative"):
        ssimfast.similarity_loss(x, y, negative="raise", **arguments)


@pytest.mark.long_with("reference")
def test_far_from_the_range(backend):
    x, y = 1000 + torch.rand(1, 1, 30, 33), 1000 + torch.rand(1, 1, 30, 33)
    assert_similarity_matches_oracle(x, y, HARD, **MIXTURES["all_without_ms_ssim"])


@pytest.mark.long_with("reference")
def test_differences_far_outside_of_the_range(backend):
    """The loss of pixels is not bounded; its gradient is that of the difference, however large."""
    x, y = 50 * torch.randn(1, 2, 20, 20), 50 * torch.randn(1, 2, 20, 20)
    assert_similarity_matches_oracle(x, y, {"mean": 1e-3, "grad": 2e-6, "map": 1e-3}, **ONLY["l2"])
    assert_similarity_matches_oracle(x, y, {"mean": 1e-5, "grad": 2e-6, "map": 1e-5}, **ONLY["l1"])


@pytest.mark.long_with("reference")
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


# ---- which gradients, how often -----------------------------------------------------------------


@pytest.mark.long_with("reference", "cuda-emulated")
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


@pytest.mark.long_with("reference")
@pytest.mark.parametrize(
    "factors",
    [
        pytest.param({"ssim": 0, "l2": 2e5}, marks=pytest.mark.long),
        {"ssim": 1e5, "ms_ssim": 1, "l2": 2e5},
        {"ssim": 1, "ms_ssim": 1e7},
    ],
)
def test_float16_gradients_survive_large_factors(backend, factors):
    x, y = torch.rand(2, 1, 3, 48, 48).half()
    grads = []
    for dtype in (torch.float16, torch.float64):
        a = x.clone().to(dtype).requires_grad_()
        ssimfast.similarity_loss(a, y.to(dtype), weights=(0.5, 0.5), **factors).backward()
        grads.append(a.grad.double())
    torch.testing.assert_close(*grads, rtol=0, atol=3e-3 * grads[1].abs().max().item())
