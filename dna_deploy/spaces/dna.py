"""The search space of DNA (Li et al., CVPR 2020, arXiv 1911.13053): 16 cells of six blocks, 1.96e17 networks.

Every layer is an MBConv with kernel 3, 5 or 7 and expansion 3 or 6, squeeze-and-excitation to 0.25 of its input
channels, and SiLU. Blocks 1, 4 and 5 choose between two widths, so blocks 2, 5 and 6 have each of their cells once for
each width they can be given; a cell is called by its widths and depth: `24-40x3` takes 24 channels, has 3 layers of 40.
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
SQUEEZE = 0.25
STEM, FIRST, HEAD = 32, 16, 1280
STAGES = (  # stride of the first layer, then the cells: layers and output channels
    (2, ((2, 24), (3, 24), (2, 32))),
    (2, ((2, 40), (3, 40), (4, 40))),
    (2, ((2, 80), (3, 80), (4, 80))),
    (1, ((3, 112), (4, 112), (4, 96))),
    (2, ((4, 192), (5, 192), (5, 160))),
    (1, ((1, 320),)),
)


def lay_out(image_size: int, num_classes: int) -> tuple[Block, ...]:
    stem = Conv(image_size, 3, STEM, kernel=3, stride=2, act="silu")
    first = DepthwiseSeparable(stem.out_hw, STEM, FIRST, kernel=3, act="silu")
    blocks = [Block.fixed("stem", stem, first)]
    hw, widths = first.out_hw, [FIRST]
    for number, (stride, shapes) in enumerate(STAGES, 1):
        cells = [_cell(hw, cin, cout, stride, depth) for cin in widths for depth, cout in shapes]
        blocks.append(Block(f"b{number}", tuple(cells)))
        hw, widths = strided(hw, stride), list(dict.fromkeys(cout for _, cout in shapes))
    (width,) = widths
    head = Conv(hw, width, HEAD, kernel=1, act="silu")
    blocks.append(Block.fixed("head", head, Classifier(hw, HEAD, num_classes)))
    return tuple(blocks)


def _cell(hw: int, cin: int, cout: int, stride: int, depth: int) -> Cell:
    following = _choices(strided(hw, stride), cout, cout, 1)
    return Cell(f"{cin}-{cout}x{depth}", (_choices(hw, cin, cout, stride), *[following] * (depth - 1)))


def _choices(hw: int, cin: int, cout: int, stride: int) -> tuple[Op, ...]:
    pairs = [(kernel, expand) for kernel in KERNELS for expand in EXPANSIONS]
    return tuple(MBConv(hw, cin, cout, kernel, expand, stride, act="silu", se=SQUEEZE) for kernel, expand in pairs)


SPACE = Space("dna", smallest_image=32, lay_out=lay_out)
