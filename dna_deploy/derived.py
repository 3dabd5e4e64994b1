"""A search space derived from a teacher: one block for each of its stages, at its resolutions, in proportion to its widths.

A stage is a run of trunk modules of one resolution and width, from a quarter of the image's side down. The student's widths
are the teacher's where the last is at most 320 channels wide, and all scaled by one factor otherwise; a block is up to as
deep as the stage, and four layers at most. Layers are those of `mobile`: MBConv with kernel 3, 5, 7 and expansion 3, 6.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dna_deploy.errors import RequestError, TeacherError
from dna_deploy.networks import untrained
from dna_deploy.ops._op import strided
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.space import Block, Cell, SearchSpace
from dna_deploy.spaces.mobile import FIRST, HEAD, STEM, choices
from dna_deploy.teacher import Place, spatial, trunk

if TYPE_CHECKING:
    from torch import nn

WIDEST, DEEPEST = 320, 4


@dataclass(frozen=True)
class Derived:
    """What `--space derived:TEACHER` stands for; a teacher is a timm name or a path ending in .py."""

    teacher: str

    @property
    def name(self) -> str:
        return f"derived:{self.teacher}"

    def at(self, image_size: int, num_classes: int) -> SearchSpace:
        if num_classes < 2:
            raise RequestError(f"a classifier needs at least 2 classes, the data has {num_classes}")
        return _derived(self.teacher, image_size, num_classes)


@lru_cache(maxsize=16)
def _derived(teacher: str, image_size: int, num_classes: int) -> SearchSpace:
    import timm

    if not teacher.endswith(".py") and not timm.is_model(teacher):
        raise RequestError(f"--space derived:{teacher}: timm has no model of that name; give one, or a path ending in .py")
    model = untrained(teacher, num_classes)
    places = trunk(model, image_size)
    found = stages(model, places, image_size)
    if not found:
        seen = ", ".join(f"{place.name} ({place.channels} x {place.hw} px)" for place in places) or "none"
        raise TeacherError(
            f"{teacher} has no stage of {image_size // 4} px or less to derive a block from; modules seen: {seen}; "
            "a space of your own is given with --space my_space.py"
        )
    stem = Conv(image_size, 3, STEM, kernel=3, stride=2)
    first = DepthwiseSeparable(stem.out_hw, STEM, FIRST, kernel=3)
    factor = min(1.0, WIDEST / found[-1][-1].channels)
    blocks, hw, width = [Block.fixed("stem", stem, first)], first.out_hw, FIRST
    for number, stage in enumerate(found, 1):
        stride = next((stride for stride in (1, 2) if strided(hw, stride) == stage[-1].hw), None)
        if stride is None:
            raise TeacherError(
                f"{teacher}: {stage[-1].name} ends at {stage[-1].hw} px behind {hw} px, which is neither stride 1 nor 2; choose "
                "an --image-size that is a multiple of 32, or give a space of your own with --space my_space.py"
            )
        cout = max(8, round(factor * stage[-1].channels / 8) * 8)
        leading, hw = choices(hw, width, cout, stride), strided(hw, stride)
        following, width = choices(hw, cout, cout, 1), cout
        depths = range(1, min(len(stage), DEEPEST) + 1)
        blocks.append(Block(f"b{number}", tuple(Cell(f"d{depth}", (leading, *[following] * (depth - 1))) for depth in depths)))
    blocks.append(Block.fixed("head", Conv(hw, width, HEAD, kernel=1), Classifier(hw, HEAD, num_classes)))
    before = [place for place in places if place.hw == first.out_hw]
    cuts = (before[-1].name if before else None, *(stage[-1].name for stage in found))
    return SearchSpace(f"derived:{teacher}", image_size, num_classes, tuple(blocks), cuts)


def stages(model: "nn.Module", places: list[Place], image_size: int) -> list[list[Place]]:
    """The runs of trunk modules of one resolution and width, from a quarter of the image's side down.

    A module without any spatial convolution, such as the wide 1x1 before a classifier, is no stage.
    """
    found: list[list[Place]] = []
    for place in places:
        if place.hw > (image_size + 3) // 4 or not spatial(model.get_submodule(place.name)):
            continue
        if found and (found[-1][-1].hw, found[-1][-1].channels) == (place.hw, place.channels):
            found[-1].append(place)
        else:
            found.append([place])
    return found
