"""Is the exported network still the one that was trained? Every step of the export is held against the one before it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.files import read_arrays, sha256, write_arrays
from dna_deploy.measure import Latency
from dna_deploy.placement import Placement, placement
from dna_deploy.progress import bar
from dna_deploy.session import CPU

Array = np.ndarray[Any, np.dtype[Any]]
SCHEMA = "dna-deploy/verification/5"
FEW = 12  # images that are run at each of the small batch sizes, beside all of them at the largest
SMALL_BATCHES = (1, 2, 3)
EDGES = ("zeros", "ones", "darkest", "brightest", "darkest and brightest in turn", "noise")
WORST = 1e30  # stands for a difference that is no number: JSON has none for it
USUAL = 4.0  # standard deviations of the difference of two logits; more in one image is no longer the usual difference


@dataclass(frozen=True)
class Limits:
    """What a step must keep to."""

    top1_agreement: float = 1.0  # share of images with the same winning class
    largest_difference: float = 1e-4  # of any logit, in units of the reference's spread
    edge_difference: float = 1e-4  # the same on edge inputs, for which nothing was trained and rounding grows
    harmful_flips: float = 0.0  # share of images whose class changed by more than the usual difference explains
    accuracy_drop: float = 1.0  # of the share of right answers


# By the precision of the step; fp32 through another runtime differs by rounding only. Rounding to fp16 adds up to .074 of the
# spread in EfficientNet-Lite0 and to .19 on edge inputs, each tensor within its own; bf16 rounds 8 times as coarsely. Of classes
# ties may change.
LIMITS = {
    "fp32": Limits(),
    "fp16": Limits(top1_agreement=0.99, largest_difference=0.125, edge_difference=0.5),
    "bf16": Limits(top1_agreement=0.98, largest_difference=1.0, edge_difference=4.0),
    "int8": Limits(0.8, largest_difference=WORST, edge_difference=WORST, harmful_flips=1.0),  # judged by the accuracy lost
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
    provider: str = CPU  # which is to run every node, where ONNX Runtime runs the step
    kept: tuple[str, ...] = ()  # tensors or layers left in float, each with the reason


@dataclass(frozen=True)
class Paired:
    """The right answers before and after on the same images: McNemar's exact test, and the interval of the difference."""

    accuracy_before: float
    accuracy_after: float
    lost: int  # images that were right before only
    gained: int  # after only
    p_value: float  # that both are equally good
    drop_low: float  # 95 % interval of the accuracy lost (Agresti and Min 2005); negative where it may have gained
    drop_high: float

    @property
    def drop(self) -> float:
        return self.accuracy_before - self.accuracy_after


@dataclass(frozen=True)
class Comparison:
    """A step against the one before it on the same images, at one batch size. Differences are in units of `spread`."""

    about: str  # "images", or "edge inputs": zeros, ones and extremes, where only the difference is judged
    batch: int
    images: int
    top1_agreement: float
    harmful_flips: int
    largest_difference: float
    mean_difference: float
    cosine: float  # the smallest of any image
    spread: float  # standard deviation of the reference's logits
    accuracy: Paired | None  # None where nobody knows the right answers
    ok: bool

    @property
    def accuracy_before(self) -> float | None:
        return None if self.accuracy is None else self.accuracy.accuracy_before

    @property
    def accuracy_after(self) -> float | None:
        return None if self.accuracy is None else self.accuracy.accuracy_after


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
    placement: Placement | None = None  # where ONNX Runtime put the nodes; None for what it does not run
    first_bad: str | None = None  # the first wrong tensor, where the step failed and could be searched
    left_out: list[str] = field(default_factory=list)  # edge inputs to which the step before has no finite answer

    @property
    def ok(self) -> bool:
        return all(comparison.ok for comparison in self.comparisons) and not (self.placement and self.placement.elsewhere)


@dataclass(frozen=True)
class Verification:
    """All steps in order; the last link holds the deployed file against the network that was trained."""

    file: str
    sha256: str | None  # None where the chain broke before it was written
    inputs: str
    links: list[Link]
    latency: Latency | None  # None where it could not be measured
    not_run: str | None = None  # why the file was not run, where this machine cannot: nothing is known of it then
    on_device: Link | None = None  # the same file run on the device it is for, against this machine
    schema: str = SCHEMA

    @property
    def nothing_failed(self) -> bool:
        """Of what was checked; a file that was not run has nothing that could fail."""
        return all(link.ok for link in (*self.links, *([self.on_device] if self.on_device else [])))

    @property
    def kept(self) -> list[str]:
        """What stayed in float on the way, each once."""
        return list(dict.fromkeys(kept for link in self.links for kept in link.kept))

    @property
    def left_out(self) -> list[str]:
        """The edge inputs that say nothing of this network, each once."""
        return list(dict.fromkeys(name for link in self.links for name in link.left_out))

    @property
    def verified(self) -> bool:
        """Everything was checked, the deployed file too, and nothing failed."""
        checked = bool(self.links) and all(link.comparisons for link in self.links)
        return checked and self.nothing_failed and self.not_run is None


def outputs(step: Step, inputs: Inputs, batch: int) -> Array:
    """The logits (N, classes) of all images, in batches of `batch`."""
    found, count = [], inputs.count
    with bar(f"running {step.name} at batch size {batch}", count) if count > FEW else nullcontext(lambda done: None) as advance:
        for start in range(0, count, batch):
            places = range(start, min(start + batch, count))
            found.append(step.run(inputs.at(places)))
            advance(len(places))
    return np.concatenate(found)


def compare(before: Step, reference: Array, step: Step, inputs: Inputs, largest_batch: int, limits: Limits) -> tuple[Link, Array]:
    """Run a step on all images and hold its logits against `reference`, those of the step before; returns them too.

    At other batch sizes it is held against its own answers to the same images: that it lost classes in ties to the step before is
    told by all images, and 12 of them would tell it by chance.
    """
    logits = outputs(step, inputs, largest_batch)
    comparisons = [judge(reference, logits, inputs.labels, min(largest_batch, inputs.count), limits)]
    few = min(FEW, inputs.count)
    edges = edge_inputs(inputs.at(range(few)))
    right = outputs(before, given(edges), largest_batch)
    known = np.isfinite(right).all(1)  # a network may have no answer to an image without any contrast
    if known.any():
        edges, right = edges[known], right[known]
        spread = max(float(reference.std()), float(right.std()))  # rounding grows with the values, which here may be far larger
        found = outputs(step, given(edges), largest_batch)
        comparisons.append(judge(right, found, None, min(largest_batch, len(edges)), limits, spread))
    batches = [batch for batch in SMALL_BATCHES if batch <= largest_batch]
    if largest_batch > inputs.count:  # images are repeated to fill it
        batches.append(largest_batch)
    for batch in batches:
        places = np.arange(max(few, batch)) % inputs.count
        some = outputs(step, given(inputs.at(places.tolist())), batch)
        comparisons.append(judge(logits[places], some, None, batch, limits))
    made = link(before, step, limits, comparisons)
    return replace(made, left_out=[EDGES[place] for place in np.flatnonzero(~known)]), logits


def given(images: Array) -> Inputs:
    """Images without labels that are in memory."""
    return Inputs(f"{len(images)} images", len(images), lambda places: images[list(places)], None)


def link(before: Step, step: Step, limits: Limits, comparisons: list[Comparison]) -> Link:
    file, digest = (step.path.name, sha256(step.path)) if step.path else (None, None)
    placed = placement(step.path, step.provider) if step.path and step.path.suffix == ".onnx" else None
    return Link(step.name, before.name, step.precision, file, digest, list(step.kept), limits, comparisons, placed)


def judge(
    reference: Array, found: Array, labels: Array | None, batch: int, limits: Limits, spread: float | None = None
) -> Comparison:
    """The figures of two sets of logits (N, classes); anything not finite is a failure.

    `spread` is given for edge inputs, that of the real images' logits or their own, the larger: and is the sign that classes
    are not to be judged.
    """
    count, about = len(reference), "images" if spread is None else "edge inputs"
    scale = max(float(reference.std()) if spread is None else spread, 1e-30)
    if found.shape != reference.shape or not np.isfinite(found).all():
        lost = None if labels is None else paired(winners(reference) == labels, np.zeros(count, bool))
        return Comparison(about, batch, count, 0.0, count, WORST, WORST, 0.0, scale, lost, False)
    before, after = reference.astype(np.float64), found.astype(np.float64)
    difference = np.abs(before - after)
    flips = int((winners(before) != winners(after)).sum())
    allowed = math.ceil((1 - limits.top1_agreement) * count - 1e-9)  # of whole images: one in a thousand is one of 600 too
    largest = float(difference.max()) / scale
    harmful = int(harmful_flips(before, after).sum())
    answers = None if labels is None else paired(winners(before) == labels, winners(after) == labels)
    return Comparison(
        about=about,
        batch=batch,
        images=count,
        top1_agreement=1 - flips / count,
        harmful_flips=harmful,
        largest_difference=largest,
        mean_difference=float(difference.mean()) / scale,
        cosine=float(_cosine(before, after).min()),
        spread=scale,
        accuracy=answers,
        ok=largest <= (limits.largest_difference if spread is None else limits.edge_difference)
        and (
            spread is not None
            or (
                flips <= allowed
                and harmful <= limits.harmful_flips * count
                and (answers is None or answers.drop <= limits.accuracy_drop)
            )
        ),
    )


def by_class(logits: Array) -> Array:
    """One column a class: the only one of a network that tells two classes apart is the second class's, the first has zero."""
    return logits if logits.shape[1] > 1 else np.hstack([np.zeros_like(logits), logits])


def winners(logits: Array) -> Array:
    """The class of each image."""
    found: Array = by_class(logits).argmax(1)
    return found


def harmful_flips(before: Array, after: Array) -> Array:
    """Which images changed their class although the reference was surer of it than the usual difference explains.

    An image between two classes flips at the slightest rounding and harms nobody. The difference of two logits that each
    move by the root mean square of all moves has sqrt(2) times that as its standard deviation.
    """
    before, after = by_class(before), by_class(after)
    ordered = np.sort(before, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    usual = np.sqrt(2 * np.mean(np.square(before - after)))
    harmful: Array = (before.argmax(1) != after.argmax(1)) & (margin > USUAL * usual)
    return harmful


def paired(right_before: Array, right_after: Array) -> Paired:
    """From two rows of booleans, one place an image."""
    from scipy.stats import binomtest

    count = len(right_before)
    lost, gained = int((right_before & ~right_after).sum()), int((~right_before & right_after).sum())
    p_value = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    # Agresti and Min: half an image is added to each of the four cells, which keeps the interval honest near zero
    a, b, n = lost + 0.5, gained + 0.5, count + 2.0
    middle = (a - b) / n
    reach = 1.96 * float(np.sqrt(a + b - (a - b) ** 2 / n)) / n
    return Paired(float(right_before.mean()), float(right_after.mean()), lost, gained, p_value, middle - reach, middle + reach)


def edge_inputs(images: Array) -> Array:
    """Inputs at the edge of what may come, one of each of EDGES, like `images` (N, 3, H, W) in shape and range."""
    low, high = float(images.min()), float(images.max())
    shape = images.shape[1:]
    turns = np.indices(shape).sum(0) % 2
    noise = np.random.default_rng(0).uniform(low, high, shape)
    flat = [np.full(shape, value) for value in (0.0, 1.0, low, high)]
    return np.stack([*flat, np.where(turns, high, low), noise]).astype(np.float32)


def save_logits(path: Path, labels: Array | None, logits: Mapping[str, Array]) -> None:
    """What every step answered, so that other limits can be applied without running anything: NumPy's npz, no pickle."""
    known = {} if labels is None else {"labels": labels}
    write_arrays(path, known | {f"logits/{name}": values.astype(np.float32) for name, values in logits.items()})


def load_logits(path: Path) -> tuple[Array | None, dict[str, Array]]:
    """The labels and the logits of each step, in the order of the steps."""
    found = read_arrays(path)
    labels = found.pop("labels", None)
    return labels, {name.removeprefix("logits/"): values for name, values in found.items()}


def _cosine(before: Array, after: Array) -> Array:
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosine: Array = np.where(lengths > 0, (before * after).sum(1) / np.maximum(lengths, 1e-300), 1.0)
    return cosine


def failures(link: Link) -> list[str]:
    """One line for each thing that failed, with the figures and the limits; of several batch sizes the first is told in full."""
    limits = link.limits
    lines = []
    failed = [found for found in link.comparisons if not found.ok]
    for found in failed[:1]:
        on_images = found.about == "images"
        limit = limits.largest_difference if on_images else limits.edge_difference
        said = [f"largest difference {found.largest_difference:.2g} of the spread (limit {limit:.2g})"]
        if on_images:
            said.append(f"top-1 agreement {found.top1_agreement:.2%} (limit {limits.top1_agreement:.2%})")
            said.append(f"{found.harmful_flips} harmful flips (limit {limits.harmful_flips:.1%})")
        if found.accuracy is not None:
            paired = found.accuracy
            said.append(
                f"accuracy {paired.accuracy_before:.2%} -> {paired.accuracy_after:.2%} (drop limit {limits.accuracy_drop:.1%})"
            )
        others = ", ".join(f"{other.about} at batch {other.batch}" for other in failed[1:])
        lines.append(f"{found.about}, batch {found.batch}: {', '.join(said)}" + (f"; also {others}" if others else ""))
    if link.placement is not None and link.placement.elsewhere:
        lines.append(link.placement.text)
    if link.first_bad is not None:
        lines.append(link.first_bad)
    return lines
