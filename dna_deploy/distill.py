"""Block-wise distillation: every piece learns to imitate its part of the teacher, all of them in one teacher pass.

Piece k gets the teacher's features k-1 and is trained towards its features k, so the pieces are independent of each
other (DNA: Li et al., CVPR 2020). A step trains drawn paths only: one of each piece, or as many as a layer has ops.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dna_deploy.checkpoint import resume, save_checkpoint
from dna_deploy.data import epoch_batches, shares
from dna_deploy.errors import MachineError
from dna_deploy.lessons import Lessons
from dna_deploy.machine import CPU, Machine, one_update_a_step
from dna_deploy.progress import bar
from dna_deploy.space import Block, Candidate, SearchSpace
from dna_deploy.supernet import Supernet


@dataclass(frozen=True)
class Distillation:
    """How the supernet is trained.

    With `accumulate` a batch is worked in so many parts, for memory that does not hold it at once. The gradient is the mean
    over the images all the same, but statistics, those of BatchNorm and of the teacher's signal, are each part's own.
    """

    epochs: int = 4
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    fair: bool = False  # divide each batch among paths that use every op of a layer once (FairNAS: Chu et al., ICCV 2021)
    seed: int = 0


def noise_to_signal(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the target's variance, both per channel (N, C, ...), averaged over channels; in float32."""
    y, target = y.float(), target.float()
    dims = [0, *range(2, target.ndim)]
    error = (y - target).square().mean(dims)
    return (error / (target.var(dims, correction=0) + 1e-6)).mean()


def drawn_at(block: Block, how: Distillation, at: int) -> tuple[Candidate, ...]:
    """The paths of a block's step number `at`, whatever other blocks there are."""
    return draw(block, random.Random(f"{how.seed}/{block.name}/{at}"), how.fair)


def draw(block: Block, rng: random.Random, fair: bool = False) -> tuple[Candidate, ...]:
    """Paths through one cell of the block, all cells and ops equally likely: one path, or `fair` ones.

    These use every op of each layer once; a layer with fewer ops than another repeats some.
    """
    cell = rng.choice(block.cells)
    count = max(len(choices) for choices in cell.layers) if fair else 1
    columns = [_shuffled(len(choices), count, rng) for choices in cell.layers]
    return tuple(Candidate(cell, choice) for choice in zip(*columns, strict=True))


def _shuffled(ops: int, count: int, rng: random.Random) -> list[int]:
    order: list[int] = []
    while len(order) < count:
        order += rng.sample(range(ops), ops)
    return order[:count]


def step(
    supernet: Supernet,
    features: Sequence[torch.Tensor],
    image: torch.Tensor,
    paths: Sequence[Sequence[Candidate]],
    machine: Machine = CPU,
    weight: float = 1.0,
) -> list[torch.Tensor]:
    """Forward and backward of each piece's paths, piece by piece, so that only one path's activations are held.

    `features` are the teacher's, one for each piece; `image` is what the first piece gets. Several paths of a piece
    divide the batch among them. Returns the losses times `weight`, one a piece: the share of the images in the whole step.
    """
    losses = []
    for (part, into, target), drawn in zip(supernet.lessons(image, features), paths, strict=True):
        share = min(len(drawn), len(into))
        total = torch.zeros((), device=into.device)
        for path, x, y in zip(drawn[:share], into.tensor_split(share), target.tensor_split(share), strict=True):
            with machine.autocast():
                loss = noise_to_signal(part(x, path), y) / share * weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        losses.append(total)
    return losses


def require_parts(space: SearchSpace, how: Distillation, batch: int, machine: Machine) -> None:
    """Refuse a batch that is too small for the parts and paths it is divided among."""
    most = max(len(choices) for block in space.blocks for cell in block.cells for choices in cell.layers)
    machine.require_shares(batch, how.accumulate * (most if how.fair else 1), "--distill-batch")


def distill(supernet: Supernet, lessons: Lessons, how: Distillation, checkpoint: Path, machine: Machine = CPU) -> None:
    """Train the supernet; continues from `checkpoint`, written after every epoch, and leaves the result there.

    A checkpoint that was begun otherwise, or in a space that was edited since, is refused.
    """
    batch = min(how.batch, len(lessons))
    rate = how.learning_rate * math.sqrt(batch / how.batch)  # of Adam: Malladi et al., NeurIPS 2022
    require_parts(supernet.space, how, batch, machine)
    optimizer = torch.optim.AdamW(supernet.parameters(), rate, weight_decay=how.weight_decay, fused=machine.fused)
    asked = {"space": f"{supernet.space.name}#{supernet.space.sha256[:8]}", **asdict(how)}
    first = resume(checkpoint, supernet, optimizer, asked)
    if first >= how.epochs:
        return
    machine.begin(supernet)
    steps = len(epoch_batches(len(lessons), how.batch, how.seed, 0))
    supernet.train()
    with bar("distilling all blocks", how.epochs * steps) as advance, one_update_a_step(supernet, how.accumulate):
        advance(first * steps)
        for epoch in range(first, how.epochs):
            watch = Watch(
                f"distillation diverged in epoch {epoch + 1}", machine, [part.piece.block.name for part in supernet.pieces]
            )
            batches = epoch_batches(len(lessons), how.batch, how.seed, epoch)
            own = shares(batches, machine, how.accumulate, how.seed, epoch * steps)
            taught = lessons.batches([part for parts in own for part in parts])
            for at, (places, parts) in enumerate(zip(batches, own, strict=True), epoch * steps):
                set_rate(optimizer, rate, at / (how.epochs * steps))
                optimizer.zero_grad(set_to_none=True)
                paths = [drawn_at(part.piece.block, how, at) for part in supernet.pieces]
                for some, _ in parts:
                    with machine.autocast():
                        image, features = next(taught)
                    watch.add(step(supernet, features, image, paths, machine, len(some) / len(places)))
                machine.gather(supernet.parameters())
                optimizer.step()
                advance(1)
            watch.require_finite()
            machine.average(supernet)
            if machine.first:
                finished = epoch + 1 == how.epochs  # then the optimizer's state may go
                save_checkpoint(checkpoint, supernet, None if finished else optimizer, epoch + 1, asked)


class Watch:
    """Stops a training whose loss is no number any more.

    Losses are summed where they are, for such a one stays in the sum, and a GPU is asked rarely: it has to be waited for.
    """

    EVERY = 50  # additions

    def __init__(self, diverged: str, machine: Machine, names: Sequence[str] = ("",)) -> None:
        self.diverged, self.machine, self.names = diverged, machine, names
        self.sum = torch.zeros(1)
        self.count = 0

    def add(self, losses: Sequence[torch.Tensor]) -> None:
        found = torch.stack(list(losses))
        self.sum = self.sum + found if self.count else found
        self.count += 1
        if self.count % self.EVERY == 0:
            self.require_finite()

    def require_finite(self) -> None:
        losses = self.machine.sum(self.sum).tolist()  # all processes stop together
        if not all(map(math.isfinite, losses)):
            if not self.machine.first:
                raise SystemExit(MachineError.exit_code)
            each = [f"{name} {loss / self.count:.3g}".strip() for name, loss in zip(self.names, losses, strict=True)]
            raise MachineError(
                f"{self.diverged}: mean losses {', '.join(each)}; check images and "
                "teacher for NaN, lower the learning rate or the batch, or leave out --amp; the last whole epoch is kept"
            )


def set_rate(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    """Linear warm-up over a twentieth of the training, then a cosine down to a hundredth; `done` is 0 to 1."""
    rise = min(1.0, done / 0.05 + 0.02)
    fall = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = peak * min(rise, fall)
