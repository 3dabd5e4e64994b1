"""The additive score: what every rating of a candidate makes of it, worked out by another way than the code's."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from dna_deploy.plugins import find
from dna_deploy.ratings import Rating
from dna_deploy.scores import added_up, block_scores, imitation


@pytest.fixture(scope="module")
def mobile():
    return find("spaces", "mobile").at(64, 10)


def rated(space, error, others=lambda _block, _candidate: ()):
    """Ratings with the relative L1 that `error` and `others` say for a block and a candidate of it."""
    return {
        block.name: [
            Rating(block.name, candidate.text, error(block, candidate), 0.0, others(block, candidate))
            for candidate in block.candidates
        ]
        for block in space.blocks
        if block.size > 1
    }


def random_errors(seed=0):
    rng = np.random.default_rng(seed)
    return lambda _block, _candidate: float(rng.uniform(0.1, 0.9))


def fitted(cell, scores):
    """Least squares on one-hot ops of every layer."""
    rows = [
        [float(choice[layer] == op) for layer, ops in enumerate(cell.layers) for op in range(len(ops))]
        for choice in itertools.product(*(range(len(ops)) for ops in cell.layers))
    ]
    design = np.c_[np.array(rows), np.ones(len(rows))]
    return design @ np.linalg.lstsq(design, scores, rcond=None)[0]


def test_what_adds_up_is_the_least_squares_fit_of_the_layers(mobile):
    rng = np.random.default_rng(0)
    for block in mobile.blocks:
        for cell in block.cells:
            scores = rng.normal(size=cell.size)
            np.testing.assert_allclose(added_up(cell, scores), fitted(cell, scores), atol=1e-9)


def test_scores_that_add_up_over_the_layers_stay_as_they_are(mobile):
    worth = {}
    rng = np.random.default_rng(0)

    def error(block, candidate):
        ops = zip(itertools.count(), candidate.choice)
        return math.exp(sum(worth.setdefault((block.name, candidate.cell.name, *op), rng.normal()) for op in ops))

    ratings = rated(mobile, error)
    for block, scores in zip(mobile.blocks, imitation(mobile, ratings), strict=True):
        logs = [math.log(rating.relative_l1) for rating in ratings.get(block.name, [])] or [0.0]
        np.testing.assert_allclose(scores, logs, atol=1e-9)


def test_a_score_is_half_its_own_and_half_its_layers(mobile):
    ratings = rated(mobile, random_errors())
    for block, scores in zip(mobile.blocks, imitation(mobile, ratings), strict=True):
        ends = np.cumsum([cell.size for cell in block.cells])
        for cell, end in zip(block.cells, ends, strict=True):
            start = end - cell.size
            if block.size > 1:
                logs = np.log([rating.relative_l1 for rating in ratings[block.name][start:end]])
                np.testing.assert_allclose(scores[start:end], (logs + fitted(cell, logs)) / 2, atol=1e-9)


def test_every_teacher_has_the_same_say(mobile):
    errors = [random_errors(seed) for seed in range(3)]
    together = rated(mobile, errors[0], lambda *at: (errors[1](*at), errors[2](*at)))
    alone = [imitation(mobile, rated(mobile, random_errors(seed))) for seed in range(3)]
    for scores, *own in zip(imitation(mobile, together), *alone, strict=True):
        np.testing.assert_allclose(scores, np.mean(own, axis=0), atol=1e-9)


def test_a_calibration_that_is_whole_takes_over(mobile):
    ratings = rated(mobile, random_errors())
    weighed = {name: [replace(row, calibrated=float(at)) for at, row in enumerate(rows)] for name, rows in ratings.items()}
    for block, scores in zip(mobile.blocks, block_scores(mobile, weighed), strict=True):
        assert scores.tolist() == list(range(block.size))
    name = next(iter(weighed))
    weighed[name][0] = replace(weighed[name][0], calibrated=None)  # interrupted while it was written
    for scores, own in zip(block_scores(mobile, weighed), imitation(mobile, ratings), strict=True):
        np.testing.assert_array_equal(scores, own)
