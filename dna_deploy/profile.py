"""The first recipe: time every op of a space on a device, and a few whole networks beside them, into a latency table.

Where not everything fits the time given, the ops that teach most about the others are measured, and the regressor
completes the table from them and from other devices' tables.
"""

import dataclasses
import math
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from dna_deploy.arch import Architecture, sample
from dna_deploy.errors import RequestError, TableError
from dna_deploy.graph import onnx_of
from dna_deploy.measure import buildable, ops_of
from dna_deploy.ops import Op, parse
from dna_deploy.predictor import FEWEST, Account, LatencyPredictor, known_ops, open_predictor, references
from dna_deploy.progress import bar, say
from dna_deploy.space import SearchSpace
from dna_deploy.table import (
    CLOCK,
    Appender,
    End,
    LatencyTable,
    PredictedRow,
    Session,
    VisitRow,
    anchors_of,
    appending,
    header_of,
    shown,
)
from dna_deploy.transfer import FEWEST as FEWEST_OPS
from dna_deploy.transfer import describe, worth_measuring
from profilers import Device, Model, Plan, Profiler, Stop, Visit, find_profiler, measure, own_speed


@dataclass(frozen=True)
class Profile:
    """What a session left: the table, how it ended, and how well op sums predict whole networks."""

    predictor: LatencyPredictor
    measured: int  # keys measured in this session
    ended: str  # why it stopped
    account: Account  # of the space's ops

    @property
    def table(self) -> LatencyTable:
        return self.predictor.table


def profile(
    device: Device, space: SearchSpace, path: Path, *, validate: int, plan: Plan, stop: Stop, again: bool = False
) -> Profile:
    """Measure what the table at `path` still lacks of `space`; every visit is kept as it is taken."""
    profiler = find_profiler(device)
    environment = profiler.environment(device)
    about = "isolated ops and whole networks, one image, as ONNX models with random weights"
    with appending(path, header_of(device, environment, about)) as out:
        table = LatencyTable.load(path)
        known_ops(table)  # an op unknown here is refused before anything is measured
        if other := table.differs(environment):
            raise TableError(
                f"{path}: {other}; numbers of two environments do not mix: keep it under another name, or give --table FILE "
                "for the new one"
            )
        models = wanted(space, validate)
        if not again:
            widest = stop.halfwidth if table.interrupted else math.inf
            done = table.measurements.items()
            enough = {key for key, found in done if found.rounds >= stop.min_rounds and found.halfwidth <= widest}
            models = [model for model in models if model.key not in enough]
        if not models:
            return _profile(path, space, 0, "every op and network is already in the table")
        began = time.monotonic()
        pace, ended = _session(out, profiler, device, models, plan, stop, scout=True)
        if pace is not None:
            left = stop.seconds - (time.monotonic() - began)
            asked, models = models, affordable(models, pace, left, plan, stop, references(table, space.ops))
            now = f"now {_counted(models)}, those that say most about the rest"
            say(f"{_counted(asked)} do not fit {stop.seconds:g} s: {now}; the same command goes on from there")
            _, ended = _session(out, profiler, device, models, plan, dataclasses.replace(stop, seconds=left), scout=False)
        out.compact(predicted_rows(_predictor(path, space)))
    return _profile(path, space, len(models), ended)


def _predictor(path: Path, space: SearchSpace) -> LatencyPredictor:
    """The predictor for the space and for whatever the table held predictions of before."""
    before: list[Op] = []
    for key in LatencyTable.load(path).predicted:
        with suppress(RequestError):  # an op that only another version knows: a guess, which that one can make again
            before.append(parse(key))
    ops = tuple(dict.fromkeys([*space.ops, *before]))
    return open_predictor(path, ops, space=space.name, image_size=space.image_size)


def _profile(path: Path, space: SearchSpace, measured: int, ended: str) -> Profile:
    predictor = _predictor(path, space)
    return Profile(predictor, measured, ended, predictor.account(space.ops))


def predicted_rows(predictor: LatencyPredictor) -> list[PredictedRow]:
    """A row for each op that was asked for and not measured, where the regressor can tell."""
    sources = [source.name for source in predictor.sources]
    rows = []
    for op, found in predictor.transferred.items():
        low, high = (found.ms * math.exp(sign * 1.96 * found.sd_ms / found.ms) for sign in (-1, 1))
        rows.append(PredictedRow(op.key, shown(found.ms), shown(low), shown(high), predictor.known, sources))
    return rows


@dataclass(frozen=True)
class Pace:
    """Seconds the device takes: to set all models up, then for one visit of any, of an op, of a whole network."""

    setup_s: float
    visit_s: float
    op_s: float
    network_s: float


def _session(
    out: Appender, profiler: Profiler, device: Device, models: list[Model], plan: Plan, stop: Stop, *, scout: bool
) -> tuple[Pace | None, str]:
    """Measure these models into the table. With `scout` it gives up after the first round, or after a quarter of the time,
    where `stop.min_rounds` rounds would not fit, and says how fast visits are; else None, and why it ended."""
    table = LatencyTable.load(out.path)
    models, plan = _anchored(table, models, plan)
    keys = [model.key for model in models]
    visits = len(plan.order(keys, 0))
    say(f"{device.name}: {len(models)} models, up to {plan.rounds} rounds or {stop.seconds:g} s, into {out.path}")
    first = table.next_round
    out.add(Session(_now(), first, list(plan.anchor_keys(keys)), profiler.conditions(device)))
    began = first_visit = time.monotonic()
    taken: list[Visit] = []
    pace: Pace | None = None
    source = measure(profiler, device, models, plan, stop)
    with bar("measuring", visits * plan.rounds) as advance:
        while True:
            try:
                visit = next(source)
            except StopIteration as end:
                why = str(end.value)
                break
            out.add(VisitRow(visit.key, visit.round + first, list(visit.ns)))
            taken.append(visit)
            advance(1)
            if len(taken) == 1:
                first_visit = time.monotonic()
            spent = time.monotonic() - first_visit
            if scout and (visit.round > 0 or spent > stop.seconds / 4):
                scout = False
                found = _pace(taken, spent, first_visit - began)
                if found.setup_s + found.visit_s * visits * stop.min_rounds > stop.seconds:
                    pace, why = found, "not everything fits the time"
                    source.close()
                    break
    rounds = taken[-1].round + 1 if taken else 0
    if scout and 0 < rounds < stop.min_rounds:  # opening the models took the time
        pace = _pace(taken, time.monotonic() - first_visit, first_visit - began)
    slowness = [visit.slowness for visit in LatencyTable.load(out.path).visits if visit.round >= first]
    why = f"{why}, after {rounds} round{'s' if rounds != 1 else ''}{_told(slowness)}"
    out.add(End(_now(), why, profiler.conditions(device)))
    return pace, why


def _told(slowness: Sequence[float]) -> str:
    """What to tell a person of a session in which the device was not always as fast, or not what it was in the first one."""
    ordered = sorted(slow for slow in slowness if not math.isnan(slow))
    if not ordered:
        return ""
    own, slow = own_speed(ordered), ordered[9 * len(ordered) // 10]
    told = f"; during a tenth of the visits {slow / own:.2g} times as slow or slower, divided out" if slow > 1.1 * own else ""
    if abs(own - 1) > 0.05:
        told += f"; brought to the first session's speed (this one was {own:.2f} times as slow)"
    return told


def _pace(taken: list[Visit], spent_s: float, setup_s: float) -> Pace:
    """`spent_s` since the first visit came; a device that hands on many at once spent at least the time of their runs."""
    runs_s = [(visit.key, sum(visit.ns) / 1e9) for visit in taken]
    besides = max(0.0, spent_s - sum(seconds for _, seconds in runs_s[1:])) / max(1, len(taken) - 1)
    networks = [seconds for key, seconds in runs_s if Architecture.is_key(key)]
    ops = [seconds for key, seconds in runs_s if not Architecture.is_key(key)]
    op_s = sum(ops) / len(ops) if ops else sum(networks) / len(networks) / 20
    network_s = sum(networks) / len(networks) if networks else 20 * op_s
    return Pace(setup_s, sum(seconds for _, seconds in runs_s) / len(taken) + besides, op_s + besides, network_s + besides)


def affordable(
    models: list[Model], pace: Pace, left_s: float, plan: Plan, stop: Stop, sources: Sequence[LatencyTable] = ()
) -> list[Model]:
    """What to measure where not everything fits: a third of the time for whole networks, or what the ops do not need; the rest
    for the ops that say most about the others."""
    seconds = (left_s - pace.setup_s) * plan.anchor_every / (1 + plan.anchor_every) - plan.anchors * stop.min_rounds * pace.op_s
    networks = [model for model in models if Architecture.is_key(model.key)]
    by_op = {parse(model.key): model for model in models if not Architecture.is_key(model.key)}
    rounds = max(stop.min_rounds, 1)
    network_s, op_s = rounds * pace.network_s, rounds * pace.op_s
    kept = max(0, int(max(seconds / 3, seconds - len(by_op) * op_s) / network_s))
    if not by_op:
        if kept == 0:
            raise _too_short(plan, stop, pace, f"no time for one of {len(networks)} whole networks", network_s)
        return networks[:kept]
    networks = networks[:kept] if kept >= FEWEST else []
    count = int((seconds - len(networks) * network_s) / op_s)
    if count < min(FEWEST_OPS, len(by_op)):
        short = f"time for {max(count, 0)} of {len(by_op)} ops, at least {FEWEST_OPS} are needed to predict the rest"
        raise _too_short(plan, stop, pace, short, FEWEST_OPS * op_s)
    ops = list(by_op)
    known = [{op: found.latency_ms for op, found in known_ops(source).items()} for source in sources]
    rows = worth_measuring(describe(ops, known), min(count, len(ops)))
    return [*(by_op[ops[row]] for row in sorted(rows)), *networks]


def _too_short(plan: Plan, stop: Stop, pace: Pace, short: str, least_s: float) -> RequestError:
    """With the budget that leaves `least_s` for the models, by what `affordable` takes off, behind a scout's quarter of it."""
    left_s = (least_s + plan.anchors * stop.min_rounds * pace.op_s) * (1 + plan.anchor_every) / plan.anchor_every + pace.setup_s
    needed = math.ceil(1.2 * (left_s + pace.setup_s + pace.visit_s) * 4 / 3)  # of other visits the scout may find slower ones
    return RequestError(f"--budget {stop.seconds:g}s: {short}; give --budget {needed}s (what was measured is kept)")


def _counted(models: Sequence[Model]) -> str:
    networks = sum(Architecture.is_key(model.key) for model in models)
    numbers = {"ops": len(models) - networks, "whole networks": networks}
    return " and ".join(f"{number} {what}" for what, number in numbers.items() if number)


def wanted(space: SearchSpace, validate: int) -> list[Model]:
    """Every op of the space, and `validate` whole networks of it drawn at random (always the same ones)."""
    models = [Model(op.key, onnx_of([op])) for op in space.ops]
    rng = random.Random("networks measured whole")
    networks: dict[Architecture, None] = {}
    while len(networks) < min(validate, space.size):
        networks[sample(space, rng)] = None
    return models + [Model(network.key, onnx_of(network.ops)) for network in networks]


def _anchored(table: LatencyTable, models: list[Model], plan: Plan) -> tuple[list[Model], Plan]:
    """With the same anchors in every session of a table, so that rounds of different days can be compared.

    They are ops, which any process can build from their keys; networks of a space of one's own need its file.
    """
    before = anchors_of(table.sessions)
    anchors = [key for key in before if buildable(key)]
    if before and not anchors:
        raise TableError(
            f"{table.path}: its sessions are compared by networks of a space that is not known here, such as {before[0][:60]!r}; "
            "give --table FILE for a new one"
        )
    if not anchors:
        anchors = list(plan.anchor_keys([model.key for model in models if not Architecture.is_key(model.key)]))
    known = {model.key for model in models}
    models = [*models, *(Model(key, onnx_of(ops_of(key))) for key in anchors if key not in known)]
    return models, dataclasses.replace(plan, same_anchors=tuple(anchors), seed=plan.seed + table.next_round)


def _now() -> str:
    return datetime.now(timezone.utc).strftime(CLOCK)
