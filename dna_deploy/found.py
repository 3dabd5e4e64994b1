"""The networks found: what a request picks from the ratings of a run, written down with everything that is known of it."""

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.budget import Budget, block_costs
from dna_deploy.confirm import Confirmed, confirm
from dna_deploy.costs import sums
from dna_deploy.errors import NothingFits, RequestError
from dna_deploy.files import write_atomic, write_json, write_text
from dna_deploy.footprint import file_bytes, footprint
from dna_deploy.graph import onnx_of
from dna_deploy.limits import Problem, Wanted
from dna_deploy.measure import at_hand, measure_whole
from dna_deploy.milp import Optimum
from dna_deploy.pick import Front
from dna_deploy.predictor import INTERVAL, Predicted
from dna_deploy.ratings import Rating
from dna_deploy.run import Beside, Pick, Picked, Run
from dna_deploy.scores import block_scores
from dna_deploy.space import SearchSpace
from profilers import Model


@dataclass(frozen=True)
class Found:
    pick: Pick
    architecture: Architecture
    picked: Picked
    front: Front  # under the first budget alone
    budgets: tuple[Budget, ...]
    top: tuple[Architecture, ...]  # it and the next best, as many as were wanted and there are


def pick(
    run: Run,
    space: SearchSpace,
    ratings: dict[str, list[Rating]],
    budgets: Sequence[Budget],
    measure_top: int = 0,
    wanted: Wanted = Wanted(),  # noqa: B008  frozen
) -> Found:
    """The best network within the budgets, the whole front beside it, and what multiply-adds alone would have chosen.

    With `measure_top` up to that many of the best are measured first, and the prediction is corrected by them.
    """
    first = budgets[0]
    scores = block_scores(space, ratings)
    confirmed = _confirmed(space, budgets, scores, measure_top, wanted) if measure_top else None
    factors = confirmed.factors if confirmed else [1.0] * len(budgets)
    problem = _problem(space, budgets, factors, wanted)
    front = problem.front(scores)
    top = best_of(problem, front, scores, wanted, confirmed)
    if not top:
        asked = ", ".join(limit.text for limit in problem.limits)
        raise NothingFits(f"no network of {space.name} at {space.image_size} px fits {asked}; raise one of them")
    choices = top[0].choices
    found = architecture_at(space, choices)
    predicted = [
        Predicted(*(factor * ms for ms in astuple(budget.predictor.network(found.ops, budget.confidence or INTERVAL))))
        for budget, factor in zip(budgets, factors, strict=True)
    ]
    rival = largest_within(problem)
    folder = run.pick_for([(budget.device, budget.ms) for budget in budgets], wanted.texts)
    picked = Picked(
        device=first.device,
        table=str(first.predictor.table.path),
        budget_ms=first.ms,
        predicted_ms=predicted[0].ms,
        score=top[0].score,
        macs=found.macs,
        params=found.params,
        macs_rival=rival.text if rival else None,
        confidence=first.confidence,
        low_ms=predicted[0].low_ms,
        high_ms=_finite(predicted[0].high_ms),
        others=[
            Beside(budget.device, str(budget.predictor.table.path), budget.ms, own.ms, own.low_ms, _finite(own.high_ms))
            for budget, own in list(zip(budgets, predicted, strict=True))[1:]
        ],
        tried=confirmed.tried if confirmed else [],
        tried_ended=confirmed.ended if confirmed else None,
        also=wanted.texts,
        bound=top[0].bound,
        file_bytes=file_bytes(found.ops, space.num_classes),
        peak_bytes=max(footprint(op).peak_bytes for op in found.ops),
    )
    if folder.architecture.exists() and Architecture.load(folder.architecture) != found:
        folder.set_aside()  # another network: the ratings, the table or the request changed
    found.save(folder.architecture)
    expected = [factors[0] * cost for cost in block_costs(space, first.predictor)]
    write_front(folder.front, space, front, expected, first.confidence)
    write_top(folder.top, problem, top)
    at = sum(float(cost[index]) for cost, index in zip(problem.limits[0].costs, choices, strict=True))
    plot_front(folder.front.with_suffix(".png"), front, (at, picked.score), first)
    write_json(folder.picked, picked)
    return Found(folder, found, picked, front, tuple(budgets), tuple(architecture_at(space, one.choices) for one in top))


def best_of(
    problem: Problem, front: Front, scores: Sequence[np.ndarray[Any, Any]], wanted: Wanted, confirmed: Confirmed | None
) -> list[Optimum]:
    """The networks wanted, best first: off the front where it answers alone, else by integer program.

    A network that was confirmed by measurement comes first, whatever else there is; what was measured as too slow is not
    among them.
    """
    over = confirmed.over if confirmed else []
    if wanted.top == 1:
        if confirmed is not None:
            choices = confirmed.choices
            score = sum(float(score[index]) for score, index in zip(scores, choices, strict=True))
            found = problem.best(scores, excluded=over)
            return [Optimum(choices, score, min(score, found[0].bound) if found else score)]
        if problem.one_sum:
            at = front.best_within(problem.limits[0].most)
            score = float(front.scores[at]) if at is not None else 0.0
            return [] if at is None else [Optimum(tuple(front.choices[at].tolist()), score, score)]
    apart = wanted.apart(problem.space)
    if confirmed is None:
        return problem.best(scores, wanted.top, apart)
    first = best_of(problem, front, scores, replace(wanted, top=1), confirmed)
    return first + problem.best(scores, wanted.top - 1, apart, [confirmed.choices], over)


def _problem(space: SearchSpace, budgets: Sequence[Budget], factors: Sequence[float], wanted: Wanted) -> Problem:
    return wanted.problem(space, [budget.limit(space, factor) for budget, factor in zip(budgets, factors, strict=True)])


def _finite(ms: float) -> float | None:
    return ms if math.isfinite(ms) else None  # a published figure without a spread has no upper bound


def require_measurable(budgets: Sequence[Budget], count: int) -> None:
    if not any(at_hand(budget.predictor.table) for budget in budgets):
        names = ", ".join(budget.device for budget in budgets)
        raise RequestError(f"--measure-top {count}: {names} cannot be measured from here; leave it out")


def _confirmed(
    space: SearchSpace,
    budgets: Sequence[Budget],
    scores: Sequence[np.ndarray[Any, Any]],
    count: int,
    wanted: Wanted,
) -> Confirmed:
    require_measurable(budgets, count)

    def measure(choices: tuple[int, ...], predicted: Sequence[float]) -> list[tuple[float, float] | None]:
        arch = architecture_at(space, choices)
        found: list[tuple[float, float] | None] = []
        for budget, ms in zip(budgets, predicted, strict=True):
            taken = measure_whole(budget.predictor.table, [Model(arch.key, onnx_of(arch.ops))], ms)
            own = taken[arch.key].measurement if taken else None
            found.append((own.latency_ms, budget.held_ms(own)) if own else None)
        return found

    expected = [block_costs(space, budget.predictor) for budget in budgets]

    def best(factors: Sequence[float], over: Collection[tuple[int, ...]]) -> tuple[int, ...] | None:
        found = _problem(space, budgets, factors, wanted).best(scores, excluded=over)
        return found[0].choices if found else None

    confirmed = confirm(
        count,
        [budget.ms for budget in budgets],
        best=best,
        predict=lambda choices: [
            sum(float(cost[index]) for cost, index in zip(costs, choices, strict=True)) for costs in expected
        ],
        measure=measure,
        score=lambda choices: sum(float(own[index]) for own, index in zip(scores, choices, strict=True)),
        name=lambda choices: architecture_at(space, choices).text,
    )
    if confirmed is None:
        raise NothingFits("no network fits by what was measured; raise --latency")
    return confirmed


def largest_within(problem: Problem) -> Architecture | None:
    """The network with the most multiply-adds within the first budget: the rival every score has to beat; None: nothing fits."""
    front = problem.front([-sums(block, lambda op: op.macs) for block in problem.space.blocks])
    best = front.best_within(problem.limits[0].most)
    return None if best is None else architecture_at(problem.space, front.choices[best])


def architecture_at(space: SearchSpace, choices: Sequence[int]) -> Architecture:
    """The network of these candidates, given by their index in each block."""
    return Architecture(space, tuple(block.candidates[index] for block, index in zip(space.blocks, choices, strict=True)))


def write_front(
    path: Path, space: SearchSpace, front: Front, expected: Sequence[np.ndarray[Any, Any]], confidence: float | None
) -> None:
    """One line a network; `upper_ms`, where a confidence was asked for, is what the budget is held to: see `block_costs`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["predicted_ms", *(["upper_ms"] if confidence else []), "score", "network"])
    for cost, score, choices in zip(front.costs, front.scores, front.choices, strict=True):
        ms = sum(float(own[index]) for own, index in zip(expected, choices, strict=True))
        upper = [f"{cost:.6g}"] if confidence else []
        rows.writerow([f"{ms:.6g}", *upper, f"{score:.6g}", architecture_at(space, choices).text])
    write_text(path, text.getvalue())


def write_top(path: Path, problem: Problem, top: Sequence[Optimum]) -> None:
    """One line a network: its score, what it costs of everything that is limited, and its text."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["score", *(limit.flag.rstrip("=") for limit in problem.limits), "network"])
    for one in top:
        costs = [limit.write(limit.of(one.choices)) for limit in problem.limits]
        rows.writerow([f"{one.score:.6g}", *costs, architecture_at(problem.space, one.choices).text])
    write_text(path, text.getvalue())


def plot_front(path: Path, front: Front, found: tuple[float, float], budget: Budget) -> None:
    """Over what the budget is held to: predicted latencies, or their upper bounds. `found` is (ms, score) of the chosen one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.step(front.costs, front.scores, where="post", linewidth=1.2, label=f"Pareto front, {len(front.costs)} networks")
    axes.axvline(budget.ms, linestyle="--", linewidth=1, color="grey", label=f"budget {budget.ms:g} ms")
    bound = f"{100 * budget.confidence:g}% upper bound of " if budget.confidence else ""
    axes.plot(*found, "o", label=f"chosen, {'upper bound ' if bound else ''}{found[0]:.3g} ms")
    axes.set_xlabel(f"{bound}predicted latency on {budget.device}, ms")
    axes.set_ylabel("score (lower is better)")
    axes.legend()
    FigureCanvasAgg(figure)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120))
