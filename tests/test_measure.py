"""Whole networks measured beside those of a table, at the speed the table was taken at."""

import random

import pytest

import dna_deploy.measure
from dna_deploy.arch import sample
from dna_deploy.errors import RequestError
from dna_deploy.graph import onnx_of
from dna_deploy.measure import device_of, measure_whole
from dna_deploy.table import Header, LatencyTable, Session, VisitRow, appending, create, header_of
from profilers import Model, UnknownDevice, find_device, find_profiler, measure


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("colour", "red", "colour: Unexpected"), ("threads", "many", "threads: .*valid integer"), ("threads", 0, "at least 1")],
)
def test_a_table_of_a_device_that_makes_no_sense_is_named(workdir, key, value, says):
    create(workdir / "cpu.jsonl", Header("cpu", "", {"name": "cpu", "kind": "host", key: value}, {}))
    with pytest.raises((RequestError, UnknownDevice), match=says) as caught:
        device_of(LatencyTable.load(workdir / "cpu.jsonl"))
    assert "cpu" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("anchors", [[], ["conv(hw=8, cin=3, cout=4, kernel=1)"]])
def test_networks_of_a_space_that_is_not_known_here_are_left_out(tiny, workdir, anchors):
    device, arch = find_device("cpu"), sample(tiny, random.Random(0))
    strange = "elsewhere(32, 10): only: conv3 ds3 | d1: k3e6 #01234567"
    header = header_of(device, find_profiler(device).environment(device), "")
    with appending(workdir / "cpu.jsonl", header) as out:
        out.add(Session("2026-01-01T00:00:00Z", 0, [strange, *anchors], {}))
        for number in range(8):
            for key in (strange, *anchors):
                out.add(VisitRow(key, number, [3_000_000] * 4))
    table = LatencyTable.load(workdir / "cpu.jsonl")
    found = measure_whole(table, [Model(arch.key, onnx_of(arch.ops))], 3.0, seconds=1)
    assert (found[arch.key].speed == 1.0) == (not anchors)  # a pointwise convolution of 8 by 8 does not take 3 ms


def test_a_table_of_another_machine_is_not_measured_against(tiny, workdir, capsys):
    device, arch = find_device("cpu"), sample(tiny, random.Random(0))
    here = find_profiler(device).environment(device)
    create(workdir / "cpu.jsonl", header_of(device, {**here, "runtime": "onnxruntime 0.9"}, ""))
    assert measure_whole(LatencyTable.load(workdir / "cpu.jsonl"), [Model(arch.key, onnx_of(arch.ops))], 3.0) is None
    assert f"cpu.jsonl was measured with runtime = onnxruntime 0.9, now it is {here['runtime']}" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch):
    """The keys of the models that are measured."""
    asked = []

    def recorded(profiler, device, models, plan, stop):
        asked.extend(model.key for model in models)
        return measure(profiler, device, models, plan, stop)

    monkeypatch.setattr(dna_deploy.measure, "measure", recorded)
    return asked


def test_a_candidate_that_the_table_knows_is_measured_once(tiny, workdir, asked):
    device, arch = find_device("cpu"), sample(tiny, random.Random(0))
    header = header_of(device, find_profiler(device).environment(device), "")
    with appending(workdir / "cpu.jsonl", header) as out:
        out.add(Session("2026-01-01T00:00:00Z", 0, [arch.key], {}))
        for number in range(8):
            out.add(VisitRow(arch.key, number, [3_000_000] * 4))
    found = measure_whole(LatencyTable.load(workdir / "cpu.jsonl"), [Model(arch.key, onnx_of(arch.ops))], 3.0, seconds=1)
    assert asked == [arch.key]
    assert found[arch.key].measurement.latency_ms == pytest.approx(3.0)  # it says itself how fast the device is now


def test_a_network_read_once_in_a_cold_round_does_not_tell_the_speed(tiny, workdir, asked):
    device, anchor, rng = find_device("cpu"), "conv(hw=8, cin=3, cout=4, kernel=1)", random.Random(0)
    first, other = sample(tiny, rng), sample(tiny, rng)
    with appending(workdir / "cpu.jsonl", header_of(device, find_profiler(device).environment(device), "")) as out:
        out.add(Session("2026-01-01T00:00:00Z", 0, [anchor], {}))
        out.add(VisitRow(first.key, 0, [9_000_000] * 4))
        for number in range(8):
            out.add(VisitRow(anchor, number, [3_000] * 4))
    measure_whole(LatencyTable.load(workdir / "cpu.jsonl"), [Model(other.key, onnx_of(other.ops))], 3.0, seconds=1)
    assert asked == [other.key, anchor]
