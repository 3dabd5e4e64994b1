"""NAS-Bench-Macro (Su et al., CVPR 2021) as a search space, and the accuracies its 6,561 networks reached on CIFAR-10.

Eight layers in three stages, three ops each: nothing (a 1x1 convolution where the shape changes), MBConv with kernel 3
and expansion 3, MBConv with kernel 5 and expansion 6. The data's key of a network is its eight op digits.
"""

import gzip
import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.ops import Op
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.space import Block, Cell, SearchSpace, Space

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.graph import Graph

FILE = Path(__file__).parent.parent.parent / "shared" / "ranking-data" / "nas-bench-macro.json.gz"
STEM, HEAD = 32, 1280
STAGES = ((64, 2), (128, 3), (256, 3))  # channels, layers; the first layer of each halves the resolution


@dataclass(frozen=True)
class Skip(Op):
    """No layer at all: its cost is nothing by construction, not an unknown."""

    @property
    def label(self) -> str:
        return "skip"

    @property
    def macs(self) -> int:
        return 0

    @property
    def params(self) -> int:
        return 0

    def module(self, padding: str = "") -> "nn.Module":
        from torch import nn

        return nn.Identity()

    def write(self, graph: "Graph", x: str) -> str:
        return x


def lay_out(image_size: int, num_classes: int) -> tuple[Block, ...]:
    blocks = [_single("stem", Conv(image_size, 3, STEM, kernel=3, act="relu"))]
    hw, channels = image_size, STEM
    for number, (width, depth) in enumerate(STAGES, 1):
        leading = (
            Conv(hw, channels, width, kernel=1, stride=2, act="identity"),
            MBConv(hw, channels, width, kernel=3, expand=3, stride=2, act="relu"),
            MBConv(hw, channels, width, kernel=5, expand=6, stride=2, act="relu"),
        )
        hw, channels = leading[0].out_hw, width
        following = (
            Skip(hw, width, width),
            MBConv(hw, width, width, 3, 3, act="relu"),
            MBConv(hw, width, width, 5, 6, act="relu"),
        )
        blocks.append(Block(f"b{number}", (Cell("all", (leading, *[following] * (depth - 1))),)))
    head = (Conv(hw, channels, HEAD, kernel=1, act="relu"), Classifier(hw, HEAD, num_classes))
    return (*blocks, _single("head", *head))


def _single(name: str, *ops: Op) -> Block:
    return Block(name, (Cell("only", tuple((op,) for op in ops)),))


SPACE = Space("nas-bench-macro", smallest_image=8, lay_out=lay_out)


@dataclass(frozen=True)
class Truth:
    """All networks of the space, trained: row i of `choices` holds the candidate of each searched block of network i."""

    choices: np.ndarray
    runs: np.ndarray  # (networks, 3): test accuracy in per cent of three trainings
    flops: np.ndarray
    params: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        return self.runs.mean(1)


@cache
def truth() -> Truth:
    data = json.loads(gzip.decompress(FILE.read_bytes()))
    keys = ["".join(digits) for digits in itertools.product("012", repeat=8)]
    ends = list(itertools.accumulate((depth for _, depth in STAGES), initial=0))
    choices = [[int(key[a:b], 3) for a, b in itertools.pairwise(ends)] for key in keys]  # candidates count up like digits
    rows = [data[key] for key in keys]
    return Truth(
        np.array(choices),
        np.array([row["test_acc"] for row in rows]),
        np.array([row["flops"] for row in rows]),
        np.array([row["params"] for row in rows]),
    )


def searched(space: SearchSpace) -> list[Block]:
    return [block for block in space.blocks if block.size > 1]


def row_of(arch: Architecture) -> int:
    """A network's row in the truth, whose blocks have 9, 27 and 27 candidates."""
    chosen = zip(arch.space.blocks, arch.candidates, strict=True)
    choice = [block.candidates.index(candidate) for block, candidate in chosen if block.size > 1]
    return int(np.ravel_multi_index(choice, (9, 27, 27)))
