"""The search space: blocks, their cells, and the ops each layer of a cell chooses from.

Depth and width are choices of the cell. Where the cells of a block differ in width, the block behind it has cells for
each width it can meet, and two blocks fit together where the one puts out what the other takes in: every op has its exact
shape wherever it is timed, trained, rated or built, and a network is a chain of cells that fit.
"""

import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from dna_deploy.errors import RequestError
from dna_deploy.ops import Op
from dna_deploy.plugins import blamed


@dataclass(frozen=True)
class Cell:
    """A depth and a width a block can have, behind one width: for each layer the ops to choose from."""

    name: str
    layers: tuple[tuple[Op, ...], ...]

    @property
    def size(self) -> int:
        return math.prod(len(choices) for choices in self.layers)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return self.layers[0][0].in_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.layers[-1][0].out_shape

    @cached_property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """What the choices of each layer are called: no two of a layer alike, which its block requires."""
        return tuple(_told_apart(choices) for choices in self.layers)


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
        labels = (names[index] for names, index in zip(self.cell.labels, self.choice, strict=True))
        return f"{self.cell.name}: {' '.join(labels)}"


@dataclass(frozen=True)
class Block:
    """A part of the network that is searched, and trained, on its own. Stem and head are blocks with one candidate."""

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        for cell in self.cells:
            _require(bool(cell.layers) and all(cell.layers), f"{self.name}, cell {cell.name}: a layer without ops")
            for names in cell.labels:
                _require(
                    len(set(names)) == len(names),
                    f"{self.name}, cell {cell.name}: two choices of a layer called the same: {', '.join(names)}",
                )
        ends = {(cell.in_shape[1], cell.out_shape[1:]) for cell in self.cells}
        _require(len(ends) == 1, f"{self.name}: cells of different resolutions")
        _require(len({cell.name for cell in self.cells}) == len(self.cells), f"{self.name}: two cells of one name")
        for cell in self.cells:
            for before, after in itertools.pairwise(cell.layers):
                for op, following in itertools.product(before, after):
                    _require(op.out_shape == following.in_shape, f"{self.name}: {op.key} does not feed {following.key}")
            for op in cell.layers[0]:
                _require(op.in_shape == cell.in_shape, f"{self.name}: {op.key} takes another shape than its neighbours")
            for op in cell.layers[-1]:
                _require(op.out_shape == cell.out_shape, f"{self.name}: {op.key} gives another shape than its neighbours")

    @staticmethod
    def fixed(name: str, *ops: Op) -> "Block":
        """A block without a choice."""
        return Block(name, (Cell("only", tuple((op,) for op in ops)),))

    @property
    def size(self) -> int:
        return sum(cell.size for cell in self.cells)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every op that stands anywhere in the block, once, in the order of the network."""
        return tuple(dict.fromkeys(op for cell in self.cells for choices in cell.layers for op in choices))

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
                if len(wanted) == len(cell.labels) and all(map(operator.contains, cell.labels, wanted)):
                    return Candidate(cell, tuple(names.index(label) for names, label in zip(cell.labels, wanted, strict=True)))
        raise RequestError(
            f"{self.name} has no candidate {text!r}; cells: {', '.join(cell.name for cell in self.cells)}; "
            f"ops: {', '.join(dict.fromkeys(label for cell in self.cells for names in cell.labels for label in names))}"
        )

    @property
    def widths_in(self) -> tuple[int, ...]:
        """The channels it can be given, each once; one where the block before it has one width."""
        return tuple(dict.fromkeys(cell.in_shape[0] for cell in self.cells))

    @property
    def widths_out(self) -> tuple[int, ...]:
        """The channels (or class scores) it can put out."""
        return tuple(dict.fromkeys(cell.out_shape[0] for cell in self.cells))

    @property
    def out_hw(self) -> int:
        """The side of its output in pixels, the same for every cell; 1 where the output is class scores."""
        shape = self.cells[0].out_shape
        return shape[-1] if len(shape) == 3 else 1


@dataclass(frozen=True)
class SearchSpace:
    """A space at one input size and class count: every chain of one candidate a block whose widths fit is a network."""

    name: str
    image_size: int
    num_classes: int
    blocks: tuple[Block, ...]
    cuts: tuple[str | None, ...] = ()  # the modules of the teacher it was derived from behind which its blocks end; () otherwise

    def __post_init__(self) -> None:
        for block, following in itertools.pairwise(self.blocks):
            widths = f"{block.name} puts out {block.widths_out} channels, {following.name} takes {following.widths_in}"
            _require(set(block.widths_out) == set(following.widths_in), widths)
        names = [block.name for block in self.blocks]
        _require(len(set(names)) == len(names), f"two blocks of one name: {', '.join(names)}")
        scores = f"{names[-1]} puts out {self.blocks[-1].widths_out} class scores, the data has {self.num_classes} classes"
        _require(self.blocks[-1].widths_out == (self.num_classes,), scores)

    @property
    def size(self) -> int:
        """How many networks there are."""
        ways = {self.blocks[0].widths_in[0]: 1}  # to arrive at a width
        for block in self.blocks:
            before, ways = ways, dict.fromkeys(block.widths_out, 0)
            for cell in block.cells:
                ways[cell.out_shape[0]] += before[cell.in_shape[0]] * cell.size
        return sum(ways.values())

    @cached_property
    def sha256(self) -> str:
        """Of everything that can be chosen, in its order: another one where a space of this name was edited."""
        keys = {op: op.key for op in self.ops}
        blocks = [
            [block.name, [[cell.name, [[keys[op] for op in choices] for choices in cell.layers]] for cell in block.cells]]
            for block in self.blocks
        ]
        return hashlib.sha256(json.dumps(blocks).encode()).hexdigest()

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every op that stands anywhere in the space, once, in the order of the network."""
        return tuple(dict.fromkeys(op for block in self.blocks for op in block.ops))


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
        return _laid_out(self, image_size, num_classes)


@lru_cache(maxsize=64)
def _laid_out(space: Space, image_size: int, num_classes: int) -> SearchSpace:
    with blamed(Path(inspect.getfile(sys.modules[space.lay_out.__module__]))):
        return SearchSpace(space.name, image_size, num_classes, space.lay_out(image_size, num_classes))


def _told_apart(choices: Sequence[Op]) -> tuple[str, ...]:
    """The ops' labels; where two are alike, with the settings in which they differ: `k3e6,se=0.25`."""
    names = []
    for op in choices:
        alike = [other for other in choices if other.label == op.label and other.kind == op.kind]
        fields = [field.name for field in dataclasses.fields(op) if len({getattr(other, field.name) for other in alike}) > 1]
        names.append(",".join([op.label, *(f"{name}={getattr(op, name)}" for name in fields)]))
    return tuple(names)


def _require(sound: bool, message: str) -> None:
    if not sound:
        raise RequestError(f"the search space is not sound: {message}")
