"""Tables and plots of a benchmark run: ``make bench``.

``python bench/report.py RESULTS FOLDER`` takes what ``pytest bench --benchmark-json=RESULTS`` wrote
and puts benchmarks.json (medians, quartiles and what they are of), benchmarks.md and four plots
into FOLDER. It replaces the table of speed in the README beside FOLDER.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

import matplotlib.pyplot as plt
from gpu_report import replace_file
from tasks import FUSED_PEERS

plt.rcParams["svg.hashsalt"] = "ssimfast"  # the same bytes of the same figures
OURS, USUAL = "ssimfast", "pytorch-msssim"
MARKS = "<!-- make bench -->", "<!-- /make bench -->"  # around the table in the README
COMMAND = "make bench"
STEP = "forward and backward"
STEP_IN_README = f"SSIM, {STEP}, 1x3x1080x1920"
SUITES = {
    "peers": "Against other libraries",
    "kernels": "ssimfast alone, and beside the nearest that pytorch-msssim has",
    "training step": "A step of the CycleGAN trainer",
}


def entries(results: dict) -> list[dict]:
    """One a library and group: what it is of, and its times in milliseconds."""
    found = []
    for benchmark in results["benchmarks"]:
        if not benchmark["extra_info"]:  # its test failed
            continue
        stats = benchmark["stats"]
        times = {key: round(stats[key] * 1e3, 4) for key in ("median", "q1", "q3")}
        found.append(
            {"group": benchmark["group"], **benchmark["extra_info"], **times}
            | {"rounds": stats["rounds"]}
        )
    return found


def grouped(rows: Iterable[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return groups


def ours_of(rows: list[dict]) -> float | None:
    return next((row["median"] for row in rows if row["library"] == OURS), None)


def spread(row: dict) -> str:
    """Median and quartiles in milliseconds."""
    return f"{digits(row['median'])} ({digits(row['q1'])}–{digits(row['q3'])})"


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(row: dict, key: str) -> str:
    return f"{100 * row[key]:.0f} %" if key in row else ""


def table(rows: list[dict]) -> list[str]:
    lines = [
        "| what | library | ms (quartiles) | ratio | ns a pixel | FMA peak | copy | images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in grouped(rows).items():
        ours = ours_of(group)
        for row in sorted(group, key=lambda row: (row["library"] != OURS, row["median"])):
            ratio = f"{row['median'] / ours:.1f}" if ours and row["library"] != OURS else ""
            images = f"{row['extra_images']:.1f}" if "extra_images" in row else ""
            cells = (
                *(name if row["library"] == OURS else "", row["library"]),
                *(spread(row), ratio, f"{row['median'] * 1e6 / row['pixels']:.2f}"),
                *(percent(row, "of_fma"), percent(row, "of_copy"), images),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def training_table(rows: list[dict]) -> list[str]:
    lines = ["| step | library | ms (quartiles) | in the cycle losses |", "|---|---|---|---|"]
    for row in rows:
        share = f"{100 * row['share_of_cycle_losses']:.1f} %"
        cells = (row["task"], row["library"], spread(row), share)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def readme_table(machine: str, rows: list[dict]) -> str:
    """Training steps, beside the most used library and the fastest other."""
    lines = [
        f"Milliseconds of a training step, forward and backward, on {machine}.",
        "Medians and quartiles of 15 rounds in turns, float32, window 11.",
        "In italics: how many times as long as ssimfast.",
        "",
        f"| loss | images | {OURS} | {USUAL} | fastest other |",
        "|---|---|---|---|---|",
    ]
    chosen = [row for row in rows if row["suite"] == "peers" and row["part"] == STEP]
    for group in grouped(chosen).values():
        ours = next((row for row in group if row["library"] == OURS), None)
        others = sorted((row for row in group if row is not ours), key=lambda row: row["median"])
        usual = [row for row in others if row["library"] == USUAL]
        if not ours or not usual:
            continue

        def cell(row: dict, ours: float = ours["median"]) -> str:
            return f"{spread(row)} *{row['median'] / ours:.3g}*"

        fastest = f"{others[0]['library']}: {cell(others[0])}"
        first = f"| {ours['task']} | {ours['shape']} | {spread(ours)} |"
        lines.append(f"{first} {cell(usual[0])} | {fastest} |")
    return "\n".join(lines)


def page(machine: str, date: str, rows: list[dict], not_compared: list[str]) -> str:
    versions = {row["library"]: row["version"] for row in rows if row.get("version")}
    of_peers = (f"{name} {v}" for name, v in versions.items() if name.split(",")[0] != OURS)
    lines = [
        "# Benchmarks",
        "",
        f"One run of `{COMMAND}`, {date}, {machine}.",
        "Medians and quartiles of 15 rounds; the libraries of a group take turns.",
        "Window 11, sigma 1.5, float32 unless said otherwise.",
        "",
        "- *Ratio*: how many times as long as ssimfast.",
        "- *FMA peak*, *copy*: share of the machine's rate that the needed multiply-adds and bytes",
        "  reach. The rates are those of a loop of nothing else on the same threads",
        "  (bench/limits.cpp).",
        "- *Images*: peak memory of the step beyond its inputs, in image-sized tensors. The",
        "  gradient is one of them.",
        "",
        "Libraries: " + ", ".join(sorted(of_peers)) + ".",
        "",
        "![time against pixels](benchmarks_time.svg)",
        "![memory against pixels](benchmarks_memory.svg)",
        "![ratios](benchmarks_ratios.svg)",
    ]
    for suite, title in SUITES.items():
        chosen = [row for row in rows if row["suite"] == suite]
        if chosen:
            lines += ["", f"## {title}", ""]
            lines += training_table(chosen) if suite == "training step" else table(chosen)
    lines += ["", "## Not compared", ""]
    lines += [f"- {reason}" for reason in not_compared] or ["Every library was."]
    return "\n".join(lines) + "\n"


# ---- plots --------------------------------------------------------------------------------------


def _series(rows: list[dict], quantity: str) -> dict[str, list[tuple[int, float]]]:
    """By library: (pixels, quantity) of SSIM's training step, one image of three channels."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        is_step = row.get("part") == "forward and backward" and row["task"] == "SSIM"
        is_size = row.get("shape", "").startswith("1x3x")
        plain = row.get("dtype") == "float32" and row.get("threads") == 0
        if is_step and is_size and plain and quantity in row:
            value = row[quantity]
            if quantity == "extra_images":
                value *= row["pixels"] * 4 / 2**20
            series.setdefault(row["library"], []).append((row["pixels"] // 3, value))
    return {name: sorted(points) for name, points in series.items()}


def plot_lines(rows: list[dict], quantity: str, label: str, to: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, points in sorted(_series(rows, quantity).items()):
        bold = {"linewidth": 2.5} if name == OURS else {}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **bold)
    axes.set(xscale="log", yscale="log", xlabel="pixels of an RGB image", ylabel=label)
    axes.set_title("SSIM, forward and backward, float32", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, to)


def plot_step(rows: list[dict], to: Path) -> None:
    """Time and memory of one training step on a photograph, a bar for each library."""
    chosen = [row for row in rows if row["group"] == STEP_IN_README]
    chosen.sort(key=lambda row: row["median"])
    figure, (times, memory) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    weighed = [row for row in chosen if "extra_images" in row]
    mebibytes = [row["extra_images"] * row["pixels"] * 4 / 2**20 for row in weighed]
    panels = (
        (times, chosen, [row["median"] for row in chosen], "milliseconds"),
        (memory, weighed, mebibytes, "MiB beyond the inputs"),
    )
    for axes, of_panel, values, label in panels:
        names = [row["library"] for row in of_panel]
        colours = ["#d9480f" if name == OURS else "#9aa5b1" for name in names]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.set(xlabel=label, xlim=(0, 1.18 * max(values, default=1)))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, to)


def plot_ratios(rows: list[dict], to: Path) -> None:
    """How many times as long the peers take for a training step, by size."""
    chosen = [row for row in rows if row["suite"] == "peers"]
    steps = grouped(row for row in chosen if row["part"] == "forward and backward")
    figure, all_axes = plt.subplots(1, 2, figsize=(9, 6.5), layout="constrained")
    for axes, task in zip(all_axes, ("SSIM", "MS-SSIM"), strict=True):
        of_task = [group for group in steps.values() if group[0]["task"] == task]
        groups = {group[0]["shape"]: group for group in of_task if ours_of(group)}
        names = sorted({row["library"] for group in groups.values() for row in group} - {OURS})
        height = 0.8 / max(1, len(groups))
        for i, (shape, group) in enumerate(groups.items()):
            ratio = {row["library"]: row["median"] / ours_of(group) for row in group}
            places = [n + i * height for n, name in enumerate(names) if name in ratio]
            bars = axes.barh(places, [ratio[n] for n in names if n in ratio], height, label=shape)
            axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
        axes.set_yticks([n + 0.4 - height / 2 for n in range(len(names))], names)
        axes.set(xscale="log", xlabel="times as long as ssimfast", title=f"{task}, a training step")
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    save(figure, to)


def save(figure, to: Path) -> None:
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    replace_file(to, text.getvalue())


def main() -> None:
    results, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    machine, date = results["machine_info"]["measured_on"], results["datetime"][:10]
    rows, not_compared = entries(results), results["not_compared"]
    measured = {row["library"] for row in rows}
    named = {reason.partition(",")[0] for reason in not_compared}
    unmeasured = [name for name in FUSED_PEERS if name not in measured | named]
    not_compared += [f"{name}: needs a CUDA device, to be installed as well" for name in unmeasured]
    kept = {"machine": machine, "date": date, "command": COMMAND, "results": rows}
    kept["not_compared"] = not_compared
    replace_file(folder / "benchmarks.json", json.dumps(kept, indent=1) + "\n")
    replace_file(folder / "benchmarks.md", page(machine, date, rows, not_compared))
    plot_lines(rows, "median", "ms", folder / "benchmarks_time.svg")
    plot_lines(rows, "extra_images", "MiB beyond the inputs", folder / "benchmarks_memory.svg")
    plot_ratios(rows, folder / "benchmarks_ratios.svg")
    plot_step(rows, folder / "benchmarks_step.svg")
    readme = folder.parent / "README.md"
    if readme.exists():
        begin, end = MARKS
        table = f"{begin}\n{readme_table(machine, rows)}\n{end}"
        text = readme.read_text()
        replace_file(readme, re.sub(f"{begin}.*{end}", lambda _: table, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
