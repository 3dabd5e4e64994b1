"""Where training runs: bfloat16 is refused where there is none, and is what the GPU says where there is one."""

import pytest
import torch

from dna_deploy.errors import MachineError
from dna_deploy.machine import CPU, one_update_a_step, this_machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_everything_is_float32():
    assert this_machine() == this_machine(amp=False) == CPU
    with CPU.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(MachineError, match="--amp: bfloat16 needs a GPU"):
        this_machine(amp=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_with_a_gpu_convolutions_are_bfloat16_and_losses_float32():
    from dna_deploy.distill import noise_to_signal

    machine = this_machine()
    assert machine.device.type == "cuda" and machine.amp and machine.fused and not this_machine(amp=False).amp
    conv = torch.nn.Conv2d(3, 8, 3).to(machine.device)
    with machine.autocast():
        y = conv(torch.rand(2, 3, 8, 8, device=machine.device))
        loss = noise_to_signal(y, torch.rand_like(y))
    loss.backward()
    assert y.dtype == torch.bfloat16 and loss.dtype == torch.float32 and conv.weight.grad.dtype == torch.float32


def test_running_statistics_move_once_a_step_however_many_parts():
    """By hand: of parts with one mean, three updates come to what one of the whole batch does."""
    whole, parts = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    x = torch.randn(6, 2, 4, 4)
    whole(x)
    with one_update_a_step(parts, 3):
        for _ in range(3):
            parts(x)
    torch.testing.assert_close(parts.running_mean, whole.running_mean)
    torch.testing.assert_close(parts.running_mean, 0.1 * x.mean((0, 2, 3)))
    assert parts.momentum == 0.1
    with one_update_a_step(parts, 1):
        assert parts.momentum == 0.1
