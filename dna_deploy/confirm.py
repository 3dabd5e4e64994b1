"""Measure the networks the prediction calls best, correct the prediction by them, and pick again until the two agree."""

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

AGREE = 0.02  # of predicted and measured, relative

Choices = tuple[int, ...]


@dataclass(frozen=True)
class Tried:
    """A candidate that was measured, on each device in turn; None where the device is not at hand."""

    network: str
    predicted_ms: list[float]  # with what the candidates before it had taught
    measured_ms: list[float | None]
    fits: bool


@dataclass(frozen=True)
class Confirmed:
    choices: Choices
    over: list[Choices]  # measured, and too slow
    factors: list[float]  # that the predictions for each device are multiplied with from now on
    tried: list[Tried]
    ended: str


def confirm(
    count: int,
    budgets_ms: Sequence[float],
    *,
    best: Callable[[Sequence[float], Collection[Choices]], Choices | None],
    predict: Callable[[Choices], Sequence[float]],
    measure: Callable[[Choices, Sequence[float]], Sequence[tuple[float, float] | None]],
    score: Callable[[Choices], float],
    name: Callable[[Choices], str],
) -> Confirmed | None:
    """Measure up to `count` networks; None where not even the predictions know one that fits.

    `best` gives the best network that fits with predictions scaled by factors, but for some excluded ones; `predict` its
    latency on each device by the table alone; `measure` the measured one, and the bound of it that has to keep the budget;
    None where the device is not at hand. Candidates of a search are those whose prediction
    is luckiest, so their own measurements correct it better than networks drawn at random do.
    """
    factors = [1.0] * len(budgets_ms)
    ratios: list[list[float]] = [[] for _ in budgets_ms]
    tried: dict[Choices, Tried] = {}
    over: list[Choices] = []
    fitting: list[Choices] = []
    ended = f"all {count} candidates are measured"
    while len(tried) < count:
        choices = best(factors, over)
        if choices is None:
            ended = "no other network fits by what was measured"
            break
        if fitting and score(choices) >= min(map(score, fitting)):
            ended = "nothing else that may fit is better than what was measured to fit"
            break
        plain = predict(choices)
        predicted = [ms * factor for ms, factor in zip(plain, factors, strict=True)]
        taken = measure(choices, predicted)
        if not any(taken):
            ended = "the device is not at hand: the pick is by the predictions alone"
            break
        fits = all(own is None or own[1] <= budget for own, budget in zip(taken, budgets_ms, strict=True))
        measured = [None if own is None else own[0] for own in taken]
        tried[choices] = Tried(name(choices), predicted, measured, fits)
        (fitting if fits else over).append(choices)
        pairs = [(ms, guess) for ms, guess in zip(measured, predicted, strict=True) if ms is not None]
        for own, ms, table_ms in zip(ratios, measured, plain, strict=True):
            if ms is not None:
                own.append(ms / table_ms)
        factors = [statistics.median(own) if own else 1.0 for own in ratios]
        if fits and all(abs(ms / guess - 1) <= AGREE for ms, guess in pairs):
            ended = f"predicted and measured agree within {AGREE:.0%}"
            break
    chosen = min(fitting, key=score) if fitting else best(factors, over)
    return None if chosen is None else Confirmed(chosen, over, factors, list(tried.values()), ended)
