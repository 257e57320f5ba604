"""Reading folders of images, training pairs, test images, and the demo data set."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cyclegan import demo_data
from cyclegan.data import Batches, UnpairedImages, centre_crops
from cyclegan.files import list_images, replacing
from cyclegan.images import normalise, readable_images
from cyclegan.loading import count_workers
from cyclegan.settings import Settings


def make_settings(root, size=16, seed=0, **others) -> Settings:
    network = {"generator": "resnet_1", "discriminator_layers": 1}
    size = {"crop_size": str(size), "seed": seed}
    return Settings(data=str(root), run_dir="unused", steps=1, **network, **size, **others)


def unpaired(root, size=16, seed=0, memory=None, **others) -> UnpairedImages:
    return UnpairedImages(make_settings(root, size, seed, **others), memory)


def save_flat(path, value: int, size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def flat_root(tmp_path):
    """5 images in trainA, 7 in trainB; image i is flat gray of 10 i (A) or 100 + 10 i (B)."""
    for i in range(5):
        save_flat(tmp_path / "trainA" / f"{i}.png", 10 * i)
    for i in range(7):
        save_flat(tmp_path / "trainB" / f"{i}.png", 100 + 10 * i)
    return tmp_path


def gray(tensor) -> int:
    """The 8-bit value of a flat image tensor."""
    assert tensor.dtype == torch.uint8 and tensor.min() == tensor.max()
    return tensor[0, 0, 0].item()


def test_every_pass_shows_each_a_once_in_a_new_order_with_new_partners(flat_root):
    pairs = unpaired(flat_root)
    drawn = [(gray(a), gray(b)) for a, b in (pairs[i] for i in range(50))]
    passes = [drawn[i : i + 5] for i in range(0, 50, 5)]
    assert all(sorted(a for a, _ in one) == [0, 10, 20, 30, 40] for one in passes)
    assert len({tuple(a for a, _ in one) for one in passes}) > 5
    assert {b for _, b in drawn} == set(range(100, 170, 10))
    assert len({b for a, b in drawn if a == 0}) > 2


def test_a_sample_depends_on_seed_and_index_only(flat_root):
    save_noise(flat_root / "trainA" / "noise.png")
    first, second = (unpaired(flat_root, seed=4) for _ in range(2))
    other = unpaired(flat_root, seed=5)
    forward = [torch.stack(first[i]) for i in range(12)]
    backward = [torch.stack(second[i]) for i in reversed(range(12))]
    assert all(torch.equal(f, b) for f, b in zip(forward, reversed(backward), strict=True))
    assert not all(torch.equal(f, torch.stack(other[i])) for i, f in enumerate(forward))


def test_order_partners_and_crops_each_follow_the_seed(flat_root, tmp_path_factory):
    drawn = []
    for seed in (4, 5):
        pairs = unpaired(flat_root, seed=seed)
        drawn.append([[gray(image) for image in pairs[i]] for i in range(20)])
    order, partners = zip(*np.moveaxis(drawn, 2, 1), strict=True)
    assert not np.array_equal(*order)
    assert not np.array_equal(*partners)

    root = tmp_path_factory.mktemp("same")  # one image, so that only the crops can differ
    for folder in ("trainA", "trainB"):
        (root / folder).mkdir()
        save_noise(root / folder / "noise.png")
    first, second = (
        [pairs[i] for i in range(6)] for pairs in (unpaired(root, seed=seed) for seed in (4, 5))
    )
    for domain in (0, 1):
        one, other = (torch.stack([pair[domain] for pair in pairs]) for pairs in (first, second))
        assert not torch.equal(one, other)
    assert not all(torch.equal(a, b) for a, b in first)  # A and B are cropped on their own


def test_worker_processes_do_not_change_the_samples(flat_root):
    save_noise(flat_root / "trainA" / "noise.png")
    pairs = unpaired(flat_root, seed=4)
    alone, shared = (
        list(DataLoader(pairs, batch_sampler=Batches(0, 6, 2), num_workers=workers))
        for workers in (0, 2)
    )
    for want, got in zip(alone, shared, strict=True):
        assert torch.equal(torch.cat(want), torch.cat(got))


def save_noise(path, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    "size, memory", [((40, 30), 0), ((71, 64), 1e9), ((33, 90), 0), ((36, 36), 1e9)]
)
def test_crops_of_8_bits_are_those_of_torchvision(tmp_path, size, memory):
    """Bit for bit, and in its order of random numbers."""
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        save_noise(tmp_path / folder / "noise.png", size)
    chain = v2.Compose(
        [
            v2.Resize(round(32 * 286 / 256), v2.InterpolationMode.BICUBIC),
            v2.RandomCrop(32),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    pairs = unpaired(tmp_path, 32, memory=memory)
    with Image.open(tmp_path / "trainA" / "noise.png") as image:
        for i in range(8):
            rng = np.random.default_rng((0, 1, i))
            rng.integers(1)
            torch.manual_seed(int(rng.integers(2**63)))
            for got in pairs[i]:
                assert torch.equal(normalise(got), chain(image).as_subclass(torch.Tensor))


def scaled_sizes(root, crop_size, load_size) -> set[tuple[int, int]]:
    pairs = unpaired(root, crop_size, memory=0, load_size=load_size)
    assert {tuple(image.shape[1:]) for image in pairs[0]} == {pairs.settings.crop}
    return {pairs.a.pixels(i).shape[:2] for i in range(len(pairs.a.paths))}


@pytest.mark.parametrize(
    "load_size, crop_size, scaled",
    [
        ("", "32", {(36, 54), (54, 36)}),
        ("", "16x32", {(24, 36), (54, 36)}),  # which cover 18 x 36
        ("48", "32", {(48, 72), (72, 48)}),
        ("40x50", "32x48", {(40, 50)}),
        ("native", "16", {(20, 30), (30, 20)}),
        ("native", "16x24", {(20, 30), (36, 24)}),  # too narrow: as large as the crop
        ("20", "16x24", {(20, 30), (36, 24)}),
    ],
)
def test_images_are_scaled_as_asked_before_the_crop(tmp_path, load_size, crop_size, scaled):
    for folder in ("trainA", "trainB"):
        save_flat(tmp_path / folder / "wide.png", 3, (30, 20))
        save_flat(tmp_path / folder / "tall.png", 3, (20, 30))
    assert scaled_sizes(tmp_path, crop_size, load_size) == scaled


def test_without_flips_native_crops_are_parts_of_the_image(tmp_path):
    pixels = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "x.png")
    parts = {pixels[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(15)}
    pairs = unpaired(tmp_path, load_size="native", flip=False)
    crops = [crop.permute(1, 2, 0).numpy().tobytes() for i in range(40) for crop in pairs[i]]
    assert set(crops) <= parts and len(set(crops)) > 20
    flipped = unpaired(tmp_path, load_size="native")
    assert not {flipped[i][0].permute(1, 2, 0).numpy().tobytes() for i in range(40)} <= parts


def test_images_stay_in_memory_where_there_is_room_and_no_loader_process(flat_root):
    need = 12 * 18 * 18 * 3
    assert unpaired(flat_root, memory=need).in_memory
    assert not unpaired(flat_root, memory=need - 1).in_memory
    assert not unpaired(flat_root, memory=need, workers=1).in_memory
    one, other = unpaired(flat_root, memory=need), unpaired(flat_root, memory=0)
    assert one.describe() == "training images: decoded in memory (0.0 MB)"
    assert other.describe() == "training images: decoded again for each crop (0.0 MB)"
    for i in range(7):
        assert all(map(torch.equal, one[i], other[i]))


WORKERS = [
    (-1, False, "cuda", 1, 8),
    (-1, False, "cuda", 4, 3),
    (-1, True, "cuda", 1, 0),
    (-1, False, "cpu", 1, 0),
    (5, False, "cpu", 8, 5),
    (0, False, "cuda", 1, 0),
]


def test_workers_are_as_many_as_pay(monkeypatch):
    for asked, in_memory, device, processes, count in WORKERS:
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
        assert count_workers(asked, in_memory, device, processes) == count
        monkeypatch.setattr("sys.platform", "win32")
        assert count_workers(asked, in_memory, device, processes) == max(asked, 0)


def test_headers_without_pixels_are_named(flat_root):
    np.save(flat_root / "trainA" / "5.npy", np.zeros((0, 4), np.uint8))
    with pytest.raises(ValueError, match="1 of 6 images .*5.npy: it has no pixels"):
        unpaired(flat_root)


def test_augmentation_moves_and_mirrors(tmp_path):
    """In an image whose red rises from left to right, crops differ and half of them fall."""
    ramp = np.zeros((36, 36, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(36) * 7
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        Image.fromarray(ramp).save(tmp_path / folder / "ramp.png")
    pairs = unpaired(tmp_path, 32)
    rows = [pairs[i][0][0, 0].int() for i in range(60)]
    rising = sum((row[-1] > row[0]).item() for row in rows)
    assert 15 < rising < 45
    assert len({min(row[0].item(), row[-1].item()) for row in rows}) == 5  # offsets 0 to 4


@pytest.mark.parametrize("size", [(10, 10), (64, 9), (16, 50)], ids=str)
def test_images_of_any_size_give_crops_of_the_asked_size(tmp_path, size):
    for folder in ("trainA", "trainB"):
        save_flat(tmp_path / folder / "x.png", 50, size)
    a, b = unpaired(tmp_path, 32)[0]
    assert a.shape == b.shape == (3, 32, 32)
    assert gray(a) == 50
    (tmp_path / "testA").symlink_to(tmp_path / "trainA")
    [image] = centre_crops(make_settings(tmp_path, 32), "a")
    assert image.shape == (3, 32, 32)


def test_test_images_are_the_first_ones_and_centred(tmp_path):
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 40, 20))
    for name in ("a.png", "b.png"):
        (tmp_path / "testB").mkdir(exist_ok=True)
        image.save(tmp_path / "testB" / name)
    save_flat(tmp_path / "testB" / "c.png", 0)
    images = torch.stack([*centre_crops(make_settings(tmp_path, 20), "b", limit=2)])
    assert images.shape == (2, 3, 20, 20)
    assert (images == 1).all()


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/trainA"):
        unpaired(tmp_path, 32)
    save_flat(tmp_path / "trainA" / "x.png", 0)
    (tmp_path / "trainB").mkdir()
    (tmp_path / "trainB" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"no images in {tmp_path}/trainB"):
        unpaired(tmp_path, 32)


def test_subfolders_are_walked_and_only_images_of_the_user_are_taken(tmp_path):
    folder = tmp_path / "trainA"
    for name in ("b.png", "sub/deeper/a.GIF", "sub/c.jfif", "a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".GIF": "GIF", ".jfif": "JPEG"}.get(name[-4:] if "G" in name else name[-5:], "PNG")
        Image.new("RGB", (8, 8), (200, 100, 40)).save(folder / name, format=kind)
    system = ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/x.png", ".git/x.png")
    others = ("x.HEIC", "y.heic", "sub/notes.txt", "LICENSE")
    for name in (*system, *others):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not an image")
    (folder / "sub" / "again").symlink_to(folder)  # a circle
    with pytest.warns(UserWarning) as warned:
        found = list_images(folder)
    names = [path.relative_to(folder).as_posix() for path in found]
    assert names == ["a.png", "b.png", "sub/c.jfif", "sub/deeper/a.GIF"]
    [warning] = warned
    assert str(warning.message) == (
        f"left out of {folder}, which has 4 images: 2 .heic, 1 .txt, 1 without a suffix"
    )
    for _, pixels in readable_images(found):
        assert pixels[4, 4] == pytest.approx((200, 100, 40), abs=3)


def test_a_folder_of_other_kinds_says_what_it_has(tmp_path):
    for name in ("x.heic", "y.HEIC", "._z.png"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"no images in .* \(looked for .bmp, .*; found 2 .heic\)"):
        list_images(tmp_path)


def test_unreadable_images_are_named_and_skipped(flat_root):
    whole = (flat_root / "trainA" / "0.png").read_bytes()
    (flat_root / "trainA" / "0.png").write_bytes(whole[:40])  # a download that broke off
    (flat_root / "trainA" / "1.png").write_text("<html>not found</html>")
    with pytest.warns(UserWarning) as warned:
        names = [path.name for path, _ in readable_images(list_images(flat_root / "trainA"))]
    assert names == ["2.png", "3.png", "4.png"]
    assert [f"trainA/{i}.png" in str(w.message) for i, w in enumerate(warned)] == [True, True]


@pytest.mark.parametrize("memory", [0, 1e9], ids=["from disk", "in memory"])
@pytest.mark.parametrize("broken, count", [(1, 20), (2, 40), (1, 19), (2, 39)])
def test_up_to_a_twentieth_of_a_training_folder_may_be_broken(tmp_path, broken, count, memory):
    """The next image stands in for one that turns out to be broken, whenever that is found."""
    for folder in ("trainA", "trainB"):
        for i in range(count):
            save_flat(tmp_path / folder / f"{i:02d}.png", 4 * i)
    unharmed = unpaired(tmp_path)
    names = [f"{3 * i:02d}.png" for i in range(broken)]
    for name in names:
        path = tmp_path / "trainB" / name
        path.write_bytes(path.read_bytes()[:50])  # the header is whole

    def read() -> list[int]:
        pairs = unpaired(tmp_path, memory=memory)
        assert pairs.in_memory == (memory > 0)
        return [gray(pairs[i][1]) for i in range(8 * count)]

    if broken * 20 > count:
        message = f"{broken} of {count} images in .*trainB cannot be read: .*{names[0]}"
        with pytest.warns(UserWarning) if broken > 1 and not memory else nullcontext():
            with pytest.raises(ValueError, match=message):
                read()
        return
    with pytest.warns(UserWarning) as warned:
        seen = read()
    messages = sorted(str(warning.message) for warning in warned)
    for name, message in zip(names, messages, strict=True):
        assert f"skipped unreadable image {tmp_path}/trainB/{name}" in message
    next_one = {12 * i: 12 * i + 4 for i in range(broken)}
    whole = [gray(unharmed[i][1]) for i in range(8 * count)]
    assert seen == [next_one.get(value, value) for value in whole]


def test_files_that_are_no_images_are_left_out_before_the_run(tmp_path):
    for folder in ("trainA", "trainB"):
        for i in range(20):
            save_flat(tmp_path / folder / f"{i:02d}.png", 4 * i)
    (tmp_path / "trainA" / "05.png").write_text("<html>not found</html>")
    with pytest.warns(UserWarning, match="skipped unreadable image .*05.png"):
        pairs = unpaired(tmp_path, memory=0)
    assert len(pairs.a.paths) == 19 and 20 not in {gray(pairs[i][0]) for i in range(19)}


def test_a_test_folder_without_a_readable_image_is_named(flat_root):
    (flat_root / "testB").symlink_to(flat_root / "trainB")
    for path in (flat_root / "trainB").iterdir():
        path.write_text("")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no readable .*testB"):
        list(centre_crops(make_settings(flat_root), "b"))


def test_processes_share_what_one_alone_would_see():
    one = list(Batches(2, 5, size=6))
    three = [list(Batches(2, 5, size=2, process=i, processes=3)) for i in range(3)]
    assert one == [[*range(12, 18)], [*range(18, 24)], [*range(24, 30)]]
    assert [sum(parts, []) for parts in zip(*three, strict=True)] == one
    assert len(Batches(2, 5, 6)) == 3


def test_the_digest_tells_other_images_apart(flat_root):
    digest = unpaired(flat_root).digest()
    assert unpaired(flat_root, 24, seed=1).digest() == digest
    (flat_root / "trainB" / "6.png").rename(flat_root / "trainB" / "7.png")
    assert unpaired(flat_root).digest() != digest
    digest = unpaired(flat_root).digest()
    (flat_root / "trainB" / "sub").mkdir()
    (flat_root / "trainB" / "7.png").rename(flat_root / "trainB" / "sub" / "7.png")
    assert unpaired(flat_root).digest() != digest


def test_a_sample_draws_from_no_random_stream_of_others(flat_root):
    pairs = unpaired(flat_root, seed=4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert [pairs[i] for i in range(3)] and torch.equal(torch.rand(3), expected)


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "x.bin"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        assert temporary.parent == tmp_path  # a rename across file systems is no rename
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


FOLDERS = ("trainA", "trainB", "testA", "testB")


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_demo_data_counts_sizes_and_determinism(tmp_path):
    demo_data.write_demo_data(tmp_path / "x", 4)
    demo_data.write_demo_data(tmp_path / "y", 4)
    demo_data.write_demo_data(tmp_path / "z", 4, seed=1)
    x, y, z = (contents(tmp_path / name) for name in "xyz")
    assert x == y
    for found in (x, y, z):
        assert b"demo-data" in found.pop(demo_data.MARKER)
        assert found.pop("domains.txt") == b"photo\npainting\n"
    crops = [f"train{domain}/{i:04d}.png" for domain in "AB" for i in range(4)]
    wholes = [f"test{domain}/{name}.png" for domain in "AB" for name in demo_data.TEST_PHOTOGRAPHS]
    assert sorted(x) == sorted(crops + wholes)
    assert all(x[name] != z[name] for name in crops)
    assert len(set(x.values())) == len(x)
    for names, size in ((crops, demo_data.CROP_SIZE), (wholes, demo_data.TEST_SIZE)):
        for name in names:
            with Image.open(tmp_path / "x" / name) as image:
                assert (image.mode, image.size) == ("RGB", (size, size))
    demo_data.write_demo_data(tmp_path / "large", 1, crop_size=143)
    with Image.open(tmp_path / "large" / "trainB" / "0000.png") as image:
        assert image.size == (143, 143)


def test_demo_data_does_not_mix_with_other_files(tmp_path):
    demo_data.write_demo_data(tmp_path, 2)
    demo_data.write_demo_data(tmp_path, 2)  # the same again is no harm
    with pytest.raises(FileExistsError, match="trainA holds other files, such as 0001.png"):
        demo_data.write_demo_data(tmp_path, 1)
    with pytest.raises(ValueError, match="train_count must be positive; got 0"):
        demo_data.write_demo_data(tmp_path, 0)
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"seed must .*got {seed}"):
            demo_data.write_demo_data(tmp_path, 2, seed=seed)


@pytest.mark.parametrize("folder", FOLDERS)
def test_demo_data_leaves_images_of_others_alone(tmp_path, folder):
    save_flat(tmp_path / folder / "0000.png", 50)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"{folder} holds other files, such as 0000.png"):
        demo_data.write_demo_data(tmp_path, 2)
    assert contents(tmp_path) == before


def test_training_crops_come_from_the_regions_of_their_domain_and_b_is_painted(
    tmp_path, monkeypatch
):
    """Red tells the column and green the row of a pixel; paint is replaced by the negative."""
    width, height = 512, 252
    y, x = np.mgrid[:height, :width]
    coded = Image.fromarray(np.stack([x // 2, y, 0 * x], axis=-1).astype(np.uint8))
    monkeypatch.setattr(demo_data, "load_photograph", lambda name: coded)
    monkeypatch.setattr(demo_data, "turn_hues", lambda image, rng: image)
    monkeypatch.setattr(demo_data, "paint", lambda image: 255 - np.asarray(image))
    demo_data.write_demo_data(tmp_path, 8)
    for name in FOLDERS[:2]:
        regions = [demo_data.region((width, height), name[-1], strip) for strip in (0, 1)]
        seen = set()
        for _, image in readable_images(list_images(tmp_path / name)):
            pixels = 255 - image if name.endswith("B") else image
            assert not pixels[..., 2].any()  # black stays black, and its negative was white
            columns, rows = 2 * pixels[..., 0].astype(int), pixels[..., 1].astype(int)
            assert min(np.ptp(columns), np.ptp(rows)) > demo_data.SMALLEST_CROP - 8
            inside = [  # 2 pixels are for rounding
                left - 2 <= columns.min()
                and top - 2 <= rows.min()
                and columns.max() <= right + 2
                and rows.max() <= bottom + 2
                for left, top, right, bottom in regions
            ]
            assert any(inside)
            seen.add(inside.index(True))
        assert seen == {0, 1}


def test_no_test_photograph_trains_and_no_pixel_is_in_both_domains():
    assert not {*demo_data.TRAIN_PHOTOGRAPHS} & {*demo_data.TEST_PHOTOGRAPHS}
    for photograph in map(demo_data.load_photograph, demo_data.TRAIN_PHOTOGRAPHS):
        owners = np.zeros(photograph.size, dtype=int)
        for name, strip in itertools.product(FOLDERS[:2], range(demo_data.COLUMNS // 2)):
            left, top, right, bottom = demo_data.region(photograph.size, name[-1], strip)
            assert min(right - left, bottom - top) >= demo_data.LARGEST_CROP
            owners[left:right, top:bottom] += 1
        assert (owners == 1).all()


def test_kuwahara_flattens_noise_and_keeps_edges():
    step = np.zeros((24, 24, 3))
    step[:, 12:] = 200
    np.testing.assert_allclose(demo_data.kuwahara(step), step)
    noisy = step + np.random.default_rng(0).normal(0, 10, step.shape)
    flattened = demo_data.kuwahara(noisy)
    assert (flattened - step).std() < 0.5 * (noisy - step).std()
    assert (flattened[:, 12] - flattened[:, 11]).min() > 150


def test_painted_images_have_the_palette_and_the_weave():
    gray_ramp = np.linspace(0, 255, 96).round().astype(np.uint8)
    photograph = Image.fromarray(np.broadcast_to(gray_ramp[None, :, None], (96, 96, 3)).copy())
    painted = np.asarray(demo_data.paint(photograph), dtype=float)
    red, _, blue = painted[:, 8:24].mean(axis=(0, 1))
    assert blue > red + 10  # shadows are indigo
    red, _, blue = painted[:, 60:80].mean(axis=(0, 1))
    assert red > blue + 10  # lights are ochre
    brightness = painted.mean(axis=(0, 2))
    assert np.corrcoef(brightness, gray_ramp)[0, 1] > 0.95
    flat = np.asarray(demo_data.paint(Image.new("RGB", (8, 8), "gray")), dtype=int)
    assert np.ptp(flat[:4, :4, 0]) == 30


def test_hues_turn_and_nothing_else():
    photograph = demo_data.load_photograph("coffee")
    turned = demo_data.turn_hues(photograph, np.random.default_rng(0))
    before, after = (np.asarray(image.convert("HSV"), int) for image in (photograph, turned))
    assert np.abs(after - before)[..., 1:].mean() < 2  # 8-bit RGB cannot hold every HSV
    assert np.abs(after - before)[..., 2].max() <= 1
    colourful = (before[..., 1] > 100) & (before[..., 2] > 100)
    turns = (after - before)[colourful][:, 0] % 256
    assert np.abs(turns - np.median(turns)).max() <= 4 and np.median(turns) > 4
