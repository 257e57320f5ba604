"""Comparison of the package with the oracle: one place for the tolerances."""

import numpy as np
import oracle
import torch
from torch import Tensor

import ssimfast

# Absolute for values (they lie in [-1, 1]); gradients relative to the largest of the image.
TOLERANCES = {
    torch.float64: {"mean": 1e-13, "map": 1e-12, "grad": 1e-11},
    torch.float32: {"mean": 5e-8, "map": 1e-6, "grad": 2e-6},
    # Values of half images are float32; a gradient is rounded to half twice: as it is stored by
    # the forward pass, and after it was scaled in the backward pass.
    torch.float16: {"mean": 5e-8, "map": 1e-6, "grad": 2 * 2**-11},
    torch.bfloat16: {"mean": 5e-8, "map": 1e-6, "grad": 2 * 2**-8},
}


def to_oracle(arguments: dict) -> dict:
    """The oracle's names for arguments of ssimfast.ssim."""
    names = {"window_size": "size", "sigma": "sigma", "padding": "padding", "k1": "k1", "k2": "k2"}
    out = {names[key]: value for key, value in arguments.items() if key in names}
    out["low"], out["high"] = arguments.get("value_range", (0.0, arguments.get("data_range", 1.0)))
    return out


def as_float64(image: Tensor) -> np.ndarray:
    return image.detach().to(torch.float64).numpy()


def assert_near(actual: Tensor, expected: np.ndarray, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    error = np.abs(as_float64(actual) - expected).max()
    assert error <= tolerance, f"{what}: off by {error:.2e}, allowed {tolerance:.2e}"


def assert_matches_oracle(x: Tensor, y: Tensor, tolerances: dict | None = None, **arguments):
    """Values, maps and both gradients of every reduction against the float64 oracle."""
    allowed = tolerances or TOLERANCES[x.dtype]
    upstream = torch.rand(x.shape[0], dtype=torch.float64)
    expected, *_ = oracle.ssim(as_float64(x), as_float64(y), **to_oracle(arguments))
    weights = torch.rand(expected.shape, dtype=torch.float64)
    results = {
        "mean": (expected.mean(), np.full(expected.shape, 1 / expected.size)),
        "sum": (expected.sum(), np.ones(expected.shape)),
        "batch": (
            expected.mean((1, 2, 3)),
            upstream.numpy().reshape(-1, 1, 1, 1) * np.full(expected.shape, 1 / expected[0].size),
        ),
        "none": (expected, weights.numpy()),
    }
    value_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for reduction, (value, weight) in results.items():
        *_, want_x, want_y = oracle.ssim(
            as_float64(x), as_float64(y), upstream=weight, **to_oracle(arguments)
        )
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        result = ssimfast.ssim(a, b, reduction=reduction, **arguments)
        assert result.dtype == value_dtype
        # The rounding of single values averages out only where there are many of them.
        values = expected.size // (x.shape[0] if reduction == "batch" else 1)
        mean_tolerance = max(allowed["mean"], allowed["map"] / values**0.5 / 4)
        tolerance = {
            "none": allowed["map"],
            "sum": mean_tolerance * expected.size,
        }.get(reduction, mean_tolerance)
        assert_near(result, np.asarray(value), tolerance, f"{reduction}: value")
        back = {"batch": upstream, "none": weights}.get(reduction)
        result.backward(None if back is None else back.to(result.dtype))
        for name, image, want in (("x", a, want_x), ("y", b, want_y)):
            assert image.grad.dtype == x.dtype
            limit = allowed["grad"] * max(np.abs(want).max(), 1e-300)
            assert_near(image.grad, want, limit, f"{reduction}: gradient by {name}")
