"""Counts the bytes that the kernels of a training step read and write, by operation, at the paper's
size: ``python bench/step_bytes.py [--channels-last]``. On a CPU; a GPU runs the same operations.

A pass over a tensor counts once for each time that the kernels of an operation go over it: twice
for the input of an instance norm, which its statistics need first, and for what a convolution's
backward needs for both gradients. Caches are left out. The last lines count instance norms and the
activations behind them as one operation, which they are on a GPU (cyclegan/instance_norm.py).
"""

import argparse
import tempfile
from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cyclegan.model import CycleGan
from cyclegan.settings import Settings
from cyclegan.trainer import make_accelerator

# Arguments that an operation goes over once more.
AGAIN = {
    "aten::native_batch_norm": (0,),
    "aten::native_batch_norm_backward": (0, 1),
    "aten::convolution_backward": (0,),
}
# Passes of a fused operation over the activation: forward reads the input twice and writes once;
# backward reads gradient and input twice and writes once.
FUSED_FORWARD, FUSED_BACKWARD = 3, 5


def size(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class Count(TorchDispatchMode):
    """Bytes by operation, and of the activations that norms see."""

    def __init__(self):
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.operations = 0
        self.normed = {"forward": 0, "backward": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        name = func._schema.name
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(results) if isinstance(t, Tensor)]
        pointers = {t.data_ptr() for t in given}
        is_view = all(t.data_ptr() in pointers for t in made) and not func._schema.is_mutable
        if not is_view:
            self.operations += 1
            self.bytes[name] += size(given) + size(made)
            self.bytes[name] += size(args[i] for i in AGAIN.get(name, ()))
        if name == "aten::native_batch_norm":
            self.normed["forward"] += size(args[:1])
        elif name == "aten::native_batch_norm_backward":
            self.normed["backward"] += size(args[:1])
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--crop", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data="",
            run_dir=folder,
            steps=1,
            device="cpu",
            generator="resnet_9",
            channels_last=options.channels_last,
        )
        model = CycleGan(settings, make_accelerator(settings))
        shape = (2, 1, 3, options.crop, options.crop)
        reals = (torch.rand(shape) * 2 - 1).contiguous(memory_format=torch.contiguous_format)
        reals = [real.contiguous(memory_format=model.memory_format) for real in reals]
        with Count() as count:
            model.train_step(*reals, 2e-4, 0)
    total = sum(count.bytes.values())
    for name, amount in count.bytes.most_common(14):
        print(f"{name:40} {amount / 1e6:9.0f} MB {100 * amount / total:5.1f} %")
    print(f"{'all':40} {total / 1e6:9.0f} MB, {count.operations} operations")
    norms = FUSED_FORWARD * count.normed["forward"] + FUSED_BACKWARD * count.normed["backward"]
    parts = ("native_batch_norm", "relu", "leaky_relu", "threshold", "native_batch_norm_backward")
    eager = sum(
        amount
        for name, amount in count.bytes.items()
        if name.removeprefix("aten::").removesuffix("_backward") in parts
    )
    print(f"norms and activations: {eager / 1e6:.0f} MB, fused {norms / 1e6:.0f} MB")
    print(f"the step, fused: {(total - eager + norms) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
