"""Translation: padding, tiles, which generator; export to ONNX."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cyclegan_runs import data, one_thread, settings  # noqa: F401 - fixtures

from cyclegan.export import export_onnx
from cyclegan.images import read_pixels, write_pixels
from cyclegan.networks import ResnetGenerator, UnetGenerator
from cyclegan.trainer import Trainer
from cyclegan.translate import load_generator, translate, translate_files

CPU = torch.device("cpu")


class Same(torch.nn.Module):
    """Returns what it is shown, and remembers it."""

    def __init__(self, multiple: int = 4, smallest: int = 8):
        super().__init__()
        self.multiple, self.smallest = multiple, smallest
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x)
        assert all(side % self.multiple == 0 and side >= self.smallest for side in x.shape[2:])
        return x


def test_padding_does_not_move_the_image():
    image = torch.rand(3, 5, 13)
    assert torch.equal(translate(Same(), image), image)


@pytest.mark.parametrize("multiple, smallest", [(4, 8), (16, 16)])
def test_images_are_padded_with_their_edge_and_no_graph_is_kept(multiple, smallest):
    generator = Same(multiple, smallest)
    image = torch.rand(3, 5, 9, requires_grad=True)
    assert not translate(generator, image).requires_grad
    height, width = (max(smallest, -(-side // multiple) * multiple) for side in (5, 9))
    rows, columns = torch.arange(height).clamp(max=4), torch.arange(width).clamp(max=8)
    assert torch.equal(generator.seen[0][0], image[:, rows][:, :, columns])


@pytest.mark.parametrize("network", [ResnetGenerator(4, 1), UnetGenerator(4, 5)])
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (31, 7)])
def test_every_generator_translates_every_size(network, size):
    assert translate(network, torch.rand(3, *size) * 2 - 1).shape == (3, *size)


@pytest.mark.parametrize("height, width", [(16, 90), (41, 16), (37, 53), (33, 33)])
@pytest.mark.parametrize("tile, overlap", [(16, 4), (32, 0), (24, 12)])
def test_tiles_are_no_larger_than_asked_and_join_without_a_trace(height, width, tile, overlap):
    generator = Same()
    image = torch.rand(3, height, width)
    torch.testing.assert_close(translate(generator, image, tile, overlap), image)
    assert all(max(seen.shape[2:]) <= tile for seen in generator.seen)
    assert len(generator.seen) > 1


def test_tiles_fade_into_one_another():
    """Tiles of 0 and 1, in the order in which they come: no step where they meet is a large one."""

    class Numbered(Same):
        def forward(self, x):
            super().forward(x)
            return torch.full_like(x, float(len(self.seen) % 2))

    whole = translate(Numbered(), torch.zeros(3, 16, 100), tile=32, overlap=16)
    steps = whole[0, 8].diff().abs()
    assert steps.max() <= 1 / 16 + 1e-6 and whole[0, 8].std() > 0.2
    hard = translate(Numbered(), torch.zeros(3, 16, 96), tile=32, overlap=0)
    assert hard[0, 8].diff().abs().max() == 1


def test_an_image_of_one_tile_is_translated_as_a_whole():
    generator = ResnetGenerator(4, 1)
    image = torch.rand(3, 40, 24)
    assert torch.equal(translate(generator, image, tile=40), translate(generator, image, tile=0))


@pytest.mark.parametrize("tile, overlap", [(-1, 0), (16, 9), (16, -1)])
def test_tiles_that_make_no_sense_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"tile must be .*got {tile} and {overlap}"):
        translate(Same(), torch.rand(3, 40, 40), tile, overlap)


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    write_pixels(pixels, tmp_path / "x.png")
    return tmp_path / "x.png"


@pytest.mark.parametrize(
    "size, shape", [("", (40, 60)), ("20", (20, 30)), ("16x24", (16, 24)), ("50", (50, 75))]
)
def test_images_are_scaled_first_as_asked(settings, photograph, size, shape):
    generator, out = Same(), photograph.with_name("out.png")
    place = (photograph, out, CPU)
    assert translate_files(generator, settings, "ab", *place, size=size, tile=0) == 1
    assert read_pixels(out).shape == (*shape, 3)
    [seen] = generator.seen
    assert seen.shape[2] - 4 < shape[0] <= seen.shape[2]
    with pytest.raises(ValueError, match="^size must be like 256 or 256x512 .*got 'x'"):
        translate_files(generator, settings, "ab", *place, size="x")


def test_what_memory_has_no_room_for_is_tiled_with_a_warning(settings, photograph, monkeypatch):
    """Half of the free memory, 20 bytes a pixel and channel of the first layer."""
    generator, place = ResnetGenerator(4, 1), (photograph, photograph.with_name("out.png"), CPU)
    sizes = []
    generator.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    monkeypatch.setattr("cyclegan.translate.TILE", 32)
    for free, tiles in ((2 * 40 * 60 * 4 * 20, 1), (2 * 40 * 60 * 4 * 20 - 2, 4)):
        sizes.clear()
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        with nullcontext() if tiles == 1 else pytest.warns(UserWarning) as warned:
            translate_files(generator, settings, "ab", *place)
        assert len(sizes) == tiles
    [warning] = warned
    assert f"{photograph} is translated in tiles of 32 pixels, which may differ" in str(
        warning.message
    )
    sizes.clear()
    translate_files(generator, settings, "ab", *place, tile=0)
    assert len(sizes) == 1


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_checkpoint_translates_with_the_averaged_generator_if_there_is_one(settings, ema_decay):
    trainer = Trainer(replace(settings, ema_decay=ema_decay, generator="unet_32", steps=2))
    trainer.train()
    for direction, want in trainer.model.generators().items():
        generator, loaded = load_generator(trainer.run_dir, direction, CPU)
        assert loaded == trainer.settings
        for key, value in want.state_dict().items():
            assert torch.equal(generator.state_dict()[key], value)
        assert not any(parameter.requires_grad for parameter in generator.parameters())


@pytest.mark.long
@pytest.mark.needs("onnxruntime")
@pytest.mark.parametrize("network", [ResnetGenerator(4, 1), UnetGenerator(4, 5)])
def test_exported_generators_compute_the_same_at_every_size(network, tmp_path):
    import onnxruntime

    path = tmp_path / "generator.onnx"
    assert export_onnx(network, (32, 32), 3, path) < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["generator.onnx"]  # weights inside
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in (*session.get_inputs(), *session.get_outputs())] == [
        "image",
        "translation",
    ]
    for shape in ((3, 3, 64, 96), (1, 3, 32, 64)):
        image = torch.rand(shape) * 2 - 1
        [got] = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, network(image), atol=1e-4)


@pytest.mark.needs("onnxruntime")
def test_an_export_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    import onnxruntime

    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "run",
        lambda *arguments: [output + 0.01 for output in run(*arguments)],
    )
    with pytest.raises(ValueError, match="differ by 0.01"):
        export_onnx(ResnetGenerator(4, 1), (32, 32), 3, tmp_path / "generator.onnx")
    assert not list(tmp_path.iterdir())
