"""A bundle's ONNX files are made again from what its manifest names: the same bytes, or exit code 1 and the reason."""

import json

import pytest
from click.testing import CliRunner

from dna_deploy.contents import opened
from dna_deploy.files import write_json
from dna_deploy.rebuild import rebuild
from dna_deploy.run import Asked

NET = """
import torch
from torch import nn

def MODEL():
    torch.manual_seed({seed})
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )
"""


def asked(*flags):
    """dna-export in this process: its exit code and what it said."""
    from dna_deploy.cli.export import main

    done = CliRunner().invoke(main, [*map(str, flags), "--json"])
    return done.exit_code, done.output


@pytest.fixture
def made(workdir):
    (workdir / "net.py").write_text(NET.format(seed=0))
    code, said = asked("--model", "net.py", "--image-size", 32, "--precision", "int8", "--max-drop", "100%")
    assert code == 0, said
    return workdir / "exports" / "net"


def test_the_same_request_gives_the_same_bytes(made):
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    with opened(made) as contents:
        files = list(rebuild(contents, trust=True))
    assert sorted(part.file for part in files) == ["model-int8.onnx", "model.onnx"] and all(part.same for part in files)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before  # nothing of the bundle is touched
    code, said = asked("--rebuild", made, "--trust")
    answer = json.loads(said.splitlines()[-1])
    assert code == 0 and set(answer["rebuilt"]) == {"model-int8.onnx", "model.onnx"} and answer["made_elsewhere"] == []


def test_python_that_the_manifest_names_is_not_run_unasked(made):
    """A bundle from elsewhere may name any file of this machine, or one that it brings."""
    (made.parent.parent / "net.py").write_text("open('it_ran', 'w')\n" + NET.format(seed=0))
    code, said = asked("--rebuild", made)
    assert code == 2 and "made from net.py, which can run code here; add --trust" in said
    assert not (made.parent.parent / "it_ran").exists()


def named(bundle, **made_from):
    """The manifest, edited to name something else that the network was made from."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "made_from": made_from}))


@pytest.mark.parametrize("space", ["evil.py", "derived:evil.py"])
def test_a_space_that_the_runs_architecture_names_is_not_run_unasked(made, workdir, space):
    """run.json may name a space of ours and architecture.json, from which the network is built, another."""
    (workdir / "evil.py").write_text("from pathlib import Path\nPath('it_ran').touch()\n")
    pick = workdir / "run" / "pick"
    pick.mkdir(parents=True)
    asked_then = Asked("x", None, [], "digits", None, "mobile", 32, 1, 1, 1, 1, 0)
    write_json(workdir / "run" / "run.json", asked_then)
    for name in ("pick.json", "student.safetensors"):
        (pick / name).write_text("{}")
    file = {"space": space, "image_size": 32, "num_classes": 10, "blocks": {}, "schema": "dna-deploy/architecture/1"}
    (pick / "architecture.json").write_text(json.dumps(file))
    named(made, run=str(pick))
    code, said = asked("--rebuild", made)
    assert code == 2 and f"made from {space}, which can run code here; add --trust" in said
    assert not (workdir / "it_ran").exists()
    asked("--rebuild", made, "--trust")
    assert (workdir / "it_ran").exists()  # so it is the right file that was not run
    for text in ("{", "[]", "[" * 100_000):
        (pick / "architecture.json").write_text(text)
        code, said = asked("--rebuild", made)
        assert code == 2 and "architecture.json: names no space" in said and "Traceback" not in said


def test_a_data_set_that_timm_would_open_is_not_opened_unasked(made):
    """webdataset reads what a shell command writes, where the name of a data set begins with pipe:."""
    named(made, model="resnet18", data="wds/pipe:touch it_ran;", data_root="pipe:touch it_ran;")
    code, said = asked("--rebuild", made)
    assert code == 2 and "made from wds/pipe:touch it_ran;, which can run code here; add --trust" in said


def test_a_network_that_has_changed_since_is_exit_1(made):
    (made.parent.parent / "net.py").write_text(NET.format(seed=1))
    code, said = asked("--rebuild", made, "--trust")
    assert code == 1 and "model.onnx, model-int8.onnx: made again the bytes are others; the network or the images" in said


def test_packages_that_have_changed_since_are_named(made):
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["made_with"]["onnx"] = "0.0.1"
    (made / "manifest.json").write_text(json.dumps(manifest))
    code, said = asked("--rebuild", made, "--trust")
    assert code == 0 and "was made elsewhere: onnx 0.0.1, here " in said


def test_what_is_not_there_any_more_is_exit_2(made):
    (made.parent.parent / "net.py").unlink()
    code, said = asked("--rebuild", made, "--trust")
    assert code == 2 and "net.py" in said and "Traceback" not in said
