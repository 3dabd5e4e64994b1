"""The training of the network found: interrupted anywhere it goes on, another one never takes its place, and it can be done."""

import pkgutil
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dna_deploy import search
from dna_deploy.arch import sample
from dna_deploy.budget import Budget, Wish
from dna_deploy.checkpoint import load_tensors, save_checkpoint
from dna_deploy.data import Preprocessing, split
from dna_deploy.errors import MachineError, RequestError, RunError
from dna_deploy.files import write_json
from dna_deploy.found import Found
from dna_deploy.networks import untrained
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.recipe import Training
from dna_deploy.run import Asked, Pick, Picked, TeacherReport, open_run
from dna_deploy.sources import Source, open_source
from dna_deploy.supernet import Supernet
from dna_deploy.table import LatencyTable, find_table
from dna_deploy.teacher import Teacher, cut
from tests.conftest import TINY

OWN = str(Path(__file__).with_name("own_teacher.py"))
HOW = Training(epochs=2, batch=6)


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A run of the smallest space on 24 digits, its teacher and blocks as they were drawn, and its images."""
    digits = open_source("digits")
    few = [index for index, label in enumerate(digits.labels) if label < 2][:24]
    source = Source("few", ("0", "1"), tuple(digits.labels[index] for index in few), lambda at: digits.open(few[at]))
    asked = Asked("tf_efficientnet_lite0", None, [], "few", None, TINY, 32, 1, 1, 16, 16, 0)
    run, space = open_run(str(tmp_path_factory.mktemp("search") / "run"), asked), find("spaces", TINY).at(32, 2)
    torch.manual_seed(0)
    model, half = untrained(asked.teacher, 2).eval(), Preprocessing((0.5,) * 3, (0.5,) * 3)
    teacher = Teacher(asked.teacher, model, half, cut(model, space))
    save_checkpoint(run.teacher, model, None, 0)
    cuts = [place.name if place else None for place in teacher.cuts]
    write_json(run.teacher_report, TeacherReport(0.5, ["0", "1"], [0.5] * 3, [0.5] * 3, cuts, teacher.padding))
    save_checkpoint(run.supernet, Supernet(space, teacher, 0), None, 1)
    return run, source, space


@pytest.fixture
def finish(rated, monkeypatch):
    """Train a network in a folder of that name, for a device that cannot be measured; returns what is left there."""
    run, source, space = rated
    monkeypatch.setattr(search, "open_source", lambda *_: source)
    arch, predictor = sample(space, random.Random(0)), LatencyPredictor(LatencyTable.load(find_table("pixel1")))

    def finish(name, how):
        pick, picked = Pick(run.folder / name), Picked("pixel1", "pixel1.jsonl", 1.0, 0.9, -1.0, arch.macs, arch.params, None)
        pick.folder.mkdir(exist_ok=True)
        arch.save(pick.architecture)
        return search.finish(Found(pick, arch, picked, None, (Budget(predictor, 1.0),), (arch,)), predictor, how), pick

    return finish


def weights(pick):
    return load_tensors(pick.weights)[0]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_weights_that_are_gone_are_never_taken_for_random_ones(rated, finish):
    run, _, _ = rated
    for file, advice in (
        (run.teacher, f"delete {run.teacher_report} and run dna-search again"),
        (run.supernet, f"delete {run.ratings} and run dna-search again"),
    ):
        kept = file.rename(file.with_suffix(".kept"))
        with pytest.raises(MachineError, match=f"^{file}: these weights were finished and are gone; {advice}") as caught:
            finish("gone", HOW)
        kept.rename(file)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(rated):
    run, source, space = rated
    renamed = replace(source, classes=("zero", "one"))
    with pytest.raises(RunError, match=r"teacher\.json: .* other classes .* few .*--run NAME"):
        search.prepare_teacher(run, renamed, split(renamed), space)


def test_why_a_teacher_is_fine_tuned_is_said(rated, monkeypatch, capsys, tmp_path):
    _, source, space = rated
    run = open_run(str(tmp_path / "own"), replace(rated[0].asked, teacher=OWN))
    monkeypatch.setattr("dna_deploy.train.train", lambda *given, **named: None)
    search.fine_tuned(run, source, split(source), space)
    said = capsys.readouterr().err
    assert "nothing says that MODEL() comes trained (--teacher-weights FILE would, or MODEL as a network)" in said
    assert "its classes differ" not in said


def test_a_fine_tuning_goes_on_only_with_the_teacher_it_was_begun_with(rated, monkeypatch, workdir):
    own, (_, source, space) = Path("own.py"), rated
    own.write_text(Path(OWN).read_text())
    run, parts = open_run("r", replace(rated[0].asked, teacher="own.py", teacher_epochs=2)), split(source)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dna_deploy.distill.Watch.add", interrupted)
        search.prepare_teacher(run, source, parts, space)
    assert not run.teacher_training.exists()  # no epoch was whole
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dna_deploy.train.accuracy", interrupted)
        search.prepare_teacher(run, source, parts, space)
    own.write_text(Path(OWN).read_text() + "# edited")
    with pytest.raises(RunError, match=r"teacher-training.safetensors: begun with sha256 of own\.py = "):
        search.prepare_teacher(run, source, parts, space)
    own.write_text(Path(OWN).read_text())
    search.prepare_teacher(run, source, parts, space)
    own.write_text(Path(OWN).read_text() + "# edited")
    with pytest.raises(RunError, match=r"^own\.py: was edited since runs/r was made with it"):
        search.prepare_teacher(run, source, parts, space)


STAGES = [
    ("search.prepare_teacher", "before"),
    ("train.save_checkpoint", "after"),  # of an epoch
    ("train.save_checkpoint", "before"),  # of the second
    ("train.accuracy", "before"),
    ("search.measure_whole", "before"),
    ("checkpoint.save_checkpoint", "before"),  # of the weights in the end
    ("search.write_json", "before"),  # of the report on them
    ("search.write_json", "after"),
]


def test_interrupted_anywhere_it_goes_on(finish, monkeypatch):
    student, whole = finish("whole", HOW)
    assert sorted(file.name for file in whole.folder.iterdir()) == ["architecture.json", "student.json", "student.safetensors"]
    for place, when in STAGES:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            target = f"dna_deploy.{place}"
            work = pkgutil.resolve_name(target)

            def stop(*given, work=work, when=when):
                if when == "after":
                    work(*given)
                raise KeyboardInterrupt

            patch.setattr(target, stop)
            finish("parts", HOW)
    epochs = []
    monkeypatch.setattr("dna_deploy.train.save_checkpoint", lambda *given: epochs.append(given))
    again, parts = finish("parts", HOW)
    assert again == student and same(weights(parts), weights(whole)) and not epochs and not parts.training.exists()
    assert finish("parts", HOW)[0] == student


def test_another_training_of_the_network_is_kept_aside_and_taken_up_again(finish, monkeypatch):
    two, pick = finish("again", HOW)
    before = weights(pick)
    (pick.folder / "export").mkdir()
    three = replace(HOW, epochs=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dna_deploy.train.accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        finish("again", three)
    assert not pick.student.exists() and not pick.export.exists()
    (aside,) = pick.aside
    assert same(weights(aside), before) and aside.export.exists()
    assert finish("again", HOW)[0] == two and same(weights(pick), before) and pick.export.exists()
    with monkeypatch.context() as patch:
        patch.setattr("dna_deploy.train.save_checkpoint", lambda *_: pytest.fail("trained again"))
        assert finish("again", three)[0].epochs == 3
    assert [same(weights(other), before) for other in pick.aside] == [True]


@pytest.mark.parametrize(
    ("changed", "how", "measure_top", "said"),
    [
        ({}, replace(HOW, optimizer="nope"), 0, 'optimizer = "nope"'),
        ({}, replace(HOW, augmentation="nope"), 0, 'augmentation = "nope"'),
        ({}, HOW, 3, "--measure-top 3: pixel1 cannot be measured"),
        ({"distill_batch": 64, "accumulate": 16}, Training(accumulate=16), 0, "16 images in 16 parts.* a larger --batch"),
        # of 1,797 digits 1,146 are trained on
        ({}, Training(batch=2048, mixup=0.2, accumulate=4), 0, "mixup pairs images: a batch of 1146 in 4 parts"),
        ({"distill_batch": 2048, "accumulate": 600}, None, 0, "a batch of 1146 images in 600 parts.* larger --distill-batch"),
        ({"distill_batch": 4, "fair": True}, None, 0, r"4 images in \d+ parts.* a larger --distill-batch"),
    ],
)
def test_what_cannot_be_done_in_the_end_is_refused_at_the_beginning(workdir, changed, how, measure_top, said):
    asked = Asked("tf_efficientnet_lite0", None, [], "digits", None, "mobile", 224, 1, 1, 16, 16, 0)
    with pytest.raises(RequestError, match=said):
        search.search(
            replace(asked, **changed),
            "new",
            [Wish(find_table("pixel1"), 80.0)],
            measure_top,
            rate=lambda *_: pytest.fail("trained first"),
            how=how,
        )
