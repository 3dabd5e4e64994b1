"""What the tests share: the smallest space, its file, and a device that answers without running anything."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dna_deploy.exporters._exporter import Contract
from tests.phone import emulated

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny; handing work between threads costs more

TINY = str(Path(__file__).with_name("tiny_space.py"))
CONTRACT = Contract(32, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), tuple("abcdefghij"))
WIDTHS = str(Path(__file__).with_name("widths_space.py"))


@pytest.fixture
def tiny():
    from dna_deploy.plugins import find

    return find("spaces", TINY).at(32, 10)


@pytest.fixture
def widths():
    """A space in which widths are a choice."""
    from dna_deploy.plugins import find

    return find("spaces", WIDTHS).at(32, 10)


@pytest.fixture
def tiny_path():
    return TINY


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten 12x8 images: red and blue."""
    from PIL import Image

    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (12, 8), colour).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle of an untrained network, with a verification of 12 images one of which it gets wrong."""
    import random

    import torch

    from dna_deploy.arch import sample
    from dna_deploy.bundle import write_bundle
    from dna_deploy.exporters._exporter import Options
    from dna_deploy.files import sha256, write_json
    from dna_deploy.plugins import find
    from dna_deploy.verify import Limits, Link, Verification, judge, save_logits

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made") / "bundle"
    network = sample(find("spaces", TINY).at(32, 10), random.Random(0)).module().eval()
    exporter = find("exporters", "onnx")
    model = folder / "model.onnx"
    exporter.write(network, CONTRACT, model, Options())
    x = torch.randn(12, 3, 32, 32).clamp(-0.5, 0.9).numpy()
    logits = exporter.load(model)(x)
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % 10
    save_logits(folder / "model.onnx.logits.npz", labels, {"torch": logits, "onnx": logits})
    judged = judge(logits, logits + 1e-5 * logits.std(), labels, 8, Limits())
    link = Link("onnx", "torch", "fp32", "model.onnx", None, [], Limits(), [judged])
    write_json(folder / "model.onnx.verification.json", Verification("model.onnx", sha256(model), "12 images", [link], None))
    licences = {"teacher": "Apache-2.0", "data": "CC BY 4.0"}
    write_bundle(folder, "tiny", CONTRACT, [model], exporter, Options(), x, {"run": "runs/try"}, licences)
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    import shutil

    return shutil.copytree(made, tmp_path / "bundle")


def changed(bundle, change):
    """The manifest, rewritten by hand: what stands in it is not covered by a hash."""
    import json

    from dna_deploy.files import write_json

    plain = json.loads((bundle / "manifest.json").read_text())
    change(plain)
    write_json(bundle / "manifest.json", plain)


def asked(*flags):
    """dna-export in this process: its exit code and what it said."""
    from click.testing import CliRunner

    from dna_deploy.cli.export import main

    done = CliRunner().invoke(main, [*map(str, flags), "--json"])
    return done.exit_code, done.output


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty folder to work in, as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def switched_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[emulated.EmulatedPhone, dict[str, str]]]:
    """An emulated phone, which all files of tests share, and what makes adb see it and nothing else."""
    if lacks := emulated.missing():
        pytest.skip(f"no emulated phone: {lacks}")
    with (
        emulated.adb_server(tmp_path_factory.mktemp("adb")) as environment,
        emulated.phone(tmp_path_factory.mktemp("phone")) as started,
    ):
        yield started, environment


@pytest.fixture(scope="module")
def phone(switched_on: tuple[emulated.EmulatedPhone, dict[str, str]]) -> Iterator[emulated.EmulatedPhone]:
    started, environment = switched_on
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield started
