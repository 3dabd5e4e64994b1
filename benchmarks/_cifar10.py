"""CIFAR-10 from the zip of photographs beside the checkout, and the teacher that was fine-tuned on it."""

import io
import zipfile
from functools import cache
from pathlib import Path

import torch

from dna_deploy.data import Preprocessing, Source
from dna_deploy.teacher import Place, Teacher, read_weights, untrained

FOLDER = Path(__file__).parent.parent.parent / "shared" / "cifar10"
TEACHER, TEACHER_SIZE = "tf_efficientnet_lite0", 64


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


def lite0(cuts: tuple[Place | None, ...]) -> Teacher:
    """The fine-tuned teacher, cut behind these modules."""
    model = untrained(TEACHER, 10)
    model.load_state_dict(read_weights(FOLDER / "teacher-lite0-64px.safetensors"))
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Teacher(TEACHER, model, Preprocessing((0.5,) * 3, (0.5,) * 3), cuts, TEACHER_SIZE)
