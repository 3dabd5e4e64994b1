"""Train a whole network on labels, and under a teacher where there is one: the teacher's fine-tuning, the student's finish."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional

from dna_deploy.arch import Architecture
from dna_deploy.checkpoint import resume, save_checkpoint
from dna_deploy.crops import Crops, crops
from dna_deploy.data import Augmentation, Images, Preprocessing, epoch_batches, evenly, sent, shares
from dna_deploy.distill import Watch, noise_to_signal
from dna_deploy.errors import RequestError
from dna_deploy.machine import CPU, Machine, one_update_a_step
from dna_deploy.progress import bar
from dna_deploy.recipe import Training
from dna_deploy.teacher import Teacher
from dna_deploy.zoo import drop_connect


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
    named: Mapping[str, object] = {},
) -> None:
    """Train in place; continues from `checkpoint`, written after every epoch, and leaves the weights in eval mode.

    A batch of more images than there are is of all of them, with steps to match. A checkpoint of another training, told by
    `how` and by what else is `named`, is refused.
    """
    asked = {**named, **asdict(how)}
    how = how.at(min(how.batch, len(images)))
    trained = nn.ModuleDict({"network": network, "adapters": guide.adapters if guide else nn.ModuleList()})
    layout = _layout(trained, machine)
    trained.to(memory_format=layout)  # type: ignore[call-overload]
    drop_connect(network, how.drop_connect)
    _require_parts(how, machine)
    steps = len(epoch_batches(len(images), how.batch, how.seed, 0))
    optimizer, schedule = _optimizer(trained, how, steps)
    ema = ModelEmaV3(network, how.ema, use_warmup=True) if how.ema else None
    mixup = Mixup(how.mixup, label_smoothing=how.label_smoothing, num_classes=len(images.source.classes)) if how.mixup else None
    kept = nn.ModuleDict({**trained, "ema": ema.module}) if ema else trained
    first = resume(checkpoint, kept, optimizer, asked)
    machine.begin(kept)
    with bar(text, how.epochs * steps) as advance, one_update_a_step(network, how.accumulate):
        advance(first * steps)
        for epoch in range(first, how.epochs):
            network.train()
            watch = Watch(f"{text} diverged in epoch {epoch + 1}", machine)
            batches = epoch_batches(len(images), how.batch, how.seed, epoch)
            own = shares(batches, machine, how.accumulate, how.seed, epoch * steps)
            pixels = _varied(images, how, epoch, [part for parts in own for part in parts], machine.device)
            for at, (places, parts) in enumerate(zip(batches, own, strict=True), epoch * steps):
                schedule.step_update(at)
                optimizer.zero_grad(set_to_none=True)
                for some, drawn in parts:
                    x = preprocessing(next(pixels)).contiguous(memory_format=layout)
                    labels = sent(images.labels[some], machine.device)
                    _seed(how.seed, at * len(places) + drawn.first)
                    if mixup:
                        x, labels = mixup(x, labels)
                    with machine.autocast():
                        loss = _loss(network, x, labels, how, guide) * (len(some) / len(places))
                    loss.backward()  # type: ignore[no-untyped-call]
                    watch.add([loss.detach()])
                machine.gather(trained.parameters())
                optimizer.step()
                if ema:
                    ema.update(network, at + 1)
                advance(1)
            watch.require_finite()
            machine.average(kept)
            if machine.first:
                save_checkpoint(checkpoint, kept, optimizer, epoch + 1, asked)
    if ema:
        network.load_state_dict(ema.module.state_dict())
    network.eval()


def require_recipe(how: Training, images: Images, machine: Machine) -> None:
    """Refuse now what would end `train`, or its first checkpoint; no image is opened."""
    _require_parts(how.at(min(how.batch, len(images))), machine)
    tried = nn.ParameterList([torch.ones(2, 2)])
    if not _kept(_optimizer(tried, how, 1)[0], tried[0]):
        raise RequestError(f'optimizer = "{how.optimizer}": keeps lists, which no checkpoint holds; expected another')
    if how.augmentation != "shift":
        Crops(images, how.augmentation, how.color_jitter)


def _require_parts(how: Training, machine: Machine) -> None:
    machine.require_shares(how.batch, how.accumulate, "--batch")
    count = how.accumulate * machine.world
    if how.mixup and how.batch % (2 * count):
        raise RequestError(f"mixup pairs images: a batch of {how.batch} in {count} parts leaves some over; make it divide evenly")


def fresh(arch: Architecture, padding: str, seed: int) -> nn.Sequential:
    """The network with random weights, drawn as timm does for EfficientNets."""
    torch.manual_seed(seed)
    network = arch.module(padding)
    efficientnet_init_weights(network)
    return network


def _layout(network: nn.Module, machine: Machine) -> torch.memory_format:
    """channels_last, the faster one; but on a CPU the gradient of a strided 1x1 convolution of few channels, as repvgg and
    mobileone have on the image, ends the process in that layout (torch 2.14, oneDNN)."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    fatal = any(conv.kernel_size == (1, 1) and max(conv.stride) > 1 and conv.in_channels < 8 for conv in convolutions)
    return torch.contiguous_format if fatal and machine.device.type == "cpu" else torch.channels_last


def _optimizer(trained: nn.Module, how: Training, steps: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    """timm's, by their names; `steps` of an epoch."""
    peak = how.learning_rate
    try:
        optimizer = create_optimizer_v2(
            trained, how.optimizer, peak, weight_decay=how.weight_decay, momentum=how.momentum, eps=how.epsilon
        )
        schedule, _ = create_scheduler_v2(
            optimizer,
            how.schedule,
            how.epochs,
            decay_epochs=how.decay_epochs,
            decay_rate=how.decay_rate,
            min_lr=peak / 100,
            warmup_lr=peak / 50,
            warmup_epochs=how.warmup * how.epochs,  # type: ignore[arg-type]
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise RequestError(f'optimizer = "{how.optimizer}", schedule = "{how.schedule}": refused by timm ({error})') from error
    if getattr(optimizer, "is_second_order", False):
        raise RequestError(f'optimizer = "{how.optimizer}": needs second derivatives, which are not computed; expected another')
    if schedule is None:
        raise RequestError(f'schedule = "{how.schedule}": timm has none of that name; expected cosine, step, ...')
    return optimizer, schedule


def _kept(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> bool:
    """Whether a checkpoint holds what this optimizer keeps of its one weight."""
    weight.grad = torch.ones_like(weight)
    with torch.random.fork_rng():
        try:
            optimizer.step()
        except RuntimeError:  # of a GPU only: apex and bitsandbytes, whose states are tensors
            return True
    return not any(isinstance(value, list) for state in optimizer.state_dict()["state"].values() for value in state.values())


def _varied(
    images: Images, how: Training, epoch: int, parts: Sequence[tuple[Sequence[int], Augmentation]], device: torch.device
) -> Iterator[torch.Tensor]:
    """The augmented pixels of every part of every batch of an epoch, on the device."""
    places = [some for some, _ in parts]
    if how.augmentation != "shift":
        yield from crops(Crops(images, how.augmentation, how.color_jitter), places, how.seed * 1_000_003 + epoch, device)
        return
    for pixels, (_, vary) in zip(images.batches(places), parts, strict=True):
        yield vary(sent(pixels, device))


def _seed(seed: int, at: int) -> None:
    """Draw what is left out and mixed alike however often the training was interrupted."""
    torch.manual_seed(seed * 1_000_003 + at)
    np.random.seed((seed * 1_000_003 + at) % 2**32)


def _loss(network: nn.Module, x: torch.Tensor, labels: torch.Tensor, how: Training, guide: Guide | None) -> torch.Tensor:
    if guide is None:
        return functional.cross_entropy(network(x), labels, label_smoothing=0.0 if how.mixup else how.label_smoothing)
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
        for pixels in images.batches(evenly(places, batch)):
            network(preprocessing(sent(pixels, device)))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def logits_of(network: nn.Module, images: Images, preprocessing: Preprocessing, batch: int = 64) -> torch.Tensor:
    """The network's class scores for every image, (N, classes), on the CPU."""
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        places = (range(start, min(start + batch, len(images))) for start in range(0, len(images), batch))
        return torch.cat([network(preprocessing(sent(pixels, device))) for pixels in images.batches(places)]).cpu()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose highest score is that of their label."""
    return float((logits.argmax(1) == labels).double().mean())
