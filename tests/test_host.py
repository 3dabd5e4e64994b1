"""The host profiler runs real models through ONNX Runtime."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dna_deploy.graph import onnx_of
from dna_deploy.ops.conv import Conv
from profilers import Device, DeviceUnavailable, Model, ModelRejected, Plan, UnknownDevice, find_profiler, host, summarize
from tests.phone import models

CPU = Device("cpu", "host")
HOST = find_profiler(CPU)


def test_visits_follow_the_plan():
    models = [Model(op.key, onnx_of([op])) for op in (Conv(8, 3, 4, kernel=3), Conv(64, 16, 64, kernel=3))]
    plan = Plan(rounds=7, runs=3, visit_ms=0.0)
    visits = list(HOST.visits(CPU, models, plan))
    keys = [model.key for model in models]
    assert [(visit.round, visit.key) for visit in visits] == [(r, key) for r in range(7) for key in plan.order(keys, r)]
    assert all(len(visit.ns) == 3 and min(visit.ns) > 0 for visit in visits)
    small, large = (summarize(visit for visit in visits if visit.key == key) for key in keys)
    assert large.latency_ms > small.latency_ms  # 2,700 times the multiply-adds


def test_more_models_than_fit_are_measured_all_the_same(monkeypatch):
    models = [Model(op.key, onnx_of([op])) for op in (Conv(8, 3, 4, kernel=3), Conv(8, 3, 5, kernel=3), Conv(8, 3, 6, kernel=3))]
    opened = []
    ready = host._ready
    monkeypatch.setattr(host, "_ready", lambda device, model: opened.append(model.key) or ready(device, model))
    monkeypatch.setattr(host, "HELD_BYTES", len(models[0].onnx))
    visits = list(HOST.visits(CPU, models, Plan(rounds=2, runs=2, visit_ms=0.0)))
    assert [visit.key for visit in visits] == [key for r in range(2) for key in Plan().order([m.key for m in models], r)]
    assert opened.count(models[0].key) == 1 and opened.count(models[1].key) == opened.count(models[2].key) == 3


def test_run_computes_the_model():
    op = Conv(5, 3, 4, kernel=1, act="relu")
    model = Model(op.key, onnx_of([op]))
    import onnx

    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load_from_string(model.onnx).graph.initializer}
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5), dtype=np.float32)
    expected = np.maximum(np.einsum("oc,nchw->nohw", weights["w1"][:, :, 0, 0], x) + weights["w2"].reshape(1, -1, 1, 1), 0)
    (output,) = HOST.run(CPU, model, {"input": x})
    np.testing.assert_allclose(output, expected, atol=1e-5)
    with pytest.raises(ModelRejected, match=r"3 of input 'x'; expected batches of 2"):
        HOST.run(CPU, models.conv(3, size=5, batch=2), {"x": np.zeros((3, 3, 5, 5), np.float32)})


def test_nothing_is_left_in_the_users_home(tmp_path):
    program = (
        "from profilers import find_device, find_profiler as p; d = find_device('cpu'); print(p(d).environment(d)['runtime'])"
    )
    told = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", program], env={**told, "HOME": str(tmp_path)}, check=True, capture_output=True)
    assert not list(tmp_path.rglob("*"))


def test_a_broken_model_is_named():
    with pytest.raises(ModelRejected, match="broken one"):
        list(HOST.visits(CPU, [Model("broken one", b"not a model")], Plan()))


def test_a_model_that_opens_and_does_not_run_is_named():
    """Made for batches of 4, and given one image."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [helper.make_tensor("shape", TensorProto.INT64, [2], [4, 8])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = Model("for four", made.SerializeToString())
    with pytest.raises(ModelRejected, match=r"for four: ONNX Runtime refused the model: .*Reshape"):
        list(HOST.visits(CPU, [model], Plan()))
    with pytest.raises(ModelRejected, match=r"for four: .*Reshape"):
        HOST.run(CPU, model, {"x": np.zeros((1, 8), "float32")})


def test_a_provider_that_is_not_here_is_refused_rather_than_replaced_by_the_cpu():
    op = Conv(5, 3, 4, kernel=1)
    models = [Model(op.key, onnx_of([op]))]
    for device in (Device("cuda", "host", provider="cuda"), Device("half", "host", precision="fp16")):
        for asked in (lambda d: list(HOST.visits(d, models, Plan())), lambda d: HOST.run(d, models[0], {}), HOST.environment):
            with pytest.raises(DeviceUnavailable, match=f"device {device.name}: onnxruntime .* expected onnxruntime cpu fp32"):
                asked(device)


def test_environment_says_what_decides_the_numbers():
    found = HOST.environment(CPU)
    assert "load" in HOST.conditions(CPU) and "load" not in found
    assert found["threads"] == 1 and "onnxruntime" in str(found["runtime"]) and found["processor"]


@pytest.mark.parametrize("other", [{"provider": "xnnpack"}, {"runtime": "x.so"}, {"precision": "int8"}])
def test_what_cannot_be_measured_here_is_refused_not_ignored(other):
    with pytest.raises(DeviceUnavailable, match="cannot be measured here"):
        HOST.environment(Device("cpu", "host", **other))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pinning needs Linux")
def test_pinning_is_done_and_undone():
    before = os.sched_getaffinity(0)
    core = str(min(before))
    visits = HOST.visits(Device("cpu", "host", cores=core), [Model("a", onnx_of([Conv(8, 3, 4, kernel=1)]))], Plan(rounds=2))
    next(visits)
    assert os.sched_getaffinity(0) == {int(core)}
    visits.close()
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pinning needs Linux")
def test_a_process_pinned_from_outside_is_no_free_one(monkeypatch):
    usable = os.sched_getaffinity(0)
    core = max(usable)
    os.sched_setaffinity(0, {core})
    try:
        for processors, cores in ((1, None), (2, str(core))):
            monkeypatch.setattr(host.os, "cpu_count", lambda count=processors: count)
            assert HOST.environment(CPU)["cores"] == cores
            assert HOST.environment(Device("cpu", "host", cores=str(core)))["cores"] == str(core)
    finally:
        os.sched_setaffinity(0, usable)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pinning needs Linux")
def test_more_threads_than_cores_are_refused():
    core = str(min(os.sched_getaffinity(0)))
    with pytest.raises(UnknownDevice, match=rf"2 threads on 1 core \({core}\) would wait .* give --threads 1"):
        HOST.environment(Device("cpu", "host", threads=2, cores=core))
    with pytest.raises(UnknownDevice, match=r"99999999999 threads on \d+ cores? would wait for each other; give --threads \d+$"):
        HOST.environment(Device("cpu", "host", threads=99_999_999_999))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pinning needs Linux")
@pytest.mark.parametrize("cores", ["4000", "big", "3-0", "0,3-1", "", "0-99999999999"])
def test_cores_that_are_none_are_refused_before_anything_is_measured(cores):
    expected = (DeviceUnavailable, "usable") if cores == "4000" else (UnknownDevice, "expected numbers")
    for asked in (HOST.environment, lambda device: next(HOST.visits(device, [], Plan()))):
        with pytest.raises(expected[0], match=expected[1]):
            asked(Device("cpu", "host", cores=cores))


@pytest.mark.parametrize(("ticks", "busy"), [("100 0 20 480 0 0 0 0", 0.0), ("140 0 40 500 20 0 0 0", 0.6), (None, None)])
def test_others_are_counted_by_the_processors_they_use(monkeypatch, ticks, busy):
    """User, nice, system, idle, waiting: of the 200 ticks between two looks at two processors 60 are someone's."""
    told = iter(["cpu  100 0 20 380 0 0 0 0\ncpu0 1", f"cpu  {ticks}\ncpu0 1"] if ticks else [None, None])
    monkeypatch.setattr(host, "_read", lambda path: next(told))
    monkeypatch.setattr(host.os, "cpu_count", lambda: 2)
    assert host._busy(seconds=0) == (None if busy is None else pytest.approx(busy))
