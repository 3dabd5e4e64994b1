"""Limits of several kinds together: the networks found, and the reasons given, against every network of a small space."""

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from dna_deploy import limits
from dna_deploy.arch import Architecture
from dna_deploy.cli._command import Amount, Bytes
from dna_deploy.costs import sums
from dna_deploy.errors import NothingFits, RequestError
from dna_deploy.footprint import file_bytes, footprint
from dna_deploy.limits import Limit, Problem, Wanted, rounded_up
from dna_deploy.pins import allowed


def _networks(space):
    """Every network, with its choices, multiply-adds, parameters, file and peak bytes, each from its own ops."""
    found = []
    for choices in itertools.product(*(range(block.size) for block in space.blocks)):
        try:
            arch = Architecture(space, tuple(block.candidates[i] for block, i in zip(space.blocks, choices, strict=True)))
        except RequestError:
            continue
        prints = [footprint(op) for op in arch.ops]
        figures = arch.macs, arch.params, file_bytes(arch.ops, 10), max(p.peak_bytes for p in prints)
        found.append((choices, figures))
    return found


@pytest.fixture
def networks(widths):
    return _networks(widths)


def _problem(space, macs, params, file_size, memory):
    kinds = [limits.macs(space, macs), limits.params(space, params), limits.file_size(space, file_size)]
    return Problem(space, [*kinds, limits.memory(space, memory)], allowed(space))


def test_the_best_networks_are_those_of_brute_force(widths, networks):
    assert len(networks) == widths.size
    rng = np.random.default_rng(0)
    scores = [rng.standard_normal(block.size) for block in widths.blocks]
    figures = np.array([figure for _, figure in networks], float)
    met = 0
    for _ in range(20):
        most = [rng.choice(column) * rng.uniform(0.85, 1.1) for column in figures.T]
        fitting = [
            (sum(s[i] for s, i in zip(scores, choices, strict=True)), choices)
            for choices, figure in networks
            if all(value <= limit for value, limit in zip(figure, most, strict=True))
        ]
        problem = _problem(widths, *most)
        found = problem.best(scores, count=3)
        assert [one.choices for one in found] == [choices for _, choices in sorted(fitting)[:3]]
        without = problem.best(scores, excluded=[found[0].choices]) if found else []
        assert [one.choices for one in without] == [choices for _, choices in sorted(fitting)[1:2]]
        met += bool(fitting)
        if fitting:
            problem.require_feasible()
        else:
            with pytest.raises(NothingFits):
                problem.require_feasible()
    assert 5 < met < 18


def test_the_front_is_of_networks_within_the_peak(widths, networks):
    rng = np.random.default_rng(1)
    scores = [rng.standard_normal(block.size) for block in widths.blocks]
    middle = sorted(figure[3] for _, figure in networks)[len(networks) // 2]
    front = _problem(widths, 1e9, 1e9, 1e9, middle).front(scores)
    points = [
        (figure[0], sum(s[i] for s, i in zip(scores, choices, strict=True)))
        for choices, figure in networks
        if figure[3] <= middle
    ]
    best = sorted(p for p in points if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points))
    np.testing.assert_allclose(np.stack([front.costs, front.scores], axis=1), best)
    by_choices = dict(networks)
    assert [by_choices[tuple(row)][0] for row in front.choices.tolist()] == front.costs.tolist()


def test_what_fits_nothing_is_told_with_the_least_there_is(widths, networks):
    least = [min(figure[k] for _, figure in networks) for k in range(4)]
    with pytest.raises(NothingFits) as caught:
        _problem(widths, least[0] - 1, 1e9, 1e9, least[3] - 1).require_feasible()
    said = str(caught.value)
    assert f"fits --macs {(least[0] - 1) / 1e6}M, --memory {(least[3] - 1) / 1e6}MB; " in said and "\n" not in said
    named = re.findall(r"(--[a-z-]+) ([0-9.]+)(MB?)", said.split("each taken alone: ")[1])
    assert [flag for flag, _, _ in named] == ["--macs", "--params", "--file-size", "--memory"]
    most = [(Amount() if unit == "M" else Bytes()).convert(value + unit, None, None) for _, value, unit in named]
    assert all(value <= enough <= 1.001 * value for value, enough in zip(least, most, strict=True))
    for k in range(4):
        _problem(widths, *(most[k] if k == at else 1e9 for at in range(4))).require_feasible()


@pytest.mark.parametrize("value", [1400100, 1400400, 9999, 99999, 1234001, 8604800.5, 0.1 + 0.2, 1401000, 100000001])
def test_the_least_is_rounded_up_to_four_digits(value):
    enough = Fraction(rounded_up(value))
    step = 10 ** (Fraction(math.floor(math.log10(value))) - 3)
    assert 0 <= enough - Fraction(value) < step and abs(enough / step - round(enough / step)) < Fraction(1, 10**9)


@pytest.mark.parametrize("unit", ["k", "M", "G"])
def test_an_amount_is_what_its_digits_say(unit):
    for digits in range(1000, 10000, 7):
        assert Amount().convert(f"{digits // 1000}.{digits % 1000:03}{unit}", None, None) == digits * Amount.units[unit] // 1000


def test_budgets_are_written_as_they_were_asked():
    assert Wanted(1400400.0, 5e6, 10 * 2**20, 2.5e6).texts == [
        "--macs 1.4004M", "--params 5M", "--file-size 10.48576MB", "--memory 2.5MB",
    ]  # fmt: skip
    assert Wanted(macs=1400100.0).texts == ["--macs 1.4001M"]


def test_pins_and_bans_are_named_with_what_fits_nothing(tiny):
    least = min(
        limits.macs(tiny, 1.0).of(choices) for choices in itertools.product(*(range(block.size) for block in tiny.blocks))
    )
    Wanted(macs=least).problem(tiny, []).require_feasible()
    with pytest.raises(NothingFits, match=r"no network of tiny at 32 px with --pin b1=d2 --ban k3e1 fits --macs"):
        Wanted(macs=least, pins=("b1=d2",), bans=("k3e1",)).problem(tiny, []).require_feasible()


def _pair(space, one, other, peak=False):
    """A problem of two limits whose least values are met by different networks only."""
    free = lambda value: f"{value:g}"  # noqa: E731
    return Problem(space, [Limit("--one", 2.0, one, free), Limit("--other", 2.0, other, free, peak)], allowed(space))


@pytest.mark.parametrize("peak", [False, True])
def test_two_limits_that_conflict_are_named(tiny, peak):
    one = [np.zeros(block.size) for block in tiny.blocks]
    other = [np.zeros(block.size) for block in tiny.blocks]
    one[1], other[1] = np.array([9.0, 1, 3, 4, 5, 6]), np.array([1.0, 7, 5, 4, 3, 6])  # only the second keeps to the one
    with pytest.raises(
        NothingFits, match=re.escape("--one 2 and --other 2 conflict, within the first the least of the other is 7")
    ):
        _pair(tiny, one, other, peak).require_feasible()
    problem = _pair(tiny, one, other, peak)
    turned = Problem(tiny, problem.limits[::-1], problem.allowed)
    with pytest.raises(
        NothingFits, match=re.escape("--other 2 and --one 2 conflict, within the first the least of the other is 9")
    ):
        turned.require_feasible()


def test_three_limits_that_only_conflict_together(tiny):
    columns = np.array([[1, 1, 3], [1, 3, 1], [3, 1, 1], [9, 9, 9], [9, 9, 9], [9, 9, 9]], float)
    made = []
    for k in range(3):
        costs = [np.zeros(block.size) for block in tiny.blocks]
        costs[1] = columns[:, k]
        made.append(Limit(f"--l{k}", 2.0, costs, str))
    with pytest.raises(NothingFits, match=r"fits all of --l0 2\.0, --l1 2\.0, --l2 2\.0, though any two of them"):
        Problem(tiny, made, allowed(tiny)).require_feasible()
    Problem(tiny, made[:2], allowed(tiny)).require_feasible()


def test_two_sums_and_a_peak_that_only_conflict_together(tiny):
    columns = np.array([[1, 1, 3], [1, 3, 1], [3, 1, 1], [9, 9, 9], [9, 9, 9], [9, 9, 9]], float)
    costs = [[np.zeros(block.size) for block in tiny.blocks] for _ in range(3)]
    for k, own in enumerate(costs):
        own[1] = columns[:, k]
    made = [
        Limit("--one", 2.0, costs[0], str),
        Limit("--other", 2.0, costs[1], str),
        Limit("--peak", 2.0, costs[2], str, peak=True),
    ]
    with pytest.raises(NothingFits, match=r"fits all of --one 2\.0, --other 2\.0, --peak 2\.0, though any two of them"):
        Problem(tiny, made, allowed(tiny)).require_feasible()
    Problem(tiny, made[:2], allowed(tiny)).require_feasible()


def test_sums_of_a_limit_are_the_networks(widths, networks):
    limit = limits.params(widths, 1e9)
    for choices, figure in networks:
        assert sum(cost[i] for cost, i in zip(limit.costs, choices, strict=True)) == figure[1]
    assert limit.costs[1].tolist() == sums(widths.blocks[1], lambda op: op.params).tolist()
