"""Data: splits, decoding, augmentation, and the answers to data that cannot be used."""

import hashlib
import json
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dna_deploy.data import (
    AHEAD,
    Augmentation,
    Images,
    Preprocessing,
    epoch_batches,
    evenly,
    load_split,
    parts_of,
    save_split,
    split,
)
from dna_deploy.errors import DataError
from dna_deploy.sources import Source, open_source


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


def test_the_split_is_stratified_disjoint_and_always_the_same(digits):
    made = split(digits)
    parts = [made.train, made.held_out, made.test]
    assert sorted(sum(parts, [])) == list(range(1797))
    assert split(digits) == made != split(digits, seed=1)
    for part in parts:
        counts = np.bincount([digits.labels[i] for i in part])
        assert counts.min() > 0.8 * counts.max()


@pytest.mark.parametrize(
    ("name", "seed", "digest"),
    [
        ("elpv", 0, "e7ba62e48f9c2bbbc8dac23b7f3f754d1794ac4e6c5756e1eadd00ae11e1329e"),
        ("elpv", 7, "105e66d31950c4e19ce8a86c113b3aac26f0968f5a4badbbdb2937dde72219a1"),
        ("digits", 0, "c5bfb085175968506bfed2d56a4715c9cbb32ae038adcec8546fa01771102a8a"),
        ("digits", 7, "70dbc652a394195115e790ef56f7b9698cc145a5f8fd5e66b6d892292164f193"),
    ],
)
def test_splits_of_runs_that_are_kept_stay_as_they_are(name, seed, digest):
    """The digests were written down when no rare class was looked after, which these data do not have."""
    if name == "elpv":
        pytest.importorskip("elpv_dataset")
    made = split(open_source(name), seed)
    assert hashlib.sha256(json.dumps([made.train, made.held_out, made.test]).encode()).hexdigest() == digest


@pytest.mark.parametrize("fixed", [frozenset(), frozenset(range(0, 605, 5))], ids=["divided", "published"])
@pytest.mark.parametrize("counts", [(300, 300, 5), (5, 300, 300), (4000, 4, 6), (300, *(4,) * 20)])
def test_a_rare_class_is_in_every_part(counts, fixed):
    labels = tuple(kind for kind, count in enumerate(counts) for _ in range(count))
    fixed = fixed & frozenset(range(counts[0]) if counts[0] > 5 else range(5, 605))
    source = Source("x", tuple(map(str, range(len(counts)))), labels, lambda _: None, fixed)
    made = split(source)
    assert sorted([*made.train, *made.held_out, *made.test]) == list(range(len(labels)))
    learned = len(labels) - len(made.test)
    assert len(made.held_out) == max(round(0.15 * learned), len(counts)) and split(source) == made
    for part in (made.train, made.held_out, *(() if fixed else (made.test,))):
        assert {labels[index] for index in part} == set(range(len(counts)))


def test_a_split_is_kept_and_refused_for_other_data(digits, folder, tmp_path):
    save_split(tmp_path / "split.json", split(digits))
    assert load_split(tmp_path / "split.json", digits) == split(digits)
    with pytest.raises(DataError, match="1797 images of digits"):
        load_split(tmp_path / "split.json", open_source(str(folder)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("blue/0.png", "blue/zz.png"),  # all images behind it move up by one
        ("red", "amber"),  # and comes first of the classes
        ("blue", "azure"),
    ],
)
def test_a_split_is_refused_when_as_many_images_are_others(folder, tmp_path, monkeypatch, old, new):
    save_split(tmp_path / "split.json", split(open_source(str(folder))))
    load_split(tmp_path / "split.json", open_source(str(folder)))
    (folder / old).rename(folder / new)
    with pytest.raises(DataError, match=r"split\.json: classes, labels or file names of .*set changed .*--run NAME") as caught:
        load_split(tmp_path / "split.json", open_source(str(folder)))
    assert "\n" not in str(caught.value)


def test_decoding_cuts_the_centre_at_the_right_scale(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the centre square is light, the sides are dark
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        for number in range(4):
            Image.fromarray(wide).save(tmp_path / name / f"{number}.png")
    batch = Images(open_source(str(tmp_path)), [0], size=10).batch([0])
    assert batch.min() == 200


def test_an_unreadable_image_is_named(folder):
    (folder / "red" / "3.png").write_bytes(b"not an image")
    source = open_source(str(folder))
    with pytest.raises(DataError, match=r"red/3\.png: not a readable image"):
        Images(source, range(20), size=8).batch([0])


@pytest.mark.parametrize(("suffix", "order"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_16_bits_become_8(tmp_path, suffix, order):
    pixels = np.full((8, 8), 257, order)  # of 65535, as 1 is of 255
    pixels[:, 4:] = 65535
    pixels[0, 0] = 257 * 128
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / f"1.{suffix}")
    batch = Images(open_source(str(tmp_path)), [0], size=8).batch([0])[0]
    assert batch[:, 7, 0].tolist() == [1] * 3 and batch[:, 7, 7].tolist() == [255] * 3 and batch[:, 0, 0].tolist() == [128] * 3


@pytest.mark.parametrize("kind", ["f4", "i4"])
def test_pixels_of_unknown_range_are_refused(folder, kind):
    Image.fromarray(np.zeros((8, 8), kind)).save(folder / "red" / "3.tif")
    (folder / "red" / "3.png").unlink()
    with pytest.raises(DataError, match=rf"red/3\.tif: pixels of mode {kind[0].upper()}, .*; expected 8 or 16 bits a channel"):
        Images(open_source(str(folder)), range(20), size=8).batch([0])


def test_an_image_too_large_to_decode_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 8 // 2 - 1)  # twice this is Pillow's limit
    with pytest.raises(DataError, match=r"blue/0\.png: not a readable image \(DecompressionBombError\)"):
        Images(open_source(str(folder)), range(20), size=8).batch([0])


def test_what_memory_does_not_hold_is_decoded_ahead_and_in_order(folder, monkeypatch):
    source, opened = open_source(str(folder)), set()
    at_once = Images(source, range(20), size=8).batch(range(20))

    def noting(index):
        opened.add(index)
        return source.open(index)

    monkeypatch.setattr("dna_deploy.data.CACHE_BYTES", 0)
    images = Images(replace(source, open=noting), range(20), size=8)
    wanted = [[place, 19 - place] for place in range(10)]
    batches = images.batches(wanted)
    first = next(batches)
    within = time.monotonic() + 30
    while len(opened) < 2 * (1 + AHEAD) and time.monotonic() < within:
        time.sleep(0.001)
    assert opened == {place for pair in wanted[: 1 + AHEAD] for place in pair}  # these and no more until they are asked for
    torch.testing.assert_close(torch.cat([first, *batches]), at_once[torch.tensor(wanted).flatten()])
    begun = images.batches(wanted)
    next(begun)
    begun.close()  # a training that stops in the middle
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_an_unreadable_image_is_named_when_its_batch_is_due(folder, monkeypatch):
    (folder / "red" / "3.png").write_bytes(b"not an image")
    monkeypatch.setattr("dna_deploy.data.CACHE_BYTES", 0)
    batches = Images(open_source(str(folder)), range(20), size=8).batches([[0], [13]])
    assert next(batches).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"red/3\.png: not a readable image"):
        next(batches)


def test_a_class_too_small_to_split_is_refused(folder):
    for number in range(7):
        (folder / "red" / f"{number}.png").unlink()
    with pytest.raises(DataError, match="class red has 3 images to learn from; expected at least 4"):
        split(open_source(str(folder)))


def test_a_class_that_a_published_split_hardly_teaches_is_refused(folder, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "published" / part)
    for number in range(9):
        (tmp_path / "published" / "train" / "red" / f"{number}.png").unlink()
    with pytest.raises(DataError, match="class red has 1 images to learn from; expected at least 2"):
        split(open_source(str(tmp_path / "published")))


def test_preprocessing_by_hand():
    batch = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    x = Preprocessing((0.5, 0.5, 0.0), (0.5, 0.5, 0.1))(batch)
    assert x.flatten().tolist() == pytest.approx([-1.0, 1.0, 2.0])


def test_augmentation_repeats_with_its_seed_and_only_moves_pixels():
    batch = torch.arange(4 * 3 * 16 * 16, dtype=torch.float).remainder(251).to(torch.uint8).view(4, 3, 16, 16)
    once = Augmentation(7, 4)(batch)
    assert torch.equal(once, Augmentation(7, 4)(batch)) and not torch.equal(once, Augmentation(8, 4)(batch))
    assert once.shape == batch.shape and once.dtype == torch.uint8
    flat = torch.full((5, 3, 16, 16), 9, dtype=torch.uint8)
    assert torch.equal(Augmentation(0, 5)(flat), flat)
    for image in range(4):  # a shift by at most an eighth, mirrored or not, moves the centre pixel to a known place
        centre = once[image, :, 8, 8]
        around = batch[image, :, 5:12, 4:12].flatten(1)
        assert (around == centre[:, None]).all(0).any()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_an_image_is_augmented_alike_however_its_batch_is_divided(count):
    batch = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = parts_of(list(range(5)), count)
    assert len(parts) == min(count, 5) and [place for _, some in parts for place in some] == [0, 1, 2, 3, 4]
    assert max(len(some) for _, some in parts) - min(len(some) for _, some in parts) <= 1
    divided = [Augmentation(7, 5, begin)(batch[list(some)]) for begin, some in parts]
    assert torch.equal(torch.cat(divided), Augmentation(7, 5)(batch))


@pytest.mark.parametrize(("count", "most", "sizes"), [(65, 64, [32, 33]), (128, 64, [64, 64]), (3, 64, [3]), (9, 4, [3, 3, 3])])
def test_no_batch_is_of_what_is_left_over(count, most, sizes):
    batches = evenly(range(10, 10 + count), most)
    assert [len(batch) for batch in batches] == sizes
    assert [place for batch in batches for place in batch] == list(range(10, 10 + count))


def test_epochs_visit_every_image_once_in_another_order():
    first, second = epoch_batches(100, 32, seed=0, epoch=0), epoch_batches(100, 32, seed=0, epoch=1)
    assert [len(batch) for batch in first] == [32, 32, 32]
    assert len(set(sum(first, []))) == 96 and first != second
    assert first == epoch_batches(100, 32, seed=0, epoch=0)
    assert epoch_batches(10, 32, seed=0, epoch=0) == [sorted(range(10), key=epoch_batches(10, 32, seed=0, epoch=0)[0].index)]
