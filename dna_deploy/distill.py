"""Block-wise distillation: every piece learns to imitate its part of the teacher, all of them in one teacher pass.

Piece k gets the teacher's features k-1 and is trained towards its features k, so the pieces are independent of each
other (DNA: Li et al., CVPR 2020). One path of each piece is drawn and trained a step.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dna_deploy.checkpoint import load_checkpoint, save_checkpoint
from dna_deploy.data import Images, augmented, epoch_batches
from dna_deploy.errors import MachineError
from dna_deploy.progress import bar
from dna_deploy.space import Block, Candidate
from dna_deploy.supernet import PieceSupernet, Supernet
from dna_deploy.teacher import Teacher


@dataclass(frozen=True)
class Distillation:
    """How the supernet is trained."""

    epochs: int = 4
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    seed: int = 0


def noise_to_signal(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the target's variance, both per channel (N, C, ...), averaged over channels."""
    dims = [0, *range(2, target.ndim)]
    error = (y - target).square().mean(dims)
    return (error / (target.var(dims, correction=0) + 1e-6)).mean()


def draw(block: Block, rng: random.Random) -> Candidate:
    """A path through the block: a cell, then an op for each layer, all equally likely."""
    cell = rng.choice(block.cells)
    return Candidate(cell, tuple(rng.randrange(len(choices)) for choices in cell.layers))


def step(
    supernet: Supernet, features: Sequence[torch.Tensor], image: torch.Tensor, paths: Sequence[Candidate]
) -> list[torch.Tensor]:
    """Forward and backward of one path of each piece, piece by piece, so that only one piece's activations are held.

    `features` are the teacher's, one for each piece; `image` is what the first piece gets. Returns the losses.
    """
    losses = []
    for part, into, target, path in zip(supernet.pieces, [image, *features[:-1]], features, paths, strict=True):
        loss = noise_to_signal(part(into, path), target)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses


def distill(supernet: Supernet, teacher: Teacher, images: Images, how: Distillation, checkpoint: Path) -> None:
    """Train the supernet; continues from `checkpoint`, written after every epoch, and leaves the result there."""
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    first = load_checkpoint(checkpoint, supernet, optimizer)
    if first >= how.epochs:
        return
    steps = len(epoch_batches(len(images), how.batch, how.seed, 0))
    device = next(supernet.parameters()).device
    supernet.train()
    with bar("distilling all blocks", how.epochs * steps) as advance:
        advance(first * steps)
        for epoch in range(first, how.epochs):
            for number, places in enumerate(epoch_batches(len(images), how.batch, how.seed, epoch)):
                at = epoch * steps + number
                rng = random.Random(f"{how.seed}/{at}")
                image = teacher.preprocessing(augmented(images.batch(places), how.seed * 1_000_003 + at)).to(device)
                features = teacher.features(image)
                set_rate(optimizer, how.learning_rate, at / (how.epochs * steps))
                optimizer.zero_grad(set_to_none=True)
                losses = step(supernet, features, image, [draw(part.piece.block, rng) for part in supernet.pieces])
                if not all(math.isfinite(loss) for loss in losses):
                    raise MachineError(
                        f"distillation diverged in epoch {epoch + 1}: losses {[f'{loss:.3g}' for loss in losses]}; "
                        "check the teacher's features for NaN, or lower --learning-rate; the last whole epoch is kept"
                    )
                optimizer.step()
                advance(1)
            save_checkpoint(checkpoint, supernet, optimizer, epoch + 1)


def set_rate(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    """Linear warm-up over a twentieth of the training, then a cosine down to a hundredth; `done` is 0 to 1."""
    rise = min(1.0, done / 0.05 + 0.02)
    fall = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = peak * min(rise, fall)


def _parts(supernet: Supernet) -> list[PieceSupernet]:
    return [part for part in supernet.parts if isinstance(part, PieceSupernet)]
