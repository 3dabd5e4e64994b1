"""Is the exported network still the one that was trained? Every step of the export is held against the one before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.files import sha256
from dna_deploy.measure import Latency
from dna_deploy.progress import bar

Array = np.ndarray[Any, np.dtype[Any]]
SCHEMA = "dna-deploy/verification/2"
FEW = 12  # images that are run at each of the small batch sizes, beside all of them at the largest
SMALL_BATCHES = (1, 2, 3)


@dataclass(frozen=True)
class Limits:
    """What a step must keep to."""

    top1_agreement: float = 1.0  # share of images with the same winning class
    largest_difference: float = 1e-4  # of any logit, absolute


LIMITS = {  # by the precision of the step; fp32 through another runtime differs by rounding only
    "fp32": Limits(),
    "fp16": Limits(top1_agreement=0.999, largest_difference=0.05),
    "bf16": Limits(top1_agreement=0.98, largest_difference=0.5),
    "int8": Limits(top1_agreement=0.8, largest_difference=float("1e30")),  # judged by the accuracy that is lost
}


@dataclass(frozen=True)
class Inputs:
    """What the steps are run on: `at(places)` gives float32 images (N, 3, H, W) as the network takes them."""

    about: str  # such as "656 test images of elpv"
    count: int
    at: Callable[[Sequence[int]], Array]
    labels: Array | None  # None where nobody knows the right answers: only agreement is judged then


@dataclass(frozen=True)
class Step:
    """One link of the chain torch -> onnx -> ... -> the deployed file: what was made and how to run it."""

    name: str
    precision: str
    run: Callable[[Array], Array]
    path: Path | None = None
    kept: tuple[str, ...] = ()  # tensors or layers left in float, each with the reason


@dataclass(frozen=True)
class Comparison:
    """A step against the one before it on the same images, at one batch size."""

    batch: int
    images: int
    top1_agreement: float
    largest_difference: float
    mean_difference: float
    accuracy_before: float | None
    accuracy_after: float | None
    ok: bool


@dataclass(frozen=True)
class Link:
    """What is known of one step: its file, the step it was compared with, and the figures."""

    step: str
    against: str
    precision: str
    file: str | None
    sha256: str | None
    kept: list[str]
    limits: Limits
    comparisons: list[Comparison]

    @property
    def ok(self) -> bool:
        return all(comparison.ok for comparison in self.comparisons)


@dataclass(frozen=True)
class Verification:
    """All steps in order; the last link holds the deployed file against the network that was trained."""

    file: str
    sha256: str | None  # None where the chain broke before it was written
    inputs: str
    links: list[Link]
    latency: Latency | None  # None where it could not be measured
    not_run: str | None = None  # why the file was not run, where this machine cannot: nothing is known of it then
    schema: str = SCHEMA

    @property
    def ok(self) -> bool:
        """Nothing that was checked failed."""
        return all(link.ok for link in self.links)

    @property
    def verified(self) -> bool:
        """Everything was checked, the deployed file too, and nothing failed."""
        return self.ok and self.not_run is None


def outputs(step: Step, inputs: Inputs, batch: int, count: int | None = None) -> Array:
    """The logits (count, classes) of the first `count` images, of all where it is left out, in batches of `batch`."""
    count = min(count or inputs.count, inputs.count)
    found = []
    with bar(f"running {step.name} at batch size {batch}", count) as advance:
        for start in range(0, count, batch):
            places = range(start, min(start + batch, count))
            found.append(step.run(inputs.at(places)))
            advance(len(places))
    return np.concatenate(found)


def compare(before: Step, reference: Array, step: Step, inputs: Inputs, largest_batch: int, limits: Limits) -> tuple[Link, Array]:
    """Run a step on all images and hold its logits against `reference`, those of the step before; returns them too."""
    labels = inputs.labels
    logits = outputs(step, inputs, largest_batch)
    comparisons = [judge(reference, logits, labels, largest_batch, limits)]
    for batch in SMALL_BATCHES:
        some = outputs(step, inputs, batch, FEW)
        few = None if labels is None else labels[: len(some)]
        comparisons.append(judge(reference[: len(some)], some, few, batch, limits))
    return link(before, step, limits, comparisons), logits


def link(before: Step, step: Step, limits: Limits, comparisons: list[Comparison]) -> Link:
    file, digest = (step.path.name, sha256(step.path)) if step.path else (None, None)
    return Link(step.name, before.name, step.precision, file, digest, list(step.kept), limits, comparisons)


def judge(reference: Array, found: Array, labels: Array | None, batch: int, limits: Limits) -> Comparison:
    """The figures of two sets of logits (N, classes); anything not finite is a failure."""
    count = len(reference)
    if found.shape != reference.shape or not np.isfinite(found).all():
        worst = float("1e30")
        return Comparison(batch, count, 0.0, worst, worst, _share(reference, labels), None if labels is None else 0.0, False)
    difference = np.abs(reference - found)
    agreement = float((reference.argmax(1) == found.argmax(1)).mean())
    largest = float(difference.max())
    return Comparison(
        batch=batch,
        images=count,
        top1_agreement=agreement,
        largest_difference=largest,
        mean_difference=float(difference.mean()),
        accuracy_before=_share(reference, labels),
        accuracy_after=_share(found, labels),
        ok=agreement >= limits.top1_agreement and largest <= limits.largest_difference,
    )


def _share(logits: Array, labels: Array | None) -> float | None:
    return None if labels is None else float((logits.argmax(1) == labels).mean())


def failures(link: Link) -> Sequence[str]:
    """One line for each comparison that failed, with the figures and the limits."""
    limits = link.limits
    return [
        f"batch {found.batch}: top-1 agreement {found.top1_agreement:.2%} (limit {limits.top1_agreement:.2%}), largest "
        f"difference {found.largest_difference:.2g} (limit {limits.largest_difference:.2g})"
        for found in link.comparisons
        if not found.ok
    ]
