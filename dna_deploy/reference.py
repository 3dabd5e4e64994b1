"""The trusted side of a search: which tensors of a suspect graph it knows, and what values they should have."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dna_deploy.exporters.onnx import scopes
from dna_deploy.subgraph import marked, names_of, onnxruntime_run, shapes_of

if TYPE_CHECKING:
    import onnx
    from torch import nn

Array = np.ndarray[Any, np.dtype[Any]]
HANDED_ON = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")  # the same tensor in another type


@dataclass(frozen=True)
class Pair:
    """A tensor of the suspect, and what it is called in the reference."""

    suspect: str
    reference: str


class Reference(Protocol):
    """The trusted side: which tensors of a suspect it knows, their values, and a graph to measure rounding on."""

    def pairs(self, suspect: "onnx.ModelProto") -> list[Pair]:
        """In the suspect's topological order, its outputs included."""

    def values(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    @property
    def graph(self) -> "onnx.ModelProto | None": ...


@dataclass(frozen=True)
class Graph:
    """A trusted ONNX graph: the step before."""

    model: "onnx.ModelProto"

    @property
    def graph(self) -> "onnx.ModelProto":
        return self.model

    def pairs(self, suspect: "onnx.ModelProto") -> list[Pair]:
        """By name where the step kept names; else graphs are aligned by their sequence of (op, shape)."""
        # a bias in int32 has steps as fine as the sums it is added to: it is judged with the layer that adds it
        biases = {part.name for part in self.model.graph.initializer if len(part.dims) < 2}
        known = names_of(self.model) - biases
        later = _activated_later(self.model, suspect)
        by_name = [pair for pair in _by_name(suspect, known) if pair.suspect not in later]
        outputs = [name for node in suspect.graph.node for name in node.output]
        if 2 * len(by_name) >= len(outputs):
            return by_name
        ours, theirs = _signatures(self.model), _signatures(suspect)
        aligned = difflib.SequenceMatcher(None, [key for _, key in theirs], [key for _, key in ours], autojunk=False)
        found = {
            theirs[block.a + i][0]: ours[block.b + i][0] for block in aligned.get_matching_blocks() for i in range(block.size)
        }
        found |= {pair.suspect: pair.reference for pair in by_name}
        found |= {a.name: b.name for a, b in zip(suspect.graph.output, self.model.graph.output, strict=True)}
        return [Pair(name, found[name]) for name in outputs if name in found]

    def values(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        from onnx import numpy_helper

        fixed = {part.name: numpy_helper.to_array(part) for part in self.model.graph.initializer if part.name in names}
        fixed |= {name: value for name, value in inputs.items() if name in names}
        computed = [name for name in names if name not in fixed]
        return fixed | (onnxruntime_run(marked(self.model, computed), inputs) if computed else {})


@dataclass(frozen=True)
class Module:
    """A trusted torch network: a tensor is known where the exporter says which module's output it is."""

    network: "nn.Module"

    @property
    def graph(self) -> None:
        return None

    def pairs(self, suspect: "onnx.ModelProto") -> list[Pair]:
        last: dict[str, str] = {}  # module -> the last tensor computed inside it
        for node in suspect.graph.node:
            for scope in scopes(node)[:-1]:
                last[scope] = node.output[0]
        known = dict(self.network.named_modules())
        shortest: dict[str, str] = {}  # a module and its last child end with the same tensor: one name will do
        for module, tensor in last.items():
            if module in known and module:
                shortest[tensor] = module
        shortest[suspect.graph.output[0].name] = ""
        return [Pair(name, shortest[name]) for node in suspect.graph.node for name in node.output if name in shortest]

    def values(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        found: dict[str, Array] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: "nn.Module", given: Any, output: torch.Tensor) -> None:
                found[name] = output.detach().numpy().copy()  # the next layer may work in place

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in self.network.named_modules() if name in names]
        try:
            with torch.no_grad():
                self.network.eval()(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _by_name(suspect: "onnx.ModelProto", known: set[str]) -> list[Pair]:
    """What a Cast or a pair of QuantizeLinear and DequantizeLinear hands on is the tensor they took."""
    before: dict[str, str] = {}
    found = []
    for node in suspect.graph.node:
        if node.op_type in HANDED_ON:
            before[node.output[0]] = node.input[0]
        for name in node.output if node.op_type != "QuantizeLinear" else ():
            at, passed = name, set()
            while at not in known and at not in passed:
                passed.add(at)
                at = before.get(at) or at.removesuffix("_quantized")  # of a bias one leads to the other and back
            if at in known and name:
                found.append(Pair(name, at))
    return found


def _activated_later(reference: "onnx.ModelProto", suspect: "onnx.ModelProto") -> set[str]:
    """Tensors whose activation the quantizer left to QuantizeLinear, which clips as it does: only behind it they are the same."""
    ops = {name: node.op_type for node in reference.graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in suspect.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    made = {name: node.op_type for node in suspect.graph.node for name in node.output}
    return {name for name, op in made.items() if readers.get(name) == {"QuantizeLinear"} and ops.get(name, op) != op}


def _signatures(model: "onnx.ModelProto") -> list[tuple[str, tuple[Any, ...]]]:
    """Every computed tensor with its op and shape."""
    shapes = shapes_of(model)
    return [(name, (node.op_type, shapes.get(name))) for node in model.graph.node for name in node.output if name]
