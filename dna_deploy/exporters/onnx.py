"""ONNX: one file with the weights inside, dynamic batch, BatchNorm folded, its input contract as metadata."""

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.errors import CheckFailed, RequestError
from dna_deploy.exporters._capture import capturing
from dna_deploy.exporters._exporter import LABELS, PRECISIONS, Contract, Exporter, Options
from dna_deploy.files import write_atomic
from dna_deploy.graph import OPSET
from dna_deploy.session import CPU, open_session

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from dna_deploy.exporters._exporter import Array, Run

LIMIT_BYTES = 2_000_000_000  # of one protobuf file
SCOPES = "pkg.torch.onnx.name_scopes"  # which module a node came from: the one piece of the exporter's metadata we keep


def write(network: "nn.Module", contract: Contract, path: Path, options: Options) -> None:
    """The network in fp32; other precisions are made from this file."""
    save(simplified(exported(network, contract, path, options), contract, path, options), path)


def exported(network: "nn.Module", contract: Contract, path: Path, options: Options) -> "onnx.ModelProto":
    """What torch captured, op by op: constants unfolded, BatchNorm a node of its own. `path` is for messages."""
    import copy

    import torch

    require_small(network, str(path))
    example = torch.zeros(2, 3, contract.image_size, contract.image_size)
    batch = torch.export.Dim("batch", min=1, max=max(4096, options.largest_batch))
    with capturing():
        program = torch.onnx.export(
            copy.deepcopy(network).cpu().eval(),
            (example,),
            dynamo=True,
            opset_version=options.opset or OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: batch},),
            external_data=False,
            verbose=False,
            optimize=False,
        )
    assert program is not None
    model = program.model_proto
    clean(model)
    require_any_batch(model)
    return model


def simplified(model: "onnx.ModelProto", contract: Contract, path: Path, options: Options) -> "onnx.ModelProto":
    """The same with constants folded and BatchNorm in the convolution before it, with the contract: what is handed over."""
    import onnxscript.optimizer

    model = onnxscript.optimizer.optimize(model)
    clean(model)
    for key, value in contract.metadata.items():
        model.metadata_props.add(key=key, value=value)
    check(model, path, options.opset or OPSET)
    return model


def write_exported(network: "nn.Module", contract: Contract, path: Path, options: Options) -> None:
    save(exported(network, contract, path, options), path)


def write_simplified(source: Path, contract: Contract, path: Path, options: Options) -> None:
    import onnx

    save(simplified(onnx.load(source), contract, path, options), path)


def save(model: "onnx.ModelProto", path: Path) -> None:
    write_atomic(path, lambda temporary: temporary.write_bytes(model.SerializeToString(deterministic=True)))


def require_small(network: "nn.Module", name: str, largest_bytes: int = LIMIT_BYTES) -> None:
    """Before anything is exported, or even loaded: do the weights fit into one protobuf file?"""
    size = 4 * sum(weight.numel() for weight in (*network.parameters(), *network.buffers()))
    if size > largest_bytes:
        raise RequestError(
            f"{name}: {size / 1e9:.1f} GB of weights do not fit into one ONNX file ({largest_bytes / 1e9:.0f} GB); choose a "
            "smaller model, or --format torch"
        )


def require_opset(opset: int) -> None:
    """torch writes the first of these, which is converted upwards; the last is the newest that the onnx package knows."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise RequestError(f"--opset {opset}: expected one of {OPSET} to {newest}")


def require_any_batch(model: "onnx.ModelProto") -> None:
    """torch.onnx.export takes what is made for one batch size only, and fixes it in the file."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise RequestError(
            f"the network answers for batches of {batch.dim_value} images only: its forward makes the batch size a number of "
            "Python's, as int(x.shape[0]) or a loop over the images does; write it for any x.shape[0]"
        )


def clean(model: "onnx.ModelProto") -> None:
    """Remove what the exporter noted about the machine it ran on: stack traces, file names, its own bookkeeping."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    del model.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        kept = [(entry.key, entry.value) for entry in part.metadata_props if entry.key == SCOPES]
        del part.metadata_props[:]
        for key, value in kept:
            part.metadata_props.add(key=key, value=value)


def check(model: "onnx.ModelProto", path: Path, opset: int) -> None:
    """What must hold of every file we hand over; a violation is a failed export, not a remark."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise CheckFailed(f"{path}: the exporter wrote opset {written}, asked for {opset}")
    training = [node.name for node in model.graph.node if node.op_type == "Dropout" or _attribute(node, "training_mode")]
    if training:
        raise CheckFailed(f"{path}: {len(training)} nodes belong to training, such as {training[0]}")
    content = _our_text(model).SerializeToString()
    for place in {str(Path.home()), str(Path.cwd()), sys.prefix} - {"/"}:
        if place.encode() in content:
            raise CheckFailed(f"{path}: names the folder {place} of this machine")


def _our_text(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """All but the tensors' values and the labels: in millions of random bytes, or in a user's words, any short path is found."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in (*bare.graph.initializer, *(attribute.t for node in bare.graph.node for attribute in node.attribute)):
        tensor.ClearField("raw_data")
    for entry in bare.metadata_props:
        if entry.key == LABELS:
            entry.ClearField("value")
    return bare


def _attribute(node: "onnx.NodeProto", name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def scopes(node: "onnx.NodeProto") -> list[str]:
    """The modules a node lies in, outermost first, and its own name last; as the exporter noted them."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                return [str(part) for part in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError):
                return []
    return []


def load(path: Path, provider: str = CPU) -> "Run":
    session = open_session(path, provider)
    feed, answer = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(images: "Array") -> "Array":
        output: Array = session.run([answer], {feed: images})[0]
        return output

    return run


EXPORTER = Exporter("onnx", ".onnx", PRECISIONS, "module", write, load)
