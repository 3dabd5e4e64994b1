"""Arrays as the runner takes and gives them: raw tensors one after another, batch after batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from profilers.errors import ModelRejected

# ONNX's element types as numpy's
TYPES = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8"}


@dataclass(frozen=True)
class Batches:
    """The inputs of a model, cut into batches: arrays in the model's order, and the shape each has in one batch."""

    arrays: Sequence[np.ndarray]
    shapes: Sequence[tuple[int, ...]]

    @property
    def dims(self) -> str:
        """The shapes as the runner reads them: "1x3x8x8,1x10"."""
        return ",".join("x".join(map(str, shape)) for shape in self.shapes)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every tensor of the first batch, then of the next."""
        for number in range(len(self.arrays[0]) // self.shapes[0][0]):
            for array, shape in zip(self.arrays, self.shapes, strict=True):
                yield array[number * shape[0] : (number + 1) * shape[0]]


def batches(key: str, values: Sequence[Any], inputs: Mapping[str, object], batch: int) -> Batches:
    """`values` are the model's inputs as its graph describes them; a free first dimension is cut to `batch`."""
    arrays: list[np.ndarray] = []
    shapes: list[tuple[int, ...]] = []
    for value in values:
        if value.name not in inputs:
            raise ModelRejected(f"{key}: no input {value.name!r}; given: {', '.join(inputs) or 'none'}")
        tensor_type = value.type.tensor_type
        array = np.ascontiguousarray(inputs[value.name])
        if tensor_type.elem_type not in TYPES or array.dtype != np.dtype(TYPES[tensor_type.elem_type]):
            raise ModelRejected(f"{key}: input {value.name!r} is {array.dtype}; expected ONNX type {tensor_type.elem_type}")
        fixed = [size.dim_value if size.WhichOneof("value") == "dim_value" else None for size in tensor_type.shape.dim]
        first = fixed[0] if fixed and fixed[0] else batch
        if (
            array.ndim != len(fixed)
            or not len(array)
            or len(array) % first
            or any(f not in (None, s) for f, s in zip(fixed[1:], array.shape[1:], strict=True))
        ):
            raise ModelRejected(f"{key}: input {value.name!r} has shape {array.shape}; expected {fixed} (batches of {first})")
        arrays.append(array)
        shapes.append((first, *array.shape[1:]))
    counts = {len(array) // shape[0] for array, shape in zip(arrays, shapes, strict=True)}
    if len(counts) != 1:
        raise ModelRejected(f"{key}: the inputs hold different numbers of batches: {sorted(counts)}")
    return Batches(arrays, shapes)


def split_outputs(data: bytes, answer: Mapping[str, Any]) -> list[object]:
    """The arrays that the runner wrote, batches joined along their first axis; `answer` is what it said of them."""
    kinds = [(np.dtype(TYPES[output["type"]]).newbyteorder("<"), tuple(output["shape"])) for output in answer["outputs"]]
    parts: list[list[np.ndarray]] = [[] for _ in kinds]
    at = 0
    for _ in range(answer["batches"]):
        for place, (dtype, shape) in enumerate(kinds):
            count = math.prod(shape)
            parts[place].append(np.frombuffer(data, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
    return [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in parts]
