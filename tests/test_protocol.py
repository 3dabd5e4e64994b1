"""The measuring protocol on visits made up by hand, and on a device that keeps its own clock."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilers import Device, Model, Plan, Stop, Visit, drift_of_sessions, measure, repeatability, scaled, settled, summarize

KEYS = [f"op{number}" for number in range(40)]


def test_every_round_visits_every_model_and_the_anchors_more():
    plan = Plan(anchors=3, anchor_every=12)
    anchors = plan.anchor_keys(KEYS)
    assert len(set(anchors)) == 3
    for round in range(5):
        visits = Counter(plan.order(KEYS, round))
        assert set(visits) == set(KEYS)
        assert {key for key, count in visits.items() if count > 1} <= set(anchors)
        assert sum(visits.values()) == len(KEYS) + math.ceil(len(KEYS) / 12)


def test_the_order_changes_with_the_round_and_repeats_with_the_seed():
    assert Plan().order(KEYS, 0) != Plan().order(KEYS, 1)
    assert Plan().order(KEYS, 3) == Plan().order(KEYS, 3)
    assert Plan(seed=1).order(KEYS, 3) != Plan().order(KEYS, 3)


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


def test_drift_is_seen_and_taken_out():
    slow = {0: 1.0, 1: 1.5, 2: 1.0, 3: 1.0}
    visits = [Visit(key, r, (int(base * f * 1e6),)) for r, f in slow.items() for key, base in (("a", 1), ("b", 4), ("c", 2))]
    (drift,) = drift_of_sessions(visits, ["a", "b"], [0])
    assert drift == pytest.approx(slow)
    spoilt = [visit for visit in visits if visit.key == "c"]
    assert summarize(spoilt, drift).high_ms == summarize(spoilt).high_ms == math.inf
    assert summarize(spoilt[1:2], drift).latency_ms == pytest.approx(2.0, abs=1e-5)


def test_an_anchor_of_one_session_does_not_hide_how_slow_that_session_was():
    slow = dict.fromkeys(range(8), 1.0) | dict.fromkeys(range(8, 16), 1.3)
    anchors = {"a": range(16), "b": range(8, 16), "c": range(8, 16)}  # b and c ran in the slow session only
    visits = [Visit(key, round, (int(1e6 * slow[round]),)) for key, rounds in anchors.items() for round in rounds]
    first, second = drift_of_sessions(visits, list(anchors), [0, 8])
    assert (first[0], second[8]) == pytest.approx((1.0, 1.3))


@settings(deadline=None)
@given(st.integers(0, 24), st.floats(1.1, 3.0), st.booleans(), st.integers())
def test_a_device_that_changes_its_speed_is_given_one_it_ran_at(turn, factor, cools, seed):
    rng = random.Random(seed)
    slow = [factor if (round < turn) == cools else 1.0 for round in range(24)]
    visits = [Visit(key, round, (int(1e6 * slow[round] * rng.uniform(1, 1.004)),) * 4) for round in range(24) for key in KEYS]
    (drift,) = drift_of_sessions(visits, KEYS[:3], [0])
    kept = settled(drift)
    found = summarize((visit for visit in visits if visit.key == "op7" and visit.round in kept), drift)
    assert min(abs(found.latency_ms / level - 1) for level in slow) < 0.006
    assert found.halfwidth < 0.01


@given(st.integers(1, 5), st.floats(0.5, 2.0), st.integers(6, 9), st.floats(0.5, 2.0))
def test_a_session_killed_early_does_not_set_the_speed(killed, slow, rounds, later):
    """Six rounds do, and whatever is measured behind them does not."""
    slowness = [*[slow] * killed, *[1.0] * rounds, *[later] * 9]
    visits = [Visit("a", round, (int(1e6 * slow),)) for round, slow in enumerate(slowness)]
    starts = [0, killed, killed + rounds]
    drift = [slow for session in drift_of_sessions(visits, ["a"], starts) for slow in session.values()]
    assert drift == pytest.approx(slowness, rel=1e-5)


def test_without_anchors_any_number_of_models_is_visited_once_a_round():
    assert sorted(Plan(anchors=0).order(KEYS, 0)) == sorted(KEYS)


def test_named_anchors_are_the_ones_revisited():
    plan = Plan(same_anchors=("op7", "op8"))
    visits = Counter(plan.order(KEYS, 0))
    assert plan.anchor_keys(KEYS) == ("op7", "op8") and {key for key, count in visits.items() if count > 1} == {"op7", "op8"}


def test_a_round_far_off_is_rejected_and_a_warm_up_is_found():
    steady = dict.fromkeys(range(12), 1.0)
    assert settled(steady) == set(range(12))
    assert settled(steady | {5: 1.5, 8: 0.7}) == set(range(12)) - {5}  # what ran in peace is never rejected
    assert settled(steady | {0: 1.2, 1: 1.1}) == set(range(2, 12))
    assert settled(steady | {0: 1.04, 6: 1.2}) == set(range(12))  # divided out, not rejected
    assert settled({0: 2.0, 1: 1.0, 2: 1.0}) == {0, 1, 2}  # too few to tell
    assert settled(dict(enumerate((1.2, 1.1, 1.0, 1.0, 1.0, 1.0, 1.6, 1.7)))) == {1, 2, 3, 4, 5, 0}  # an interval needs six
    assert settled({}) == set()


@pytest.mark.parametrize("cool", range(4, 12))
def test_a_session_throttled_keeps_the_device_at_its_own_speed(cool):
    drift = {round: 1.0 if round < cool else 1.5 for round in range(12)}
    assert settled(drift) >= set(range(cool)) and len(settled(drift)) == max(cool, 6)


def test_repeatability_is_the_difference_between_halves():
    visits = {"a": [Visit("a", round, (1_000_000 + 100_000 * (round % 2),)) for round in range(8)]}
    assert repeatability(visits) == pytest.approx(0.1 / 1.05)
    assert repeatability({"a": [Visit("a", 0, (5,))]}) == math.inf


def test_scaling_scales_every_time():
    found = scaled(summarize(Visit("a", round, (1_000_000, 3_000_000)) for round in range(8)), 2.0)
    assert (found.latency_ms, found.low_ms, found.high_ms, found.median_ms, found.p90_ms) == (2.0, 2.0, 2.0, 4.0, 6.0)
    assert found.n == 16


class SteadyDevice:
    """A device whose models take a fixed time, with a little noise; counts how it was used."""

    def __init__(self, noise):
        self.noise, self.closed = noise, False

    def visits(self, device, models, plan):
        rng = random.Random(0)
        try:
            for round in range(plan.rounds):
                for key in plan.order([model.key for model in models], round):
                    yield Visit(key, round, tuple(int(1e6 * rng.uniform(1, 1 + self.noise)) for _ in range(plan.runs)))
        finally:
            self.closed = True


MODELS = [Model(key, b"") for key in KEYS]


def test_measuring_stops_when_the_intervals_are_narrow():
    device = SteadyDevice(noise=0.001)
    visits = list(measure(device, Device("x", "host"), MODELS, Plan(rounds=30), Stop(halfwidth=0.02, seconds=1e9, min_rounds=8)))
    assert max(visit.round for visit in visits) == 7  # whole rounds 0 to 7
    assert device.closed


class JumpingClock:
    """A device whose clock is set back during the second visit of a round and forward during the third."""

    def visits(self, device, models, plan):
        for round in range(plan.rounds):
            for place, model in enumerate(models):
                ns = [1_000_000] * 5
                ns[0] += {1: -3_600_000_000_000, 2: 3_600_000_000_000}.get(place, 0) if round == 3 else 0
                yield Visit(model.key, round, tuple(ns))


def test_a_clock_that_jumps_changes_no_figure(caplog):
    visits = list(measure(JumpingClock(), Device("x", "host"), MODELS[:4], Plan(rounds=8), Stop()))
    assert len(visits) == 8 * 4 - 1 and all(min(visit.ns) > 0 for visit in visits)
    assert "clock went backwards during op1" in caplog.text
    for model in MODELS[:4]:
        assert summarize(visit for visit in visits if visit.key == model.key).latency_ms == 1.0


def test_why_it_ended_is_said():
    def why(noise, rounds, stop):
        source = measure(SteadyDevice(noise), Device("x", "host"), MODELS, Plan(rounds=rounds), stop)
        while True:
            try:
                next(source)
            except StopIteration as end:
                return end.value

    assert why(0.001, 30, Stop(halfwidth=0.02, seconds=1e9)) == "every interval is within 2.0%"
    assert why(3.0, 9, Stop(halfwidth=0.001, seconds=1e9)) == "all 9 rounds are done"
    assert why(1.0, 30, Stop(seconds=0.0)) == "the 0 s are spent"


def test_measuring_goes_to_the_end_where_it_is_noisy():
    visits = list(
        measure(SteadyDevice(noise=3.0), Device("x", "host"), MODELS, Plan(rounds=12), Stop(halfwidth=0.001, seconds=1e9))
    )
    assert Counter(visit.key for visit in visits)["op1"] >= 12


def test_measuring_stops_when_the_time_is_spent():
    device = SteadyDevice(noise=1.0)
    visits = list(measure(device, Device("x", "host"), MODELS, Plan(rounds=30), Stop(seconds=0.0)))
    assert {visit.round for visit in visits} == {0}  # the round that was under way is whole
    assert device.closed
