"""Do two sessions of dna-profile on this machine agree, and does a sum of ops predict networks that were never measured?

    python -m benchmarks.sessions

Runs `dna-profile --validate 50` of space `mobile` at 96 px twice, on a quiet machine a minute, into tables of their own: how far
the medians of the same ops lie apart, and the errors over the networks of the second session, each predicted without itself.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks._report import Result, arguments, at_least, at_most, report
from dna_deploy.arch import Architecture
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.table import LatencyTable


def session(folder: Path, number: int, quick: bool) -> LatencyTable:
    table = folder / f"session-{number}.jsonl"
    asked = ["--image-size", "96", "--classes", "4", "--validate", "8" if quick else "50", "--table", str(table)]
    asked += ["--budget", "10s"] if quick else []
    command = "import sys; from dna_deploy.cli.profile import main; main(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", command, *asked], check=True, stdout=subprocess.DEVNULL)
    return LatencyTable.load(table)


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        first, second = (session(Path(folder), number, quick) for number in (1, 2))
        found = LatencyPredictor(second).errors()
    ops = sorted(key for key in first.measurements.keys() & second.measurements.keys() if not Architecture.is_key(key))
    ratios = np.array([second.measurements[key].latency_ms / first.measurements[key].latency_ms for key in ops])
    assert found is not None
    errors, by_macs = found
    report(
        "sessions",
        [
            at_most("two sessions, medians of the same ops: difference", (abs(ratios - 1) * 100).tolist(), "%", 2.0),
            Result("the same, largest", float(abs(ratios - 1).max() * 100), "%", n=len(ops)),
            at_most("the same but for the machine's own speed", (abs(ratios / np.median(ratios) - 1) * 100).tolist(), "%", 2.0),
            Result("the same, mean with its sign", float((ratios.mean() - 1) * 100), "%", n=len(ops)),
            at_most("unseen networks: mean error", [float(errors.mape) * 100], "%", 3.0),
            at_least("unseen networks: within 5 %", [float(errors.within_5) * 100], "%", 90.0),
            at_least("unseen networks: Spearman", [float(errors.spearman)], "", 0.97),
            Result("unseen networks", errors.n, ""),
            Result("unseen networks by multiply-adds alone: mean error", float(by_macs.mape) * 100, "%"),
            Result("a measurement repeats within", float(errors.repeatability) * 100, "%"),
        ],
    )


if __name__ == "__main__":
    main()
