"""Latencies from visits made up by hand and by devices whose speed changes while they are measured."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilers import Plan, Visit, leveled, leveled_sessions, own_speed, repeatability, scaled, summarize, summarize_all

KEYS = [f"op{number}" for number in range(40)]
TRUE_MS = {key: 0.1 * 1.15**number for number, key in enumerate(KEYS)}


def test_summary_by_hand():
    # lower quartile of each visit: 2, 4, 6 ms; the median of those is 4; three rounds are too few for an interval
    visits = [Visit("a", round, tuple(int(ms * 1e6) for ms in (9, q, q, 9, q))) for round, q in enumerate((2, 4, 6))]
    found = summarize(visits)
    assert (found.latency_ms, found.n, found.rounds) == (4.0, 15, 3)
    assert (found.low_ms, found.high_ms) == (0.0, math.inf) and found.interval_ms == (None, None)
    assert found.median_ms == 6.0 and found.p90_ms == 9.0


def test_interval_is_the_binomial_one():
    # ten rounds: ranks 2 and 9 (1-based) bound the median with 1 - 2 * (1 + 10) / 1024 = 97.9 %
    found = summarize(Visit("a", round, (1_000_000 * (round + 1),)) for round in range(10))
    assert (found.low_ms, found.high_ms, found.latency_ms) == (2.0, 9.0, 5.5) and found.interval_ms == (2.0, 9.0)


def test_interval_covers_the_median():
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        found = summarize(Visit("a", round, (int(1e6 * math.exp(rng.gauss(0, 0.3))),)) for round in range(15))
        covered += found.low_ms <= 1.0 <= found.high_ms
    assert covered / 400 >= 0.93


def taken(slow, rounds=24, keys=KEYS, noise=0.004, first=0, seed=0):
    """The visits of a session on a device that is `slow(visit)` times as slow; by `noise` at most each is too long."""
    rng, plan = random.Random(seed), Plan(anchors=3, seed=seed)
    order = [(round, key) for round in range(rounds) for key in plan.order(keys, round)]
    return [
        Visit(key, first + round, (int(1e6 * TRUE_MS[key] * slow(place) * rng.uniform(1, 1 + noise)),) * 4)
        for place, (round, key) in enumerate(order)
    ]


def apart(found):
    """How far the latencies are from the true ones, once a common factor is taken out: the worst of them."""
    ratios = [measured.latency_ms / TRUE_MS[key] for key, measured in found.items()]
    return max(abs(ratio / statistics.median(ratios) - 1) for ratio in ratios)


def test_a_steady_device_is_left_alone():
    visits = taken(lambda place: 1.0, noise=0)
    assert [visit.slowness for visit in leveled(visits)] == pytest.approx([1.0] * len(visits), rel=1e-4)
    assert leveled([]) == [] and summarize_all([]) == {}


def test_one_model_alone_tells_nothing_of_the_device():
    visits = [Visit("a", round, (1_000_000 * (1 + round % 2),)) for round in range(9)]
    assert leveled(visits) == visits


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1.0, 1.5), min_size=2, max_size=3), st.integers(8, 30), st.integers())
def test_two_models_tell_of_each_other(speeds, shortest, seed):
    """One may meet the slow stretches more often than the other: their visits alone would put them up to half apart."""
    rng, plan, slow = random.Random(seed), Plan(anchors=0, seed=seed), list[float]()
    while len(slow) < 48:
        slow += [rng.choice(speeds)] * rng.randint(shortest, 2 * shortest)
    order = [(round, key) for round in range(24) for key in plan.order(["a", "b"], round)]
    ns = {"a": 1_000_000, "b": 4_000_000}
    visits = [Visit(key, round, (int(ns[key] * slow[place]),)) for place, (round, key) in enumerate(order)]
    found = summarize_all(leveled(visits))
    assert found["b"].latency_ms / found["a"].latency_ms == pytest.approx(4, rel=0.01)


def test_two_models_of_which_one_meets_the_fast_moments_more_often():
    order = "aaa" + "ab" * 8 + "ba" * 8
    ns, slow = {"a": 1_000_000, "b": 2_000_000}, [1.0] * 19 + [1.4] * 16
    visits = [Visit(key, place, (int(ns[key] * slow[place]),)) for place, key in enumerate(order)]
    assert summarize(visit for visit in visits if visit.key == "a").latency_ms == pytest.approx(1.0)
    assert summarize(visit for visit in visits if visit.key == "b").latency_ms == pytest.approx(2.4)  # half of them at 2.8
    found = summarize_all(leveled(visits))
    assert found["b"].latency_ms / found["a"].latency_ms == pytest.approx(2, rel=0.01)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.6, 1.5), min_size=2, max_size=5), st.integers(16, 80), st.integers())
def test_a_device_that_changes_its_speed_within_the_rounds_is_seen_through(speeds, shortest, seed):
    """However often and by how much, as long as a speed lasts for some twenty visits."""
    rng, slow = random.Random(seed), list[float]()
    while len(slow) < 24 * 44:
        slow += [rng.choice(speeds)] * rng.randint(shortest, 2 * shortest)
    found = summarize_all(leveled(taken(slow.__getitem__, seed=seed)))
    assert apart(found) < 0.02
    level = statistics.median(measured.latency_ms / TRUE_MS[key] for key, measured in found.items())
    assert 0.97 * min(slow) < level < 1.15 * statistics.median(slow)


@pytest.mark.parametrize("cool", range(5, 24, 3))
def test_a_session_throttled_keeps_the_device_at_its_own_speed(cool):
    visits = taken(lambda place: 1.0 if place < cool * 44 else 1.6)
    for key, found in summarize_all(leveled(visits)).items():
        assert found.latency_ms == pytest.approx(TRUE_MS[key], rel=0.01) and found.halfwidth < 0.01


def test_a_warm_up_is_divided_out():
    found = summarize_all(leveled(taken(lambda place: 1 + 0.9 * 0.98**place)))
    assert all(measured.latency_ms == pytest.approx(TRUE_MS[key], rel=0.01) for key, measured in found.items())


def test_what_was_taken_while_the_device_was_far_too_slow_does_not_count_where_enough_does():
    """Models do not all slow down alike: here the first one does not at all."""

    def visits(rounds_slow):
        slow = {round: 1.0 if round >= rounds_slow else 3.0 for round in range(12)}
        return [
            Visit(key, round, (int(TRUE_MS[key] * 1e6 * (1 if key == "op0" else slow[round])),))
            for round in slow
            for key in KEYS[:8]
        ]

    assert summarize_all(leveled(visits(6)))["op0"].latency_ms == pytest.approx(TRUE_MS["op0"], rel=1e-3)
    few = summarize_all(leveled(visits(7)))["op0"]
    assert few.rounds == 12 and few.low_ms < TRUE_MS["op0"] / 2  # all of them count, and the interval says how far apart they are


def test_own_speed_is_the_fastest_that_lasted():
    assert own_speed([1.0] * 9) == 1.0
    assert own_speed([1.0] * 3 + [1.5] * 9) == 1.0
    assert own_speed([1.0] * 2 + [1.5] * 10) == 1.5  # less than a fifth
    assert own_speed([1.0, 1.02, 1.04, 1.1, 1.3, 2.0]) == 1.02
    assert own_speed([2.0]) == 2.0


def test_later_sessions_are_brought_to_the_first_ones_speed():
    first = taken(lambda place: 1.0, rounds=9, keys=KEYS[:20])
    second = taken(lambda place: 1.3, rounds=9, keys=[*KEYS[:3], *KEYS[20:]], first=9)
    visits = leveled_sessions([first, second])
    assert own_speed([visit.slowness for visit in visits if visit.round >= 9]) == pytest.approx(1.3, rel=0.01)
    found = summarize_all(visits)
    assert all(found[key].latency_ms == pytest.approx(TRUE_MS[key], rel=0.01) for key in KEYS)
    alone = summarize_all(leveled_sessions([first]))
    assert all(found[key] == alone[key] for key in KEYS[3:20])  # nothing measured later moves them


def test_a_session_without_any_model_of_the_first_has_no_speed():
    first, second = (
        taken(lambda place: 1.0, rounds=6, keys=keys, first=start) for keys, start in ((KEYS[:9], 0), (KEYS[9:18], 6))
    )
    visits = leveled_sessions([first, second])
    assert {math.isnan(visit.slowness) for visit in visits if visit.round >= 6} == {True}
    assert summarize_all(visits)[KEYS[9]].latency_ms == pytest.approx(TRUE_MS[KEYS[9]], rel=0.01)  # as if 1.0


@given(st.integers(1, 5), st.floats(0.5, 2.0), st.integers(6, 9), st.floats(0.5, 2.0))
@settings(deadline=None)
def test_a_session_killed_early_does_not_set_the_speed(killed, slow, rounds, later):
    """Six rounds do, and whatever is measured behind them does not."""
    parts = ((slow, killed, 0), (1.0, rounds, killed), (later, 9, killed + rounds))
    sessions = [taken(lambda place, slow=slow: slow, count, KEYS[:6], 0, first) for slow, count, first in parts]
    for session, (slow, _, first) in zip(sessions, parts, strict=True):
        visits = [visit for visit in leveled_sessions(sessions) if first <= visit.round < first + len(session) / 7]
        assert [visit.slowness for visit in visits] == pytest.approx([slow] * len(visits), rel=1e-4)


def test_repeatability_is_the_difference_between_halves():
    visits = [Visit("a", round, (1_000_000 + 100_000 * (round % 2),)) for round in range(8)]
    assert repeatability(visits) == pytest.approx(0.1 / 1.05)
    assert repeatability([Visit("a", 0, (5,))]) == math.inf


def test_scaling_scales_every_time():
    found = scaled(summarize(Visit("a", round, (1_000_000, 3_000_000)) for round in range(8)), 2.0)
    assert (found.latency_ms, found.low_ms, found.high_ms, found.median_ms, found.p90_ms) == (2.0, 2.0, 2.0, 4.0, 6.0)
    assert found.n == 16
