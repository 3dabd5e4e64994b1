"""What the tests share: the smallest space, its file, and a device that answers without running anything."""

import os
from pathlib import Path

import pytest

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
def workdir(tmp_path, monkeypatch):
    """An empty folder to work in, as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
