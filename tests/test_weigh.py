"""A rated run gets further scores: networks are trained once, the pick follows, and nothing else is touched."""

import numpy as np
import pytest

from dna_deploy.data import open_source
from dna_deploy.files import read_json
from dna_deploy.plugins import find
from dna_deploy.ratings import load_ratings
from dna_deploy.run import Asked, open_run
from dna_deploy.search import block_scores, rate_all
from dna_deploy.weigh import TrainedNetworks, calibrate_run, replace_one_run
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


def test_calibrating_trains_networks_once_and_the_scores_follow(rated, monkeypatch):
    run, space = rated
    before = load_ratings(run.ratings, space.blocks)
    plain = block_scores(space, before)
    found = calibrate_run(run, space, 8)
    kept = read_json(run.folder / "calibration.json", TrainedNetworks)
    assert len(kept.accuracies) == found.networks == 8 and all(0 <= value <= 1 for value in kept.accuracies.values())
    assert kept.calibration["loo_tau"] == found.loo_tau
    after = load_ratings(run.ratings, space.blocks)
    for block, scores, log in zip(space.blocks, block_scores(space, after), plain, strict=True):
        if block.size > 1:
            np.testing.assert_allclose(scores, found.scores[space.blocks.index(block)])
            assert [row.relative_l1 for row in after[block.name]] == [row.relative_l1 for row in before[block.name]]
            np.testing.assert_allclose(log, np.log([row.relative_l1 for row in before[block.name]]))

    def nothing(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("dna_deploy.weigh.inherit_and_train", nothing)
    assert calibrate_run(run, space, 8).loo_tau == found.loo_tau


def test_replacing_one_is_kept_beside_the_other_scores(rated):
    from dna_deploy.arch import Architecture

    run, space = rated
    before = load_ratings(run.ratings, space.blocks)
    replace_one_run(run, Architecture(space, tuple(block.candidates[0] for block in space.blocks)), images=16)
    after = load_ratings(run.ratings, space.blocks)
    for name, rows in after.items():
        assert all(row.replace_one > 0 for row in rows)
        assert [row.relative_l1 for row in rows] == [row.relative_l1 for row in before[name]]
    own = [rows[0].replace_one for rows in after.values()]  # the reference itself, seen from each block
    assert own[0] == pytest.approx(own[1], rel=1e-4)
