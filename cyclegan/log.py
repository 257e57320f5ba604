"""The log of a run: lines of JSON, one for each look at the losses and each test.

    {"step": 20, "losses": {...}, "images_per_second": 8.1, "seconds": 4.9}
    {"step": 1000, "test": {"ssim": 0.61, ...}}

"seconds" are those of all training up to there, without tests, checkpoints and pauses.
"""

import json
from pathlib import Path

from cyclegan.files import write_text, writing


class RunLog:
    def __init__(self, run_dir: Path):
        self.path = run_dir / "log.jsonl"

    def append(self, **record) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record) + "\n"
        with writing(self.path, len(line)), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def records(self) -> list[dict]:
        """All of them, but for a last line that a kill cut short."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def cut(self, step: int) -> None:
        """Forget what came after `step`, from which a run goes on."""
        kept = [record for record in self.records() if record["step"] <= step]
        if self.path.exists():
            write_text("".join(json.dumps(record) + "\n" for record in kept), self.path)
