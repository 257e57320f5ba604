"""The public functions: their signatures and what they mean."""

from typing import Literal, overload

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
    SimilarityLossArguments,
    Weights,
    Window,
)


@with_presets
def ssim(
    x: Tensor,
    y: Tensor,
    *,
    value_range: tuple[float, float] | None = None,
    data_range: float | None = None,
    window: Window = "gaussian",
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
    preset: Preset | None = None,
) -> Tensor:
    r"""Structural similarity of two batches of images or volumes, with a sliding window.

    SSIM of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility
    to structural similarity", IEEE TIP 13(4), 2004, equation 13, with population variances, for
    each channel by itself:

    .. math:: \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}
                   {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
              \quad C_i = (k_i L)^2

    where :math:`L` is the width of the value range. Values lie in [-1, 1]; 1 means equal.
    Differentiable once, by ``x`` and by ``y``.

    Images without a mask are computed in one pass over them, and so are the means and sums of
    volumes, on the CPU in float64; maps and masks are computed again in backward. With the Triton
    backend, volumes and masks take memory for up to thirty float64 tensors of their size.

    Args:
        x: images (N, C, H, W) or volumes (N, C, D, H, W); float16, bfloat16, float32, float64 or
            uint8, any strides.
        y: images of the same shape, dtype and device.
        value_range: (low, high), the values that mean black and white: ``(-1, 1)`` for the
            output of tanh. The images are mapped to [0, 1] inside the kernel, which matters
            because SSIM is not invariant under a common offset. Values outside are allowed. The
            range is not checked: with the range of other images, values mean nothing.
        data_range: short for ``value_range=(0, data_range)``. Without either, 1, and 255 for uint8.
        window: "gaussian" or "uniform".
        window_size: side of the window in pixels, odd, 1 to 33.
        sigma: standard deviation of the Gaussian in pixels, > 0; not used by "uniform".
        k1: constant of the luminance term, >= 0. With 0, black images give NaN.
        k2: constant of the contrast term, >= 0. With 0, flat images give NaN.
        sample_covariance: multiplies variances and covariance by n / (n - 1), with n the number of
            pixels of a window, as scikit-image does unless told otherwise.
        padding: "valid" takes only windows that lie inside the image, as Wang et al. do;
            "same" pads with black (``low``) and gives a statistic for every pixel; "reflect" pads
            a copy of the images by reflection and gives one for every pixel, too.
        reduction: "mean" and "sum" over everything, "batch" the mean of each image, "none" the
            map.
        mask: weights in [0, 1] of the pixels (not checked: a GPU would be waited for), bool or
            floating point, broadcastable to the shape of ``x``; not differentiated. Every mean and
            variance is then over what the mask lets through of a window (normalised convolution),
            so that pixels with weight 0 have no influence, not even NaN, and get no gradient.
            "same" pads with weight 0. Reductions weight each position by the mask at its centre;
            where all weights are 0 the mean is 1. A window that sees nothing of the mask has SSIM
            1 in the map. Not with "reflect".
        preset: the conventions of another library, for every argument that is not given:
            "wang2004", "pytorch-msssim", "torchmetrics", "skimage", "tf", "fused-ssim" or "3dgs".

    Returns:
        float64 for float64 images, else float32 (half types lose nothing in the sums). Shape ()
        for "mean" and "sum", (N,) for "batch", (N, C, H', W') for "none", where H' and W' are
        ``H - window_size + 1`` and ``W - window_size + 1`` for "valid", else H and W; volumes
        likewise. Two empty batches do not differ: their means are 1.

    Raises:
        TypeError: an argument has the wrong type, or the images have another dtype.
        ValueError: shapes, devices or dtypes differ, or a value is not admissible.
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
    )(x, y, mask)


@with_presets
def ssim_components(
    x: Tensor,
    y: Tensor,
    *,
    value_range: tuple[float, float] | None = None,
    data_range: float | None = None,
    window: Window = "gaussian",
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    preset: Preset | None = None,
) -> SSIMComponents:
    """The two factors of SSIM, as maps: luminance and contrast-structure (cs).

    Wang et al. 2004, equations 6 and 9 to 10: the means' part and the (co)variances' part. Both are
    differentiable once, by ``x`` and by ``y``.

    Args:
        x: images (N, C, H, W); the arguments are those of :func:`ssim`.
        y: images of the same shape, dtype and device.

    Returns:
        (luminance, contrast_structure), each of the shape and dtype of the map of SSIM, which is
        their product. Values lie in [-1, 1].

    Raises:
        TypeError, ValueError: as :func:`ssim`.
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
    data_range: float | None = None,
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
    preset: Preset | None = None,
) -> Tensor:
    r"""Multi-scale structural similarity of two batches of images.

    MS-SSIM of Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality
    assessment", Asilomar 2003, equation 7: with :math:`cs_j` the mean of contrast-structure at
    scale j, each scale the 2 x 2 mean pooling of the one before, and :math:`S_M` the mean of SSIM
    at the coarsest,

    .. math:: S_M^{w_M} \prod_{j<M} cs_j^{w_j}

    Values lie in [0, 1]; 1 means equal. Differentiable once, by ``x`` and by ``y``.

    The coarsest scale must hold a window, and each finer one has twice its side: with window 11 and
    the five weights of Wang et al., images of 176 x 176 pixels. Smaller images take fewer weights
    or a smaller window.

    Args:
        x: images (N, C, H, W); float16, bfloat16, float32, float64 or uint8, any strides.
        y: images of the same shape, dtype and device.
        weights: the exponents, finest scale first, each >= 0; their number is that of the scales.
            "auto" takes as many of Wang's five as fit the images, and multiplies them such that
            their sum is that of all five.
        value_range, data_range, window, window_size, sigma, k1, k2, sample_covariance: as in
            :func:`ssim`; the window is the same at every scale.
        padding: "valid" or "same" at every scale; "reflect" pads the coarsest only and takes the
            windows inside of the others, which is what torchmetrics does.
        odd: how an odd number of rows or columns is pooled. "floor" drops the last one, as Wang et
            al. do; "pad" puts a black one before the first, as pytorch-msssim does; "replicate"
            counts the last one twice, as TensorFlow does.
        negative: what becomes of a negative mean, which has no real power. "relu" takes 0: the
            value is then 0, and so is the gradient, so nothing is learned from an image of which
            a scale is anticorrelated; "abs" takes its magnitude; "raise" raises a ValueError.
        channels: "separate" has a product for each channel and averages these; "joint" averages
            the channels at each scale first, as torchmetrics does.
        reduction: "mean" and "sum" over images and channels, "batch" the mean of each image,
            "none" every product.
        preset: as in :func:`ssim`. Libraries without MS-SSIM set the window only.

    Value and gradient are finite for finite images and k1, k2 > 0: where a mean is below 1e-4, the
    slope of its power is taken as if it were 1e-4 (the slope grows without bound towards 0).

    Returns:
        float64 for float64 images, else float32. Shape () for "mean" and "sum", (N,) for "batch",
        for "none" (N, C), with joint channels (N,). The mean of an empty batch is 1.

    Raises:
        TypeError: an argument has the wrong type, or the images have another dtype.
        ValueError: the images are too small for the scales, shapes, devices or dtypes differ, or a
            value is not admissible.
    """
    return MSSSIMMeasure(
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
    )(x, y)


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    return_terms: Literal[False] = False,
    **arguments: Unpack[SimilarityLossArguments],
) -> Tensor: ...


@overload
def similarity_loss(
    x: Tensor,
    y: Tensor,
    *,
    return_terms: Literal[True],
    **arguments: Unpack[SimilarityLossArguments],
) -> tuple[Tensor, dict[str, Tensor]]: ...


@overload
def similarity_loss(
    x: Tensor, y: Tensor, *, return_terms: bool, **arguments: Unpack[SimilarityLossArguments]
) -> Tensor | tuple[Tensor, dict[str, Tensor]]: ...


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
    data_range: float | None = None,
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
    return_terms: bool = False,
    preset: Preset | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""A weighted sum of similarity losses, computed in the same sweep over the images.

    .. math:: w_{ssim} (1 - \mathrm{SSIM}) + w_{ms} (1 - \text{MS-SSIM}) + w_1 \overline{|x - y|}
              + w_2 \overline{(x - y)^2} + w_g \overline{G * |x - y|}

    All in unit range: with ``value_range=(-1, 1)``, ``l1`` is half of what ``nn.L1Loss`` gives.
    docs/losses.md lists the weights of named losses. Differentiable once, by both images.

    Args:
        x: images (N, C, H, W); float16, bfloat16, float32, float64 or uint8, any strides.
        y: images of the same shape, dtype and device.
        ssim: factor of 1 - SSIM, >= 0, as all of them; not all may be 0.
        ms_ssim: factor of 1 - MS-SSIM, >= 0.
        l1: factor of the mean absolute difference, >= 0.
        l2: factor of the mean squared difference, >= 0.
        gaussian_l1: factor of the mean of the blurred absolute difference, >= 0 (Zhao et al.,
            "Loss functions for image restoration with neural networks", IEEE TCI 3(1), 2017,
            equation 14). G is the window; with MS-SSIM the window of the coarsest scale, in pixels
            of the finest: sigma and radius times ``2 ** (len(weights) - 1)``. Outside the image
            the difference is 0. In the mean over all pixels it is therefore an L1 that counts
            pixels less the nearer the border they are.
        weights, odd, negative, channels: of MS-SSIM, see :func:`ms_ssim`.
        value_range, data_range, window, window_size, sigma, k1, k2, sample_covariance: as in
            :func:`ssim`.
        padding: "valid" or "same".
        reduction: "mean", or "batch" for the loss of each image.
        return_terms: also returns the terms, for logging.
        preset: as in :func:`ssim`; it sets no factor.

    Returns:
        The loss: float64 for float64 images, else float32; shape () or (N,). With
        ``return_terms``, (loss, terms), terms being a dict from the name of each factor that is
        not 0 to its term without the factor, of the shape of the loss and not differentiable. For
        "ssim" and "ms_ssim" that is the similarity, not 1 minus it. The loss of an empty batch is
        0.

    Raises:
        TypeError: an argument has the wrong type, or the images have another dtype.
        ValueError: the images are too small for the window or the scales, shapes, devices or
            dtypes differ, or a value is not admissible.
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
    )(x, y)
