"""What every exporter offers: a format is written *and* run again, or it does not count."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


@dataclass(frozen=True)
class Contract:
    """What a user of the exported file must know; it travels inside it."""

    image_size: int
    mean: tuple[float, ...]  # the network takes (pixel / 255 - mean) / std, RGB
    std: tuple[float, ...]
    labels: tuple[str, ...]

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
                    "resize": "shorter side to the input size, bicubic, centre crop",
                    "normalise": "(pixel / 255 - mean) / std",
                    "mean": list(self.mean),
                    "std": list(self.std),
                }
            ),
            "dna_deploy.output": json.dumps({"name": "output", "shape": ["batch", len(self.labels)], "meaning": "logits"}),
            "dna_deploy.labels": json.dumps(list(self.labels)),
        }


@dataclass(frozen=True)
class Exporter:
    """`export(network, contract, path)` writes the file; `load(path)` returns a function from images to logits."""

    name: str
    suffix: str
    export: "Callable[[nn.Module, Contract, Path], None]"
    load: "Callable[[Path], Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]]"
