"""Spaces: every file of spaces/ lays out sound blocks; counts are worked out by hand."""

import random

import pytest

from dna_deploy.arch import Architecture, sample
from dna_deploy.errors import RequestError
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.plugins import find, names
from dna_deploy.space import Block, Cell, SearchSpace


@pytest.mark.parametrize("name", names("spaces"))
@pytest.mark.parametrize("image_size", [32, 96, 224])
def test_every_space_is_sound(name, image_size):
    space = find("spaces", name).at(image_size, 7)
    assert {cell.in_shape for cell in space.blocks[0].cells} == {(3, image_size, image_size)}
    for before, after in zip(space.blocks, space.blocks[1:], strict=False):
        assert {cell.out_shape for cell in before.cells} == {cell.in_shape for cell in after.cells}
    assert all(cell.layers[-1][0].out_shape == (7,) for cell in space.blocks[-1].cells)


def test_mobile_has_the_size_it_claims():
    space = find("spaces", "mobile").at(224, 1000)
    three, four = 6 + 6**2 + 6**3, 6 + 6**2 + 6**3 + 6**4
    assert [block.size for block in space.blocks] == [1, three, three, four, three, four, 6, 1]
    assert space.size == three**3 * four**2 * 6 > 10**13
    assert len(space.ops) == 2 + 11 * 6 + 2


def test_dna_has_the_size_it_claims():
    space = find("spaces", "dna").at(224, 1000)
    shapes = [{(cell.name.split("-")[1], cell.out_shape) for cell in block.cells} for block in space.blocks[1:-1]]
    assert sum(map(len, shapes)) == 16
    b1, b2, b3, b4, b5, b6 = 36 + 216 + 36, 36 + 216 + 1296, 36 + 216 + 1296, 216 + 2 * 1296, 1296 + 2 * 7776, 6
    assert (b1, b2, b3, b4, b5, b6) == (288, 1548, 1548, 2808, 16848, 6)
    assert space.size == b1 * b2 * b3 * b4 * b5 * b6 == 195898498887057408
    assert [block.size for block in space.blocks] == [1, b1, 2 * b2, b3, b4, 2 * b5, 2 * b6, 1]  # two widths in: cells twice
    assert [block.out_hw for block in space.blocks] == [112, 56, 28, 14, 14, 7, 7, 1]
    assert {op.se for op in space.ops if op.kind == "mbconv"} == {0.25}


def test_a_network_is_a_chain_of_cells_that_fit(widths):
    """Counted by hand: behind 16 channels (2 + 2 ways) three cells' 2 + 2 candidates, behind 24 (2 ways) 2."""
    assert widths.size == (2 + 2) * (2 + 2) + 2 * 2 == 20
    assert [block.size for block in widths.blocks] == [1, 6, 6, 1]
    drawn = {sample(widths, random.Random(seed)).key for seed in range(400)}
    assert len(drawn) == widths.size
    assert all(Architecture.parse(key).key == key for key in drawn)
    stem, b1, b2, head = (block.candidates for block in widths.blocks)
    with pytest.raises(RequestError, match=r"puts out 24 channels.*takes 16"):
        Architecture(widths, (stem[0], b1[-1], b2[0], head[0]))


def test_choices_called_the_same_are_told_apart():
    choices = [MBConv(8, 8, 8, 3, 6, act=act, se=se) for act in ("relu", "silu") for se in (0.25, 0.5)]
    cell = Cell("d1", ((*choices, MBConv(8, 8, 8, 5, 6), Conv(8, 8, 8, 3)),))
    assert cell.labels[0][:2] == ("k3e6se,act=relu,se=0.25", "k3e6se,act=relu,se=0.5")
    assert cell.labels[0][-2:] == ("k5e6", "conv3")
    block = Block("b1", (cell,))
    assert [block.candidate(candidate.text) for candidate in block.candidates] == list(block.candidates)


def test_an_unsound_space_is_refused_in_one_line():
    with pytest.raises(RequestError, match=r"b1: mbconv.* does not feed mbconv"):
        Block("b1", (Cell("d2", ((MBConv(8, 8, 16, 3, 6),), (MBConv(8, 8, 16, 3, 6),))),))
    with pytest.raises(RequestError, match=r"b1 puts out \(16,\) channels, b2 takes \(8,\)"):
        SearchSpace("s", 8, 10, (Block.fixed("b1", MBConv(8, 8, 16, 3, 6)), Block.fixed("b2", MBConv(8, 8, 16, 3, 6))))
    one, head = Block.fixed("b1", MBConv(8, 8, 8, 3, 6)), Block.fixed("head", Classifier(8, 8, 10))
    with pytest.raises(RequestError, match="two blocks of one name: b1, b1, head"):
        SearchSpace("s", 8, 10, (one, one, head))
    with pytest.raises(RequestError, match=r"head puts out \(10,\) class scores, the data has 4 classes"):
        SearchSpace("s", 8, 4, (one, head))
    with pytest.raises(RequestError, match=r"b1, cell d1: two choices of a layer called the same: conv3, conv3$"):
        Block("b1", (Cell("d1", ((Conv(8, 8, 8, 3), Conv(8, 8, 8, 3)),)),))
    for layers in ((), ((),), ((Conv(8, 8, 8, 3),), ())):
        with pytest.raises(RequestError, match=r"b1, cell d1: a layer without ops$"):
            Block("b1", (Cell("d1", layers),))


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
    broken = tmp_path / "broken.py"
    lines = [
        "from dna_deploy.space import Space",
        "def lay_out(*_):",
        "    return ((1, 2) (3, 4))",
        "SPACE = Space('b', 16, lay_out)",
    ]
    broken.write_text("\n".join(lines))
    with pytest.warns(SyntaxWarning), pytest.raises(RequestError, match=r"broken\.py, line 3: TypeError: 'tuple' object"):
        find("spaces", str(broken)).at(32, 10)
