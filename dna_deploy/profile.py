"""The first recipe: time every op of a space on a device, and a few whole networks beside them, into a latency table."""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from dna_deploy.arch import Architecture, sample
from dna_deploy.errors import TableError
from dna_deploy.graph import onnx_of
from dna_deploy.measure import ops_of
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.progress import bar, say
from dna_deploy.space import SearchSpace
from dna_deploy.table import LatencyTable, Session, VisitRow, appending, create, header_of
from profilers import Device, Model, Plan, Stop, Visit, find_profiler, measure


@dataclass(frozen=True)
class Profile:
    """What a session left: the table, how it ended, and how well op sums predict whole networks."""

    predictor: LatencyPredictor
    measured: int  # keys measured in this session
    ended: str  # why it stopped

    @property
    def table(self) -> LatencyTable:
        return self.predictor.table


def profile(
    device: Device, space: SearchSpace, path: Path, *, validate: int, plan: Plan, stop: Stop, again: bool = False
) -> Profile:
    """Measure what the table at `path` still lacks of `space`; every visit is kept as it is taken."""
    profiler = find_profiler(device)
    environment = profiler.environment(device)
    if not path.exists():
        about = "isolated ops and whole networks, one image, as ONNX models with random weights"
        create(path, header_of(device, environment, about))
    with appending(path) as out:
        table = LatencyTable.load(path)
        _require_same(table, environment)
        models = wanted(space, validate)
        if not again:
            enough = {key for key, found in table.measurements.items() if found.rounds >= stop.min_rounds}
            models = [model for model in models if model.key not in enough]
        if not models:
            return Profile(LatencyPredictor(table), 0, "every op and network is already in the table")
        models, plan = _continue(table, models, plan)
        keys = [model.key for model in models]
        visits = sum(len(plan.order(keys, round)) for round in range(plan.rounds))
        say(f"{device.name}: {len(models)} models, up to {plan.rounds} rounds or {stop.seconds:.0f} s, into {path}")
        began = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        first = table.next_round
        out.add(Session(began, first, list(plan.anchor_keys(keys)), profiler.conditions(device)))
        last = first
        with bar("measuring", visits) as advance:
            for visit in _shifted(measure(profiler, device, models, plan, stop), first):
                out.add(VisitRow(visit.key, visit.round, list(visit.ns)))
                last = visit.round
                advance(1)
        out.compact()
    rounds = last - first + 1
    ended = f"all {plan.rounds} rounds done" if rounds == plan.rounds else f"narrow enough, or time spent, after {rounds} rounds"
    return Profile(LatencyPredictor(LatencyTable.load(path)), len(models), ended)


def wanted(space: SearchSpace, validate: int) -> list[Model]:
    """Every op of the space, and `validate` whole networks of it drawn at random (always the same ones)."""
    models = [Model(op.key, onnx_of([op])) for op in space.ops]
    rng = random.Random("networks measured whole")
    networks: dict[Architecture, None] = {}
    while len(networks) < min(validate, space.size):
        networks[sample(space, rng)] = None
    return models + [Model(network.key, onnx_of(network.ops)) for network in networks]


def _continue(table: LatencyTable, models: list[Model], plan: Plan) -> tuple[list[Model], Plan]:
    """Take the anchors of the sessions before along, so that rounds of different days can be compared."""
    if not table.sessions:
        return models, plan
    known = {model.key for model in models}
    anchors = [key for key in table.sessions[0].anchors if key not in known]
    models = [*models, *(Model(key, onnx_of(ops_of(key))) for key in anchors)]
    return models, dataclasses.replace(plan, seed=plan.seed + table.next_round)


def _shifted(visits: Iterator[Visit], first: int) -> Iterator[Visit]:
    for visit in visits:
        yield dataclasses.replace(visit, round=visit.round + first)


def _require_same(table: LatencyTable, environment: dict[str, str | int | float | None]) -> None:
    before = table.header.environment
    for name in sorted(set(before) | set(environment)):
        then, now = before.get(name), environment.get(name)
        if then != now:
            raise TableError(
                f"{table.path}: measured with {name} = {then}, now it is {now}; numbers of two environments do not mix: "
                f"keep it under another name, or give --table FILE for the new one"
            )
