"""Sessions of ONNX Runtime on this machine, opened in one way; and whether a file survives being opened at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dna_deploy.errors import CheckFailed, MachineError, first_line

CPU = "CPUExecutionProvider"
OPENED = """
import sys
sys.path = [place for place in sys.path if place]  # not the current folder: that may be a bundle, which runs no code here
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shapes = {value.name: [size if isinstance(size, int) else 1 for size in value.shape] for value in session.get_inputs()}
session.run(None, {name: numpy.zeros(shape, "float32") for name, shape in shapes.items()})
"""


def open_session(
    model: Path | bytes, provider: str = CPU, optimize: bool = True, entries: Mapping[str, str] | None = None
) -> Any:
    """An InferenceSession; what the provider does not take, the CPU's does. `entries` are of its configuration.

    A graph that the runtime refuses is CheckFailed.
    """
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(model, options, providers=[*dict.fromkeys((provider, CPU))])
    except Exception as error:  # onnxruntime raises a dozen types without a common base
        name = model if isinstance(model, Path) else "a graph"
        reason = _unknown_ops(model) or first_line(error, 1000).rpartition(" : ")[2][:200]
        raise CheckFailed(f"{name}: ONNX Runtime refuses it: {reason}") from error


def require_onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing it leaves an identifier in the user's home
    try:
        import onnxruntime
    except ImportError:
        raise MachineError("ONNX Runtime is not installed: pip install onnxruntime") from None
    return onnxruntime


def provider_named(name: str) -> str:
    """ONNX Runtime's own name of an execution provider such as cuda; MachineError where what is installed lacks it."""
    known = {found.removesuffix("ExecutionProvider").lower(): found for found in require_onnxruntime().get_available_providers()}
    if name.lower() not in known:
        raise MachineError(
            f"--provider {name}: not in this ONNX Runtime, which has {', '.join(known)}; install the package with it, such as "
            "onnxruntime-gpu or onnxruntime-openvino"
        )
    return known[name.lower()]


def require_survived(path: Path) -> None:
    """Open and run the file once in a process of its own: what kills the runtime would kill the command without a word.

    NCHWc layouts do so on x86 where a MatMul in fp16 follows a Transpose (microsoft/onnxruntime#28392; still in 1.32). What the
    runtime refuses properly is not answered here.
    """
    ended = subprocess.run([sys.executable, "-c", OPENED, str(path)], capture_output=True).returncode
    if ended not in (0, 1):
        name = signal.Signals(-ended).name if ended < 0 else f"exit code {ended:#x}"
        raise CheckFailed(
            f"{path}: opening it kills ONNX Runtime {require_onnxruntime().__version__} ({name}), here and in other programs; "
            "choose another --precision, or another version of onnxruntime"
        )


def _unknown_ops(model: Path | bytes) -> str:
    """Names the nodes that no ONNX operator set defines, where that is what is wrong with the file."""
    import onnx

    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
        nodes = onnx.load_from_string(content).graph.node
    except Exception:  # not even a protobuf: the runtime's own reason has to do
        return ""
    known = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    unknown = [node for node in nodes if (node.domain.removeprefix("ai.onnx"), node.op_type) not in known]
    named = ", ".join(f"{node.name or node.output[0]} ({node.op_type})" for node in unknown[:3])
    return f"not ONNX operators: {named}" if unknown else ""
