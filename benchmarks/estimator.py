"""Which estimate of a latency repeats best, and which tells networks from their ops best?

    python -m benchmarks.estimator --table latency_tables/cpu.jsonl

Every table keeps all samples of all rounds. Each estimator computes every op and network twice, from two disjoint halves of the
rounds: every other round (which share the machine's slow drift), and the first against the second half of the session (which do
not). An estimate may repeat because it shows each model at its luckiest moment, which short ops meet and long networks do not:
so the table's whole networks are also predicted from its ops by each estimate, as the product does, each network held out.
Takes seconds; needs a table that dna-profile made on a device.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks._report import Result, arguments, report
from dna_deploy.arch import Architecture
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.table import LatencyTable
from profilers import leveled, summarize_all

KEPT = Path(__file__).parent / "results" / "estimator.json"

Rounds = Sequence[Sequence[int]]  # nanoseconds of each run, round by round


def quantile(share: float) -> Callable[[Rounds], float]:
    """Over all runs of all rounds, whichever round they are of."""
    return lambda rounds: float(np.quantile(np.concatenate(list(rounds)), share))


def of_rounds(inner: float, outer: float) -> Callable[[Rounds], float]:
    """A quantile within each round, then one of those over the rounds."""
    return lambda rounds: float(np.quantile([np.quantile(ns, inner) for ns in rounds], outer))


ESTIMATORS: Mapping[str, Callable[[Rounds], float]] = {
    "mean of all runs": lambda rounds: float(np.mean(np.concatenate(list(rounds)))),
    "median of all runs": quantile(0.5),
    "lower quartile of all runs": quantile(0.25),
    "lowest tenth of all runs": quantile(0.1),
    "minimum of all runs": quantile(0.0),
    "median over rounds of the median": of_rounds(0.5, 0.5),
    "median over rounds of the lower quartile": of_rounds(0.25, 0.5),
    "median over rounds of the minimum": of_rounds(0.0, 0.5),
    "lower quartile over rounds of the lower quartile": of_rounds(0.25, 0.25),
    "lower quartile over rounds of the minimum": of_rounds(0.0, 0.25),
}


def halves(rounds: Sequence[int]) -> Mapping[str, tuple[list[int], list[int]]]:
    middle = len(rounds) // 2
    return {
        "every other round": (list(rounds[::2]), list(rounds[1::2])),
        "first and second half": (list(rounds[:middle]), list(rounds[middle:])),
    }


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[float, float, float]:
    """Between two estimates of the same keys: median and worst tenth of the relative differences, after the common factor that a
    drift of the whole machine leaves is taken out; and the rank correlation of the networks."""
    ratios = np.array([first[key] / second[key] for key in first])
    differences = np.abs(ratios / np.median(ratios) - 1)
    networks = [key for key in first if Architecture.is_key(key)]
    rho = (
        float(spearmanr([first[key] for key in networks], [second[key] for key in networks]).statistic)
        if len(networks) > 2
        else 0.0
    )
    return float(np.median(differences)), float(np.quantile(differences, 0.9)), rho


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--table", type=Path, default=Path("latency_tables/cpu.jsonl"), help="table with the samples")
    table = LatencyTable.load(parser.parse_args().table)
    rows, results = [], []
    last = table.sessions[1].first_round if len(table.sessions) > 1 else table.next_round
    visits = [visit for visit in table.visits if visit.round < last]  # of the first session
    samples: dict[str, dict[int, list[int]]] = {}
    for visit in visits:
        samples.setdefault(visit.key, {}).setdefault(visit.round, []).extend(visit.ns)
    common = set.intersection(*(set(rounds) for rounds in samples.values()))
    estimates: dict[str, Callable[[list[int]], Mapping[str, float]]] = {
        name: (lambda rounds, of=of: {key: of([ns[round] for round in rounds]) for key, ns in samples.items()})
        for name, of in ESTIMATORS.items()
    }

    def ours(rounds: list[int]) -> Mapping[str, float]:
        half = leveled([visit for visit in visits if visit.round in rounds])
        return {key: found.latency_ms for key, found in summarize_all(half).items()}

    estimates["ours: that of the lower quartile, over what the visits around each say of the device"] = ours
    for name, estimate in estimates.items():
        row = {"estimator": name}
        for split, (first, second) in halves(sorted(common)).items():
            found = compare(estimate(first), estimate(second))
            row |= {f"{split}: median": found[0], f"{split}: worst tenth": found[1], f"{split}: rank correlation": found[2]}
            results.append(Result(f"{name}, {split}", found[0], "", n=len(samples)))
        whole = estimate(sorted(common))
        told = {key: replace(found, latency_ms=whole[key]) for key, found in table.measurements.items() if key in whole}
        if errors := LatencyPredictor(replace(table, measurements=told)).errors():
            row["networks"] = errors[0].mape
            results.append(Result(f"{name}, networks from their ops", errors[0].mape, "", n=errors[0].n))
        rows.append(row)
    best = min(rows, key=lambda row: statistics.mean(row[f"{split}: median"] for split in halves([])))
    results.append(
        Result(
            f"repeats best: {best['estimator']}",
            statistics.mean(best[f"{split}: median"] for split in halves([])),
            "",
            n=len(samples),
        )
    )
    KEPT.write_text(json.dumps({"device": table.header.environment, "rounds": len(common), "rows": rows}, indent=1) + "\n")
    report("estimator", results)


if __name__ == "__main__":
    main()
