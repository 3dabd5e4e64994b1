"""The supernet: for each piece of the teacher, every op of every layer of the blocks that imitate it, with weights."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dna_deploy.arch import Architecture
from dna_deploy.errors import TeacherError
from dna_deploy.ops import Op
from dna_deploy.space import Block, Candidate, SearchSpace
from dna_deploy.teacher import Teacher


@dataclass(frozen=True)
class Piece:
    """What is trained on its own between two cuts: a searched block, with blocks without choices around it if need be."""

    before: tuple[Op, ...]
    block: Block
    after: tuple[Op, ...]
    channels_in: int  # of the teacher's features that go in; 3 for the image
    channels_out: int  # and of those it imitates; the number of classes for the last

    def ops(self, candidate: Candidate) -> tuple[Op, ...]:
        return (*self.before, *candidate.ops, *self.after)


def pieces(space: SearchSpace, teacher: Teacher) -> tuple[Piece, ...]:
    """The space divided where the teacher is cut."""
    made: list[Piece] = []
    waiting: list[Block] = []
    width = 3
    for block, place in zip(space.blocks, (*teacher.cuts, None), strict=True):
        waiting.append(block)
        last = block is space.blocks[-1]
        if place is None and not last:
            continue
        searched = [at for at, part in enumerate(waiting) if part.size > 1] or [0]
        if len(searched) > 1:
            names = ", ".join(waiting[at].name for at in searched)
            raise TeacherError(f"blocks {names} have choices but no cut of the teacher between them; give --cut")
        at = searched[0]
        single = [tuple(op for part in side for op in part.candidates[0].ops) for side in (waiting[:at], waiting[at + 1 :])]
        out = space.num_classes if last else place.channels if place is not None else 0
        made.append(Piece(single[0], waiting[at], single[1], width, out))
        waiting, width = [], out
    return tuple(made)


class PieceSupernet(nn.Module):
    """All candidates of one piece. Cells share the weights of the ops they have in common at the same depth.

    Where the student's width differs from the teacher's, a 1x1 adapter stands at that edge while training, so that the
    ops themselves have the shapes that are deployed; `build` folds the adapters away. Cells that take different widths have
    first layers of their own, each behind its own adapter from the teacher's width: what is rated is what is built.
    """

    def __init__(self, piece: Piece, padding: str = "") -> None:
        super().__init__()
        self.piece = piece
        self.ops = nn.ModuleList()
        self._index: dict[tuple[int, Op], int] = {}
        depths = [(*((op,) for op in piece.before), *cell.layers, *((op,) for op in piece.after)) for cell in piece.block.cells]
        for layers in depths:
            for depth, choices in enumerate(layers):
                for op in choices:
                    if (depth, op) not in self._index:
                        self._index[depth, op] = len(self.ops)
                        self.ops.append(op.module(padding))
        first, last = dict.fromkeys(layers[0][0].cin for layers in depths), [layers[-1][0] for layers in depths]
        self.enter = nn.ModuleDict({str(width): _adapter(piece.channels_in, width) for width in first})
        scores = len(last[0].out_shape) == 1  # the last piece ends in class scores, which need no adapter
        leaves = [nn.Identity() if scores else _adapter(op.cout, piece.channels_out) for op in last]
        self.leave = nn.ModuleDict(dict(zip((cell.name for cell in piece.block.cells), leaves, strict=True)))

    def op(self, depth: int, op: Op) -> nn.Module:
        return self.ops[self._index[depth, op]]

    def places(self) -> Iterator[tuple[tuple[int, Op], nn.Module]]:
        """Every op with the depth it stands at and its weights, from the input on."""
        return ((place, self.ops[index]) for place, index in sorted(self._index.items(), key=lambda item: item[0][0]))

    def forward(self, x: torch.Tensor, candidate: Candidate) -> torch.Tensor:
        """(N, channels_in, H, W), the teacher's features -> its next ones, (N, channels_out, H', W') or logits."""
        ops = self.piece.ops(candidate)
        x = self.enter[str(ops[0].cin)](x)
        for depth, op in enumerate(ops):
            x = self.op(depth, op)(x)
        y: torch.Tensor = self.leave[candidate.cell.name](x)
        return y


class Supernet(nn.Module):
    """Every piece of a space under one teacher."""

    def __init__(self, space: SearchSpace, teacher: Teacher, seed: int = 0) -> None:
        """Weights are drawn from the seed for each piece by its name, whatever else there is and was drawn before."""
        super().__init__()
        self.space = space
        self.padding = teacher.padding
        self.parts = nn.Module()
        for at, piece in enumerate(pieces(space, teacher)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random.Random(f"{seed}/{piece.block.name}").getrandbits(63))
                self.parts.add_module(str(at), PieceSupernet(piece, teacher.padding))
        self.to(memory_format=torch.channels_last)

    @property
    def pieces(self) -> list[PieceSupernet]:
        """The parts in the order of the network."""
        return list(self.by_place().values())

    def by_place(self) -> dict[int, PieceSupernet]:
        """The parts by their place among the teacher's pieces."""
        return {int(at): part for at, part in self.parts.named_children() if isinstance(part, PieceSupernet)}

    def keep(self, block: str) -> None:
        """Leave only the piece of this block: it is trained and rated alone as it is among the others."""
        for at, part in self.by_place().items():
            if part.piece.block.name != block:
                delattr(self.parts, str(at))

    def lessons(
        self, image: torch.Tensor, features: Sequence[torch.Tensor]
    ) -> Iterator[tuple[PieceSupernet, torch.Tensor, torch.Tensor]]:
        """Each part with what it gets, the image or the teacher's features before it, and what it is to imitate."""
        inputs = [image, *features[:-1]]
        return ((part, inputs[at], features[at]) for at, part in self.by_place().items())

    def build(self, arch: Architecture) -> nn.Sequential:
        """The network of `arch` with the weights its ops learned in their blocks, adapters folded into them."""
        network = arch.module(self.padding).to(memory_format=torch.channels_last)
        modules = [module for block in network.children() for module in block.children()]
        ops = arch.ops
        at, arriving = 0, None
        for part, candidate in zip(self.pieces, self._chosen(arch), strict=True):
            own = part.piece.ops(candidate)
            for depth, op in enumerate(own):
                assert ops[at + depth] == op
                modules[at + depth].load_state_dict(part.op(depth, op).state_dict())
            if arriving is not None:
                _fold(own[0], modules[at], arriving, part.enter[str(own[0].cin)])
            at, arriving = at + len(own), part.leave[candidate.cell.name]
        return network

    def adapters(self, arch: Architecture) -> nn.ModuleList:
        """What takes the outputs of that network's blocks to the teacher's widths, one for each cut there is."""
        leaves = [part.leave[candidate.cell.name] for part, candidate in zip(self.pieces, self._chosen(arch), strict=True)]
        return nn.ModuleList(leaves[:-1])

    def _chosen(self, arch: Architecture) -> list[Candidate]:
        by_name = {block.name: candidate for block, candidate in zip(arch.space.blocks, arch.candidates, strict=True)}
        return [by_name[part.piece.block.name] for part in self.pieces]


def _adapter(width: int, wanted: int) -> nn.Module:
    if width == wanted:
        return nn.Identity()
    conv = nn.Conv2d(width, wanted, 1)
    nn.init.orthogonal_(conv.weight)  # keeps the scale of the features it passes on
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _fold(op: Op, module: nn.Module, leave: nn.Module, enter: nn.Module) -> None:
    """Put the two adapters of an edge, student -> teacher -> student width, into the first op behind it.

    An op that cannot take them exactly starts without them and learns the difference in the training that follows.
    """
    if isinstance(leave, nn.Identity) and isinstance(enter, nn.Identity):
        return
    weight, bias = torch.eye(op.cin), torch.zeros(op.cin)
    for adapter in (leave, enter):
        if isinstance(adapter, nn.Conv2d) and adapter.bias is not None:
            kernel = adapter.weight.detach().cpu().flatten(1)
            weight, bias = kernel @ weight, kernel @ bias + adapter.bias.detach().cpu()
    op.absorb(module, weight, bias)
