"""Several budgets at once, several networks, matching widths: the integer program against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dna_deploy.errors import MachineError
from dna_deploy.milp import Program, best


def _networks(program):
    """(score, choices) of every network that is allowed, best first."""
    found = []
    for choices in itertools.product(*(range(len(score)) for score in program.scores)):
        links = [link[index] for link, index in zip(program.links, choices, strict=True)]
        fits = all(a[1] == b[0] for a, b in itertools.pairwise(links))
        total = sum(cost[index] for cost, index in zip(program.costs, choices, strict=True))
        if fits and (total <= program.limits).all():
            found.append((sum(score[i] for score, i in zip(program.scores, choices, strict=True)), choices))
    return sorted(found)


@st.composite
def programs(draw):
    """Up to four blocks of up to five candidates, three budgets, two widths; whole numbers, so that ties and limits are met."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = rng.integers(1, 6, draw(st.integers(1, 4)))
    return Program(
        [rng.integers(-9, 10, size).astype(float) for size in sizes],
        [rng.integers(0, 10, (size, 3)).astype(float) for size in sizes],
        [rng.integers(0, draw(st.integers(1, 2)), (size, 2)) for size in sizes],
        rng.integers(1, 9 * len(sizes) + 1, 3).astype(float),
    )


@settings(max_examples=150, deadline=None)
@given(programs())
def test_the_optimum_is_that_of_brute_force_and_is_proven(program):
    expected, found = _networks(program), best(program)
    assert len(found) == min(1, len(expected))
    if found:
        assert found[0].score == expected[0][0] and (found[0].score, found[0].choices) in expected
        assert found[0].gap <= 1e-6


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(1, 3))
def test_each_further_network_is_the_best_that_differs_enough(program, apart):
    def far(networks, from_):
        return [(s, c) for s, c in networks if sum(a != b for a, b in zip(c, from_, strict=True)) >= apart]

    every = _networks(program)
    for better in ([], [choices for _, choices in every[-1:]]):
        remaining = far(every, better[0]) if better else every
        further = best(program, count=4, apart=apart, better=better)
        for found in further:
            assert found.score == remaining[0][0] and (found.score, found.choices) in remaining
            remaining = far(remaining, found.choices)
        assert len(further) == 4 or not remaining


@settings(max_examples=60, deadline=None)
@given(programs())
def test_what_is_excluded_is_left_out_alone(program):
    every = _networks(program)
    for found in best(program, count=3, apart=2, excluded=[choices for _, choices in every[:2]])[:1]:
        assert found.score == every[2][0] and (found.score, found.choices) in every[2:]
        assert found.bound <= found.score
    assert len(every) < 3 or best(program, excluded=[choices for _, choices in every[:2]])


def test_candidates_left_out_at_first_are_brought_in():
    """More candidates than enter the first program, and nothing among them fits: only the largest score does."""
    score = np.arange(500.0)
    cost = np.where(score == 499, 1.0, 3.0)[:, None]
    link = np.zeros((500, 2), int)
    (found,) = best(Program([score, score], [cost, cost], [link, link], np.array([2.0])))
    assert found.choices == (499, 499) and found.gap == 0


def test_what_is_not_decided_in_time_is_not_answered_with_nothing_fits():
    rng = np.random.default_rng(0)
    scores, costs = ([rng.normal(size=300) for _ in range(8)], [rng.random((300, 4)) for _ in range(8)])
    program = Program(scores, costs, [np.zeros((300, 2), int)] * 8, np.full(4, 2.0))
    with pytest.raises(MachineError, match=r"not decided within 1e-06 s \(Time limit reached\); loosen") as caught:
        best(program, seconds=1e-6)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    cheapest = [int(cost.max(1).argmin()) for cost in costs]
    assert program.fits(cheapest)  # something does fit


@pytest.mark.parametrize("seed", range(3))
def test_a_sampled_network_is_never_better_on_a_large_instance(seed):
    rng = np.random.default_rng(seed)
    sizes = [40, 300, 500, 200]
    costs = [rng.random((size, 4)) + 0.2 for size in sizes]
    scores = [-cost.sum(1) + 0.3 * rng.standard_normal(len(cost)) for cost in costs]
    links = [np.zeros((size, 2), int) for size in sizes]
    limits = np.full(4, 2.4)
    (found,) = best(Program(scores, costs, links, limits))
    drawn = [rng.integers(size, size=200_000) for size in sizes]
    total = sum(cost[at] for cost, at in zip(costs, drawn, strict=True))
    score = sum(values[at] for values, at in zip(scores, drawn, strict=True))
    assert found.gap <= 1e-6 and score[(total <= limits).all(1)].min() >= found.score


def test_an_instance_whose_optimum_the_presolve_of_highs_lost():
    """Costs of one block a millionth of another's; networks found before are kept apart from."""
    scores = [
        [-0.03992466, -1.257737, 2.574023, 0.481798],
        [0.6435466, -0.2079267, 0.05828708, 0.3367426],
        [-0.6093145, 0.6146804, 0.4904031, -0.1182644],
        [-0.008793664, -0.01008028, 0.002766291, -0.003509065, 0.008710606],
        [-44.38891, 36.28751],
    ]
    first = [
        [0.0006274956, 0.0002865582, 0.0007209405, 8.103476e-06],
        [0.8554845, 0.5828755, 0.01861669, 0.6549266],
        [0.5975747, 0.4732233, 0.2904059, 0.3911457],
        [0.1627139, 0.4906278, 0.9428942, 0.01697238, 0.6011652],
        [0.0009439171, 0.0003955761],
    ]
    second = [
        [328646.1, 556729.9, 165929, 39955.67],
        [800384, 533567.1, 920290.7, 339408.9],
        [0.1718748, 0.5495379, 0.2031859, 0.3276684],
        [0.2923856, 0.9907047, 0.454078, 0.02847283, 0.6687159],
        [0.3102328, 0.5651381],
    ]
    links = [
        [[0, 0], [0, 0], [0, 0], [0, 0]],
        [[0, 1], [0, 0], [0, 1], [0, 0]],
        [[1, 0], [0, 0], [1, 1], [0, 1]],
        [[1, 0], [0, 0], [0, 0], [1, 0], [0, 0]],
        [[0, 0], [0, 0]],
    ]
    costs = [np.array(pair).T for pair in zip(first, second, strict=True)]
    limits = np.array([1.620351, 668057.3])
    program = Program([np.array(score) for score in scores], costs, [np.array(link) for link in links], limits)
    remaining, before = _networks(program), [(3, 1, 3, 0, 0), (3, 1, 3, 3, 0)]
    for found in best(program, count=5, apart=2, better=before):
        remaining = [own for own in remaining if all(sum(map(int.__ne__, own[1], one)) >= 2 for one in before)]
        assert found.choices == remaining[0][1]
        before.append(found.choices)
