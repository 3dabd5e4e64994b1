"""The search space: blocks, their cells, and the ops each layer of a cell chooses from."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from dna_deploy.errors import RequestError
from dna_deploy.ops import Op


@dataclass(frozen=True)
class Cell:
    """A depth and a width a block can have: for each layer the ops to choose from."""

    name: str
    layers: tuple[tuple[Op, ...], ...]

    @property
    def size(self) -> int:
        return math.prod(len(choices) for choices in self.layers)


@dataclass(frozen=True)
class Candidate:
    """One way through one cell: an op for each of its layers."""

    cell: Cell
    choice: tuple[int, ...]

    @property
    def ops(self) -> tuple[Op, ...]:
        return tuple(choices[index] for choices, index in zip(self.cell.layers, self.choice, strict=True))

    @property
    def text(self) -> str:
        """Its name within the block, such as `d3: k3e6 k5e3 k3e3`."""
        return f"{self.cell.name}: {' '.join(op.label for op in self.ops)}"


@dataclass(frozen=True)
class Block:
    """A part of the network that is searched, and trained, on its own. Stem and head are blocks with one candidate."""

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        first = self.cells[0].layers
        for cell in self.cells:
            for before, after in itertools.pairwise(cell.layers):
                for op, following in itertools.product(before, after):
                    assert op.out_shape == following.in_shape, f"{self.name}: {op.key} does not feed {following.key}"
            assert cell.layers[0][0].in_shape == first[0][0].in_shape, f"{self.name}: cells with different inputs"

    @property
    def size(self) -> int:
        return sum(cell.size for cell in self.cells)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate, cell by cell, in the order the ratings are stored in."""
        return tuple(
            Candidate(cell, choice)
            for cell in self.cells
            for choice in itertools.product(*(range(len(choices)) for choices in cell.layers))
        )

    def candidate(self, text: str) -> Candidate:
        """The candidate with this text."""
        name, _, labels = text.partition(": ")
        for cell in self.cells:
            if cell.name == name:
                wanted = labels.split(" ")
                names = [[op.label for op in choices] for choices in cell.layers]
                if len(wanted) == len(names) and all(label in row for label, row in zip(wanted, names, strict=True)):
                    return Candidate(cell, tuple(row.index(label) for label, row in zip(wanted, names, strict=True)))
        raise RequestError(
            f"{self.name} has no candidate {text!r}; cells: {', '.join(cell.name for cell in self.cells)}; "
            f"ops: {', '.join(dict.fromkeys(op.label for op in self.cells[0].layers[0]))}"
        )

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return self.cells[0].layers[0][0].in_shape

    @property
    def out_hw(self) -> int:
        """The side of its output in pixels, the same for every cell; 1 where the output is class scores."""
        shape = self.cells[0].layers[-1][0].out_shape
        return shape[-1] if len(shape) == 3 else 1


@dataclass(frozen=True)
class SearchSpace:
    """A space at one input size and class count: every combination of one candidate a block is a network."""

    name: str
    image_size: int
    num_classes: int
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """How many networks there are."""
        return math.prod(block.size for block in self.blocks)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every op that stands anywhere in the space, once, in the order of the network."""
        places = (op for block in self.blocks for cell in block.cells for choices in cell.layers for op in choices)
        return tuple(dict.fromkeys(places))


@dataclass(frozen=True)
class Space:
    """What each file of `spaces/` offers as SPACE: a name and how to lay the space out for an input."""

    name: str
    smallest_image: int
    lay_out: Callable[[int, int], tuple[Block, ...]]

    def at(self, image_size: int, num_classes: int) -> SearchSpace:
        if image_size < self.smallest_image:
            raise RequestError(f"--image-size {image_size}: space {self.name} needs at least {self.smallest_image} pixels a side")
        if num_classes < 2:
            raise RequestError(f"a classifier needs at least 2 classes, the data has {num_classes}")
        return SearchSpace(self.name, image_size, num_classes, self.lay_out(image_size, num_classes))
