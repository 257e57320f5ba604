"""Settings, one training step, schedules, determinism, samples."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import ssimfast
from cyclegan.data import load_test_images
from cyclegan.model import DISCRIMINATORS, LOSSES, NETWORKS, precision_of
from cyclegan.networks import PatchDiscriminator, ResnetGenerator
from cyclegan.trainer import Trainer, linear_decay


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0),
        ("test_size", "30"),
        ("test_size", "-32"),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("lambda_a", -1.0),
        ("lambda_a", float("inf")),
        ("lambda_identity", float("nan")),
        ("lambda_identity", float("inf")),
        ("decay_start", 1.0),
        ("crop_size", "66"),
        ("crop_size", "28"),
        ("crop_size", "32x30"),
        ("crop_size", "32x32x32"),
        ("load_size", "31"),
        ("load_size", "32x31"),
        ("load_size", "large"),
        ("channels", 17),
        ("value_range", "1"),
        ("value_range", "5,5"),
        ("value_range", "0,inf"),
        ("value_range", "0,1/0,1/0,1"),
        ("workers", -2),
        ("cycle_loss", "sim"),
        ("pool_size", -1),
        ("generator", "vit"),
        ("gan_loss", "wgan"),
        ("precision", "fp8"),
        ("accumulate", 3),
        ("channels", 0),
        ("trackers", "tensorboard,paper"),
        ("ema_decay", 1.0),
        ("clip_norm", -1.0),
        ("keep", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_settings_name_the_argument_and_what_came(settings, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*got '?{value}"):
        replace(settings, **{name: value})


def test_a_unet_names_the_size_that_it_needs(settings):
    with pytest.raises(ValueError, match="^crop_size must be .* multiples of 64.*got '32'"):
        replace(settings, generator="unet_64")


@pytest.mark.parametrize(
    "device, message",
    [
        ("cupid", "device must be auto or one that torch has here; got 'cupid'"),
        ("meta", "device must be auto, cpu or .*; got meta"),
    ],
)
def test_a_device_that_is_not_here_is_named(settings, device, message):
    with pytest.raises(ValueError, match=message):
        Trainer(replace(settings, device=device))


@pytest.mark.parametrize("tf32", [True, False])
def test_a_run_says_its_precision(settings, tf32, capsys):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        trainer = Trainer(replace(settings, tf32=tf32, steps=1))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    trainer.train()
    assert "\nprecision: float32\n" in capsys.readouterr().err
    rounded = precision_of(trainer.settings, torch.device("cuda"))
    assert rounded == ("float32 rounded to TF32" if tf32 else "float32")
    half = replace(settings, precision="bf16")
    assert precision_of(half, trainer.device) == "bf16, losses and last layers float32"


def test_half_precision_on_a_cpu_is_refused(settings):
    with pytest.raises(ValueError, match="precision must be no or bf16 on a CPU; got 'fp16'"):
        Trainer(replace(settings, precision="fp16"))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_admissible_image_trains(settings, layers):
    size = next(size for size in range(4, 100) if admissible(settings, size, layers))
    trainer = Trainer(replace(settings, crop_size=str(size), discriminator_layers=layers))
    losses = trainer.train_step(trainer.test_a, trainer.test_b)
    assert tuple(losses) == LOSSES
    assert all(loss.isfinite() for loss in losses.values())


def admissible(settings, size, layers):
    try:
        return replace(settings, crop_size=str(size), discriminator_layers=layers)
    except ValueError:
        return None


# By name, of the scores of a discriminator: what it minimises, and the generator of the fakes.
WANTED = {
    "lsgan": (
        lambda real, fake: ((real - 1) ** 2).mean() + (fake**2).mean(),
        lambda fake: ((fake - 1) ** 2).mean(),
    ),
    "vanilla": (
        lambda real, fake: -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean(),
        lambda fake: -fake.sigmoid().log().mean(),
    ),
    "hinge": (
        lambda real, fake: (1 - real).clamp(0).mean() + (1 + fake).clamp(0).mean(),
        lambda fake: -fake.mean(),
    ),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"cycle_loss": "l1"},
        {"cycle_loss": "ms_ssim", "lambda_identity": 0.0},
        {"cycle_loss": "mix", "lambda_identity": 0.0},
        {"gan_loss": "vanilla"},
        {"gan_loss": "hinge"},
        {"generator": "unet_32"},
        {"channels_last": True},
        {"lambda_a": 4.0, "lambda_b": 7.0},
    ],
    ids=str,
)
def test_a_step_has_the_losses_and_gradients_of_the_paper(settings, batch, changes):
    """Every pass on its own here, merged in the trainer."""
    trainer = Trainer(replace(settings, **changes))
    s = trainer.settings
    real_a, real_b = batch
    g, f, d_a, d_b = (copy.deepcopy(trainer.model.networks[name]) for name in NETWORKS)
    judge, deceive = WANTED[s.gan_loss]

    # Zhu et al. 2017, equations 1 to 3, term by term.
    def cyc(reconstruction, real):
        x, y = (reconstruction + 1) / 2, (real + 1) / 2
        if s.cycle_loss == "l1":
            return (x - y).abs().mean()
        factors = {
            "ssim_l1": {"ssim": 0.84, "gaussian_l1": 0.16},
            "ms_ssim": {"ssim": 0.0, "ms_ssim": 1.0, "weights": "auto"},
            "mix": {"ssim": 0.0, "ms_ssim": 0.84, "gaussian_l1": 0.16, "weights": "auto"},
        }[s.cycle_loss]
        # In the range of tanh: near a mean of 0 the gradient magnifies the rounding of a mapping.
        return ssimfast.similarity_loss(reconstruction, real, value_range=(-1, 1), **factors)

    want = {
        "gan_a": deceive(d_a(f(real_b))),
        "gan_b": deceive(d_b(g(real_a))),
        "cycle_a": cyc(f(g(real_a)), real_a),
        "cycle_b": cyc(g(f(real_b)), real_b),
        "identity_a": (f(real_a) - real_a).abs().mean(),
        "identity_b": (g(real_b) - real_b).abs().mean(),
    }
    weights = {"gan_a": 1, "gan_b": 1}
    for domain, factor in (("a", s.lambda_a), ("b", s.lambda_b)):
        weights |= {f"cycle_{domain}": factor, f"identity_{domain}": factor * s.lambda_identity}
    sum(weights[name] * loss for name, loss in want.items()).backward()
    # The pools are empty: the discriminators see the fakes that the generators just made.
    for network in (d_a, d_b):
        network.zero_grad()
    want["discriminator_a"] = judge(d_a(real_a), d_a(f(real_b).detach())) / 2
    want["discriminator_b"] = judge(d_b(real_b), d_b(g(real_a).detach())) / 2
    (want["discriminator_a"] + want["discriminator_b"]).backward()
    if not s.lambda_identity:
        want |= {"identity_a": torch.tensor(0.0), "identity_b": torch.tensor(0.0)}

    losses = trainer.train_step(real_a, real_b)
    assert not any(loss.requires_grad for loss in losses.values())
    for name, loss in want.items():
        torch.testing.assert_close(losses[name], loss.detach(), msg=lambda m, n=name: f"{n}: {m}")
    for name, expected in zip(NETWORKS, (g, f, d_a, d_b), strict=True):
        for got, want in zip(
            trainer.model.networks[name].parameters(), expected.parameters(), strict=True
        ):
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=3e-5)


def test_gradients_are_clipped_to_the_asked_norm(settings, batch):
    norms = []
    for clip_norm in (0.0, 0.125):
        trainer = Trainer(replace(settings, clip_norm=clip_norm))
        trainer.train_step(*batch)
        for names in (NETWORKS[:2], NETWORKS[2:]):
            gradients = [
                p.grad for name in names for p in trainer.model.networks[name].parameters()
            ]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
    assert min(norms[:2]) > 0.2
    assert norms[2:] == pytest.approx([0.125] * 2, rel=1e-3)


def test_averaged_generators_follow_slowly_and_are_those_that_translate(settings, batch):
    trainer = Trainer(replace(settings, ema_decay=0.15))
    expected = {}
    for name in NETWORKS[:2]:
        expected[name] = [p.detach().clone() for p in trainer.model.networks[name].parameters()]
    for decay in (1 / 10, 0.15, 0.15):  # from 2/11 on, more than was asked for
        trainer.train_step(*batch)
        for name, averages in expected.items():
            now = trainer.model.networks[name].parameters()
            for average, parameter in zip(averages, now, strict=True):
                average.mul_(decay).add_((1 - decay) * parameter.detach())
    for name, averages in expected.items():
        assert trainer.model.generators()[name[-2:]] is trainer.model.averaged[name]
        for average, want in zip(trainer.model.averaged[name].parameters(), averages, strict=True):
            torch.testing.assert_close(average, want)
            assert not average.requires_grad
    plain = Trainer(settings)
    networks = plain.model.networks
    assert plain.model.generators() == {d: networks[f"generator_{d}"] for d in ("ab", "ba")}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, pytest.param({"compile": True}, marks=pytest.mark.long)],
    ids=str,
)
def test_other_ways_to_compute_come_near(settings, batch, changes, monkeypatch):
    compile = torch.compile  # the same graphs, without the minute of C++ compilers
    monkeypatch.setattr(torch, "compile", partial(compile, backend="aot_eager"))
    want = Trainer(settings).train_step(*batch)
    trainer = Trainer(replace(settings, **changes))
    got = trainer.train_step(*batch)
    for name in LOSSES:
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], want[name], atol=0.02, rtol=0.02)
    if "precision" in changes:
        assert not torch.equal(got["cycle_a"], want["cycle_a"])
    generator = trainer.model.networks["generator_ab"]
    assert all(p.dtype == torch.float32 for p in generator.parameters())
    # What is written has the names of the plain network.
    assert [*generator.state_dict()] == [*ResnetGenerator(4, 1).state_dict()]


@pytest.mark.long  # the compilers take a minute
@pytest.mark.needs("compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")
def test_networks_compiled_by_inductor_train_as_plain_ones_do(settings, batch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = Trainer(settings), Trainer(replace(settings, compile=True))
    for _ in range(2):  # the second step sees what the gradients of the first did
        want, got = plain.train_step(*batch), compiled.train_step(*batch)
        for name in LOSSES:
            torch.testing.assert_close(got[name], want[name], atol=1e-3, rtol=1e-3)
    networks = {type(compiled.model.networks[name]) for name in NETWORKS}
    assert networks == {ResnetGenerator, PatchDiscriminator}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(NETWORKS)


def test_nothing_in_a_step_reads_from_the_device(settings, batch, monkeypatch):
    """On a GPU each reading waits for it; here every one is an error."""
    trainer = Trainer(replace(settings, clip_norm=1.0, ema_decay=0.9, pool_size=2))
    aten = torch.ops.aten
    readings = (aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.masked_select)

    class NoReadings(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket not in readings, func
            if func.overloadpacket is aten.index:
                assert all(i is None or i.dtype != torch.bool for i in args[1]), "by a mask"
            return func(*args, **(kwargs or {}))

    def read(*_):
        raise AssertionError("read")

    for name in ("tolist", "cpu", "numpy", "item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, read)
    for _ in range(3):
        with NoReadings():
            trainer.train_step(*batch)
    flat = batch[0].flatten()
    for reading in (flat.sum().item, flat.tolist, flat.unique, flat.cpu, lambda: flat[flat > 0]):
        with pytest.raises(AssertionError), NoReadings():
            reading()


@pytest.mark.needs("cuda")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_nothing_in_a_step_waits_on_cuda(settings, batch, precision):
    settings = replace(settings, clip_norm=1.0, ema_decay=0.9, precision=precision)
    trainer = Trainer(replace(settings, device="auto"))
    batch = [images.to(trainer.device) for images in batch]
    trainer.train_step(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = trainer.train_step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_pieces_gives_the_weights_of_the_whole_batch(settings, accumulate):
    """In float64: Adam turns gradients that are rounding only into steps of full size."""
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        settings = replace(settings, batch_size=4, pool_size=3, clip_norm=1.0)
        whole, pieces = Trainer(settings), Trainer(replace(settings, accumulate=accumulate))
    finally:
        torch.set_default_dtype(default)
    sizes = set()
    for network in pieces.model.networks.values():
        network.register_forward_hook(lambda _, inputs, out: sizes.add(len(inputs[0])))
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        images = torch.rand(2, 4, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
        want, got = whole.train_step(*images), pieces.train_step(*images)
        for name in LOSSES:
            torch.testing.assert_close(got[name], want[name], atol=1e-6, rtol=1e-6)
    assert max(sizes) == 2 * 4 // accumulate  # a generator's fakes and identities
    for mine, theirs in zip(flat_networks(pieces), flat_networks(whole), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def flat_networks(trainer):
    """Weights of each network; biases in front of instance norm have gradients of rounding only."""
    for network in trainer.model.networks.values():
        yield torch.cat([p.flatten() for n, p in network.named_parameters() if "weight" in n])


def test_a_step_moves_every_parameter_of_every_network(settings, batch):
    trainer = Trainer(settings)
    before = copy.deepcopy(
        [dict(trainer.model.networks[name].named_parameters()) for name in NETWORKS]
    )
    trainer.train_step(*batch)
    for name, old in zip(NETWORKS, before, strict=True):
        for parameter, now in trainer.model.networks[name].named_parameters():
            assert not torch.equal(now, old[parameter]), f"{name}.{parameter}"


def test_adam_gets_its_rates_from_the_settings(settings):
    trainer = Trainer(replace(settings, beta1=0.25, learning_rate=3e-3))
    for optimizer in trainer.model.optimizers:
        [group] = optimizer.param_groups
        assert group["betas"] == (0.25, 0.999) and group["lr"].item() == pytest.approx(3e-3)
        assert group["fused"]


def test_discriminators_get_no_gradient_from_the_generators(settings, batch):
    trainer = Trainer(settings)
    discriminators = [trainer.model.networks[name] for name in DISCRIMINATORS]
    seen = []
    trainer.model.optimizers[0].optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad for d in discriminators for p in d.parameters())
    )
    trainer.train_step(*batch)
    assert seen and all(grad is None for grad in seen)
    assert all(p.requires_grad for d in discriminators for p in d.parameters())


def test_pools_feed_older_fakes_to_the_discriminators(settings, batch, monkeypatch):
    trainer = Trainer(settings)
    networks = trainer.model.networks
    real_a, real_b = batch
    with torch.no_grad():
        fakes = networks["generator_ba"](real_b), networks["generator_ab"](real_a)
    olds = real_a.flip(3), real_b.flip(2)  # one of its own for each pool
    asked = []
    for pool, old in zip(trainer.model.pools.values(), olds, strict=True):
        monkeypatch.setattr(pool, "query", lambda fake, old=old: asked.append(fake) or old)
    judges = [copy.deepcopy(networks[name]) for name in DISCRIMINATORS]
    losses = trainer.train_step(*batch)
    torch.testing.assert_close(asked, list(fakes))
    assert not torch.allclose(*fakes)
    for domain, judge, real, old in zip("ab", judges, batch, olds, strict=True):
        expected = ((judge(real) - 1) ** 2).mean() / 2 + (judge(old) ** 2).mean() / 2
        torch.testing.assert_close(losses[f"discriminator_{domain}"], expected.detach())


@pytest.mark.parametrize(
    "cycle_loss",
    [
        "ssim",
        *(
            pytest.param(n, marks=pytest.mark.long)
            for n in ("paper_l1", "ms_ssim", "mix", "ssim_l1l2_b")
        ),
    ],
)
def test_training_reduces_the_cycle_loss(settings, cycle_loss):
    trainer = Trainer(
        replace(settings, cycle_loss=cycle_loss, steps=60, base_width=8, learning_rate=2e-3)
    )
    before = trainer.test_scores()
    batch = trainer.test_a, trainer.test_b
    losses = [trainer.train_step(*batch) for _ in range(60)]
    cycle = [loss["cycle_a"].item() + loss["cycle_b"].item() for loss in losses]
    assert sum(cycle[-5:]) < 0.6 * sum(cycle[:5])
    assert trainer.test_scores()["ssim"] > before["ssim"] + 0.1


def test_learning_rate_is_constant_then_falls_linearly(settings, batch):
    trainer = Trainer(replace(settings, steps=8, learning_rate=1e-3))
    rates = []
    for _ in range(8):
        trainer.train_step(*batch)
        rates.append([o.param_groups[0]["lr"].item() for o in trainer.model.optimizers])
    expected = [1e-3] * 5 + [0.75e-3, 0.5e-3, 0.25e-3]
    np.testing.assert_allclose(rates, np.stack([expected, expected], axis=1), rtol=1e-6)


def test_linear_decay_reaches_0_at_the_end_from_any_start():
    assert [linear_decay(4, 0.0)(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert linear_decay(1, 0.9)(0) == 1
    assert linear_decay(1, 0.9)(1) == 0
    assert linear_decay(4, 0.5)(5) == linear_decay(4, 0.5)(100) == 0  # never uphill


def flat(trainer):
    networks = [trainer.model.networks[name].state_dict() for name in NETWORKS]
    return torch.cat([weights.flatten() for state in networks for weights in state.values()])


def test_the_seed_decides_every_bit(settings, tmp_path):
    runs = []
    for i, seed in enumerate([7, 7, 8]):
        torch.rand(i)  # what other code drew before must not matter
        trainer = Trainer(replace(settings, seed=seed, run_dir=str(tmp_path / str(i))))
        trainer.train()
        runs.append(flat(trainer))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_run_dir_that_cannot_be_written_fails_before_training(settings):
    Path(settings.run_dir).write_text("a file")
    trainer = Trainer(settings)
    with pytest.raises(OSError):
        trainer.train()
    assert trainer.step == 0


def test_each_domain_is_tested_on_its_own_test_folder(settings, data, tmp_path):
    trainer = Trainer(settings)
    folders = ("trainA", "trainB", "testA", "testB")
    for name in folders[:2]:  # as test images of another data set
        (tmp_path / name.replace("train", "test")).symlink_to(data / name)
    images = {name: load_test_images(settings, name[-1].lower()) for name in folders[2:]}
    other = replace(settings, data=str(tmp_path))
    images |= {name: load_test_images(other, name[-1].lower()) for name in folders[:2]}
    assert len({image.sum().item() for image in images.values()}) == 4  # no two alike
    assert torch.equal(trainer.test_a, images["testA"])
    assert torch.equal(trainer.test_b, images["testB"])


def test_test_images_may_be_larger_than_the_crops_that_train(settings):
    trainer = Trainer(replace(settings, test_size="64", steps=1))
    trainer.train()
    with Image.open(trainer.samples_path) as image:
        assert image.size == (6 * (64 + 2) + 2, 3 * (64 + 2) + 2)
    assert trainer.pairs[0][0].shape == (3, 32, 32)
    assert {images.shape for images in trainer.tests().values()} == {(3, 3, 64, 64)}


def test_round_trips_keep_no_graph(settings):
    trips = list(Trainer(settings).round_trips())
    assert len(trips) == 2
    assert not any(images.requires_grad for trip in trips for images in trip)


def test_sample_grid_shows_real_fake_and_reconstruction(settings):
    trainer = Trainer(replace(settings, steps=3, save_every=2))
    trainer.train()
    names = sorted(path.name for path in (trainer.run_dir / "samples").iterdir())
    assert names == [f"step_000000{step}.jpg" for step in (0, 2, 3)]
    assert trainer.samples_path.name == names[-1]
    with Image.open(trainer.samples_path) as image:
        pixels = np.asarray(image).astype(int)
    cell = 32 + 2  # two pixels between images
    assert pixels.shape == (3 * cell + 2, 6 * cell + 2, 3)
    generators = trainer.generators()
    with torch.no_grad():
        fake_b = generators["ab"](trainer.test_a)
        rec_a = generators["ba"](fake_b)
        fake_a = generators["ba"](trainer.test_b)
        rec_b = generators["ab"](fake_a)
    columns = (trainer.test_a, fake_b, rec_a, trainer.test_b, fake_a, rec_b)
    for x, column in enumerate(columns):
        for y, image in enumerate(column):
            shown = pixels[y * cell + 2 : (y + 1) * cell, x * cell + 2 : (x + 1) * cell]
            expected = (image.permute(1, 2, 0).numpy() + 1) * 127.5
            assert np.abs(shown - expected).mean() <= 6  # noise, as a JPEG
    pairs = [(columns[i], columns[i + 2]) for i in (0, 3)]
    scores = [ssimfast.ssim(*pair, value_range=(-1, 1)).item() for pair in pairs]
    assert trainer.test_scores()["ssim"] == pytest.approx(sum(scores) / 2, abs=1e-5)


def test_networks_have_the_asked_sizes(settings):
    trainer = Trainer(replace(settings, generator="resnet_3", base_width=6, discriminator_width=5))

    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert count(trainer.model.networks["generator_ba"]) == count(ResnetGenerator(6, 3))
    assert count(trainer.model.networks["discriminator_a"]) == count(PatchDiscriminator(5, 3))
