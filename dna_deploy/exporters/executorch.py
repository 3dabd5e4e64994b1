"""ExecuTorch (.pte), for phones and small boards: convolutions and matrix products through XNNPACK on the CPU."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.errors import MachineError, RequestError
from dna_deploy.exporters._exporter import Contract, Exporter, Options
from dna_deploy.exporters.torch import captured
from dna_deploy.files import write_atomic

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.exporters._exporter import Array, Run


def write(network: "nn.Module", contract: Contract, path: Path, options: Options) -> None:
    with _quiet():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise _missing(error) from None
        # memory is planned for the largest batch; its bound is not reached by the planner, hence one more
        program = captured(network, contract, most=options.largest_batch + 1)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    write_atomic(path, lambda temporary: temporary.write_bytes(lowered.buffer))


def load(path: Path) -> "Run":
    import torch

    with _quiet():
        try:
            from executorch.runtime import Runtime
        except ImportError as error:
            raise _missing(error) from None
        try:
            program = Runtime.get().load_program(path)
            kept = program, program.load_method("forward")  # the method reads the program's memory
        except RuntimeError as error:
            raise RequestError(f"{path}: ExecuTorch cannot load it ({str(error)[:160]}); export it again") from error

    def run(images: "Array") -> "Array":
        try:
            logits: Array = kept[1].execute([torch.from_numpy(images)])[0].numpy().copy()
        except RuntimeError as error:
            raise RequestError(f"{path}: ExecuTorch cannot run a batch of {len(images)} ({str(error)[:120]})") from error
        return logits

    return run


def _missing(error: ImportError) -> MachineError:
    return MachineError(f'ExecuTorch is not installed ({error}): pip install "dna-deploy[executorch]", or pip install executorch')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ExecuTorch's C++ parts write to the process's own stderr, its Python parts warn: neither is the user's business."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


EXPORTER = Exporter("executorch", ".pte", ("fp32",), "module", write, load)
