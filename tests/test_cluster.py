"""Blocks as jobs on a real Ray cluster on this machine: the ratings of one machine, also when a worker is killed."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dna_deploy.checkpoint import load_tensors
from dna_deploy.errors import MachineError, RequestError
from dna_deploy.ratings import load_ratings
from dna_deploy.run import Asked, Run, open_run
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's own import
]

OWN = Path(__file__).with_name("own_teacher.py")
SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
from dna_deploy.cluster import rate_on
from dna_deploy.sources import open_source
from dna_deploy.plugins import find
from dna_deploy.run import Run

run = Run(Path(sys.argv[1]))

def ours(pid):
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False

def kill_one():
    while not list(run.folder.glob("blocks/b*.safetensors")):
        time.sleep(0.05)
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::train_block") and ours(int(place.name)):
                os.kill(int(place.name), signal.SIGKILL)
                print("killed", file=sys.__stdout__, flush=True)
                return
        except (OSError, ValueError):
            pass

threading.Thread(target=kill_one, daemon=True).start()
source = open_source(run.asked.data)
rate_on("local")(run, source, find("spaces", run.asked.space).at(run.asked.image_size, len(source.classes)))
"""


def asked(epochs):
    return Asked(str(OWN), None, [], "digits", None, TINY, 32, 1, epochs, 32, 64, 0)


def test_a_cluster_gives_the_ratings_of_one_machine_also_when_a_worker_dies(workdir, tiny):
    from dna_deploy.search import rate_all
    from dna_deploy.sources import open_source

    source = open_source("digits")
    alone = open_run("alone", asked(3))
    rate_all(alone, source, tiny)
    spread = open_run("spread", asked(3))
    paths = [str(ROOT), str(Path(importlib.util.find_spec("ray").origin).parent.parent)]
    elsewhere = {"RAY_ADDRESS": "127.0.0.1:1"}  # `local` means here all the same
    environment = {**os.environ, **elsewhere, "PYTHONPATH": os.pathsep.join(paths), "RAY_worker_niceness": "0"}
    program = [sys.executable, "-c", SCRIPT, str(spread.folder.resolve())]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "killed"
    one, other = (load_ratings(Run(run.folder).ratings, tiny) for run in (alone, spread))
    for block, ratings in one.items():
        for a, b in zip(ratings, other[block], strict=True):
            assert (a.relative_l1, a.noise_to_signal) == pytest.approx((b.relative_l1, b.noise_to_signal), rel=1e-4)
    weights, others = (load_tensors(run.supernet)[0] for run in (alone, spread))
    assert weights.keys() == others.keys() and not (spread.folder / "blocks").exists()


def test_a_folder_that_the_worker_does_not_see_is_named(workdir):
    from dna_deploy.cluster import train_block

    run = open_run("r", asked(1))
    with pytest.raises(RequestError, match=r"^runs/r: not to be seen from"):
        train_block(str(workdir), str(run.folder), "b1")
    run.teacher_report.write_text("{}")
    with pytest.raises(RequestError, match=r"^nowhere: not to be seen from .*a folder that all machines see"):
        train_block("nowhere", str(run.folder), "b1")


def test_an_address_where_nobody_answers_is_the_machines_fault():
    from dna_deploy.cluster import rate_on

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MachineError, match=f"--ray 127.0.0.1:{port}: nobody answers there") as caught:
        rate_on(f"127.0.0.1:{port}")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="--ray somewhere: expected HOST:PORT"):
        rate_on("somewhere")
    with pytest.raises(RequestError, match="--ray host:²: expected HOST:PORT"):
        rate_on("host:²")


def test_ray_under_torchrun_is_refused(monkeypatch, capsys):
    from dna_deploy.cli import search

    monkeypatch.setattr(search, "WORLD", 2)
    with pytest.raises(SystemExit, match="2"):
        search.main(["--latency", "5ms", "--ray", "local"])
    assert "error: --ray under torchrun" in capsys.readouterr().err
