"""Six cycle losses of Tandon's "Similarity Functions", trained alike on the demo photographs:
scores and pictures in docs/comparison.md. Usage: python -I bench/compare_losses.py DOCS --work DIR

A run that was interrupted goes on: what is trained in DIR already is not trained again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cyclegan.compare import MARKS, SECONDS, compare, folder_name, marked_scores, title_of
from cyclegan.demo_data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, write_demo_data
from cyclegan.evaluate import TITLES
from cyclegan.settings import Settings

LOSSES = ("paper_l1", "ssim", "ssim_l1", "ssim_l2_a", "ssim_l2_b", "ssim_l1l2_b")
TRAIN_COUNT = 240
CELL, LABEL = 128, 18  # sides of a picture and height of a column's head, in pixels
SETTINGS = {
    "crop_size": "128",
    "test_size": "256",
    "steps": 2400,
    "generator": "unet_16",
    "base_width": 32,
    "discriminator_width": 32,
    "discriminator_layers": 2,
    "learning_rate": 1e-3,
    "lambda_a": 1.5,
    "lambda_b": 1.5,
    "lambda_identity": 0.6,
    "pool_size": 0,
    "ema_decay": 0.99,
    "test_images": 0,
    "device": "cpu",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("docs", type=Path, help="where comparison.md and its pictures go")
    parser.add_argument("--work", type=Path, required=True, help="for the data and the runs")
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"])
    parser.add_argument("--size", type=int, default=SETTINGS["crop_size"], help="of the crops")
    args = parser.parse_args(arguments)
    data, root = args.work / "data", args.work / "compared"
    settings = Settings(data=str(data), run_dir=str(root), **SETTINGS)
    settings = replace(settings, steps=args.steps, crop_size=str(args.size))
    write_demo_data(data, TRAIN_COUNT, crop_size=round(args.size * 286 / 256))
    if compare(settings, LOSSES) is None:
        raise SystemExit("stopped; the same command goes on")
    args.docs.mkdir(parents=True, exist_ok=True)
    sheets = {there: pictures(root, there) for there in ("ab", "ba")}
    # For the README: the second photograph, in which the losses differ most.
    whole = sheets["ab"]
    sheets["strip"] = strip = whole.crop((0, 0, whole.width, LABEL + 2 * CELL))
    strip.paste(whole.crop((0, LABEL + 2 * CELL, whole.width, LABEL + 4 * CELL)), (0, LABEL))
    for name, sheet in sheets.items():
        sheet.save(args.docs / f"comparison_{name}.jpg", quality=90)
    text = page(json.loads((root / "compare.json").read_text()), settings)
    (args.docs / "comparison.md").write_text(text, encoding="utf-8")


def pictures(root: Path, there: str) -> Image.Image:
    """Two rows for each test image: translations, and below them translations back."""
    rows = [
        (index, there + back) for index in range(len(TEST_PHOTOGRAPHS)) for back in ("", there[0])
    ]
    size = (CELL * (1 + len(LOSSES)), LABEL + CELL * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, loss in enumerate(("input", *LOSSES)):
        title = loss if loss == "input" else title_of(loss)
        draw.text((column * CELL + 3, 2), title, "black", font)
        for row, (index, section) in enumerate(rows):
            name = f"{section if column else there[0]}_{index}.png"
            file = root / "images" / (folder_name(loss) if column else "input") / name
            with Image.open(file) as image:
                cell = image.resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (column * CELL, LABEL + row * CELL))
    return sheet


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The scores in Markdown, with the marks of compare.html. (Seconds are left out: a run of hours
    shares its machine.)"""
    columns = [column for column in next(iter(scores.values())) if column != SECONDS]
    marks = marked_scores(scores)
    lines = [["cycle loss", *(TITLES.get(column, column) for column in columns)]]
    lines.append(["---"] * len(lines[0]))
    for loss, one in scores.items():
        cells = [f"{one[column]:.3g}" for column in columns]
        form = {"best": "**{}**", "trained": "({})", "": "{}"}
        marked = [form[marks[loss][c]].format(v) for c, v in zip(columns, cells, strict=True)]
        lines.append([title_of(loss), *marked])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGE = """\
# Cycle losses compared

Six of the cycle losses that Tandon's "Similarity Functions" compares, trained alike by
`make comparison`: {steps:,} steps, seed {seed}, crops of {crop_size} pixels, a weight of
{lambda_a:g} for each ([losses.md](losses.md) has the formulas). L1 is that of Zhu et al. 2017,
on [-1, 1].

This is a small experiment. The training images are {train_count} crops of two photographs
({train}), their hues turned, and painted versions of {train_count} other crops of them. The test
images are three other photographs ({test}) at {side} pixels, and the same three
painted by the same program. There is one seed, and the generators are small (U-Nets of four
levels). Three images are no basis for a ranking: small differences say nothing.

## Scores

{table}

Scores compare test images with their reconstructions, the mean of both directions.
{marks}

## Photographs to paintings, and back

The first row of each photograph has its translations, the second row the translations back.

![photographs translated into paintings and back with six cycle losses](comparison_ab.jpg)

## Paintings to photographs, and back

![paintings translated into photographs and back with six cycle losses](comparison_ba.jpg)
"""


def page(scores: Mapping[str, Mapping[str, float]], settings: Settings) -> str:
    return PAGE.format(
        **asdict(settings),
        train_count=TRAIN_COUNT,
        train=" and ".join(TRAIN_PHOTOGRAPHS),
        test=", ".join(TEST_PHOTOGRAPHS),
        side=settings.test[0],
        table=table(scores),
        marks=MARKS.replace("(gray)", "(in brackets)"),
    )


if __name__ == "__main__":
    main()
