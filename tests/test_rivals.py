"""The rivals of a score: it is found out where it is only the cost, and cleared where it knows something else."""

import numpy as np
import pytest

from dna_deploy.plugins import find
from dna_deploy.rivals import rivalry

SPACE = find("spaces", "mobile").at(64, 10)
MACS = [np.array([sum(op.macs for op in c.ops) for c in block.candidates], float) for block in SPACE.blocks]
PARAMS = [np.array([sum(op.params for op in c.ops) for c in block.candidates], float) for block in SPACE.blocks]


def test_a_score_that_is_the_cost_is_found_out():
    found = rivalry(SPACE, [-values for values in MACS], MACS)
    assert [row.block for row in found] == ["b1", "b2", "b3", "b4", "b5", "b6"]
    assert all(row.macs == pytest.approx(1) for row in found)
    assert [row.candidates for row in found] == [block.size for block in SPACE.blocks[1:7]]
    assert found[2].at_equal_cost == pytest.approx(1) and found[2].spread < 0.05
    assert found[5].at_equal_cost is None  # six candidates are too few to compare among equals


def test_a_score_of_its_own_keeps_its_spread_at_equal_cost():
    rng = np.random.default_rng(0)
    found = rivalry(SPACE, [rng.normal(size=block.size) for block in SPACE.blocks], MACS)
    wide = found[2]
    assert abs(wide.macs) < 0.1 and abs(wide.at_equal_cost) < 0.2 and wide.spread > 0.8


def test_parameters_are_a_rival_of_their_own():
    found = rivalry(SPACE, [-values for values in PARAMS], MACS)[2]
    assert found.params == pytest.approx(1) and found.macs < 1


def test_a_constant_score_agrees_with_nothing():
    found = rivalry(SPACE, [np.zeros(block.size) for block in SPACE.blocks], MACS)[1]
    assert (found.macs, found.params, found.at_equal_cost, found.spread) == (0, 0, 0, None)
