"""Pages that show a run, or several side by side; they open from disk and need no server."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from cyclegan.evaluate import METRICS
from cyclegan.files import write_text
from cyclegan.log import RunLog

Curve = list[tuple[float, float]]

MOST_POINTS = 400  # of a curve; of more, means of neighbours are shown
MOST_GRIDS = 40  # of the test images, in samples/
WIDTH, HEIGHT, MARGIN = 420, 200, 44  # of a chart
COLOURS = ("var(--one)", "var(--two)")
STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --faint: #68737f; --line: #d9dee4;
  --page: #ffffff; --one: #0b6bcb; --two: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --faint: #94a0ad; --line: #343d47;
  --page: #14181d; --one: #63b3ff; --two: #ff9e64; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
p, figcaption, th, .faint { color: var(--faint); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; } figure { margin: 0; }
svg text { font-size: 11px; fill: var(--faint); } svg path { fill: none; stroke-width: 1.5; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--line); }
td.number { font-variant-numeric: tabular-nums; }
.best { font-weight: 600; color: var(--one); }
img { max-width: 100%; } td img { min-width: 6rem; } .wide { overflow-x: auto; }
input[type=range] { width: 24rem; max-width: 60%; vertical-align: middle; }
"""
SLIDER = """
const steps = STEPS, slider = document.getElementById('step');
function show() {
  const [step, file] = steps[slider.value];
  document.getElementById('grid').src = file;
  document.getElementById('shown').textContent = 'step ' + step;
}
slider.addEventListener('input', show);
"""


def write_report(run_dir: Path) -> Path:
    """RUN/report.html: losses, tests and sample grids so far, and the settings."""
    settings = json.loads((run_dir / "settings.json").read_text(encoding="utf-8"))
    records = RunLog(run_dir).records()
    looks = [record for record in records if "losses" in record]
    tests = [record for record in records if "test" in record]
    step = max((record["step"] for record in records), default=0)
    parts = [
        f"<h1>CycleGAN with {escape(settings['cycle_loss'])}</h1>",
        f"<p>{_state(step, settings['steps'], looks)}</p>",
        *_samples(run_dir),
        "<h2>Losses</h2>",
        "<p>Means over the steps since the last look, before weights; of images of domain A in "
        "blue, of B in orange.</p>",
        f'<div class="charts">{"".join(_loss_charts(looks))}</div>',
        "<h2>Test images</h2>",
        "<p>Reconstructions against test images, mean of both directions.</p>",
        _table(["", "at first", "now"], _test_rows(tests)),
        f'<div class="charts">{"".join(_test_charts(tests))}</div>',
        "<h2>Settings</h2>",
        _table(["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
    ]
    return _write_page(f"CycleGAN: {run_dir.name}", parts, run_dir / "report.html")


def _state(step: int, steps: int, looks: Sequence[dict]) -> str:
    text = f"step {step} of {steps}"
    if looks:
        text += f"; {looks[-1]['seconds'] / looks[-1]['step'] * 1e3:.0f} ms a step, "
        text += f"{looks[-1]['images_per_second']:.1f} images a second at the end"
    return text


def _loss_charts(looks: Sequence[dict]) -> list[str]:
    kinds = dict.fromkeys(name[:-2] for name in looks[0]["losses"]) if looks else []
    return [
        chart(
            kind,
            {
                domain: [(look["step"], look["losses"][f"{kind}_{domain}"]) for look in looks]
                for domain in ("a", "b")
            },
        )
        for kind in kinds
    ]


def _test_charts(tests: Sequence[dict]) -> list[str]:
    return [
        chart(title, {title: [(test["step"], test["test"][name]) for test in tests]})
        for name, title in scores_of(tests)
    ]


def _test_rows(tests: Sequence[dict]) -> list[list[str]]:
    return [
        [title, *(f"{test['test'][name]:.4g}" for test in (tests[0], tests[-1]))]
        for name, title in scores_of(tests)
    ]


def scores_of(tests: Sequence[dict]) -> list[tuple[str, str]]:
    """The scores that every record has, with titles: older versions recorded fewer."""
    return [
        (name, title)
        for name, title in METRICS.items()
        if tests and all(name in test["test"] for test in tests)
    ]


def sample_grids(run_dir: Path) -> list[tuple[int, Path]]:
    """The grids of test images so far, by step; other files in their folder are none."""
    files = (run_dir / "samples").glob("step_*.png")
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


def _samples(run_dir: Path) -> list[str]:
    grids = sample_grids(run_dir)
    if not grids:
        return []
    steps = [(step, f"samples/{grid.name}") for step, grid in grids]
    last, file = steps[-1]
    return [
        "<h2>Samples</h2>",
        "<p>From left to right: images of A, translated to B, and back; images of B, translated to "
        "A, and back.</p>",
        f'<p><input type="range" id="step" min="0" max="{len(steps) - 1}" '
        f'value="{len(steps) - 1}" aria-label="step"> <span id="shown">step {last}</span></p>',
        f'<div class="wide"><img id="grid" src="{file}" alt="sample grid"></div>',
        f"<script>{SLIDER.replace('STEPS', json.dumps(steps))}</script>",
    ]


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """An SVG of curves over steps, with the range of both axes and the last values."""
    curves = {name: thin(curve) for name, curve in curves.items()}
    points = [point for curve in curves.values() for point in curve]
    lows, highs = ([f(axis) for axis in zip(*points, strict=True)] for f in (min, max))
    spans = [high - low or 1.0 for low, high in zip(lows, highs, strict=True)]

    def place(x: float, y: float) -> str:
        across = MARGIN + (x - lows[0]) / spans[0] * (WIDTH - MARGIN - 8)
        return f"{across:.1f},{HEIGHT - 20 - (y - lows[1]) / spans[1] * (HEIGHT - 30):.1f}"

    paths = [
        f'<path d="M{" L".join(place(*point) for point in curve)}" stroke="{colour}"/>'
        for curve, colour in zip(curves.values(), COLOURS, strict=False)
    ]
    base = HEIGHT - 20
    labels = [
        f'<text x="{MARGIN - 4}" y="14" text-anchor="end">{highs[1]:.3g}</text>',
        f'<text x="{MARGIN - 4}" y="{base}" text-anchor="end">{lows[1]:.3g}</text>',
        f'<text x="{MARGIN}" y="{HEIGHT - 5}">{lows[0]:.0f}</text>',
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 5}" text-anchor="end">{highs[0]:.0f} steps</text>',
    ]
    axes = f'<path d="M{MARGIN},8 V{base} H{WIDTH - 8}" stroke="var(--line)"/>'
    last = ", ".join(f"{curve[-1][1]:.3g}" for curve in curves.values())
    return (
        f"<figure><figcaption>{escape(title)}: {last}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{axes}{''.join(paths)}{''.join(labels)}</svg></figure>"
    )


def thin(curve: Curve) -> Curve:
    """At most MOST_POINTS points: means of neighbours, and the last point as it is."""
    group = -(-len(curve) // MOST_POINTS)
    if group <= 1:
        return curve
    groups = [curve[i : i + group] for i in range(0, len(curve) - 1, group)]
    means = [tuple(sum(axis) / len(part) for axis in zip(*part, strict=True)) for part in groups]
    return [*means[: MOST_POINTS - 1], curve[-1]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def write_comparison(
    folder: Path,
    scores: Mapping[str, Mapping[str, float]],
    images: Mapping[str, Sequence[tuple[str, Sequence[str]]]],
    settings: Mapping[str, object],
) -> Path:
    """FOLDER/compare.html: the table of scores by cycle loss, and the images beside each other.

    Args:
        scores: by cycle loss, numbers by name; the best of each column is marked: the smallest
            error or time, the largest of the others.
        images: by title of a section, rows: the file of the input, and that of each loss's image,
            relative to `folder`.
        settings: what the runs have in common.
    """
    columns = list(next(iter(scores.values())))
    best = {
        column: (min if "error" in column or "second" in column else max)(
            score[column] for score in scores.values()
        )
        for column in columns
    }
    body = "".join(
        f"<tr><td>{escape(loss)}</td>"
        + "".join(
            f'<td class="number{" best" if score[c] == best[c] else ""}">{score[c]:.4g}</td>'
            for c in columns
        )
        + "</tr>"
        for loss, score in scores.items()
    )
    head = "".join(f"<th>{escape(c)}</th>" for c in ("cycle loss", *columns))
    parts = [
        "<h1>Cycle losses compared</h1>",
        f"<p>The same {settings['steps']} steps, seed and images for each; test images.</p>",
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>',
    ]
    for title, rows in images.items():
        heads = "".join(f"<th>{escape(name)}</th>" for name in ("input", *scores))
        cells = "".join(
            "<tr>"
            + "".join(
                f'<td><img src="{escape(file)}" alt="{escape(name)}"></td>'
                for name, file in zip(("input", *scores), (source, *files), strict=True)
            )
            + "</tr>"
            for source, files in rows
        )
        parts += [
            f"<h2>{escape(title)}</h2>",
            f'<div class="wide"><table><tr>{heads}</tr>{cells}</table></div>',
        ]
    parts += [
        "<h2>Settings</h2>",
        _table(["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
    ]
    return _write_page("Cycle losses compared", parts, folder / "compare.html")


def _write_page(title: str, parts: Sequence[str], path: Path) -> Path:
    write_text(
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n",
        path,
    )
    return path
