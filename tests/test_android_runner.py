"""The runner (profilers/_android/dnarun.c), built for this machine and run on pip's own ONNX Runtime library."""

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from profilers import Model, Plan
from profilers._android.package import pack
from profilers._android.tensors import split_outputs
from profilers.errors import DeviceUnavailable
from tests.phone import local, models

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def runner() -> list[str]:
    try:
        files = local.runtime().files
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    return [str(files["dnarun"]), "--lib", str(files["libonnxruntime.so"])]


class Run:
    """A packed plan in a folder, as it lies on a device."""

    def __init__(self, runner: list[str], folder: Path, ops: Sequence[Model], plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.package = pack(folder / "jobs.tar", ops, plan, batch=1)
        with tarfile.open(self.package.tar) as archive:
            archive.extractall(folder, filter="data")
        self.results, self.lock = folder / "results.jsonl", folder / "lock"
        self.command = [*runner, "--plan", "plan.txt", "--out", str(self.results)]
        self.command += ["--runs", str(plan.runs), "--visit-ms", str(plan.visit_ms), "--max-runs", str(plan.max_runs)]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*self.command, *more], cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def finish(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def visits(self) -> list[tuple[str, int]]:
        return [(row["key"], row["round"]) for row in self.rows() if "visit" in row]


def ops() -> list[Model]:
    return [models.conv(channels, 7, kernel) for channels in (4, 8, 12, 16, 20) for kernel in (1, 3, 5)]


def test_the_plan_is_carried_out_in_its_order(runner: list[str], tmp_path: Path) -> None:
    plan = Plan(rounds=3, runs=2, visit_ms=0, max_runs=2)
    run = Run(runner, tmp_path, ops(), plan)
    assert run.finish() == (0, "")
    keys = [model.key for model in ops()]
    expected = [(key, number) for number in range(3) for key in plan.order(keys, number)]
    assert len(expected) > 3 * len(keys)  # anchors are among them
    assert run.visits() == expected == list(run.package.visits)
    first, *rows, last = run.rows()
    assert first["start"] == 0 and first["visits"] == len(expected) and first["runtime"] == onnxruntime.__version__
    assert last == {"end": True}
    assert [row["visit"] for row in rows] == list(range(len(expected)))
    assert all(len(row["ns"]) == 2 and min(row["ns"]) > 0 for row in rows)
    assert sum(row["open_us"] > 200 for row in rows[len(rows) // 3 + 1 :]) == 0  # sessions stay open between rounds


def test_runs_a_visit_follow_the_plan(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, [models.conv(4)], Plan(rounds=2, runs=3, visit_ms=1000, max_runs=7))
    assert run.finish()[0] == 0
    assert [len(row["ns"]) for row in run.rows() if "visit" in row] == [7, 7]


def test_sessions_are_closed_when_memory_is_short(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, ops()[:3], Plan(rounds=2, runs=1, visit_ms=0))
    assert run.finish("--keep-mb", "0")[0] == 0
    assert all(row["open_us"] > 100 for row in run.rows() if "visit" in row)  # each visit loads its model


@pytest.mark.parametrize("key", ['quote " and \\', "umlaut ä, kanji 漢, emoji 🙂", "tab\tand\nline", ""])
def test_keys_come_back_as_they_are(runner: list[str], tmp_path: Path, key: str) -> None:
    run = Run(runner, tmp_path, [Model(key, models.conv(4).onnx)], Plan(rounds=1, runs=1, visit_ms=0))
    assert run.finish() == (0, "")
    assert run.visits() == [(key, 0)]


@pytest.mark.parametrize("torn", [0, 1, 20, 55])
def test_a_half_line_is_cut_off_and_its_visit_made_again(runner: list[str], tmp_path: Path, torn: int) -> None:
    run = Run(runner, tmp_path, ops(), Plan(rounds=2, runs=1, visit_ms=0))
    assert run.finish()[0] == 0
    lines = run.results.read_bytes().splitlines(keepends=True)
    run.results.write_bytes(b"".join(lines[:12]) + lines[12][:torn])
    assert run.finish()[0] == 0
    assert run.visits() == list(run.package.visits)
    assert [row["start"] for row in run.rows() if "start" in row] == [0, 11]


def test_killed_again_and_again_it_still_makes_each_visit_once(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, ops()[:5], Plan(rounds=40, runs=4, visit_ms=0))
    for kills in range(1, 4):
        process = run.start()
        wanted = kills * 40
        while process.poll() is None and (not run.results.exists() or run.results.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert run.finish()[0] == 0
    assert run.visits() == list(run.package.visits)


def test_it_can_be_sent_back_to_a_visit(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, ops()[:4], Plan(rounds=2, runs=1, visit_ms=0))
    assert run.finish()[0] == 0
    assert run.finish("--from", "5")[0] == 0
    assert [row["visit"] for row in run.rows() if "visit" in row] == [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7]


def test_one_measures_at_a_time(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, ops(), Plan(rounds=500, runs=4000, visit_ms=0))
    program = runner[0]
    assert subprocess.run([program, "--lock", str(run.lock), "--holder"]).returncode == 1
    run.command = [program, "--lock", str(run.lock), "--out", str(run.results), "--hold", *run.command]
    first = run.start()
    while not run.results.exists():
        time.sleep(0.005)
    code, errors = run.finish()
    assert code == 6 and "somebody else measures here" in errors
    holder = subprocess.run([program, "--lock", str(run.lock), "--holder"], capture_output=True, text=True)
    assert (holder.returncode, holder.stdout) == (0, f"{first.pid} {run.results}\n")
    assert subprocess.run([program, "--lock", str(run.lock), "--stop"]).returncode == 0
    assert first.wait(10) == -signal.SIGTERM
    first.communicate()
    assert subprocess.run([program, "--lock", str(run.lock), "--holder"]).returncode == 1


@pytest.mark.parametrize("after", ["get", "put"])
def test_a_stop_while_settings_are_changed_puts_them_back(runner: list[str], tmp_path: Path, after: str) -> None:
    settings = tmp_path / "settings"
    settings.write_text("#!/bin/sh\necho $1 $4 >>log\nsleep .5\n[ $1 = put ] || echo 3\n")
    settings.chmod(0o755)
    program = [runner[0], "--lock", "lock"]
    run = ["sh", str(local.runtime().files["run.sh"]), "measure", ".", ".", "1", "0", "touch", "measured"]
    held = [*program, "--out", "results", "--hold", *run]
    process = subprocess.Popen(held, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, stderr=subprocess.DEVNULL)
    log = tmp_path / "log"
    while not log.exists() or after not in log.read_text():
        time.sleep(0.01)
    assert subprocess.run([*program, "--stop"], cwd=tmp_path).returncode == 0
    assert process.wait(10) == 0
    assert log.read_text() == "get\nput 7\nput 3\n" and not (tmp_path / "measured").exists()


def evaluate(runner: list[str], folder: Path, model: Model, content: bytes, *more: str) -> "subprocess.CompletedProcess[str]":
    (folder / "m.onnx").write_bytes(model.onnx)
    (folder / "in.bin").write_bytes(content)
    command = [*runner, "--eval", "m.onnx", "--in", "in.bin", "--out", "out.bin", *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("model", [models.conv(8), models.quantized()], ids=["fp32", "int8"])
def test_it_computes_what_python_computes(runner: list[str], tmp_path: Path, model: Model) -> None:
    x = np.random.default_rng(0).standard_normal((6, 8, 7, 7), dtype=np.float32)
    done = evaluate(runner, tmp_path, model, x.tobytes(), "--dims", "2x8x7x7")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["batches"] == 3 and answer["outputs"] == [{"type": 1, "shape": [2, 8, 7, 7]}]
    (y,) = split_outputs((tmp_path / "out.bin").read_bytes(), answer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (expected,) = onnxruntime.InferenceSession(model.onnx, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(y, expected)  # the same library and the same options: the same bits


def test_several_inputs_and_outputs(runner: list[str], tmp_path: Path) -> None:
    x = np.arange(16, dtype=np.float32).reshape(2, 2, 4)  # two batches of 2x4
    i = np.array([[0, 4], [3, 3]])
    content = b"".join(x[batch].tobytes() + i[batch].tobytes() for batch in range(2))
    done = evaluate(runner, tmp_path, models.two_in_two_out(), content)
    total, top = split_outputs((tmp_path / "out.bin").read_bytes(), json.loads(done.stdout))
    table = np.arange(20, dtype=np.float32).reshape(5, 4) / 8
    np.testing.assert_array_equal(total, np.concatenate([x[0] + table[i[0]], x[1] + table[i[1]]]))
    np.testing.assert_array_equal(top, np.asarray(total).max(axis=1))


@pytest.mark.parametrize(
    ("content", "more", "code", "says"),
    [
        (bytes(1568 + 4), ["--dims", "1x8x7x7"], 3, "the last batch is not whole"),
        (b"", ["--dims", "1x8x7x7"], 3, "no batch in it"),
        (bytes(1568), [], 3, "a dimension that is not fixed"),
        (bytes(1568), ["--dims", "8x7x7"], 3, "does not have the rank"),
        (bytes(1568), ["--dims", "1x8x7x7", "--provider", "NoSuch"], 3, "m.onnx"),
        (bytes(1568), ["--threads", "0"], 2, "--threads"),
        (bytes(1568), ["--cpus", "zz"], 2, "hexadecimal"),
        (bytes(1568), ["--no-such", "1"], 2, "unknown option"),
    ],
)
def test_refusals_say_what_is_wrong(
    runner: list[str], tmp_path: Path, content: bytes, more: list[str], code: int, says: str
) -> None:
    done = evaluate(runner, tmp_path, models.conv(8), content, *more)
    assert done.returncode == code and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_model_it_cannot_run_is_a_line_of_its_own(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, [models.conv(4), models.refused()], Plan(rounds=1, runs=1, visit_ms=0))
    assert run.finish()[0] == 0
    errors = {row["key"]: row.get("error") for row in run.rows() if "visit" in row}
    assert errors["conv c4 r7 k3"] is None and "NoSuchOperator" in errors["refused"]


def test_a_plan_without_its_end_is_refused(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, [models.conv(4)], Plan(rounds=1, runs=1))
    plan = tmp_path / "plan.txt"
    plan.write_text(plan.read_text().removesuffix("end\n"))
    code, errors = run.finish()
    assert code == 2 and "not wholly copied" in errors


def test_a_full_disk_is_no_finished_run(runner: list[str], tmp_path: Path) -> None:
    run = Run(runner, tmp_path, ops(), Plan(rounds=30, runs=1, visit_ms=0))
    limited = ["sh", "-c", 'ulimit -f 4; trap "" XFSZ; exec "$@"', "sh", *run.command]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 5 and "results.jsonl" in done.stderr
    assert run.finish()[0] == 0
    assert run.visits() == list(run.package.visits)


def test_cores_that_are_not_given_are_not_silently_replaced(runner: list[str], tmp_path: Path) -> None:
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) > 60:
        pytest.skip("needs a machine with fewer than 60 cores")
    absent = (1 << 62) | 1 << min(os.sched_getaffinity(0))
    done = evaluate(runner, tmp_path, models.conv(8), bytes(1568), "--cpus", f"{absent:x}")
    assert done.returncode == 7 and "only some of these cores" in done.stderr
    one = 1 << min(os.sched_getaffinity(0))
    assert evaluate(runner, tmp_path, models.conv(8), bytes(1568), "--dims", "1x8x7x7", "--cpus", f"{one:x}").returncode == 0


def test_no_runtime_is_said(runner: list[str], tmp_path: Path) -> None:
    done = subprocess.run([runner[0], "--lib", str(tmp_path / "none.so"), "--version"], capture_output=True, text=True)
    assert done.returncode == 4 and "none.so" in done.stderr
    done = subprocess.run([*runner, "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == onnxruntime.__version__


def test_the_profile_names_every_node(runner: list[str], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(models.conv(8, batch=1).onnx)
    command = [*runner, "--profile", "m.onnx", "--out", "times", "--runs", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    events = json.loads((tmp_path / done.stdout.strip()).read_text())
    kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    assert kernels.count("Conv") + kernels.count("FusedConv") == 3
