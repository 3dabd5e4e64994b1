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
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.errors import CheckFailed, RequestError
from dna_deploy.exporters._exporter import Contract, Exporter, Options
from dna_deploy.exporters.onnx import load
from dna_deploy.files import read_arrays, read_json, sha256, write_arrays, write_atomic, write_json, write_text
from dna_deploy.graph import OPSET
from dna_deploy.progress import say
from dna_deploy.verify import Step, given, outputs
from profilers import Device, find_profiler

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Array], Array]

SCHEMA = "dna-deploy/bundle/4"
PORTABLE = "model.onnx"
VERIFICATION, LOGITS = ".verification.json", ".logits.npz"  # endings behind the name of the model they are about
OWN = ("labels.json", "preprocessing.json", "preprocess.onnx", "golden.npz", "LICENCES.md", "example.py")
GOLDEN = 8  # images
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
logits = run("model.onnx", run("preprocess.onnx", images))
for place, row in enumerate(logits):
    print(f"golden image {place}: {labels[row.argmax()]}" + (f" {row[0]:+.3g}" if len(row) == 1 else ""))
off, allowed = numpy.abs(logits - golden["model.onnx"]).max(), manifest["models"]["model.onnx"]["tolerance"]
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
    files: list[str]  # it, what it was made from and what says something of it


@dataclass(frozen=True)
class Manifest:
    name: str
    models: dict[str, Packed]
    newest: str  # the model that was exported last: what is measured
    input_shape: list[int]  # without the batch
    made_from: dict[str, str | int]  # the network, by the flags of dna-export; with a model's options its graph is made again
    made_with: dict[str, str]  # package -> version
    made_on: dict[str, str | int | float | None]  # the machine the latency was measured on, unless it was a device
    files: dict[str, File] = field(default_factory=dict)
    schema: str = SCHEMA


def write_bundle(
    folder: Path,
    name: str,
    contract: Contract,
    made: Sequence[Path],
    exporter: Exporter,
    options: Options,
    images: Array,
    made_from: Mapping[str, str | int],
    licences: Mapping[str, str],
) -> Manifest:
    """Complete `folder` into a bundle. `made` are the ONNX files of the chain, model.onnx beside them, and the verified model.

    Other models that are there stay, if they are of the same network. `images` are (N, 3, H, W) as the network takes them; the
    golden ones are their pixels.
    """
    from importlib.metadata import version

    portable, model = folder / PORTABLE, made[-1]
    if len(contract.labels) != classes_of(portable):
        raise RequestError(
            f"{portable}: {classes_of(portable)} classes, {len(contract.labels)} labels; expected one label a class"
        )
    said: dict[str, Any] = {
        "labels.json": list(contract.labels),
        "preprocessing.json": {
            "size": contract.image_size,
            "shorter_side": contract.shorter_side or contract.image_size,
            "interpolation": contract.interpolation,
            "crop": "centre",
            "colour": "RGB",
            "input": "float32 (batch, 3, size, size): (pixel / 255 - mean) / std",
            "mean": list(contract.mean),
            "std": list(contract.std),
            "graph": "preprocess.onnx: uint8 (batch, size, size, 3) -> input",
        },
    }
    prefix = prefix_graph(contract)
    write_atomic(folder / "preprocess.onnx", lambda temporary: temporary.write_bytes(prefix))
    pixels = _pixels(images[:GOLDEN], contract)
    prepared = load(folder / "preprocess.onnx")(pixels)
    right = load(portable)(prepared)
    models, answers = _earlier(folder, pixels, right, said)
    for file, values in said.items():
        write_json(folder / file, values)
    spread = float(right.std())
    in_fp32, known = replace(options, precision="fp32"), models[PORTABLE].files if PORTABLE in models else [PORTABLE]
    models[PORTABLE], answers[PORTABLE] = Packed("onnx", in_fp32, TOLERANCES["fp32"] * spread, known), right
    files = belonging(made, exporter)
    models[model.name] = Packed(exporter.name, options, TOLERANCES[options.precision] * spread, files)
    if model.name != PORTABLE:
        answers[model.name] = outputs(
            Step(model.name, options.precision, exporter.load(model)), given(prepared), options.largest_batch
        )
    write_arrays(folder / "golden.npz", {"images": pixels, **answers})
    write_text(folder / "LICENCES.md", "".join(f"## {part}\n\n{text}\n\n" for part, text in licences.items()))
    write_text(folder / "example.py", EXAMPLE)
    listed = {*OWN, *(name for packed in models.values() for name in packed.files)}
    packages = {package: version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")}
    shape = [3, contract.image_size, contract.image_size]
    manifest = Manifest(
        name=name,
        models=models,
        newest=model.name,
        input_shape=shape,
        made_from=dict(made_from),
        made_with=packages,
        made_on=find_profiler(Device("cpu", "host")).environment(Device("cpu", "host")),
        files={
            name: File(sha256(folder / name), (folder / name).stat().st_size)
            for name in sorted(listed)
            if (folder / name).is_file()
        },
    )
    write_json(folder / "manifest.json", manifest)
    return manifest


def belonging(made: Sequence[Path], exporter: Exporter) -> list[str]:
    """The model's file, what it was made from, and what lies beside it: under its name with an ending, or another suffix."""
    model = made[-1]
    named = [file for file in model.parent.iterdir() if file.name.startswith(f"{model.name}.")]
    beside = [*named, *(model.with_suffix(suffix) for suffix in exporter.beside)]
    return sorted({file.name for file in (*made, *beside) if file.is_file()})


def _earlier(folder: Path, pixels: Array, right: Array, said: Mapping[str, Any]) -> tuple[dict[str, Packed], dict[str, Array]]:
    """The other models of a bundle that is already there, where they are of the same network and it says the same of them."""
    try:
        golden = read_arrays(folder / "golden.npz")
        manifest = read_json(folder / "manifest.json", Manifest)
        known = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in said}
    except (RequestError, OSError, ValueError):
        return {}, {}
    nothing = np.empty(0)
    same = np.array_equal(golden.get("images", nothing), pixels) and np.array_equal(golden.get(PORTABLE, nothing), right)
    same = same and known == said
    kept = {
        name: packed
        for name, packed in manifest.models.items()
        if same
        and name in golden
        and name in manifest.files
        and (folder / name).is_file()
        and sha256(folder / name) == manifest.files[name].sha256
    }
    if stale := sorted({*manifest.models} - {*kept, PORTABLE}):
        why = "made from another network or with other labels, or changed since"
        say(f"{folder}: {', '.join(stale)} left out of the bundle: {why}; export again")
    return kept, {name: golden[name] for name in kept}


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


def classes_of(path: Path) -> int:
    shapes = [output.type.tensor_type.shape.dim for output in proto(path).graph.output]
    if not shapes or not shapes[0]:
        raise CheckFailed(f"{path}: its output has no shape; expected (batch, classes), export again")
    return int(shapes[0][-1].dim_value)


def proto(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise CheckFailed(f"{path}: not a whole ONNX file ({str(error).strip()[:100]})") from None


def _pixels(images: Array, contract: Contract) -> Array:
    """The uint8 images (N, H, W, 3) that normalise to these."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (contract.mean, contract.std))
    pixels: Array = np.rint(np.clip((images * std + mean) * 255, 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
