"""What every exporter offers: a format is written *and* run again, or it does not count."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dna_deploy.graph import OPSET
from profilers import Measurement

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, np.dtype[Any]]
    Run = Callable[[Array], Array]  # float32 images (N, 3, H, W), as the network takes them -> float32 logits (N, classes)

LABELS = "dna_deploy.labels"  # metadata of an ONNX file
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Contract:
    """What a user of the exported file must know; it travels inside it."""

    image_size: int
    mean: tuple[float, ...]  # the network takes (pixel / 255 - mean) / std, RGB
    std: tuple[float, ...]
    labels: tuple[str, ...]
    weights: str = "trained"  # where they come from; "random" for a network that knows nothing
    shorter_side: int | None = None  # of an image, before the centre is cut out of it; the input's own where None
    interpolation: str = "bicubic"

    @property
    def resize(self) -> str:
        side = "the input size" if self.shorter_side in (None, self.image_size) else f"{self.shorter_side} pixels"
        return f"shorter side to {side}, {self.interpolation}"

    @property
    def metadata(self) -> dict[str, str]:
        return {
            "dna_deploy.input": json.dumps(
                {
                    "name": "input",
                    "layout": "NCHW",
                    "dtype": "float32",
                    "shape": ["batch", 3, self.image_size, self.image_size],
                    "colour": "RGB",
                    "resize": f"{self.resize}, centre crop",
                    "normalise": "(pixel / 255 - mean) / std",
                    "mean": list(self.mean),
                    "std": list(self.std),
                }
            ),
            "dna_deploy.output": json.dumps({"name": "output", "shape": ["batch", len(self.labels)], "meaning": "logits"}),
            LABELS: json.dumps(list(self.labels)),
            "dna_deploy.weights": json.dumps(self.weights),
        }


@dataclass(frozen=True)
class Options:
    """What else was asked for. An exporter reads what concerns its format and ignores the rest."""

    precision: str = "fp32"  # one of the exporter's; what is made from ONNX is handed a file already of it
    largest_batch: int = 8  # runs at every batch size from 1 to this one, at least
    max_drop: float = 0.005  # accuracy int8 may lose, half a point: above it layers go back to float
    opset: int | None = None  # of the ONNX file on the way or at the end; the one its target reads where None
    compute_capability: str | None = None  # the GPU an engine is built for, such as 8.6; None: the one at hand, else all


@dataclass(frozen=True)
class Exporter:
    """A deployment format.

    `write(source, contract, path, options)` writes the file at `path`; its source is a torch module in eval mode, or the path
    of an ONNX file of the precision asked for, which was verified. `load(path)` returns a function that runs the file.
    Inputs and outputs are float32 whatever the precision. A package that is missing is a MachineError with the pip line, and
    `load` raises CannotRun for a file that is whole but not for this machine. `check(options)` refuses early what `write`
    would refuse late; `measure(path)` times one image by the ways it can be run, where no table's device runs the format;
    `run_graph(model, inputs)` runs any ONNX graph, a part of one too, as the format's runtime would.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]  # it can carry, the first one where none is asked for
    made_from: Literal["module", "onnx"]
    write: Callable[[Any, Contract, Path, Options], None]
    load: "Callable[[Path], Run]"
    holds_code: bool = False  # `load` runs what code is in the file: of a stranger's file only with the user's word
    beside: tuple[str, ...] = ()  # suffixes of further files that belong to the one at `path` and lie beside it
    symmetric_int8: bool = False  # its int8 has no zero point, for activations either
    opset: int = OPSET  # of the ONNX it is made from, or is
    check: Callable[[Options], None] | None = None
    measure: Callable[[Path], Mapping[str, Measurement]] | None = None
    run_graph: "Callable[[onnx.ModelProto, Mapping[str, Array]], dict[str, Array]] | None" = None
