"""What is exported: a network, the contract its users rely on, and the images every step is held against it on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.data import Images, Preprocessing, load_split, split
from dna_deploy.errors import RequestError, RunError, first_line
from dna_deploy.exporters._exporter import Contract
from dna_deploy.files import read_json
from dna_deploy.networks import PACKAGED, Network, open_network
from dna_deploy.plugins import find
from dna_deploy.progress import say
from dna_deploy.run import Pick, Picked, TeacherReport
from dna_deploy.sources import Source, open_source
from dna_deploy.verify import Inputs, Step

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.exporters._exporter import Array

EXPORTS = Path("exports")
UNKNOWN_LICENCE = "Not known to dna-deploy: ask where it came from before passing this on."
ADVICE = "give --weights FILE, or --weights random to try the chain with weights that know nothing"
SYNTHETIC = 64  # images where there are no real ones


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
    architecture: Architecture | None = None  # of a network that was searched
    made_from: Mapping[str, str | int] = field(default_factory=dict)  # the flags of dna-export that name it
    licences: dict[str, str] = field(default_factory=dict)  # of the teacher and the data, as far as they are known

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
    from dna_deploy.checkpoint import load_weights

    run = pick.run
    find("spaces", run.asked.space)  # a space of the user's own is known by its name from here on
    arch = Architecture.load(pick.architecture)
    advice = "run the same dna-search again, it trains the found network"
    if not pick.weights.exists():  # the network may only have been picked
        raise RunError(f"{pick.weights}: no weights there; {advice}")
    report = read_json(run.teacher_report, TeacherReport)
    network = arch.module(report.padding)
    load_weights(pick.weights, network, advice)
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
        architecture=arch,
        made_from={"run": str(pick.folder)},
        licences={
            f"Teacher {run.asked.teacher}": licence_of(run.asked.teacher),
            f"Data {source.name}": source.licence or UNKNOWN_LICENCE,
        },
    )


def licence_of(name: str) -> str:
    """What timm states for the weights of a model, or what the package says that they came from."""
    from timm.models import get_pretrained_cfg

    if name.endswith(".py"):  # timm would look for a model of the name before the dot
        return UNKNOWN_LICENCE
    if name in PACKAGED:
        return f"Apache-2.0 (PyPI {PACKAGED[name].replace('_', '-')})"
    stated = get_pretrained_cfg(name)
    return str(stated.license) if stated is not None and stated.license else UNKNOWN_LICENCE


@dataclass(frozen=True)
class Asked:
    """A network of the user's, as `open_network` takes it, and what it is checked on."""

    model: str
    weights: Path | None = None  # a checkpoint, or RANDOM; else the model's own trained weights
    data: str | None = None  # real images, as dna-search takes them; else synthetic ones
    data_root: str | None = None
    image_size: int | None = None  # the model's own where None
    labels: Path | None = None  # one name a line


def from_model(asked: Asked, largest_bytes: int | None = None) -> Original:
    """A network that was not searched; refused before it is loaded where its weights are larger than `largest_bytes`."""
    import torch

    source = open_source(asked.data, asked.data_root) if asked.data else None
    given = _names(asked.labels) if asked.labels else source.classes if source else ()
    torch.manual_seed(0)  # what MODEL draws at random is drawn alike again
    network = open_network(asked.model, asked.weights, len(given) or None, ADVICE, largest_bytes)
    size = asked.image_size or network.image_size
    classes = _classes(network.module, size, asked)
    names = _labels(asked, classes, given)
    if network.weights == "random":
        say(f"{asked.model}: its weights are RANDOM: the chain can be proved, the file is of no use")
    test, held_out = _parts(source, size, classes, network, names if asked.labels else ())
    name = Path(asked.model).stem if asked.model.endswith(".py") else asked.model
    return Original(
        name=name,
        network=network.module,
        contract=Contract(
            image_size=size,
            mean=network.preprocessing.mean,
            std=network.preprocessing.std,
            labels=names,
            weights=network.weights,
            shorter_side=network.framing.shorter_side(size),
            interpolation=network.framing.interpolation,
        ),
        test=test,
        held_out=held_out,
        folder=EXPORTS / (name if network.weights != "random" else f"{name}-untrained"),
        picked=None,
        made_from={key: str(value) if isinstance(value, Path) else value for key, value in asdict(asked).items() if value},
        licences={f"Network {asked.model}": licence_of(asked.model)}
        | ({f"Data {source.name}": source.licence or UNKNOWN_LICENCE} if source else {}),
    )


def _classes(network: "nn.Module", size: int, asked: Asked) -> int:
    """How many class scores one image of this size gives."""
    import torch

    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, 3, size, size))
    except Exception as error:  # whatever a module raises for a size it does not take
        raise RequestError(
            f"--model {asked.model}: cannot run RGB images of {size} x {size} ({first_line(error)}); choose --image-size, or "
            "give a network that takes three channels"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        kind = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RequestError(f"--model {asked.model}: answers with {kind}; expected class scores (batch, classes)")
    return int(logits.shape[1])


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--labels {path}: cannot be read ({error}); expected one name a line") from None


def _labels(asked: Asked, classes: int, given: tuple[str, ...]) -> tuple[str, ...]:
    if len(given) == classes:
        return given
    if asked.labels is not None:
        raise RequestError(f"--labels {asked.labels}: {len(given)} names, the network has {classes} classes")
    if _tells_apart(classes, given):
        return given[-classes:]
    if classes == 1000:
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo().label_descriptions())
    return tuple(map(str, range(classes)))


def _parts(source: Source | None, size: int, classes: int, network: Network, stated: tuple[str, ...]) -> tuple[Inputs, Inputs]:
    """`stated` are the names of the network's classes where the user gave them: the data's may come in another order."""
    if source is None:
        say(f"no --data: checked on {SYNTHETIC} synthetic images, always the same; they say nothing of its accuracy")
        return synthetic(size, network.preprocessing, seed=0), synthetic(size, network.preprocessing, seed=1)
    parts = split(source)
    test, held_out = (
        inputs_of(Images(source, part, size, network.framing), network.preprocessing, f"{name} images of {source.name}")
        for name, part in (("test", parts.test), ("held-out", parts.held_out))
    )
    if places := _by_name(stated, source.classes):
        return _renumbered(test, places), _renumbered(held_out, places)
    if _tells_apart(classes, source.classes):
        if stated:
            same = f"{source.classes[-1]} is {stated[-1]}"
            say(f"--labels: other names than those of {source.name}, taken in the same order: {same}")
        return test, held_out
    say(f"{source.name} has {len(source.classes)} classes, the network {classes}: agreement is judged, accuracy is not")
    return replace(test, labels=None), replace(held_out, labels=None)


def _by_name(stated: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Which of the stated classes each of the data's is, where their names say it."""
    others = [name for name in classes if name not in stated]
    outputs = [*others, *stated] if len(stated) == 1 == len(others) else list(stated)
    return [outputs.index(name) for name in classes] if set(classes) <= set(outputs) else None


def _renumbered(inputs: Inputs, places: list[int]) -> Inputs:
    assert inputs.labels is not None
    return replace(inputs, labels=np.array(places)[inputs.labels])


def _tells_apart(outputs: int, classes: Sequence[str]) -> bool:
    """Whether a network's outputs are these classes; one output is that of the second of two."""
    return len(classes) == (outputs if outputs > 1 else 2)


def synthetic(size: int, preprocessing: Preprocessing, seed: int) -> Inputs:
    """Images with structure at every scale, as photographs have it: noise of many resolutions, added up."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(SYNTHETIC, 3, size, size)
    for side in (2, 4, 8, 16, 32, size):
        noise = torch.randn(SYNTHETIC, 3, side, side, generator=generator)
        pixels += functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    images = preprocessing((pixels * 32 + 128).clamp(0, 255).to(torch.uint8)).contiguous().numpy()
    return Inputs(f"{SYNTHETIC} synthetic images", SYNTHETIC, lambda places: np.ascontiguousarray(images[list(places)]), None)


def inputs_of(images: Images, preprocessing: Preprocessing, about: str) -> Inputs:
    """Labelled images as the network takes them."""
    return Inputs(
        about=f"{len(images)} {about}",
        count=len(images),
        at=lambda places: np.ascontiguousarray(preprocessing(images.batch(list(places))).numpy()),
        labels=images.labels.numpy(),
    )
