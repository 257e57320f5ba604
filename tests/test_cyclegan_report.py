"""The pages of a run and of a comparison, as a browser shows them; distances between folders."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import machine
import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures

from cyclegan.compare import compare
from cyclegan.evaluate import METRICS, distribution_scores
from cyclegan.log import RunLog
from cyclegan.report import (
    MOST_GRIDS,
    MOST_POINTS,
    chart,
    sample_grids,
    thin,
    thin_out_grids,
    write_comparison,
    write_report,
)
from cyclegan.trainer import Trainer


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, from Debian's chromium-driver or the like."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = machine.chromium()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield chrome
    chrome.quit()


def assert_shows(browser, page: Path) -> None:
    """Every image loads, and the console is silent."""
    browser.get(page.as_uri())
    images = browser.execute_script(
        "return [...document.images].map(i => [i.src, i.complete && i.naturalWidth > 0])"
    )
    assert images and all(loaded for _, loaded in images), images
    assert browser.get_log("browser") == []
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= 1200


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
    assert grid.get_attribute("src").endswith("samples/step_0000006.png")
    for index, step in enumerate((0, 2, 4, 6)):
        browser.execute_script(
            "const s = document.getElementById('step'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            index,
        )
        assert grid.get_attribute("src").endswith(f"samples/step_{step:07d}.png")
        assert browser.find_element("id", "shown").text == f"step {step}"
    charts = [svg.get_attribute("aria-label") for svg in browser.find_elements("tag name", "svg")]
    kinds = ["gan", "cycle", "identity", "discriminator"]
    assert charts == [*kinds, *METRICS.values()]
    text = browser.find_element("tag name", "body").text
    assert "step 6 of 6" in text and "CycleGAN with 0.5*ssim+l1" in text
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
    tests = [record["test"] for record in RunLog(run.run_dir).records() if "test" in record]
    page = (run.run_dir / "report.html").read_text()
    for name, title in METRICS.items():
        cells = (title, *(f"{test[name]:.4g}" for test in (tests[0], tests[-1])))
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in page


def test_the_best_loss_has_the_smallest_error_and_time_and_the_largest_score(tmp_path):
    columns = ("cycle SSIM", "cycle colour error (of 255)", "seconds per step")
    scores = {"l1": (0.5, 3.0, 0.2), "ssim": (0.7, 4.0, 0.1)}
    scores = {loss: dict(zip(columns, row, strict=True)) for loss, row in scores.items()}
    page = write_comparison(tmp_path, scores, {}, {"steps": 1}).read_text()
    assert re.findall(r'best">([^<]+)', page) == ["3", "0.7", "0.1"]


def test_what_users_wrote_is_no_markup(run):
    path = run.run_dir / "settings.json"
    bad = {**json.loads(path.read_text()), "data": "<script>alert(1)</script>"}
    path.write_text(json.dumps(bad))
    text = write_report(run.run_dir).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_a_chart_puts_points_where_they_belong():
    svg = chart("ssim", {"a": [(0, 1.0), (50, 3.0), (100, 2.0)], "b": [(0, 2.0), (100, 5.0)]})
    first, second = (
        [tuple(map(float, point.split(","))) for point in path.split(" L")]
        for path in re.findall(r'd="M([\d., L]+)" stroke="var\(--(?:one|two)', svg)
    )
    xs, ys = zip(*first, strict=True)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)
    assert ys[0] > ys[2] > ys[1]  # down is larger on a screen
    assert second[1][1] < ys[1] and second[0][1] == ys[2]
    assert "ssim: 2, 5" in svg
    assert "nan" not in chart("flat", {"a": [(3, 1.0)]})


@pytest.mark.parametrize("count", [MOST_GRIDS, MOST_GRIDS + 1, 10 * MOST_GRIDS + 7])
def test_sample_grids_of_long_runs_are_thinned_evenly(tmp_path, count):
    (tmp_path / "samples").mkdir()
    steps = [1000 * i for i in range(count)]
    for step in steps:
        (tmp_path / "samples" / f"step_{step:07d}.png").touch()
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
    losses = ["l1", "ssim", "0.84*ssim+0.16*l1"]
    settings = replace(settings, steps=2)
    page = compare(settings, losses)
    assert_shows(browser, page)
    tables = browser.find_elements("tag name", "table")
    rows = [row.text for row in tables[0].find_elements("tag name", "tr")]
    columns = [f"cycle {title}" for title in METRICS.values()]
    assert rows[0] == " ".join(["cycle loss", *columns, "seconds per step"])
    assert [row.split()[0] for row in rows[1:]] == losses
    titles = [title.text for title in browser.find_elements("tag name", "h2")]
    assert titles == ["A to B", "A to B and back", "B to A", "B to A and back", "Settings"]
    for table in tables[1:5]:
        images = table.find_elements("tag name", "img")
        assert len(images) == 3 * (1 + len(losses))
    assert len(tables[0].find_elements("class name", "best")) >= 5


def test_each_loss_is_trained_as_it_would_be_alone_and_once(settings):
    losses = ["l1", "ssim", "0.84*ssim+0.16*l1"]
    settings = replace(settings, steps=2)
    page = compare(settings, losses)
    assert list(json.loads((page.parent / "compare.json").read_text())) == losses
    alone = Trainer(replace(settings, cycle_loss="ssim", run_dir=settings.run_dir + "_alone"))
    alone.train()
    runs = Path(settings.run_dir) / "runs"
    ssim_runs = [RunLog(folder).records() for folder in (runs / "ssim", alone.run_dir)]
    assert ssim_runs[0][1]["losses"] == ssim_runs[1][1]["losses"]
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")}
    compare(settings, losses)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/*")} == before


def test_a_comparison_names_what_it_cannot_compare(settings):
    for losses in ([], ["l1", "l1"], ["l1", "l3"]):
        with pytest.raises(ValueError, match="cycle_loss"):
            compare(settings, losses)
    with pytest.raises(ValueError, match="feature_layers of alexnet"):  # before l1 is trained
        wrong = replace(settings, feature_network="alexnet", feature_layers="conv9")
        compare(wrong, ["l1", "perceptual"])
    assert not Path(settings.run_dir).exists()


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
    place = (replace(settings, data=str(tmp_path)), "ab", torch.device("cpu"), 2)
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
