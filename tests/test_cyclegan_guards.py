"""What a run notices of itself, and what it tells others."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures

from cyclegan import checkpoints
from cyclegan.guards import PATIENCE, Diverged, Watch, check_finite, luminance_correlation
from cyclegan.log import RunLog
from cyclegan.model import LOSSES
from cyclegan.trainer import Trainer

FINE = {"discriminator_a": 0.2, "discriminator_b": 0.3, "gan_a": 0.0}
UPRIGHT = {"generator_ab": 0.6, "generator_ba": -0.05}


def test_the_first_loss_that_is_not_finite_is_named_with_its_step():
    check_finite(5, [[0.0, 1.0], [2.0, -3.0]], ["gan_a", "cycle_a"])
    rows = [[0.0, 1.0], [2.0, math.inf], [math.nan, 0.0]]
    with pytest.raises(Diverged, match="^training diverged: the loss cycle_a is inf at step 6$"):
        check_finite(5, rows, ["gan_a", "cycle_a"])


@pytest.mark.parametrize(
    "losses, correlations, message",
    [
        ({**FINE, "discriminator_b": 1e-5}, UPRIGHT, "discriminator_b has had a loss below 0.001"),
        (FINE, {**UPRIGHT, "generator_ba": -0.7}, "generator_ba makes dark what is bright"),
    ],
)
def test_what_stays_wrong_is_warned_of_once(losses, correlations, message):
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(PATIENCE - 1):
            watch.look(step, losses, correlations)
        watch.look(50, FINE, UPRIGHT)  # it was not to stay
        for step in range(PATIENCE - 1):
            watch.look(step, losses, correlations)
        with pytest.raises(UserWarning, match=f"{message}.*up to step 70"):
            watch.look(70, losses, correlations)
        for step in range(100, 130):
            watch.look(step, losses, correlations)


def test_luminance_correlation_by_hand():
    x = torch.rand(3, 3, 9, 7)
    torch.testing.assert_close(luminance_correlation(x, x), torch.tensor(1.0))
    torch.testing.assert_close(luminance_correlation(x, 0.2 - 0.5 * x), torch.tensor(-1.0))
    assert luminance_correlation(x, torch.full_like(x, 0.3)) == 0
    y = torch.rand(3, 3, 9, 7)
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = [torch.einsum("nchw,c->nhw", image, weights).flatten(1) for image in (x, y)]
    expected = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*luma, strict=True)]
    torch.testing.assert_close(luminance_correlation(x, y), torch.stack(expected).mean())


@pytest.mark.parametrize("channels", [1, 5])
def test_luminance_of_other_channels_is_their_mean(channels):
    x, y = torch.rand(2, 1, channels, 9, 7)
    pair = torch.stack([x.mean(1).flatten(), y.mean(1).flatten()])
    torch.testing.assert_close(luminance_correlation(x, y), torch.corrcoef(pair)[0, 1])


@pytest.mark.parametrize("term", [0, 3, 7])
def test_a_run_that_diverges_stops_before_it_saves(settings, monkeypatch, term):
    trainer = Trainer(replace(settings, steps=9, save_every=3, log_every=100))
    step = trainer.train_step

    def poisoned(real_a, real_b):
        losses = step(real_a, real_b)
        if trainer.step == 5:
            losses[LOSSES[term]] = losses[LOSSES[term]] * math.nan
        return losses

    monkeypatch.setattr(trainer, "train_step", poisoned)
    with pytest.raises(Diverged, match=f"the loss {LOSSES[term]} is nan at step 5"):
        trainer.train()
    [folder] = checkpoints.in_run(trainer.run_dir)
    assert folder.name == "step_0000003" and checkpoints.why_broken(folder) is None


def test_weights_that_the_last_step_spoilt_are_not_saved(settings, monkeypatch):
    trainer = Trainer(replace(settings, steps=2))
    step = trainer.train_step

    def spoils(real_a, real_b):
        losses = step(real_a, real_b)
        if trainer.step == 2:
            next(trainer.model.networks["discriminator_b"].parameters()).data[0] = math.inf
        return losses

    monkeypatch.setattr(trainer, "train_step", spoils)
    with pytest.raises(Diverged, match="weights of discriminator_b at step 2"):
        trainer.train()
    assert not checkpoints.in_run(trainer.run_dir)


def test_a_run_warns_of_dead_discriminators_and_inverted_colours(settings, monkeypatch):
    monkeypatch.setattr("cyclegan.guards.PATIENCE", 2)
    trainer = Trainer(replace(settings, steps=3, log_every=1))
    step = trainer.train_step

    def dead(real_a, real_b):
        losses = step(real_a, real_b)
        trainer.model.last_images["generator_ab"] = (real_a, -real_a)
        return {**losses, "discriminator_a": torch.tensor(0.0)}

    monkeypatch.setattr(trainer, "train_step", dead)
    with pytest.warns(UserWarning) as warned:
        trainer.train()
    texts = [str(warning.message) for warning in warned]
    assert len(texts) == 2
    assert texts[0].startswith("discriminator_a has had a loss below")
    assert texts[1].startswith(
        "generator_ab makes dark what is bright (correlation of luminance -1"
    )


def test_the_log_has_means_over_the_steps_since_the_last_look(settings, monkeypatch):
    trainer = Trainer(replace(settings, steps=5, log_every=2))
    step, seen = trainer.train_step, []

    def noted(real_a, real_b):
        seen.append({name: loss.item() for name, loss in step(real_a, real_b).items()})
        return {name: torch.tensor(loss) for name, loss in seen[-1].items()}

    monkeypatch.setattr(trainer, "train_step", noted)
    trainer.train()
    looks = [record for record in trainer.log.records() if "losses" in record]
    assert [look["step"] for look in looks] == [2, 4, 5]
    for look, steps in zip(looks, (seen[:2], seen[2:4], seen[4:]), strict=True):
        means = {name: sum(one[name] for one in steps) / len(steps) for name in LOSSES}
        assert look["losses"] == pytest.approx(means, rel=1e-5)
        assert look["images_per_second"] > 0
    assert looks[0]["seconds"] < looks[1]["seconds"] < looks[2]["seconds"]
    tests = [record for record in trainer.log.records() if "test" in record]
    assert [test["step"] for test in tests] == [0, 5]
    assert tests[-1]["test"] == pytest.approx(trainer.test_scores())


def test_a_log_forgets_what_came_after_and_lines_that_were_cut(tmp_path):
    log = RunLog(tmp_path / "run")
    assert log.records() == []
    log.cut(3)
    for step in range(6):
        log.append(step=step, losses={})
    with log.path.open("a") as file:
        file.write('{"step": 6, "los')
    assert [record["step"] for record in log.records()] == [0, 1, 2, 3, 4, 5]
    log.cut(3)
    log.append(step=9)
    assert [record["step"] for record in log.records()] == [0, 1, 2, 3, 9]


def accumulated(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.needs("tensorboard")
def test_losses_go_to_tensorboard(settings):
    trainer = Trainer(replace(settings, steps=4, log_every=2, trackers="tensorboard"))
    trainer.train()
    events = accumulated(trainer.run_dir / "cyclegan")
    looks = [record for record in trainer.log.records() if "losses" in record]
    for name in LOSSES:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(look["step"], pytest.approx(look["losses"][name])) for look in looks]
    assert [event.step for event in events.Scalars("test/ssim")] == [0, 4]


@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_the_beginning_of_a_run_that_begins_again_once(settings, monkeypatch):
    settings = replace(settings, steps=2, trackers="tensorboard")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        first = Trainer(settings)
        patch.setattr(first, "train_step", Mock(side_effect=RuntimeError("killed")))
        first.train()
    Trainer(settings, resume="auto").train()
    events = accumulated(first.run_dir / "cyclegan")
    assert [event.step for event in events.Scalars("test/ssim")] == [0, 2]


def test_a_tracker_that_is_not_installed_is_named(settings, monkeypatch):
    monkeypatch.setattr("cyclegan.trainer.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="trackers: wandb is not installed"):
        Trainer(replace(settings, trackers="wandb"))
