"""The machine that trains: its device, and the precision of what runs forward on it."""

from dataclasses import dataclass

import torch

from dna_deploy.errors import MachineError


@dataclass(frozen=True)
class Machine:
    """`amp`: forward passes in bfloat16 where that is safe. Weights, gradients and losses stay float32, and bfloat16 has
    float32's range, so that no loss needs scaling."""

    device: torch.device
    amp: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    @property
    def fused(self) -> bool | None:
        """What the optimizers of torch are told: one kernel for all weights on a GPU, their own choice elsewhere."""
        return True if self.device.type == "cuda" else None


CPU = Machine(torch.device("cpu"))


def this_machine(amp: bool | None = None) -> Machine:
    """The GPU where there is one. `amp` None: bfloat16 where it is the GPU's own; never on a CPU, where it is slower."""
    if not torch.cuda.is_available():
        if amp:
            raise MachineError("--amp: bfloat16 needs a GPU, there is none here; go on where the run was begun, or use --no-amp")
        return CPU
    device = torch.device("cuda", torch.cuda.current_device())
    able = torch.cuda.is_bf16_supported(including_emulation=False)
    if amp and not able:
        raise MachineError(f"--amp: {torch.cuda.get_device_name(device)} has no bfloat16; use --no-amp")
    return Machine(device, able if amp is None else amp)
