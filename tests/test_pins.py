"""Pins and bans: what they leave, worked out from the candidates' own texts."""

import pytest

from dna_deploy.errors import RequestError
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.pins import allowed
from dna_deploy.space import Block, Cell, SearchSpace


def _left(space, block, **asked):
    names = [each.name for each in space.blocks]
    at = names.index(block)
    return [c.text for c, kept in zip(space.blocks[at].candidates, allowed(space, **asked)[at], strict=True) if kept]


def test_nothing_asked_leaves_everything(widths):
    assert all(mask.all() for mask in allowed(widths))


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"pins": ["b1=k5e3"]}, ["d1: k5e3", "d2: k5e3 k5e3"]),
        ({"pins": ["b1=d1"]}, ["d1: k3e3", "d1: k5e3"]),
        ({"pins": ["b1=d2", "b1.2=k5*"]}, ["d2: k3e3 k5e3", "d2: k5e3 k5e3"]),
        ({"pins": ["b1.2=k5*"]}, ["d2: k3e3 k5e3", "d2: k5e3 k5e3"]),
        ({"bans": ["k5*"]}, ["d1: k3e3", "d2: k3e3 k3e3"]),
        ({"bans": ["b1.1=k5e3"]}, ["d1: k3e3", "d2: k3e3 k3e3", "d2: k3e3 k5e3"]),
        ({"bans": ["b1=d2"], "pins": ["b1=k3e3"]}, ["d1: k3e3"]),
    ],
)
def test_pins_and_bans(tiny, asked, left):
    assert _left(tiny, "b1", **asked) == left


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"pins": ["b1=k3e3,act=silu"]}, ["k3e3,act=silu"]),
        ({"pins": ["b1.1=*act=silu"]}, ["k3e3,act=silu", "k3e3se,act=silu"]),
        ({"pins": ["k3e3se,act=silu"]}, ["k3e3se,act=silu"]),
        ({"bans": ["*=silu"]}, ["k3e3,act=relu6", "k3e3se,act=relu6"]),
    ],
)
def test_ops_are_named_with_the_settings_that_tell_them_apart(asked, left):
    ops = tuple(MBConv(16, 8, 16, 3, 3, 2, act=act, se=se) for act in ("relu6", "silu") for se in (0, 0.25))
    stem, head = Block.fixed("stem", Conv(32, 3, 8, 3, 2)), Block.fixed("head", Classifier(8, 16, 3))
    space = SearchSpace("acts", 32, 3, (stem, Block("b1", (Cell("d1", (ops,)),)), head))
    assert _left(space, "b1", **asked) == [f"d1: {label}" for label in left]


def test_a_pinned_width_leaves_only_what_fits_it(widths):
    left = allowed(widths, pins=["b1=8-24x1"])
    kept = [c.cell.name for c, mask in zip(widths.blocks[2].candidates, left[2], strict=True) if mask]
    assert kept == ["24-32x1", "24-32x1"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"pins": ["b1=8-16x1", "b1=8-16x2"]}, "--pin b1=8-16x1 --pin b1=8-16x2: together they leave no candidate of b1"),
        ({"pins": ["b1=k3e3se"], "bans": ["b1.1=k3*"]}, "--ban b1.1=k3.: together they leave no candidate of b1"),
        ({"pins": ["b1=8-24x1", "b2=16-32x1"]}, "do not fit together"),
        ({"pins": ["b1.²=k3e3"]}, "no place 'b1.²'"),  # a digit to str.isdigit, but none to int
        ({"pins": ["b9=k3e3"]}, "no place 'b9' and no op .* in space widths; write BLOCK=PATTERN or .*, of b1, b2"),
        ({"bans": ["b1.x=k3e3"]}, "no place 'b1.x'"),
        ({"bans": ["k9*"]}, "nothing there is called 'k9.'; there are 16-32x1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(widths, asked, says):
    with pytest.raises(RequestError, match=says) as caught:
        allowed(widths, **asked)
    assert "\n" not in str(caught.value)
