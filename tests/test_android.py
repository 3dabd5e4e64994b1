"""The phone path without a phone: reading its texts, judging its heat, packing a plan, and a whole session by sh."""

import dataclasses
import os
import signal
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from profilers import Device, DeviceUnavailable, Model, ModelRejected, Plan, UnknownDevice, Visit, find_device, find_profiler
from profilers._android import adb, probe
from profilers._android import runtime as runtimes
from profilers._android.facts import read_clusters, read_facts, read_thermal, sections
from profilers._android.gate import Gate, Limits, Reading
from profilers._android.link import LinkLost
from profilers._android.package import pack
from profilers._android.session import Session, Settings
from profilers._android.tensors import split_outputs
from tests.phone import emulated, models
from tests.phone.local import LocalLink, runtime

CORES = "\n".join(
    [f"cpu{n} 1704000 160 sched_pixel" for n in range(4)]
    + [f"cpu{n} 2367000 600 sched_pixel" for n in range(4, 8)]
    + ["cpu8 2914000 1024 sched_pixel"]
)
THERMAL = """\
IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
	Temperature{mValue=99.5, mType=3, mName=VIRTUAL-SKIN, mStatus=3}
HAL Ready: true
Current temperatures from HAL:
	Temperature{mValue=71.0, mType=0, mName=BIG, mStatus=0}
	Temperature{mValue=38.25, mType=3, mName=VIRTUAL-SKIN, mStatus=2}
	Temperature{mValue=37.0, mType=3, mName=VIRTUAL-SKIN-HINT, mStatus=0}
Current cooling devices from HAL:
	CoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
	CoolingDevice{mValue=3, mType=2, mName=thermal-cpufreq-2}
"""


# ---- adb's texts ----


def test_devices_are_read_with_their_states() -> None:
    text = (
        "* daemon not running; starting now at tcp:5037\n* daemon started successfully\nList of devices attached\n"
        "1A2B3C                 device usb:1-4 product:shiba model:Pixel_8 device:shiba transport_id:3\n"
        "192.168.0.7:5555       offline transport_id:4\n"
        "9X8Y                   unauthorized usb:1-2 transport_id:5\n"
        "????????????           no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n\n"
    )
    devices = adb.parse_devices(text)
    assert [(device.serial, device.state) for device in devices] == [
        ("1A2B3C", "device"),
        ("192.168.0.7:5555", "offline"),
        ("9X8Y", "unauthorized"),
        ("????????????", "no permissions"),
    ]
    assert devices[0].model == "Pixel 8" and "udev" in str(devices[3]) and "tap Allow" in str(devices[2])


def fake_adb(folder: Path, listing: str) -> dict[str, str]:
    """An environment in which adb lists these devices and answers to nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "list").write_text(f"List of devices attached\n{listing}\n")
    program = folder / "adb"
    answers = f'*devices*) cat {folder}/list ;; connect*) echo "failed to connect to $2" ;; *) exit 1 ;;'
    program.write_text(f'#!/bin/sh\ncase "$*" in {answers} esac\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("listing", "wanted", "says"),
    [
        ("", None, ["no phone", "sees no device", "USB debugging", "--device pixel1"]),
        ("A device model:Pixel_6\nB device model:Pixel_8", None, ["2 phones", "A (Pixel 6)", "B (Pixel 8)", "--address"]),
        ("A device model:Pixel_6", "Pixel 8", ["no phone 'Pixel 8'", "A (Pixel 6)"]),
        ("A no permissions (udev)", None, ["no permissions", "udev"]),
        ("A unauthorized", None, ["A unauthorized", "tap Allow"]),
        ("A offline", None, ["A offline", "plug it in again"]),
        ("10.0.0.7:5555 offline", None, ["10.0.0.7:5555 offline", "switch wireless debugging off and on again"]),
        ("", "10.0.0.7:5555", ["no phone '10.0.0.7:5555'", "failed to connect to 10.0.0.7:5555", "switch wireless debugging on"]),
    ],
)
def test_without_a_usable_phone_one_line_says_what_was_seen(tmp_path: Path, listing: str, wanted: str, says: list[str]) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        adb.connect(wanted, patience_s=0, environment=fake_adb(tmp_path, listing))
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message and caught.value.exit_code == 3


def test_without_adb_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "programs", lambda environment: iter(()))
    with pytest.raises(DeviceUnavailable, match=r"adb was not found \(\$ADB, PATH.*pip install adbutils.*pixel1"):
        adb.connect(None, environment={"PATH": str(tmp_path)})


def test_phones_are_found_by_serial_or_model(tmp_path: Path) -> None:
    environment = fake_adb(tmp_path, "A device model:Pixel_6\nB device model:Pixel_8\nC offline")
    assert adb.connect("B", environment=environment).serial == "B"
    assert adb.connect("Pixel 6", environment=environment).serial == "A"
    assert adb.connect(None, environment={**environment, "ANDROID_SERIAL": "A"}).serial == "A"


def test_adb_is_looked_for_where_people_have_it(tmp_path: Path) -> None:
    tools = tmp_path / "sdk" / "platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").write_text("")
    environment = fake_adb(tmp_path / "path", "")
    found = list(adb.programs({**environment, "ADB": "/mine/adb", "ANDROID_HOME": str(tmp_path / "sdk")}))
    assert found[:3] == ["/mine/adb", str(tmp_path / "path" / "adb"), str(tools / "adb")]


# ---- what a phone says about itself ----


def test_clusters_come_from_the_phone() -> None:
    clusters = read_clusters(CORES)
    assert [(f"{cluster.mask:x}", cluster.max_khz) for cluster in clusters] == [("f", 1704000), ("f0", 2367000), ("100", 2914000)]
    facts = read_facts(f"== cores\n{CORES}\n")
    assert [facts.mask(name) for name in ("little", "big", "prime", "1f0", None)] == [0xF, 0xF0, 0x100, 0x1F0, None]
    for wrong in ("fast", "400", "0", ""):
        with pytest.raises(DeviceUnavailable, match="expected prime, big, little or a hexadecimal mask out of f "):
            facts.mask(wrong)


def test_big_is_prime_where_there_are_two_clusters() -> None:
    facts = read_facts("== cores\ncpu0 1800000 300 x\ncpu1 2400000 1024 x\n")
    assert facts.mask("big") == facts.mask("prime") == 2 and facts.mask("little") == 1


def test_only_current_temperatures_count() -> None:
    thermal = read_thermal(THERMAL)
    assert (thermal.status, thermal.skin_c, thermal.throttled) == (2, 38.25, True)
    nothing = read_thermal("Can't find service: thermalservice\n")
    assert (nothing.status, nothing.skin_c, nothing.throttled) == (None, None, False)


def test_facts_survive_a_phone_that_says_nothing() -> None:
    facts = read_facts("")
    assert facts.concerns() == [] and facts.clusters == () and facts.mask(None) is None


def test_what_spoils_numbers_is_said() -> None:
    facts = read_facts(
        f"== cores\n{CORES}\n== load\n9.5 8.0 7.0 3/900 1\n== thermal\n{THERMAL}== battery\n  level: 12\n"
        "== saver\n1\n== awake\n  mWakefulness=Dozing\n"
    )
    text = "; ".join(facts.concerns())
    for word in ("power saver", "12 %", "thermal status 2", "throttled", "screen is off", "load 9.5"):
        assert word in text


def test_sections_are_split_at_their_headings() -> None:
    assert sections("noise\n== a\n1\n2\n== b\n== c\n3") == {"a": "1\n2\n", "b": "", "c": "3"}


# ---- heat ----


def reading(number: int, key: str, ms: float, khz: int = 2800000) -> Reading:
    return Reading(number, Visit(key, 0, (int(ms * 1e6), int(ms * 1.2e6))), (khz, khz))


def segment(ms: float, khz: int = 2800000) -> list[Reading]:
    return [reading(number, "anchor", ms, khz) for number in range(5)]


def test_heat_spoils_a_segment() -> None:
    gate = Gate(Limits(), ["anchor"], skin_start_c=30.0)
    assert gate.complaint(read_thermal(THERMAL), segment(1.0)) == "thermal status 2"
    cool = read_thermal("Thermal Status: 0\n")
    assert gate.complaint(cool, segment(1.0)) is None
    assert gate.cool(cool) and not gate.cool(read_thermal(THERMAL))
    warm = read_thermal(
        "Thermal Status: 0\nCurrent temperatures from HAL:\n\tTemperature{mValue=31.5, mType=3, mName=S, mStatus=0}\n"
    )
    assert not gate.cool(warm)  # a degree and a half above the start
    assert dataclasses.replace(gate, skin_start_c=31.0).cool(warm)


def test_a_lowered_clock_spoils_a_segment() -> None:
    gate, cool = Gate(Limits(), ["anchor"]), read_thermal("")
    assert gate.complaint(cool, segment(1.0)) is None
    assert gate.complaint(cool, segment(1.0, khz=2700000)) is None  # 96 %
    assert "clock at 2.52 of 2.80 GHz" in str(gate.complaint(cool, segment(1.0, khz=2520000)))
    assert gate.complaint(cool, [reading(0, "anchor", 1.0, khz=-1)]) is None  # a kernel that does not tell


def test_slower_anchors_spoil_a_segment_until_they_are_normal() -> None:
    gate, cool = Gate(Limits(), ["anchor"]), read_thermal("")
    assert gate.complaint(cool, segment(1.0)) is None
    assert gate.complaint(cool, segment(1.04)) is None
    assert "10 % slower" in str(gate.complaint(cool, segment(1.1)))
    assert gate.complaint(cool, segment(1.1)[:2]) is None  # two visits say too little
    assert gate.complaint(cool, [reading(n, "other", 9.0) for n in range(5)]) is None
    gate.accept_as_normal()
    assert gate.complaint(cool, segment(1.1)) is None


# ---- packing ----


def test_weights_are_shared_and_keep_their_size(tmp_path: Path) -> None:
    ops = [models.conv(channels, 7, 3) for channels in (32, 48, 64)] + [models.quantized(32)]
    own = sum(len(model.onnx) for model in ops)
    pack(tmp_path / "jobs.tar", ops, Plan(rounds=2), batch=2)
    with tarfile.open(tmp_path / "jobs.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "models").iterdir()}
    assert sum(size for name, size in sizes.items() if name.endswith(".onnx")) < own / 20
    for place, model in enumerate(ops):
        before, after = onnx.load_model_from_string(model.onnx), onnx.load(tmp_path / "models" / f"{place}.onnx")
        assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
        for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
            x, y = numpy_helper.to_array(old), numpy_helper.to_array(new)
            assert x.shape == y.shape and x.dtype == y.dtype
            if x.ndim < 2 or x.nbytes < 1024:
                np.testing.assert_array_equal(x, y)  # scales, biases and shapes steer the computation
            elif x.dtype == np.float32:
                assert 0.8 < y.std() / x.std() < 1.25


def test_whole_networks_keep_their_weights(tmp_path: Path) -> None:
    big = onnx.load_model_from_string(models.conv(32).onnx)
    relu = big.graph.node[1]
    for number in range(70):
        relu.output[0] = f"t{number}"
        relu = big.graph.node.add()
        relu.CopyFrom(onnx.helper.make_node("Relu", [f"t{number}"], ["y"]))
    pack(tmp_path / "jobs.tar", [Model("net", big.SerializeToString())], Plan(rounds=1), batch=1)
    with tarfile.open(tmp_path / "jobs.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    kept = numpy_helper.to_array(onnx.load(tmp_path / "models" / "0.onnx").graph.initializer[0])
    np.testing.assert_array_equal(kept, numpy_helper.to_array(big.graph.initializer[0]))


def test_equal_plans_make_equal_archives(tmp_path: Path) -> None:
    ops = [models.conv(8), models.conv(16)]
    for name in ("a", "b"):
        pack(tmp_path / name, ops, Plan(rounds=3), batch=1)
        time.sleep(0.01)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ModelRejected, match="same key"):
        pack(tmp_path / "c", [ops[0], ops[0]], Plan(), batch=1)
    with pytest.raises(ModelRejected, match="bad: not an ONNX model"):
        pack(tmp_path / "c", [Model("bad", b"\xff\xff\xff")], Plan(), batch=1)


# ---- the runtime ----


def test_a_runtime_file_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    for name, content, says in [
        ("x.so", b"text", "not a 64-bit ARM library"),
        ("x.aar", b"text", "expected an onnxruntime-android AAR"),
        ("none.so", None, "no such file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DeviceUnavailable, match=says):
            runtimes.obtain(str(tmp_path / name))
    with pytest.raises(DeviceUnavailable, match="expected onnxruntime, onnxruntime-glibc, or a path"):
        runtimes.obtain("tflite")


def test_the_known_answer_is_right() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (y,) = onnxruntime.InferenceSession(probe.model(), providers=["CPUExecutionProvider"]).run(None, {"x": probe.INPUT})
    np.testing.assert_allclose(y.reshape(-1), probe.expected(), atol=probe.TOLERANCE)
    assert (probe.expected() > 0).all()  # a network of zeros would prove nothing


# ---- a whole session ----

ONE = f"{1 << min(os.sched_getaffinity(0)):x}" if hasattr(os, "sched_getaffinity") else None
COOL = "Thermal Status: 0\n"
CALM = Limits(drift=None, clock=0)  # times of a busy machine spoil nothing


def ops() -> list[Model]:
    return [models.conv(channels, 7, kernel) for channels in (4, 8, 12, 16, 20) for kernel in (1, 3, 5)]


def expected(plan: Plan, made: list[Model]) -> list[tuple[str, int]]:
    keys = [model.key for model in made]
    return [(key, number) for number in range(plan.rounds) for key in plan.order(keys, number)]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """A function that opens a session on this machine, after `dumpsys` and others were given their answers."""
    try:
        installed = runtime()
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))

    def start(limits: Limits = CALM, faults: float = 0.0, stay_on: bool = False, **device: object) -> Session:
        link = LocalLink(tmp_path, faults)
        if not (tmp_path / "bin" / "dumpsys").exists():
            link.says("dumpsys", COOL)
        settings = Settings(str(tmp_path / "base"), limits, stay_on=stay_on, longest_poll_s=1)
        session = Session(link, Device("here", "test", **device), settings)  # type: ignore[arg-type]
        session.install(installed)
        return session

    yield start
    assert list((tmp_path / "base").glob("job-*")) == [] == list((tmp_path / "base").glob("out-*"))  # nothing is left behind


def test_a_session_brings_every_visit_in_order(open_session: Callable[..., Session]) -> None:
    session = open_session()
    plan = Plan(rounds=4, runs=2, visit_ms=0, max_runs=2)
    visits = list(session.visits(ops(), plan))
    assert [(visit.key, visit.round) for visit in visits] == expected(plan, ops())
    assert all(len(visit.ns) == 2 for visit in visits)
    assert session.version


def test_the_number_of_calls_does_not_grow_with_the_ops(open_session: Callable[..., Session]) -> None:
    session = open_session()
    calls = []
    for many in (2, 15):
        before = session.link.calls
        list(session.visits(ops()[:many], Plan(rounds=2, runs=1, visit_ms=0)))
        calls.append(session.link.calls - before)
    assert calls[1] <= calls[0] + 3 and calls[0] < 14  # a slow machine may be asked once or twice more


@pytest.mark.parametrize("seed", range(3))
def test_lost_commands_and_answers_lose_nothing(open_session: Callable[..., Session], seed: int) -> None:
    session = open_session()
    plan = Plan(rounds=6, runs=20, visit_ms=0)
    link = session.link
    assert isinstance(link, LocalLink)
    link.rng.seed(seed)
    link.faults = 0.4
    visits = list(session.visits(ops(), plan))
    link.faults = 0.0
    assert [(visit.key, visit.round) for visit in visits] == expected(plan, ops())
    assert link.lost > 0


def runner_pid(session: Session) -> int | None:
    answer = session.link.ask(session.holder, check=False).split()
    return int(answer[0]) if answer else None


def test_a_killed_runner_goes_on(open_session: Callable[..., Session]) -> None:
    session = open_session()
    plan = Plan(rounds=30, runs=2000, visit_ms=0, max_runs=2000)
    visits, killed = [], 0
    for visit in session.visits(ops()[:3], plan):
        visits.append((visit.key, visit.round))
        pid = runner_pid(session) if len(visits) in (1, 30) else None
        if pid:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert killed and visits == expected(plan, ops()[:3])


def test_a_hot_phone_is_waited_for(open_session: Callable[..., Session], tmp_path: Path) -> None:
    link = LocalLink(tmp_path)
    link.says("dumpsys", COOL)
    session = open_session(Limits(drift=None, clock=0, cool_s=20))
    plan = Plan(rounds=6, runs=1000, visit_ms=0, max_runs=1000)
    visits = session.visits(ops()[:6], plan)
    seen = [next(visits)]
    (tmp_path / "dumpsys.txt").write_text(THERMAL)
    cooled = threading.Timer(1.5, lambda: (tmp_path / "dumpsys.txt").write_text(COOL))
    cooled.start()
    seen += list(visits)
    cooled.join()
    assert [(visit.key, visit.round) for visit in seen] == expected(plan, ops()[:6])


def test_a_phone_that_stays_hot_is_given_up(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("dumpsys", THERMAL)
    session = open_session(Limits(cool_s=0.2))
    with pytest.raises(DeviceUnavailable, match="still too warm"):
        list(session.visits(ops()[:2], Plan(rounds=2, runs=1)))


def test_closing_the_iterator_stops_the_device(open_session: Callable[..., Session]) -> None:
    session = open_session()
    visits = session.visits(ops()[:3], Plan(rounds=200, runs=4000, visit_ms=0))
    next(visits)
    visits.close()
    assert runner_pid(session) is None


def test_another_run_on_the_device_is_not_disturbed(open_session: Callable[..., Session]) -> None:
    first, second = open_session(), open_session()
    plan = Plan(rounds=60, runs=4000, visit_ms=0, max_runs=4000)
    visits = first.visits(ops()[:3], plan)
    seen = [next(visits)]
    with pytest.raises(DeviceUnavailable, match=r"another measurement is running .* --stop"):
        list(second.visits(ops()[:1], Plan(rounds=1, runs=1)))
    seen += [next(visits) for _ in range(20)]
    visits.close()
    assert [(visit.key, visit.round) for visit in seen] == expected(plan, ops()[:3])[:21]


def test_a_model_the_runtime_refuses_is_named(open_session: Callable[..., Session]) -> None:
    with pytest.raises(ModelRejected, match=r"^refused: local: .*NoSuchOperator"):
        list(open_session().visits([models.conv(4), models.refused()], Plan(rounds=1, runs=1)))


def test_cores_not_given_are_refused(open_session: Callable[..., Session], tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"expected prime, big, little or a hexadecimal mask"):
        open_session(cores="8000000000000000")


def test_pinned_sessions_work(open_session: Callable[..., Session]) -> None:
    plan = Plan(rounds=1, runs=1, visit_ms=0)
    assert len(list(open_session(cores=ONE).visits(ops()[:2], plan))) == 2


def test_what_was_changed_is_put_back(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("settings", "3\n")  # what the user had
    session = open_session(stay_on=True)
    list(session.visits(ops()[:2], Plan(rounds=2, runs=1, visit_ms=0)))
    end = time.monotonic() + 10
    while (tmp_path / "base" / "saved").exists() and time.monotonic() < end:
        time.sleep(0.05)
    changes = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("settings put")]
    name = "settings put global stay_on_while_plugged_in"
    assert changes == [f"{name} 7", f"{name} 3"]


def test_a_run_that_goes_on_after_a_reboot_has_its_clocks_again(open_session: Callable[..., Session], tmp_path: Path) -> None:
    link = LocalLink(tmp_path)
    link.says("settings", "3\n")
    link.says("cmd", "")
    base = Path(open_session().settings.base)
    (base / "saved").write_text("stay_on 3\nfixed true\n")  # the first part of the run was cut off
    link.ask(f"sh {runtime().files['run.sh']} measure {base} {base} 1 1 true")
    changes = [line for line in (tmp_path / "log").read_text().splitlines() if "get" not in line and "dumpsys" not in line]
    fixed, stay = "cmd power set-fixed-performance-mode-enabled", "settings put global stay_on_while_plugged_in"
    assert changes == [f"{stay} 7", f"{fixed} true", f"{stay} 3", f"{fixed} false"]  # changed again; put back as before all of it
    (base / "exit").unlink()


def test_what_a_reboot_left_changed_is_put_back_by_the_next_session(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("settings", "3\n")
    open_session()
    (tmp_path / "base" / "saved").write_text("stay_on 5\n")
    open_session()
    assert "settings put global stay_on_while_plugged_in 5" in (tmp_path / "log").read_text()
    assert not (tmp_path / "base" / "saved").exists()


def test_a_wrong_answer_of_the_probe_stops_everything(
    open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = probe.expected() + np.float32(0.01)
    monkeypatch.setattr(probe, "expected", lambda: wrong)
    with pytest.raises(DeviceUnavailable, match=r"computes wrongly \(off by 0\.01"):
        open_session()


def test_outputs_are_those_of_the_host(open_session: Callable[..., Session]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session, model = open_session(), models.conv(8, batch=2)
    x = np.random.default_rng(0).standard_normal((6, 8, 7, 7), dtype=np.float32)
    (y,) = session.run(model, {"x": x})
    (wanted,) = onnxruntime.InferenceSession(models.conv(8).onnx, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    for inputs, says in [
        ({}, "no input 'x'"),
        ({"x": x.astype(np.float64)}, "input 'x' is float64"),
        ({"x": x[:5]}, r"shape \(5, 8, 7, 7\); expected \[2, 8, 7, 7\]"),
        ({"x": x[:, :4]}, "expected"),
    ]:
        with pytest.raises(ModelRejected, match=says):
            session.run(model, inputs)
    with pytest.raises(ModelRejected, match="refused: local could not run it"):
        session.run(models.refused(), {"x": np.zeros((1, 3), np.float32)})


def test_the_time_of_a_model_is_told_node_by_node(open_session: Callable[..., Session]) -> None:
    session = open_session()
    nodes = session.node_times(models.quantized(), runs=5)
    assert [node.op for node in nodes if "Conv" in node.op] and len({node.name for node in nodes}) == len(nodes)
    assert all(len(node.us) == 5 and min(node.us) >= 0 and node.provider == "CPUExecutionProvider" for node in nodes)
    assert not list(Path(session.settings.base).glob("run-*"))
    with pytest.raises(ModelRejected, match="refused: local could not run it"):
        session.node_times(models.refused(), runs=1)


def test_a_full_device_is_said_at_once(open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session()
    monkeypatch.setattr(
        LocalLink,
        "send_command",
        lambda self, local, remote: ["sh", "-c", "echo 'write failed: No space left on device' >&2; exit 1"],
    )
    with pytest.raises(DeviceUnavailable, match="No space left on device; make room"):
        list(session.visits(ops()[:1], Plan(rounds=1)))
    monkeypatch.undo()


def test_a_device_that_is_full_only_when_unpacking_says_so(open_session: Callable[..., Session], tmp_path: Path) -> None:
    session, tar = open_session(), tmp_path / "bin" / "tar"
    tar.write_text("#!/bin/sh\necho 'tar: write error: No space left on device' >&2\nexit 1\n")
    tar.chmod(0o755)
    with pytest.raises(DeviceUnavailable, match=r"local: unpacking jobs\.tar: tar: .*No space left on device.*; make room"):
        list(session.visits(ops()[:1], Plan(rounds=1)))
    assert not list((tmp_path / "base").glob("*.tar*"))


def test_a_copy_cut_short_is_copied_again(open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session, copies = open_session(), []

    def short_at_first(self: LocalLink, local: Path, remote: str) -> list[str]:
        copies.append(remote)
        return ["cp", str(local), remote] if len(copies) > 1 else ["sh", "-c", f"head -c 100 {local} >{remote}"]

    monkeypatch.setattr(LocalLink, "send_command", short_at_first)  # adb, too, reports success for these
    assert len(list(session.visits(ops()[:1], Plan(rounds=1, runs=1)))) == 1
    assert len(copies) == 2


def test_a_device_that_never_comes_back_is_given_up(tmp_path: Path) -> None:
    link = LocalLink(tmp_path, faults=1.0)
    link.patience_s = 0.1
    with pytest.raises(DeviceUnavailable, match=r"local: no answer .*gave up after"):
        link.ask("true")


def test_nobody_tidies_up_on_a_device_that_was_given_up(open_session: Callable[..., Session]) -> None:
    session = open_session()
    link = session.link
    assert isinstance(link, LocalLink)
    link.patience_s = 0.1
    visits = session.visits(ops()[:2], Plan(rounds=200, runs=2000, visit_ms=0))
    next(visits)
    link.faults = 1.0
    with pytest.raises(DeviceUnavailable, match="gave up"):
        list(visits)
    lost, link.faults = link.lost, 0.0
    assert link.gone and link.lost == lost  # no further try
    link.wait()
    assert not link.gone
    link.ask(session.stopping)
    link.ask(f"rm -rf {session.settings.base}/job-*")


def test_what_a_dead_host_left_is_taken_away(open_session: Callable[..., Session], tmp_path: Path) -> None:
    base = Path(open_session().settings.base)
    for name, days in (("job-old", 3), ("run-new", 0)):
        (base / name).mkdir()
        os.utime(base / name, (time.time() - days * 86400,) * 2)
    runtimes_there = list(base.glob("rt-*"))
    for folder in runtimes_there:
        os.utime(folder, (0, 0))
    open_session()
    assert not (base / "job-old").exists() and (base / "run-new").exists() and list(base.glob("rt-*")) == runtimes_there


def test_a_command_that_exits_by_itself_is_no_lost_link(tmp_path: Path) -> None:
    link = LocalLink(tmp_path)
    assert link.ask("echo a; exit 3", check=False) == "a\n"
    with pytest.raises(LinkLost):
        link._ask_once("kill -9 $$", True, 10)


def test_outputs_are_split_batch_by_batch() -> None:
    data = np.arange(6, dtype="<f4").tobytes() + np.array([7], "<i8").tobytes()
    data += np.arange(6, 12, dtype="<f4").tobytes() + np.array([8], "<i8").tobytes()
    first, second = split_outputs(data, {"batches": 2, "outputs": [{"type": 1, "shape": [2, 3]}, {"type": 7, "shape": [1]}]})
    np.testing.assert_array_equal(first, np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_array_equal(second, [7, 8])


def test_pixel_is_a_device_we_know() -> None:
    device = find_device("pixel")
    assert (device.kind, device.cores, device.runtime) == ("android", "prime", "onnxruntime")
    assert find_profiler(device).__class__.__name__ == "AndroidProfiler"
    with pytest.raises(UnknownDevice):
        find_device("pixel", threads=0)


def test_the_emulated_phone_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated.shutil, "which", lambda name: None)
    assert "no adb here (apt install adb" in str(emulated.missing())
