"""CycleGAN with structural similarity as its cycle-consistency loss.

`python -m cyclegan --help` is the command line; Settings and Trainer are the same from Python.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclegan.image_pool import ImagePool
    from cyclegan.networks import PatchDiscriminator, ResnetGenerator, UnetGenerator
    from cyclegan.settings import Settings
    from cyclegan.trainer import Trainer

__all__ = [
    "ImagePool",
    "PatchDiscriminator",
    "ResnetGenerator",
    "Settings",
    "Trainer",
    "UnetGenerator",
]
_MODULES = {
    "ImagePool": "image_pool",
    "PatchDiscriminator": "networks",
    "ResnetGenerator": "networks",
    "Settings": "settings",
    "Trainer": "trainer",
    "UnetGenerator": "networks",
}


def __getattr__(name: str) -> object:
    """Imports a public name on first use: `python -m cyclegan` runs this file before __main__,
    which sets an environment variable that torch reads when it is loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"cyclegan.{_MODULES[name]}"), name)
