"""What the regressor is told of ops, and which of them are worth measuring."""

import numpy as np
import pytest

from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.plugins import find
from dna_deploy.predictor import known_ops
from dna_deploy.table import LatencyTable, find_table
from dna_deploy.transfer import describe, held_out, transfer, worth_measuring

OPS = [
    Conv(32, 3, 16, kernel=3, stride=2),
    MBConv(16, 16, 24, kernel=5, expand=4, stride=2, act="silu", se=0.25),
    MBConv(8, 24, 24, kernel=3, expand=6),
    Classifier(8, 24, 10),
]


def test_ops_that_differ_are_described_differently():
    items = describe(OPS, [{OPS[0]: 1.5}, dict.fromkeys(OPS, 2.0)])
    assert len(np.unique(items.features, axis=0)) == len(OPS)
    assert items.costs[:3, 0].tolist() == [op.macs for op in OPS[:3]] and items.costs[0, 1] == OPS[0].bytes_moved
    assert items.costs[3, 0] == OPS[3].bytes_moved // 4 > OPS[3].macs  # as many operations as there are elements, at least
    assert np.isnan(items.sources_ms[1:, 0]).all() and items.sources_ms[0].tolist() == [1.5, 2.0]


def test_bytes_moved_by_hand():
    conv = Conv(4, 2, 3, kernel=1)  # 2 * 3 weights and 2 * 3 of BatchNorm, 2 and 3 channels of 16 pixels
    assert conv.bytes_moved == 4 * (12 + 32 + 48)
    deep = MBConv(4, 2, 2, kernel=3, expand=6, stride=2)  # 12 channels between: 16 pixels, then 4; written and read
    assert deep.bytes_moved == 4 * (deep.params + 32 + 8 + 2 * 12 * (16 + 4))


def test_what_is_measured_holds_the_ends_of_everything():
    """So nothing that is left to predict lies outside, whatever the number asked for beyond the ends."""
    ops = find("spaces", "mobile").at(96, 4).ops
    items = describe(ops)
    rows = worth_measuring(items, 14)
    values = np.c_[items.features, items.costs]
    assert len(rows) == len(set(rows)) == 14
    np.testing.assert_allclose(values[rows].min(0), values.min(0))
    np.testing.assert_allclose(values[rows].max(0), values.max(0))
    known = {ops[row]: 0.1 + 1e-8 * ops[row].macs for row in rows}
    assert not any(found.extrapolated for found in transfer(known, [op for op in ops if op not in known]).values())


def test_only_what_is_allowed_is_measured():
    items = describe(find("spaces", "mobile").at(96, 4).ops)
    rows = worth_measuring(items, 12, among=range(0, 70, 2))
    assert len(rows) == 12 and all(row % 2 == 0 for row in rows)


def test_the_error_of_predicted_ops_is_that_of_ops_left_out():
    ops = find("spaces", "mobile").at(96, 4).ops
    exact = held_out({op: 0.1 + 1e-8 * op.macs for op in ops})
    rng = np.random.default_rng(0)
    noisy = held_out({op: (0.1 + 1e-8 * op.macs) * float(np.exp(rng.normal(0, 0.2))) for op in ops})
    assert exact < 0.05 < 0.1 < noisy < 0.4
    assert held_out(dict.fromkeys(ops[:10], 1.0)) is None


@pytest.mark.parametrize("count", [10, 14, 20])
def test_intervals_hold_on_real_phones_from_few_ops(count):
    """Of 95 %: ops that others measured on three phones, each predicted from a few of them, drawn or chosen."""
    held = []
    for name in ("pixel1", "samsung_note10", "pixel6"):
        known = {op: found.latency_ms for op, found in known_ops(LatencyTable.load(find_table(name))).items()}
        rng = np.random.default_rng(count)
        for _ in range(2):
            ops = [list(known)[place] for place in rng.permutation(len(known))[:100]]
            for rows in (range(count), worth_measuring(describe(ops), count, range(50))):
                measured = {ops[row]: known[ops[row]] for row in rows}
                guesses = transfer(measured, [op for op in ops if op not in measured])
                held += [
                    abs(np.log(known[op] / guess.ms)) <= 1.96 * guess.sd_ms / guess.ms
                    for op, guess in guesses.items()
                    if not guess.extrapolated
                ]
    assert len(held) > 300 and 0.93 <= np.mean(held) < 1
