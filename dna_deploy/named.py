"""A network by its name, trained alone on labelled images by a recipe: dna_a, or any of timm's."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.data import Images, load_split, save_split, split
from dna_deploy.errors import RequestError, RunError
from dna_deploy.files import disk_errors, read_json, write_json
from dna_deploy.progress import say
from dna_deploy.recipe import Training
from dna_deploy.sources import open_source

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Trained:
    """What came of it; the weights are in weights.safetensors beside it."""

    network: str
    data: str
    image_size: int
    classes: list[str]
    test_accuracy: float
    test_images: int
    amp: bool
    training: Training
    data_root: str | None = None
    schema: str = "dna-deploy/trained/1"


def train_named(
    network: str, data: str, data_root: str | None, image_size: int, folder: Path, how: Training, amp: bool | None
) -> Trained | None:
    """Train it from random weights, or go on; test it once in the end. Of several processes the first one writes."""
    import timm
    import torch

    import dna_deploy.zoo  # noqa: F401  makes the published networks known to timm
    from dna_deploy.checkpoint import difference, save_tensors
    from dna_deploy.machine import this_machine
    from dna_deploy.networks import expected
    from dna_deploy.teacher import require_scores, require_scores_while_training
    from dna_deploy.train import accuracy, logits_of, require_recipe, train

    if how.inherit or how.guided:
        raise RequestError(f"{network} alone has no blocks to inherit from and no teacher: take --recipe scratch, or one like it")
    if not timm.is_model(network):
        raise RequestError(f"{network!r} is no model of timm's; expected for example dna_a or mobilenetv3_large_100")
    machine = this_machine(amp)
    source = open_source(data, data_root)
    report, weights, parted = (folder / file for file in ("trained.json", "weights.safetensors", "split.json"))
    named = {"network": network, "data": data, "data_root": data_root, "image_size": image_size}
    if report.exists() and weights.exists():
        found = read_json(report, Trained)
        if other := difference(asdict(found) | asdict(found.training), {**named, **asdict(how)}):
            raise RunError(f"{folder}: was trained with {other}; choose another --run NAME")
        if parted.exists():
            load_split(parted, source)
        return found if machine.first else None
    if machine.first:
        with disk_errors(folder):
            report.unlink(missing_ok=True)  # its weights are gone
        if not parted.exists():
            save_split(parted, split(source))
    machine.tell(stage="named")
    if not machine.first:
        machine.told()
    parts = load_split(parted, source)
    torch.manual_seed(how.seed)
    model = _created(network, len(source.classes), how.drop_connect).to(machine.device)
    require_scores(model, image_size, len(source.classes))
    require_scores_while_training(model, image_size)
    preprocessing, _, framing = expected(network, model)
    images, test = Images(source, parts.train, image_size), Images(source, parts.test, image_size, framing)  # as dna-export tests
    require_recipe(how, images, machine)
    say(f"{network}: {how.epochs} epochs on {len(images)} images in batches of {min(how.batch, len(images))}")
    partial = folder / "training.safetensors"
    train(model, images, preprocessing, how, partial, f"training {network}", machine=machine, named=named)
    if not machine.first:
        return None
    reached = accuracy(logits_of(model, test, preprocessing), test.labels)
    save_tensors(weights, model.state_dict(), {})
    done = Trained(network, data, image_size, list(source.classes), reached, len(test), machine.amp, how, data_root)
    write_json(report, done)
    partial.unlink(missing_ok=True)
    return done


def _created(network: str, classes: int, rate: float) -> "nn.Module":
    """timm's, with random weights; how often it leaves out branches is the recipe's to say."""
    import timm
    import torch
    from timm.layers import DropPath

    from dna_deploy.zoo import drop_connect

    drawn = torch.get_rng_state()
    try:
        model: nn.Module = timm.create_model(network, num_classes=classes, drop_path_rate=rate)
    except TypeError:  # it knows no such rate
        torch.set_rng_state(drawn)
        model = timm.create_model(network, num_classes=classes)
    drop_connect(model, rate)
    if rate and not any(isinstance(part, DropPath) and part.drop_prob for part in model.modules()):
        raise RequestError(f"drop_connect = {rate}: {network} has no branches that timm leaves out; take a recipe with 0 there")
    return model
