"""The loop around the steps: how long, how often, what scores say, which checkpoints stay, and
training on what the user brings from Python."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cyclegan_runs import OPTIONS, SMALLEST, data, one_thread, settings  # noqa: F401 - fixtures
from safetensors.torch import load_file
from test_cyclegan_resume import finish, start
from torch.utils.data import Dataset

import cyclegan.trainer
from cyclegan import checkpoints
from cyclegan.__main__ import main
from cyclegan.log import RunLog, best_test
from cyclegan.model import NETWORKS
from cyclegan.settings import Period, Settings, parse_period
from cyclegan.trainer import Trainer

ROOT = Path(__file__).parent.parent


# ---- How long and how often ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts, epochs, per_step, steps",
    [
        ((1072, 6287), 200, 1, 1_257_400),  # monet2photo
        ((1067, 1334), 200, 1, 266_800),  # horse2zebra
        ((1072, 6287), 200, 4, 314_350),
        ((3, 3), 0.1, 2, 1),
    ],
    ids=str,
)
def test_an_epoch_is_as_many_images_as_the_larger_folder_holds(counts, epochs, per_step, steps):
    settings = Settings(data="", run_dir="", epochs=epochs)
    assert settings.count_steps(max(counts), per_step) == steps
    assert replace(settings, steps=7).count_steps(max(counts), per_step) == 7


def test_a_run_of_epochs_counts_the_larger_domain_and_the_batch(settings, data, tmp_path):
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    for i in (3, 4):
        shutil.copy(mine / "trainB" / "0.png", mine / "trainB" / f"{i}.png")
    settings = replace(settings, data=str(mine), steps=0, epochs=2)
    run = Trainer(settings)
    assert (run.epoch, run.settings.steps) == (5, 5)  # two epochs of five pairs, two a step
    run.train()
    assert run.step == 5
    more = ["train", "--resume=auto", f"--run-dir={run.run_dir}"]
    assert main([*more, "--epochs=4"]) == 0  # overrides the steps of the run before
    assert checkpoints.in_run(run.run_dir)[0].name == "step_0000010"
    assert main([*more, "--steps=11"]) == 0
    assert checkpoints.in_run(run.run_dir)[0].name == "step_0000011"


@pytest.mark.parametrize(
    "text, period, steps",
    [
        ("500", Period(500), 500),
        ("2e", Period(2, "e"), 25),
        ("0.01e", Period(0.01, "e"), 1),
        (".5m", Period(0.5, "m"), 0),
        (7, Period(7), 7),
    ],
)
def test_periods_are_steps_epochs_or_minutes(text, period, steps):
    assert parse_period("save_every", text) == period
    assert period.in_steps(epoch=12.5) == steps


@pytest.mark.parametrize("text", ["", "0", "0m", "-3", "1.5", "10 m", "3h", "e", "nan", "1e3"])
def test_other_periods_are_refused(settings, text):
    with pytest.raises(ValueError, match=f"^log_every must be a number of steps.*got {text!r}"):
        replace(settings, log_every=text)


class Clock:
    """time.perf_counter of the trainer, which a step advances by a second."""

    def __init__(self, monkeypatch, trainer, saving: float = 0.0):
        self.now = 100.0
        monkeypatch.setattr(cyclegan.trainer.time, "perf_counter", lambda: self.now)
        step, save = trainer.train_step, trainer.save_checkpoint

        def slow_step(*images):
            self.now += 1
            return step(*images)

        def slow_save():
            self.now += saving
            return save()

        trainer.train_step, trainer.save_checkpoint = slow_step, slow_save


def saved_steps(trainer) -> list[int]:
    return [record["step"] for record in trainer.log.records("test")]


def test_saves_and_looks_can_go_by_the_clock(settings, monkeypatch):
    trainer = Trainer(replace(settings, steps=30, save_every="0.2m", log_every="0.05m"))
    Clock(monkeypatch, trainer)
    trainer.train()
    looks = [record["step"] for record in trainer.log.records("losses")]
    assert looks == [*range(1, 30, 3), 30]  # every three seconds
    assert saved_steps(trainer) == [0, 13, 25, 30]  # twelve seconds, seen at the next look


@pytest.mark.filterwarnings("ignore:generator")  # colours are inverted, sometimes
def test_saves_by_the_clock_take_at_most_two_percent_of_the_time(settings, monkeypatch):
    trainer = Trainer(replace(settings, steps=300, save_every="0.1m", log_every=1))
    Clock(monkeypatch, trainer, saving=2.0)
    trainer.train()
    assert saved_steps(trainer) == [0, 6, 106, 206, 300]  # a hundred seconds for two
    assert trainer.log.records("saving")[1]["saving"] == pytest.approx(2)
    assert trainer.seconds == pytest.approx(300)


@pytest.mark.long
def test_two_processes_save_and_look_together_by_the_clock(data, tmp_path):
    options = [*OPTIONS, f"--data={data}", f"--run-dir={tmp_path / 'run'}", "--epochs=30"]
    finish(start(2, *options, "--save-every=0.001m", "--log-every=0.001m"))
    log = RunLog(tmp_path / "run")
    assert checkpoints.in_run(tmp_path / "run")[0].name == "step_0000045"
    tested = [record["step"] for record in log.records("test")]
    assert 2 < len(tested) < 45 and tested == sorted(set(tested)) and tested[-1] == 45
    assert len(log.records("losses")) > len(tested)


def test_epochs_of_saving_are_those_of_the_run(settings):
    trainer = Trainer(replace(settings, steps=6, save_every="2e", log_every="1e"))
    trainer.train()
    assert saved_steps(trainer) == [0, 3, 6]
    assert [record["step"] for record in trainer.log.records("losses")] == [2, 3, 4, 6]


def test_a_save_does_not_read_the_log_again(settings, monkeypatch):
    Trainer(replace(settings, steps=1)).train()
    trainer = Trainer(replace(settings, steps=4, save_every=1), resume="auto")
    reads, read = [], Path.read_text

    def note(path, *arguments, **options):
        reads.append(path.name)
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", note)
    trainer.train()
    assert reads.count("log.jsonl") == 1


# ---- Starting again -----------------------------------------------------------------------------


def test_auto_begins_with_the_settings_of_a_run_that_has_no_checkpoint_yet(settings, capsys):
    first = Trainer(replace(settings, steps=2, seed=5))

    def killed(*_):
        raise KeyboardInterrupt

    first.train_step = killed
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert not checkpoints.in_run(first.run_dir)
    assert main(["train", "--resume=auto", f"--run-dir={first.run_dir}"]) == 0
    config = checkpoints.read_config(checkpoints.in_run(first.run_dir)[0])
    assert (config["settings"]["seed"], config["step"]) == (5, 2)


def test_translating_checks_no_more_than_it_reads(settings):
    trainer = Trainer(settings)
    trainer.train()
    [folder] = checkpoints.in_run(trainer.run_dir)
    (folder / "training.pt").write_bytes(b"")
    assert checkpoints.find(trainer.run_dir, ["generator_ab.safetensors"]) == folder
    (folder / "generator_ab.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="generator_ab.safetensors has changed"):
        with pytest.raises(ValueError, match="no checkpoint .* is whole"):
            checkpoints.find(trainer.run_dir, ["generator_ab.safetensors"])


# ---- Scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16", "ema_decay": 0.5}, {"test_images": 2}], ids=str
)
def test_a_checkpoint_has_the_same_scores_in_training_and_in_evaluate(settings, capsys, changes):
    trainer = Trainer(replace(settings, steps=3, learning_rate=2e-3, **changes))
    trainer.train()
    capsys.readouterr()
    assert main(["evaluate", f"--checkpoint={trainer.run_dir}", "--device=cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["mean"] == trainer.log.records("test")[-1]["test"]
    assert scores["images"] == dict.fromkeys("ab", changes.get("test_images", 3))


@pytest.fixture
def fids(monkeypatch):
    """Stands in for torch-fidelity: the distances of one test after the other."""
    values = iter([9.0, 4.0, 2.0, 3.0, 5.0])

    def distances(generators, settings, device, weights):
        assert set(generators) == {"ab", "ba"} and weights == "w.pth"
        torch.rand(3, generator=torch.Generator())
        return {"mean": {"fid": next(values), "kid": 0.1}}

    monkeypatch.setattr("cyclegan.trainer.distances", distances)
    monkeypatch.setattr("cyclegan.trainer.check_inception", lambda weights: None)


def test_the_best_checkpoint_is_kept(settings, fids, capsys):
    options = {"score": "fid", "inception_weights": "w.pth"}
    trainer = Trainer(replace(settings, steps=4, save_every=1, keep=1, **options))
    trainer.train()
    assert [path.name for path in checkpoints.in_run(trainer.run_dir)] == [
        *("step_0000004", "step_0000002")
    ]
    assert best_test(trainer.log.records("test"), "fid")["step"] == 2
    page = (trainer.run_dir / "report.html").read_text()
    assert "step 2, FID 2" in page and "<td>FID</td><td>9</td><td>5</td>" in page
    assert main(["train", "--resume=auto", f"--run-dir={trainer.run_dir}"]) == 0
    out = capsys.readouterr().out
    assert f"best checkpoint (FID 2): {checkpoints.folder_of(trainer.run_dir, 2)}" in out
    assert "FID: 9.000 at first, 5.000 now" in out


@pytest.mark.needs("torch_fidelity")
def test_scores_of_distributions_leave_the_random_state_alone(settings, monkeypatch):
    def calculate(**options):
        torch.rand(7)  # as its loaders do
        assert len(options["input1"]) == 3 and options["input1"][0].dtype == torch.uint8
        return {"frechet_inception_distance": 1.0, "kernel_inception_distance_mean": 2.0}

    monkeypatch.setattr("cyclegan.evaluate.fidelity", lambda: calculate)
    monkeypatch.setattr("cyclegan.trainer.check_inception", lambda weights: None)
    trainer = Trainer(replace(settings, score="kid"))
    before = torch.get_rng_state()
    assert {"fid": 1.0, "kid": 2.0}.items() <= trainer.test_scores().items()
    assert torch.equal(torch.get_rng_state(), before)


def test_domains_have_the_names_of_the_option_the_file_or_the_folder(settings, tmp_path):
    def names(**changes):
        return replace(settings, **changes).names_of_domains()

    assert names() == ("A", "B")
    assert names(data="sets/horse2zebra") == ("horse", "zebra")
    assert names(data="sets/summer2winter_yosemite") == ("summer", "winter")
    (tmp_path / "domains.txt").write_text("photo\npainting\n")
    assert names(data=str(tmp_path)) == ("photo", "painting")
    assert names(data=str(tmp_path), domain_names="day, night") == ("day", "night")
    with pytest.raises(ValueError, match="domain_names must be two, .*; got 'day'"):
        names(domain_names="day")


# ---- From Python --------------------------------------------------------------------------------


class Stripes(Dataset):
    """Pairs of vertical and horizontal stripes, shifted at random."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int):
        wave = torch.sin(torch.arange(32) * (index + 1) / 5 + torch.rand(()) * 6)
        a = wave.expand(3, 32, 32)
        return a, a.mT


def test_own_data_networks_and_loss_train_and_go_on_exactly(settings, tmp_path):
    def trainer(run_dir, steps, resume="no"):
        torch.manual_seed(0)
        networks = {name: torch.nn.Conv2d(3, 3, 3, padding=1) for name in NETWORKS}
        pairs = Stripes()
        tests = tuple(torch.stack(images) for images in zip(pairs[0], pairs[1], strict=True))
        return Trainer(
            replace(settings, data="stripes", run_dir=str(run_dir), steps=0, epochs=steps * 2 / 5),
            resume,
            data=pairs,
            tests=(tests[0][:1].repeat(2, 1, 1, 1), tests[1][:1].repeat(2, 1, 1, 1)),
            networks=networks,
            cycle_loss=torch.nn.HuberLoss(),
        )

    whole = trainer(tmp_path / "whole", 4)
    assert isinstance(whole.model.cycle_loss, torch.nn.HuberLoss) and whole.settings.steps == 4
    whole.train()
    trainer(tmp_path / "parts", 2).train()
    torch.rand(3)
    resumed = trainer(tmp_path / "parts", 4, "auto")
    assert resumed.step == 2
    assert [record["step"] for record in resumed.log.records("test")] == [0, 2]
    order = [whole.pairs[i][0] for i in range(10)]
    assert all(torch.equal(order[i], whole.pairs[i][0]) for i in (9, 3, 0))
    assert len({image.sum().item() for image in order}) == 10  # new draws in every epoch
    names = {path.name for path in checkpoints.in_run(whole.run_dir)[0].iterdir()}
    assert {f"{name}.safetensors" for name in NETWORKS} <= names


def test_the_example_of_the_documents_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "cyclegan_api.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "cyclegan_api.md", "exec"), {"__name__": "example"})
    [folder] = checkpoints.in_run(tmp_path / "runs" / "stripes")
    assert load_file(folder / "generator_ab.safetensors")
    assert RunLog(tmp_path / "runs" / "stripes").records("losses")


# ---- The article's losses side by side ----------------------------------------------------------


@pytest.mark.long
@pytest.mark.needs("skimage", "sources")
def test_the_comparison_writes_a_page_with_scores_and_pictures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import compare_losses

    monkeypatch.setattr(compare_losses, "TRAIN_COUNT", 4)
    small = {**compare_losses.SETTINGS, **SMALLEST, "test_size": "32"}
    monkeypatch.setattr(compare_losses, "SETTINGS", small)
    options = [str(tmp_path / "docs"), "--work", str(tmp_path / "work"), "--steps=2", "--size=32"]
    compare_losses.main(options)
    text = (tmp_path / "docs" / "comparison.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(compare_losses.LOSSES) == 8
    assert all(line.count("|") == rows[0].count("|") for line in rows)
    assert "2 steps, seed 0, crops of 32 pixels" in text and "{" not in text
    for name in ("ab", "ba", "strip"):
        file = f"comparison_{name}.jpg"
        assert (file in text) == (name != "strip")
        assert (tmp_path / "docs" / file).stat().st_size > 10_000
