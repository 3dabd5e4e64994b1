"""An architecture: one candidate for each block of a space, and the files it is kept in."""

import hashlib
import itertools
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.errors import DnaError, RequestError
from dna_deploy.files import read_json, write_json
from dna_deploy.ops import Op
from dna_deploy.plugins import find, knows
from dna_deploy.space import Candidate, SearchSpace

if TYPE_CHECKING:
    from torch import nn

SCHEMA = "dna-deploy/architecture/1"


@dataclass(frozen=True)
class Architecture:
    """A network of a space. `candidates` holds one candidate for each block, in order, of widths that fit."""

    space: SearchSpace
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        for before, after in itertools.pairwise(self.candidates):
            if before.cell.out_shape != after.cell.in_shape:
                out, into = before.cell.out_shape[0], after.cell.in_shape[0]
                raise RequestError(f"{before.text!r} puts out {out} channels, {after.text!r} behind it takes {into}")

    @property
    def ops(self) -> tuple[Op, ...]:
        """The network as a list of ops: whatever it costs is a sum over this list."""
        return tuple(op for candidate in self.candidates for op in candidate.ops)

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def params(self) -> int:
        return sum(op.params for op in self.ops)

    @property
    def text(self) -> str:
        """The searched blocks only, such as `d2: k3e6 k5e3 | d1: k7e3 | ...`."""
        searched = zip(self.space.blocks, self.candidates, strict=True)
        return " | ".join(candidate.text for block, candidate in searched if block.size > 1)

    @property
    def key(self) -> str:
        """Its text in latency tables: `mobile(96, 4): only: conv3 ds3 | d2: k3e6 k5e3 | ... #1f0c9a2b`.

        The number stands for its ops: a space whose file was edited since may have a network of the same text, of other widths.
        """
        everything = " | ".join(candidate.text for candidate in self.candidates)
        digest = hashlib.sha256("\n".join(op.key for op in self.ops).encode()).hexdigest()[:8]
        return f"{self.space.name}({self.space.image_size}, {self.space.num_classes}): {everything} #{digest}"

    @staticmethod
    def is_key(key: str) -> bool:
        """Whether a table's key is a network's rather than an op's."""
        return "): " in key

    @staticmethod
    def is_known(key: str) -> bool:
        """Whether a network's key is of a space known here (one of the user's own is, once its file was named) that still has
        such a network."""
        try:
            return knows("spaces", key.partition("(")[0]) and bool(Architecture.parse(key))
        except DnaError:
            return False

    @staticmethod
    def parse(key: str) -> "Architecture":
        """The architecture a key stands for; `parse(arch.key) == arch`."""
        match = re.fullmatch(r"(.+)\((\d+), (\d+)\): (.+) #[0-9a-f]{8}", key)
        if match is None:
            example = "mobile(96, 4): only: conv3 ds3 | d1: k3e6 | ... #1f0c9a2b"
            raise RequestError(f"{key!r} is no network; expected for example {example!r}")
        space: SearchSpace = find("spaces", match[1]).at(int(match[2]), int(match[3]))
        texts = match[4].split(" | ")
        if len(texts) != len(space.blocks):
            raise RequestError(f"{key!r} names {len(texts)} blocks; space {space.name} has {len(space.blocks)}")
        found = Architecture(space, tuple(block.candidate(text) for block, text in zip(space.blocks, texts, strict=True)))
        if found.key != key:
            raise RequestError(f"{key!r}: space {space.name} was edited since, its network of that text has other ops")
        return found

    def module(self, padding: str = "") -> "nn.Sequential":
        """The network, weights at random: one child a block, each a sequence of its ops; `padding` as in `Op.module`."""
        from torch import nn

        network = nn.Sequential()
        for block, candidate in zip(self.space.blocks, self.candidates, strict=True):
            network.add_module(block.name, nn.Sequential(*(op.module(padding) for op in candidate.ops)))
        return network

    def save(self, path: Path) -> None:
        blocks = zip(self.space.blocks, self.candidates, strict=True)
        named = {block.name: candidate.text for block, candidate in blocks}
        write_json(path, _File(self.space.name, self.space.image_size, self.space.num_classes, named))

    @staticmethod
    def load(path: Path) -> "Architecture":
        file = read_json(path, _File)
        space: SearchSpace = find("spaces", file.space).at(file.image_size, file.num_classes)
        names = [block.name for block in space.blocks]
        if list(file.blocks) != names:
            raise RequestError(f"{path}: blocks {', '.join(file.blocks)}; space {space.name} has {', '.join(names)}")
        return Architecture(space, tuple(block.candidate(file.blocks[block.name]) for block in space.blocks))


@dataclass(frozen=True)
class _File:
    space: str
    image_size: int
    num_classes: int
    blocks: dict[str, str] = field(default_factory=dict)
    schema: str = SCHEMA


def sample(space: SearchSpace, rng: random.Random) -> Architecture:
    """A network drawn block by block: uniformly a cell that fits behind the one before, then each layer's op."""
    candidates: list[Candidate] = []
    shape: tuple[int, ...] = space.blocks[0].cells[0].in_shape
    for block in space.blocks:
        cell = rng.choice([cell for cell in block.cells if cell.in_shape == shape])
        shape = cell.out_shape
        candidates.append(Candidate(cell, tuple(rng.randrange(len(choices)) for choices in cell.layers)))
    return Architecture(space, tuple(candidates))
