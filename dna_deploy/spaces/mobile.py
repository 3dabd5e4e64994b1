"""DNA's op set on the widths of ProxylessNAS's mobile space, for which a table of a real Pixel 1 was published.

Every layer is an MBConv with kernel 3, 5 or 7 and expansion 3 or 6 (DNA: Li et al., CVPR 2020, arXiv 1911.13053);
widths and strides are those of the table in `latency_tables/pixel1.jsonl`, so that at 224 pixels and 1000 classes
every op of the space stands in it.
"""

from dna_deploy.ops import Op
from dna_deploy.ops._op import strided
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.space import Block, Cell, Space

KERNELS = (3, 5, 7)
EXPANSIONS = (3, 6)
STEM, FIRST, HEAD = 32, 16, 1280
STAGES = (  # output channels, stride of the first layer, depths to choose from
    (24, 2, (1, 2, 3)),
    (40, 2, (1, 2, 3)),
    (80, 2, (1, 2, 3, 4)),
    (96, 1, (1, 2, 3)),
    (192, 2, (1, 2, 3, 4)),
    (320, 1, (1,)),
)


def lay_out(image_size: int, num_classes: int) -> tuple[Block, ...]:
    stem = Conv(image_size, 3, STEM, kernel=3, stride=2)
    first = DepthwiseSeparable(stem.out_hw, STEM, FIRST, kernel=3)
    blocks = [Block.fixed("stem", stem, first)]
    hw, channels = first.out_hw, FIRST
    for number, (width, stride, depths) in enumerate(STAGES, 1):
        leading = choices(hw, channels, width, stride)
        hw, channels = strided(hw, stride), width
        following = choices(hw, width, width, 1)
        cells = tuple(Cell(f"d{depth}", (leading, *[following] * (depth - 1))) for depth in depths)
        blocks.append(Block(f"b{number}", cells))
    blocks.append(Block.fixed("head", Conv(hw, channels, HEAD, kernel=1), Classifier(hw, HEAD, num_classes)))
    return tuple(blocks)


def choices(hw: int, cin: int, cout: int, stride: int) -> tuple[Op, ...]:
    return tuple(MBConv(hw, cin, cout, kernel, expand, stride) for kernel in KERNELS for expand in EXPANSIONS)


SPACE = Space("mobile", smallest_image=32, lay_out=lay_out)
