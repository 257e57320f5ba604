"""An image with a colour cast, optimised towards its photograph by three losses.

``python docs/figures/colour_shift.py FOLDER`` writes colour_shift.jpg and prints its numbers.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

import plates
import torch
from torch import Tensor
from torch.nn import functional as F

import ssimfast

CAST = (0.8, 0.95, 1.1)  # what red, green and blue are multiplied by
STEPS, EVERY, LEARNING_RATE = 250, 10, 0.001
LOSSES = {
    "SSIM": {"ssim": 1.0},
    "MS-SSIM": {"ssim": 0.0, "ms_ssim": 1.0},
    "SSIM and L1": {"ssim": 0.84, "l1": 0.16},
}
LINES = ("#c44e52", "#dd8452", "#4c72b0")
BLOCK = 16  # pixels: side of the blocks of which mean colours are compared


class State(NamedTuple):
    image: Tensor
    ssim: float
    colours_off: float


def compare(image: Tensor, photograph: Tensor) -> State:
    """``colours_off`` is the mean absolute difference of blocks' mean colours, in levels of 255."""
    blocks, theirs = (F.avg_pool2d(pixels, BLOCK) for pixels in (image, photograph))
    colours_off = 255 * (blocks - theirs).abs().mean().item()
    return State(image, ssimfast.ssim(image, photograph).item(), colours_off)


def optimise(start: Tensor, photograph: Tensor, factors: dict[str, float]) -> list[State]:
    """Adam on the pixels: the first state, and that after every EVERY steps."""
    image = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=LEARNING_RATE)
    states = [compare(start, photograph)]
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        ssimfast.similarity_loss(image, photograph, **factors).backward()
        optimizer.step()
        if step % EVERY == 0:
            states.append(compare(image.detach().clone(), photograph))
    return states


def measure() -> tuple[Tensor, dict[str, list[State]]]:
    photograph = plates.photograph("astronaut", 0, 90)
    start = (photograph * torch.tensor(CAST)[:, None, None]).clamp(0, 1)
    runs = {name: optimise(start, photograph, factors) for name, factors in LOSSES.items()}
    return photograph, runs


def main(folder: Path) -> str:
    photograph, runs = measure()
    shown = {"Start": runs["SSIM"][0]} | {name: states[-1] for name, states in runs.items()}
    panels, rows = [], []
    for name, state in shown.items():
        ssim, off = plates.number(state.ssim, 3), plates.number(state.colours_off, 1)
        panels.append(plates.Panel(name, f"SSIM {ssim}    colours off by {off}", state.image))
        rows.append((name, ssim, off))
    panels = [plates.Panel("Photograph", "", photograph), panels[0], None, *panels[1:]]
    with plates.figure(panels, folder / "colour_shift.jpg") as axes:
        chart = axes[2]
        for (name, states), colour in zip(runs.items(), LINES, strict=True):
            values = [state.colours_off for state in states]
            chart.plot(range(0, STEPS + 1, EVERY), values, color=colour, label=name)
        chart.set(xlabel="step", xlim=(0, STEPS), ylim=(0, None))
        chart.set_title("Colours off by")
        chart.legend(frameon=False)
    return plates.table(("image", "SSIM", "colours off by"), rows)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
