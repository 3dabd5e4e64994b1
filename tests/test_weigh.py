"""A rated run gets further scores: networks are trained once, the pick follows, and nothing else is touched."""

from dataclasses import replace

import numpy as np
import pytest

from dna_deploy.arch import Architecture
from dna_deploy.calibrate import networks_to_train
from dna_deploy.errors import MachineError, RequestError, RunError
from dna_deploy.files import read_json, write_json
from dna_deploy.plugins import find
from dna_deploy.ratings import load_ratings, save_ratings
from dna_deploy.run import Asked, Run, open_run
from dna_deploy.scores import block_scores, imitation
from dna_deploy.search import rate_all
from dna_deploy.sources import open_source
from dna_deploy.weigh import TrainedNetworks, average, calibrate_run, other_run, replace_one_run
from tests.conftest import TINY


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A run of the smallest space on 160 digits."""
    folder = tmp_path_factory.mktemp("weigh")
    digits = open_source("digits")
    for index in [place for place, label in enumerate(digits.labels) if label < 4][:160]:
        file = folder / "data" / str(digits.labels[index]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        digits.open(index).save(file)
    asked = Asked(
        teacher="tf_efficientnet_lite0",
        teacher_weights=None,
        cut=[],
        data=str(folder / "data"),
        data_root=None,
        space=TINY,
        image_size=32,
        teacher_epochs=1,
        distill_epochs=1,
        distill_batch=16,
        rating_images=16,
        seed=0,
        keep_features=True,
    )
    run, space = open_run(str(folder / "run"), asked), find("spaces", TINY).at(32, 4)
    rate_all(run, open_source(asked.data), space)
    return run, space


def test_features_were_kept(rated):
    run, space = rated
    kept = sorted(file.name for file in (run.folder / "features").iterdir())
    assert "features.json" in kept and "logits.f16" in kept and len(kept) == 1 + len(space.blocks)


def test_without_its_block_weights_no_candidate_is_replaced(rated):
    run, space = rated
    before, kept = run.ratings.read_bytes(), run.supernet.rename(run.supernet.with_suffix(".kept"))
    with pytest.raises(MachineError, match=r"supernet\.safetensors: .* gone; delete .*ratings\.jsonl and run dna-search again"):
        replace_one_run(run, Architecture(space, tuple(block.candidates[0] for block in space.blocks)), images=16)
    kept.rename(run.supernet)
    assert run.ratings.read_bytes() == before


def _known(run, space, accuracy):
    """As if these networks had been trained."""
    accuracies = {arch.key: accuracy(arch) for arch in networks_to_train(space, 12)}
    write_json(run.folder / "calibration.json", TrainedNetworks(2, accuracies))


def test_a_calibration_that_ranks_better_takes_over(rated):
    run, space = rated
    before = load_ratings(run.ratings, space)
    _known(run, space, lambda arch: 0.5 + arch.macs / 1e7)
    found = calibrate_run(run, space, 12)
    after = load_ratings(run.ratings, space)
    assert found.loo_tau > 0.8
    for block, expected in zip(space.blocks, found.scores, strict=True):
        if block.size > 1:
            np.testing.assert_allclose(block_scores(space, after)[space.blocks.index(block)], expected)
            assert [row.relative_l1 for row in after[block.name]] == [row.relative_l1 for row in before[block.name]]
    kept = read_json(run.folder / "calibration.json", TrainedNetworks)
    assert kept.calibration["loo_tau"] == found.loo_tau and len(kept.accuracies) == 12


def test_a_calibration_that_ranks_worse_does_not(rated):
    run, space = rated
    before = load_ratings(run.ratings, space)
    scores = imitation(space, before)

    def as_rated(arch):
        own = zip(space.blocks, scores, arch.candidates, strict=True)
        return 0.5 - 0.1 * sum(score[block.candidates.index(candidate)] for block, score, candidate in own)

    _known(run, space, as_rated)
    calibrate_run(run, space, 12)
    after = load_ratings(run.ratings, space)
    assert all(row.calibrated is None for rows in after.values() for row in rows)
    for own, kept in zip(scores, block_scores(space, after), strict=True):
        np.testing.assert_array_equal(own, kept)


def test_calibrating_trains_each_network_once(rated, monkeypatch):
    run, space = rated
    (run.folder / "calibration.json").unlink(missing_ok=True)
    found = calibrate_run(run, space, 8)
    kept = read_json(run.folder / "calibration.json", TrainedNetworks)
    assert len(kept.accuracies) == found.networks == 8 and all(0 <= value <= 1 for value in kept.accuracies.values())

    def nothing(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("dna_deploy.weigh.inherit_and_train", nothing)
    assert calibrate_run(run, space, 8).loo_tau == found.loo_tau


def test_the_batch_of_a_calibration_has_two_images_a_part(rated, monkeypatch):
    run, space = rated
    asked, trained = run.asked, []

    def train(*given):
        trained.append(given[5])
        raise KeyboardInterrupt

    (run.folder / "calibration.json").unlink(missing_ok=True)
    monkeypatch.setattr("dna_deploy.weigh.inherit_and_train", train)
    try:
        write_json(run.folder / "run.json", replace(asked, distill_batch=64, accumulate=16))
        with pytest.raises(KeyboardInterrupt):
            calibrate_run(run, space, 8)
    finally:
        write_json(run.folder / "run.json", asked)
    assert [(how.batch, how.accumulate) for how in trained] == [(16, 8)]


def test_replacing_one_is_kept_beside_the_other_scores(rated):
    run, space = rated
    before = load_ratings(run.ratings, space)
    replace_one_run(run, Architecture(space, tuple(block.candidates[0] for block in space.blocks)), images=16)
    after = load_ratings(run.ratings, space)
    for name, rows in after.items():
        assert all(row.replace_one > 0 for row in rows)
        assert [row.relative_l1 for row in rows] == [row.relative_l1 for row in before[name]]
    own = [rows[0].replace_one for rows in after.values()]  # the reference itself, seen from each block
    assert own[0] == pytest.approx(own[1], rel=1e-4)


def test_runs_under_other_teachers_are_averaged(rated, tmp_path):
    run, space = rated
    before = load_ratings(run.ratings, space)
    save_ratings(run.ratings, [replace(row, calibrated=0.0) for rows in before.values() for row in rows], space)
    rng = np.random.default_rng(0)
    others = []
    for name in ("another", "a third"):
        others.append(Run(tmp_path / name))
        write_json(others[-1].folder / "run.json", replace(run.asked, teacher=name))
        rows = [replace(row, relative_l1=float(rng.uniform(0.1, 1))) for rows in before.values() for row in rows]
        save_ratings(others[-1].ratings, rows, space)
    average(run, space, [other_run(str(other.folder), run.asked) for other in others])
    everyone = [before, *(load_ratings(other.ratings, space) for other in others)]
    after = load_ratings(run.ratings, space)
    expected = np.mean([np.concatenate(imitation(space, ratings)) for ratings in everyone], axis=0)
    np.testing.assert_allclose(np.concatenate(block_scores(space, after)), expected)
    average(run, space, [])  # none named: the run's own scores again
    assert load_ratings(run.ratings, space) == {
        name: [replace(row, calibrated=None) for row in rows] for name, rows in before.items()
    }


def test_another_run_that_is_none_is_refused(rated, tmp_path):
    run, _space = rated
    other = Run(tmp_path / "other")
    with pytest.raises(RunError, match="no such run"):
        other_run(str(other.folder), run.asked)
    for asked, says in (
        (replace(run.asked, teacher="another", image_size=64), "was made with --image-size 64, this run with --image-size 32"),
        (replace(run.asked, teacher="another", data="elpv"), "was made with --data elpv, this run with --data .*data"),
        (replace(run.asked, distill_epochs=9), "has the --teacher, --cut and --seed of this run"),
        (replace(run.asked, teacher="another"), "not rated yet"),
    ):
        write_json(other.folder / "run.json", asked)
        with pytest.raises(RequestError, match=says):
            other_run(str(other.folder), run.asked)
    with pytest.raises(RequestError, match="of this run"):
        other_run(str(run.folder), run.asked)
