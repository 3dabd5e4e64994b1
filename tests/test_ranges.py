"""Histograms count everything, and clip where the squared error is least."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dna_deploy.ranges import Histogram, observe
from dna_deploy.verify import Inputs

RNG = np.random.default_rng(0)


def test_a_histogram_grows_with_what_it_sees():
    found = Histogram()
    for scale in (1e-3, 1.0, 50.0):
        found.add(RNG.standard_normal(1000).astype(np.float32) * scale)
    assert found.counts.sum() == 3000 and found.limit >= found.largest > found.limit / 2
    middle = np.cumsum(found.counts).searchsorted(1500) * found.limit / len(found.counts)
    assert middle < 2.0  # half of all values are small ones: the counts moved along as the range grew


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_range(value):
    found = Histogram()
    for values in ([1.0, value], [2.0]):
        found.add(np.array(values, np.float32))
    assert found.largest == np.inf


@pytest.mark.parametrize("outlier", [5.0, 100.0, 3000.0])
def test_the_clip_is_nearly_the_best_of_all(outlier):
    values = np.append(RNG.standard_normal(20_000), outlier).astype(np.float32)
    found = Histogram()
    found.add(values)

    def error(at):
        step = at / 127
        return float(np.square(np.clip(np.round(values / step), -127, 127) * step - values).sum())

    best = min(error(at) for at in np.geomspace(0.5, outlier, 400))
    assert error(found.clip()) <= 1.15 * best


def test_every_tensor_is_observed():
    nodes = [helper.make_node("Mul", ["input", "w"], ["doubled"]), helper.make_node("Relu", ["doubled"], ["output"])]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 2, 2]) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], [helper.make_tensor("w", TensorProto.FLOAT, [], [2.0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    images = RNG.standard_normal((10, 3, 2, 2)).astype(np.float32)
    seen = observe(model, Inputs("ten", 10, lambda places: images[list(places)], None))
    assert set(seen) == {"input", "doubled", "output"} and seen["doubled"].counts.sum() == images.size
    assert seen["doubled"].largest == pytest.approx(2 * np.abs(images).max()) and seen["doubled"].lowest == 2 * images.min()
    assert seen["output"].lowest == 0.0
