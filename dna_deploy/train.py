"""Train a whole network on labels, and under a teacher where there is one: the teacher's fine-tuning, the student's finish."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from dna_deploy.checkpoint import load_checkpoint, save_checkpoint
from dna_deploy.data import Images, Preprocessing, augmented, epoch_batches
from dna_deploy.distill import set_rate
from dna_deploy.errors import MachineError
from dna_deploy.progress import bar


@dataclass(frozen=True)
class Training:
    """How a whole network is trained."""

    epochs: int = 4
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    teacher_share: float = 0.7  # of the loss that comes from the teacher's logits, the rest from the labels
    temperature: float = 2.0
    seed: int = 0


def train(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    how: Training,
    checkpoint: Path,
    text: str,
    teacher: nn.Module | None = None,
) -> None:
    """Train in place; continues from `checkpoint`, written after every epoch, and leaves the weights in eval mode."""
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    first = load_checkpoint(checkpoint, network, optimizer)
    steps = len(epoch_batches(len(images), how.batch, how.seed, 0))
    device = next(network.parameters()).device
    labels = images.labels
    with bar(text, how.epochs * steps) as advance:
        advance(first * steps)
        for epoch in range(first, how.epochs):
            network.train()
            for number, places in enumerate(epoch_batches(len(images), how.batch, how.seed, epoch)):
                at = epoch * steps + number
                x = preprocessing(augmented(images.batch(places), how.seed * 1_000_003 + at)).to(device)
                set_rate(optimizer, how.learning_rate, at / (how.epochs * steps))
                optimizer.zero_grad(set_to_none=True)
                logits = network(x)
                loss = functional.cross_entropy(
                    logits, labels[places].to(device), label_smoothing=0.1 if teacher is None else 0.0
                )
                if teacher is not None:
                    with torch.no_grad():
                        taught = teacher(x)
                    loss = (1 - how.teacher_share) * loss + how.teacher_share * _divergence(logits, taught, how.temperature)
                loss.backward()  # type: ignore[no-untyped-call]
                if not math.isfinite(loss.detach()):
                    raise MachineError(f"{text}: the loss became {loss.item()} in epoch {epoch + 1}; lower the learning rate")
                optimizer.step()
                advance(1)
            save_checkpoint(checkpoint, network, optimizer, epoch + 1)
    network.eval()


def _divergence(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence from the teacher's softened classes (Hinton et al., 2015), scaled back by the temperature squared."""
    own, other = (functional.log_softmax(values / temperature, dim=1) for values in (logits, taught))
    return functional.kl_div(own, other, reduction="batchmean", log_target=True) * temperature**2


def settle_statistics(
    network: nn.Module, images: Images, preprocessing: Preprocessing, places: Sequence[int], batch: int = 64
) -> None:
    """Replace all running BatchNorm statistics by those of the images at `places`: ops that meet for the first time."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    device = next(network.parameters()).device
    network.train()
    with torch.no_grad():
        for start in range(0, len(places), batch):
            network(preprocessing(images.batch(places[start : start + batch])).to(device))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def logits_of(network: nn.Module, images: Images, preprocessing: Preprocessing, batch: int = 64) -> torch.Tensor:
    """The network's class scores for every image, (N, classes), on the CPU."""
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        starts = range(0, len(images), batch)
        places = (range(start, min(start + batch, len(images))) for start in starts)
        return torch.cat([network(preprocessing(images.batch(list(some))).to(device)).cpu() for some in places])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose highest score is that of their label."""
    return float((logits.argmax(1) == labels).double().mean())
