"""Bytes of files and activations: by hand for single ops, against the exporter's own graph for a whole network."""

import random

import onnx
import pytest

from dna_deploy.arch import sample
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.exporters.onnx import EXPORTER
from dna_deploy.footprint import file_bytes, footprint, peak_activations
from dna_deploy.graph import onnx_of
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv


def test_by_hand():
    # 3 x 8 x 8 in, 5 x 4 x 4 out, ReLU6 over it in place
    assert footprint(Conv(8, 3, 5, 3, 2)).peak_bytes == 4 * (3 * 64 + 5 * 16)
    # the depthwise convolution of the residual block: its input and output of 6 x 8 channels, and the block's own input
    assert footprint(MBConv(10, 8, 8, 3, 6)).peak_bytes == 4 * 100 * (8 + 48 + 48)
    # with a stride nothing is kept beside it: expanding 8 to 48 channels, then 48 at 10 x 10 to 48 at 5 x 5
    assert footprint(MBConv(10, 8, 12, 3, 6, 2)).peak_bytes == 4 * (48 * 100 + 48 * 25)
    # SiLU is Sigmoid and Mul: the expanded tensor twice, and the input where it is needed later
    assert footprint(MBConv(10, 8, 8, 3, 6, act="silu")).peak_bytes == 4 * 100 * (8 + 48 + 48)
    weights = 4 * (5 * 3 * 9 + 5)
    assert weights < footprint(Conv(8, 3, 5, 3, 2)).file_bytes < weights + 1200  # a Conv of two weights, a Clip of two


@pytest.mark.parametrize("seed", range(2))
def test_a_networks_are_those_of_the_exported_file(widths, seed, tmp_path):
    arch = sample(widths, random.Random(seed))
    path = tmp_path / "model.onnx"
    network = arch.module().eval()
    for name, values in network.state_dict().items():
        if "bn" in name and values.is_floating_point():  # as of a trained one: the exporter writes equal weights once
            values.uniform_(0.5, 1.5)
    labels = tuple(f"a class of a long name, {number:07}" for number in range(10))  # 32 bytes as JSON, with quotes and comma
    EXPORTER.write(network, Contract(32, (0.48145466,) * 3, (0.26862954,) * 3, labels), path, Options())
    exported = onnx.load(path)
    parts = [footprint(op) for op in arch.ops]
    assert max(part.peak_bytes for part in parts) == peak_activations(exported)
    assert max(part.peak_bytes for part in parts) == peak_activations(onnx.load_from_string(onnx_of(arch.ops)))
    written = path.stat().st_size
    assert written <= file_bytes(arch.ops, 10) <= written + 200 * len(exported.graph.node)
