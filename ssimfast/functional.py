"""The public functions: signatures, argument meanings and sources."""

from collections.abc import Sequence
from typing import Any, Literal, overload

from torch import Tensor
from typing_extensions import Unpack

from ssimfast.measures import (
    WANG_WEIGHTS,
    ComponentsMeasure,
    MixtureMeasure,
    MSSSIMMeasure,
    SSIMComponents,
    SSIMMeasure,
)
from ssimfast.presets import with_presets
from ssimfast.typing import (
    Channels,
    LossPadding,
    LossReduction,
    Negative,
    Odd,
    Padding,
    Preset,
    Reduction,
    ReturnMap,
    Shown,
    SimilarityLossArguments,
    SSIMArguments,
    Weights,
    Window,
)


@overload
def ssim(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_map: Literal[False] = False,
    **arguments: Unpack[SSIMArguments],
) -> Tensor: ...


@overload
def ssim(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_map: Shown,
    **arguments: Unpack[SSIMArguments],
) -> tuple[Tensor, Tensor]: ...


@overload
def ssim(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_map: ReturnMap,
    **arguments: Unpack[SSIMArguments],
) -> Any: ...


@with_presets
def ssim(
    x: Tensor,
    y: Tensor,
    *,
    value_range: tuple[float, float] | None = None,
    data_range: float | Tensor | None = None,
    window: Window = "gaussian",
    window_size: int | Sequence[int] = 11,
    sigma: float | Sequence[float] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
    return_map: ReturnMap = False,
    preset: Preset | None = None,
) -> Any:
    r"""Structural similarity (SSIM) of two batches of images or volumes, with a sliding window.

    Equation 13 of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error
    visibility to structural similarity", IEEE TIP 13(4), 2004, with population variances. Channels
    are computed separately:

    .. math:: \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}
                   {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
              \quad C_i = (k_i L)^2

    where :math:`L` is the width of the value range. Values lie in [-1, 1]; equal images give 1.
    The function is differentiable with respect to ``x`` and ``y``. Second derivatives, forward mode
    and the transforms of ``torch.func`` work, too, but as PyTorch operations, which are slower.

    For means and sums, the forward pass also computes the gradient. For maps, the backward pass
    computes the statistics again. On GPUs, volumes take memory for up to ten float32 tensors of
    their size; the CPU kernels stream them, in float64.

    Args:
        x: images (N, C, H, W) or volumes (N, C, D, H, W); float16, bfloat16, float32, float64 or
            uint8, any strides.
        y: images of the same shape and device. Two floating dtypes are promoted as PyTorch promotes
            them; each gradient has the dtype of its image. One of the images may be uint8, as
            photographs are: [0, 255] is then the value range of the other, and the kernels read the
            bytes without a floating copy. uint8 images have no gradient.
        value_range: (low, high), the values of black and white, for example ``(-1, 1)`` for the
            output of tanh. The images are mapped to [0, 1] inside the kernel, because an offset
            common to both images changes SSIM. Single values outside the range are allowed. The
            range is not checked; the range of other images gives meaningless values.
        data_range: short for ``value_range=(0, data_range)``. A tensor of shape () or (N,) has one
            range for all images or one for each; it is not differentiated, and the images are
            copied. If neither argument is given, the range is (0, 255) for two uint8 images and
            (0, 1) for all others.
        window: "gaussian" or "uniform".
        window_size: side of the window in pixels, odd, 1 to 33; or one number for each spatial
            axis, such as ``(5, 11, 11)`` for thin volumes and ``(1, 11)`` for signals (N, C, 1, L).
        sigma: standard deviation of the Gaussian in pixels, > 0, or one for each spatial axis;
            ignored for "uniform".
        k1: constant of the luminance term, >= 0. With 0, black images give NaN.
        k2: constant of the contrast term, >= 0. With 0, flat images give NaN.
        sample_covariance: multiplies variances and covariance by n / (n - 1), where n is the number
            of pixels in a window. This is the default of scikit-image.
        padding: "valid" uses only windows that lie inside the image, as Wang et al. do. "same" pads
            with black (``low``), "reflect" pads a copy of the images by reflection; both have one
            window for every pixel; "reflect" needs one window for all axes.
        reduction: "mean" or "sum" over everything, "batch" for the mean of each image, "none" for
            the map.
        mask: weights of the pixels, broadcastable to the shape of ``x``: bool, uint8 (0 to 255 for
            0 to 1) or floating point in [0, 1]. The values are checked on the CPU only, because a
            check on a GPU would wait. The mask is not differentiated. Means and variances are
            weighted by the mask inside each window (normalised convolution): pixels with weight 0
            have no influence, even if they are NaN, and get no gradient. "same" pads with weight 0.
            Reductions weight each window by the mask at its centre; if all these weights are 0, the
            mean is 1. In the map, a window with only weights of 0 has SSIM 1. "reflect" does not
            support masks.
        return_map: True or "ssim" to return the SSIM map as well, "contrast_structure" to return
            that of contrast-structure, from the same pass. The map is not differentiated and not
            weighted by the mask.
        preset: takes the conventions of another library for every argument that is not given:
            "wang2004", "pytorch-msssim", "torchmetrics", "skimage", "tf", "fused-ssim" or "3dgs".

    Returns:
        float64 for float64 images, else float32, in which half types are computed. Shape () for
        "mean" and "sum", (N,) for "batch" and (N, C, H', W') for "none", where H' and W' are
        ``H - window_size + 1`` and ``W - window_size + 1`` for "valid", else H and W. The map of
        volumes is (N, C, D', H', W'), likewise. The mean of an empty batch is 1. With
        ``return_map``, the pair (SSIM, map).

    Raises:
        TypeError: an argument has the wrong type, or the dtype of the images is not supported.
        ValueError: shapes or devices differ, or a value is out of range.
    """
    return SSIMMeasure(
        value_range=value_range,
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
        reduction=reduction,
        return_map=return_map,
    )(x, y, mask)


@with_presets
def ssim_components(
    x: Tensor,
    y: Tensor,
    *,
    value_range: tuple[float, float] | None = None,
    data_range: float | Tensor | None = None,
    window: Window = "gaussian",
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    preset: Preset | None = None,
) -> SSIMComponents:
    """Maps of the two factors of SSIM: luminance and contrast-structure (cs).

    Luminance is equation 6 of Wang et al. 2004 and depends on the means. Contrast-structure is the
    product of equations 9 and 10 and depends on the variances and the covariance. Both maps are
    differentiable with respect to ``x`` and ``y``, as those of :func:`ssim` are.

    Args:
        x: images (N, C, H, W); all arguments are as in :func:`ssim`, but there is one window for
            all axes.
        y: images of the same shape and device.

    Returns:
        (luminance, contrast_structure), each with the shape and dtype of the SSIM map, which is
        their product. Values lie in [-1, 1].

    Raises:
        TypeError, ValueError: as in :func:`ssim`.
    """
    return ComponentsMeasure(
        value_range=value_range,
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
    )(x, y)


@with_presets
def ms_ssim(
    x: Tensor,
    y: Tensor,
    *,
    weights: Weights = WANG_WEIGHTS,
    value_range: tuple[float, float] | None = None,
    data_range: float | Tensor | None = None,
    window: Window = "gaussian",
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    odd: Odd = "floor",
    negative: Negative = "relu",
    channels: Channels = "separate",
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
    preset: Preset | None = None,
) -> Tensor:
    r"""Multi-scale structural similarity (MS-SSIM) of two batches of images.

    Equation 7 of Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality
    assessment", Asilomar 2003:

    .. math:: S_M^{w_M} \prod_{j<M} cs_j^{w_j}

    where :math:`cs_j` is the mean of contrast-structure at pyramid level j and :math:`S_M` is the
    mean of SSIM at the coarsest level M. Each level is the 2 x 2 mean pooling of the one before.

    Values lie in [0, 1]; equal images give 1. The function is differentiable with respect to ``x``
    and ``y``, as :func:`ssim` is.

    A window must fit into the coarsest level. With the default arguments, images need at least
    176 x 176 pixels. Smaller images need fewer weights or a smaller window.

    Args:
        x: images (N, C, H, W); float16, bfloat16, float32, float64 or uint8, any strides.
        y: images of the same shape and device; dtypes as in :func:`ssim`.
        weights: the exponents :math:`w_j`, one for each pyramid level, finest level first, each
            >= 0; 1 to 16 numbers. "auto" takes as many of Wang's five weights as the image size
            allows and rescales them to the sum of all five.
        value_range, data_range, window, window_size, sigma, k1, k2, sample_covariance: as in
            :func:`ssim`; the window has the same size in pixels at every level and along both axes.
        padding: "valid" or "same" at every level. "reflect" pads the coarsest level only and uses
            the windows inside the image at all others, as torchmetrics does.
        odd: how an odd number of rows or columns is pooled. "floor" drops the last one, as Wang et
            al. do. "pad" adds a black one before the first, as pytorch-msssim does. "replicate"
            counts the last one twice, as TensorFlow does.
        negative: how a negative mean, which has no real power, is treated. "relu" replaces the mean
            by 0: value and gradient are then 0, so training learns nothing from an image with an
            anticorrelated level. "abs" takes the magnitude. "raise" raises a ValueError.
        channels: "separate" computes one product for each channel and averages the products.
            "joint" averages the channels at each level first, as torchmetrics does.
        reduction: "mean" or "sum" over images and channels, "batch" for the mean of each image,
            "none" for every product.
        mask: as in :func:`ssim`. Pooled pixels are weighted means; the mask is pooled, too. A level
            takes a pass of its own, and pooling is done by PyTorch operations.
        preset: as in :func:`ssim`. The preset of a library without MS-SSIM leaves ``weights``,
            ``odd``, ``negative`` and ``channels`` at their defaults.

    Value and gradient are finite for finite images and k1, k2 > 0. The slope of a power with an
    exponent below 1 grows without bound towards 0; for means below 1e-4, the slope at 1e-4 is used.

    Returns:
        float64 for float64 images, else float32. Shape () for "mean" and "sum", (N,) for "batch".
        For "none", (N, C), or (N,) with joint channels. The mean of an empty batch is 1.

    Raises:
        TypeError: an argument has the wrong type, or the dtype of the images is not supported.
        ValueError: the images are too small for the number of levels; shapes or devices differ; or
            a value is out of range.
    """
    value: Tensor = MSSSIMMeasure(
        weights=weights,
        value_range=value_range,
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
        odd=odd,
        negative=negative,
        channels=channels,
        reduction=reduction,
    )(x, y, mask)
    return value


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_terms: Literal[False] = False,
    return_map: Literal[False] = False,
    **arguments: Unpack[SimilarityLossArguments],
) -> Tensor: ...


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_terms: Literal[True],
    return_map: Literal[False] = False,
    **arguments: Unpack[SimilarityLossArguments],
) -> tuple[Tensor, dict[str, Tensor]]: ...


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_terms: bool,
    return_map: Literal[False] = False,
    **arguments: Unpack[SimilarityLossArguments],
) -> Tensor | tuple[Tensor, dict[str, Tensor]]: ...


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_terms: Literal[False] = False,
    return_map: Shown,
    **arguments: Unpack[SimilarityLossArguments],
) -> tuple[Tensor, Tensor]: ...


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_terms: Literal[True],
    return_map: Shown,
    **arguments: Unpack[SimilarityLossArguments],
) -> tuple[Tensor, dict[str, Tensor], Tensor]: ...


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    mask: Tensor | None = None,
    return_terms: bool = False,
    return_map: ReturnMap = False,
    **arguments: Unpack[SimilarityLossArguments],
) -> Any: ...


@with_presets
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    ssim: float = 1.0,
    ms_ssim: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    gaussian_l1: float = 0.0,
    weights: Weights = WANG_WEIGHTS,
    value_range: tuple[float, float] | None = None,
    data_range: float | Tensor | None = None,
    window: Window = "gaussian",
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: LossPadding = "valid",
    odd: Odd = "floor",
    negative: Negative = "relu",
    channels: Channels = "separate",
    reduction: LossReduction = "mean",
    mask: Tensor | None = None,
    return_terms: bool = False,
    return_map: ReturnMap = False,
    preset: Preset | None = None,
) -> Any:
    r"""Weighted sum of similarity losses, computed in the same pass over the images.

    .. math:: w_{ssim} (1 - \mathrm{SSIM}) + w_{ms} (1 - \text{MS-SSIM}) + w_1 \overline{|x - y|}
              + w_2 \overline{(x - y)^2} + w_g \overline{G * |x - y|}

    The overline is the mean over all pixels. All terms are computed in the unit range [0, 1]: with
    ``value_range=(-1, 1)``, the L1 term is half of ``nn.L1Loss``. docs/losses.md lists the factors
    of named losses. The loss is differentiable with respect to ``x`` and ``y``, as :func:`ssim`
    is.

    Args:
        x: images (N, C, H, W); float16, bfloat16, float32, float64 or uint8, any strides.
        y: images of the same shape and device; dtypes as in :func:`ssim`.
        ssim: factor of 1 - SSIM, >= 0. At least one of the five factors must be greater than 0.
        ms_ssim: factor of 1 - MS-SSIM, >= 0.
        l1: factor of the mean absolute difference, >= 0.
        l2: factor of the mean squared difference, >= 0.
        gaussian_l1: factor of the mean of the blurred absolute difference, >= 0 (Zhao et al.,
            "Loss functions for image restoration with neural networks", IEEE TCI 3(1), 2017,
            equation 14). The blur G is the window. With MS-SSIM, G is the window of the coarsest
            level in pixels of the finest: sigma and radius are multiplied by
            ``2 ** (len(weights) - 1)``. The difference is 0 outside the image, so the term is a
            mean absolute difference in which pixels near the border count less.
        weights, odd, negative, channels: as in :func:`ms_ssim`.
        value_range, data_range, window, window_size, sigma, k1, k2, sample_covariance: as in
            :func:`ssim`.
        padding: "valid" or "same".
        reduction: "mean", or "batch" for the loss of each image.
        mask: as in :func:`ssim`. L1 and L2 become weighted means, too; ``gaussian_l1`` does not
            support masks.
        return_terms: True to return the terms as well, for logging.
        return_map: as in :func:`ssim`. With MS-SSIM, or without SSIM, the map takes a pass of its
            own.
        preset: as in :func:`ssim`; no preset sets a factor.

    Returns:
        The loss: float64 for float64 images, else float32; shape () for "mean", (N,) for "batch".
        With ``return_terms``, the pair (loss, terms). ``terms`` is a dict that maps the name of
        each nonzero factor to its term, not multiplied by the factor. The terms have the shape of
        the loss and are not differentiable; those of "ssim" and "ms_ssim" are the similarities, not
        1 minus them. The loss of an empty batch is 0. With ``return_map``, the map comes last:
        (loss, map) or (loss, terms, map).

    Raises:
        TypeError: an argument has the wrong type, or the dtype of the images is not supported.
        ValueError: the images are too small for the window or the number of levels; shapes or
            devices differ; or a value is out of range.
    """
    return MixtureMeasure(
        ssim=ssim,
        ms_ssim=ms_ssim,
        l1=l1,
        l2=l2,
        gaussian_l1=gaussian_l1,
        weights=weights,
        value_range=value_range,
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
        odd=odd,
        negative=negative,
        channels=channels,
        reduction=reduction,
        return_terms=return_terms,
        return_map=return_map,
    )(x, y, mask)
