"""Does the phone path lose anything, what does its runner cost, and does it agree with Python's ONNX Runtime?

    python -m benchmarks.phone

On this machine (--only runner, ten minutes, wants a quiet one): what the runner (profilers/_android/dnarun.c) costs with
pip's own library, and the same models in turns with Python. On the emulated phone (--only phone, an hour; .ci/phone-setup;
where it cannot run, that is said and left out): the unique ops of `mobile` in one run, and random faults in a row. --quick
takes a few minutes. No latency of the emulated phone means anything. benchmarks/results/phone.jsonl has a line for each part.
"""

import contextlib
import dataclasses
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks._report import Result, arguments, plain, report, spread
from dna_deploy.graph import onnx_of
from dna_deploy.plugins import find
from profilers import Device, DeviceUnavailable, Model, Plan, Visit, find_device, find_profiler
from profilers._android import adb, runtime
from profilers._android.gate import Limits
from profilers._android.package import pack
from profilers._android.session import Session, Settings
from profilers.android import BASE
from tests.phone import emulated, local, models

CALM = Limits(drift=None, clock=0, cool_s=300)  # an emulator's times mean nothing


def mobile_ops(*sizes: int, most: int | None = None) -> list[Model]:
    """Unique ops of `mobile` at these image sizes, spread evenly where fewer are wanted."""
    ops = list({op.key: op for size in sizes for op in find("spaces", "mobile").at(size, 1000).ops}.values())
    step = max(1, len(ops) // most) if most else 1
    return [Model(op.key, onnx_of([op])) for op in ops[::step][:most]]


def run_here(ops: Sequence[Model], plan: Plan) -> tuple[list[dict], float]:
    """The runner's lines for a plan on this machine, on one core, and its seconds from start to end."""
    installed = local.runtime()
    core = 1 << min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(pack(Path(folder) / "jobs.tar", ops, plan, 1).tar) as archive:
            archive.extractall(folder, filter="data")
        command = [str(installed.files["dnarun"]), "--lib", str(installed.files["libonnxruntime.so"]), "--cpus", f"{core:x}"]
        command += ["--plan", "plan.txt", "--out", "r.jsonl", "--runs", str(plan.runs)]
        command += ["--visit-ms", str(plan.visit_ms), "--max-runs", str(plan.max_runs), "--keep-mb", "4000"]
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        spent = time.perf_counter() - began
        rows = [json.loads(line) for line in (Path(folder) / "r.jsonl").read_text().splitlines()]
    return [row for row in rows if "visit" in row], spent


def overhead(repeats: int) -> list[Result]:
    """216 ops, 35 runs each, each model seen once: what all but the measured runs costs."""
    ops = mobile_ops(224, 192, 160, 128)[:216]
    plan = Plan(rounds=1, runs=35, visit_ms=0, max_runs=35, anchors=1, anchor_every=10**6)
    each_ms, mean_ms, whole_s, processor_s = [], [], [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows, spent = run_here(ops, plan)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        # loading, and the run that is not timed, which is about as long as one that is
        each_ms.append(statistics.median(row["open_us"] / 1000 + statistics.median(row["ns"]) / 1e6 for row in rows))
        mean_ms.append((spent * 1000 - sum(sum(row["ns"]) for row in rows) / 1e6) / len(rows))
        whole_s.append(spent)
    return [
        best("all but the measured runs of a model, median of 216", each_ms, "ms", 3),
        best("the same as a mean, with the start of the runner", mean_ms, "ms"),
        best("216 ops x 35 runs on one core", whole_s, "s", 8),
        best("the same in processor time, which leaves out what others had of the core", processor_s, "s"),
    ]


def best(measure: str, values: Sequence[float], unit: str, goal: float | None = None) -> Result:
    """The least of the repeats: other work on a shared machine only ever adds to a time."""
    text, ok = ("", None) if goal is None else (f"<= {goal:g}", min(values) <= goal)
    return Result(f"runner: {measure} (least of the repeats)", min(values), unit, text, ok, len(values), spread(values))


def agreement(turns: int) -> Result:
    """Runner over Python on the same models, in turns within seconds, so that the machine's moods hit both."""
    ops = mobile_ops(224, most=60)  # larger than the few microseconds that a call costs in Python
    plan = Plan(rounds=2, runs=9, visit_ms=0, max_runs=9)
    core = str(min(os.sched_getaffinity(0)))
    here = Device("cpu", "host", cores=core)
    ratios: dict[str, list[float]] = {}
    for turn in range(turns):
        sides: dict[str, dict[str, float]] = {}
        for side in ("python", "runner") if turn % 2 else ("runner", "python"):
            if side == "python":
                visits = list(find_profiler(here).visits(here, ops, plan))
            else:
                visits = [Visit(row["key"], row["round"], tuple(row["ns"])) for row in run_here(ops, plan)[0]]
            levels: dict[str, list[int]] = {}
            for visit in visits:
                levels.setdefault(visit.key, []).extend(visit.ns)
            sides[side] = {key: statistics.median(times) for key, times in levels.items()}
        for key, time_ns in sides["runner"].items():
            ratios.setdefault(key, []).append(time_ns / sides["python"][key])
    middle = statistics.median(statistics.median(values) for values in ratios.values())
    away = abs(middle - 1) * 100
    return Result(f"runner against Python, median over {len(ops)} ops (ratio {middle:.3f})", away, "%", "<= 3", away <= 3, turns)


@contextlib.contextmanager
def phone_session(folder: Path) -> Iterator[tuple[emulated.EmulatedPhone, Session]]:
    mine = sum(1 << core for core in emulated.usable_cores())
    with emulated.adb_server(folder / "adb") as environment, emulated.phone(folder / "phone") as phone:
        os.environ.update(environment)
        device = find_device("pixel", address=phone.serial, cores=f"{mine:x}")
        session = Session(adb.connect(device.address), device, Settings(BASE, CALM))
        session.install(runtime.obtain("onnxruntime"))
        yield phone, session


def trouble(phone: emulated.EmulatedPhone, rng: random.Random) -> str:
    """One fault, as a phone on a desk has them."""
    fault = rng.choice(["drop", "refuse", "drop_after", "kill", "reboot", "lose_answer", "heat", "torn"])
    if fault == "refuse":
        phone.request("refuse", seconds=rng.uniform(0.1, 1.5))
        phone.request("drop")
    elif fault == "drop_after":
        phone.request("drop_after", bytes=rng.randrange(1, 4000))
    elif fault == "lose_answer":
        phone.request("lose_answer", to=rng.choice(["run.sh measure", "results.jsonl"]))
    elif fault == "heat":
        phone.heat(2)
        threading.Timer(rng.uniform(0.5, 2), phone.heat, args=(0,)).start()
    elif fault == "torn":
        phone.request("kill", name="dnarun")
        for results in (phone.root / BASE.lstrip("/")).glob("job-*/results.jsonl"):
            with results.open("a") as file:
                file.write('{"visit":1')
    else:
        phone.request(fault, **({"name": "dnarun"} if fault == "kill" else {}))
    return fault


def faults(phone: emulated.EmulatedPhone, session: Session, many: int) -> list[Result]:
    """Runs with a fault every few visits, until so many faults have happened; rows that are lost, doubled or out of place."""
    rng = random.Random(0)
    ops = [models.conv(channels, 7, kernel) for channels in (8, 16) for kernel in (1, 3, 5)]
    keys = [op.key for op in ops]
    plan = Plan(rounds=20, runs=10, visit_ms=0, max_runs=10, anchor_every=4)
    expected = [(key, number) for number in range(plan.rounds) for key in plan.order(keys, number)]
    happened: dict[str, int] = {}
    wrong, rows, began = 0, 0, time.perf_counter()
    while sum(happened.values()) < many:
        seen = []
        next_fault = 0
        for visit in session.visits(ops, plan):
            seen.append((visit.key, visit.round))
            if len(seen) > next_fault and sum(happened.values()) < many:
                fault = trouble(phone, rng)
                happened[fault] = happened.get(fault, 0) + 1
                next_fault = len(seen) + rng.randrange(10, 40)
        wrong += sum(a != b for a, b in zip(seen, expected, strict=False)) + abs(len(seen) - len(expected))
        rows += len(seen)
        print(f"{sum(happened.values())} faults, {rows} rows, {wrong} wrong", file=sys.stderr)
    kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(happened.items()))
    return [
        Result(f"rows lost, doubled or out of place ({kinds})", wrong, "rows", "= 0", wrong == 0, sum(happened.values())),
        plain("rows brought through these faults", [rows], "rows"),
        plain("seconds a fault, emulated", [(time.perf_counter() - began) / many], "s"),
    ]


def whole_space(phone: emulated.EmulatedPhone, session: Session, most: int | None) -> list[Result]:
    """The unique ops of `mobile` (small images: an emulator is slow) in one run."""
    results = []
    for ops in (mobile_ops(32, most=10), mobile_ops(32, most=most)):
        pushes, calls, began = int(str(phone.request("counts")["sync"])), session.link.calls, time.perf_counter()
        keys = [op.key for op in ops]
        plan = Plan(rounds=1, runs=1, visit_ms=0, max_runs=1)
        seen, starts = [], 0
        for visit in session.visits(ops, plan):
            seen.append((visit.key, visit.round))
            for path in (phone.root / BASE.lstrip("/")).glob("job-*/results.jsonl"):
                starts = path.read_text().count('{"start":')
        wrong = sum(a != (b, 0) for a, b in zip(seen, plan.order(keys, 0), strict=True))
        pushed = int(str(phone.request("counts")["sync"])) - pushes
        results += [
            Result(f"{len(ops)} ops of mobile: pushes", pushed, "", "= 1", pushed == 1),
            Result(f"{len(ops)} ops of mobile: runner processes", starts, "", "= 1", starts == 1),
            plain(
                f"{len(ops)} ops of mobile: adb calls in {time.perf_counter() - began:.0f} s", [session.link.calls - calls], ""
            ),
            Result(f"{len(ops)} ops of mobile: rows wrong", wrong, "rows", "= 0", wrong == 0, len(seen)),
        ]
    return results


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=("runner", "phone"), help="this part alone")
    given = parser.parse_args()
    quick, results = given.quick, []
    if given.only != "phone":
        try:
            local.runtime()
        except DeviceUnavailable as unavailable:
            raise SystemExit(f"the runner cannot be timed here: {unavailable}") from None
        results += [*overhead(2 if quick else 12), agreement(4 if quick else 20)]
    if given.only != "runner" and (lacks := emulated.missing()):
        print(f"the emulated phone is left out: {lacks}", file=sys.stderr)
    elif given.only != "runner":
        with tempfile.TemporaryDirectory() as folder, phone_session(Path(folder)) as (phone, session):
            results += whole_space(phone, session, 30 if quick else None)
            session.settings = dataclasses.replace(session.settings, longest_poll_s=2)
            results += faults(phone, session, 10 if quick else 200)
    report("phone", results)


if __name__ == "__main__":
    main()
