"""How a benchmark answers: a table for people, and one JSON object as the last line of stdout."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """One figure. `spread` is half the range of the middle 50 % of the repeats; `ok` is None where there is no goal."""

    measure: str
    value: float
    unit: str
    goal: str = ""
    ok: bool | None = None
    n: int = 1
    spread: float | None = None


def at_most(measure: str, values: Sequence[float], unit: str, goal: float) -> Result:
    value = statistics.median(values)
    return Result(measure, value, unit, f"<= {goal:g}", value <= goal, len(values), spread(values))


def at_least(measure: str, values: Sequence[float], unit: str, goal: float) -> Result:
    value = statistics.median(values)
    return Result(measure, value, unit, f">= {goal:g}", value >= goal, len(values), spread(values))


def plain(measure: str, values: Sequence[float], unit: str) -> Result:
    return Result(measure, statistics.median(values), unit, n=len(values), spread=spread(values))


def spread(values: Sequence[float]) -> float | None:
    if len(values) < 4:
        return None
    quarters = statistics.quantiles(values, n=4)
    return (quarters[2] - quarters[0]) / 2


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller version that answers within a minute")
    return parser


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(benchmark: str, results: Sequence[Result]) -> None:
    width = max(len(result.measure) for result in results)
    for result in results:
        aside = f" +- {result.spread:.2g}" if result.spread is not None else ""
        verdict = {True: "reached", False: "MISSED", None: ""}[result.ok]
        print(f"{result.measure:{width}}  {result.value:10.4g}{aside} {result.unit:8} {result.goal:10} {verdict} (n={result.n})")
    environment = {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": sys.modules["torch"].__version__ if "torch" in sys.modules else None,
    }
    print(json.dumps({"benchmark": benchmark, "results": [asdict(result) for result in results], "environment": environment}))


def _processor() -> str:
    from profilers.host import _processor as name

    return name()
