"""Rate every candidate of every block: how well does it imitate its part of the teacher, with its own BatchNorm statistics.

The candidates of a block form a tree of shared beginnings, walked depth-first: each beginning is computed once. A
BatchNorm trained under random neighbours has statistics of none of them, so in the walk every layer is normalised by
those of the images it is rated on (labels are not used, and the test set is never seen).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from dna_deploy.arch import Architecture
from dna_deploy.data import evenly
from dna_deploy.lessons import Lessons
from dna_deploy.progress import bar
from dna_deploy.ratings import Rating
from dna_deploy.space import Candidate, Cell
from dna_deploy.supernet import PieceSupernet, Supernet


def rate(supernet: Supernet, lessons: Lessons, places: Sequence[int], batch: int = 64) -> list[Rating]:
    """The ratings of every candidate of every searched block, averaged over batches of the images at `places`."""
    batches = evenly(places, batch)
    sums: dict[tuple[str, str], torch.Tensor] = {}  # they stay on the device: asking a GPU for each would stall it
    total = sum(part.piece.block.size for part in _searched(supernet)) * len(batches)
    supernet.train()  # BatchNorm by the batch's own statistics
    with torch.no_grad(), frozen_statistics(supernet), bar("rating every candidate", total) as advance:
        for some, (image, features) in zip(batches, lessons.batches([(some, None) for some in batches]), strict=True):
            for part, into, target in supernet.lessons(image, features):
                if part.piece.block.size == 1:
                    continue
                for candidate, y in outputs(part, into):
                    share = len(some) / len(places)
                    key = (part.piece.block.name, candidate.text)
                    found = scores(y, target) * share
                    sums[key] = sums[key] + found if key in sums else found
                    advance(1)
    values = torch.stack(list(sums.values())).tolist() if sums else []
    return [Rating(block, text, l1, nsr) for (block, text), (l1, nsr) in zip(sums, values, strict=True)]


def replace_one(
    supernet: Supernet, lessons: Lessons, reference: Architecture, places: Sequence[int], batch: int = 64
) -> dict[tuple[str, str], float]:
    """By block and candidate: how far the whole network is from the teacher with the candidate in the reference's place.

    The distance is the divergence (KL, in nats) of the class probabilities, averaged over images. The network is the chain
    of the trained pieces, adapters included. What a block is worth depends on the others: take a reference of the target's
    size, not the largest (on NAS-Bench-Macro, with true accuracies, Kendall tau .82 against .73). It costs about three
    times what `rate` does, for the blocks behind the replaced one are computed anew.
    """
    batches = evenly(places, batch)
    by_name = {block.name: own for block, own in zip(reference.space.blocks, reference.candidates, strict=True)}
    chain = [(part, by_name[part.piece.block.name]) for part in supernet.pieces]
    sums: dict[tuple[str, str], torch.Tensor] = {}
    supernet.train()
    with torch.no_grad(), frozen_statistics(supernet), bar("replacing one block", len(batches) * len(chain)) as advance:
        for some, (x, features) in zip(batches, lessons.batches([(some, None) for some in batches]), strict=True):
            taught = features[-1].log_softmax(1)
            for at, (part, own) in enumerate(chain):
                if part.piece.block.size > 1:
                    for candidate, y in outputs(part, x):
                        for behind, chosen in chain[at + 1 :]:
                            y = behind(y, chosen)
                        divergence = functional.kl_div(y.log_softmax(1), taught, reduction="batchmean", log_target=True)
                        key = (part.piece.block.name, candidate.text)
                        found = divergence.double() * len(some) / len(places)
                        sums[key] = sums[key] + found if key in sums else found
                x = part(x, own)
                advance(1)
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))


def outputs(part: PieceSupernet, x: torch.Tensor) -> Iterator[tuple[Candidate, torch.Tensor]]:
    """Every candidate of a piece with its output for the features `x`, each shared beginning computed once."""
    piece = part.piece

    def walk(x: torch.Tensor, chosen: tuple[int, ...], cells: Sequence[Cell]) -> Iterator[tuple[Candidate, torch.Tensor]]:
        depth = len(chosen)
        for cell in cells:
            if len(cell.layers) == depth:
                y = x
                for behind, op in enumerate(piece.after, len(piece.before) + depth):
                    y = part.op(behind, op)(y)
                yield Candidate(cell, chosen), part.leave[cell.name](y)
        deeper = [cell for cell in cells if len(cell.layers) > depth]
        for choices in dict.fromkeys(cell.layers[depth] for cell in deeper):
            sharing = [cell for cell in deeper if cell.layers[depth] == choices]
            for index, op in enumerate(choices):
                yield from walk(part.op(len(piece.before) + depth, op)(x), (*chosen, index), sharing)

    for width, enter in part.enter.items():
        y = enter(x)
        for depth, op in enumerate(piece.before):
            y = part.op(depth, op)(y)
        yield from walk(y, (), [cell for cell in piece.block.cells if piece.before or str(cell.in_shape[0]) == width])


def scores(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(relative L1, noise-to-signal ratio) of an output against the teacher's features, float64."""
    dims = [0, *range(2, target.ndim)]
    difference = y - target
    l1 = difference.abs().mean() / target.std()
    nsr = (difference.square().mean(dims) / (target.var(dims, correction=0) + 1e-6)).mean()
    return torch.stack([l1, nsr]).double()


class frozen_statistics:
    """Normalise by each batch's own statistics without touching the running ones."""

    def __init__(self, network: nn.Module) -> None:
        self.norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.track_running_stats = False

    def __exit__(self, *error: object) -> None:
        for norm in self.norms:
            norm.track_running_stats = True


def _searched(supernet: Supernet) -> list[PieceSupernet]:
    return [part for part in supernet.pieces if part.piece.block.size > 1]
