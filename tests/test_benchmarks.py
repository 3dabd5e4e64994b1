"""Every benchmark explains itself; the quickest one is run, and published tables are what their source says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dna_deploy.table import SHIPPED

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "latency-data"
NAMES = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if not file.stem.startswith("_"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_itself(name):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and f"python -m benchmarks.{name}" in done.stdout


def test_a_benchmark_ends_with_its_figures():
    done = subprocess.run([sys.executable, "-m", "benchmarks.pick", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "pick" and answer["environment"]["python"]
    exact = answer["results"][0]
    assert exact["value"] == 0 and exact["ok"] and exact["n"] == 100
    assert all({"measure", "value", "unit", "goal", "ok", "n", "spread"} == set(result) for result in answer["results"])


@pytest.mark.skipif(not DATA.is_dir(), reason="the published latency data is not here")
def test_published_tables_are_rebuilt_to_the_byte():
    from benchmarks.published_tables import TABLES

    for name, make in TABLES.items():
        assert make(DATA) == (SHIPPED / f"{name}.jsonl").read_text()


def test_benchmarks_are_found_as_modules():
    assert all(importlib.util.find_spec(f"benchmarks.{name}") for name in NAMES)
