"""Features kept on disk are the teacher's own, and an interrupted pass over the images goes on."""

import json
import resource

import numpy as np
import pytest
import torch

from dna_deploy import lessons as module
from dna_deploy.data import Images, Preprocessing
from dna_deploy.errors import MachineError, RunError, TeacherError
from dna_deploy.lessons import KeptLessons, Lessons
from dna_deploy.networks import untrained
from dna_deploy.sources import open_source
from dna_deploy.teacher import Teacher, cut


@pytest.fixture
def teacher(tiny):
    torch.manual_seed(0)
    model = untrained("tf_efficientnet_lite0", 10).eval().requires_grad_(False)
    return Teacher("lite0", model, Preprocessing((0.5,) * 3, (0.5,) * 3), cut(model, tiny))


@pytest.fixture
def images():
    return Images(open_source("digits"), range(20), 32)


def test_kept_features_are_the_teachers(teacher, images, tmp_path):
    kept, places = KeptLessons(teacher, images, tmp_path / "features"), [3, 17, 0]
    image, features = kept.batch(places)
    expected_image, expected = Lessons(teacher, images).batch(places)
    assert torch.equal(image, expected_image) and len(features) == len(expected) == 4
    for a, b in zip(features, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))  # float16 has 11 bits


def test_an_interrupted_pass_goes_on(teacher, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    whole = KeptLessons(teacher, images, tmp_path / "whole")
    seen = []

    class Stopping(Images):
        def batches(self, wanted):
            for places in wanted:
                seen.append(list(places))
                if len(seen) == 4:
                    raise KeyboardInterrupt
                yield from super().batches([places])

    stopping = Stopping(images.source, images.indices, 32)
    with pytest.raises(KeyboardInterrupt):
        KeptLessons(teacher, stopping, tmp_path / "parts")
    again = KeptLessons(teacher, stopping, tmp_path / "parts")
    assert seen[-1] == [16, 17, 18, 19]  # only what was missing
    for a, b in zip(whole.batch(range(20))[1], again.batch(range(20))[1], strict=True):
        assert torch.equal(a, b)


def test_a_full_disk_is_one_line_and_the_pass_goes_on(teacher, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    whole = KeptLessons(teacher, images, tmp_path / "whole")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "whole").glob("*.f16")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes.values()) * 2 // 3, hard))  # the largest has no room for its end
    try:
        with pytest.raises(MachineError, match="the disk is full; free some space and run the same command again"):
            KeptLessons(teacher, images, tmp_path / "parts")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "parts" / "features.json").read_text())["done"] == 8  # no file was made longer than it is
    parts = KeptLessons(teacher, images, tmp_path / "parts")
    for name, size in sizes.items():
        assert (tmp_path / "parts" / name).stat().st_size == size
    for a, b in zip(whole.batch(range(20))[1], parts.batch(range(20))[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_features_that_float16_cannot_keep_are_refused(teacher, images, tmp_path, value):
    teacher.model.get_submodule("blocks.1.1.bn3").bias.fill_(value)
    with pytest.raises(TeacherError, match=r"behind blocks\.1\.1 are NaN, infinite or above 65504"):
        KeptLessons(teacher, images, tmp_path / "features")


def test_some_of_the_kept_features_serve_a_teacher_with_fewer_cuts(teacher, images, tmp_path):
    every = KeptLessons(teacher, images, tmp_path)
    fewer = Teacher("lite0", teacher.model, teacher.preprocessing, (None, *teacher.cuts[1:]))
    features = KeptLessons(fewer, images, tmp_path).batch([5])[1]
    assert len(features) == 3 and torch.equal(features[0], every.batch([5])[1][1])


def test_features_of_other_images_are_refused(teacher, images, tmp_path):
    KeptLessons(teacher, images, tmp_path)
    with pytest.raises(RunError, match="features of 20 images under lite0"):
        KeptLessons(teacher, Images(images.source, range(12), 32), tmp_path)


def test_features_of_a_teacher_trained_anew_are_refused(teacher, images, tmp_path):
    KeptLessons(teacher, images, tmp_path)
    with torch.no_grad():
        teacher.model.classifier.bias += 1
    with pytest.raises(RunError, match="the teacher says otherwise"):
        KeptLessons(teacher, images, tmp_path)


def test_a_file_that_is_gone_is_named(teacher, images, tmp_path):
    KeptLessons(teacher, images, tmp_path)
    (tmp_path / "logits.f16").unlink()
    with pytest.raises(RunError, match=r"logits.f16: missing or cut off"):
        KeptLessons(teacher, images, tmp_path)


def test_a_teacher_sees_its_own_resolution(teacher, images):
    wide = Teacher("lite0", teacher.model, teacher.preprocessing, teacher.cuts, image_size=64)
    (small, *_, a), (large, *_, b) = teacher.features(torch.zeros(1, 3, 32, 32)), wide.features(torch.zeros(1, 3, 32, 32))
    assert large.shape[-1] == 2 * small.shape[-1] and a.shape == b.shape
    pixels = torch.rand(1, 3, 32, 32)
    expected = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear")
    np.testing.assert_allclose(wide.features(pixels)[-1], teacher.features(expected)[-1], rtol=1e-4, atol=1e-5)
