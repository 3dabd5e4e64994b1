"""Sources: folders, timm's data sets and those of installed packages, and the answers to what is none."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dna_deploy.data import Images, split
from dna_deploy.errors import DataError
from dna_deploy.sources import open_source


def test_what_identifies_images_says_nothing_of_where_they_lie_or_what_they_show(folder, tmp_path, monkeypatch):
    before = open_source(str(folder))
    shutil.move(folder, tmp_path / "elsewhere")
    Image.new("RGB", (12, 8), (9, 9, 9)).save(tmp_path / "elsewhere" / "red" / "3.png")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_source(".").sha256 == before.sha256
    for other in ({"labels": before.labels[::-1]}, {"fixed_test": frozenset({3})}, {"classes": ("blue", "rot")}, {"files": ()}):
        assert replace(before, **other).sha256 != before.sha256


def test_no_folder_is_not_the_folder_one_is_in(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="--data '': no such folder"):
        open_source("")


def test_a_folder_is_read_by_class(folder):
    source = open_source(str(folder))
    assert source.classes == ("blue", "red") and source.labels == (0,) * 10 + (1,) * 10
    images = Images(source, [0, 19], size=8)
    batch = images.batch([0, 1])
    assert batch.shape == (2, 3, 8, 8) and batch.dtype == torch.uint8
    assert batch[0, :, 4, 4].tolist() == [0, 0, 255] and batch[1, :, 4, 4].tolist() == [255, 0, 0]
    assert images.labels.tolist() == [0, 1]


def test_a_publishers_test_set_stays_the_test_set(folder, tmp_path):
    root = tmp_path / "published"
    for part in ("train", "test"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for number in range(6):
                Image.new("L", (8, 8), number).save(root / part / name / f"{number}.png")
    source = open_source(str(root))
    made = split(source)
    assert set(made.test) == source.fixed_test and len(made.test) == 12
    assert not set(made.test) & set(made.train + made.held_out)


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_a_published_split_is_known_by_its_usual_names(folder, tmp_path, name):
    root = tmp_path / "published"
    root.mkdir()
    shutil.copytree(folder, root / "train")
    assert open_source(str(root)).fixed_test == frozenset()  # train/ alone is divided like any folder
    shutil.copytree(folder, root / name)
    source = open_source(str(root))
    assert source.classes == ("blue", "red") and len(source.labels) == 40 and len(source.fixed_test) == 20
    (root / name).rename(root / "others")
    with pytest.raises(DataError, match="holds others, train; expected test/ or val/ beside train/"):
        open_source(str(root))


def test_a_class_without_images_is_named(folder, tmp_path):
    (folder / "green").mkdir()
    (folder / "green" / "0.gif").write_bytes(b"GIF89a")  # of a kind that is not read
    with pytest.raises(DataError, match=r"set/green: no images in it; expected \.jpg, .* files of its class, or no such folder"):
        open_source(str(folder))
    (folder / "green" / "0.gif").unlink()
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "published" / part)
    with pytest.raises(DataError, match="test/green: no images in it"):
        open_source(str(tmp_path / "published"))
    shutil.copy(folder / "red" / "0.png", tmp_path / "published" / "train" / "green")  # of which there is no test image
    assert open_source(str(tmp_path / "published")).classes == ("blue", "green", "red")


def test_hidden_folders_are_no_classes(folder):
    shutil.copytree(folder / "red", folder / ".ipynb_checkpoints")
    (folder / "train").mkdir()  # a class may be called so
    shutil.copy(folder / "red" / "0.png", folder / "train")
    source = open_source(str(folder))
    assert source.classes == ("blue", "red", "train")
    for hidden in (".thumbnails", "more/.thumbnails"):
        shutil.copytree(folder / "blue", folder / "red" / hidden)
    shutil.copytree(folder / "train", folder / "red" / "more" / "yet")
    assert set(open_source(str(folder)).files) - set(source.files) == {"red/more/yet/0.png"}


@pytest.mark.parametrize("spec", ["nowhere", "./nowhere"])
def test_data_that_does_not_exist(spec):
    with pytest.raises(DataError, match="no such folder; expected"):
        open_source(spec)


def test_one_class_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(DataError, match="no images"):
        open_source(str(tmp_path))
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "only" / f"{number}.png")
    with pytest.raises(DataError, match="all 4 images are of one class"):
        open_source(str(tmp_path))


def test_the_solar_cells_are_there():
    pytest.importorskip("elpv_dataset")
    source = open_source("elpv")
    assert len(source.labels) == 2624 and len(source.classes) == 4 and "NC" in source.licence
    batch = Images(source, [0, 2623], size=32).batch([0, 1])
    assert batch.float().std() > 1


def test_a_timm_data_set_is_read_like_a_folder(folder):
    source = open_source("torch/image_folder", str(folder))
    assert source.labels == open_source(str(folder)).labels and not source.fixed_test
    assert source.classes == ("blue", "red")
    assert Images(source, [0, 19], 8).batch([0, 1])[:, :, 4, 4].tolist() == [[0, 0, 255], [255, 0, 0]]
    with pytest.raises(DataError, match=r"neither it nor --data-root \(.*nowhere\) is a folder; expected one folder a class"):
        open_source("torch/image_folder", str(folder / "nowhere"))
    with pytest.raises(DataError, match=r"timm cannot open it .* give --data-root"):
        open_source("torch/nothing")


@pytest.mark.parametrize("spec", ["x/folder", "x/imgs", "torch/folder", "torch/image_folder"])
def test_a_folder_that_timm_would_search_is_read_as_a_folder(folder, tmp_path, spec):
    """timm answers to a split that is not there with all images, and numbers the classes of each part anew."""
    assert open_source(spec, str(folder)).fixed_test == frozenset()
    root = tmp_path / "published"
    shutil.copytree(folder, root / "training")
    shutil.copytree(folder / "red", root / "evaluation" / "red")
    source = open_source(spec, str(root))
    assert source.labels == (0,) * 10 + (1,) * 20 and source.fixed_test == frozenset(range(20, 30))
    Image.fromarray(np.full((8, 8), 20000, np.uint16)).save(root / "training" / "blue" / "0.png")
    assert Images(source, [0], 8).batch([0])[0, 0, 0, 0] == 78  # 20000 / 257; Pillow's own conversion makes it 255
    (root / "training" / "blue" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"training/blue/1\.png: not a readable image"):
        Images(source, [1], 8).batch([0])


class Hub:
    """A data set of Hugging Face's as timm's reader hands it out: two black images of each class."""

    def __init__(self, classes):
        self.class_to_idx = {name: number for number, name in enumerate(classes)}

    def __len__(self):
        return 2 * len(self.class_to_idx)

    def __getitem__(self, index):
        encoded = io.BytesIO(b"broken" if index == 1 else b"")
        if index != 1:
            Image.new("RGB", (8, 8)).save(encoded, "png")
        encoded.seek(0)
        return encoded, index // 2

    def filename(self, index):
        return f"{index}.png"

    def iter_targets(self):
        return (index // 2 for index in range(len(self)))


def hub(monkeypatch, **splits):
    from timm.data import ImageDataset

    monkeypatch.setattr("timm.data.create_dataset", lambda *_, split, **__: ImageDataset("", reader=Hub(splits[split])))


def test_an_image_that_timm_would_pass_over_is_named(monkeypatch):
    hub(monkeypatch, train="ab", validation="ab")
    source = open_source("hfds/NAME")
    assert source.classes == ("a", "b") and source.labels == (0, 0, 1, 1) * 2 and source.fixed_test == {4, 5, 6, 7}
    assert Images(source, [0, 7], 8).batch([0, 1]).shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match=r"^1\.png: not a readable image"):
        Images(source, [1], 8).batch([0])
    hub(monkeypatch, train="ab")  # and no other split
    assert open_source("hfds/NAME").fixed_test == frozenset()


def test_splits_that_number_their_classes_otherwise_are_refused(monkeypatch):
    hub(monkeypatch, train="abc", validation="ac")
    with pytest.raises(
        DataError, match="--data hfds/NAME: class b has another number in its validation split; expected the same"
    ):
        open_source("hfds/NAME")


def test_a_stream_is_read_once_and_kept():
    class Stream:
        def __iter__(self):
            yield from ((Image.new("RGB", (4, 4), (label * 50,) * 3), label) for label in (0, 1, 2))
            yield Image.fromarray(np.full((4, 4), 20000, np.uint16)), 3

    from dna_deploy.sources import _indexed

    opened, labels = _indexed(Stream())
    assert labels == [0, 1, 2, 3] and np.asarray(opened(2))[0, 0].tolist() == [100] * 3
    assert np.asarray(opened(3))[0, 0].tolist() == [78] * 3  # 20000 / 257
