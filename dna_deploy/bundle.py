"""The package that is shipped: a folder that says what is in it, proves it, and runs with numpy and onnxruntime alone.

manifest.json        what the bundle is, made from what, with the SHA-256 of every other file
model.onnx           the network in fp32, which runs everywhere, and beside it the formats it was exported to (model.*)
preprocessing.json   from an image file to the input; preprocess.onnx does the part behind resizing as a graph
labels.json          one name a class
golden.npz           a few images (N, H, W, 3) uint8, and what each model answered to them
MODEL.verification.json  every step of the export against the one before, and the latency; MODEL.logits.npz is behind it
LICENCES.md          of the teacher and the data
example.py           checks the files, runs the golden images and says what they show
"""

import json
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dna_deploy.errors import CheckFailed, DnaError, MachineError, RequestError
from dna_deploy.exporters._exporter import Contract, Exporter, Options
from dna_deploy.files import read_arrays, read_json, sha256, write_arrays, write_atomic, write_json, write_text
from dna_deploy.graph import OPSET
from dna_deploy.plugins import find
from dna_deploy.verify import Paired, load_logits, paired
from profilers import Device, Model, Plan, Stop, find_device, find_profiler, measure, summarize

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Array], Array]

SCHEMA = "dna-deploy/bundle/2"
PORTABLE = "model.onnx"
VERIFICATION, LOGITS = ".verification.json", ".logits.npz"  # endings behind the name of the model they are about
GOLDEN = 8  # images
LARGEST_BYTES = 4 << 30  # of an unpacked zip
# Largest difference of a golden logit on another machine, in units of the logits' spread. fp32 differs by the order of its
# sums; int8 also by the instructions a processor has: without VNNI, products of two 8-bit numbers saturate in pairs.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.5, "int8": 0.5}

EXAMPLE = '''"""Checks this bundle and classifies its golden images; needs only numpy and onnxruntime: python example.py"""
import hashlib, json, sys
from pathlib import Path
import numpy, onnxruntime
here = Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
for name, file in manifest["files"].items():
    if hashlib.sha256((here / name).read_bytes()).hexdigest() != file["sha256"]:
        sys.exit(f"{name}: not the file that was shipped")
labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))
golden = numpy.load(here / "golden.npz")
def run(name, x):
    session = onnxruntime.InferenceSession(here / name)
    return session.run(None, {session.get_inputs()[0].name: x})[0]
images = golden["images"]  # (N, height, width, RGB) uint8, resized and cropped as preprocessing.json says
logits = run(manifest["portable"], run("preprocess.onnx", images))
for place, answer in enumerate(logits.argmax(1)):
    print(f"golden image {place}: {labels[answer]}")
off, allowed = numpy.abs(logits - golden[manifest["portable"]]).max(), manifest["models"][manifest["portable"]]["tolerance"]
print(f"largest difference {off:.2g}, allowed {allowed:.2g}")
sys.exit(0 if off <= allowed else 1)
'''


@dataclass(frozen=True)
class File:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Packed:
    """A model of the bundle. `tolerance`: the largest difference of a golden logit that is accepted, absolute."""

    format: str
    options: Options
    tolerance: float


@dataclass(frozen=True)
class Manifest:
    name: str
    portable: str  # the model every bundle has: fp32 ONNX
    models: dict[str, Packed]
    newest: str  # the model that was exported last: what is measured and judged where none is named
    input_shape: list[int]  # without the batch
    made_from: dict[str, str | int]  # the network, by the flags of dna-export; with a model's options its graph is made again
    made_with: dict[str, str]  # package -> version
    made_on: dict[str, str | int | float | None]  # the machine the latency was measured on, unless it was a device
    files: dict[str, File] = field(default_factory=dict)
    schema: str = SCHEMA


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
    def accuracy(self) -> Paired | None:
        """Of the network that was trained and of the newest model, from the logits kept; None without labels."""
        labels, logits = load_logits(self.folder / f"{self.manifest.newest}{LOGITS}")
        if labels is None or len(logits) < 2:
            return None
        first, *_, last = logits.values()
        return paired(first.argmax(1) == labels, last.argmax(1) == labels)


def write_bundle(
    folder: Path,
    name: str,
    contract: Contract,
    model: Path,
    exporter: Exporter,
    options: Options,
    images: Array,
    made_from: Mapping[str, str | int],
    licences: Mapping[str, str],
) -> Manifest:
    """Complete `folder`, where the verified `model` lies beside model.onnx, into a bundle; other models in it stay.

    `images` are (N, 3, H, W) as the network takes them; the golden ones are their pixels.
    """
    from importlib.metadata import version

    portable = folder / PORTABLE
    if len(contract.labels) != _classes(portable):
        raise RequestError(f"{portable}: {_classes(portable)} classes, {len(contract.labels)} labels; expected one label a class")
    write_json(folder / "labels.json", list(contract.labels))
    write_json(
        folder / "preprocessing.json",
        {
            "size": contract.image_size,
            "resize": "shorter side to the size, bicubic",
            "crop": "centre",
            "colour": "RGB",
            "input": "float32 (batch, 3, size, size): (pixel / 255 - mean) / std",
            "mean": list(contract.mean),
            "std": list(contract.std),
            "graph": "preprocess.onnx: uint8 (batch, size, size, 3) -> input",
        },
    )
    prefix = prefix_graph(contract)
    write_atomic(folder / "preprocess.onnx", lambda temporary: temporary.write_bytes(prefix))
    pixels = _pixels(images[:GOLDEN], contract)
    prepared = _onnx_run(folder / "preprocess.onnx")(pixels)
    right = _onnx_run(portable)(prepared)
    models, answers = _earlier(folder, pixels, right)
    spread = float(right.std())
    in_fp32 = replace(options, precision="fp32")
    models[PORTABLE], answers[PORTABLE] = Packed("onnx", in_fp32, TOLERANCES["fp32"] * spread), right
    if model.name != PORTABLE:
        models[model.name] = Packed(exporter.name, options, TOLERANCES[options.precision] * spread)
        answers[model.name] = exporter.load(model)(prepared)
    write_arrays(folder / "golden.npz", {"images": pixels, **answers})
    write_text(folder / "LICENCES.md", "".join(f"## {part}\n\n{text}\n\n" for part, text in licences.items()))
    write_text(folder / "example.py", EXAMPLE)
    packages = {package: version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")}
    shape = [3, contract.image_size, contract.image_size]
    manifest = Manifest(
        name=name,
        portable=PORTABLE,
        models=models,
        newest=model.name,
        input_shape=shape,
        made_from=dict(made_from),
        made_with=packages,
        made_on=find_profiler(Device("cpu", "host")).environment(Device("cpu", "host")),
        files={
            str(file.relative_to(folder).as_posix()): File(sha256(file), file.stat().st_size)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != "manifest.json" and not file.name.startswith(".")
        },
    )
    write_json(folder / "manifest.json", manifest)
    return manifest


def _earlier(folder: Path, pixels: Array, right: Array) -> tuple[dict[str, Packed], dict[str, Array]]:
    """The other models of a bundle that is already there, where they are of the same network."""
    try:
        golden = read_arrays(folder / "golden.npz")
        manifest = read_json(folder / "manifest.json", Manifest)
    except RequestError:
        return {}, {}
    nothing = np.empty(0)
    same = np.array_equal(golden.get("images", nothing), pixels) and np.array_equal(golden.get(PORTABLE, nothing), right)
    kept = {
        name: packed
        for name, packed in manifest.models.items()
        if same and name in golden and (folder / name).is_file() and sha256(folder / name) == manifest.files[name].sha256
    }
    return dict(kept), {name: golden[name] for name in kept}


def prefix_graph(contract: Contract) -> bytes:
    """`image` (batch, H, W, 3) uint8 -> what the network takes; to be run before it or merged with it (`onnx.compose`)."""
    from onnx import TensorProto, helper, numpy_helper

    size = contract.image_size
    chain: list[tuple[str, str, list[str], dict[str, Any]]] = [
        ("Cast", "pixels", [], {"to": TensorProto.FLOAT}),
        ("Sub", "centred", ["mean"], {}),
        ("Div", "scaled", ["std"], {}),
        ("Transpose", "normalised", [], {"perm": [0, 3, 1, 2]}),
    ]
    nodes, at = [], "image"
    for op, name, more, settings in chain:
        into, at = at, f"preprocess.{name}"
        nodes.append(helper.make_node(op, [into, *(f"preprocess.{part}" for part in more)], [at], at, **settings))
    weights = [
        numpy_helper.from_array(np.array(values, np.float32) * np.float32(255), f"preprocess.{name}")
        for name, values in (("mean", contract.mean), ("std", contract.std))
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])
    output = helper.make_tensor_value_info(at, TensorProto.FLOAT, ["batch", 3, size, size])
    graph = helper.make_graph(nodes, "preprocess", [image], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


def write_zip(folder: Path, path: Path) -> None:
    """The bundle as one file, the same bytes for the same bundle: no times, files in order."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ["manifest.json", *read_json(folder / "manifest.json", Manifest).files]:
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
                archive.writestr(entry, (folder / name).read_bytes())

    write_atomic(path, write)


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The bundle in a folder or a zip, every file checked against the manifest before anything in it is used."""
    if path.is_dir():
        yield _contents(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
            _unpack(path, Path(folder))
            try:
                contents = _contents(Path(folder))
            except DnaError as error:  # which names the folder it was unpacked to, and nobody knows that one
                raise type(error)(str(error).replace(folder, str(path))) from error
            yield contents
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
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise RequestError(f"{path}: not a whole zip ({error}); was it cut off? copy it again") from error


def _inside(name: str) -> bool:
    """Whether a name from a file we did not write stays in its folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and not name.startswith(("/", "\\")) and ":" not in parts[0]


def _contents(folder: Path) -> Contents:
    if not (folder / "manifest.json").is_file():
        raise RequestError(f"{folder}: no manifest.json in it; expected a bundle that dna-export wrote")
    manifest = read_json(folder / "manifest.json", Manifest)
    if manifest.schema != SCHEMA:
        raise RequestError(f"{folder}: schema {manifest.schema!r}; this version reads {SCHEMA!r}")
    for name, listed in manifest.files.items():
        file = folder / name
        if not _inside(name) or file.is_symlink():
            raise RequestError(f"{folder}: the manifest lists {name!r}, which leads outside the bundle")
        if not file.is_file():
            raise CheckFailed(f"{folder}: {name} is missing; copy the bundle again")
        if file.stat().st_size != listed.bytes:
            raise CheckFailed(f"{file}: {file.stat().st_size} bytes, shipped with {listed.bytes}; copy the bundle again")
        if sha256(file) != listed.sha256:
            raise CheckFailed(f"{file}: its SHA-256 is not the manifest's; the file was changed after the export")
    judged = [manifest.newest + ending for ending in ("", VERIFICATION, LOGITS)]
    for needed in (*manifest.models, PORTABLE, *judged, "preprocess.onnx", "labels.json", "golden.npz"):
        if needed not in manifest.files:
            raise CheckFailed(f"{folder}: the manifest does not list {needed}; it was edited or is of another export")
    for name in manifest.files:
        if name.endswith(".onnx"):
            _self_contained(folder / name, set(manifest.files))
    labels = _labels(folder / "labels.json")
    if (classes := _classes(folder / PORTABLE)) != len(labels):
        raise CheckFailed(f"{folder}: {len(labels)} labels for {classes} classes; labels.json is of another network")
    return Contents(folder, manifest, labels)


def _labels(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckFailed(f"{path}: not JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckFailed(f"{path}: expected a list of names, one a class")
    return names


def _proto(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise CheckFailed(f"{path}: not a whole ONNX file ({str(error).strip()[:100]})") from None


def _self_contained(path: Path, files: set[str]) -> None:
    """Weights outside the file must be files of the bundle: a path elsewhere would be read from this machine."""
    for weight in _proto(path).graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location" and (not _inside(entry.value) or entry.value not in files):
                raise RequestError(f"{path}: weight {weight.name} lies in {entry.value!r}, outside the bundle; it was not loaded")


def _classes(path: Path) -> int:
    return int(_proto(path).graph.output[0].type.tensor_type.shape.dim[-1].dim_value)


def check(contents: Contents, device: str | None = None) -> tuple[list[Golden], list[str]]:
    """Run the golden images again through every model, here or, what is ONNX, on `device`.

    Returns the figures, and one line for each model that cannot run here: not checked is not passed.
    """
    folder, golden = contents.folder, contents.golden
    if missing := {"images", *contents.manifest.models} - set(golden):
        raise CheckFailed(f"golden.npz: lacks {', '.join(sorted(missing))}; export again")
    prepared = _onnx_run(folder / "preprocess.onnx")(golden["images"])
    found, left = [], []
    for name, packed in contents.manifest.models.items():
        try:
            if device is not None and name.endswith(".onnx"):
                run = _on_device(folder / name, device)
            else:
                run = _loaded(find("exporters", packed.format), folder / name)
            answer = run(prepared)
        except MachineError as error:
            left.append(f"{name}: not checked here: {error}")
            continue
        found.append(_golden(name, answer, golden[name], packed.tolerance))
    return found, left


def _golden(file: str, found: Array, expected: Array, tolerance: float) -> Golden:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return Golden(file, 1e30, tolerance, False)
    flips = found.argmax(1) != expected.argmax(1)
    ordered = np.sort(expected, axis=1)
    close = ordered[:, -1] - ordered[:, -2] <= 2 * tolerance if expected.shape[1] > 1 else flips
    return Golden(file, float(np.abs(found - expected).max()), tolerance, not bool((flips & ~close).any()))


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen types without a common base
        raise CheckFailed(f"{path}: ONNX Runtime refuses it: {_first_line(error)}") from None

    def run(images: Array) -> Array:
        found: Array = session.run(None, {session.get_inputs()[0].name: images})[0]
        return found

    return run


def _loaded(exporter: Exporter, path: Path) -> Run:
    try:
        return exporter.load(path)
    except DnaError:
        raise
    except Exception as error:  # each format's runtime has errors of its own
        raise CheckFailed(f"{path}: the {exporter.name} runtime refuses it: {_first_line(error)}") from None


def _on_device(path: Path, name: str) -> Run:
    device = replace(find_device(name), batch=1)
    profiler = find_profiler(device)

    def run(images: Array) -> Array:
        found: Array = np.asarray(profiler.run(device, Model(path.name, path.read_bytes()), {"input": images})[0])
        return found

    return run


def measured_ms(contents: Contents, device: str) -> tuple[float, float, float]:
    """The newest model's latency on a device now: median, and the interval's low and high."""
    name = contents.manifest.newest
    if not name.endswith(".onnx"):
        raise RequestError(f"--device {device}: {name} is not ONNX; devices run ONNX files")
    asked = find_device(device)
    model = Model(name, (contents.folder / name).read_bytes())
    visits = list(measure(find_profiler(asked), asked, [model], Plan(rounds=12, anchors=0), Stop(seconds=20.0)))
    found = summarize(visits)
    return found.latency_ms, found.low_ms, found.high_ms


def _pixels(images: Array, contract: Contract) -> Array:
    """The uint8 images (N, H, W, 3) that normalise to these."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (contract.mean, contract.std))
    pixels: Array = np.rint(np.clip((images * std + mean) * 255, 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def spoken(parts: Sequence[Golden]) -> str:
    """What failed, in one line."""
    return "; ".join(
        f"{part.file}: golden images differ by {part.largest_difference:.2g} (allowed {part.tolerance:.2g})"
        + ("" if part.same_top1 else ", and one is of another class")
        for part in parts
        if not part.ok
    )
