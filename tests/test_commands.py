"""The three commands as a user runs them: end to end on the smallest space, again, interrupted, and asked wrongly."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dna_deploy.files import alone
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
PIXEL1 = str(Path(__file__).parent.parent / "latency_tables" / "pixel1.jsonl")
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
    assert there["measured_ms"] > 0 and "on cpu" in said
    report = json.loads((folder / found["folder"] / "export" / "model.onnx.verification.json").read_text())
    (kept,) = report["on_device"]["comparisons"]
    assert kept["images"] == 449 and kept["batch"] == 1 and report["latency"]["environment"]["threads"] == 1
    _, said = dna("export", "--device", "pixel1", cwd=folder, expect=2)
    assert "'pixel1' is no device we can measure" in said


def test_the_run_holds_everything(place):
    folder = place[0] / "runs" / "try"
    kept = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    own = {"run.json", "split.json", "teacher.safetensors", "teacher.json", "supernet.safetensors", "ratings.jsonl"}
    found = {
        f"cpu-50ms/{name}"
        for name in ("architecture.json", "pick.json", "front.csv", "front.png", "top.csv", "student.safetensors")
    }
    models = ("model.onnx", "model.onnx.verification.json", "model.onnx.logits.npz", "preprocess.onnx")
    beside = ("manifest.json", "preprocessing.json", "labels.json", "golden.npz", "LICENCES.md", "example.py")
    bundle = {f"cpu-50ms/export/{name}" for name in (*models, *beside)}
    assert kept == own | found | bundle | {"cpu-50ms/student.json", "cpu-50ms/report.html", "cpu-50ms/.export.lock"}
    assert "model.onnx, measured" in (folder / "cpu-50ms/report.html").read_text()
    assert (folder / "cpu-50ms/front.png").read_bytes().startswith(b"\x89PNG")
    rows = (folder / "cpu-50ms/front.csv").read_text().splitlines()
    assert rows[0] == "predicted_ms,score,network" and len(rows) >= 2


def test_the_bundle_verifies(place):
    checked, said = dna("export", "--verify", "runs/try/cpu-50ms/export", "--max-drop", "0.5%", cwd=place[0])
    assert checked["verified"] and checked["accuracy_drop"] == 0 and "files as they were shipped" in said


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


def test_several_limits_and_several_networks(place):
    folder, _, found, _, _ = place
    limits = ["--macs", f"{found['macs'] * 0.9 / 1e6:.4f}M", "--memory", "1MB", "--file-size", "1MB", "--ban", "b2=k3e6"]
    done, said = dna("search", "--latency", "50ms", *SEARCH, *limits, "--top", "3", "--no-train", cwd=folder)
    assert done["macs"] <= found["macs"] * 0.9 and done["peak_bytes"] <= 1e6 and done["file_bytes"] <= 1e6
    assert done["score"] == pytest.approx(done["bound"]) and "no network within the budgets scores better" in said
    assert len(done["top"]) == 3 == len(set(done["top"])) and done["top"][0] == done["network"]
    assert not any("k3e6" in text.split(" | ")[1] for text in done["top"])
    rows = (folder / done["folder"] / "top.csv").read_text().splitlines()
    assert rows[0].startswith("score,--latency cpu,--macs,--file-size,--memory,network") and len(rows) == 4


def test_an_upper_bound_is_held_and_candidates_are_measured_before_the_pick(place):
    folder = place[0]
    asked = ["--latency", "50ms", *SEARCH, "--no-train"]
    found, said = dna("search", *asked, "--confidence", "0.95", "--measure-top", "2", cwd=folder)
    assert found["predicted_ms"] < found["high_ms"] <= 50 and found["confidence"] == 0.95
    assert 1 <= len(found["tried"]) <= 2 and found["tried"][0]["measured_ms"][0] > 0
    assert re.search(r"its (predicted|measured) 95% upper bound is within the budget", said)
    assert "measured before picking" in said
    kept = json.loads(Path(folder, found["folder"], "pick.json").read_text())
    assert kept["tried"] == found["tried"] and kept["confidence"] == 0.95
    dna("search", "--latency", "50ms", *SEARCH, cwd=folder)  # as it was, for the tests below


def test_one_network_for_two_devices(place):
    folder = place[0]
    lines = (folder / "latency_tables" / "cpu.jsonl").read_text().splitlines()
    twin = {**json.loads(lines[0]), "target": "twin"}
    (folder / "latency_tables" / "twin.jsonl").write_text("\n".join([json.dumps(twin), *lines[1:]]) + "\n")
    try:
        both = ["--latency", "cpu=50ms", "--latency", "twin=40ms"]
        found, said = dna("search", *both, *SEARCH, "--no-train", cwd=folder)
        assert found["folder"] == "runs/try/cpu-50ms+twin-40ms"
        (other,) = found["others"]
        assert other["device"] == "twin" and other["predicted_ms"] == found["predicted_ms"] <= 40
        assert "on cpu, budget 50 ms" in said and "on twin, budget 40 ms" in said
        _, said = dna("search", "--latency", "cpu=50ms", "--latency", "twin=0.0001ms", *SEARCH, cwd=folder, expect=1)
        assert "fits --latency twin=0.0001ms; the least there is" in said
    finally:
        (folder / "latency_tables" / "twin.jsonl").unlink()


def test_an_own_model_is_measured_beside_its_prediction(place):
    folder, _, found, _, _ = place
    model = f"{found['folder']}/export/model.onnx"
    judged, said = dna("profile", "--model", model, "--space", TINY, "--image-size", "32", cwd=folder)
    assert judged["predicted_ms"] == pytest.approx(found["predicted_ms"]) and judged["measured_ms"] > 0
    assert judged["low_ms"] < judged["predicted_ms"] < judged["high_ms"] and "ops from the table" in said
    _, said = dna("profile", "--model", model, "--space", TINY, "--image-size", "224", cwd=folder)
    assert "one image of 32 px" in said  # the file's own size, whatever is asked for
    _, said = dna("profile", "--model", "nowhere.onnx", cwd=folder, expect=2)
    assert "no such file" in said
    other, said = dna("profile", "--model", model, "--device", "pixel1", "--image-size", "32", cwd=folder)
    assert other["measured_ms"] is None and other["predicted_ms"] is None and "not predicted" in said and "outside" in said


def test_searching_again_does_nothing_twice(place):
    folder, _, found, _, _ = place
    weights = folder / found["folder"] / "student.safetensors"
    before = weights.stat().st_mtime_ns
    again, _ = dna("search", "--latency", "50ms", *SEARCH, cwd=folder)
    assert again == found and weights.stat().st_mtime_ns == before


def test_profiling_again_measures_nothing_new(place):
    asked = ["--space", TINY, "--image-size", "32", "--classes", "10", "--validate", "10"]
    done, said = dna("profile", *asked, "--halfwidth", "0.01%", cwd=place[0])
    assert done["measured"] == 0 and "already in the table" in done["ended"] and done["wide"] > 0
    assert f"{done['wide']} with an interval wider than 0.01% (--again adds a session)" in said
    _, said = dna("profile", *asked, "--halfwidth", "nan", cwd=place[0], expect=2)
    assert "'nan' is no share" in said


LOSSY = """
from dataclasses import replace
from dna_deploy.exporters import onnx
def load(path):
    right = onnx.load(path)
    def run(images):
        logits = right(images)
        logits[7::8] = logits[7::8][:, ::-1]  # one answer of eight is turned round
        return logits
    return run
EXPORTER = replace(onnx.EXPORTER, name="lossy", precisions=("int8",), load=load)
"""


def test_an_export_that_loses_more_accuracy_than_allowed_is_exit_1(place, tmp_path):
    (tmp_path / "lossy.py").write_text(LOSSY)
    flags = ["--run", "runs/try/cpu-50ms", "--format", str(tmp_path / "lossy.py"), "--output", str(tmp_path / "model.onnx")]
    _, said = dna("export", *flags, cwd=place[0], expect=1)
    assert "accuracy" in said and "drop limit 0.5%" in said
    allowed, _ = dna("export", *flags, "--max-drop", "50%", cwd=place[0])
    assert allowed["verified"] and 0.8 <= allowed["top1_agreement"] < 1


def test_a_latency_of_another_machine_is_no_gate(place):
    folder = place[0]
    pick = json.loads((folder / "runs/try/cpu-50ms/pick.json").read_text())
    (folder / "runs/try/cpu-50ms/pick.json").write_text(json.dumps({**pick, "device": "pixel1", "table": PIXEL1}))
    try:
        _, said = dna("export", "--run", "runs/try/cpu-50ms", "--max-latency", "10s", cwd=folder, expect=2)
    finally:
        (folder / "runs/try/cpu-50ms/pick.json").write_text(json.dumps(pick))
    assert "--max-latency" in said and "was not measured on pixel1" in said


def test_an_export_that_is_not_the_network_is_exit_1(place):
    _, said = dna("export", "--run", "runs/try/cpu-50ms", "--max-difference", "1e-12", cwd=place[0], expect=1)
    assert "is not the network it was made from" in said and "largest difference" in said


@pytest.mark.parametrize(
    ("command", "flags", "code", "says"),
    [
        ("search", ["--latency", "80"], 2, "did you mean 80ms?"),
        ("search", ["--latency", "-3ms"], 2, "greater than zero"),
        ("search", ["--latency", "fast"], 2, "80ms, 1.5ms or 0.08s"),
        ("search", ["--latency", "0.001ms", *SEARCH], 1, "the least there is"),
        ("search", ["--latency", "80ms", *SEARCH, "--teacher", "nope"], 2, "was made with --teacher"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--teacher", "nope"], 2, "timm has no model"),
        ("search", ["--latency", "80ms", *SEARCH, "--device", "toaster"], 2, "no latency table for 'toaster'"),
        ("search", ["--latency", "80ms", *SEARCH, "--device", "pixel1"], 2, "published for --image-size 224"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--data", "nowhere"], 2, "no such folder"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--image-size", "64"], 2, "are not in it"),
        ("search", ["--latency", "80ms", "--epochs", "0"], 2, "x>=1"),
        ("search", ["--latency", "80ms", "--rating-images", "1"], 2, "x>=2"),
        ("search", ["--latency", "=80ms"], 2, "names no device"),
        ("search", ["--latency", "80ms", "--latency", "cpu=5ms", *SEARCH], 2, "name the device of each"),
        ("search", ["--latency", "cpu=80ms", "--latency", "cpu=5ms", *SEARCH], 2, "cpu is given twice"),
        ("search", ["--latency", "80ms", "--confidence", "1.5", *SEARCH], 2, "0.5<=x<1"),
        ("search", ["--latency", "80ms", "--confidence", "nan", *SEARCH], 2, "0.5<=x<1"),
        ("profile", ["--model", "any.onnx", "--confidence", "nan"], 2, "0.5<=x<1"),
        ("search", ["--latency", "9" * 400 + "ms"], 2, "greater than zero, and finite"),
        ("search", ["--latency", "80ms", "--macs", "9" * 400 + "M"], 2, "300M or 1.2G"),
        ("search", ["--latency", "80ms", "--memory", "9" * 400 + "MB"], 2, "10MB or 512kB"),
        ("search", ["--latency", "80ms", "--confidence", "0.9", "--extrapolate", *SEARCH], 2, "nothing bounds a guess"),
        ("search", ["--latency", "80ms", "--diverse", *SEARCH], 2, "--diverse without --top"),
        ("search", ["--latency", "80ms", "--imagesize", "3"], 2, "No such option"),
        ("search", ["--latency", "80ms", *SEARCH, "--pin", "b1=d1", "--pin", "b1=d2"], 2, "leave no candidate of b1"),
        ("search", ["--latency", "80ms", *SEARCH, "--ban", "k9*"], 2, "nothing there is called 'k9*'"),
        (
            "search",
            ["--latency", "80ms", *SEARCH, "--macs", "1k", "--params", "10k"],
            1,
            "fits --macs 0.001M; the least there is",
        ),
        ("search", ["--latency", "80ms", *SEARCH, "--memory", "2"], 2, "10MB or 512kB"),
        ("search", ["--latency", "80ms", *SEARCH[:-1], "new", "--teacher", "nope.py"], 2, "nope.py: no such file"),
        ("profile", ["--space", "derived:nope"], 2, "timm has no model of that name"),
        ("profile", ["--device", "toaster"], 2, "no device we can measure"),
        ("profile", ["--space", "nope"], 2, "none of the spaces"),
        ("profile", ["--cores", "3-0"], 2, "expected numbers such as 0, 0-3"),
        ("profile", ["--address", "pi@raspberry", "--mode", "fixed"], 2, "changes nothing on a device of kind host"),
        ("profile", ["--budget", "2"], 2, "90s or 2min"),
        ("profile", ["--table", "noext", "--space", TINY, "--image-size", "32"], 2, "expected a file that ends in .jsonl"),
        ("profile", ["--confidence", "0.9", "--space", TINY], 2, "it is for --model"),
        ("profile", ["--model", "any.onnx", "--threads", "2", "--space", TINY], 2, "was, with threads = 1"),
        ("profile", ["--model", "any.onnx", "--again", "--validate", "5"], 2, "--again, --validate: not with --model"),
        (
            "profile",
            ["--model", "any.onnx", "--device", "pixel1", "--table", "latency_tables/cpu.jsonl"],
            2,
            "latency_tables/cpu.jsonl is of cpu; leave one of the two out",
        ),
        ("profile", ["--list", "--table", "nothere.jsonl"], 2, "--table: not with --list"),
        ("profile", ["--space", "auto"], 2, "--space derived:tf_efficientnet_lite0"),
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
    taken_at = {when for row in rows if "latency_ms" in row for when in row["ns"]}
    assert sum(row["n"] for row in rows if "n" in row) > samples and {"0.0", "1.0"} <= taken_at
    first = json.loads(taken[0])
    assert any(row.get("key") == first["key"] and row["ns"].get("0.0") == first["ns"] for row in rows if "latency_ms" in row)


def test_two_profiles_of_one_table_at_once_are_refused(tmp_path):
    flags = ["--space", TINY, "--image-size", "32", "--classes", "10", "--validate", "0", "--halfwidth", "0.0001"]
    program = [sys.executable, "-c", "from dna_deploy.cli.profile import main; main()", *flags]
    table = tmp_path / "latency_tables" / "cpu.jsonl"
    running = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (table.exists() and table.read_text().count("\n") > 5):
            time.sleep(0.02)
        running.send_signal(signal.SIGSTOP)  # it holds the table for as long as the other one tries
        _, said = dna("profile", *flags, cwd=tmp_path, expect=2)
        assert "another dna-profile is writing here" in said
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()


@pytest.mark.parametrize(
    ("command", "flags"),
    [("search", ["--latency", "50ms", "--device", PIXEL1, *SEARCH]), ("train", ["dna_a", "--data", "digits", "--run", "try"])],
)
def test_two_commands_in_one_run_are_refused(tmp_path, command, flags):
    with alone(tmp_path / "runs" / "try", "test"):
        _, said = dna(command, *flags, cwd=tmp_path, expect=2)
    assert said == f"error: runs/try: another dna-{command} is writing here; wait for it and run this again\n"
    assert not (tmp_path / "runs" / "try").exists()


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


# A file system of its own, as full as asked; the command; the file system grown; the same command again.
SMALL_DISK = """
mount -t tmpfs -o "size=$1k" tmpfs . && cd "$PWD" && cp -r "$2"/. . || exit 99
shift 2
"$@"; echo "exit code $?" >&2
mount -o remount,size=400m . || exit 99
"$@"; echo "exit code $?" >&2
"""


@pytest.mark.parametrize(
    ("command", "kept", "free_kb", "flags"),
    [
        ("profile", None, 28, ["--space", TINY, "--image-size", "32", "--classes", "10", "--validate", "0"]),
        ("search", "latency_tables", 4000, ["--latency", "50ms", *SEARCH]),
        ("export", ".", 60, ["--run", "runs/try/cpu-50ms"]),
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(place, tmp_path, command, kept, free_kb, flags):
    before, disk = tmp_path / "before", tmp_path / "disk"
    disk.mkdir()
    if kept:
        shutil.copytree(place[0] / kept, before / kept)
    else:
        before.mkdir()
    shutil.rmtree(before / "runs" / "try" / "cpu-50ms" / "export", ignore_errors=True)
    size_kb = free_kb + sum(-(-file.stat().st_size // 4096) * 4 for file in before.rglob("*") if file.is_file())
    program = [sys.executable, "-c", f"from dna_deploy.cli.{command} import main; main()", *flags]
    script = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "small-disk", str(size_kb), str(before), *program]
    done = subprocess.run(script, cwd=disk, capture_output=True, text=True, timeout=300)
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()[:100]}")
    full, again = done.stderr.split("exit code 3\n")
    assert full.splitlines()[-1].startswith("error: ") and "disk is full" in full and "Traceback" not in full
    assert again.endswith("exit code 0\n") and "error" not in again


def test_devices_and_tables_are_listed(place):
    listed, said = dna("profile", "--list", cwd=place[0])
    assert "cpu" in listed["devices"] and listed["tables"]["pixel1"] == 72 and "published" in said
    assert {"samsung_note10", "pixel6", "xiaomi11"} <= set(listed["tables"]) and "h ago" in said
    assert listed["coverage"]["pixel1"] == {"measured": 70, "predicted": 0, "of": 70}  # mobile at 224 px
