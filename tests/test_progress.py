"""What a person sees is what was said, whatever brackets and colons are in it."""

import pytest

from dna_deploy.progress import bar, console, say, show

NAMES = ["net[v2]/model.onnx", "net[/v2]", "a:on:b", "[bold]", "back\\"]


@pytest.fixture(autouse=True)
def fresh():
    """The console is made once, for the stderr there was then."""
    console.cache_clear()
    yield
    console.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_text_is_shown_as_it_is(capsys, name):
    say(name)
    show(f"title {name}", [f"column {name}"], [[f"cell {name}"]])
    with bar(f"bar {name}", 1) as advance:
        advance(1)
    said = capsys.readouterr().err
    assert said.splitlines()[0] == name
    for part in ("title", "column", "cell", "bar"):
        assert f"{part} {name}" in said
