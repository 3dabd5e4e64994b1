"""The smallest space in which a block's width is a choice: the block behind it has cells for either width. 20 networks."""

from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.space import Block, Cell, Space


def lay_out(image_size, num_classes):
    half, quarter, eighth = image_size // 2, image_size // 4, image_size // 8

    def cell(hw, cin, cout, depth):
        first = tuple(MBConv(hw, cin, cout, kernel, 3, 2, act="silu", se=0.25) for kernel in (3, 5))
        more = (MBConv((hw + 1) // 2, cout, cout, 3, 3, act="silu"),)
        return Cell(f"{cin}-{cout}x{depth}", (first, *[more] * (depth - 1)))

    return (
        Block.fixed("stem", Conv(image_size, 3, 8, 3, 2)),
        Block("b1", (cell(half, 8, 16, 1), cell(half, 8, 16, 2), cell(half, 8, 24, 1))),
        Block("b2", (cell(quarter, 16, 32, 1), cell(quarter, 16, 32, 2), cell(quarter, 24, 32, 1))),
        Block.fixed("head", Conv(eighth, 32, 48, 1), Classifier(eighth, 48, num_classes)),
    )


SPACE = Space("widths", smallest_image=16, lay_out=lay_out)
