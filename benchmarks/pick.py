"""Is the search exact, and how long does it take?

    python -m benchmarks.pick

Random small instances against brute force, with one budget and with three; then the whole Pareto front of `mobile` (2.5e14
networks) at the costs of the published Pixel 1 table, and of `dna` (1.96e17) at times made up from multiply-adds and
activations, once with scores that follow cost as ratings do, once with scores that ignore it; then the best network of `dna`
within four budgets at once (two devices, multiply-adds, parameters), its proof, and five diverse ones. Takes two minutes.
Times are of the processor, so that other work on the machine does not count.
"""

import itertools
import time

import numpy as np

from benchmarks._report import Result, arguments, at_most, plain, report
from dna_deploy.budget import block_costs
from dna_deploy.costs import links, sums
from dna_deploy.milp import Program, best
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


def differing_under_three(instances: int) -> int:
    """How many random instances, three budgets and matching widths, integer program and brute force disagree on."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(instances):
        sizes = rng.integers(1, 6, size=rng.integers(2, 5))
        costs = [rng.random((size, 3)) for size in sizes]
        scores = [rng.standard_normal(size) for size in sizes]
        links = [rng.integers(0, 2, (size, 2)) for size in sizes]
        limits = rng.uniform(0.2, 0.7, 3) * len(sizes)
        least = np.inf
        for choices in itertools.product(*map(range, sizes)):
            fits = all(links[k][a][1] == links[k + 1][b][0] for k, (a, b) in enumerate(itertools.pairwise(choices)))
            if fits and (sum(cost[at] for cost, at in zip(costs, choices, strict=True)) <= limits).all():
                least = min(least, sum(score[at] for score, at in zip(scores, choices, strict=True)))
        found = best(Program(scores, costs, links, limits))
        wrong += not np.isclose(found[0].score if found else np.inf, least)
    return wrong


def dna(rounds: int) -> list[Result]:
    """The space of 1.96e17 networks: whole fronts, and four budgets at once between a tenth and a half of what networks cost."""
    rng = np.random.default_rng(3)
    space = find("spaces", "dna").at(224, 1000)
    meet = links(space)
    activations = {op: (op.cin + op.cout) * op.hw**2 for op in space.ops}
    seconds: dict[str, list[float]] = {"ignore": [], "follow": [], "nearly are": [], "four": [], "five": []}
    gaps, points = [], []
    for _ in range(rounds):
        devices = []
        for per_mac, per_value in ((2e-7, 5e-7), (1e-7, 9e-7)):
            ms = {op: (per_mac * op.macs + per_value * activations[op]) * np.exp(0.2 * rng.standard_normal()) for op in space.ops}
            devices.append([sums(block, ms.__getitem__) for block in space.blocks])
        kinds = [
            *devices,
            [sums(b, lambda op: op.macs) for b in space.blocks],
            [sums(b, lambda op: op.params) for b in space.blocks],
        ]
        for name, noise, follow in (("ignore", 0.15, 0.0), ("nearly are", 0.02, 0.5), ("follow", 0.15, 0.5)):
            scores = [noise * rng.standard_normal(len(cost)) - follow * np.log(cost) for cost in devices[0]]
            began = time.process_time()
            front = pareto_front(devices[0], scores, meet)
            seconds[name].append(time.process_time() - began)
        points.append(len(front.costs))
        drawn = [sum(rng.choice(block, 500) for block in kind) for kind in kinds]
        limits = np.array([np.quantile(values, rng.uniform(0.1, 0.5)) for values in drawn])
        program = Program(scores, [np.stack(block, axis=1) for block in zip(*kinds, strict=True)], meet, limits)
        began = time.process_time()
        found = best(program)
        seconds["four"].append(time.process_time() - began)
        gaps += [one.gap for one in found]
        began = time.process_time()
        best(program, count=5, apart=3)
        seconds["five"].append(time.process_time() - began)
    return [
        at_most("dna: seconds for the whole front, scores follow cost", seconds["follow"], "s", 1.0),
        at_most("dna: seconds for the whole front, scores nearly are cost", seconds["nearly are"], "s", 1.0),
        at_most("dna: seconds for the whole front, scores ignore cost", seconds["ignore"], "s", 1.0),
        plain("dna: networks on the front, scores follow cost", points, ""),
        at_most("dna: seconds for the best network within four budgets", seconds["four"], "s", 10.0),
        at_most("dna: the longest of these", [max(seconds["four"])], "s", 10.0),
        at_most("dna: largest gap between its score and what is proven", [max(gaps)], "", 1e-6),
        plain("dna: seconds for five diverse networks within four budgets", seconds["five"], "s"),
    ]


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    space = find("spaces", "mobile").at(224, 1000)
    costs = block_costs(space, LatencyPredictor(LatencyTable.load(find_table("pixel1"))))
    instances = 100 if quick else 1000
    wrong = differing(instances)
    results = [Result("random instances that differ from brute force", wrong, "", "= 0", wrong == 0, instances)]
    instances = 50 if quick else 500
    wrong = differing_under_three(instances)
    results.append(Result("random instances under three budgets that differ", wrong, "", "= 0", wrong == 0, instances))
    rng = np.random.default_rng(1)
    for name, follow in (("scores follow cost", 0.5), ("scores ignore cost", 0.0)):
        times, sizes = [], []
        for _ in range(20):
            scores = [0.15 * rng.standard_normal(len(cost)) - follow * np.log(cost) for cost in costs]
            began = time.process_time()
            front = pareto_front(costs, scores)
            times.append(time.process_time() - began)
            sizes.append(len(front.costs))
        results.append(at_most(f"seconds for the whole front, {name}", times, "s", 0.5))
        results.append(plain(f"networks on the front, {name}", sizes, ""))
    results += dna(2 if quick else 10)
    report("pick", results)


if __name__ == "__main__":
    main()
