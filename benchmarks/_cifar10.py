"""CIFAR-10 from the zip of photographs beside the checkout, and teachers for it: one given, others trained here once."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from dna_deploy.checkpoint import load_weights, save_checkpoint
from dna_deploy.data import Images, Preprocessing
from dna_deploy.files import write_json
from dna_deploy.machine import this_machine
from dna_deploy.networks import read_weights, untrained
from dna_deploy.sources import Source
from dna_deploy.teacher import Teacher, trunk
from dna_deploy.train import Training, accuracy, logits_of, train

FOLDER = Path(__file__).parent.parent.parent / "shared" / "cifar10"
CACHE = Path.home() / ".cache" / "dna-deploy" / "ranking"
TRAIN = 45_000  # of the 50,000 photographs that are not the test set; the others rate
PREPROCESSING = Preprocessing((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Known:
    """A teacher of these photographs: its network, how it is trained on, and behind which modules it can be cut.

    `cuts` end at 16, 8 and 4 px; a teacher that sees more pixels has features of these sizes further back.
    """

    model: Callable[[], nn.Module]
    image_size: int
    cuts: tuple[str, str, str]
    training: Training | None = None


def _lite0() -> nn.Module:
    model = untrained("tf_efficientnet_lite0", 10)
    model.load_state_dict(read_weights(FOLDER / "teacher-lite0-64px.safetensors"))
    return model


def _resnet18() -> nn.Module:
    """timm's, with the stem that 32 px images are given since He et al., 2016: 3x3, nothing strided."""
    model = untrained("resnet18", 10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def _further(epochs: int, learning_rate: float) -> Training:
    return Training(epochs=epochs, batch=256, learning_rate=learning_rate)


TEACHERS = {
    "lite0-64px": Known(_lite0, 64, ("blocks.1.1", "blocks.2.1", "blocks.4.2")),
    "lite0-64px-longer": Known(_lite0, 64, ("blocks.1.1", "blocks.2.1", "blocks.4.2"), _further(8, 1e-3)),
    "lite0-128px": Known(_lite0, 128, ("blocks.2.1", "blocks.4.2", "blocks.6.0"), _further(8, 1e-3)),
    "regnetx-64px": Known(lambda: untrained("regnetx_002", 10), 64, ("s1.b1", "s2.b1", "s3.b4"), _further(10, 2e-3)),
    "resnet18-32px": Known(_resnet18, 32, ("layer2.1", "layer3.1", "layer4.1"), _further(20, 2e-3)),
}


@cache
def cifar10() -> Source:
    """All 60,000 photographs of 32x32 pixels; the last 10,000 are the test set."""
    archive = zipfile.ZipFile(FOLDER / "cifar10-jpeg.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    names = [name for part in ("train/", "test/") for name in names if name.startswith(part)]
    classes = sorted({name.split("/")[1] for name in names})
    contents = [archive.read(name) for name in names]  # 31 MB, so that threads need not share the archive

    def open_photograph(index: int):
        from PIL import Image

        return Image.open(io.BytesIO(contents[index]))

    labels = tuple(classes.index(name.split("/")[1]) for name in names)
    test = frozenset(place for place, name in enumerate(names) if name.startswith("test/"))
    return Source("cifar10", tuple(classes), labels, open_photograph, test)


def photographs(part: str, count: int, size: int) -> Images:
    """The first `count` of a part, train or held_out, in an order drawn once."""
    source = cifar10()
    order = [place for place in range(len(source.labels)) if place not in source.fixed_test]
    random.Random(0).shuffle(order)
    return Images(source, (order[:TRAIN] if part == "train" else order[TRAIN:])[:count], size)


@cache
def teacher_of(name: str) -> Teacher:
    """A known teacher, cut; trained on the training photographs first where it has to be, which is kept."""
    known = TEACHERS[name]
    model = known.model()
    folder, machine = CACHE / f"teacher-{name}", this_machine()
    if known.training is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "weights.safetensors").exists():
            model.to(machine.device)
            images = photographs("train", TRAIN, known.image_size)
            train(
                model, images, PREPROCESSING, known.training, folder / "partial.safetensors", f"training {name}", machine=machine
            )
            save_checkpoint(folder / "weights.safetensors", model, None, known.training.epochs)
            (folder / "partial.safetensors").unlink()
        load_weights(folder / "weights.safetensors", model, "run this again")
    model.eval().requires_grad_(False).to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    places = {place.name: place for place in trunk(model, known.image_size)}
    return Teacher(name, model, PREPROCESSING, (None, *(places[cut] for cut in known.cuts)), known.image_size)


def test_accuracy(name: str) -> float:
    """Of that teacher, on the 10,000 test photographs; kept."""
    file = CACHE / f"teacher-{name}" / "accuracy.json"
    if not file.exists():
        source, known = cifar10(), TEACHERS[name]
        images = Images(source, sorted(source.fixed_test), known.image_size)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            file, {"test_accuracy": accuracy(logits_of(teacher_of(name).model, images, PREPROCESSING, 250), images.labels)}
        )
    return float(json.loads(file.read_text())["test_accuracy"])
