"""The exact search under several budgets at once: a mixed-integer linear program, solved by HiGHS.

One binary variable a candidate. A linear relaxation first gives each budget its price, and from prices follows for every
candidate a score that no network with it can beat. Only candidates that could still matter enter the integer program; it is
solved again with more of them until none left out could be part of a better network. So the optimum is that of the whole
space, and comes with its proof: a bound that no network is below.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_deploy.errors import MachineError
from dna_deploy.pick import least_through

Array = np.ndarray[Any, np.dtype[Any]]
SCALE = 1000.0  # of scores: HiGHS stops at an absolute gap of 1e-6
INFEASIBLE = 2  # a status of SciPy's solvers
FIRST = 500  # candidates that enter the first integer program


@dataclass(frozen=True)
class Optimum:
    """A network by the index of its candidates. No network allowed has a score below `bound`: at a gap of 0 it is the best."""

    choices: tuple[int, ...]
    score: float
    bound: float

    @property
    def gap(self) -> float:
        return max(0.0, self.score - self.bound)


@dataclass(frozen=True)
class Program:
    """For each block its candidates' scores (n,), costs (n, budgets) and links (n, 2), and the limits of the sums of costs."""

    scores: Sequence[Array]
    costs: Sequence[Array]
    links: Sequence[Array]
    limits: Array

    def only(self, kept: Sequence[Array]) -> "Program":
        scores, costs, links = (
            [values[at] for values, at in zip(part, kept, strict=True)] for part in (self.scores, self.costs, self.links)
        )
        return Program(scores, costs, links, self.limits)

    def fits(self, choices: Sequence[int]) -> bool:
        total = sum(cost[index] for cost, index in zip(self.costs, choices, strict=True))
        return bool(np.all(total <= self.limits * (1 + 1e-12)))

    def score(self, choices: Sequence[int]) -> float:
        return float(sum(score[index] for score, index in zip(self.scores, choices, strict=True)))


def best(
    program: Program,
    count: int = 1,
    apart: int = 1,
    better: Collection[tuple[int, ...]] = (),
    excluded: Collection[tuple[int, ...]] = (),
    seconds: float = 60.0,
) -> list[Optimum]:
    """The `count` best networks, best first, each different in at least `apart` blocks from those before it and the `better`.

    The `excluded` themselves are not among them. Fewer where there are no more, none where nothing fits. After `seconds` a
    network the best one found so far is taken, with the bound that was proven.
    """
    if not all(map(len, program.scores)):
        return []
    prices = _prices(program)
    if prices is None:
        return []
    values = [score + cost @ prices for score, cost in zip(program.scores, program.costs, strict=True)]
    bounds = [bound - prices @ program.limits for bound in least_through(values, program.links)]
    found: list[Optimum] = []
    while len(found) < count:
        before = [*better, *(one.choices for one in found)]
        cuts = [*((choices, apart) for choices in before), *((choices, 1) for choices in excluded)]
        optimum = _next(program, bounds, cuts, seconds)
        if optimum is None:
            break
        found.append(optimum)
    return found


def _next(program: Program, bounds: Sequence[Array], cuts: list[tuple[tuple[int, ...], int]], seconds: float) -> Optimum | None:
    """The best network that differs from each cut's in at least as many blocks as the cut says."""
    least = min(float(bound.min()) for bound in bounds)
    nearest = np.sort(np.concatenate(list(bounds)))
    reach = float(nearest[min(FIRST, len(nearest)) - 1])
    while True:
        kept = [np.flatnonzero(bound <= reach) for bound in bounds]
        whole = all(np.isfinite(bound[bound > reach]).sum() == 0 for bound in bounds)
        solved = _solve(program.only(kept), [(_places(kept, choices), differ) for choices, differ in cuts], seconds)
        if solved is None:
            if whole:
                return None
            reach = least + 4 * max(reach - least, 1e-3)
            continue
        choices = tuple(int(at[place]) for at, place in zip(kept, solved[0], strict=True))
        if not program.fits(choices):  # by less than the solver's tolerance, but it does not fit
            cuts.append((choices, 1))
            continue
        score, proven = program.score(choices), solved[1]
        if whole or score <= reach:
            return Optimum(choices, score, min(score, proven if whole else min(proven, reach)))
        reach = score + 1e-9


def _places(kept: Sequence[Array], choices: Sequence[int]) -> list[int | None]:
    """Where the choices stand among the kept ones; None where one was left out."""
    return [int(np.searchsorted(at, choice)) if choice in at else None for at, choice in zip(kept, choices, strict=True)]


def _rows(program: Program) -> tuple[Any, Any, Array]:
    """(budgets, equalities, right sides of the equalities): one candidate a block, and equal widths where blocks meet."""
    from scipy.sparse import block_diag, coo_matrix, vstack

    one = block_diag([np.ones((1, len(score))) for score in program.scores])
    ends = np.cumsum([0, *map(len, program.scores)])
    met = []
    for k in range(len(program.scores) - 1):
        out, into = program.links[k][:, 1], program.links[k + 1][:, 0]
        for width in np.union1d(out, into)[:-1]:  # the last follows from the others
            row = np.zeros(ends[-1])
            row[ends[k] : ends[k + 1]], row[ends[k + 1] : ends[k + 2]] = out == width, -(into == width).astype(float)
            met.append(coo_matrix(row))
    equal = vstack([one, *met]) if met else one
    return (
        np.concatenate(list(program.costs)).T / program.limits[:, None],
        equal,
        np.r_[np.ones(len(program.scores)), np.zeros(len(met))],
    )


def _prices(program: Program) -> Array | None:
    """What a unit of each budget is worth in score, from the linear relaxation; None where not even that is feasible."""
    from scipy.optimize import linprog

    budgets, equal, right = _rows(program)
    solved = linprog(np.concatenate(list(program.scores)), budgets, np.ones(len(budgets)), equal, right, method="highs")
    if solved.status == INFEASIBLE:
        return None
    if solved.status != 0:
        raise MachineError(f"the linear relaxation of the budgets was not solved ({_reason(solved)}); loosen one of them")
    prices: Array = np.maximum(-solved.ineqlin.marginals, 0.0) / program.limits
    return prices


def _solve(program: Program, cuts: Sequence[tuple[Sequence[int | None], int]], seconds: float) -> tuple[list[int], float] | None:
    """(choices, proven bound) of the integer program in which no network equals a cut's in more than all but `apart` blocks."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not all(map(len, program.scores)):
        return None
    budgets, equal, right = _rows(program)
    starts = np.cumsum([0, *map(len, program.scores)])
    constraints = [LinearConstraint(budgets, ub=1.0), LinearConstraint(equal, right, right)]
    for places, apart in cuts:
        row = np.zeros(starts[-1])
        row[[start + place for start, place in zip(starts, places, strict=False) if place is not None]] = 1.0
        constraints.append(LinearConstraint(row, ub=len(places) - apart))
    solved = milp(
        SCALE * np.concatenate(list(program.scores)),
        integrality=np.ones(starts[-1]),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "time_limit": seconds, "presolve": False},  # presolve has lost an optimum: see the tests
    )
    if solved.status == INFEASIBLE:
        return None
    if solved.x is None:
        raise MachineError(
            f"whether any network fits all budgets was not decided within {seconds:g} s ({_reason(solved)}); loosen one of "
            "them or leave it out, or try again when the machine is less busy"
        )
    chosen = [int(solved.x[a:b].argmax()) for a, b in itertools.pairwise(starts)]
    bound = solved.mip_dual_bound if solved.status != 0 else solved.fun
    return chosen, float(bound) / SCALE


def _reason(solved: Any) -> str:
    """SciPy's words, without the solver's own status behind them."""
    return str(solved.message).partition(" (")[0].rstrip(". ")
