"""The three commands as a user runs them: end to end on the smallest space, again, interrupted, and asked wrongly."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY

SEARCH = [
    "--data",
    "digits",
    "--space",
    TINY,
    "--image-size",
    "32",
    "--teacher-epochs",
    "1",
    "--distill-epochs",
    "1",
    "--epochs",
    "1",
]
SEARCH += ["--rating-images", "64", "--run", "try"]


def dna(command, *flags, cwd, expect=0):
    """Run a command as a process of its own; returns (its JSON, its stderr)."""
    program = [sys.executable, "-c", f"from dna_deploy.cli.{command} import main; main()", *flags, "--json"]
    done = subprocess.run(program, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return (json.loads(done.stdout.splitlines()[-1]) if done.stdout else None), done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the whole chain was run once."""
    folder = tmp_path_factory.mktemp("chain")
    small = ["--space", TINY, "--image-size", "32", "--classes", "10", "--validate", "10", "--budget", "60s"]
    profiled, _ = dna("profile", *small, cwd=folder)
    found, said = dna("search", "--latency", "50ms", *SEARCH, cwd=folder)
    exported, _ = dna("export", cwd=folder)
    return folder, profiled, found, said, exported


def test_the_chain_hands_its_numbers_on(place):
    folder, profiled, found, said, exported = place
    assert profiled["rows"] >= 11 + 10 and Path(folder, profiled["table"]).is_file()
    assert "profiled last" in said
    assert found["folder"] == "runs/try/cpu-50ms" and found["predicted_ms"] <= 50
    assert found["measured_ms"] > 0 and 0 < found["test_accuracy"] <= 1
    assert exported["verified"] and exported["top1_agreement"] == 1.0 and exported["largest_difference"] <= 1e-4
    assert exported["test_accuracy"] == pytest.approx(found["test_accuracy"])
    assert exported["predicted_ms"] == found["predicted_ms"] and exported["measured_ms"] > 0


def test_the_exported_file_is_run_on_the_device_asked_for(place):
    folder, _, found, _, exported = place
    there, said = dna("export", "--run", found["folder"], "--device", "cpu", cwd=folder)
    assert there["predicted_ms"] == pytest.approx(found["predicted_ms"])
    assert there["device_top1_agreement"] == 1.0 and there["device_accuracy"] == exported["test_accuracy"]
    assert there["measured_ms"] > 0 and "the same file on cpu" in said
    kept = json.loads((folder / found["folder"] / "export" / "verification.json").read_text())["on_device"]
    assert kept["comparison"]["images"] == 449 and kept["comparison"]["batch"] == 1 and kept["environment"]["threads"] == 1
    _, said = dna("export", "--device", "pixel1", cwd=folder, expect=2)
    assert "'pixel1' is no device we can measure" in said


def test_the_run_holds_everything(place):
    folder = place[0] / "runs" / "try"
    kept = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    own = {"run.json", "split.json", "teacher.safetensors", "teacher.json", "supernet.safetensors", "ratings.jsonl"}
    found = {f"cpu-50ms/{name}" for name in ("architecture.json", "pick.json", "front.csv", "front.png", "student.safetensors")}
    assert kept == own | found | {"cpu-50ms/student.json", "cpu-50ms/export/model.onnx", "cpu-50ms/export/verification.json"}
    assert (folder / "cpu-50ms/front.png").read_bytes().startswith(b"\x89PNG")
    rows = (folder / "cpu-50ms/front.csv").read_text().splitlines()
    assert rows[0] == "predicted_ms,score,network" and len(rows) >= 2


def test_the_exported_file_runs_with_onnxruntime_alone(place):
    folder = place[0]
    code = (
        "import sys, onnxruntime, numpy\n"
        "s = onnxruntime.InferenceSession('runs/try/cpu-50ms/export/model.onnx')\n"
        "y = s.run(None, {'input': numpy.zeros((3, 3, 32, 32), numpy.float32)})[0]\n"
        "assert y.shape == (3, 10) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_picking_again_reuses_the_ratings(place):
    folder, _, found, _, _ = place
    ratings = folder / "runs/try/ratings.jsonl"
    before = ratings.stat().st_mtime_ns
    budget = f"{found['predicted_ms'] * 0.9:.4f}ms"
    again, _ = dna("search", "--latency", budget, *SEARCH, "--no-train", cwd=folder)
    assert again["predicted_ms"] <= found["predicted_ms"] * 0.9 and again["network"] != found["network"]
    assert ratings.stat().st_mtime_ns == before
    _, said = dna("export", "--run", again["folder"], cwd=folder, expect=2)
    assert "no weights there" in said and len(said.strip().splitlines()) == 1


def test_searching_again_does_nothing_twice(place):
    folder, _, found, _, _ = place
    weights = folder / found["folder"] / "student.safetensors"
    before = weights.stat().st_mtime_ns
    again, _ = dna("search", "--latency", "50ms", *SEARCH, cwd=folder)
    assert again == found and weights.stat().st_mtime_ns == before


def test_profiling_again_measures_nothing_new(place):
    done, _ = dna("profile", "--space", TINY, "--image-size", "32", "--classes", "10", "--validate", "10", cwd=place[0])
    assert done["measured"] == 0 and "already in the table" in done["ended"]


def test_an_export_that_is_not_the_network_is_exit_1(place):
    _, said = dna("export", "--run", "runs/try/cpu-50ms", "--max-difference", "1e-12", cwd=place[0], expect=1)
    assert "is not the network that was trained" in said and "largest difference" in said


@pytest.mark.parametrize(
    ("command", "flags", "code", "says"),
    [
        ("search", ["--latency", "80"], 2, "did you mean 80ms?"),
        ("search", ["--latency", "-3ms"], 2, "greater than zero"),
        ("search", ["--latency", "fast"], 2, "80ms, 1.5ms or 0.08s"),
        ("search", ["--latency", "0.001ms", *SEARCH], 1, "the fastest takes"),
        ("search", ["--latency", "80ms", *SEARCH, "--teacher", "nope"], 2, "was made with --teacher"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--teacher", "nope"], 2, "timm has no model"),
        ("search", ["--latency", "80ms", *SEARCH, "--device", "toaster"], 2, "no latency table for 'toaster'"),
        ("search", ["--latency", "80ms", *SEARCH, "--device", "pixel1"], 2, "published for --image-size 224"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--data", "nowhere"], 2, "no such folder"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--image-size", "64"], 2, "are not in it"),
        ("search", ["--latency", "80ms", "--epochs", "0"], 2, "x>=1"),
        ("search", ["--latency", "80ms", "--imagesize", "3"], 2, "No such option"),
        ("profile", ["--device", "toaster"], 2, "no device we can measure"),
        ("profile", ["--space", "nope"], 2, "none of the spaces"),
        ("profile", ["--budget", "2"], 2, "90s or 2min"),
        ("profile", ["--threads", "2", "--space", TINY, "--image-size", "32"], 2, "measured with threads = 1, now it is 2"),
        ("export", ["--format", "nope"], 2, "none of the exporters"),
        ("export", ["--run", "nope"], 2, "there are: "),
    ],
)
def test_a_wrong_request_is_answered_in_one_line(place, command, flags, code, says):
    _, said = dna(command, *flags, cwd=place[0], expect=code)
    assert says in said
    assert len([line for line in said.splitlines() if line.lower().startswith("error")]) == 1


def test_broken_files_are_named(place):
    folder = place[0]
    table = folder / "latency_tables" / "cpu.jsonl"
    whole = table.read_bytes()
    try:
        table.write_bytes(whole[:-20])
        _, said = dna("search", "--latency", "50ms", *SEARCH, "--no-train", cwd=folder, expect=2)
        assert "cpu.jsonl, line" in said and "cut off" in said
    finally:
        table.write_bytes(whole)
    weights = folder / "runs/try/cpu-50ms/student.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:1000])
        _, said = dna("export", "--run", "runs/try/cpu-50ms", cwd=folder, expect=2)
        assert "not readable weights" in said
    finally:
        weights.write_bytes(kept)


def test_without_a_run_export_says_so(tmp_path):
    _, said = dna("export", cwd=tmp_path, expect=2)
    assert "run dna-search first" in said


def test_an_interrupted_profile_loses_nothing_and_goes_on(tmp_path):
    flags = ["--space", TINY, "--image-size", "32", "--classes", "10", "--validate", "0", "--halfwidth", "0.0001"]
    program = [sys.executable, "-c", "from dna_deploy.cli.profile import main; main()", *flags]
    table = tmp_path / "latency_tables" / "cpu.jsonl"
    running = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (table.exists() and table.read_text().count("\n") > 30):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    taken = [line for line in table.read_text().splitlines() if '"round"' in line and line.endswith("}")]
    assert len(taken) >= 28
    done, _ = dna("profile", *flags, cwd=tmp_path)
    assert done["rows"] == 11
    samples = sum(len(json.loads(line)["ns"]) for line in taken)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rounds = {int(round) for row in rows if "latency_ms" in row for round in row["ns"]}
    assert sum(row["n"] for row in rows if "n" in row) > samples and {0, 1} <= rounds
    first = json.loads(taken[0])
    assert any(
        row.get("key") == first["key"] and row["ns"]["0"][: len(first["ns"])] == first["ns"]
        for row in rows
        if "latency_ms" in row
    )


def test_ctrl_c_is_one_line(tmp_path):
    program = [
        sys.executable,
        "-c",
        "from dna_deploy.cli.profile import main; main()",
        "--image-size",
        "64",
        "--halfwidth",
        "0.0001",
    ]
    running = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    table = tmp_path / "latency_tables" / "cpu.jsonl"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (table.exists() and table.read_text().count("\n") > 5):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130 and "goes on from there" in said and "Traceback" not in said


def test_devices_and_tables_are_listed(place):
    listed, said = dna("profile", "--list", cwd=place[0])
    assert "cpu" in listed["devices"] and listed["tables"]["pixel1"] == 72 and "published" in said
