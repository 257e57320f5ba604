"""The pages of a run and of a comparison, as a browser shows them; distances between folders."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures
from pages import assert_shows, browser  # noqa: F401 - a fixture

from cyclegan.compare import compare, marked_scores, most_different, title_of, trained_scores
from cyclegan.evaluate import METRICS, distribution_scores, lpips_network
from cyclegan.log import RunLog, seconds_per_step
from cyclegan.report import (
    MOST_GRIDS,
    MOST_POINTS,
    duration,
    sample_grids,
    thin,
    thin_out_grids,
    write_page,
    write_report,
)
from cyclegan.trainer import Trainer

TITLES = [title for name, title in METRICS.items() if name != "lpips"]


@pytest.fixture
def run(settings):
    trainer = Trainer(
        replace(settings, steps=6, save_every=2, log_every=1, cycle_loss="0.5*ssim+l1")
    )
    trainer.train()
    return trainer


@pytest.mark.needs("browser")
def test_the_report_of_a_run_opens_and_its_slider_goes_through_the_samples(run, browser):
    page = run.run_dir / "report.html"
    assert_shows(browser, page)
    grid = browser.find_element("id", "grid")
    assert grid.get_attribute("src").endswith("samples/step_0000006.jpg")
    for index, step in enumerate((0, 2, 4, 6)):
        browser.execute_script(
            "const s = document.getElementById('step'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            index,
        )
        assert grid.get_attribute("src").endswith(f"samples/step_{step:07d}.jpg")
        assert browser.find_element("id", "shown").text == f"step {step}"
    charts = [svg.get_attribute("aria-label") for svg in browser.find_elements("tag name", "svg")]
    kinds = ["gan loss", "cycle loss", "identity loss", "discriminator loss"]
    assert charts == [*kinds, *TITLES]
    text = browser.find_element("tag name", "body").text
    assert "CycleGAN with 0.5*ssim+l1" in text and "step 6 of 6, epoch 4 of 4" in text
    assert "3 of A, 3 of B" in text and "cpu, 1 process" in text
    assert re.search(r"\d s of training, about 0 s left", text)
    assert re.search(r"\d ms a step \(median\), [\d.]+ images a second", text)
    assert re.search(r"learning_rate\s+0.0002", text)
    assert browser.get_log("browser") == []


@pytest.mark.needs("browser")
def test_a_report_can_be_moved_and_made_before_anything_is_logged(run, browser, tmp_path):
    moved = tmp_path / "elsewhere and away"
    shutil.copytree(run.run_dir, moved)
    assert_shows(browser, moved / "report.html")
    (moved / "log.jsonl").unlink()
    shutil.rmtree(moved / "samples")
    page = write_report(moved)
    browser.get(page.as_uri())
    assert "step 0 of 6" in browser.find_element("tag name", "body").text
    assert browser.get_log("browser") == []


def test_the_report_has_the_scores_at_first_and_now(run):
    tests = [record["test"] for record in RunLog(run.run_dir).records("test")]
    page = (run.run_dir / "report.html").read_text()
    for name, title in zip(tests[0], TITLES, strict=True):
        cells = (title, *(f"{test[name]:.4g}" for test in (tests[0], tests[-1])))
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in page


def test_warnings_of_a_run_are_on_its_page(settings, data, tmp_path):
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    (mine / "trainA" / "notes.txt").touch()
    with pytest.warns(UserWarning):
        trainer = Trainer(replace(settings, data=str(mine), steps=2, save_every=1))
        step = trainer.train_step
        trainer.train_step = lambda *images: warnings.warn("<odd>", stacklevel=1) or step(*images)
        trainer.train()
    page = (trainer.run_dir / "report.html").read_text()
    assert "1 .txt" in page and page.count("Warning: &lt;odd&gt;") == 1
    warned = [record["step"] for record in trainer.log.records("warning")]
    assert warned == [0, 1, 2]


def test_what_users_wrote_is_no_markup(run):
    path = run.run_dir / "settings.json"
    bad = {**json.loads(path.read_text()), "data": "<script>alert(1)</script>"}
    path.write_text(json.dumps({**bad, "domain_names": "</script><b>,c"}))
    text = write_report(run.run_dir).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "<b>" not in text


@pytest.fixture
def charts(tmp_path):
    curves = {"photo": [(0, 1.0), (50, 3.0), (100, 2.0)], "art": [(0, 2.0), (50, 4.0), (100, 5.0)]}
    several = [
        {"title": "ssim", "curves": curves},
        {"title": "flat", "curves": {"": [(3, 1.0)]}},
        {"title": "long", "curves": {"": [(20, 1e-5), (1257400, 2e-5)]}},
    ]
    content = {"title": "T", "facts": [], "warnings": [], "names": ("photo", "art"), "samples": []}
    more = {"scored": "all", "scores": [], "settings": {}}
    return write_page("report.html", tmp_path / "page.html", charts=several, **content, **more)


@pytest.mark.needs("browser")
def test_a_chart_puts_points_where_they_belong_with_ticks_and_values_on_hover(charts, browser):
    browser.get(charts.as_uri())
    figures = browser.find_elements("tag name", "figure")
    svg = figures[0].find_element("tag name", "svg")
    first, second = (
        [tuple(map(float, point.split(","))) for point in path.get_attribute("d")[1:].split(" L")]
        for path in svg.find_elements("class name", "curve")
    )
    xs, ys = zip(*first, strict=True)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)
    assert ys[0] > ys[2] > ys[1]  # down is larger on a screen
    assert second[1][1] < ys[1] and second[0][1] == ys[2]
    ticks = [[text.text for text in f.find_elements("tag name", "text")] for f in figures]
    assert ticks[0] == ["1", "2", "3", "4", "5", "0", "50", "100"]
    assert ticks[1] == ["1", "3"]
    assert ticks[2] == ["0.00001", "0.000015", "0.00002", "500,000", "1,000,000"]
    caption = figures[0].find_element("tag name", "figcaption")
    assert caption.text == "ssim at step 100: photo 2, art 5"
    browser.execute_script(
        "const box = arguments[0].getBoundingClientRect();"
        "arguments[0].dispatchEvent(new PointerEvent('pointermove',"
        " {clientX: box.left + box.width * arguments[1] / 420, clientY: box.top + 9}))",
        svg,
        xs[1] + 9,
    )
    assert caption.text == "ssim at step 50: photo 3, art 4"
    browser.execute_script("arguments[0].dispatchEvent(new Event('pointerleave'))", svg)
    assert caption.text.startswith("ssim at step 100")
    assert browser.get_log("browser") == []


def test_times_are_in_the_two_largest_units():
    assert [duration(s) for s in (0, 59, 61, 3700, 90_000)] == [
        *("0 s", "59 s", "1 min", "1 h 2 min", "25 h 0 min")
    ]


def test_the_seconds_of_a_step_are_the_median_after_the_first_look():
    looks = [(10, 50.0), (20, 52.0), (30, 53.0), (40, 90.0), (50, 91.0)]
    looks = [{"step": step, "seconds": seconds} for step, seconds in looks]
    assert seconds_per_step(looks) == pytest.approx(0.15)
    assert seconds_per_step(looks[:1]) == 5.0
    assert seconds_per_step([]) is None


@pytest.mark.parametrize("count", [MOST_GRIDS, MOST_GRIDS + 1, 10 * MOST_GRIDS + 7])
def test_sample_grids_of_long_runs_are_thinned_evenly(tmp_path, count):
    (tmp_path / "samples").mkdir()
    steps = [1000 * i for i in range(count)]
    for step in steps:
        (tmp_path / "samples" / f"step_{step:07d}.jpg").touch()
        thin_out_grids(tmp_path)
    left = [step for step, _ in sample_grids(tmp_path)]
    assert len(left) == MOST_GRIDS and (left[0], left[-1]) == (0, steps[-1])
    if count == MOST_GRIDS:
        assert left == steps
    gaps = [after - before for before, after in zip(left, left[1:], strict=False)]
    assert max(gaps) <= 2 * sorted(gaps)[len(gaps) // 2]


@pytest.mark.parametrize("count", [1, 2, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS + 7])
def test_long_curves_are_thinned_to_means(count):
    curve = [(float(i), float(i % 2)) for i in range(count)]
    got = thin(curve)
    assert len(got) <= MOST_POINTS and got[-1] == curve[-1]
    assert [x for x, _ in got] == sorted(x for x, _ in got)
    if count > 2 * MOST_POINTS:
        assert all(y == pytest.approx(0.5, abs=0.1) for _, y in got[:-2])


@pytest.mark.needs("browser")
def test_losses_are_compared_on_one_page(settings, browser):
    losses = ["normalised:l1", "normalised:ssim", "ssim_l1"]
    settings = replace(settings, steps=2, loss_preset="tandon", domain_names="photo,painting")
    page = compare(settings, losses)
    assert_shows(browser, page)
    titles = [title.text for title in browser.find_elements("tag name", "h2")]
    sections = ["photo to painting", "painting to photo"]
    sections = [sections[0], f"{sections[0]} to photo", sections[1], f"{sections[1]} to painting"]
    assert titles == ["Scores", *sections, "Settings"]
    tables = browser.find_elements("tag name", "table")
    rows = [row.text for row in tables[0].find_elements("tag name", "tr")]
    assert rows[0] == " ".join(["cycle loss", *TITLES, "seconds a step"])
    names = ["L1 on [0, 1]", "SSIM", "SSIM + L1 (tandon)"]
    assert all(row.startswith(name) for row, name in zip(rows[1:], names, strict=True))
    for table in tables[1:5]:
        heads = [cell.text for cell in table.find_elements("tag name", "th")]
        assert heads == ["input", *names]
        images = table.find_elements("tag name", "img")
        assert len(images) == 3 * (1 + len(losses))
        assert len({image.rect["width"] for image in images}) == 1  # even columns
    text = browser.find_element("tag name", "body").text
    assert "2 steps, seed 0" in text and "3 of photo and 3 of painting" in text
    assert "LPIPS left out: needs --lpips-weights" in text and "FID and KID left out" in text


def test_each_loss_is_trained_as_it_would_be_alone_and_once(settings):
    losses = ["l1", "ssim", "0.84*ssim+0.16*l1"]
    settings = replace(settings, steps=2)
    page = compare(settings, losses)
    scores = json.loads((page.parent / "compare.json").read_text())
    assert list(scores) == losses
    alone = Trainer(replace(settings, cycle_loss="ssim", run_dir=settings.run_dir + "_alone"))
    alone.train()
    runs = Path(settings.run_dir) / "runs"
    logs = [RunLog(folder) for folder in (runs / "ssim", alone.run_dir)]
    ours, theirs = ([record["losses"] for record in log.records("losses")] for log in logs)
    assert ours == theirs
    last = logs[1].records("test")[-1]["test"]
    assert {name: scores["ssim"][name] for name in last} == last
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")}
    compare(settings, losses)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")} == before


def test_a_comparison_names_what_it_cannot_compare(settings):
    for losses in ([], ["l1", "l1"], ["l1", "l3"], ["tandon:mix"]):
        with pytest.raises(ValueError, match="cycle_loss"):
            compare(settings, losses)
    with pytest.raises(ValueError, match="loss_preset must be one of.*got 'paper'"):
        compare(settings, ["paper:l1"])
    with pytest.raises(ValueError, match="feature_layers of alexnet"):  # before l1 is trained
        wrong = replace(settings, feature_network="alexnet", feature_layers="conv9")
        compare(wrong, ["l1", "perceptual"])
    assert not Path(settings.run_dir).exists()


def test_no_loss_is_the_best_in_a_score_that_it_was_trained_on():
    assert trained_scores("ssim") == {"ssim", "ms_ssim"}
    assert trained_scores("2*l1") == trained_scores("tandon:l2") == {"psnr", "colour_error"}
    assert trained_scores("0.84*ssim+0.16*l1") == {"ssim", "ms_ssim", "psnr", "colour_error"}
    assert trained_scores("0*ssim+perceptual") == {"lpips"}
    columns = ("ssim", "psnr", "colour_error", "fid", "seconds a step")
    scores = {
        "l1": (0.5, 30.0, 3.0, 80.0, 0.2),
        "ssim": (0.9, 20.0, 9.0, 70.0, 0.1),
        "perceptual": (0.4, 21.0, 4.0, 70.0, 0.3),
    }
    scores = {loss: dict(zip(columns, row, strict=True)) for loss, row in scores.items()}
    marks = {loss: list(row.values()) for loss, row in marked_scores(scores).items()}
    assert marks == {
        "l1": ["best", "trained", "trained", "", ""],
        "ssim": ["trained", "", "", "best", "best"],
        "perceptual": ["", "best", "best", "best", ""],
    }
    del scores["perceptual"]
    assert marked_scores(scores)["l1"]["ssim"] == ""  # nothing to be better than


def test_losses_have_readable_names():
    assert title_of("ssim_l1l2_b") == "SSIM + L1 + L2 (b)"
    assert title_of("0.84*ssim+0.16*perceptual") == "0.84 SSIM + 0.16 perceptual"
    assert title_of("tandon:l1") == "L1 (tandon)" and title_of("l1") == "L1 on [0, 1]"
    assert title_of("tandon:ssim_l2_a") == "SSIM + L2 (a) (tandon)"


def test_the_images_that_differ_most_among_runs_are_shown():
    one = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    other = one.clone()
    other[1, :, 0, 0] = 200
    other[3] = 90
    assert most_different({"l1": one, "ssim": other}, 2) == [1, 3]
    assert most_different({"l1": one, "ssim": other}, 1) == [3]
    assert most_different({"l1": one}, 9) == [0, 1, 2, 3, 4]


@pytest.mark.needs("torchmetrics")
def test_lpips_is_that_of_torchmetrics_with_the_weights_of_a_file(tmp_path, monkeypatch):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as wanted
    from torchvision.models import alexnet

    torch.manual_seed(1)
    network = alexnet(weights=None)
    torch.save(network.state_dict(), tmp_path / "alexnet.pth")
    lpips = lpips_network(str(tmp_path / "alexnet.pth"))
    name = "torchmetrics.functional.image.lpips._get_tv_model_features"
    monkeypatch.setattr(name, lambda *_: network.features)
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(lpips(x, y).mean(), wanted(x, y, net_type="alex"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="lpips_weights .*other.pth are not AlexNet's"):
        lpips_network(str(tmp_path / "other.pth"))


@pytest.mark.needs("torch_fidelity")
def test_distances_between_distributions_come_from_torch_fidelity(settings, data, tmp_path):
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Means(FeatureExtractorBase):  # in the place of 90 MB of Inception
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        def get_provided_features_list(self):
            return ("means",)

        def get_default_feature_layer_for_metric(self, metric):
            return "means"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1) / 255,)

    torch_fidelity.register_feature_extractor("means", Means)
    options = {"feature_extractor": "means", "feature_layer_fid": "means"}
    options["feature_layer_kid"] = "means"
    for domain in "AB":  # which have the same images
        shutil.copytree(data / "trainA", tmp_path / f"test{domain}")
    place = (replace(settings, data=str(tmp_path)), "ab", torch.device("cpu"))
    same = distribution_scores(torch.nn.Identity(), *place, **options)
    assert same["fid"] == pytest.approx(0, abs=1e-3)

    class Negative(torch.nn.Module):
        def forward(self, x):
            return -x

    other = distribution_scores(Negative(), *place, **options)
    assert other["fid"] > 0.01 + same["fid"]
    for name in ("1.png", "2.png"):
        (tmp_path / "testA" / name).unlink()
    with pytest.raises(ValueError, match="need two images; got 1"):
        distribution_scores(torch.nn.Identity(), *place, **options)
