"""The report of ``make gpu-report``, with the CPU in place of a card."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ssimfast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import gpu_report
from gpu_report import Card, Case, Context, Failed, Outcome, Section, Skipped, Timed

BENCH = str(Path(gpu_report.__file__).parent)
while BENCH in sys.path:  # other tests have modules of their own
    sys.path.remove(BENCH)

CPU = Card()
SMALL = (1, 1, 32, 32)
ARGUMENTS = ["--device", "cpu", "--quick"]


def quick(card: Card = CPU) -> Context:
    return Context(card, quick=True)


def never(context: Context) -> None:
    raise AssertionError("a section runs in a process of its own")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[tuple[subprocess.Popen, Path]]:
    """One run of everything."""
    chosen = tmp_path_factory.mktemp("chosen") / "test_chosen.py"
    chosen.write_text("def test_on_cuda(): pass\ndef test_on_cuda_emulated(): assert False\n")
    out = tmp_path_factory.mktemp("whole") / "report.md"
    command = [
        sys.executable,
        gpu_report.__file__,
        *ARGUMENTS,
        "--out",
        str(out),
        "--minutes",
        "30",
    ]
    command += ["--tests-select", f"'{chosen}' -k 'cuda and not emulated'"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    with (out.parent / "output").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=out.parent, env=one_thread
        )
    yield process, out
    process.terminate()
    process.wait()


def part(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


# ---- sections as processes ----------------------------------------------------------------------


def write(path: Path, codes: dict[str, str], seconds: float = 50.0) -> tuple[int, str]:
    """A report whose sections are these Python programs; its exit code and text."""
    sections = [Section(name, f"Section {name}", 1.0, never) for name in codes]

    def command_of(section: Section, limit: float) -> list[str]:
        return [sys.executable, "-c", codes[section.name]]

    minutes = (seconds + 5) / 60  # five are kept for the start and the end
    code = gpu_report.write_report(path, "Opening.", sections, command_of, minutes)
    return code, path.read_text()


def test_a_section_that_raises_is_reported_and_the_others_run(tmp_path):
    raises = "print('half of it', flush=True); raise ValueError('no such luck')"
    path = tmp_path / "report.md"
    code, text = write(path, {"a": "print('first')", "b": raises, "c": "print('third')"})
    assert code == 1
    assert "| Section a | ran |" in text and "| Section c | ran |" in text
    assert "| Section b | **failed** |" in text
    shown = part(text, "Section b")
    assert "half of it" in shown and "exit code 1" in shown
    assert "ValueError: no such luck\n~~~~" in shown
    assert "third" in part(text, "Section c")


@pytest.mark.long
def test_a_section_over_its_time_is_cut_with_what_it_started(tmp_path):
    late = tmp_path / "late"
    child = f"import time; time.sleep(4); open({str(late)!r}, 'w')"
    hangs = (
        "import subprocess, sys, time; print('| 1 |', flush=True); print('why', file=sys.stderr, "
        f"flush=True); subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    code, text = write(tmp_path / "report.md", {"a": hangs, "b": "print('on')"}, seconds=4)
    assert code == 1
    assert time.monotonic() - start < 50  # it did not wait for what slept for a minute
    shown = part(text, "Section a")
    assert "| Section a | **out of time** |" in text
    assert "| 1 |" in shown and "cut off after 2 s" in shown and "~~~~\nwhy\n~~~~" in shown
    assert "on" in part(text, "Section b")
    time.sleep(max(0.0, start + 6 - time.monotonic()))
    assert not late.exists()


def test_the_report_is_written_anew_after_each_section(tmp_path):
    path = tmp_path / "report.md"
    reads = f"print(open({str(path)!r}).read().replace('#', '>'))"
    code, text = write(path, {"a": "print('first words')", "b": reads})
    shown = part(text, "Section b")
    assert code == 0
    assert "first words" in shown and "| Section b | not yet run | 0 |" in shown
    assert list(tmp_path.iterdir()) == [path]


def test_time_that_is_not_used_is_passed_on(tmp_path, capsys):
    write(tmp_path / "report.md", {name: "" for name in "abcd"}, seconds=40)
    limits = [int(found) for found in re.findall(r"at most (\d+) s", capsys.readouterr().out)]
    assert limits[0] == 10 and limits == sorted(limits) and limits[-1] > 25


def test_a_section_that_could_not_run_is_no_success(tmp_path, capsys):
    skips = "print('Skipped: no'); raise SystemExit(77)"
    code, text = write(tmp_path / "report.md", {"a": "print('fine')", "b": skips})
    assert code == 1 and "| Section b | skipped |" in text and "Skipped: no" in text
    assert "| Section a | ran |" in text
    assert "not all sections ran: b: skipped\n" in capsys.readouterr().out


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    gpu_report.replace_file(path, "old")

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        gpu_report.replace_file(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_without_a_card_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "report.md"
    assert gpu_report.main(["--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "no card: torch" in message and "--device cpu" in message
    assert not out.exists()


def test_sections_skip_by_their_exit_code(capsys):
    code = gpu_report.main([*ARGUMENTS, "--section", "graphs"])
    assert code == 77 and "Skipped: CUDA graphs" in capsys.readouterr().out


def test_an_outcome_that_is_missing_is_not_yet_run():
    sections = [Section(name, name, 1.0, never) for name in ("a", "b")]
    text = gpu_report.render(sections, {"a": Outcome("ran", 1.0, "words")}, "Opening.")
    assert "| b | not yet run | 0 |" in text and "## b" not in text


# ---- each section, where something is wrong -----------------------------------------------------


def test_a_card_that_only_the_reference_serves_fails_the_machine(monkeypatch, capsys):
    class Bare(Card):
        device = "cuda"

    monkeypatch.setattr(ssimfast, "backends", lambda: {"cuda": "reference"})
    with pytest.raises(Failed, match="no compiled kernels"):
        gpu_report.machine(quick(Bare()))
    assert "| backend | reference |" in capsys.readouterr().out


def run_tests(tmp_path: Path, code: str, seconds: float = 60.0) -> None:
    chosen = tmp_path / "test_chosen.py"
    chosen.write_text(code)
    gpu_report.tests(Context(CPU, seconds=seconds, select=f"'{chosen}'"))


def test_failed_tests_are_counted_and_listed(tmp_path, capsys):
    code = """
import pytest
def test_right(): pass
def test_wrong(): raise ValueError("off by one")
def test_broken(missing_fixture): pass
@pytest.mark.skip("not today")
def test_skipped(): pass
"""
    with pytest.raises(Failed, match="some tests failed"):
        run_tests(tmp_path, code)
    shown = capsys.readouterr().out
    assert "| 1 | 2 | 1 |" in shown and "The first of 2 failures" in shown
    assert (
        "test_chosen.test_wrong: ValueError: off by one`" in shown
    )  # below the root that pytest finds
    assert "- 1: not today" in shown


@pytest.mark.long
def test_no_test_at_all_is_a_failure(tmp_path):
    with pytest.raises(Failed, match="no test ran"):
        run_tests(tmp_path, "")


@pytest.mark.long
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["", "job"])
def test_tests_that_hang_are_stopped_and_the_finished_ones_counted(tmp_path, capsys, handler):
    code = "import time\ndef test_right(): pass\ndef test_hangs(): time.sleep(600)\n"
    before = signal.signal(signal.SIGINT, handler)  # background jobs of a shell ignore it
    try:
        with pytest.raises(Failed, match="stopped at its limit"):
            run_tests(tmp_path, code, seconds=30)  # of which a tenth and five seconds are kept
    finally:
        signal.signal(signal.SIGINT, before)
    assert "| passed | failed | skipped |\n|---|---|---|\n| 1 | 0 | 0 |" in capsys.readouterr().out


@pytest.mark.needs("triton")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
def test_triton_is_timed_beside_the_compiled_kernels(monkeypatch, capsys):
    from ssimfast.backends.triton import launch
    from ssimfast.ops import library

    calls = []

    def counted(name, op):
        def call(**arguments):
            calls.append(name)
            return op(**arguments)

        return call

    every = {name: counted(name, op) for name, op in launch.OPS.items()}
    known = library.OPS["sweep"]
    with monkeypatch.context() as patch:
        patch.setattr(gpu_report, "first_calls", {})
        case = gpu_report.Timed("SSIM", (1, 1, 12, 13))
        patch.setattr(launch, "OPS", every)
        excluded: list[str] = []
        steps = gpu_report.compared(case, ["ssimfast", gpu_report.TRITON], CPU, excluded)
        assert excluded == []
        assert list(steps) == ["ssimfast", gpu_report.TRITON]
        calls.clear()
        steps["ssimfast"]()
        assert calls == [] and library.OPS["sweep"] is known
        steps[gpu_report.TRITON]()
        assert calls == ["sweep", "scale_"] and library.OPS["sweep"] is known
        gpu_report.say_first_calls(least=0.0)
    assert re.search(r"- SSIM, 1x1x12x13, float32: \d+\.\d s", capsys.readouterr().out)


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_a_wrong_op_fails_the_agreement(monkeypatch, capsys, off):
    def wrong(x, y):
        return ssimfast.ssim(x, y) + (off if x.dtype == torch.float32 else 0.0)

    every_case = [Case("right", ssimfast.ssim, SMALL), Case("wrong", wrong, SMALL)]
    monkeypatch.setattr(gpu_report, "cases", lambda: iter(every_case))
    with pytest.raises(Failed, match=r"1 calls disagree:\nfloat32: .*'wrong'"):
        gpu_report.agreement(quick())
    shown = capsys.readouterr().out
    assert re.search(rf"\| wrong \| float32 \| 1 \| ({off:.1e}|1\.0e-03)", shown)


def test_a_wrong_gradient_fails_the_agreement(monkeypatch):
    def wrong(x, y):
        return ssimfast.ssim(x, y) + 0.01 * (x - x.detach()).mean() * (x.dtype == torch.float32)

    monkeypatch.setattr(gpu_report, "cases", lambda: iter([Case("wrong", wrong, SMALL)]))
    with pytest.raises(Failed, match="1 calls disagree"):
        gpu_report.agreement(quick())


def test_the_workload_calls_every_function_in_every_dtype(monkeypatch):
    called = set()
    monkeypatch.setattr(gpu_report, "results", lambda case, dtype, *_: called.add((case.op, dtype)))
    assert gpu_report.main([*ARGUMENTS, "--workload"]) == 0
    ops = {"ssim", "map of ssim", "components", "ms_ssim", "similarity_loss", "mask", "volume"}
    assert called == {(op, dtype) for op in ops for dtype in gpu_report.DTYPES}


@pytest.fixture
def checker(tmp_path) -> Callable[[int], str]:
    """A stand-in for compute-sanitizer that prints its arguments and exits with a code."""

    def write_script(code: int) -> str:
        tool = tmp_path / "compute-sanitizer"
        tool.write_text(f'#!/bin/sh\necho "$@"\necho "===== ERROR SUMMARY: {code} errors"\n')
        with tool.open("a") as script:
            script.write(f"exit {code}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return str(tool)

    return write_script


@pytest.mark.needs("posix")
def test_sanitizer_reports_each_check(checker, capsys):
    gpu_report.sanitize(checker(0), quick())
    shown = capsys.readouterr().out
    for check in ("memcheck", "racecheck"):
        assert re.search(rf"\| {check} \| exit code 0; ERROR SUMMARY: 0 errors \| \d+ \|", shown)


@pytest.mark.needs("posix")
def test_sanitizer_fails_with_what_it_found(checker):
    with pytest.raises(Failed) as failure:
        gpu_report.sanitize(checker(9), quick())
    message = str(failure.value)
    assert "memcheck: exit code 9" in message and "racecheck: exit code 9" in message
    assert "--tool racecheck --error-exitcode 9" in message
    assert "gpu_report.py --workload --device cpu" in message


@pytest.mark.parametrize(
    "loss, reason",
    [
        (lambda x, y: 1 - ssimfast.ssim(x, y), None),
        (lambda x, y: 1 - ssimfast.ssim(x, y, padding="same"), "its loss is 0."),
        (lambda x, y: (1 - ssimfast.ssim(x, y)) * float("nan"), "its loss is nan"),
        (lambda x, y: 1 - ssimfast.ssim(x, y).detach(), "RuntimeError: element 0 of tensors"),
        (lambda x, y: x.missing, "AttributeError: "),
    ],
)
def test_libraries_that_compute_something_else_are_excluded(loss, reason):
    x, y = gpu_report.images(SMALL, torch.float32, CPU)
    found = gpu_report.reason_to_exclude(loss, x, y, 1 - ssimfast.ssim(x, y).item())
    assert found is None if reason is None else found.startswith(reason)


@pytest.fixture
def fake_peers(tmp_path, monkeypatch):
    """Modules in place of the peers on GPUs: one computes the same, one pads otherwise."""
    code = "import ssimfast\ndef fused_ssim(x, y, padding='same'):\n    return ssimfast.ssim(x, y"
    (tmp_path / "fused_ssim.py").write_text(f"{code}, padding=padding)\n")
    (tmp_path / "fussim.py").write_text(f"{code}, padding='same')\n")
    for module in ("fused_ssim", "fussim"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for module in ("fused_ssim", "fussim"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("loss", ["SSIM", "SSIM + L1"])
def test_speed_compares_peers_that_agree(fake_peers, capsys, loss):
    columns = gpu_report.installed_libraries(CPU)
    assert columns == ["ssimfast", "fused-ssim", "fussim", "pytorch-msssim"]
    excluded: list[str] = []
    todo = [Timed(loss, SMALL, dtype) for dtype in (torch.float32, torch.float16)]
    assert gpu_report.speed_table(quick(), todo[:1], columns, excluded) == []
    shown = capsys.readouterr().out
    cells = r"[\d.]+ \| [\d.]+ \([\d.]+\) \| - \| [\d.]+ \([\d.]+\) \|"
    assert re.search(rf"\| {re.escape(loss)} \| 1x1x32x32 \| float32 \| {cells}", shown)
    assert len(excluded) == 1
    assert excluded[0].startswith(f"fussim, {loss}, 1x1x32x32, float32: its loss is 0.")


def test_speed_names_what_it_had_no_time_for(capsys):
    todo = [Timed("SSIM", SMALL)]
    late = replace(quick(), start=time.monotonic() - 100)
    assert gpu_report.speed_table(late, todo, ["ssimfast"], []) == todo


def test_medians_take_turns_and_end_in_time():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    gpu_report.medians(CPU, steps, 4)
    assert order == list("aabb" + "ab" * 4)
    order.clear()
    gpu_report.medians(CPU, steps, 100, seconds=0)
    assert order == list("aabb" + "ab" * 3)


class Forgetful(Card):
    """Fails to measure the memory of peers."""

    def extra_images(self, task, library, loss, shape):
        if library == "ssimfast":
            return 1.25
        raise RuntimeError("out of memory\nand more")


def test_memory_of_peers_that_fail_is_left_out(capsys):
    gpu_report.memory_of_step(quick(Forgetful()))
    shown = capsys.readouterr().out
    assert re.search(r"\| SSIM \| 1x1x512x512 \| 1\.2 \|", shown)
    assert "- pytorch-msssim, SSIM, 1x1x512x512: RuntimeError: out of memory\n" in shown


class Replaying(Card):
    """Has graphs and streams, as the CPU has them: it just calls the step."""

    def capture(self, step):
        return step

    def on_side_stream(self, step):
        step()


class Lazy(Replaying):
    """Its graphs do nothing when they are replayed."""

    def capture(self, step):
        step()
        return lambda: None


class Strict(Replaying):
    """Refuses to capture one of the losses."""

    captured = 0

    def capture(self, step):
        self.captured += 1
        if self.captured == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return step


def test_graphs_that_replay_the_step_agree(capsys):
    gpu_report.graphs(quick(Replaying()))
    shown = capsys.readouterr().out
    for task in gpu_report.REPEATED:
        row = rf"\| {re.escape(task)} \| same bits \| same bits \| [\d.]+ \| [\d.]+ \|"
        assert re.search(row, shown)


def test_graphs_that_differ_fail(monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "REPEATED", ["SSIM"])
    with pytest.raises(Failed, match="SSIM: other bits than eager"):
        gpu_report.graphs(quick(Lazy()))
    assert "| SSIM | **differs** | same bits |" in capsys.readouterr().out


def test_a_loss_that_cannot_be_captured_leaves_the_others_theirs(monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "REPEATED", ["SSIM", "MS-SSIM", "components"])
    with pytest.raises(Failed, match="MS-SSIM: Traceback"):
        gpu_report.graphs(quick(Strict()))
    shown = capsys.readouterr().out
    assert "| MS-SSIM | **RuntimeError: operation not permitted when stream is capturing**" in shown
    assert shown.count("same bits | same bits") == 2


def test_without_graphs_the_section_is_skipped():
    with pytest.raises(Skipped, match="need a GPU"):
        gpu_report.graphs(quick())


def test_a_loss_that_varies_from_run_to_run_is_found(monkeypatch, capsys):
    tasks = {"SSIM": {"ssimfast": lambda x, y: (x - y).mean() + 1e-3 * torch.rand(())}}
    monkeypatch.setattr(gpu_report, "TASKS", tasks)
    monkeypatch.setattr(gpu_report, "REPEATED", ["SSIM"])
    with pytest.raises(Failed, match="from run to run: SSIM, 1x2x176x176, float32"):
        gpu_report.determinism(quick())
    assert "| SSIM | 1x2x176x176 | float32 | 10 | **differ** |" in capsys.readouterr().out


# ---- the whole ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(whole) -> str:
    process, out = whole
    code, printed = process.wait(), (out.parent / "output").read_text()
    assert code == 1 and printed.endswith(
        "not all sections ran: graphs: skipped, sanitizer: skipped\n"
    ), printed
    return out.read_text()


@pytest.mark.long
def test_every_section_is_there_and_in_the_summary(text):
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == [section.title for section in gpu_report.SECTIONS]
    summary = text.split("\n## ")[0]
    for title in titles:
        state = "skipped" if title in NEED_A_GPU else "ran"
        assert re.search(rf"^\| {title} \| {state} \| \d+ \|$", summary, re.MULTILINE)


NEED_A_GPU = ("CUDA graphs and streams", "compute-sanitizer")


@pytest.mark.long
def test_every_section_has_a_table_with_numbers_or_says_why_not(text):
    for section in gpu_report.SECTIONS:
        wanted = r"^\|(---\|)+\n\|.*\d.*\|$"
        if section.title in NEED_A_GPU:
            wanted = "^Skipped: .*GPU"
        assert re.search(wanted, part(text, section.title), re.MULTILINE), section.name


@pytest.mark.long
def test_tables_are_rectangular(text):
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


@pytest.mark.long
def test_it_says_that_the_cpu_stands_in(text):
    assert "**There was no GPU: the CPU stands in for the card, and nothing" in text
    assert "| card | none: the CPU stands in" in text


@pytest.mark.long
def test_it_names_versions_and_the_chosen_tests(text):
    machine = part(text, "The machine")
    assert f"| torch | {torch.__version__} |" in machine
    assert f"| ssimfast | {ssimfast.__version__}, git commit " in machine
    assert f"| backend | {ssimfast.backends()['cpu']} |" in machine
    assert "| 1 | 0 | 0 |" in part(text, "Tests on the card")


@pytest.mark.long
def test_every_loss_is_timed_and_compared(text):
    speed = part(text, "Speed")
    assert "| loss | images | dtype | ssimfast | pytorch-msssim |" in speed
    for loss in gpu_report.LOSSES:
        row = rf"^\| {re.escape(loss)} \| 1x1x176x176 \| float32 \| [\d.]+ \| [\d.]+ \([\d.]+\) \|$"
        assert re.search(row, speed, re.MULTILINE), loss


@pytest.mark.long
def test_nothing_else_is_written(whole, text):
    _, out = whole
    assert sorted(path.name for path in out.parent.iterdir()) == ["output", "report.md"]
