"""What is exported: a network, the contract its users rely on, and the images every step is held against it on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.data import Images, Preprocessing, load_split, open_source
from dna_deploy.errors import RunError
from dna_deploy.exporters._exporter import Contract
from dna_deploy.files import read_json
from dna_deploy.plugins import find
from dna_deploy.run import Pick, Picked, TeacherReport
from dna_deploy.verify import Inputs, Step

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.exporters._exporter import Array


@dataclass(frozen=True)
class Original:
    """`test` gives final figures and touches nothing else; `held_out` calibrates and decides what stays in float."""

    name: str
    network: "nn.Module"
    contract: Contract
    test: Inputs
    held_out: Inputs
    folder: Path  # where its exports go
    picked: Picked | None  # what was known of it before it was trained, for a network that was searched

    @property
    def step(self) -> Step:
        """The network itself, the first step of the chain."""
        import torch

        def run(images: "Array") -> "Array":
            with torch.no_grad():
                logits: Array = self.network(torch.from_numpy(images)).numpy()
            return logits

        return Step("torch", "fp32", run)


def from_run(pick: Pick) -> Original:
    """The network found by a search, as it was trained."""
    from dna_deploy.checkpoint import load_checkpoint

    run = pick.run
    find("spaces", run.asked.space)  # a space of the user's own is known by its name from here on
    arch = Architecture.load(pick.architecture)
    if not pick.weights.exists():
        raise RunError(f"{pick.weights}: no weights there; run the same dna-search again, it trains the found network")
    network = arch.module()
    load_checkpoint(pick.weights, network)
    report = read_json(run.teacher_report, TeacherReport)
    mean, std = tuple(report.mean), tuple(report.std)
    source = open_source(run.asked.data, run.asked.data_root)
    parts = load_split(run.split, source)
    preprocessing = Preprocessing(mean, std)  # type: ignore[arg-type]

    def part(name: str, indices: list[int]) -> Inputs:
        return inputs_of(Images(source, indices, arch.space.image_size), preprocessing, f"{name} images of {source.name}")

    return Original(
        name=str(pick.folder),
        network=network.eval(),
        contract=Contract(arch.space.image_size, mean, std, tuple(report.classes)),
        test=part("test", parts.test),
        held_out=part("held-out", parts.held_out),
        folder=pick.export,
        picked=read_json(pick.picked, Picked),
    )


def inputs_of(images: Images, preprocessing: Preprocessing, about: str) -> Inputs:
    """Labelled images as the network takes them."""
    return Inputs(
        about=f"{len(images)} {about}",
        count=len(images),
        at=lambda places: np.ascontiguousarray(preprocessing(images.batch(list(places))).numpy()),
        labels=images.labels.numpy(),
    )
