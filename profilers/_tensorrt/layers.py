"""What an engine is made of, read from the text in which the builder describes it.

The engine's own inspector says the same, but only on a GPU; the builder prints it everywhere, after fusion, with the types the
kernels really take.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

TYPES = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "BF16": "bf16", "Int8": "int8", "FP8": "fp8"}
_TENSOR = re.compile(r"\{ Name: (?P<name>[^,]*), [^{}]*?Dimensions: \[(?P<shape>[-0-9,\s]*)\][^{}]*?Datatype: (?P<type>\w+)")


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # -1 for the batch
    type: str


@dataclass(frozen=True)
class Layer:
    """One kernel, or one call of a library."""

    name: str
    kind: str  # the builder's word: correlation is a convolution, gemm a matrix product, kgen a generated kernel
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str
    nodes: tuple[str, ...]  # of the ONNX graph that went into it

    @property
    def precision(self) -> str | None:
        """The type it computes in, that of what it reads first; None where it computes nothing."""
        return self.inputs[0].type if self.inputs else None


def read_layers(text: str) -> tuple[Layer, ...]:
    """The layers in the builder's message `Layers:`, one line each."""
    return tuple(_layer(line) for line in text.splitlines() if line.startswith("Name: "))


def precisions(layers: Iterable[Layer]) -> dict[str, int]:
    """How many convolutions and matrix products compute in each type.

    They are what has weights of two or more dimensions; generated kernels may have constants of such shapes too, as padding.
    """
    weighted = [layer for layer in layers if layer.kind != "kgen" and any(map(_is_weight, layer.constants))]
    return dict(sorted(Counter(layer.precision or "unknown" for layer in weighted).items()))


def _is_weight(constant: Tensor) -> bool:
    return sum(side != 1 for side in constant.shape) > 1


def _layer(line: str) -> Layer:
    head, *rest = re.split(r", (Inputs|Constants|Outputs): \[", line)
    tensors = {field: _tensors(text) for field, text in zip(rest[::2], rest[1::2], strict=True)}
    return Layer(
        name=_text(head, r"^Name: (.*?), LayerType: "),
        kind=_text(head, r", LayerType: (\w+)"),
        inputs=tensors.get("Inputs", ()),
        constants=tensors.get("Constants", ()),
        outputs=tensors.get("Outputs", ()),
        tactic=_text(line, r", TacticName: ([^,]*)"),
        nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", line)),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            part["name"],
            tuple(int(side) for side in part["shape"].split(",") if side.strip()),
            TYPES.get(part["type"], part["type"]),
        )
        for part in _TENSOR.finditer(text)
    )


def _text(line: str, pattern: str) -> str:
    found = re.search(pattern, line)
    return found[1] if found else ""
