"""torch: a program saved by torch.export (.pt2), for where torch itself is deployed. Weights and graph, no code of the user's."""

import copy
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.errors import RequestError, first_line
from dna_deploy.exporters._capture import capturing
from dna_deploy.exporters._exporter import Contract, Exporter, Options
from dna_deploy.files import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dna_deploy.exporters._exporter import Array, Run


def write(network: "nn.Module", contract: Contract, path: Path, options: Options) -> None:
    import torch

    program, saved = captured(network, contract, most=max(4096, options.largest_batch)), io.BytesIO()
    torch.export.save(program, saved, extra_files=dict(contract.metadata))  # not to a file: a full disk would abort the process
    write_atomic(path, lambda temporary: temporary.write_bytes(saved.getbuffer()))


def captured(network: "nn.Module", contract: Contract, most: int) -> "torch.export.ExportedProgram":
    """The network's graph for every batch size from 1 to `most`."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=most)
    example = torch.zeros(2, 3, contract.image_size, contract.image_size)
    with capturing():
        return torch.export.export(copy.deepcopy(network).cpu().eval(), (example,), dynamic_shapes=({0: batch},))


def load(path: Path) -> "Run":
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(path).module()
    except Exception as error:  # a zip, a schema or a weights error, by what is wrong with the file
        raise RequestError(
            f"{path}: torch.export cannot load it ({first_line(error)}); expected a .pt2 file, export it again"
        ) from error

    def run(images: "Array") -> "Array":
        with torch.no_grad():
            logits: Array = module(torch.from_numpy(images)).numpy()
        return logits

    return run


# loading one can run code: torch.export.load unpickles what weights_only refuses
EXPORTER = Exporter("torch", ".pt2", ("fp32",), "module", write, load, holds_code=True)
