"""Training on a data set of the user's own, from Python."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cyclegan.data import Order


class OwnPairs(Dataset):
    """The pairs of a data set in a new order in every epoch, which is as long as the data set.

    Sample i depends on (seed, i) alone, so that runs go on exactly, if that holds for what the data
    set itself draws: from torch's global generator, which is seeded for each sample, it may.

    Args:
        pairs: map-style data set of (real_a, real_b), float32 (C, H, W) in [-1, 1].
        seed: of the order, and of what the data set draws from torch.
    """

    def __init__(self, pairs: Dataset, seed: int):
        self.pairs, self.seed = pairs, seed
        self._order = Order(len(pairs), seed)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng((self.seed, 1, index)).integers(2**63)))
            return self.pairs[self._order[index]]

    def describe(self) -> str:
        """A line for the user."""
        return "training images: of a data set of the caller's"

    def digest(self) -> str:
        """Tells apart data sets of other lengths."""
        return f"a data set of {len(self.pairs)} pairs"
