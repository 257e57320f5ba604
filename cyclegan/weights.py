"""Weights of generators from other runs, and from the reference implementation
(github.com/junyanz/pytorch-CycleGAN-and-pix2pix)."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cyclegan import checkpoints
from cyclegan.errors import UserError, cause
from cyclegan.features import read_weights
from cyclegan.settings import Settings

# The reference's netG_A translates A into B; a single netG is taken for it.
_REFERENCE = re.compile(r"(?:(latest)|(?:iter_)?(\d+))_net_G(?:_([AB]))?\.pth")


def read_generators(path: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of one or two generators by direction, "ab" and "ba", with the names of ours.

    Args:
        path: a run, a checkpoint, a folder with generator_ab.safetensors or with the reference's
            latest_net_G_A.pth (or 200_net_G_A.pth, latest_net_G.pth), or one such file. Averaged
            generators are preferred, and the latest of the reference's.

    Raises:
        UserError: nothing of the kind is there, or a file holds something else.
    """
    generators = {}
    for direction, file in _find_files(path).items():
        if file.suffix != ".safetensors":
            generators[direction] = from_reference(read_weights(str(file), "weights in"), file)
            continue
        try:
            generators[direction] = load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} holds no weights: {cause(error)}") from error
    return generators


def _find_files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"ba" if path.stem.endswith(("generator_ba", "net_G_B")) else "ab": path}
    found: dict[float, dict[str, Path]] = {}
    for file in path.glob("*_net_G*.pth"):
        if match := _REFERENCE.fullmatch(file.name):
            epoch = math.inf if match[1] else int(match[2])
            found.setdefault(epoch, {})["ba" if match[3] == "B" else "ab"] = file
    if found:
        return found[max(found)]
    if not (path / "generator_ab.safetensors").exists() or (path / checkpoints.MANIFEST).exists():
        path = checkpoints.find(path)
    files = {}
    for direction in ("ab", "ba"):
        for name in (f"generator_{direction}", f"averaged_generator_{direction}"):
            if (path / f"{name}.safetensors").exists():
                files[direction] = path / f"{name}.safetensors"
    return files


def from_reference(state: object, file: Path) -> dict[str, Tensor]:
    """A state_dict of the reference's generator, ResNet or U-Net, with the names of ours.

    Raises:
        UserError: it is something else, or its norms have weights (its --norm batch).
    """
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file} holds no state_dict of a generator")
    # Instance norm of old versions wrote statistics that it did not use.
    unused = ("running_mean", "running_var", "num_batches_tracked")
    state = {key: value for key, value in state.items() if not key.endswith(unused)}
    if any(key.endswith("weight") and value.dim() < 4 for key, value in state.items()):
        raise UserError(f"{file} has norms with weights; only instance norm (its default) is read")
    return {_our_name(key.removeprefix("module.")): v.float() for key, v in state.items()}


def _our_name(key: str) -> str:
    if key.startswith("model.model."):  # a U-Net: each level is in the Sequential of the one before
        *places, parameter = key.replace("model.", "").split(".")
        level = len(places) - 1
        down = places[-1] == ("1" if level else "0")
        index = 0 if down and level == 0 else 1
        return f"{'down' if down else 'up'}.{level}.{index}.{parameter}"
    # In a residual block the second convolution is at 5, or at 6 behind a dropout.
    key = re.sub(r"\.conv_block\.[56]\.", ".layers.5.", key)
    return key.replace(".conv_block.", ".layers.").replace("model.", "layers.", 1)


def describe(state: dict[str, Tensor], source: Path) -> dict[str, str | int]:
    """The settings of a generator with these weights: generator, base_width, channels.

    Raises:
        UserError: they are those of another network; `source` is named.
    """
    blocks = sum(bool(re.fullmatch(r"layers\.\d+\.layers\.1\.weight", key)) for key in state)
    levels = sum(bool(re.fullmatch(r"down\.\d+\.[01]\.weight", key)) for key in state)
    first = state.get("down.0.0.weight" if levels else "layers.1.weight")
    if first is None or not (blocks or levels):
        raise UserError(f"{source} does not hold the weights of a ResNet or U-Net generator")
    width, channels = first.shape[:2]
    name = f"unet_{2**levels}" if levels else f"resnet_{blocks}"
    return {"generator": name, "base_width": width, "channels": channels}


def load_into(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Give a generator the weights that `source` held.

    Raises:
        UserError: they are those of another network.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        held = ", ".join(f"{name} {value}" for name, value in describe(state, source).items())
        raise UserError(
            f"{source} holds weights of {held}, which do not fit this generator: {cause(error)}"
        ) from error


def import_generators(source: Path, run_dir: Path) -> Path:
    """Make a run of which `run_dir` holds one checkpoint, of generators only: it translates, is
    evaluated and exported, and another run can start from it.

    Args:
        source: see `read_generators`.

    Raises:
        UserError: `run_dir` holds checkpoints, or the weights are of another network.
    """
    if existing := checkpoints.in_run(run_dir):
        raise UserError(f"{existing[0]} exists; choose another folder")
    generators = read_generators(source)
    network = describe(next(iter(generators.values())), source)
    settings = Settings(data="", run_dir=str(run_dir), steps=1, **network)
    for state in generators.values():
        load_into(settings.make_generator(), state, source)
    files = {f"generator_{name}.safetensors": save(state) for name, state in generators.items()}
    config = {"format": checkpoints.FORMAT, "step": 0, "settings": asdict(settings)}
    files[checkpoints.CONFIG] = json.dumps(config, indent=1).encode()
    return checkpoints.write(run_dir, 0, files, True, lambda: None)
