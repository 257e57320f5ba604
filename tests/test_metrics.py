"""ssimfast.metrics: what batches and processes gather is the mean of all images."""

import copy
import functools
import importlib
import pickle
import subprocess
import sys

import machine
import pytest
import torch
from torch import Tensor

import ssimfast
from ssimfast.backends import constants

pytestmark = pytest.mark.needs("torchmetrics")
METRICS = {}
if machine.has("torchmetrics"):
    from ssimfast.metrics import MultiScaleStructuralSimilarity, StructuralSimilarity

    METRICS = {
        StructuralSimilarity: (ssimfast.ssim, {}),
        MultiScaleStructuralSimilarity: (ssimfast.ms_ssim, {"weights": "auto"}),
    }


def pair(count: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 3, 64, 60)
    return x, 0.7 * x + 0.3 * torch.rand_like(x)


def to_bytes(image: Tensor) -> Tensor:
    return (255 * image).round().to(torch.uint8)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("more", [{}, {"preset": "tf", "value_range": (-1, 1)}, {"data_range": 2}])
def test_mean_over_batches(metric, more):
    function, arguments = METRICS[metric]
    arguments = arguments | more
    x, y = pair()
    gathered = metric(**arguments)
    for part in (slice(0, 3), slice(3, 5)):  # batches of unequal size
        gathered.update(x[part], y[part])
    torch.testing.assert_close(gathered.compute(), function(x, y, **arguments))


@pytest.mark.parametrize("metric", METRICS)
def test_range_of_bytes(metric):
    function, arguments = METRICS[metric]
    x, y = (to_bytes(image) for image in pair())
    want = function(x.float(), y.float(), data_range=255, **arguments)
    of_bytes, of_floats, explicit = (
        metric(**arguments),
        metric(**arguments),
        metric(data_range=255, **arguments),
    )
    of_bytes.update(x, y)
    of_floats.update(x / 255, y / 255)
    explicit.update(x.float(), y.float())
    of_none = metric(value_range=None, **arguments)
    of_none.update(x, y)
    for metric in (of_bytes, of_floats, explicit, of_none):
        torch.testing.assert_close(metric.compute(), want)
    of_bytes.update(x / 255, y / 255)  # each in its own range
    torch.testing.assert_close(of_bytes.compute(), want)


def test_the_metrics_of_torchmetrics():
    from torchmetrics import image

    x, y = pair()
    pairs = [
        (StructuralSimilarity(preset="torchmetrics"), image.StructuralSimilarityIndexMeasure),
        (
            MultiScaleStructuralSimilarity(preset="torchmetrics", weights=(0.4, 0.6)),
            functools.partial(
                image.MultiScaleStructuralSimilarityIndexMeasure, betas=(0.4, 0.6), kernel_size=11
            ),
        ),
    ]
    for ours, theirs in pairs:
        theirs = theirs(data_range=1.0)
        for part in (slice(0, 3), slice(3, 5)):
            ours.update(x[part], y[part])
            theirs.update(x[part], y[part])
        torch.testing.assert_close(ours.compute(), theirs.compute(), rtol=0, atol=1e-5)


def test_no_graph_is_kept():
    x, y = pair()
    metric = StructuralSimilarity()
    metric.update(x.requires_grad_(), y)
    assert not metric.total.requires_grad and not metric.compute().requires_grad


def test_forward_and_reset():
    x, y = pair()
    metric = StructuralSimilarity()
    batch = metric(x[:1], y[:1])
    torch.testing.assert_close(batch, ssimfast.ssim(x[:1], y[:1]))
    metric(x[1:], y[1:])
    torch.testing.assert_close(metric.compute(), ssimfast.ssim(x, y))
    metric.reset()
    metric.update(x[:2], y[:2])
    torch.testing.assert_close(metric.compute(), ssimfast.ssim(x[:2], y[:2]))


def test_long_sums_are_exact():
    x, y = pair(1)
    metric = StructuralSimilarity()
    metric.update(x, y)
    metric.total.mul_(2.0**30)
    metric.count.mul_(2.0**30)
    metric.update(x, y)  # would be lost in float32
    assert metric.count == 2.0**30 + 1


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double", "set_dtype"])
def test_sums_stay_wide_in_a_model_that_is_cast(cast):
    x, y = pair(1)
    metric = StructuralSimilarity()
    model = torch.nn.Sequential(metric)
    metric.update(x, y)
    if cast == "set_dtype":
        metric.set_dtype(torch.float16)
    else:
        getattr(model, cast)()
        model.to(torch.bfloat16)
    for _ in range(299):
        metric.update(x, y)
    assert metric.count == 300 and metric.total.dtype == torch.float64
    torch.testing.assert_close(metric.compute(), ssimfast.ssim(x, y))
    metric.reset()
    assert metric.total.dtype == torch.float64


def test_sums_loaded_from_a_checkpoint_of_half_precision_are_wide():
    x, y = pair(2)
    metric = StructuralSimilarity()
    metric.persistent(True)
    metric.update(x, y)
    loaded = StructuralSimilarity()
    loaded.load_state_dict({k: v.bfloat16() for k, v in metric.state_dict().items()})
    assert loaded.total.dtype == loaded.count.dtype == torch.float64
    torch.testing.assert_close(loaded.total, metric.total, rtol=1e-2, atol=0)


def test_devices(monkeypatch):
    """The sums move with the metric, but stay on the CPU if its device has no float64 (meta stands
    for all devices)."""
    x, y = pair(2)
    metric = StructuralSimilarity()
    metric.update(x, y)
    want = metric.total.clone()
    monkeypatch.setattr(constants, "_WITHOUT_FLOAT64", {"meta"})
    metric.to("meta")
    assert metric.device.type == "meta" and metric.compute().is_meta
    assert metric.total.device.type == "cpu" and torch.equal(metric.total, want)
    monkeypatch.setattr(constants, "_WITHOUT_FLOAT64", set())
    metric.to("meta")
    assert metric.total.is_meta and metric.count.is_meta
    torch.nn.Sequential(metric).to_empty(device="cpu")  # as models do that were made on meta
    metric.update(x, y)
    torch.testing.assert_close(metric.compute(), ssimfast.ssim(x, y))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(clone):
    x, y = pair()
    metric = MultiScaleStructuralSimilarity(weights=(0.4, 0.6))
    metric.update(x, y)
    assert clone(metric).compute() == metric.compute()


def test_in_a_collection():
    from torchmetrics import MetricCollection

    x, y = pair()
    both = MetricCollection(
        [StructuralSimilarity(), MultiScaleStructuralSimilarity(weights=(0.4, 0.6))]
    )
    both.update(x, y)
    values = both.compute()
    assert values["StructuralSimilarity"] != values["MultiScaleStructuralSimilarity"]
    torch.testing.assert_close(values["StructuralSimilarity"], ssimfast.ssim(x, y))


def test_a_collection_keeps_metrics_apart():
    """Their sums are equal after a first batch of equal images."""
    from torchmetrics import MetricCollection

    x, y = pair()
    apart = MetricCollection(
        {
            "ssim": StructuralSimilarity(),
            "narrow": StructuralSimilarity(window_size=5),
            "ms_ssim": MultiScaleStructuralSimilarity(weights=(0.4, 0.6)),
            "again": StructuralSimilarity(),  # which may share what the first one sums
        }
    )
    apart.update(x, x)
    apart.update(x, y)
    want = {
        "ssim": ssimfast.ssim(x, y),
        "narrow": ssimfast.ssim(x, y, window_size=5),
        "ms_ssim": ssimfast.ms_ssim(x, y, weights=(0.4, 0.6)),
        "again": ssimfast.ssim(x, y),
    }
    torch.testing.assert_close(apart.compute(), {k: (1 + v) / 2 for k, v in want.items()})


@pytest.mark.parametrize("metric", METRICS)
def test_errors(metric):
    x, y = pair()
    for unknown in ({"reduction": "sum"}, {"mask": None}, {"window_length": 7}):
        with pytest.raises(ValueError, match=next(iter(unknown))):
            metric(**unknown)
    with pytest.raises(ValueError, match="window_size must be odd"):
        metric(window_size=4)
    with pytest.raises(ValueError, match="value_range or data_range, not both"):
        metric(value_range=(0, 1), data_range=255)
    with pytest.raises(ValueError, match="same shape"):
        metric().update(x[..., 1:], y)


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "ssimfast.metrics")
    with pytest.raises(ImportError, match=r"pip install 'ssimfast\[metrics\]'"):
        importlib.import_module("ssimfast.metrics")


PROCESS = """
import sys, torch
from ssimfast.metrics import MultiScaleStructuralSimilarity, StructuralSimilarity
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
x, y = torch.load(sys.argv[3])
mine = slice(0, 3) if rank == 0 else slice(3, 5)
for metric in (StructuralSimilarity(), MultiScaleStructuralSimilarity(weights=(0.4, 0.6))):
    metric.update(x[mine], y[mine])
    print(metric.compute().item())
    assert metric.count == mine.stop - mine.start  # its own again
torch.distributed.destroy_process_group()
"""


@pytest.mark.long
def test_two_processes(tmp_path):
    x, y = pair()
    torch.save((x, y), tmp_path / "images.pt")
    arguments = [str(tmp_path / "store"), str(tmp_path / "images.pt")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    want = [ssimfast.ssim(x, y).item(), ssimfast.ms_ssim(x, y, weights=(0.4, 0.6)).item()]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert [float(line) for line in out.split()] == pytest.approx(want, abs=1e-6)
