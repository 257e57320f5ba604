"""Settings, one training step, schedules, determinism, checkpoints."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssimfast
from cyclegan.data import load_test_images
from cyclegan.networks import PatchDiscriminator, ResnetGenerator
from cyclegan.trainer import NETWORKS, Settings, Trainer, linear_decay


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks as small as these lose more to handing work around than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


FOLDERS = ("trainA", "trainB", "testA", "testB")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three 40x40 images a folder: A has vertical, B horizontal waves of several colours."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (root / folder).mkdir()
        for i in range(3):
            wave = np.sin(np.arange(40) * rng.uniform(0.2, 0.6) + rng.uniform(0, 6))
            colour = rng.uniform(40, 120, 3)
            pixels = 127 + wave[None, :, None] * colour + np.zeros((40, 1, 1))
            if folder.endswith("B"):
                pixels = pixels.transpose(1, 0, 2)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{i}.png")
    return root


@pytest.fixture
def settings(data, tmp_path):
    """The smallest networks and images that train."""
    return Settings(
        data=str(data),
        run_dir=str(tmp_path / "run"),
        steps=4,
        image_size=32,
        batch_size=2,
        base_width=4,
        blocks=1,
        discriminator_width=4,
        device="cpu",
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("lambda_cycle", -1.0),
        ("lambda_cycle", float("inf")),
        ("lambda_identity", float("nan")),
        ("lambda_identity", float("inf")),
        ("decay_start", 1.0),
        ("image_size", 66),
        ("image_size", 28),
        ("cycle_loss", "sim"),
        ("pool_size", -1),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_settings_name_the_argument_and_what_came(settings, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*got '?{value}"):
        replace(settings, **{name: value})


def test_an_unusable_device_is_named(settings):
    with pytest.raises(ValueError, match="device must .*'cupid'"):
        Trainer(replace(settings, device="cupid"))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_admissible_image_trains(settings, layers):
    size = next(size for size in range(4, 100) if admissible(settings, size, layers))
    trainer = Trainer(replace(settings, image_size=size, discriminator_layers=layers))
    losses = trainer.train_step(trainer.test_a, trainer.test_b)
    assert all(loss.isfinite() for loss in losses.values())


def admissible(settings, size, layers):
    try:
        return replace(settings, image_size=size, discriminator_layers=layers)
    except ValueError:
        return None


@pytest.mark.parametrize("cycle_loss", ["l1", "ssim", "ms_ssim", "mix"])
@pytest.mark.parametrize("lambda_identity", [0.0, 0.5])
def test_a_step_has_the_losses_and_gradients_of_the_paper(
    settings, batch, cycle_loss, lambda_identity
):
    trainer = Trainer(replace(settings, cycle_loss=cycle_loss, lambda_identity=lambda_identity))
    real_a, real_b = batch
    g, f, d_a, d_b = (copy.deepcopy(getattr(trainer, name)) for name in NETWORKS)

    # Zhu et al. 2017, equations 1 to 3 with the least-squares form of section 4, term by term.
    def cyc(reconstruction, real):
        x, y = (reconstruction + 1) / 2, (real + 1) / 2
        if cycle_loss == "l1":
            return (x - y).abs().mean()
        if cycle_loss == "ssim":
            return 1 - ssimfast.ssim(x, y)
        factors = {"ms_ssim": 1.0} if cycle_loss == "ms_ssim" else {"ms_ssim": 0.84}
        factors["gaussian_l1"] = 1 - factors["ms_ssim"]
        # In the range of tanh: near a mean of 0 the gradient magnifies the rounding of a mapping.
        return ssimfast.similarity_loss(
            reconstruction, real, ssim=0, **factors, weights="auto", value_range=(-1, 1)
        )

    gan = ((d_b(g(real_a)) - 1) ** 2).mean() + ((d_a(f(real_b)) - 1) ** 2).mean()
    cycle = cyc(f(g(real_a)), real_a) + cyc(g(f(real_b)), real_b)
    identity = (g(real_b) - real_b).abs().mean() + (f(real_a) - real_a).abs().mean()
    (gan + 10 * cycle + lambda_identity * 10 * identity).backward()
    # The pools are empty: the discriminators see the fakes that the generators just made.
    disc_a = ((d_a(real_a) - 1) ** 2).mean() + (d_a(f(real_b).detach()) ** 2).mean()
    disc_b = ((d_b(real_b) - 1) ** 2).mean() + (d_b(g(real_a).detach()) ** 2).mean()
    for network in (d_a, d_b):
        network.zero_grad()
    ((disc_a + disc_b) / 2).backward()

    losses = trainer.train_step(real_a, real_b)
    assert not any(loss.requires_grad for loss in losses.values())
    torch.testing.assert_close(losses["gan"], gan.detach())
    torch.testing.assert_close(losses["cycle"], cycle.detach())
    expected_identity = identity.detach() if lambda_identity else torch.tensor(0.0)
    torch.testing.assert_close(losses["identity"], expected_identity)
    torch.testing.assert_close(losses["discriminator"], (disc_a + disc_b).detach() / 2)
    for name, expected in zip(NETWORKS, (g, f, d_a, d_b), strict=True):
        for got, want in zip(
            getattr(trainer, name).parameters(), expected.parameters(), strict=True
        ):
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-5)


def test_a_step_moves_every_parameter_of_every_network(settings, batch):
    trainer = Trainer(settings)
    before = copy.deepcopy([dict(getattr(trainer, name).named_parameters()) for name in NETWORKS])
    trainer.train_step(*batch)
    for name, old in zip(NETWORKS, before, strict=True):
        for parameter, now in getattr(trainer, name).named_parameters():
            assert not torch.equal(now, old[parameter]), f"{name}.{parameter}"


def test_adam_gets_its_rates_from_the_settings(settings):
    trainer = Trainer(replace(settings, beta1=0.25, learning_rate=3e-3))
    for optimizer in trainer.optimizers:
        [group] = optimizer.param_groups
        assert (group["betas"], group["lr"]) == ((0.25, 0.999), 3e-3)


def test_discriminators_get_no_gradient_from_the_generators(settings, batch):
    trainer = Trainer(settings)
    seen = []
    trainer.generator_optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad for d in trainer.discriminators for p in d.parameters())
    )
    trainer.train_step(*batch)
    assert seen and all(grad is None for grad in seen)
    assert all(p.requires_grad for d in trainer.discriminators for p in d.parameters())


def test_pools_feed_older_fakes_to_the_discriminators(settings, batch, monkeypatch):
    trainer = Trainer(settings)
    real_a, real_b = batch
    with torch.no_grad():
        fakes = trainer.generator_ba(real_b), trainer.generator_ab(real_a)
    olds = real_a.flip(3), real_b.flip(2)  # one of its own for each pool
    asked = []
    for pool, old in zip((trainer.pool_a, trainer.pool_b), olds, strict=True):
        monkeypatch.setattr(pool, "query", lambda fake, old=old: asked.append(fake) or old)
    d_a, d_b = (copy.deepcopy(d) for d in trainer.discriminators)
    losses = trainer.train_step(*batch)
    torch.testing.assert_close(asked, list(fakes))
    assert not torch.allclose(*fakes)
    expected = sum(
        ((d(real) - 1) ** 2).mean() / 2 + (d(old) ** 2).mean() / 2
        for d, real, old in zip((d_a, d_b), batch, olds, strict=True)
    )
    torch.testing.assert_close(losses["discriminator"], expected.detach())


@pytest.mark.parametrize("cycle_loss", ["2*l1", "ssim", "ms_ssim", "mix", "ssim_l1l2_b"])
def test_training_reduces_the_cycle_loss(settings, cycle_loss):
    trainer = Trainer(
        replace(
            settings, cycle_loss=cycle_loss, steps=60, base_width=8, learning_rate=2e-3, log_every=1
        )
    )
    before = trainer.cycle_ssim()
    batch = trainer.test_a, trainer.test_b
    losses = [trainer.train_step(*batch)["cycle"].item() for _ in range(60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert trainer.cycle_ssim() > before + 0.1


def test_learning_rate_is_constant_then_falls_linearly(settings, batch):
    trainer = Trainer(replace(settings, steps=8, learning_rate=1e-3))
    rates = []
    for _ in range(8):
        rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])
        trainer.train_step(*batch)
    expected = [1e-3] * 5 + [0.75e-3, 0.5e-3, 0.25e-3]
    np.testing.assert_allclose(rates, np.stack([expected, expected], axis=1))


def test_linear_decay_reaches_0_at_the_end_from_any_start():
    assert [linear_decay(4, 0.0)(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert linear_decay(1, 0.9)(0) == 1
    assert linear_decay(1, 0.9)(1) == 0
    assert linear_decay(4, 0.5)(5) == linear_decay(4, 0.5)(100) == 0  # never uphill


def weights(trainer):
    return {name: getattr(trainer, name).state_dict() for name in NETWORKS}


def flat(trainer):
    return torch.cat([w.flatten() for n in weights(trainer).values() for w in n.values()])


def test_the_seed_decides_every_bit(settings, tmp_path):
    runs = []
    for i, seed in enumerate([7, 7, 8]):
        torch.rand(i)  # what other code drew before must not matter
        trainer = Trainer(replace(settings, seed=seed, run_dir=str(tmp_path / str(i))))
        trainer.train()
        runs.append(flat(trainer))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_checkpoint_holds_the_whole_state_in_plain_types(settings):
    trainer = Trainer(settings)
    trainer.train()
    state = torch.load(trainer.checkpoint_path, weights_only=True)
    assert Settings(**state["settings"]) == settings
    assert state["step"] == settings.steps
    assert torch.equal(
        torch.cat([w.flatten() for n in NETWORKS for w in state["networks"][n].values()]),
        flat(trainer),
    )

    # Loaded into new networks and optimizers, it goes on exactly as the trainer itself does.
    other = Trainer(replace(settings, seed=99, run_dir=settings.run_dir + "2"))
    for name in NETWORKS:
        getattr(other, name).load_state_dict(state["networks"][name])
    for kind in ("optimizers", "schedulers"):
        for part, loaded in zip(getattr(other, kind), state[kind], strict=True):
            part.load_state_dict(loaded)
    batch = trainer.test_a, trainer.test_b
    for one in (trainer, other):
        for optimizer in one.optimizers:
            optimizer.param_groups[0]["lr"] = 1e-3
        one.pool_a.size = one.pool_b.size = 0
        one.train_step(*batch)
    assert torch.equal(flat(trainer), flat(other))


def test_a_failing_save_leaves_the_old_checkpoint(settings, monkeypatch):
    trainer = Trainer(settings)
    trainer.save_checkpoint()
    old = trainer.checkpoint_path.read_bytes()

    def save_half(state, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        trainer.save_checkpoint()
    assert trainer.checkpoint_path.read_bytes() == old
    assert [path.name for path in trainer.run_dir.iterdir()] == ["checkpoint.pt"]


def test_a_run_dir_that_cannot_be_written_fails_before_training(settings):
    Path(settings.run_dir).write_text("a file")
    trainer = Trainer(settings)
    with pytest.raises(OSError):
        trainer.train()
    assert trainer.step == 0


def test_a_run_is_not_overwritten(settings):
    Trainer(settings).save_checkpoint()
    with pytest.raises(FileExistsError, match="checkpoint.pt exists"):
        Trainer(settings)


def test_each_domain_is_tested_on_its_own_test_folder(settings, data):
    trainer = Trainer(settings)
    images = {name: load_test_images(data / name, 32, 3) for name in FOLDERS}
    assert len({image.sum().item() for image in images.values()}) == 4  # no two alike
    assert torch.equal(trainer.test_a, images["testA"])
    assert torch.equal(trainer.test_b, images["testB"])


def test_round_trips_keep_no_graph(settings):
    trips = list(Trainer(settings).round_trips())
    assert len(trips) == 2
    assert not any(images.requires_grad for trip in trips for images in trip)


def test_sample_grid_shows_real_fake_and_reconstruction(settings):
    trainer = Trainer(replace(settings, steps=3, save_every=2))
    trainer.train()
    names = sorted(path.name for path in (trainer.run_dir / "samples").iterdir())
    assert names == [f"step_000000{step}.png" for step in (0, 2, 3)]
    assert trainer.samples_path.name == names[-1]
    with Image.open(trainer.samples_path) as image:
        pixels = np.asarray(image).astype(int)
    cell = 32 + 2  # a frame of one pixel
    assert pixels.shape == (6 * cell, 3 * cell, 3)
    with torch.no_grad():
        fake_b = trainer.generator_ab(trainer.test_a)
        rec_a = trainer.generator_ba(fake_b)
        fake_a = trainer.generator_ba(trainer.test_b)
        rec_b = trainer.generator_ab(fake_a)
    rows = (trainer.test_a, fake_b, rec_a, trainer.test_b, fake_a, rec_b)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            shown = pixels[y * cell + 1 : (y + 1) * cell - 1, x * cell + 1 : (x + 1) * cell - 1]
            expected = (image.permute(1, 2, 0).numpy() + 1) * 127.5
            assert np.abs(shown - expected).max() <= 1
    scores = [ssimfast.ssim(rows[i], rows[i + 2], value_range=(-1, 1)).item() for i in (0, 3)]
    assert trainer.cycle_ssim() == pytest.approx(sum(scores) / 2, abs=1e-5)


def test_networks_have_the_asked_sizes(settings):
    trainer = Trainer(replace(settings, blocks=3, base_width=6, discriminator_width=5))

    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert count(trainer.generator_ba) == count(ResnetGenerator(6, 3))
    assert count(trainer.discriminator_a) == count(PatchDiscriminator(5, 3))
