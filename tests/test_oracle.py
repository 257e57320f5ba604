"""The oracle's gradients against finite differences of its own values."""

import numpy as np
import oracle
import pytest
from numpy.random import default_rng

STEP = 1e-5


def images(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, noise = default_rng(seed).random((2, *shape))
    return x, 0.6 * x + 0.4 * noise


def holes(*shape: int) -> np.ndarray:
    """Weights of pixels, more than half of which are 0."""
    return default_rng(3).random(shape) * (default_rng(4).random(shape) > 0.6)


def assert_is_gradient(value, x, y, grad_x, grad_y) -> None:
    """Along random directions, one for each image: a wrong pixel shows in the sum."""
    directions = default_rng(1).standard_normal((2, *x.shape))
    for direction, grad, move in (
        (directions[0], grad_x, lambda step, d: (x + step * d, y)),
        (directions[1], grad_y, lambda step, d: (x, y + step * d)),
    ):
        # Fourth order, so that the step may be large against rounding.
        near = value(*move(STEP, direction)) - value(*move(-STEP, direction))
        far = value(*move(2 * STEP, direction)) - value(*move(-2 * STEP, direction))
        slope = (8 * near - far) / (12 * STEP)
        assert abs(slope - (grad * direction).sum()) <= 1e-8 * np.abs(grad * direction).sum()


WINDOWS = {
    "gaussian": {"size": 5, "sigma": 1.1},
    "uniform": {"size": 5, "window": "uniform"},
    "unbiased": {"size": 3, "sample_covariance": True},
    "same": {"size": 5, "padding": "same"},
    "reflect": {"size": 7, "padding": "reflect"},
    "range": {"size": 5, "low": -1.0, "high": 3.0, "k1": 0.03, "k2": 0.1},
    "one_pixel": {"size": 1},
}


@pytest.mark.parametrize("shape", [(2, 2, 8, 9), (2, 1, 7, 8, 9)], ids=["images", "volumes"])
@pytest.mark.parametrize("definition", WINDOWS.values(), ids=WINDOWS)
def test_maps(definition, shape):
    x, y = images(*shape)
    luminance, contrast, *_ = oracle.components(x, y, **definition)
    up = default_rng(2).standard_normal((2, *luminance.shape))

    def both(x, y):
        maps = oracle.components(x, y, **definition)[:2]
        return (up[0] * maps[0] + up[1] * maps[1]).sum()

    _, _, *grads = oracle.components(x, y, upstream=up, **definition)
    assert_is_gradient(both, x, y, *grads)

    ssim_map, *grads = oracle.ssim(x, y, upstream=up[0], **definition)
    assert np.array_equal(ssim_map, luminance * contrast)
    assert_is_gradient(
        lambda x, y: (up[0] * oracle.ssim(x, y, **definition)[0]).sum(), x, y, *grads
    )


@pytest.mark.parametrize("shape", [(2, 2, 9, 10), (1, 2, 7, 8, 7)], ids=["images", "volumes"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_masks(padding, shape):
    definition = {"size": 5, "padding": padding, "sample_covariance": True}
    x, y = images(*shape)
    mask = holes(*shape[1:])
    ssim_map, *_ = oracle.ssim(x, y, mask=mask, **definition)
    up = default_rng(2).standard_normal(ssim_map.shape)
    _, *grads = oracle.ssim(x, y, mask=mask, upstream=up, **definition)
    assert not (grads[0][:, mask == 0].any() or grads[1][:, mask == 0].any())
    assert_is_gradient(
        lambda x, y: (up * oracle.ssim(x, y, mask=mask, **definition)[0]).sum(), x, y, *grads
    )


def test_a_mask_of_ones_is_no_mask():
    x, y = images(2, 1, 9, 10)
    factors = {"ssim": 0.5, "ms_ssim": 0.6, "l1": 0.7, "l2": 0.8}
    of_levels = {"weights": (0.3, 0.7), "size": 3}
    for function, arguments in (
        (oracle.ssim, {"size": 5}),
        *((oracle.ms_ssim, {"odd": odd, **of_levels}) for odd in ("floor", "pad", "replicate")),
        (oracle.similarity_loss, {"factors": factors, **of_levels}),
        (oracle.similarity_loss, {"factors": factors, "together": True, **of_levels}),
    ):
        masked, plain = function(x, y, mask=np.ones(()), **arguments), function(x, y, **arguments)
        for got, want in zip(masked, plain, strict=True):
            pairs = (
                zip(got.values(), want.values(), strict=True)
                if isinstance(got, dict)
                else [(got, want)]
            )
            for one, other in pairs:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


def test_a_window_that_sees_nothing_is_one():
    x, y = images(1, 1, 9, 10)
    mask = np.zeros((9, 10))
    mask[:, 8:] = 1
    ssim_map, *grads = oracle.ssim(x, y, mask=mask, size=5, k1=0, k2=0)
    assert (ssim_map[..., :4] == 1).all() and (ssim_map[..., 4:] < 1).all()
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("odd", ["floor", "pad", "replicate"])
@pytest.mark.parametrize("shape", [(1, 1, 6, 8), (2, 1, 7, 9), (1, 1, 4, 3)], ids=str)
def test_halving_and_its_adjoint(odd, shape):
    image = default_rng(0).random(shape)
    half = oracle.halve(image, odd)
    up = default_rng(1).random(half.shape)
    adjoint = oracle.halve_adjoint(up, odd, shape)
    assert adjoint.shape == shape
    np.testing.assert_allclose((up * half).sum(), (adjoint * image).sum(), rtol=1e-13)


def test_halving_of_odd_sizes():
    image = np.array([[[[1.0, 2.0, 3.0]] * 2]])
    assert oracle.halve(image, "floor").tolist() == [[[[1.5]]]]
    assert oracle.halve(image, "pad").tolist() == [[[[0.5, 2.5]]]]
    assert oracle.halve(image, "replicate").tolist() == [[[[1.5, 3.0]]]]
    assert oracle.halve_weights(image, "pad").tolist() == [[[[1.0, 2.5]]]]
    assert oracle.halve_weights(image, "floor").tolist() == [[[[1.5]]]]


def test_pixels_are_pooled_by_their_weights():
    """A level is the same whether pixels are hidden or have the mean of those that are seen."""
    x, y = images(1, 1, 16, 16)
    mask = np.ones((16, 16))
    mask[6, 6] = mask[7, 7] = 0
    filled = [image.copy() for image in (x, y)]
    for image in filled:
        image[..., 6, 6] = image[..., 7, 7] = (image[..., 6, 7] + image[..., 7, 6]) / 2
    arguments = {"weights": (0.0, 1.0), "size": 1}
    got = oracle.ms_ssim(x, y, mask=mask, **arguments)
    pooled = [oracle.halve(image, "floor") for image in filled]
    half = np.ones((8, 8))
    half[3, 3] = 0.5
    want = (half * oracle.ssim(*pooled, size=1)[0]).sum() / half.sum()
    np.testing.assert_allclose(got.value, want, rtol=1e-12)
    assert got.counts == (254, round(63.5**2 / 63.25))


def test_means_of_what_is_not_seen():
    x, y = images(2, 2, 17, 15)
    mask = np.ones((2, 2, 17, 15))
    mask[0] = mask[1, 1] = 0
    alone = oracle.ms_ssim(x[1:, :1], y[1:, :1], weights=(1.0,), size=5).value
    arguments = {"mask": mask, "weights": (1.0,), "size": 5}
    assert np.allclose(oracle.ms_ssim(x, y, **arguments).value, [[1, 1], [alone.item(), 1]])
    joint = oracle.ms_ssim(x, y, channels="joint", **arguments).value
    assert np.allclose(joint, [1, (1 + alone.item()) / 2])
    factors = {"ssim": 1.0, "l1": 1.0}
    of_each = oracle.similarity_loss(x, y, factors=factors, **arguments)
    of_all = oracle.similarity_loss(x, y, factors=factors, together=True, **arguments)
    want = np.abs(x - y)[1, 0].mean()
    assert np.allclose(of_each.terms["l1"], [0, want]) and np.isclose(of_all.terms["l1"], want)
    assert np.allclose(of_each.terms["ssim"], [1, alone.item()])
    assert np.isclose(of_all.terms["ssim"], alone.item())


SCALES = {
    "one": {"weights": (0.7,)},
    "two": {"weights": (0.3, 0.7)},
    "three_odd_floor": {"weights": (0.3, 0.4, 0.5)},
    "three_odd_pad": {"weights": (0.3, 0.4, 0.5), "odd": "pad"},
    "three_odd_replicate": {"weights": (0.3, 0.4, 0.5), "odd": "replicate"},
    "joint": {"weights": (0.3, 0.7), "channels": "joint"},
    "abs": {"weights": (0.3, 0.7), "negative": "abs"},
    "same": {"weights": (0.3, 0.7), "padding": "same"},
    "reflect": {"weights": (0.3, 0.7), "padding": "reflect"},
    "a_scale_without_weight": {"weights": (0.4, 0.0, 0.6)},
    "uniform": {"weights": (0.4, 0.6), "window": "uniform", "low": -1.0},
    "masked": {"weights": (0.3, 0.7), "mask": holes(2, 1, 23, 21)},
    "masked_odd_pad": {"weights": (0.3, 0.4, 0.5), "odd": "pad", "mask": holes(23, 21)},
    "masked_joint_odd_replicate": {
        "weights": (0.3, 0.7),
        "odd": "replicate",
        "channels": "joint",
        "padding": "same",
        "mask": holes(2, 23, 21),
    },
}


@pytest.mark.parametrize("arguments", SCALES.values(), ids=SCALES)
def test_ms_ssim(arguments):
    x, y = images(2, 2, 23, 21)
    if arguments.get("negative") == "abs":
        y = 1 - y
    arguments = {"size": 5, **arguments}
    up = default_rng(2).random(oracle.ms_ssim(x, y, **arguments).value.shape)
    _, *grads, means, _ = oracle.ms_ssim(x, y, upstream=up, **arguments)
    assert np.abs(means).min() > oracle.SLOPE_BOUND  # else the slope is not the value's
    assert_is_gradient(
        lambda x, y: (up * oracle.ms_ssim(x, y, **arguments).value).sum(), x, y, *grads
    )


def test_ms_ssim_of_negative_means():
    x, y = images(1, 1, 23, 21)
    y = 1 - y
    arguments = {"weights": (0.3, 0.7), "size": 5}
    value, *grads, means, _ = oracle.ms_ssim(x, y, **arguments)
    assert (means < 0).all() and value == 0 and not np.any(grads)
    folded = oracle.ms_ssim(x, y, negative="abs", **arguments).value
    np.testing.assert_allclose(folded, np.abs(means[0]) ** 0.3 * np.abs(means[1]) ** 0.7)
    with pytest.raises(ValueError):
        oracle.ms_ssim(x, y, negative="raise", **arguments)


def test_ms_ssim_of_a_mean_next_to_zero():
    x, y = images(1, 1, 16, 16)
    y = 1 - y
    near, far = 0.0, 1.0  # y moves towards x until the only mean is half the bound
    for _ in range(60):
        middle = (near + far) / 2
        mean = oracle.ssim(x, y + middle * (x - y), size=5)[0].mean()
        near, far = (middle, far) if mean < oracle.SLOPE_BOUND / 2 else (near, middle)
    y = y + near * (x - y)
    ssim_map, *grads = oracle.ssim(x, y, size=5)
    mean = ssim_map.mean()
    assert 0.4 * oracle.SLOPE_BOUND < mean < 0.6 * oracle.SLOPE_BOUND
    value, *bounded, _, _ = oracle.ms_ssim(x, y, weights=(0.3,), size=5)
    np.testing.assert_allclose(value, mean**0.3, rtol=1e-10)
    for got, grad in zip(bounded, grads, strict=True):
        want = 0.3 * oracle.SLOPE_BOUND**-0.7 * grad / ssim_map.size
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-18)


LOSSES = {
    "ssim": {"factors": {"ssim": 1.0}},
    "ms_ssim": {"factors": {"ms_ssim": 0.84}, "weights": (0.4, 0.6)},
    "joint": {"factors": {"ms_ssim": 0.84}, "weights": (0.4, 0.6), "channels": "joint"},
    "l1": {"factors": {"l1": 2.0}},
    "l2": {"factors": {"l2": 3.0}},
    "gaussian_l1": {"factors": {"gaussian_l1": 1.0}},
    "uniform_l1": {"factors": {"gaussian_l1": 1.0}, "window": "uniform"},
    "all": {
        "factors": {"ssim": 0.5, "ms_ssim": 0.6, "l1": 0.7, "l2": 0.8, "gaussian_l1": 0.9},
        "weights": (0.2, 0.3, 0.5),
        "padding": "same",
        "odd": "replicate",
        "low": -1.0,
    },
    "masked": {
        "factors": {"ssim": 0.5, "ms_ssim": 0.6, "l1": 0.7, "l2": 0.8},
        "weights": (0.4, 0.6),
        "mask": holes(2, 2, 17, 15),
    },
}
LOSSES["masked_together"] = {**LOSSES["masked"], "together": True}


@pytest.mark.parametrize("arguments", LOSSES.values(), ids=LOSSES)
def test_similarity_loss(arguments):
    x, y = images(2, 2, 17, 15)
    y = np.where(np.abs(x - y) < 0.01, y + 0.02, y)  # |x - y| has a kink at 0
    arguments = {"size": 5, **arguments}
    loss = oracle.similarity_loss(x, y, **arguments)
    assert set(loss.terms) == set(arguments["factors"])
    assert_is_gradient(
        lambda x, y: oracle.similarity_loss(x, y, **arguments).value.sum(),
        x,
        y,
        loss.grad_x,
        loss.grad_y,
    )


def test_gaussian_l1_of_one_pixel_is_what_the_window_keeps():
    x = np.zeros((1, 1, 9, 9))
    x[0, 0, 4, 4] = 1
    arguments = {"factors": {"gaussian_l1": 1.0}, "size": 5}
    assert np.isclose(oracle.similarity_loss(x, 0 * x, **arguments).value, 1 / 81)
    x = np.roll(x, -4, 3)  # at the edge, where half of the window is outside
    half = (1 + oracle.taps("gaussian", 5, 1.5)[2]) / 2
    assert np.isclose(oracle.similarity_loss(x, 0 * x, **arguments).value, half / 81)
