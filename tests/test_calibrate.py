"""Calibration: exact where the truth is linear, honest about its error, refused where it cannot be."""

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from dna_deploy.calibrate import _ridge, calibrate, columns, networks_to_train
from dna_deploy.errors import RequestError
from dna_deploy.plugins import find

SPACE = find("spaces", "mobile").at(64, 10)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return [rng.normal(size=block.size) if block.size > 1 else np.zeros(1) for block in SPACE.blocks]


def _drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(block.size, size=count) for block in SPACE.blocks], 1)


def _sum(parts, choices):
    return sum(part[choices[:, k]] for k, part in enumerate(parts))


def test_a_score_that_counts_differently_in_each_block_is_put_right(scores):
    worth = [0, 3.0, 0.2, 1.0, 0.2, 2.0, 0, 0]
    true = [w * score for w, score in zip(worth, scores, strict=True)]
    choices, unseen = _drawn(40), _drawn(400, seed=1)
    error = np.exp(0.05 * _sum(true, choices) - 2)
    found = calibrate(SPACE, scores, choices, 1 - error)
    before = kendalltau(_sum(scores, unseen), _sum(true, unseen))[0]
    after = kendalltau(_sum(found.scores, unseen), _sum(true, unseen))[0]
    assert after > 0.7 and after > before + 0.1
    assert found.weights["b1"] > 2 * found.weights["b2"] and set(found.weights) == {f"b{n}" for n in range(1, 7)}
    assert found.networks == 40 and found.loo_tau > 0.7


def test_without_a_score_the_ops_and_their_cost_are_fitted():
    nothing = [np.zeros(block.size) for block in SPACE.blocks]
    macs = [np.array([sum(op.macs for op in c.ops) for c in block.candidates]) for block in SPACE.blocks]
    choices, unseen = _drawn(40), _drawn(400, seed=1)
    total = _sum(macs, choices)
    found = calibrate(SPACE, nothing, choices, 1 - 1 / (1 + 10 * total / total.max()))
    assert kendalltau(-_sum(found.scores, unseen), _sum(macs, unseen))[0] > 0.9


def test_noise_is_not_taken_for_knowledge(scores):
    found = calibrate(SPACE, scores, _drawn(40), np.random.default_rng(2).uniform(0.5, 0.9, 40))
    assert found.loo_error > 0.8 and found.loo_tau < 0.4


def test_leave_one_out_is_that_of_leaving_each_one_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 30))
    y = x[:, 0] + 0.1 * rng.normal(size=20)
    ridge, weights, predicted = _ridge(x, y)
    centred = Ridge(alpha=ridge)
    np.testing.assert_allclose(weights, centred.fit(x, y).coef_, rtol=1e-6, atol=1e-9)
    direct = cross_val_predict(Ridge(alpha=ridge), x, y, cv=LeaveOneOut())
    # the mean of all rows stands in for the intercept of each fit without one: equal up to a few per cent of the spread
    assert np.sqrt(np.mean((predicted - direct) ** 2)) < 0.1 * y.std()


def test_networks_that_cannot_tell_anything_are_refused(scores):
    with pytest.raises(RequestError, match=r"3 trained networks with accuracies 50.0%, 60.0%, 70.0%"):
        calibrate(SPACE, scores, _drawn(3), [0.5, 0.6, 0.7])
    with pytest.raises(RequestError, match=r"9 trained networks with accuracies 50.0%: a calibration needs 8"):
        calibrate(SPACE, scores, _drawn(9), [0.5] * 9)


def test_columns_describe_a_candidate(scores):
    blocks, names = columns(SPACE, scores)
    block, candidate = SPACE.blocks[2], SPACE.blocks[2].candidate("d2: k3e6 k3e6")
    row = dict(zip(names, blocks[2][block.candidates.index(candidate)], strict=True))
    assert (row["k3e6"], row["b2 k3e6"], row["b2 layer 1 k3e6"], row["b2 layer 2 k3e6"]) == (2, 2, 1, 1)
    assert row["b1 k3e6"] == row["b2 layer 1 k5e3"] == 0
    assert blocks[0].any() == np.False_  # the stem has no choice


def test_networks_to_train_try_everything_equally_often():
    networks = networks_to_train(SPACE, 24)
    assert len(networks) == 24 and networks == networks_to_train(SPACE, 24) != networks_to_train(SPACE, 24, seed=1)
    depths = [arch.candidates[3].cell.name for arch in networks]  # four depths
    assert {depths.count(name) for name in set(depths)} == {6}
    first = [arch.candidates[6].ops[0].label for arch in networks]  # one depth, six ops
    assert {first.count(label) for label in set(first)} == {4}


def test_no_network_is_trained_twice(tiny):
    networks = networks_to_train(tiny, 14)
    assert len(networks) == len(set(networks)) == 14
    assert len(networks_to_train(tiny, 40)) == tiny.size == 18
