"""A history of generated images for the discriminators (Shrivastava et al. 2017, section 2.3)."""

import random

import torch
from torch import Tensor


class ImagePool:
    """Shows a discriminator older fakes too, so that it does not forget what it has seen.

    Args:
        size: images kept (Zhu et al. 2017: 50); 0 passes every batch through.
        seed: of the pool's own draws, which disturb no other random stream.
    """

    def __init__(self, size: int = 50, seed: int = 0):
        self.size = size
        self.images: list[Tensor] = []
        self.random = random.Random(seed)

    def query(self, batch: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), detached.

        While the pool fills, each image is kept and returned. After that each is returned as it
        is, or, with probability 1/2, trades places with a random image of the pool.
        """
        return torch.stack([self._exchange(image) for image in batch.detach()])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())  # a view would keep its whole batch alive
            return image
        if self.size == 0 or self.random.random() < 0.5:
            return image
        slot = self.random.randrange(self.size)
        old, self.images[slot] = self.images[slot], image.clone()
        return old

    def state_dict(self) -> dict:
        """Images and random state, in plain types and tensors."""
        return {"images": [image.cpu() for image in self.images], "random": self.random.getstate()}

    def load_state_dict(self, state: dict, device: torch.device | str = "cpu") -> None:
        self.images = [image.to(device) for image in state["images"]]
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
