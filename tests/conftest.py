"""What the tests share: the smallest space, its file, and a device that answers without running anything."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.phone import emulated

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny; handing work between threads costs more

TINY = str(Path(__file__).with_name("tiny_space.py"))
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
