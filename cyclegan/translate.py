"""Translation of a folder of images with a trained generator."""

import pickle
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclegan.errors import UserError
from cyclegan.files import list_images, readable_images, to_image, to_tensor, write_png
from cyclegan.networks import ResnetGenerator


def load_generator(checkpoint: Path, direction: str, device: torch.device) -> nn.Module:
    """The generator of a run for direction "ab" or "ba"; the checkpoint knows its shape."""
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        settings, weights = state["settings"], state["networks"][f"generator_{direction}"]
        generator = ResnetGenerator(settings["base_width"], settings["blocks"])
        generator.load_state_dict(weights)
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError) as error:
        raise UserError(f"{checkpoint} is no checkpoint of cyclegan train") from error
    return generator.to(device)


def translate_folder(generator: nn.Module, source: Path, target: Path, device: torch.device) -> int:
    """Translate every readable image of `source`, at its own size, into target/<name>.png.

    Returns how many were written.
    """
    if source.resolve() == target.resolve():
        raise UserError(f"the images would overwrite themselves: IN and OUT are both {source}")
    paths = list_images(source)
    clashes = [stem for stem, n in Counter(path.stem for path in paths).items() if n > 1]
    if clashes:
        raise UserError(f"several images would be written to {target / clashes[0]}.png")
    count = 0
    for path, image in readable_images(paths):
        result = translate(generator, to_tensor(image).to(device))
        write_png(to_image(result), target / f"{path.stem}.png")
        count += 1
    if count == 0:
        raise UserError(f"no readable image in {source}")
    return count


@torch.inference_mode()
def translate(generator: nn.Module, image: Tensor) -> Tensor:
    """(3, H, W) in [-1, 1] -> the same, of any size: padded to what the generator takes."""
    height, width = image.shape[-2:]
    right, bottom = (max(8, -(-side // 4) * 4) - side for side in (width, height))
    padded = F.pad(image[None], (0, right, 0, bottom), mode="replicate")
    return generator(padded)[0, :, :height, :width]
