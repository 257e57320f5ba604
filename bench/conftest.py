"""Ends a benchmark run with a table: milliseconds, megapixels a second, ratio to each peer."""

import psutil
import torch
from cards import processor

IDLE = 0.5  # load average of a minute
LOAD = psutil.getloadavg()[0]  # when the run began


def machine() -> str:
    where = f"{torch.get_num_threads()} threads of {processor()}"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    busy = f", busy with other work (load {LOAD:.1f})" if LOAD >= IDLE else ""
    return f"{where}, torch {torch.__version__}{busy}"


def pytest_report_header() -> str:
    return machine()


not_compared: set[str] = set()  # libraries, and why: what their tests were skipped for


def pytest_runtest_logreport(report) -> None:
    if report.skipped and "test_training_step" not in report.nodeid:
        not_compared.add(report.longrepr[2].removeprefix("Skipped: "))


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    output_json["not_compared"] = sorted(not_compared)


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["measured_on"] = machine()


def extra(info: dict) -> str:
    """Shares of the machine's limits, memory in image-sized tensors, share of a training step."""
    words = []
    if "of_fma" in info:
        words.append(f"{info['of_fma']:.0%} FMA")
    if "of_copy" in info:
        words.append(f"{info['of_copy']:.0%} copy")
    if "extra_images" in info:
        words.append(f"{info['extra_images']:.1f} images")
    if "share_of_cycle_losses" in info:
        words.append(f"{info['share_of_cycle_losses']:.1%} in loss")
    return ", ".join(words)


def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list] = {}
    for bench in session.benchmarks if session else []:
        if bench.extra_info and not bench.has_error:  # without: its test failed
            groups.setdefault(bench.group, []).append(bench)
    if not groups:
        return
    terminalreporter.section("medians; ratio = how many times longer than ssimfast")
    row = "{:52} {:24} {:>9} {:>7} {:>7} {:>30}"
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
