"""The registry of cycle losses, and the adversarial loss."""

import math

import numpy as np
import oracle
import pytest
import torch

from cyclegan import features, tandon
from cyclegan.errors import UserError
from cyclegan.losses import (
    CYCLE_LOSSES,
    FEATURE_LOSSES,
    GAN_LOSSES,
    MIXTURES,
    discriminator_loss,
    generator_loss,
    make_cycle_loss,
    parse_cycle_loss,
)


def test_what_is_no_sum_of_known_names_is_rejected_with_the_known_ones():
    message = r"cycle_loss must be one of paper_l1, l1, l2, ssim, .*; got '"
    for text in (
        "SSIM",
        "l3",
        "",
        "ssim+",
        "+ssim",
        "ssim l1",
        "2*",
        "1.2.3*l1",
        "-1*ssim",
        "l1**2",
    ):
        with pytest.raises(UserError, match=message) as error:
            parse_cycle_loss(text)
        assert str(error.value).endswith(f"got {text!r}")


@pytest.mark.parametrize(
    "text, weights",
    [
        ("ssim", {"ssim": 1.0}),
        ("0.84*ssim+0.16*l1", {"ssim": 0.84, "l1": 0.16}),
        (" 1e-3 * ms_ssim + l1 + 2*l1 ", {"ms_ssim": 1e-3, "l1": 3.0}),
        ("contextual + 5e+1*perceptual", {"contextual": 1.0, "perceptual": 50.0}),
    ],
)
def test_sums_are_understood(text, weights):
    assert parse_cycle_loss(text) == weights


def test_a_weight_that_is_too_large_is_rejected():
    for text in ("1e999*ssim", "ssim+1e7*l1"):
        with pytest.raises(UserError, match="cycle_loss must have weights up to 1e"):
            parse_cycle_loss(text)


def test_presets_know_their_own_losses():
    with pytest.raises(UserError, match="one of l1, l2, ssim, ssim_l1, .*got 'ms_ssim'"):
        parse_cycle_loss("ms_ssim", "tandon")
    with pytest.raises(UserError, match="loss_preset must be one of normalised, tandon; got 'ta'"):
        parse_cycle_loss("l1", "ta")


@pytest.mark.parametrize("name", MIXTURES)
def test_equal_images_cost_nothing_and_others_something(name):
    loss = make_cycle_loss(name)
    for size in (16, 64, 200):
        x = torch.rand(2, 3, size, size) * 2 - 1
        torch.testing.assert_close(loss(x, x), torch.tensor(0.0), atol=1e-6, rtol=0)
        assert loss(x, -x) > 0.1


# The losses of docs/losses.md as factors of terms that are means over images in [0, 1]. The article
# sums the squared error over 3 x 128 x 128 numbers.
FACTORS = {
    "paper_l1": {"l1": 2},
    "l1": {"l1": 1},
    "l2": {"l2": 1},
    "l1_l2": {"l1": 1, "l2": 1},
    "ssim": {"ssim": 1},
    "ssim_l1": {"ssim": 0.84, "gaussian_l1": 0.16},
    "ssim_l2_a": {"ssim": 1, "l2": 5e-5 * 49_152},
    "ssim_l2_b": {"ssim": 0.84, "l2": 0.08},
    "ssim_l1l2_a": {"ssim": 0.84, "gaussian_l1": 0.16, "l2": 5e-5 * 49_152},
    "ssim_l1l2_b": {"ssim": 0.84, "gaussian_l1": 0.32 / 3, "l2": 0.08 / 3},
    "ms_ssim": {"ms_ssim": 1},
    "mix": {"ms_ssim": 0.84, "gaussian_l1": 0.16},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_losses_and_their_gradients_are_those_of_the_oracle(name):
    x = torch.rand(2, 3, 48, 50, dtype=torch.float64) * 2 - 1
    y = 0.6 * x + 0.4 * (torch.rand(x.shape, dtype=torch.float64) * 2 - 1)
    # Of 48 pixels the third pyramid level has 12, the fourth would have fewer than a window.
    weights = tuple(w * sum(oracle.WANG) / sum(oracle.WANG[:3]) for w in oracle.WANG[:3])
    want = oracle.similarity_loss(
        x.numpy(), y.numpy(), factors=FACTORS[name], weights=weights, low=-1.0, high=1.0
    )
    loss = make_cycle_loss(name)(x.requires_grad_(), y)
    loss.backward()
    assert loss.item() == pytest.approx(want.value.mean(), rel=1e-9)
    largest = np.abs(want.grad_x).max() / 2  # of the mean of two images
    np.testing.assert_allclose(x.grad, want.grad_x / 2, rtol=0, atol=1e-9 * largest)


def test_a_sum_is_the_sum_of_its_losses():
    x, y = torch.rand(2, 2, 3, 24, 24) * 2 - 1
    parts = {name: make_cycle_loss(name)(x, y) for name in ("ssim_l1l2_a", "l1", "ms_ssim")}
    want = 0.5 * parts["ssim_l1l2_a"] + parts["l1"] + 2 * parts["ms_ssim"]
    got = make_cycle_loss("0.5*ssim_l1l2_a + l1 + 2*ms_ssim")(x, y)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_of_a_weight_of_0_nothing_is_left():
    x, y = torch.rand(2, 2, 3, 24, 24) * 2 - 1
    got = make_cycle_loss("0*ms_ssim + 0*ssim_l1 + paper_l1")(x, y)
    torch.testing.assert_close(got, (x - y).abs().mean())
    got = make_cycle_loss("0*ms_ssim + ssim_l1")(x, y)
    torch.testing.assert_close(got, make_cycle_loss("ssim_l1")(x, y))
    for preset in ("normalised", "tandon"):
        with pytest.raises(ValueError, match="a weight that is not 0; got '0\\*ssim'"):
            make_cycle_loss("0*ssim", preset)


def test_simple_losses_by_hand():
    x = torch.full((1, 3, 16, 16), 0.5)
    y = torch.full((1, 3, 16, 16), -0.5)
    # In [0, 1] they differ by a half.
    for name, want in (("paper_l1", 1), ("l1", 0.5), ("l2", 0.25), ("l1_l2", 0.75)):
        assert make_cycle_loss(name)(x, y).item() == pytest.approx(want, abs=1e-6)


# ---- the article's arithmetic -------------------------------------------------------------------


def by_the_articles_code(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """NumPy, from the definitions: one batch of (N, 3, S, S) in [-1, 1]."""
    d = x - y
    size = x.shape[-1]
    axis = np.arange(size) - size // 2
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 0.5**2))
    window /= window.sum()
    n = x.shape[0] * x.shape[1]
    w1 = (window * np.abs(d)).sum() / n
    w2 = (window * d**2).sum() / n
    distance = 1 - oracle.ssim(x[:1], y[:1], high=1.0)[0].mean()
    return {
        "l1": np.abs(d).mean(),
        "l2": (d**2).sum(),
        "ssim": distance,
        "ssim_l1": 0.84 * distance + 0.16 * w1,
        "ssim_l2_a": distance + 5e-5 * (d**2).sum(),
        "ssim_l2_b": 0.84 * distance + 0.16 * w2 / 2,
        "l1_l2": np.abs(d).sum() + (d**2).sum(),
        "ssim_l1l2_a": 0.84 * distance + 0.16 * w1 + 5e-5 * (d**2).sum(),
        "ssim_l1l2_b": 0.84 * distance + (2 / 3) * 0.16 * w1 + (1 / 3) * 0.16 * w2 / 2,
    }


@pytest.mark.parametrize("batch", [1, 2])
def test_tandon_computes_what_the_articles_code_does(batch):
    x = torch.rand(batch, 3, 24, 24, dtype=torch.float64) * 2 - 1
    y = (0.8 * x + 0.2 * (torch.rand(x.shape).double() * 2 - 1)).clamp(-1, 1)
    want = by_the_articles_code(x.numpy(), y.numpy())
    assert set(want) == set(tandon.LOSSES)
    direction = torch.rand(x.shape, dtype=torch.float64) - 0.5
    for name, value in want.items():
        a = x.clone().requires_grad_()
        loss = make_cycle_loss(name, "tandon")(a, y)
        assert loss.item() == pytest.approx(value, rel=1e-9), name
        loss.backward()
        step = 1e-5
        ends = (x + step * direction, x - step * direction)
        above, below = (by_the_articles_code(end.numpy(), y.numpy())[name] for end in ends)
        slope = (a.grad * direction).sum().item()
        # A step may take a difference over 0, where |d| has a kink.
        assert slope == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-4), name


def test_tandons_window_is_the_published_one():
    x = torch.zeros(1, 3, 128, 128)
    y = x.clone()
    y[..., 64, 64] = 1  # the middle: its weight, of which 3x3 pixels have all but a thousandth
    l1 = make_cycle_loss("ssim_l1", "tandon")(x, y) - 0.84 * make_cycle_loss("ssim", "tandon")(x, y)
    assert l1.item() / 0.16 == pytest.approx(0.6187, abs=1e-4)
    y[..., 63:66, 63:66] = 1
    l1 = make_cycle_loss("ssim_l1", "tandon")(x, y) - 0.84 * make_cycle_loss("ssim", "tandon")(x, y)
    assert l1.item() / 0.16 == pytest.approx(0.9989, abs=1e-4)


def test_tandon_sums_with_weights():
    x, y = torch.rand(2, 1, 3, 16, 16)
    parts = [make_cycle_loss(name, "tandon")(x, y) for name in ("ssim", "l2")]
    got = make_cycle_loss("ssim + 0.1*l2", "tandon")(x, y)
    torch.testing.assert_close(got, parts[0] + 0.1 * parts[1])


# ---- features -----------------------------------------------------------------------------------

ALEXNET = {"network": "alexnet", "layers": ["relu1", "conv3"]}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A network that was never trained: a few megabytes in place of a download."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pt"
    torch.save(alexnet().features.state_dict(), file)
    return str(file)


def test_layers_have_the_names_of_the_papers():
    from torchvision.models import alexnet, vgg16, vgg19

    with torch.device("meta"):
        trunks = {make.__name__: make().features for make in (alexnet, vgg16, vgg19)}
    names = {name: features.layer_names(trunk) for name, trunk in trunks.items()}
    assert names["vgg16"]["conv1_1"] == 0 and names["vgg16"]["relu3_3"] == 15
    assert names["vgg19"]["conv3_2"] == 12 and names["vgg19"]["conv4_2"] == 21
    assert names["vgg19"]["relu5_4"] == 35 and "conv3_4" not in names["vgg16"]
    assert list(names["alexnet"]) == [f"{k}{i}" for i in range(1, 6) for k in ("conv", "relu")]


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_feature_losses_have_gradients_to_images_and_frozen_networks(name, weights_file):
    loss = make_cycle_loss(f"ssim+0.5*{name}", weights_file=weights_file, **ALEXNET).train()
    assert not any(module.training for module in loss.features.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    x.requires_grad_()
    value = loss(x, y)
    value.backward()
    assert value > 0 and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    ssim = make_cycle_loss("ssim")(x, y)
    alone = make_cycle_loss(name, weights_file=weights_file, **ALEXNET)(x, y)
    torch.testing.assert_close(value, ssim + 0.5 * alone, rtol=1e-5, atol=1e-6)


def test_perceptual_loss_is_the_difference_of_normalised_images_features(weights_file):
    from torchvision.models import alexnet

    trunk = alexnet().features
    trunk.load_state_dict(torch.load(weights_file, weights_only=True))
    trunk.eval()
    x, y = torch.rand(2, 1, 3, 70, 66)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    a, b = ((image - mean) / deviation for image in (x, y))
    first = (trunk[:2](a.clone()) - trunk[:2](b.clone())).abs().mean()
    third = (trunk[:7](a.clone()) - trunk[:7](b.clone())).abs().mean()
    loss = make_cycle_loss("perceptual", weights_file=weights_file, **ALEXNET)
    got = loss(2 * x - 1, 2 * y - 1)
    torch.testing.assert_close(got, (first + third) / 2, rtol=1e-4, atol=1e-6)


def test_what_is_wrong_with_features_is_said(weights_file):
    with pytest.raises(UserError, match="feature_network must be one of vgg16, .*; got resnet"):
        make_cycle_loss("perceptual", network="resnet", weights_file=weights_file)
    with pytest.raises(UserError, match="must be some of conv1, relu1, .*; got 'conv3_2'"):
        make_cycle_loss("perceptual", network="alexnet", weights_file=weights_file)
    with pytest.raises(UserError, match="are of another network"):
        make_cycle_loss("perceptual", network="vgg16", weights_file=weights_file)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda file: file.write_bytes(b""), "is no file of weights"),
        (lambda file: file.write_text("weights"), "is no file of weights"),
        (lambda file: torch.save(torch.ones(3), file), "are of another network"),
        (lambda file: torch.save([1, 2], file), "are of another network"),
    ],
    ids=["empty", "text", "tensor", "list"],
)
def test_a_file_that_holds_no_weights_is_named(write, message, tmp_path):
    file = tmp_path / "weights.pt"
    write(file)
    with pytest.raises(UserError, match=f"feature_weights {file} {message}"):
        make_cycle_loss("perceptual", weights_file=str(file), **ALEXNET)


def contextual_by_hand(x: np.ndarray, y: np.ndarray, h: float) -> float:
    """Equations 2 to 5 of Mechrez et al. 2018, of features (C, P)."""
    centre = y.mean(1, keepdims=True)
    x, y = x - centre, y - centre
    x, y = x / np.linalg.norm(x, axis=0), y / np.linalg.norm(y, axis=0)
    d = 1 - x.T @ y
    relative = d / (d.min(1, keepdims=True) + 1e-5)
    w = np.exp((1 - relative) / h)
    cx = w / w.sum(1, keepdims=True)
    return -math.log(cx.max(0).mean())


@pytest.mark.parametrize("h", [0.1, 0.5])
def test_contextual_loss_is_that_of_the_paper(h):
    x, y = torch.randn(1, 5, 4, 6), torch.randn(1, 5, 3, 5)
    want = contextual_by_hand(*(f.flatten(2)[0].double().numpy() for f in (x, y)), h)
    for rows in (1, 7, 512):
        got = features.contextual_loss(x, y, h, rows)
        assert got.item() == pytest.approx(want, rel=1e-4), rows


def test_contextual_loss_has_the_gradient_of_its_value():
    x, y = torch.randn(2, 3, 2, 3).double(), torch.randn(2, 3, 2, 2).double()
    direction = torch.randn(x.shape).double()

    def value(step: float) -> float:
        return features.contextual_loss(x + step * direction, y, rows=4).item()

    a = x.clone().requires_grad_()
    features.contextual_loss(a, y, rows=4).backward()
    slope = (value(1e-2) - value(-1e-2)) / 2e-2  # its arithmetic is float32
    assert (a.grad * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_contextual_loss_of_equal_features_and_in_half_precision_is_finite():
    x = torch.randn(1, 8, 6, 6)
    assert features.contextual_loss(x, x).isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        got = features.contextual_loss(x.bfloat16(), x.flip(3).bfloat16())
    assert got.dtype == torch.float32 and got.isfinite()


def test_contextual_loss_needs_memory_for_some_rows_at_a_time(monkeypatch):
    """Twice the positions: as many rows at a time, of twice the columns."""
    largest = []
    best_of_rows = features._best_of_rows

    def noted(x, y, bandwidth):
        largest.append(x.shape[2] * y.shape[2])
        return best_of_rows(x, y, bandwidth)

    monkeypatch.setattr(features, "_best_of_rows", noted)
    for width in (40, 80):
        largest.clear()
        x, y = torch.randn(2, 1, 4, 10, width)
        features.contextual_loss(x.requires_grad_(), y, rows=100).backward()
        assert max(largest) == 100 * 10 * width
        assert len(largest) == 2 * 10 * width // 100  # and again in backward


def test_every_loss_of_the_article_has_a_name():
    article = {"l1", "l2", "ssim", "ssim_l1", "ssim_l2_a", "ssim_l2_b", "l1_l2", "ssim_l1l2_a"}
    article |= {"ssim_l1l2_b", "perceptual", "contextual", "ms_ssim", "mix", "paper_l1"}
    assert set(CYCLE_LOSSES) == article


SCORES = torch.tensor([[2.0, -1.0]])


@pytest.mark.parametrize(
    "name, real, fake, generator",
    [
        ("lsgan", (1 + 4) / 2, (4 + 1) / 2, (1 + 4) / 2),
        ("vanilla", (0.126928 + 1.313262) / 2, (2.126928 + 0.313262) / 2, 0.720095),
        ("hinge", (0 + 2) / 2, (3 + 0) / 2, -0.5),
    ],
)
def test_gan_losses_by_hand(name, real, fake, generator):
    """Vanilla: log(1 + exp(-2)) = 0.126928 and so on."""
    assert generator_loss(name, SCORES).item() == pytest.approx(generator, abs=1e-6)
    both = discriminator_loss(name, SCORES, SCORES)
    assert both.item() == pytest.approx((real + fake) / 2, abs=1e-6)
    assert GAN_LOSSES[name](SCORES, True).item() == pytest.approx(real, abs=1e-6)


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_generators_and_discriminators_want_opposite_scores(name):
    scores = torch.tensor([0.3, -0.2], requires_grad=True)
    generator_loss(name, scores).backward()
    assert (scores.grad < 0).all()  # higher scores are better for the generator
    scores.grad = None
    discriminator_loss(name, torch.zeros(2), scores).backward()
    assert (scores.grad > 0).any() and (scores.grad >= 0)[0]
