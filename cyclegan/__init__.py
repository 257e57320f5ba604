"""CycleGAN with structural similarity as its cycle-consistency loss.

`python -m cyclegan --help` is the command line; Settings and Trainer are the same from Python.
"""

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
