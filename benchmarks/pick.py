"""Is the search exact, and how long does it take?

    python -m benchmarks.pick

Random small instances against brute force, then the whole Pareto front of `mobile` (2.5e14 networks) at the costs of the
published Pixel 1 table: once with scores that follow cost as ratings do, once with scores that ignore it. Takes a second.
"""

import itertools
import time

import numpy as np

from benchmarks._report import Result, arguments, at_most, plain, report
from dna_deploy.budget import block_costs
from dna_deploy.pick import pareto_front
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.table import LatencyTable, find_table


def brute_force(costs, scores, budgets):
    """The best score within each budget over every combination."""
    total_cost = np.array([sum(c) for c in itertools.product(*costs)])
    total_score = np.array([sum(s) for s in itertools.product(*scores)])
    return [total_score[total_cost <= budget].min(initial=np.inf) for budget in budgets]


def differing(instances: int) -> int:
    """How many random instances have any budget at which the front and brute force disagree."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(instances):
        sizes = rng.integers(1, 7, size=rng.integers(2, 6))
        costs = [rng.random(size) * 10 for size in sizes]
        scores = [rng.standard_normal(size) for size in sizes]
        front = pareto_front(costs, scores)
        budgets = rng.uniform(0, sum(cost.max() for cost in costs), 20)
        ours = [front.scores[best] if (best := front.best_within(budget)) is not None else np.inf for budget in budgets]
        wrong += not np.allclose(ours, brute_force(costs, scores, budgets))
    return wrong


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    space = find("spaces", "mobile").at(224, 1000)
    costs = block_costs(space, LatencyPredictor(LatencyTable.load(find_table("pixel1"))))
    instances = 100 if quick else 1000
    wrong = differing(instances)
    results = [Result("random instances that differ from brute force", wrong, "", "= 0", wrong == 0, instances)]
    rng = np.random.default_rng(1)
    for name, follow in (("scores follow cost", 0.5), ("scores ignore cost", 0.0)):
        times, sizes = [], []
        for _ in range(20):
            scores = [0.15 * rng.standard_normal(len(cost)) - follow * np.log(cost) for cost in costs]
            began = time.perf_counter()
            front = pareto_front(costs, scores)
            times.append(time.perf_counter() - began)
            sizes.append(len(front.costs))
        results.append(at_most(f"seconds for the whole front, {name}", times, "s", 0.5))
        results.append(plain(f"networks on the front, {name}", sizes, ""))
    report("pick", results)


if __name__ == "__main__":
    main()
