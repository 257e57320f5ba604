"""Pages that show a run, or several side by side; they open from disk and need no server."""

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cyclegan.evaluate import TITLES
from cyclegan.files import write_text
from cyclegan.log import RunLog, best_test, seconds_per_step
from cyclegan.settings import Settings

Curve = list[tuple[float, float]]

MOST_POINTS = 400  # of a curve; of more, means of neighbours are shown
MOST_GRIDS = 40  # of the test images, in samples/
PAGES = Environment(
    loader=PackageLoader("cyclegan"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
PAGES.policies["json.dumps_kwargs"] = {"sort_keys": False}  # curves keep their order


def write_page(template: str, path: Path, **content) -> Path:
    write_text(PAGES.get_template(template).render(**content), path)
    return path


def write_report(run_dir: Path, log: RunLog | None = None) -> Path:
    """RUN/report.html: losses, tests and sample grids so far, and the settings.

    Args:
        log: of the run; None: it is read.
    """
    settings = json.loads((run_dir / "settings.json").read_text(encoding="utf-8"))
    log = log or RunLog(run_dir)
    names = Settings(**settings).names_of_domains()
    looks, tests = log.records("losses"), log.records("test")
    grids = [(step, f"samples/{grid.name}") for step, grid in sample_grids(run_dir)]
    images = settings["test_images"]
    return write_page(
        "report.html",
        run_dir / "report.html",
        title=f"CycleGAN with {settings['cycle_loss']}",
        facts=_facts(log, settings, names),
        warnings=list(dict.fromkeys(r["warning"] for r in log.records("warning"))),
        names=names,
        samples=grids,
        charts=[*_loss_charts(looks, names), *_test_charts(tests)],
        scored=f"{f'the first {images}' if images else 'all'} images of each test folder, "
        "the mean of both directions: reconstructions against images; FID and KID of all.",
        scores=[
            [title, *(f"{test['test'][name]:.4g}" for test in (tests[0], tests[-1]))]
            for name, title in scores_of(tests)
        ],
        settings=settings,
    )


def _facts(log: RunLog, settings: dict, names: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of what a reader wants to know first."""
    step = max((record["step"] for record in log.records()), default=0)
    facts = [("progress", f"step {step:,} of {settings['steps']:,}")]
    if starts := log.records("start"):
        start = starts[-1]["start"]
        done = start["epochs"] * step / settings["steps"]
        facts[0] = ("progress", f"{facts[0][1]}, epoch {done:.4g} of {start['epochs']:.4g}")
        counts = f"{start['images_a']:,} of {names[0]}, {start['images_b']:,} of {names[1]}"
        processes = f"{start['processes']} processes" if start["processes"] > 1 else "1 process"
        facts += [("images", counts), ("device", f"{start['device']}, {processes}")]
    if looks := log.records("losses"):
        pace, seconds = seconds_per_step(looks), looks[-1]["seconds"]
        left = (settings["steps"] - step) * pace
        images = looks[-1]["images_per_second"]
        saving = sum(test["saving"] for test in log.records("saving") if test["step"])
        facts += [
            ("time", f"{duration(seconds)} of training, about {duration(left)} left"),
            ("speed", f"{1e3 * pace:,.0f} ms a step (median), {images:,.1f} images a second"),
            ("saving", f"{duration(saving)}, {saving / (saving + seconds):.1%} of the time"),
        ]
    best = best_test(log.records("test"), settings["score"])
    if best is not None:
        value = f"step {best['step']:,}, {TITLES[settings['score']]} "
        facts += [("best checkpoint", value + f"{best['test'][settings['score']]:.4g}")]
    return facts


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{hours // 1:.0f} h {minutes % 60:.0f} min"


def _loss_charts(looks: Sequence[dict], names: Sequence[str]) -> list[dict]:
    kinds = dict.fromkeys(name[:-2] for name in looks[0]["losses"]) if looks else []
    return [
        {
            "title": f"{kind} loss",
            "curves": {
                name: thin([(look["step"], look["losses"][f"{kind}_{domain}"]) for look in looks])
                for domain, name in zip("ab", names, strict=True)
            },
        }
        for kind in kinds
    ]


def _test_charts(tests: Sequence[dict]) -> list[dict]:
    return [
        {"title": title, "curves": {"": thin([(t["step"], t["test"][name]) for t in tests])}}
        for name, title in scores_of(tests)
    ]


def scores_of(tests: Sequence[dict]) -> list[tuple[str, str]]:
    """The scores that every test has, with titles: `score` may have been asked for later."""
    return [
        (name, title)
        for name, title in TITLES.items()
        if tests and all(name in test["test"] for test in tests)
    ]


def sample_grids(run_dir: Path) -> list[tuple[int, Path]]:
    """The grids of test images so far, by step; other files in their folder are none."""
    files = (run_dir / "samples").glob("step_*.jpg")
    steps = ((path.stem.removeprefix("step_"), path) for path in files)
    return sorted((int(step), path) for step, path in steps if step.isdigit())


def thin_out_grids(run_dir: Path) -> None:
    """Removes sample grids until MOST_GRIDS are left, evenly spread: each time one between whose
    neighbours the fewest steps lie, and so never the first or the last."""
    grids = sample_grids(run_dir)
    while len(grids) > MOST_GRIDS:
        gaps = [after[0] - before[0] for before, after in zip(grids, grids[2:], strict=False)]
        _, path = grids.pop(1 + gaps.index(min(gaps)))
        path.unlink()


def thin(curve: Curve) -> Curve:
    """At most MOST_POINTS points: means of neighbours, and the last point as it is."""
    group = -(-len(curve) // MOST_POINTS)
    if group <= 1:
        return curve
    groups = [curve[i : i + group] for i in range(0, len(curve) - 1, group)]
    means = [tuple(sum(axis) / len(part) for axis in zip(*part, strict=True)) for part in groups]
    return [*means[: MOST_POINTS - 1], curve[-1]]
