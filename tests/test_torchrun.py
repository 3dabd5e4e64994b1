"""Two processes that torchrun started come to the weights of one that works its batches in two parts, and end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dna_deploy.checkpoint import load_tensors
from dna_deploy.errors import RequestError
from dna_deploy.machine import CPU, Machine

ROOT = Path(__file__).parent.parent
COMMON = """
import dataclasses, os, random, sys
from pathlib import Path
import torch
from torch import nn
from dna_deploy.arch import sample
from dna_deploy.data import Images, Preprocessing, split
from dna_deploy.sources import open_source
from dna_deploy.distill import Distillation, distill
from dna_deploy.lessons import Lessons
from dna_deploy.machine import this_machine
from dna_deploy.plugins import find
from dna_deploy.recipe import Training
from dna_deploy.supernet import Supernet
from dna_deploy.networks import untrained
from dna_deploy.teacher import Teacher, cut
from dna_deploy.train import train

out, accumulate = Path(sys.argv[1]), int(sys.argv[2])
machine = this_machine()
tiny = find("spaces", "tests/tiny_space.py").at(32, 10)
torch.manual_seed(0)
model = untrained("tf_efficientnet_lite0", 10).eval().requires_grad_(False)
teacher = Teacher("lite0", model, Preprocessing((0.5,) * 3, (0.5,) * 3), cut(model, tiny))
source = open_source("digits")
images = Images(source, split(source).train[:48], 32)
"""
WORK = """
supernet = Supernet(tiny, teacher)
if machine.rank:  # the first one's weights count
    nn.init.zeros_(next(supernet.parameters()))
distill(supernet, Lessons(teacher, images), Distillation(2, 12, accumulate), out / "blocks.safetensors", machine)
plain = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 225, 10)) # nothing over the batch
nn.init.ones_(plain[3].bias)
how = Training(epochs=2, batch=12, accumulate=accumulate, augmentation="crop", ema=0.9)
torch.manual_seed(1)
for layer in (plain[0], plain[3]):
    layer.reset_parameters()
train(plain, images, teacher.preprocessing, how, out / "plain.safetensors", "training", machine=machine)
print(machine.rank, float(sum(weight.detach().double().sum() for weight in supernet.parameters())), flush=True)
"""


def run(script, out, accumulate, processes):
    out.mkdir()
    file = out / "script.py"
    file.write_text(COMMON + script)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, *launch, str(file), str(out), str(accumulate)]
    return subprocess.Popen(
        program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    process = run(WORK, folder / "two", 1, 2)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (folder / "two" / "said").write_text(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, accumulate in (("parts", 2), ("whole", 1)):
            (folder / name).mkdir()
            patch.setattr(sys, "argv", ["script.py", str(folder / name), str(accumulate)])
            exec(COMMON + WORK, {})
    return folder


def weights(file):
    return {name: value for name, value in load_tensors(file)[0].items() if name.startswith("model/")}


def test_two_processes_are_one_that_works_in_two_parts(trained):
    """Weights agree to rounding; running statistics, taken part after part by the one and averaged by the two, to 5 %."""
    two, parts = (weights(trained / name / "blocks.safetensors") for name in ("two", "parts"))
    for name, value in parts.items():
        if "running" in name:
            assert (two[name] - value).norm() <= 0.05 * value.norm() + 1e-6, name
        elif "tracked" not in name:
            torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=name)
    sums = {line.split()[1] for line in (trained / "two" / "said").read_text().splitlines()}
    assert len(sums) == 1  # both processes have the same weights, to the bit


def test_without_batch_statistics_two_processes_are_one(trained):
    """The gradient is the whole batch's; crops, the average of weights and the optimizer follow."""
    two, whole = (weights(trained / name / "plain.safetensors") for name in ("two", "whole"))
    for name, value in whole.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_killed_process_ends_the_others_with_one_line(tmp_path):
    script = """
from dna_deploy.cli._command import command
def work():
    supernet = Supernet(tiny, teacher)
    (out / f"pid-{machine.rank}").write_text(str(os.getpid()))
    distill(supernet, Lessons(teacher, images), Distillation(2000, 12), out / "blocks.safetensors", machine)
sys.argv[1:] = []
command()(work)()
"""
    process = run(script, tmp_path / "killed", 1, 2)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "killed" / "blocks.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        os.kill(int((tmp_path / "killed" / "pid-1").read_text()), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode != 0
    own = [line for line in errors.splitlines() if line.startswith("error:")]
    assert own in ([], ["error: another process of this training is gone; run the same command again, it goes on"])
    assert "in distill" not in errors  # no traceback of ours


def test_a_batch_too_small_for_its_parts_is_refused():
    with pytest.raises(RequestError, match=r"of 7 images in 2 parts for each of 2 processes: expected two .* a larger --batch"):
        Machine(CPU.device, world=2).require_shares(7, 2, "--batch")
    CPU.require_shares(6, 3, "--batch")


def test_variables_that_are_set_to_nothing_are_one_process():
    program = "from dna_deploy.torchrun import RANK, WORLD; assert (RANK, WORLD) == (0, 1)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "RANK": "", "WORLD_SIZE": ""}, check=True)
