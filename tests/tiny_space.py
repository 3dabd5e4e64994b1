"""The smallest space that has everything: two searched blocks, two depths, two ops: 18 networks."""

from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.space import Block, Cell, Space


def lay_out(image_size, num_classes):
    half, quarter, eighth = image_size // 2, image_size // 4, image_size // 8
    one = tuple(MBConv(half, 16, 24, kernel, 3, 2) for kernel in (3, 5))
    more = tuple(MBConv(quarter, 24, 24, kernel, 3) for kernel in (3, 5))
    two = tuple(MBConv(quarter, 24, 32, 3, expand, 2) for expand in (1, 3, 6))
    stem = (Conv(image_size, 3, 32, 3, 2), DepthwiseSeparable(half, 32, 16, 3))
    head = (Conv(eighth, 32, 64, 1), Classifier(eighth, 64, num_classes))
    return (
        Block("stem", (Cell("only", tuple((op,) for op in stem)),)),
        Block("b1", (Cell("d1", (one,)), Cell("d2", (one, more)))),
        Block("b2", (Cell("d1", (two,)),)),
        Block("head", (Cell("only", tuple((op,) for op in head)),)),
    )


SPACE = Space("tiny", smallest_image=16, lay_out=lay_out)
