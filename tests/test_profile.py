"""The first recipe on a simulated device of known speed: what does not fit the time is predicted, and says so."""

import contextlib
import json
import math
import random
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dna_deploy import plugins
from dna_deploy import profile as recipe
from dna_deploy.arch import Architecture
from dna_deploy.errors import RequestError, TableError
from dna_deploy.ops import parse
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor, known_ops, open_predictor
from dna_deploy.profile import Pace, affordable, predicted_rows, profile, wanted
from dna_deploy.table import LatencyTable, PredictedRow, Published, appending, create, has_interval, header_of
from profilers import Device, Plan, Stop, Visit, by_key, protocol

DEVICE = Device("sim", "host")
UNANCHORED = Plan(anchors=0, anchor_every=10**6)


@cache
def true_ms(key):
    """Of an op: 20 us and a time for its multiply-adds and bytes; of a network: 0.95 of the sum."""
    if Architecture.is_key(key):
        return 0.95 * sum(true_ms(op.key) for op in Architecture.parse(key).ops)
    op = parse(key)
    return 0.02 + 2e-8 * op.macs + 2e-7 * op.bytes_moved * (1.2 if getattr(op, "kernel", 3) > 3 else 1.0)


class Clock:
    """Time as the device spends it, so that nothing depends on how busy the machine of the test is."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Simulated:
    """Visits take `visit_s` each, behind `setup_s`; `slow` is its slowness in a round."""

    def __init__(self, visit_s=0.0, slow=lambda round: 1.0, setup_s=0.0):
        self.visit_s, self.slow, self.setup_s, self.clock = visit_s, slow, setup_s, Clock()

    def environment(self, device):
        return {"runtime": "simulated 1"}

    def conditions(self, device):
        return {"load": 0.25}

    def visits(self, device, models, plan):
        rng = random.Random(0)
        self.clock.now += self.setup_s
        for round in range(plan.rounds):
            for key in plan.order([model.key for model in models], round):
                self.clock.now += self.visit_s
                ms = true_ms(key) * self.slow(round)
                yield Visit(key, round, tuple(int(1e6 * ms * rng.uniform(1, 1.004)) for _ in range(plan.runs)))


@pytest.fixture
def simulate(monkeypatch):
    def use(simulated):
        monkeypatch.setattr(recipe, "find_profiler", lambda device: simulated)
        monkeypatch.setattr(recipe, "time", simulated.clock)
        monkeypatch.setattr(protocol, "time", simulated.clock)
        return simulated

    return use


@pytest.fixture(scope="module")
def mobile():
    return find("spaces", "mobile").at(64, 10)


def test_what_fits_is_measured_whole(workdir, simulate, tiny):
    simulate(Simulated())
    done = profile(DEVICE, tiny, workdir / "t.jsonl", validate=10, plan=Plan(rounds=12), stop=Stop(seconds=60))
    assert done.account.measured == len(tiny.ops) and not done.account.predicted and not done.table.predicted
    assert "within 2.0%" in done.ended
    (session,), (end,) = done.table.sessions, done.table.ends
    assert end.why == done.ended and session.conditions == end.conditions == {"load": 0.25}


def test_an_op_unknown_here_is_refused_before_anything_is_measured(workdir, simulate, tiny):
    simulate(Simulated())
    with appending(workdir / "t.jsonl", header_of(DEVICE, {"runtime": "simulated 1"}, "")) as out:
        out.add(Published("magic(hw=3)", 1.0, None, 1))
    with pytest.raises(TableError, match="magic"):
        profile(DEVICE, tiny, workdir / "t.jsonl", validate=0, plan=UNANCHORED, stop=Stop())
    assert not LatencyTable.load(workdir / "t.jsonl").visits


def test_a_guess_at_an_op_unknown_here_is_dropped(workdir, simulate, tiny):
    simulate(Simulated())
    with appending(workdir / "t.jsonl", header_of(DEVICE, {"runtime": "simulated 1"}, "")) as out:
        out.add(PredictedRow("magic(hw=3)", 1.0, 0.5, 2.0, 11, []))
    done = profile(DEVICE, tiny, workdir / "t.jsonl", validate=0, plan=UNANCHORED, stop=Stop())
    assert done.measured == len(tiny.ops) and "magic" not in (workdir / "t.jsonl").read_text()


def test_an_interrupted_session_is_gone_on_with_where_it_was_not_sure_yet(workdir, simulate, tiny):
    def cut(round):
        if round == 10:
            raise KeyboardInterrupt
        return 1.0

    def again():
        return profile(DEVICE, tiny, workdir / "t.jsonl", validate=0, plan=Plan(rounds=12), stop=Stop(halfwidth=1e-9))

    simulate(Simulated(slow=cut))
    with pytest.raises(KeyboardInterrupt):
        again()
    assert LatencyTable.load(workdir / "t.jsonl").interrupted
    simulate(Simulated())
    whole = again()
    assert whole.measured == len(tiny.ops) and {len(taken) for taken in by_key(whole.table.visits).values()} >= {10 + 12}
    assert not whole.table.interrupted and again().measured == 0  # as sure as one session makes it


def test_what_does_not_fit_is_predicted_and_never_counts_as_measured(workdir, simulate, mobile):
    simulate(Simulated(visit_s=0.004))
    path = workdir / "t.jsonl"
    done = profile(DEVICE, mobile, path, validate=0, plan=Plan(rounds=9), stop=Stop(seconds=1.6, halfwidth=1e-9))
    account = done.account
    assert 10 <= account.measured < len(mobile.ops) and account.measured + len(account.predicted) == len(mobile.ops)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    predicted = {row["key"]: row for row in rows if "predicted_ms" in row}
    assert set(predicted) == {op.key for op in account.predicted}
    errors = [abs(row["predicted_ms"] / true_ms(key) - 1) for key, row in predicted.items()]
    assert sum(errors) / len(errors) < 0.10
    assert all(
        row["low_ms"] < row["predicted_ms"] < row["high_ms"] and row["measured"] == account.measured for row in predicted.values()
    )
    table = LatencyTable.load(path)
    assert set(table.predicted) == set(predicted)
    enough = {key for key, found in table.measurements.items() if found.rounds >= 6}
    assert not enough & set(predicted)
    searching = open_predictor(path, mobile.ops)
    searching.require(mobile)
    arch = Architecture(mobile, tuple(block.candidates[-1] for block in mobile.blocks))
    found = searching.network(arch.ops)
    assert found.low_ms < sum(true_ms(op.key) for op in arch.ops) < found.high_ms

    simulate(Simulated())  # the same command again, with time enough: predicted rows are measured, none is left
    done = profile(DEVICE, mobile, path, validate=0, plan=Plan(rounds=9), stop=Stop(seconds=60, halfwidth=1e-9))
    assert done.account.measured == len(mobile.ops) and not LatencyTable.load(path).predicted
    assert "predicted_ms" not in path.read_text()


def test_more_measurements_make_new_predictions(workdir, simulate, mobile):
    simulate(Simulated(visit_s=0.004))
    path = workdir / "t.jsonl"
    stop = Stop(seconds=1.5, halfwidth=1e-9)
    first = profile(DEVICE, mobile, path, validate=0, plan=Plan(rounds=9), stop=stop)
    second = profile(DEVICE, mobile, path, validate=0, plan=Plan(rounds=9), stop=stop)
    assert second.account.measured > first.account.measured
    rows = second.table.predicted.values()
    assert all(row.measured == second.account.measured for row in rows)


@pytest.mark.parametrize(("visit_s", "setup_s"), [(0.02, 0.0), (0.1, 0.0), (0.02, 3.0), (0.0001, 3.0)])
def test_a_time_too_short_says_how_much_is_enough_and_keeps_what_was_taken(workdir, simulate, mobile, visit_s, setup_s):
    path = workdir / "t.jsonl"
    simulate(Simulated(visit_s, setup_s=setup_s))
    with pytest.raises(RequestError, match=r"at least 10 are needed.*give --budget \d+s") as short:
        profile(DEVICE, mobile, path, validate=0, plan=Plan(), stop=Stop(seconds=1.0))
    assert LatencyTable.load(path).visits
    device = simulate(Simulated(visit_s, setup_s=setup_s))
    enough = int(str(short.value).rpartition("--budget ")[2].partition("s")[0])
    done = profile(DEVICE, mobile, path, validate=0, plan=Plan(), stop=Stop(seconds=enough, halfwidth=1e-9))
    assert done.account.measured >= 10 and not done.account.unknown
    assert (done.account.measured == len(mobile.ops)) == (visit_s < 0.001)  # where only opening them takes time
    assert min(done.table.measurements[op.key].rounds for op in known_ops(done.table)) >= 8
    assert device.clock.now < enough + 70 * visit_s  # a round that was begun is finished


@pytest.mark.parametrize("seed", range(4))
def test_what_is_predicted_of_a_fast_device_reads_back(workdir, simulate, mobile, seed):
    """Ops of 2 us with 30 % noise: a lower bound may be less than a millionth of a millisecond."""
    rng = random.Random(seed)
    with appending(workdir / "t.jsonl", header_of(DEVICE, {}, "")) as out:
        for op in rng.sample(mobile.ops, 12):
            out.add(Published(op.key, 2e-6 * (1 + op.macs / 1e6) * math.exp(rng.gauss(0, 0.3)), None, 1))
        predictor = LatencyPredictor(LatencyTable.load(workdir / "t.jsonl"), (), mobile.ops)
        out.compact(predicted_rows(predictor))
    found = LatencyTable.load(workdir / "t.jsonl").predicted
    assert set(found) == {op.key for op in predictor.transferred} and len(found) > 10
    for op, guess in predictor.transferred.items():
        assert found[op.key].predicted_ms == pytest.approx(guess.ms, rel=1e-5) and found[op.key].low_ms > 0


def test_the_predictions_for_another_image_size_stay(workdir, simulate, mobile):
    simulate(Simulated(visit_s=0.004))
    path, stop = workdir / "t.jsonl", Stop(seconds=1.5, halfwidth=1e-9)
    before = profile(DEVICE, mobile, path, validate=0, plan=Plan(rounds=9), stop=stop).table
    after = profile(DEVICE, find("spaces", "mobile").at(32, 10), path, validate=0, plan=Plan(rounds=9), stop=stop).table
    assert len(before.predicted) > 20 and set(before.predicted) < set(after.predicted)
    assert all(row.measured > before.predicted[key].measured for key, row in after.predicted.items() if key in before.predicted)


def test_a_third_of_the_time_goes_to_whole_networks(mobile):
    models = wanted(mobile, 20)
    pace = Pace(setup_s=0.0, visit_s=0.02, op_s=0.01, network_s=0.1)
    chosen = affordable(models, pace, 30.0, UNANCHORED, Stop(min_rounds=8))
    networks = [model for model in chosen if Architecture.is_key(model.key)]
    assert len(networks) == 20 and len(chosen) == 90  # 5.6 s are enough for the 70 ops, and 16 s for the networks
    chosen = affordable(models, Pace(0.0, 0.02, 0.04, 0.1), 30.0, UNANCHORED, Stop(min_rounds=8))
    networks = [model for model in chosen if Architecture.is_key(model.key)]
    assert len(networks) == 12  # 10 s of 8 rounds of 0.1 s
    assert len(chosen) - len(networks) == 63  # 20.4 s of 8 rounds of 40 ms
    chosen = affordable(models, pace, 6.0, UNANCHORED, Stop(min_rounds=8))
    assert not any(Architecture.is_key(model.key) for model in chosen)  # two networks would teach nothing
    predictor_kinds = {parse(model.key).kind for model in affordable(models, pace, 1.0, UNANCHORED, Stop(min_rounds=8))}
    assert predictor_kinds == {op.kind for op in mobile.ops}  # the ends of every feature, so nothing is extrapolated


def test_where_no_ops_are_left_the_time_is_for_networks(mobile):
    networks = [model for model in wanted(mobile, 20) if Architecture.is_key(model.key)]
    pace = Pace(setup_s=0.0, visit_s=0.1, op_s=0.01, network_s=0.1)
    assert affordable(networks, pace, 4.1, UNANCHORED, Stop(min_rounds=8)) == networks[:5]  # 8 rounds of 0.1 s each
    for seconds in (0.7, -1.0):
        with pytest.raises(RequestError, match=r"--budget 60s: no time for one of 20 whole networks; give --budget 2s"):
            affordable(networks, pace, seconds, UNANCHORED, Stop(min_rounds=8))


def test_networks_that_do_not_fit_are_measured_the_next_time(workdir, simulate, tiny, capsys):
    simulate(Simulated())
    path, plan = workdir / "t.jsonl", Plan(rounds=9)
    profile(DEVICE, tiny, path, validate=0, plan=plan, stop=Stop())
    found = []
    for _ in range(2):
        simulate(Simulated(visit_s=0.01))
        table = profile(DEVICE, tiny, path, validate=12, plan=plan, stop=Stop(seconds=1, halfwidth=1e-9)).table
        found.append(sum(Architecture.is_key(key) and value.rounds >= 8 for key, value in table.measurements.items()))
    assert 5 <= found[0] <= 7 and found[1] == 12  # 85 visits are left behind the first round: 8 rounds of 7, and 3 anchors
    assert f"12 whole networks do not fit 1 s: now {found[0]} whole networks" in capsys.readouterr().err


@pytest.mark.parametrize("cool", [8, 12, 14])
def test_a_device_that_throttles_half_way_is_seen_through(workdir, simulate, tiny, cool):
    simulate(Simulated(slow=lambda round: 1.0 if round < cool else 1.6))
    plan = Plan(rounds=24, anchor_every=4)
    done = profile(DEVICE, tiny, workdir / "t.jsonl", validate=0, plan=plan, stop=Stop(seconds=60, halfwidth=1e-9))
    for op in tiny.ops:
        assert done.table.measurements[op.key].latency_ms == pytest.approx(true_ms(op.key), rel=0.01)
    assert done.ended.endswith("; during a tenth of the visits 1.6 times as slow or slower, divided out")


def test_a_slower_session_says_how_much_slower_it_was(workdir, simulate, tiny, tiny_path):
    simulate(Simulated())
    first = profile(DEVICE, tiny, workdir / "t.jsonl", validate=0, plan=Plan(rounds=8), stop=Stop(halfwidth=1e-9))
    assert first.ended == "all 8 rounds are done, after 8 rounds"
    simulate(Simulated(slow=lambda round: 1.42))
    small = find("spaces", tiny_path).at(16, 10)
    second = profile(DEVICE, small, workdir / "t.jsonl", validate=0, plan=Plan(rounds=20), stop=Stop(halfwidth=1e-9))
    said = "all 20 rounds are done, after 20 rounds; brought to the first session's speed (this one was 1.42 times as slow)"
    assert second.ended == said == second.table.ends[1].why
    for op in [*tiny.ops, *small.ops]:
        assert second.table.measurements[op.key].latency_ms == pytest.approx(true_ms(op.key), rel=0.01)


def test_a_device_that_warms_up_is_seen_through(workdir, simulate, tiny):
    simulate(Simulated(slow=lambda round: 1 + 0.36 * 0.5**round))
    plan = Plan(rounds=16, anchor_every=4)
    done = profile(DEVICE, tiny, workdir / "t.jsonl", validate=0, plan=plan, stop=Stop(seconds=60, halfwidth=1e-9))
    for op in tiny.ops:
        assert done.table.measurements[op.key].latency_ms == pytest.approx(true_ms(op.key), rel=0.01)


def test_rows_of_another_runtime_are_refused(workdir, simulate, tiny):
    path = workdir / "t.jsonl"
    simulate(Simulated())
    profile(DEVICE, tiny, path, validate=0, plan=Plan(rounds=8), stop=Stop(seconds=60))
    other = simulate(Simulated())
    other.environment = lambda device: {"runtime": "simulated 2"}
    with pytest.raises(TableError, match="measured with runtime = simulated 1, now it is simulated 2"):
        profile(DEVICE, tiny, path, validate=0, plan=Plan(rounds=8), stop=Stop(seconds=60), again=True)


def test_a_reading_of_one_round_is_not_taken_for_a_measurement(workdir, simulate, tiny):
    simulate(Simulated())
    path = workdir / "t.jsonl"
    done = profile(DEVICE, tiny, path, validate=0, plan=Plan(rounds=1), stop=Stop(seconds=60))
    assert done.account.measured == 0 and len(done.account.unknown) == len(tiny.ops)
    with pytest.raises(TableError, match="no row for"):
        LatencyPredictor(done.table).op_ms(tiny.ops[0])


class Switched(Simulated):
    """Slower or faster as a whole from session to session, and switched off after so many visits."""

    def __init__(self, slow, visits):
        super().__init__(slow=lambda round: slow)
        self.until = visits

    def visits(self, device, models, plan):
        for number, visit in enumerate(super().visits(device, models, plan)):
            if number == self.until:
                raise KeyboardInterrupt
            yield visit


SESSION = st.tuples(
    st.sampled_from((16, 32)),  # image size: each has ops of its own
    st.sampled_from((0, 4)),  # whole networks
    st.floats(0.5, 2.0),  # how slow the machine is
    st.none() | st.integers(0, 200),  # visits it is killed after
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SESSION, min_size=2, max_size=4))
def test_whatever_sessions_a_table_is_made_of_its_rows_compare_and_stay(tmp_path_factory, simulate, tiny_path, sessions):
    path = tmp_path_factory.mktemp("sessions") / "t.jsonl"
    create(path, header_of(DEVICE, {"runtime": "simulated 1"}, ""))
    for size, networks, slow, visits in sessions:
        before = LatencyTable.load(path)
        simulate(Switched(slow, visits))
        space = find("spaces", tiny_path).at(size, 10)
        with contextlib.suppress(KeyboardInterrupt):
            profile(DEVICE, space, path, validate=networks, plan=Plan(rounds=9), stop=Stop(halfwidth=1e-9), again=True)
        after = LatencyTable.load(path)
        now = by_key(after.visits)
        for key, taken in by_key(before.visits).items():
            if has_interval(before.measurements[key]) and now[key] == taken:
                assert after.measurements[key] == before.measurements[key]
    found = {key: value for key, value in LatencyTable.load(path).measurements.items() if value.rounds >= 6}
    ratios = [value.latency_ms / true_ms(key) for key, value in found.items()]
    assert max(ratios, default=1.0) / min(ratios, default=1.0) < 1.01


OWN_SPACE = """
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.space import Block, Cell, Space

def lay_out(image_size, num_classes):
    choices = tuple(Conv(image_size, 3, 8, kernel) for kernel in (1, 3, 5))
    return (Block("b", (Cell("d1", (choices,)), Cell("d2", (choices[:1], (Conv(image_size, 8, 8, 1),))))),
            Block.fixed("head", Classifier(image_size, 8, num_classes)))

SPACE = Space("own", smallest_image=16, lay_out=lay_out)
"""


def test_a_table_begun_with_a_space_of_ones_own_takes_others(workdir, simulate, tiny, monkeypatch):
    simulate(Simulated())
    (workdir / "own.py").write_text(OWN_SPACE)
    own = find("spaces", "own.py").at(32, 10)
    path = workdir / "t.jsonl"
    profile(DEVICE, own, path, validate=4, plan=Plan(rounds=8), stop=Stop())  # 5 ops, 4 networks
    monkeypatch.delitem(plugins._own, ("spaces", "own"))  # another process, which was not told of it
    done = profile(DEVICE, tiny, path, validate=0, plan=Plan(rounds=8), stop=Stop())
    assert done.account.measured == len(tiny.ops)
    first, second = done.table.sessions
    assert first.anchors == second.anchors and set(first.anchors) <= {op.key for op in own.ops}
