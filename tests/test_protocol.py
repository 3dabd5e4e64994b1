"""The measuring protocol on visits made up by hand, and on a device that keeps its own clock."""

import math
import random
from collections import Counter

from profilers import Device, Model, Plan, Stop, Visit, measure, summarize

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


def test_without_anchors_any_number_of_models_is_visited_once_a_round():
    assert sorted(Plan(anchors=0).order(KEYS, 0)) == sorted(KEYS)


def test_named_anchors_are_the_ones_revisited():
    plan = Plan(same_anchors=("op7", "op8"))
    visits = Counter(plan.order(KEYS, 0))
    assert plan.anchor_keys(KEYS) == ("op7", "op8") and {key for key, count in visits.items() if count > 1} == {"op7", "op8"}


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
