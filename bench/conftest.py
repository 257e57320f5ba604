"""Ends a benchmark run with a table: milliseconds, megapixels a second, ratio to each peer."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}"


def extra(info: dict) -> str:
    """Memory in image-sized tensors, or the share of a training step."""
    if "share_of_cycle_losses" in info:
        return f"{info['share_of_cycle_losses']:.1%} in loss"
    return f"{info['extra_images']:.1f} images" if "extra_images" in info else ""


def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list] = {}
    for bench in session.benchmarks if session else []:
        if bench.group and not bench.has_error:
            groups.setdefault(bench.group, []).append(bench)
    if not groups:
        return
    terminalreporter.section("medians; ratio = how many times longer than ssimfast")
    row = "{:48} {:24} {:>9} {:>7} {:>7} {:>13}"
    terminalreporter.write_line(row.format("task", "library", "ms", "Mpx/s", "ratio", "extra"))
    for group, benches in groups.items():
        ours = next(
            (b.stats.median for b in benches if b.extra_info["library"] == "ssimfast"), None
        )
        for bench in benches:
            info = bench.extra_info
            median = bench.stats.median
            terminalreporter.write_line(
                row.format(
                    group,
                    info["library"],
                    f"{median * 1e3:.2f}",
                    f"{info['pixels'] / median / 1e6:.0f}",
                    f"{median / ours:.1f}" if ours else "",
                    extra(info),
                )
            )
