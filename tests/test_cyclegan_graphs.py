"""Steps as CUDA graphs, on a CPU: every kernel of a captured call is noted and run again on the
same tensors, as a graph does. What Python changes from step to step is lost then, as on a GPU."""

from dataclasses import replace

import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cyclegan import cuda_graphs
from cyclegan.errors import UserError
from cyclegan.trainer import Trainer


class Recording(TorchDispatchMode):
    """Notes every operation with its tensors."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:  # to note operations they had to run; a capture only notes them
            return
        for func, args, kwargs, results in self.calls:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(results), again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recordings(monkeypatch):
    """Each captured function's `Recording`."""
    made = []

    def record(function, pool):
        made.append(Recording())
        with made[-1]:
            results = function()
        return made[-1].replay, results

    monkeypatch.setattr(cuda_graphs, "check", lambda _: None)
    monkeypatch.setattr(cuda_graphs, "beside", lambda function: function())
    monkeypatch.setattr(cuda_graphs, "record", record)
    return made


def state_of(trainer: Trainer) -> list[Tensor]:
    modules = trainer.model.weights_by_file().values()
    weights = [value for module in modules for value in module.state_dict().values()]
    return weights + [v for v in tree_leaves(trainer.model.state_dict()) if isinstance(v, Tensor)]


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_size": 2, "ema_decay": 0.9, "clip_norm": 1.0},
        {"accumulate": 2, "cycle_loss": "mix", "lambda_identity": 0.0, "gan_loss": "hinge"},
    ],
    ids=["stateful", "pieces"],
)
def test_replayed_steps_have_the_bits_of_plain_ones(settings, recordings, changes):
    settings = replace(settings, steps=8, learning_rate=1e-3, **changes)
    plain, replayed = Trainer(settings), Trainer(replace(settings, cuda_graphs=True))
    generator = torch.Generator().manual_seed(3)
    for step in range(8):  # the rate falls from the fifth on; from the fourth on, graphs
        images = torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1
        want, got = plain.train_step(*images), replayed.train_step(*images)
        assert want.keys() == got.keys()
        for name, loss in want.items():
            assert torch.equal(got[name], loss), (step, name)
    assert [one.replays for one in recordings] == [5, 5]
    for mine, theirs in zip(state_of(replayed), state_of(plain), strict=True):
        assert torch.equal(mine, theirs)
    for name, pair in plain.model.last_images.items():
        assert all(map(torch.equal, replayed.model.last_images[name], pair))


def test_a_rate_that_only_python_knows_would_not_reach_a_graph(settings, recordings):
    """What the test above rests on."""
    scale = [1.0]
    double = cuda_graphs.Replayed(lambda x: (scale[0] * x,), None)
    for step in range(6):
        scale[0] = float(step)
        (got,) = double(torch.ones(2))
        assert got[0] == min(step, cuda_graphs.WARM_UP)


def test_batches_of_another_shape_are_refused(settings, recordings):
    trainer = Trainer(replace(settings, cuda_graphs=True))
    trainer.train_step(*torch.zeros(2, 2, 3, 32, 32))
    with pytest.raises(UserError, match=r"one shape; got \(1, 3, 32, 32\) after \(2, 3, 32, 32\)"):
        trainer.train_step(*torch.zeros(2, 1, 3, 32, 32))


@pytest.mark.parametrize(
    "device, processes, precision, message",
    [
        ("cpu", 1, "no", "needs a CUDA GPU; got cpu"),
        ("cuda", 2, "no", "needs one process; got 2"),
        ("cuda", 1, "fp16", "needs precision no or bf16, .*; got fp16"),
    ],
)
def test_what_cannot_be_captured_is_refused(device, processes, precision, message, monkeypatch):
    class Here:
        num_processes, mixed_precision = processes, precision

    Here.device = torch.device(device)
    with pytest.raises(UserError, match=f"cuda_graphs {message}"):
        cuda_graphs.check(Here)


def test_a_cpu_has_no_cuda_graphs(settings):
    with pytest.raises(UserError, match="cuda_graphs needs a CUDA GPU; got cpu"):
        Trainer(replace(settings, cuda_graphs=True))


@pytest.mark.needs("cuda")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_steps_captured_on_a_gpu_come_near_plain_ones(settings, precision):
    settings = replace(settings, steps=8, device="cuda", precision=precision, ema_decay=0.9)
    plain, captured = Trainer(settings), Trainer(replace(settings, cuda_graphs=True))
    for _ in range(8):
        images = (torch.rand(2, 2, 3, 32, 32) * 2 - 1).to(plain.device)
        want, got = plain.train_step(*images), captured.train_step(*images)
        for name, loss in want.items():
            torch.testing.assert_close(got[name], loss, atol=0.03, rtol=0.03)
