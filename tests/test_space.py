"""Spaces: every file of spaces/ lays out sound blocks; counts are worked out by hand."""

import pytest

from dna_deploy.errors import RequestError
from dna_deploy.plugins import find, names


@pytest.mark.parametrize("name", names("spaces"))
@pytest.mark.parametrize("image_size", [32, 96, 224])
def test_every_space_is_sound(name, image_size):
    space = find("spaces", name).at(image_size, 7)
    assert space.blocks[0].in_shape == (3, image_size, image_size)
    for before, after in zip(space.blocks, space.blocks[1:], strict=False):
        for cell in before.cells:
            assert cell.layers[-1][0].out_shape == after.in_shape
    assert all(cell.layers[-1][0].out_shape == (7,) for cell in space.blocks[-1].cells)


def test_mobile_has_the_size_it_claims():
    space = find("spaces", "mobile").at(224, 1000)
    three, four = 6 + 6**2 + 6**3, 6 + 6**2 + 6**3 + 6**4
    assert [block.size for block in space.blocks] == [1, three, three, four, three, four, 6, 1]
    assert space.size == three**3 * four**2 * 6 > 10**13
    assert len(space.ops) == 2 + 11 * 6 + 2


def test_tiny_by_hand(tiny):
    assert tiny.size == (2 + 2 * 2) * 3
    texts = [candidate.text for candidate in tiny.blocks[1].candidates]
    assert texts == ["d1: k3e3", "d1: k5e3", "d2: k3e3 k3e3", "d2: k3e3 k5e3", "d2: k5e3 k3e3", "d2: k5e3 k5e3"]


def test_a_candidate_is_found_by_its_text(tiny):
    for block in tiny.blocks:
        for candidate in block.candidates:
            assert block.candidate(candidate.text) == candidate


@pytest.mark.parametrize("text", ["d9: k3e3", "d2: k3e3", "d1: k9e9", ""])
def test_a_text_that_is_no_candidate_is_refused(tiny, text):
    with pytest.raises(RequestError, match="cells: d1, d2"):
        tiny.blocks[1].candidate(text)


def test_too_small_an_image_and_too_few_classes_are_refused():
    with pytest.raises(RequestError, match="at least 32 pixels"):
        find("spaces", "mobile").at(16, 10)
    with pytest.raises(RequestError, match="at least 2 classes"):
        find("spaces", "mobile").at(64, 1)


def test_a_space_outside_the_package_is_found_by_path(tiny_path, tmp_path):
    assert find("spaces", tiny_path).name == "tiny"
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(RequestError, match="defines no SPACE"):
        find("spaces", str(empty))
    with pytest.raises(RequestError, match="mobile"):
        find("spaces", "nope")
