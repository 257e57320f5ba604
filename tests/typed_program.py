"""A program of a user, for test_typing.py: mypy must find the types that it asserts, and refuse the
lines that say so, and nothing else. Never run."""

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import assert_type

import ssimfast
from ssimfast.compat import fused_ssim, pytorch_msssim
from ssimfast.metrics import MultiScaleStructuralSimilarity, StructuralSimilarity
from ssimfast.typing import Reduction, SSIMArguments

Terms = dict[str, Tensor]
x = y = torch.rand(1, 3, 192, 192)


def functions(reduction: Reduction, with_terms: bool, arguments: SSIMArguments) -> None:
    assert_type(ssimfast.ssim(x, y, reduction=reduction, value_range=(-1, 1), preset="tf"), Tensor)
    assert_type(ssimfast.ssim(x, y, **arguments), Tensor)
    assert_type(ssimfast.ssim_components(x, y), ssimfast.SSIMComponents)
    assert_type(ssimfast.ssim_components(x, y).luminance, Tensor)
    assert_type(ssimfast.ms_ssim(x, y, weights=[0.5, 0.5], odd="pad"), Tensor)
    assert_type(ssimfast.ms_ssim(x, y, weights="auto", negative="abs"), Tensor)
    assert_type(ssimfast.similarity_loss(x, y, l1=0.2), Tensor)
    assert_type(ssimfast.similarity_loss(x, y, return_terms=True), tuple[Tensor, Terms])
    either = ssimfast.similarity_loss(x, y, return_terms=with_terms)
    assert_type(either, Tensor | tuple[Tensor, Terms])
    assert_type(ssimfast.ssim(x, y, return_map=True, mask=x > 0), tuple[Tensor, Tensor])
    both = ssimfast.similarity_loss(x, y, return_terms=True, return_map="contrast_structure")
    assert_type(both, tuple[Tensor, Terms, Tensor])
    assert_type(ssimfast.backends(), dict[str, str])
    ssimfast.warmup([(1, 3, 64, 64)], losses=[ssimfast.SSIMLoss(), ssimfast.ssim], device="cpu")


def modules(arguments: SSIMArguments) -> None:
    assert_type(ssimfast.SSIM(window_size=7, preset="skimage")(x, y, x > 0), Tensor)
    assert_type(ssimfast.SSIMLoss(**arguments)(x, y), Tensor)
    assert_type(ssimfast.SSIM(return_map=True)(x, y), tuple[Tensor, Tensor])
    assert_type(ssimfast.SimilarityLoss(return_map=True)(x, y, x > 0), tuple[Tensor, Tensor])
    assert_type(ssimfast.MSSSIM(weights="auto")(x, y), Tensor)
    assert_type(ssimfast.MSSSIMLoss(channels="joint")(x, y), Tensor)
    assert_type(ssimfast.SimilarityLoss(l1=0.5)(x, y), Tensor)
    assert_type(ssimfast.SimilarityLoss(return_terms=True)(x, y), tuple[Tensor, Terms])
    assert_type(ssimfast.MixLoss(alpha=0.8)(x, y), Tensor)
    assert_type(ssimfast.MixLoss(return_terms=True)(x, y), tuple[Tensor, Terms])
    loss: ssimfast.SimilarityLoss = ssimfast.MixLoss()
    function: Callable[[Tensor, Tensor], Tensor] = loss
    assert_type(function(x, y), Tensor)


def other_libraries() -> None:
    assert_type(fused_ssim.fused_ssim(x, y, "valid", train=False), Tensor)
    assert_type(pytorch_msssim.ssim(x, y, 1.0, K=(0.01, 0.03)), Tensor)
    assert_type(pytorch_msssim.SSIM(1.0)(x, y), Tensor)
    assert_type(pytorch_msssim.MS_SSIM(1.0)(x, y), Tensor)
    metrics = [StructuralSimilarity(data_range=1.0), MultiScaleStructuralSimilarity(sigma=1.2)]
    for metric in metrics:
        metric.update(x, y)
        assert_type(metric.compute(), Tensor)


def mistakes(text: str) -> None:
    ssimfast.ssim(x, y, reduction="avg")  # refused: call-overload
    ssimfast.ssim(x, y, padding=text)  # refused: call-overload
    ssimfast.ssim(x, y, window_sise=7)  # refused: call-overload
    ssimfast.ssim(x, 1.0)  # refused: call-overload
    ssimfast.ssim(x, y, value_range=255)  # refused: call-overload
    ssimfast.ssim(x, y, return_map=True).backward()  # refused: attr-defined
    ssimfast.ms_ssim(x, y, weights="automatic")  # refused: arg-type
    ssimfast.similarity_loss(x, y, padding="reflect")  # refused: call-overload
    ssimfast.similarity_loss(x, y, return_terms=True).backward()  # refused: attr-defined
    ssimfast.SSIMLoss(window_size="7")  # refused: arg-type
    ssimfast.SSIMLoss(weights="auto")  # refused: call-overload
    ssimfast.MSSSIM()(x, y, 0.5)  # refused: arg-type
    ssimfast.SimilarityLoss(preset="scikit")  # refused: call-overload
    ssimfast.MixLoss(ssim=0.5)  # refused: call-overload
    ssimfast.SimilarityLoss(return_terms=True)(x, y).backward()  # refused: attr-defined
    fused_ssim.fused_ssim(x, y, "reflect")  # refused: call-overload
