"""A user's own file may import what lies beside it, and what goes wrong in it is answered with its place."""

import sys

import pytest

from dna_deploy.errors import RequestError
from dna_deploy.plugins import find, load


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a file leaves behind for as long as a command runs does not reach the next test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_file_may_import_what_lies_beside_it(workdir):
    (workdir / "own").mkdir()
    (workdir / "own" / "blocks_beside.py").write_text("WIDTH = 24\n")
    (workdir / "own" / "late_beside.py").write_text("DEPTH = 3\n")
    (workdir / "own" / "net.py").write_text(
        "from blocks_beside import WIDTH\ndef MODEL():\n    from late_beside import DEPTH\n    return WIDTH * DEPTH\n"
    )
    assert load(workdir / "own" / "net.py", "MODEL").MODEL() == 72


def test_a_file_may_have_the_name_of_what_it_imports(workdir):
    (workdir / "colorsys.py").write_text("import colorsys\nMODEL = colorsys.rgb_to_hsv\n")
    assert load(workdir / "colorsys.py", "MODEL").MODEL(1, 1, 1) == (0, 0, 1)


def test_a_file_may_define_dataclasses_and_is_no_module_of_another_name(workdir):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass MODEL:\n    width: int\n"
    (workdir / "json.py").write_text(text)
    found = load(workdir / "json.py", "MODEL")
    assert found.MODEL(3).width == 3 and sys.modules[found.__name__] is found and found.__name__ != "json"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import os\nimport nosuchpackage", r"net\.py, line 2: ModuleNotFoundError: No module named 'nosuchpackage'"),
        ("def MODEL(:\n    pass", r"net\.py: SyntaxError: .*\(net\.py, line 1\)"),
        ("MODEL = 1\ndef f():\n    raise ValueError\nf()", r"net\.py, line 3: ValueError"),
        ("from fails_beside import x", r"net\.py, line 1: ZeroDivisionError: division by zero"),
        ("x = 1", "defines no MODEL"),
    ],
)
def test_an_error_in_a_file_is_one_line_with_its_place(workdir, text, says):
    (workdir / "fails_beside.py").write_text("x = 1 / 0\n")
    (workdir / "net.py").write_text(text)
    with pytest.raises(RequestError, match=says) as answer:
        load(workdir / "net.py", "MODEL")
    assert "\n" not in str(answer.value)


@pytest.mark.parametrize(("folder", "kind"), [("spaces", "dna_deploy.space.Space"), ("exporters", "Exporter")])
def test_a_file_that_offers_something_else_is_refused(workdir, folder, kind):
    (workdir / "net.py").write_text("SPACE = EXPORTER = 5\n")
    with pytest.raises(RequestError, match=f"its {folder.upper()[:-1]} is 5, expected a .*{kind}"):
        find(folder, "net.py")
