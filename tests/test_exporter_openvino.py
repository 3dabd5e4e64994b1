"""The OpenVINO exporter: a bf16 file is typed so, and its layers lose no more than bf16 has to."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.plugins import find
from dna_deploy.precision import lower

openvino = pytest.importorskip("openvino")

CONTRACT = Contract(32, (0.5,) * 3, (0.5,) * 3, tuple("abc"))


@pytest.fixture
def chain():
    """Forty convolutions of one weight each, about 1: what every rounding loses or gains is still there at the end."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(40):
        layers += [nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.ReLU()]
        nn.init.uniform_(layers[-2].weight, 0.9, 1.1)
    return nn.Sequential(*layers, nn.Flatten()).eval()


def test_bf16_is_as_near_as_torch_s_or_nearer_where_the_processor_has_none(chain, tmp_path):
    find("exporters", "onnx").write(chain, CONTRACT, tmp_path / "model.onnx", Options())
    lowered, kept = lower(onnx.load(tmp_path / "model.onnx"), "bf16", {})
    onnx.save(lowered, tmp_path / "model-bf16.onnx")
    exporter = find("exporters", "openvino")
    exporter.write(tmp_path / "model-bf16.onnx", CONTRACT, tmp_path / "model.xml", Options("bf16"))
    images = np.random.default_rng(0).uniform(1, 2, (8, 3, 32, 32)).astype(np.float32)
    right, rounded = torch.tensor(images).double(), torch.tensor(images).bfloat16()
    for layer in chain:
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach()[:, 0].bfloat16()
            right, rounded = right * weight.double(), rounded * weight
    found = exporter.load(tmp_path / "model.xml")(images).reshape(right.shape)
    assert not kept
    # by OpenVINO's own Convert 9 % of the value was lost, in torch 3.5 %
    assert np.abs(found / right.numpy() - 1).max() <= (rounded.double() / right - 1).abs().max() + 1e-6


def test_bf16_is_the_type_of_every_layer_and_of_no_file_that_did_not_ask(chain, tmp_path):
    find("exporters", "onnx").write(chain, CONTRACT, tmp_path / "model.onnx", Options())
    lowered, _ = lower(onnx.load(tmp_path / "model.onnx"), "bf16", {})
    onnx.save(lowered, tmp_path / "model-bf16.onnx")
    for name, precision, expected in (("model", "fp32", {"f32"}), ("model-bf16", "bf16", {"bf16"})):
        find("exporters", "openvino").write(tmp_path / f"{name}.onnx", CONTRACT, tmp_path / f"{name}.xml", Options(precision))
        read = openvino.Core().read_model(tmp_path / f"{name}.xml")
        layers = [op for op in read.get_ops() if "Convolution" in op.get_type_name()]
        assert len(layers) == 40
        assert {op.get_output_element_type(0).get_type_name() for op in layers} == expected
