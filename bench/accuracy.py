"""Worst rounding errors over photographs: float32 against the same kernels in float64.

``python bench/accuracy.py`` compares photographs and drawings that scikit-image ships with eight
distortions of themselves, for both paddings, and prints the largest errors. The float64 kernels are
held to 1e-12 of an independent oracle by the tests.
"""

import torch
from skimage import data, util
from torch import Tensor

import ssimfast

PHOTOGRAPHS = (
    *("astronaut", "camera", "cat", "coffee", "coins", "hubble_deep_field"),
    *("moon", "page", "rocket", "text", "horse", "checkerboard"),
)


def photograph(name: str) -> Tensor:
    image = util.img_as_float(getattr(data, name)())
    image = image.reshape(*image.shape[:2], -1)[..., :3]
    return torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None].contiguous()


def distortions(x: Tensor) -> dict[str, Tensor]:
    return {
        "noise": (x + 0.05 * torch.randn_like(x)).clamp(0, 1),
        "blur": torch.nn.functional.avg_pool2d(x, 5, 1, 2),
        "inverse": 1 - x,
        "brighter": (x + 0.3).clamp(0, 1),
        "mirrored": x.flip(-1),
        "unrelated": torch.rand_like(x),
        "posterised": (x * 7).round() / 7,
        "black": torch.zeros_like(x),
    }


def evaluate(x: Tensor, y: Tensor, padding: str) -> dict[str, Tensor]:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    mean = ssimfast.ssim(x, y, padding=padding)
    by_x, by_y = torch.autograd.grad(mean, (x, y))
    with torch.no_grad():
        ssim_map = ssimfast.ssim(x, y, padding=padding, reduction="none")
    return {"map": ssim_map, "mean": mean.detach(), "gradient x": by_x, "gradient y": by_y}


def main() -> None:
    torch.manual_seed(0)
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for name in PHOTOGRAPHS:
        x = photograph(name)
        for distortion, y in distortions(x).items():
            for padding in ("valid", "same"):
                single = evaluate(x, y, padding)
                double = evaluate(x.double(), y.double(), padding)
                for what, value in double.items():
                    error = (single[what].double() - value).abs().max().item()
                    if what.startswith("gradient"):
                        error /= max(value.abs().max().item(), 1e-300)
                    key = ("against black" if distortion == "black" else "otherwise", what)
                    worst[key] = max(worst.get(key, (0.0, "")), (error, f"{name}, {distortion}"))
    print("largest errors; of gradients, relative to the largest gradient of the image")
    for (kind, what), (error, where) in sorted(worst.items()):
        print(f"{kind:13} {what:11} {error:.1e}  ({where})")


if __name__ == "__main__":
    main()
