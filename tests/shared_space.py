"""A space whose blocks choose from the same ops: 216 networks, in which an op can stand in each of three blocks."""

from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.space import Block, Cell, Space


def lay_out(image_size, num_classes):
    half = image_size // 2
    choices = tuple(MBConv(half, 16, 16, kernel, 3) for kernel in (3, 5))
    cells = (Cell("d1", (choices,)), Cell("d2", (choices, choices)))
    return (
        Block.fixed("stem", Conv(image_size, 3, 16, 3, 2)),
        *(Block(name, cells) for name in ("b1", "b2", "b3")),
        Block.fixed("head", Conv(half, 16, 32, 1), Classifier(half, 32, num_classes)),
    )


SPACE = Space("shared", smallest_image=16, lay_out=lay_out)
