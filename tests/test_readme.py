"""The README's command lines are ones the commands accept."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

README = Path(__file__).parent.parent / "README.md"


def _calls():
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.S):
        for line in block.splitlines():
            for call in line.split("&&"):
                words = shlex.split(call, comments=True)
                if words and words[0].startswith("dna-"):
                    yield words


@pytest.mark.parametrize("words", list(_calls()), ids=" ".join)
def test_the_line_is_understood(words):
    command = importlib.import_module(f"dna_deploy.cli.{words[0].removeprefix('dna-')}").main
    assert command.make_context(words[0], words[1:]).params  # raises click.UsageError for an unknown flag or value


def test_an_unknown_flag_would_be_seen():
    command = importlib.import_module("dna_deploy.cli.profile").main
    with pytest.raises(click.UsageError):
        command.make_context("dna-profile", ["--devise", "cpu"])


def test_the_two_lines_are_there():
    text = README.read_text()
    assert re.search(r'^pip install -e "\.\[demo\]" && dna-profile .* && dna-search .* && dna-export ', text, re.M)
    assert re.search(r'^pip install -e "\.\[test\]" && pytest -n auto --dist loadfile$', text, re.M)
