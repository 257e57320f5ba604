"""Peak memory of a training step, in image-sized tensors beyond the two inputs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from budgets import budgets

import ssimfast

MEASURE = """
import torch, ssimfast
from pathlib import Path

def status(key):
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) * 1024

def of_volumes(x, y):
    size = (100, 90) if x.numel() > 10**6 else (16, 16)
    return ssimfast.ssim(*(image.reshape(1, 1, -1, *size) for image in (x, y)))

def step(x, y):
    {loss}(x, y).mean().backward()

step(torch.rand(1, 1, 176, 176).requires_grad_(), torch.rand(1, 1, 176, 176))  # starts threads
x, y = torch.rand(1, 3, 1000, 1500).requires_grad_(), torch.rand(1, 3, 1000, 1500)
Path("/proc/self/clear_refs").write_text("5")  # peak := current
before = status("VmRSS")
step(x, y)
print((status("VmHWM") - before) / (x.numel() * x.element_size()))
"""


# The gradient, which the forward pass prepared; for maps: the map, 1 - map, the gradient of the map
# and the gradient; for a pyramid: the gradients of all scales, 4/3 images, summed in that of the
# finest, which is made last, when the pooled images are gone; for volumes rings of as many slices
# as the window has, in float64. (In a first step: of what later ones free, glibc may keep some.)
LOSSES = (
    "ssimfast.SSIMLoss()",
    'ssimfast.SSIMLoss(reduction="none")',
    "ssimfast.SimilarityLoss(ssim=0.84, l1=0.1, l2=0.1, gaussian_l1=0.1)",
    "of_volumes",
    "ssimfast.MSSSIMLoss()",
    "ssimfast.MixLoss()",
    "ssimfast.SimilarityLoss(ssim=0.5, ms_ssim=0.5)",
)


def peak(loss: str) -> float:
    # Not in the root of the repository, where Python would import the sources.
    here, code = Path(__file__).parent, MEASURE.format(loss=loss)
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def assert_within_budget(*losses: str) -> None:
    allowed = budgets()["peak memory, images"]
    assert allowed.keys() == set(LOSSES)
    for loss in losses:
        # Less than the gradient that a step returns would be a mistake of the measurement.
        assert 0.9 <= peak(loss) <= allowed[loss], loss


# A process for each takes a second or two; the others are mixtures of the same sweeps.
@pytest.mark.needs("extension", "peak memory")
def test_peak_memory():
    assert_within_budget("ssimfast.SSIMLoss()", "ssimfast.MSSSIMLoss()")


@pytest.mark.long
@pytest.mark.needs("extension", "peak memory")
def test_peak_memory_of_every_loss():
    assert_within_budget(*LOSSES)


@pytest.mark.needs("extension")
def test_pooled_images_take_no_memory_of_their_own():
    """They lie where the gradient of the finest scale will: all that is allocated are gradients."""
    x, y = torch.rand(2, 1, 3, 256, 320)
    x.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        ssimfast.ms_ssim(x, y)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated / (x.numel() * x.element_size()) < 1.4
