"""The article's table: the same training with each of several cycle losses, side by side."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cyclegan.errors import UserError
from cyclegan.evaluate import METRICS, evaluate
from cyclegan.files import to_image, write_png, write_text
from cyclegan.report import write_comparison
from cyclegan.settings import Settings
from cyclegan.trainer import Trainer

SHOWN = 6  # test images of each direction on the page
SECTIONS = {
    "ab": "A to B",
    "aba": "A to B and back",
    "ba": "B to A",
    "bab": "B to A and back",
}


def compare(settings: Settings, cycle_losses: Sequence[str]) -> Path | None:
    """Train each loss in run_dir/runs/NAME, from the same seed for the same steps; write
    run_dir/compare.json, and compare.html, whose path is returned (by every process; the first
    writes it). What is trained already is not trained again; None if a signal ended training early.

    Args:
        settings: of all runs, but for cycle_loss.
        cycle_losses: see `parse_cycle_loss`; at least one, none twice.
    """
    names = {loss: re.sub(r"[^\w.]+", "_", loss) for loss in cycle_losses}
    if not cycle_losses or len(set(names.values())) < len(cycle_losses):
        raise UserError(f"cycle_losses must be different; got {','.join(cycle_losses)!r}")
    root = Path(settings.run_dir)
    runs = {
        loss: replace(settings, cycle_loss=loss, run_dir=str(root / "runs" / name))
        for loss, name in names.items()
    }
    for run in runs.values():  # names what cannot be made before hours go by
        run.make_cycle_loss()
    scores: dict[str, dict[str, float]] = {}
    images: dict[str, dict[str, list[str]]] = {section: {} for section in SECTIONS}
    for loss, run in runs.items():
        trainer = Trainer(run, resume="auto")
        trainer.train()
        if trainer.step < run.steps:
            return None
        if not trainer.is_main:
            continue
        results = evaluate(
            trainer.model.generators(),
            Path(run.data),
            run.size_of_tests(),
            trainer.device,
            run.batch_size,
        )
        scores[loss] = {
            **{f"cycle {METRICS[name]}": value for name, value in results["mean"].items()},
            "seconds per step": trainer.seconds / trainer.step,
        }
        for section, batch in _shown(trainer).items():
            images[section][loss] = files = []
            for index, image in enumerate(batch):
                files.append(f"images/{names[loss]}/{section}_{index}.png")
                write_png(to_image(image), root / files[-1])
    if not scores:  # not the first process
        return root / "compare.html"
    for section, batch in (("a", trainer.test_a), ("b", trainer.test_b)):
        for index, image in enumerate(batch[:SHOWN]):
            write_png(to_image(image), root / f"images/input/{section}_{index}.png")
    write_text(json.dumps(scores, indent=1), root / "compare.json")
    sections = {
        title: [
            (f"images/input/{section[0]}_{index}.png", files)
            for index, files in enumerate(zip(*images[section].values(), strict=True))
        ]
        for section, title in SECTIONS.items()
    }
    common = {k: v for k, v in asdict(settings).items() if k not in ("cycle_loss", "run_dir")}
    return write_comparison(root, scores, sections, common)


def _shown(trainer: Trainer) -> dict:
    (_, fake_b, rec_a), (_, fake_a, rec_b) = trainer.round_trips(SHOWN)
    return {"ab": fake_b, "aba": rec_a, "ba": fake_a, "bab": rec_b}
