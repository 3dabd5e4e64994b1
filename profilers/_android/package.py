"""Packs a whole plan into one file for the device: small models that share their weights, and the list of visits."""

import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers._android.runtime import add_bytes
from profilers.errors import DeviceUnavailable, ModelRejected
from profilers.protocol import Model, Plan

SHARED_BYTES = 1024  # smaller tensors stay in their model: shapes, scales and biases steer the computation
SHARED_NODES = 64  # models above this are whole networks, whose weights must stay their own for their values to stay finite
WEIGHTS = "weights.bin"
ALIGNMENT = 1 << 16  # of a section in the file: the runtime maps it, and pages have up to 64 KiB


@dataclass(frozen=True)
class Package:
    """What was packed: `visits` lists (key, round) in the order the runner makes them."""

    tar: Path
    visits: Sequence[tuple[str, int]]


def pack(tar: Path, models: Sequence[Model], plan: Plan, batch: int) -> Package:
    """Write the models and the plan; 5,000 ops take some 14 MB instead of 1.2 GB.

    Latency depends on the sizes of weights, not on their values, as long as those are ordinary numbers: so every large
    tensor of an op becomes a piece of one file. Measured on 216 ops: 1.005 times the latency with own weights (median).
    """
    keys = [model.key for model in models]
    if len(set(keys)) != len(keys):
        raise ModelRejected("two models of one plan have the same key; expected each op once")
    places = {key: place for place, key in enumerate(keys)}
    weights = SharedWeights()
    slim_models = [slim(model, weights, batch) for model in models]
    lines = [f"m\tmodels/{place}.onnx\t{json.dumps(key)}\n" for place, key in enumerate(keys)]
    visits = [(key, number) for number in range(plan.rounds) for key in plan.order(keys, number)]
    lines += [f"v\t{number}\t{places[key]}\n" for key, number in visits]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        add_bytes(archive, "plan.txt", ("".join(lines) + "end\n").encode())
        add_bytes(archive, f"models/{WEIGHTS}", weights.lay_out())
        for place, parsed in enumerate(slim_models):
            add_bytes(archive, f"models/{place}.onnx", parsed.SerializeToString())
    return Package(tar, visits)


def slim(model: Model, weights: "SharedWeights", batch: int) -> Any:
    """The parsed model with its large weights handed to the shared file."""
    parsed = with_batch(model, batch)
    if len(parsed.graph.node) <= SHARED_NODES:
        for tensor in parsed.graph.initializer:
            weights.take(tensor)
    return parsed


def with_batch(model: Model, batch: int) -> Any:
    """The parsed model with the free dimensions of its inputs set to the batch size."""
    parsed = parse(model)
    for value in parsed.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.WhichOneof("value") != "dim_value":
                size.dim_value = batch
    return parsed


def parse(model: Model) -> Any:
    try:
        import onnx
    except ImportError:
        raise DeviceUnavailable("ONNX is needed to prepare models for a phone: pip install onnx") from None
    try:
        return onnx.load_model_from_string(model.onnx)
    except Exception as error:  # protobuf raises types of its own from several modules
        raise ModelRejected(f"{model.key}: not an ONNX model ({str(error)[:100]})") from error


class SharedWeights:
    """One file that the large tensors of all ops lie in, on top of each other.

    A floating point tensor gets random numbers of its own magnitude (to a factor of the fourth root of two), an integer
    one the full range; each kind has a section, as long as its largest tensor.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[Any, tuple[int, int], int]] = []  # tensor, its section, its bytes

    def take(self, tensor: Any) -> None:
        """Let a tensor of a model point into the file, where that is safe."""
        from onnx import TensorProto, numpy_helper

        if tensor.data_location == TensorProto.EXTERNAL or len(tensor.dims) < 2:
            return
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8):
            return
        values = numpy_helper.to_array(tensor)
        if values.nbytes < SHARED_BYTES:
            return
        magnitude = 0
        if values.dtype.kind == "f":
            spread = float(np.std(values.astype(np.float32)))
            if not math.isfinite(spread) or spread == 0:
                return
            magnitude = round(2 * math.log2(spread))
        self._taken.append((tensor, (tensor.data_type, magnitude), values.nbytes))
        for field in ("raw_data", "float_data", "int32_data"):
            tensor.ClearField(field)

    def lay_out(self) -> bytes:
        """The file, once every tensor is known; tells the tensors where in it they lie."""
        from onnx import TensorProto, helper

        sizes: dict[tuple[int, int], int] = {}
        for _, section, size in self._taken:
            sizes[section] = max(size, sizes.get(section, 0))
        rng = np.random.default_rng(0)
        offsets: dict[tuple[int, int], int] = {}
        content = bytearray()
        for section, size in sorted(sizes.items()):
            content += bytes(-len(content) % ALIGNMENT)
            offsets[section] = len(content)
            data_type, magnitude = section
            if data_type in (TensorProto.INT8, TensorProto.UINT8):
                content += rng.bytes(size)
                continue
            dtype = helper.tensor_dtype_to_np_dtype(data_type)
            values = rng.standard_normal(size // dtype.itemsize, dtype=np.float32) * 2.0 ** (magnitude / 2)
            content += values.astype(dtype).tobytes()
        for tensor, section, size in self._taken:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", str(offsets[section])), ("length", str(size))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
        return bytes(content)
