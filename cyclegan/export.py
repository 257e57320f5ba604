"""A trained generator as ONNX, checked against PyTorch with onnxruntime."""

import warnings
from pathlib import Path

import torch
from torch import nn

from cyclegan.errors import UserError
from cyclegan.files import replacing, writing

LARGEST_ERROR = 1e-3  # of a pixel in [-1, 1]; 8 bits are 0.008


def export_onnx(
    generator: nn.Module, size: tuple[int, int], channels: int, path: Path, opset: int = 18
) -> float:
    """Write `path`: input "image" and output "translation" (N, channels, H, W) of float32
    in [-1, 1], with any N, and H and W multiples of what the generator takes.

    Args:
        size: height and width of the images of training; the file is checked at this size and
            another.
        opset: of the ONNX file.

    Returns:
        The largest difference between onnxruntime and PyTorch, at two sizes.

    Raises:
        UserError: a package is missing, or the difference is above 1e-3; nothing is written then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install 'ssimfast[onnx]'") from None
    if path.suffix.lower() != ".onnx":
        raise UserError(f"OUT must be an .onnx file; got {path}")
    generator = generator.cpu().eval()
    sides = {2: "height", 3: "width"}
    step = generator.multiple
    # Sizes of 1 are no variables to torch.export: it traces two steps or more.
    shapes = {
        axis: step * torch.export.Dim(f"{name}_in_{step}", min=2) for axis, name in sides.items()
    }
    traced = [max(side, 2 * step) for side in size]
    with writing(path), replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            generator,
            (torch.zeros(2, channels, *traced),),
            input_names=["image"],
            output_names=["translation"],
            dynamic_shapes=({0: torch.export.Dim("batch"), **shapes},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        error = 0.0
        for shape in ((1, channels, *size), (2, channels, size[0], size[1] + step)):
            image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
            [got] = session.run(None, {"image": image.numpy()})
            with torch.no_grad():
                error = max(error, (torch.from_numpy(got) - generator(image)).abs().max().item())
        if not error <= LARGEST_ERROR:
            raise UserError(f"onnxruntime and PyTorch differ by {error:.2g}; nothing was written")
    return error
