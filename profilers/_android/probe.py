"""A network whose answer is known: run on a device before any number of it is believed."""

import numpy as np

# Convolution 2 -> 3 channels, relu, mean over space: the kernels that matter, in numbers worked out below by hand.
INPUT = ((np.arange(2 * 5 * 5, dtype=np.float32) * 7 % 11).reshape(1, 2, 5, 5) - 5) / 8
WEIGHTS = ((np.arange(3 * 2 * 3 * 3, dtype=np.float32).reshape(3, 2, 3, 3) % 7) - 3) / 4
BIAS = np.array([0.5, 0.25, -0.5], np.float32)
TOLERANCE = 1e-5  # the values are small multiples of 1/32: only the order of additions may differ


def expected() -> np.ndarray:
    """The answer, by the definition of each layer."""
    out = np.zeros((3, 3, 3))
    for channel in range(3):
        for row in range(3):
            for column in range(3):
                window = INPUT[0, :, row : row + 3, column : column + 3].astype(np.float64)
                out[channel, row, column] = (window * WEIGHTS[channel]).sum() + BIAS[channel]
    return np.maximum(out, 0).mean(axis=(1, 2)).astype(np.float32)


def model() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 1, 1])],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(BIAS, "b")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    built.ir_version = 8  # what runtimes of 2022 still read
    content: bytes = built.SerializeToString()
    return content
