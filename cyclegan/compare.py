"""The article's table: the same training with each of several cycle losses, side by side."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from cyclegan.errors import UserError
from cyclegan.evaluate import (
    HIGHER_IS_BETTER,
    TITLES,
    check_inception,
    distances,
    evaluate,
    lpips_network,
)
from cyclegan.files import write_text
from cyclegan.images import to_8_bit, write_pixels
from cyclegan.log import seconds_per_step
from cyclegan.losses import MIXTURES, PRESETS, parse_cycle_loss
from cyclegan.report import write_page
from cyclegan.settings import Settings
from cyclegan.trainer import Trainer

SHOWN = 6  # test images of each domain on the page
CANDIDATES = 32  # of each domain, from which they are chosen
SECTIONS = ("ab", "aba", "ba", "bab")
# The scores that each term of a loss is trained on. A column gets no mark in them.
TRAINED_SCORES = {
    "ssim": ("ssim", "ms_ssim"),
    "ms_ssim": ("ssim", "ms_ssim"),
    "l1": ("psnr", "colour_error"),
    "gaussian_l1": ("psnr", "colour_error"),
    "l2": ("psnr", "colour_error"),
    "perceptual": ("lpips",),
    "contextual": ("lpips",),
}
LOSS_TITLES = {
    "l1": "L1 on [0, 1]",
    "paper_l1": "L1",
    "l2": "L2",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "mix": "MS-SSIM + L1",
    "ssim_l1": "SSIM + L1",
    "ssim_l2_a": "SSIM + L2 (a)",
    "ssim_l2_b": "SSIM + L2 (b)",
    "l1_l2": "L1 + L2",
    "ssim_l1l2_a": "SSIM + L1 + L2 (a)",
    "ssim_l1l2_b": "SSIM + L1 + L2 (b)",
}
SECONDS = "seconds a step"
NOT_COMMON = ("cycle_loss", "loss_preset", "run_dir")  # settings in which the runs differ
MARKS = (
    "Bold: the best of the losses that were not trained on a score, where there are two or more. "
    "Losses with SSIM or MS-SSIM are trained on these two, with L1 or L2 on PSNR and colour error, "
    "with deep features on LPIPS (gray)."
)


def compare(
    settings: Settings, cycle_losses: Sequence[str], lpips_weights: str = ""
) -> Path | None:
    """Train each loss in run_dir/runs/NAME, from the same seed for the same steps; write
    run_dir/compare.json, and compare.html, whose path is returned (by every process; the first
    writes it). What is trained already is not trained again; None if a signal ended training early.

    Args:
        settings: of all runs, but for cycle_loss and loss_preset.
        cycle_losses: "LOSS" or "PRESET:LOSS", see `parse_cycle_loss`; at least one, none twice.
        lpips_weights: see `lpips_network`; "": LPIPS is left out.
    """
    root = Path(settings.run_dir)
    if settings.loss_preset != PRESETS[0]:  # that of the losses without a prefix
        cycle_losses = [f"{settings.loss_preset}:{x}" if ":" not in x else x for x in cycle_losses]
    runs = {loss: _settings_of(loss, settings, root) for loss in cycle_losses}
    if not runs or len({run.run_dir for run in runs.values()}) < len(cycle_losses):
        raise UserError(f"cycle_losses must be different; got {','.join(cycle_losses)!r}")
    for run in runs.values():  # names what cannot be made before hours go by
        run.make_cycle_loss()
    lpips = lpips_network(lpips_weights) if lpips_weights else None
    with_distances = bool(settings.score or settings.inception_weights)
    if with_distances:
        check_inception(settings.inception_weights)
    scores: dict[str, dict[str, float]] = {}
    images: dict[str, dict[str, Tensor]] = {section: {} for section in SECTIONS}
    trainer = None
    for loss, run in runs.items():
        trainer = Trainer(run, resume="auto")
        trainer.train()
        if trainer.step < trainer.settings.steps:
            return None
        if not trainer.is_main:
            continue
        generators = trainer.generators()
        scores[loss] = evaluate(generators, trainer.tests(), trainer.device, lpips)["mean"]
        if with_distances:
            place = (trainer.settings, trainer.device, run.inception_weights)
            scores[loss] |= distances(generators, *place)["mean"]
        scores[loss][SECONDS] = seconds_per_step(trainer.log.records("losses"))
        trips = trainer.round_trips(CANDIDATES)
        for there, (_, fake, rec) in zip(("ab", "ba"), trips, strict=True):
            images[there][loss], images[there + there[0]][loss] = to_8_bit(fake), to_8_bit(rec)
    if not scores:  # not the first process
        return root / "compare.html"
    write_text(json.dumps(scores, indent=1), root / "compare.json")
    tests = {a: to_8_bit(batch[:CANDIDATES]) for a, batch in trainer.tests().items()}
    sections = _write_images(root, tests, images)
    return _write_page(root, trainer, scores, sections)


def _settings_of(loss: str, settings: Settings, root: Path) -> Settings:
    preset, name = split_preset(loss)
    folder = root / "runs" / folder_name(loss)
    return replace(settings, cycle_loss=name, loss_preset=preset, run_dir=str(folder))


def split_preset(loss: str) -> tuple[str, str]:
    """Preset and loss of "PRESET:LOSS" or "LOSS"."""
    preset, _, name = loss.rpartition(":")
    return preset or PRESETS[0], name


def title_of(loss: str) -> str:
    """A readable name: "tandon:ssim_l1" is "SSIM + L1 (tandon)", "0.84*ssim+0.16*l1" "0.84 SSIM +
    0.16 L1 on [0, 1]"."""
    preset, name = split_preset(loss)
    titles = {**LOSS_TITLES, "l1": "L1"} if preset == "tandon" else LOSS_TITLES
    parts = [
        titles.get(part, part) if weight == 1 else f"{weight:g} {titles.get(part, part)}"
        for part, weight in parse_cycle_loss(name, preset).items()
    ]
    return " + ".join(parts) + (f" ({preset})" if preset != PRESETS[0] else "")


def trained_scores(loss: str) -> set[str]:
    """The scores that a loss was trained on; see TRAINED_SCORES."""
    names = [n for n, weight in parse_cycle_loss(*split_preset(loss)[::-1]).items() if weight]
    terms = chain.from_iterable(MIXTURES.get(name, (name,)) for name in names)
    return set(chain.from_iterable(TRAINED_SCORES[term] for term in terms))


def most_different(images: Mapping[str, Tensor], count: int) -> list[int]:
    """Indices of the images in which the runs differ most: by the mean over pixels of the standard
    deviation over runs, in the order of the folder.

    Args:
        images: by run, (N, C, H, W) of the same N images.
    """
    spread = torch.stack([one.float() for one in images.values()]).std(0, correction=0)
    best = spread.mean((1, 2, 3)).topk(min(count, len(spread))).indices
    return sorted(best.tolist())


def _write_images(
    root: Path, tests: Mapping[str, Tensor], images: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, list[list[str]]]:
    """Write the images of the page; by section, rows of files: the input, and each loss's image.

    Args:
        tests: by domain, (N, C, H, W) of 8 bits.
        images: by section and loss, the same.
    """
    sections: dict[str, list[list[str]]] = {}
    for section, by_loss in images.items():
        there, back = images[section[:2]], images[section[:2] + section[0]]
        both = {loss: torch.cat([there[loss], back[loss]], 1) for loss in there}
        sections[section] = rows = []
        for index in most_different(both, SHOWN):
            files = {f"images/input/{section[0]}_{index}.png": tests[section[0]]}
            for loss, batch in by_loss.items():
                files[f"images/{folder_name(loss)}/{section}_{index}.png"] = batch
            for file, batch in files.items():
                write_pixels(batch[index].movedim(0, 2).numpy(), root / file)
            rows.append(list(files))
    return sections


def folder_name(loss: str) -> str:
    return re.sub(r"[^\w.]+", "_", loss)


def marked_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """By loss and score, its mark: "best", "trained" (on that score) or ""."""
    marks: dict[str, dict[str, str]] = {loss: {} for loss in scores}
    for column in next(iter(scores.values())):
        trained = {loss for loss in scores if column in trained_scores(loss)}
        values = {loss: one[column] for loss, one in scores.items() if loss not in trained}
        choose = max if column in HIGHER_IS_BETTER else min
        best = choose(values.values()) if len(values) > 1 else None
        for loss in scores:
            marks[loss][column] = "trained" if loss in trained else ""
            if best is not None and values.get(loss) == best:
                marks[loss][column] = "best"
    return marks


def _write_page(
    root: Path,
    trainer: Trainer,
    scores: Mapping[str, Mapping[str, float]],
    sections: Mapping[str, list[list[str]]],
) -> Path:
    settings = trainer.settings
    names = dict(zip("ab", settings.names_of_domains(), strict=True))
    columns = list(next(iter(scores.values())))
    marks = marked_scores(scores)
    counts = [f"{len(tests)} of {names[a]}" for a, tests in trainer.tests().items()]
    left_out = {
        "FID and KID": "fid" not in columns
        and "--inception-weights or --score, and torch-fidelity",
        "LPIPS": "lpips" not in columns and "--lpips-weights, and torchmetrics",
    }
    common = {k: v for k, v in asdict(settings).items() if k not in NOT_COMMON}
    rows = [
        {
            "title": title_of(loss),
            "cells": [{"text": f"{one[c]:.4g}", "mark": marks[loss][c]} for c in columns],
        }
        for loss, one in scores.items()
    ]
    return write_page(
        "compare.html",
        root / "compare.html",
        title="Cycle losses compared",
        facts=[
            ("training", f"{settings.steps:,} steps, seed {settings.seed}, the same for each"),
            ("test images", " and ".join(counts)),
        ],
        columns=[TITLES.get(column, column) for column in columns],
        rows=rows,
        notes=[
            "Scores compare test images with their reconstructions, the mean of both directions; "
            "FID and KID compare translations with the other domain. Seconds are the median "
            "without the warm-up.",
            MARKS,
            *(f"{what} left out: needs {needs}." for what, needs in left_out.items() if needs),
        ],
        heads=["input", *map(title_of, scores)],
        sections=[
            {"title": " to ".join(names[domain] for domain in section), "rows": rows}
            for section, rows in sections.items()
        ],
        settings=common,
    )
