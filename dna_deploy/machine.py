"""The machine that trains: its device, the precision of what runs forward on it, and the processes that share each batch.

`torchrun` starts several processes of the same command. The first does what it would do alone; the others join it in every
training it tells them of. A batch is divided into parts, as many for each process as `accumulate` says: the gradient is that
of the whole batch, while statistics, those of BatchNorm among them, are each part's own. One process that works its batches
in as many parts comes to the same weights.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dna_deploy.errors import MachineError, RequestError
from dna_deploy.torchrun import RANK, WORLD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """`amp`: forward passes in bfloat16 where that is safe. Weights, gradients and losses stay float32, and bfloat16 has
    float32's range, so that no loss needs scaling. `rank` is this process among the `world` of them."""

    device: torch.device
    amp: bool = False
    rank: int = 0
    world: int = 1

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    @property
    def fused(self) -> bool | None:
        """What the optimizers of torch are told: one kernel for all weights on a GPU, their own choice elsewhere."""
        return True if self.device.type == "cuda" else None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def own(self, parts: Sequence[T]) -> Sequence[T]:
        """This process's parts of a batch."""
        return parts[self.rank :: self.world]

    def require_shares(self, batch: int, accumulate: int, flag: str) -> None:
        if batch < 2 * accumulate * self.world:  # one image has no variance where BatchNorm sees a single pixel
            parts = f"{accumulate} parts" + (f" for each of {self.world} processes" if self.world > 1 else "")
            raise RequestError(f"a batch of {batch} images in {parts}: expected two images a part at least; give a larger {flag}")

    def gather(self, weights: "Iterable[nn.Parameter]") -> None:
        """Sum the gradients of all processes: each brought its images' share of the whole batch's."""
        if self.world > 1:
            found = [weight.grad for weight in weights if weight.grad is not None]
            self._together(found, 1.0)

    def average(self, module: "nn.Module") -> None:
        """Bring BatchNorm's running statistics together, which every process kept for its own parts."""
        if self.world > 1:
            self._together([buffer for buffer in module.buffers() if buffer.is_floating_point()], 1 / self.world)

    def begin(self, module: "nn.Module") -> None:
        """Give all processes the first one's weights."""
        if self.world > 1:
            with _processes():
                for tensor in module.state_dict().values():
                    torch.distributed.broadcast(tensor, 0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            values = values.clone()
            with _processes():
                torch.distributed.all_reduce(values)
        return values

    def tell(self, **told: Any) -> None:
        """Let the others know what the first begins; `told` is plain values. Nothing where there are no others."""
        if self.world > 1 and self.first:
            text = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
            with _processes():
                torch.distributed.broadcast(torch.tensor([len(text)]), 0)
                torch.distributed.broadcast(text, 0)

    def told(self) -> dict[str, Any]:
        """What the first began; waits for it."""
        size = torch.zeros(1, dtype=torch.int64)
        with _processes():
            torch.distributed.broadcast(size, 0)
            text = torch.zeros(int(size), dtype=torch.uint8)
            torch.distributed.broadcast(text, 0)
        found: dict[str, Any] = json.loads(bytes(text.tolist()))
        return found

    def _together(self, tensors: list[torch.Tensor], scale: float) -> None:
        with torch.no_grad(), _processes():
            flat = torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.zeros(1, device=self.device)
            torch.distributed.all_reduce(flat)
            flat *= scale
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]) if tensors else (), strict=True):
                tensor.copy_(part.view(tensor.shape))


CPU = Machine(torch.device("cpu"))


def this_machine(amp: bool | None = None) -> Machine:
    """The GPU where there is one. `amp` None: bfloat16 where it is the GPU's own; never on a CPU, where it is slower."""
    gpu = torch.cuda.is_available()
    if gpu and WORLD > 1:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    _join(gpu)
    if not gpu:
        if amp:
            raise MachineError("--amp: bfloat16 needs a GPU, there is none here; go on where the run was begun, or use --no-amp")
        return Machine(CPU.device, False, RANK, WORLD)
    device = torch.device("cuda", torch.cuda.current_device())
    able = torch.cuda.is_bf16_supported(including_emulation=False)
    if amp and not able:
        raise MachineError(f"--amp: {torch.cuda.get_device_name(device)} has no bfloat16; use --no-amp")
    return Machine(device, able if amp is None else amp, RANK, WORLD)


@contextmanager
def one_update_a_step(module: "nn.Module", parts: int) -> "Iterator[None]":
    """Let BatchNorm's running statistics move by as much a step as they would by a whole batch, though it comes in parts."""
    norms = [norm for norm in module.modules() if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) and norm.momentum]
    momenta = [norm.momentum or 0.0 for norm in norms]
    try:
        for norm, momentum in zip(norms, momenta if parts > 1 else (), strict=False):
            norm.momentum = 1 - (1 - momentum) ** (1 / parts)
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def dismiss() -> None:
    """Let the processes beside the first end, where there are any."""
    if WORLD > 1:
        this_machine().tell()
        torch.distributed.destroy_process_group()


def _join(gpu: bool) -> None:
    """Meet the other processes that torchrun started; once. Words go through gloo, gradients of a GPU through NCCL."""
    if WORLD > 1 and not torch.distributed.is_initialized():
        wait = timedelta(days=7)  # the others wait while the first rates and measures; who dies is torchrun's to see
        with _processes():
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=wait)


@contextmanager
def _processes() -> "Iterator[None]":
    try:
        yield
    except RuntimeError as error:  # of the connection, whatever the backend
        if RANK > 0:
            raise SystemExit(3) from None  # the first one says it
        raise MachineError("another process of this training is gone; run the same command again, it goes on") from error
