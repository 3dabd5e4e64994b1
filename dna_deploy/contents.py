"""A bundle opened anywhere: checked before anything in it is used, then run again and measured."""

import json
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dna_deploy.bundle import (
    LOGITS,
    PORTABLE,
    VERIFICATION,
    Array,
    Manifest,
    Run,
    classes_of,
    proto,
)
from dna_deploy.errors import CheckFailed, DnaError, MachineError, RequestError, first_line
from dna_deploy.exporters._exporter import Exporter
from dna_deploy.exporters.onnx import load
from dna_deploy.files import read_arrays, read_json, sha256
from dna_deploy.measure import measure_runs
from dna_deploy.plugins import find, knows, names
from dna_deploy.session import require_survived
from dna_deploy.verify import Paired, Step, Verification, by_class, given, load_logits, outputs, paired, winners
from profilers import Model, Plan, ProfilerError, Stop, find_device, find_profiler, measure, summarize

LARGEST_BYTES = 4 << 30  # of an unpacked zip


@dataclass(frozen=True)
class Golden:
    """What a model answered to the golden images, now against then."""

    file: str
    largest_difference: float
    tolerance: float
    same_top1: bool

    @property
    def ok(self) -> bool:
        return self.same_top1 and self.largest_difference <= self.tolerance


@dataclass(frozen=True)
class Contents:
    """An opened bundle, its files checked."""

    folder: Path
    manifest: Manifest
    labels: list[str]

    @property
    def golden(self) -> dict[str, Array]:
        return read_arrays(self.folder / "golden.npz")

    @property
    def exported(self) -> list[str]:
        """The models that were exported for themselves; what is known of another is part of what was made from it."""
        return [name for name in self.manifest.models if {name + VERIFICATION, name + LOGITS} <= {*self.manifest.files}]

    def verification(self, name: str) -> Verification:
        """What was found when it was exported; CheckFailed unless that is of this very file, and all of it passed."""
        found = read_json(self.folder / f"{name}{VERIFICATION}", Verification)
        if found.sha256 != self.manifest.files[name].sha256:
            raise CheckFailed(f"{name}{VERIFICATION}: is of another file than {name}, by its SHA-256; export again")
        if not found.verified:
            raise CheckFailed(f"{name}{VERIFICATION}: does not say that {name} passed its export; export again")
        return found

    def accuracy(self, name: str) -> Paired | None:
        """Of the network that was trained and of this model, from the logits kept; None without labels."""
        labels, logits = load_logits(self.folder / f"{name}{LOGITS}")
        if labels is None or len(logits) < 2:
            return None
        first, *_, last = logits.values()
        shape = (labels.size, len(self.labels))
        fit = labels.ndim == 1 and labels.dtype.kind in "iu" and labels.size > 0
        if not fit or any(part.shape != shape or part.dtype.kind != "f" for part in (first, last)):
            raise CheckFailed(f"{name}{LOGITS}: labels and logits are not of the same images; export again")
        return paired(winners(first) == labels, winners(last) == labels)


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The bundle in a folder or a zip, every file checked against the manifest before anything in it is used."""
    if path.is_dir():
        yield _contents(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
            _unpack(path, Path(folder))
            root = Path(folder)
            inner = [file.parent for file in root.glob("*/manifest.json")]  # a folder zipped by a file manager
            try:
                yield _contents(inner[0] if len(inner) == 1 and not (root / "manifest.json").is_file() else root)
            except DnaError as error:  # which names the folder it was unpacked to, and nobody knows that one
                raise type(error)(str(error).replace(folder, str(path))) from error
    else:
        raise RequestError(f"{path}: no such bundle; expected a folder or a .zip that dna-export wrote")


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if not _inside(entry.filename) or stat.S_ISLNK(entry.external_attr >> 16):
                    raise RequestError(f"{path}: {entry.filename!r} leads outside the bundle; it was not unpacked")
            if sum(entry.file_size for entry in entries) > LARGEST_BYTES:
                raise RequestError(
                    f"{path}: more than {LARGEST_BYTES >> 30} GiB when unpacked; unpack it yourself and give the folder"
                )
            archive.extractall(folder)
    except RuntimeError as error:  # encrypted, or compressed in another way than Python knows
        raise RequestError(f"{path}: cannot be unpacked here ({error}); unpack it yourself and give the folder") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise RequestError(f"{path}: not a whole zip ({error}); was it cut off? copy it again") from error


def _inside(name: str) -> bool:
    """Whether a name from a file we did not write stays in its folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and not name.startswith(("/", "\\")) and ":" not in parts[0]


def _contents(folder: Path) -> Contents:
    if not (folder / "manifest.json").is_file():
        raise RequestError(f"{folder}: no manifest.json in it; expected a bundle that dna-export wrote")
    manifest = read_json(folder / "manifest.json", Manifest)
    for name, listed in manifest.files.items():
        file = folder / name
        if not _inside(name) or file.resolve() != folder.resolve() / name:
            raise RequestError(f"{folder}: the manifest lists {name!r}, which leads outside the bundle")
        if not file.is_file():
            raise CheckFailed(f"{folder}: {name} is missing; copy the bundle again")
        if file.stat().st_size != listed.bytes:
            raise CheckFailed(f"{file}: {file.stat().st_size} bytes, shipped with {listed.bytes}; copy the bundle again")
        if sha256(file) != listed.sha256:
            raise CheckFailed(f"{file}: its SHA-256 is not the manifest's; the file was changed after the export")
    beside: list[str] = []
    for name, packed in manifest.models.items():
        if not knows("exporters", packed.format):  # a path ending in .py would be found too, and run
            raise RequestError(
                f"{folder}: {name} is of the format {packed.format!r}, none of {', '.join(names('exporters'))}; if it is one of "
                "your own, add --format FILE.py"
            )
        exporter: Exporter = find("exporters", packed.format)
        if not name.endswith(exporter.suffix):
            raise CheckFailed(f"{folder}: {name} is of the format {exporter.name}, whose files end in {exporter.suffix}")
        beside += [Path(name).with_suffix(suffix).as_posix() for suffix in exporter.beside]
    if manifest.newest not in manifest.models:
        raise CheckFailed(f"{folder}: the manifest calls {manifest.newest} the newest model, which is none of its models")
    judged = [manifest.newest + ending for ending in ("", VERIFICATION, LOGITS)]
    for needed in (*manifest.models, *beside, PORTABLE, *judged, "preprocess.onnx", "labels.json", "golden.npz"):
        if needed not in manifest.files:
            raise CheckFailed(f"{folder}: the manifest does not list {needed}; it was edited or is of another export")
    for name in manifest.files:
        if name.endswith(".onnx"):
            _self_contained(folder / name, set(manifest.files))
    labels = _labels(folder / "labels.json")
    if (classes := classes_of(folder / PORTABLE)) != len(labels):
        raise CheckFailed(f"{folder}: {len(labels)} labels for {classes} classes; labels.json is of another network")
    return Contents(folder, manifest, labels)


def _labels(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{path}: not JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckFailed(f"{path}: expected a list of names, one a class")
    return names


def _self_contained(path: Path, files: set[str]) -> None:
    """Weights outside the file must be files of the bundle: a path elsewhere would be read from this machine."""
    for weight in _tensors(proto(path)):
        for entry in weight.external_data:
            if entry.key == "location" and (not _inside(entry.value) or entry.value not in files):
                raise RequestError(f"{path}: weight {weight.name} lies in {entry.value!r}, outside the bundle; it was not loaded")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a model, wherever it stands: a weight, a constant, in the graph inside a node, in a function."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def check(contents: Contents, device: str | None = None, trust: bool = False) -> tuple[list[Golden], list[str]]:
    """Run the golden images again through every model, here or, what is ONNX, on `device`.

    Returns the figures, and one line for each model that cannot run here: not checked is not passed. Files that can hold code
    are refused without `trust`.
    """
    for name, packed in contents.manifest.models.items():
        if find("exporters", packed.format).holds_code and not trust:
            raise RequestError(
                f"{name}: loading a {packed.format} file runs what code is in it; add --trust if you trust who made the bundle"
            )
    folder, golden = contents.folder, contents.golden
    if missing := {"images", *contents.manifest.models} - set(golden):
        raise CheckFailed(f"golden.npz: lacks {', '.join(sorted(missing))}; export again")
    images, shape = golden["images"], contents.manifest.input_shape
    if images.dtype != np.uint8 or not images.size or images.shape[1:] != (*shape[1:], *shape[:1]):
        raise CheckFailed("golden.npz: its images are not bytes of the network's input size; export again")
    for name in contents.manifest.models:
        if golden[name].dtype.kind != "f" or golden[name].shape != (len(images), len(contents.labels)):
            raise CheckFailed(f"golden.npz: {name} is not one number for each image and class; export again")
    with _refusing(folder / "preprocess.onnx", "onnx"):
        prepared = load(folder / "preprocess.onnx")(images)
    found, left = [], []
    for name, packed in contents.manifest.models.items():
        try:
            if name.endswith(".onnx"):
                require_survived(folder / name)
            exporter: Exporter = find("exporters", packed.format)
            with _refusing(folder / name, exporter.name):
                if device is not None and name.endswith(".onnx"):
                    run = _on_device(folder / name, device)
                else:
                    run = exporter.load(folder / name)
                step = Step(name, packed.options.precision, run)
                answer = outputs(step, given(prepared), max(1, packed.options.largest_batch))
        except MachineError as error:
            left.append(f"{name}: not checked here: {error}")
            continue
        found.append(_golden(name, answer, golden[name], packed.tolerance))
    return found, left


def _golden(file: str, found: Array, expected: Array, tolerance: float) -> Golden:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return Golden(file, 1e30, tolerance, False)
    flips = winners(found) != winners(expected)
    ordered = np.sort(by_class(expected), axis=1)
    close = ordered[:, -1] - ordered[:, -2] <= 2 * tolerance
    return Golden(file, float(np.abs(found - expected).max()), tolerance, not bool((flips & ~close).any()))


@contextmanager
def _refusing(path: Path, runtime: str) -> Iterator[None]:
    """Nobody asked for this file but the bundle: that it cannot be loaded or run is a failed check."""
    try:
        yield
    except RequestError as error:
        raise CheckFailed(str(error)) from error
    except (DnaError, ProfilerError):
        raise
    except Exception as error:  # each format's runtime has errors of its own
        raise CheckFailed(f"{path}: the {runtime} runtime refuses it: {first_line(error)}") from None


def _on_device(path: Path, name: str) -> Run:
    device = replace(find_device(name), batch=1)
    profiler = find_profiler(device)

    def run(images: Array) -> Array:
        found: Array = np.asarray(profiler.run(device, Model(path.name, path.read_bytes()), {"input": images})[0])
        return found

    return run


def measured_ms(contents: Contents, device: str | None) -> tuple[float, float, float]:
    """The newest model's latency now: median, and the interval's low and high. Without a device here, as its format runs."""
    name = contents.manifest.newest
    file, exporter = contents.folder / name, find("exporters", contents.manifest.models[name].format)
    if name.endswith(".onnx"):
        asked = find_device(device or "cpu")
        model = Model(name, file.read_bytes())
        visits = list(measure(find_profiler(asked), asked, [model], Plan(rounds=12, anchors=0), Stop(seconds=20.0)))
        found = summarize(visits)
    elif device is not None:
        raise RequestError(f"--device {device}: {name} is not ONNX; devices run ONNX files")
    elif exporter.measure is not None:
        found = min(exporter.measure(file).values(), key=lambda way: way.latency_ms)
    else:
        image = load(contents.folder / "preprocess.onnx")(contents.golden["images"][:1])
        with _refusing(file, exporter.name):
            run = exporter.load(file)
            found = measure_runs({name: lambda: run(image)})[name]
    return found.latency_ms, found.low_ms, found.high_ms


def spoken(parts: Sequence[Golden]) -> str:
    """What failed, in one line."""
    return "; ".join(
        f"{part.file}: golden images differ by {part.largest_difference:.2g} (allowed {part.tolerance:.2g})"
        + ("" if part.same_top1 else ", and one is of another class")
        for part in parts
        if not part.ok
    )
