"""Is the exported network still the one that was trained? Every test image, at several batch sizes, against PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_deploy.data import Images, Preprocessing
from dna_deploy.progress import bar

Array = np.ndarray[Any, np.dtype[Any]]
SCHEMA = "dna-deploy/verification/1"


@dataclass(frozen=True)
class Limits:
    """What an export must keep to; fp32 through another runtime differs by rounding only."""

    top1_agreement: float = 1.0  # share of images with the same winning class
    largest_difference: float = 1e-4  # of any logit, absolute


@dataclass(frozen=True)
class Comparison:
    """The exported network against the PyTorch one on the same images, at one batch size."""

    batch: int
    images: int
    top1_agreement: float
    largest_difference: float
    mean_difference: float
    accuracy_before: float
    accuracy_after: float
    ok: bool


@dataclass(frozen=True)
class OnDevice:
    """The exported file run on a device: what it computes there against here, and its latency at batch 1."""

    device: str
    environment: dict[str, str | int | float | None]
    comparison: Comparison  # before: the file run here; after: run there
    predicted_ms: float | None  # from the device's own table; None where it has none of this network
    measured_ms: float | None  # at the speed of that table's sessions, where there is one
    measured_low_ms: float | None
    measured_high_ms: float | None
    speed: float | None


@dataclass(frozen=True)
class Verification:
    file: str
    sha256: str
    limits: Limits
    comparisons: list[Comparison]
    predicted_ms: float | None  # from the table, before the network was trained
    measured_ms: float | None  # the exported file on the device; None where the device was not at hand
    measured_low_ms: float | None
    measured_high_ms: float | None
    speed: float | None  # how fast the device ran its anchors then, relative to the table's sessions
    device: str | None
    on_device: OnDevice | None = None  # where the file was run on a device: then its latency stands there
    schema: str = SCHEMA

    @property
    def ok(self) -> bool:
        return all(comparison.ok for comparison in self.comparisons) and (self.on_device is None or self.on_device.comparison.ok)


def compare(
    reference: Array, exported: Callable[[Array], Array], images: Images, preprocessing: Preprocessing, batch: int, limits: Limits
) -> Comparison:
    """Run `exported` on all images in batches of `batch` and hold its logits against `reference` (N, classes)."""
    found = []
    with bar(f"verifying at batch size {batch}", len(images)) as advance:
        for start in range(0, len(images), batch):
            places = list(range(start, min(start + batch, len(images))))
            found.append(exported(preprocessing(images.batch(places)).contiguous().numpy()))
            advance(len(places))
    return judge(reference, np.concatenate(found), images.labels.numpy(), batch, limits)


def judge(reference: Array, exported: Array, labels: Array, batch: int, limits: Limits) -> Comparison:
    """The figures of two sets of logits (N, classes); anything not finite is a failure."""
    if exported.shape != reference.shape or not np.isfinite(exported).all():
        return Comparison(batch, len(labels), 0.0, float("1e30"), float("1e30"), _share(reference, labels), 0.0, False)
    difference = np.abs(reference - exported)
    agreement = float((reference.argmax(1) == exported.argmax(1)).mean())
    largest = float(difference.max())
    return Comparison(
        batch=batch,
        images=len(labels),
        top1_agreement=agreement,
        largest_difference=largest,
        mean_difference=float(difference.mean()),
        accuracy_before=_share(reference, labels),
        accuracy_after=_share(exported, labels),
        ok=agreement >= limits.top1_agreement and largest <= limits.largest_difference,
    )


def _share(logits: Array, labels: Array) -> float:
    return float((logits.argmax(1) == labels).mean())


def failures(verification: Verification) -> Sequence[str]:
    """One line for each comparison that failed, with the figures and the limits."""
    limits, there = verification.limits, verification.on_device
    compared = [(f"batch {found.batch}", found) for found in verification.comparisons]
    if there is not None:
        compared.append((f"on {there.device}, against the same file run here", there.comparison))
    return [
        f"{what}: top-1 agreement {found.top1_agreement:.2%} (limit {limits.top1_agreement:.2%}), largest difference "
        f"{found.largest_difference:.2g} (limit {limits.largest_difference:.2g})"
        for what, found in compared
        if not found.ok
    ]
