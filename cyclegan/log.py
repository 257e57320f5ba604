"""The log of a run: lines of JSON, one for each start, look at the losses, test and warning.

    {"step": 0, "start": {"images_a": 1072, "device": "cpu", ...}}
    {"step": 20, "losses": {...}, "images_per_second": 8.1, "seconds": 4.9}
    {"step": 1000, "test": {"ssim": 0.61, ...}, "saving": 1.2}
    {"step": 1000, "warning": "discriminator_a separates ..."}

"seconds" are those of all training up to there, without tests, checkpoints and pauses; "saving" are
those of the checkpoint and the test.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cyclegan.files import write_text, writing


class RunLog:
    def __init__(self, run_dir: Path):
        self.path = run_dir / "log.jsonl"
        self._records: list[dict] | None = None  # those in the file, once it has been read

    def append(self, **record) -> None:
        records = self.records()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record) + "\n"
        with writing(self.path, len(line)), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        records.append(record)

    def records(self, kind: str = "") -> list[dict]:
        """All records, or those that have `kind`; a last line that a kill cut short is none. The
        file is read once."""
        if self._records is None:
            self._records = []
            lines = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            for line in lines.splitlines():
                try:
                    self._records.append(json.loads(line))
                except ValueError:
                    break
        if not kind:
            return self._records
        return [record for record in self._records if kind in record]

    def cut(self, step: int) -> None:
        """Read the file again, and forget what came after `step`, from which a run goes on."""
        self._records = None
        self._records = [record for record in self.records() if record["step"] <= step]
        if self.path.exists():
            write_text("".join(json.dumps(record) + "\n" for record in self._records), self.path)


def seconds_per_step(looks: Sequence[dict]) -> float | None:
    """The median over the spans between looks, without the first of them, which warms up. None of
    no look."""
    points = [(0, 0.0), *((look["step"], look["seconds"]) for look in looks)]
    spans = [
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in zip(points, points[1:], strict=False)
        if after[0] > before[0]
    ]
    return median(spans[1:] or spans) if spans else None


def best_test(tests: Sequence[dict], score: str) -> dict | None:
    """The test with the smallest `score`, the first of equals; None if no test has it."""
    scored = [test for test in tests if score in test["test"]]
    return min(scored, key=lambda test: test["test"][score], default=None)
