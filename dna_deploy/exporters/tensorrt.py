"""TensorRT: an engine for one kind of GPU, with a manifest without which it is not loaded.

Beside `model.engine` stand `model.engine.json`, the manifest; `model.engine.layers.json`, what the engine is made of; and from
TensorRT proper `tensorrt.timing`, which makes the next build of the folder faster. TensorRT for RTX keeps no timings: it chooses
its kernels when the engine is loaded.
"""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_deploy.errors import CannotRun, CheckFailed, MachineError, RequestError
from dna_deploy.exporters._bf16 import typed_bf16
from dna_deploy.exporters._exporter import PRECISIONS, Contract, Exporter, Options
from dna_deploy.files import read_json, sha256, write_atomic, write_json
from dna_deploy.progress import bar, say
from profilers import DeviceUnavailable, Measurement, Plan, Visit, leveled, summarize_all

if TYPE_CHECKING:
    from dna_deploy.exporters._exporter import Array, Run
    from profilers._tensorrt.session import Session

TIMING_CACHE = Path.home() / ".cache" / "dna-deploy" / "tensorrt.timing"  # an engine is built in a folder that goes
MANIFEST, LAYERS = ".engine.json", ".engine.layers.json"


@dataclass(frozen=True)
class Manifest:
    """What an engine is, and for whom. It is as trustworthy as the place it comes from; a bundle has it under its own hash."""

    engine: str
    engine_sha256: str
    onnx: str  # the file it was built from
    onnx_sha256: str
    layers: str
    layers_sha256: str
    builder: str  # with its version; an engine runs with no other
    system: str
    compute_capability: str | None  # None: every one from 8.0 on
    gpu: str | None  # it was built on; None: built ahead of time
    portability: str
    precision: str
    computes_in: dict[str, int]  # convolutions and matrix products by the type they really compute in
    batches: dict[str, list[int]]  # by input: the smallest, the usual and the largest batch
    seconds: float
    timing_cache: str
    running: str  # whether it could be run where it was built
    schema: str = "dna-deploy/tensorrt-engine/1"

    @staticmethod
    def of(engine: Path) -> "Manifest":
        path = manifest_of(engine)
        if not path.is_file():
            raise RequestError(f"{engine}: no manifest {path.name} beside it; only engines with one are loaded, export it again")
        return read_json(path, Manifest)


def manifest_of(engine: Path) -> Path:
    return engine.with_suffix(MANIFEST)


def check(options: Options) -> None:
    from profilers._tensorrt.build import require_target
    from profilers._tensorrt.probes import can_build, importable

    if not (answer := importable()):
        raise MachineError(answer.why)
    require_target(options.compute_capability)
    if not (answer := can_build(options.compute_capability)):
        raise MachineError(answer.why)


def write(source: Path, contract: Contract, path: Path, options: Options) -> None:
    from profilers._tensorrt.build import Batches, build
    from profilers._tensorrt.layers import precisions
    from profilers._tensorrt.package import load as load_package
    from profilers._tensorrt.probes import can_run
    from profilers._tensorrt.session import find_gpu

    check(options)
    tensorrt = load_package()
    content = source.read_bytes()
    known = TIMING_CACHE.read_bytes() if TIMING_CACHE.exists() else b""
    batches = Batches(1, 1, options.largest_batch)
    with bar(f"building with {tensorrt}", 1.0) as advance:
        done = 0.0

        def progress(share: float) -> None:
            nonlocal done
            advance(share - done)
            done = share

        graph = _typed(content) if options.precision == "bf16" else content
        built = build(graph, str(source), batches, options.compute_capability, known, progress)
    computes_in = precisions(built.layers)
    if computes_in and options.precision not in computes_in:
        raise CheckFailed(
            f"{source}: {options.precision} was asked for, but the engine computes in {', '.join(computes_in)} only"
        )

    layers = path.with_suffix(LAYERS)
    write_atomic(path, lambda temporary: temporary.write_bytes(built.engine))
    write_json(layers, [{"precision": layer.precision, **asdict(layer)} for layer in built.layers])
    if built.timing_cache is not None:
        timings = built.timing_cache
        write_atomic(TIMING_CACHE, lambda temporary: temporary.write_bytes(timings))
    here = find_gpu()
    system = f"{platform.system()} {platform.machine()}"
    manifest = Manifest(
        engine=path.name,
        engine_sha256=sha256(path),
        onnx=source.name,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        layers=layers.name,
        layers_sha256=sha256(layers),
        builder=str(tensorrt),
        system=system,
        compute_capability=built.capability,
        gpu=here.name if here else None,
        portability=f"runs on {built.target}, on {system} with {tensorrt}, and nowhere else",
        precision=options.precision,
        computes_in=computes_in,
        batches={"input": [batches.smallest, batches.usual, batches.largest]},
        seconds=round(built.seconds, 3),
        timing_cache=f"{tensorrt} keeps none" if built.timing_cache is None else TIMING_CACHE.name,
        running=can_run().why,
    )
    write_json(manifest_of(path), manifest)
    found = ", ".join(f"{count} in {precision}" for precision, count in computes_in.items()) or "the builder does not say"
    say(f"{path}: {len(built.engine) / 1e6:.1f} MB in {built.seconds:.1f} s, {manifest.portability}")
    say(f"convolutions and matrix products: {found}; {len(built.layers)} layers in {layers.name}")


def _typed(content: bytes) -> bytes:
    import onnx

    return bytes(typed_bf16(onnx.load_from_string(content)).SerializeToString())


def load(path: Path) -> "Run":
    session = _session(path)

    def run(images: "Array") -> "Array":
        return session.run({"input": images})["output"]

    return run


def trusted(path: Path) -> tuple[Manifest, bytes]:
    """The manifest of an engine and the very bytes it vouches for: an engine can run code of its own as it is loaded."""
    manifest = Manifest.of(path)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.engine_sha256:
        raise CheckFailed(
            f"{path}: its SHA-256 is {found[:12]}..., its manifest says {manifest.engine_sha256[:12]}...; it was not loaded, "
            "export it again"
        )
    return manifest, content


def _session(path: Path) -> "Session":
    """The engine on the GPU at hand. Raises CannotRun where there is none it was built for."""
    from profilers._tensorrt.package import load as load_package
    from profilers._tensorrt.probes import can_run
    from profilers._tensorrt.session import Session, gpu

    manifest, content = trusted(path)
    try:
        tensorrt = load_package()
    except DeviceUnavailable as error:
        raise MachineError(str(error)) from error
    if str(tensorrt) != manifest.builder:
        raise CannotRun(f"{path}: was built by {manifest.builder}, here is {tensorrt}; export it again")
    if not (answer := can_run()):
        raise CannotRun(f"{path}: {answer.why}")
    if manifest.compute_capability not in (None, here := gpu().capability):
        raise CannotRun(f"{path}: was built for compute capability {manifest.compute_capability}, this GPU has {here}")
    try:
        return Session(content)
    except DeviceUnavailable as error:
        raise CannotRun(f"{path}: {error}") from error


def measure(path: Path) -> dict[str, Measurement]:
    """The time of one image as a CUDA graph and enqueued, taken in turns; each layer's own time, taken apart, beside the engine.

    Has not run yet: see profilers._tensorrt.session.
    """
    from profilers._tensorrt.session import gpu
    from profilers.tensorrt import sample

    session, plan, name = _session(path), Plan(), gpu().name
    ways = {f"{name}, CUDA graph": session.captured(1), f"{name}, enqueued": session.enqueued(1)}
    visits: list[Visit] = []
    with bar(f"measuring on {name}", plan.rounds * len(ways)) as advance:
        for round in range(plan.rounds):
            for way in plan.order(list(ways), round):
                visits.append(Visit(way, round, sample(ways[way], plan)))
                advance(1)
    measured = summarize_all(leveled(visits))
    report = {
        "schema": "dna-deploy/tensorrt-latency/1",
        "engine_sha256": sha256(path),
        "gpu": asdict(gpu()),
        "one_image": {way: asdict(found) for way, found in measured.items()},
        "layers_ms": session.layer_ms(1),
        "layers_ms_are": "medians of runs in which layers wait for each other; their sum is more than the latency",
        "inspector": _plain(session.inspect()),
    }
    write_json(path.with_suffix(".engine.latency.json"), report)
    return measured


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


EXPORTER = Exporter(
    "tensorrt",
    ".engine",
    PRECISIONS,
    "onnx",
    write,
    load,
    holds_code=True,
    beside=(MANIFEST, LAYERS),
    symmetric_int8=True,
    check=check,
    measure=measure,
)
