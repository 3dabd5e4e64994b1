"""Train a whole network on labels, and under a teacher where there is one: the teacher's fine-tuning, the student's finish."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from dna_deploy.checkpoint import load_checkpoint, save_checkpoint
from dna_deploy.data import Augmentation, Images, Preprocessing, epoch_batches, parts_of, sent
from dna_deploy.distill import Watch, noise_to_signal, set_rate
from dna_deploy.machine import CPU, Machine
from dna_deploy.progress import bar
from dna_deploy.teacher import Teacher


@dataclass(frozen=True)
class Training:
    """How a whole network is trained. `accumulate`: each batch in so many parts, as in block-wise distillation."""

    epochs: int = 8
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    teacher_share: float = 0.7  # of the loss on the logits that comes from the teacher's, the rest from the labels
    temperature: float = 2.0
    feature_share: float = 0.5  # weight of the noise-to-signal ratio of the features, averaged over the cuts
    seed: int = 0


@dataclass(frozen=True)
class Guide:
    """A teacher to imitate while training: its logits, and its features at every cut.

    `adapters` take the student's block outputs to the teacher's widths, one for each cut there is; they are trained along
    and dropped in the end.
    """

    teacher: Teacher
    adapters: nn.ModuleList

    def loss(self, network: nn.Sequential, x: torch.Tensor, labels: torch.Tensor, how: Training) -> torch.Tensor:
        *features, taught = self.teacher.features(x)
        outputs = []
        for block, cut in zip(network.children(), (*self.teacher.cuts, None), strict=True):
            x = block(x)
            if cut is not None:
                outputs.append(x)
        loss = functional.cross_entropy(x, labels) * (1 - how.teacher_share)
        loss = loss + how.teacher_share * _divergence(x, taught, how.temperature)
        for adapter, output, feature in zip(self.adapters, outputs, features, strict=True):
            loss = loss + how.feature_share / len(features) * noise_to_signal(adapter(output), feature)
        return loss


def train(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    how: Training,
    checkpoint: Path,
    text: str,
    guide: Guide | None = None,
    machine: Machine = CPU,
) -> None:
    """Train in place; continues from `checkpoint`, written after every epoch, and leaves the weights in eval mode."""
    trained = nn.ModuleDict({"network": network, "adapters": guide.adapters if guide else nn.ModuleList()})
    trained.to(memory_format=torch.channels_last)
    weights = trained.parameters()
    optimizer = torch.optim.AdamW(weights, how.learning_rate, weight_decay=how.weight_decay, fused=machine.fused)
    first = load_checkpoint(checkpoint, trained, optimizer)
    steps = len(epoch_batches(len(images), how.batch, how.seed, 0))
    with bar(text, how.epochs * steps) as advance:
        advance(first * steps)
        for epoch in range(first, how.epochs):
            network.train()
            watch = Watch(f"{text} diverged in epoch {epoch + 1}")
            for number, places in enumerate(epoch_batches(len(images), how.batch, how.seed, epoch)):
                at = epoch * steps + number
                set_rate(optimizer, how.learning_rate, at / (how.epochs * steps))
                optimizer.zero_grad(set_to_none=True)
                for begin, some in parts_of(places, how.accumulate):
                    augmentation = Augmentation(how.seed * 1_000_003 + at, len(places), begin)
                    x = preprocessing(augmentation(sent(images.batch(some), machine.device)))
                    labels = sent(images.labels[some], machine.device)
                    with machine.autocast():
                        loss = _loss(network, x, labels, how, guide) * (len(some) / len(places))
                    loss.backward()  # type: ignore[no-untyped-call]
                    watch.add([loss.detach()])
                optimizer.step()
                advance(1)
            watch.require_finite()
            save_checkpoint(checkpoint, trained, optimizer, epoch + 1)
    network.eval()


def _loss(network: nn.Module, x: torch.Tensor, labels: torch.Tensor, how: Training, guide: Guide | None) -> torch.Tensor:
    if guide is None:
        return functional.cross_entropy(network(x), labels, label_smoothing=0.1)
    assert isinstance(network, nn.Sequential)
    return guide.loss(network, x, labels, how)


def _divergence(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence from the teacher's softened classes (Hinton et al., 2015), scaled back by the temperature squared."""
    own, other = (functional.log_softmax(values.float() / temperature, dim=1) for values in (logits, taught))
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
            network(preprocessing(sent(images.batch(places[start : start + batch]), device)))
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
        return torch.cat([network(preprocessing(sent(images.batch(list(some)), device))) for some in places]).cpu()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose highest score is that of their label."""
    return float((logits.argmax(1) == labels).double().mean())
