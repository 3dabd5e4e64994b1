"""OpenVINO's IR: an .xml with the graph and a .bin with the weights beside it, converted from verified ONNX.

A bf16 file is typed bf16: computed so by processors that can, and by others in float32. The Casts of ONNX would be carried out
one by one, twice as slow as float32, and by a rule that sends every even number with a rest towards zero (2026.4), which adds up.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_deploy.errors import MachineError, RequestError
from dna_deploy.exporters._bf16 import typed_bf16
from dna_deploy.exporters._exporter import PRECISIONS, Contract, Exporter, Options
from dna_deploy.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from dna_deploy.exporters._exporter import Array, Run


def write(source: Path, contract: Contract, path: Path, options: Options) -> None:
    import onnx

    openvino = _openvino()
    given = typed_bf16(onnx.load(source)).SerializeToString() if options.precision == "bf16" else source
    try:
        model = openvino.Core().read_model(given)
    except RuntimeError as error:
        raise RequestError(f"{source}: OpenVINO refused it: {_reason(error)}") from error
    for key, value in contract.metadata.items():
        model.set_rt_info(value, key.split("."))
    with tempfile.TemporaryDirectory() as folder:  # two files that belong together: made aside, then put in place
        made = Path(folder) / "model.xml"
        openvino.save_model(model, made, compress_to_fp16=False)  # precision was decided in the ONNX graph
        for part, place in ((made.with_suffix(".bin"), path.with_suffix(".bin")), (made, path)):
            content = part.read_bytes()
            write_atomic(place, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]


def load(path: Path) -> "Run":
    try:
        compiled = _compiled(path)
    except RuntimeError as error:
        raise RequestError(f"{path}: OpenVINO cannot load it: {_reason(error)}") from error

    def run(images: "Array") -> "Array":
        logits: Array = compiled(images)[0].copy()  # OpenVINO reuses its buffer
        return logits

    return run


def run_graph(model: "onnx.ModelProto", inputs: "Mapping[str, Array]") -> "dict[str, Array]":
    try:
        compiled = _compiled(model.SerializeToString())
    except RuntimeError as error:
        raise RequestError(f"OpenVINO refused a part of the graph: {_reason(error)}") from error
    wanted = {name for port in compiled.inputs for name in port.get_names()}
    found = compiled({name: value for name, value in inputs.items() if name in wanted})
    return {value.name: found[value.name].copy() for value in model.graph.output}


def _compiled(source: Path | bytes) -> Any:
    """In the graph's own types: on some processors OpenVINO would otherwise compute fp32 in bf16."""
    openvino = _openvino()
    core = openvino.Core()
    model = core.read_model(source)
    asks_bf16 = any(port.get_element_type() == openvino.Type.bf16 for op in model.get_ops() for port in op.outputs())
    native = asks_bf16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if native else "f32", "PERFORMANCE_HINT": "LATENCY"}
    )


def _reason(error: RuntimeError) -> str:
    """The line of OpenVINO's stack of messages that says something."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
    about = ("Exception from", "Check '", "While", "Error: ", "FrontEnd API failed", "Model wasn't", "Summary:")
    telling = [line for line in lines if not line.startswith(about) and not line.endswith("with a message:")]
    return (telling or lines or ["no reason given"])[0][:200]


def _openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise MachineError('OpenVINO is not installed: pip install "dna-deploy[openvino]", or pip install openvino') from None
    return openvino


EXPORTER = Exporter("openvino", ".xml", PRECISIONS, "onnx", write, load, beside=(".bin",), run_graph=run_graph)
