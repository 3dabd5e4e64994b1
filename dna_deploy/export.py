"""The third recipe: write a network in a deployment format step by step, hold every step against the one before, measure it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dna_deploy.errors import CannotRun, CheckFailed, RequestError
from dna_deploy.exporters._exporter import Exporter, Options
from dna_deploy.files import sha256, write_json
from dna_deploy.measure import Latency, measure_whole
from dna_deploy.original import Original
from dna_deploy.plugins import find
from dna_deploy.progress import say
from dna_deploy.run import Picked
from dna_deploy.table import LatencyTable
from dna_deploy.verify import LIMITS, Limits, Link, Step, Verification, compare, failures, judge, link, outputs
from profilers import Model


@dataclass(frozen=True)
class Exported:
    path: Path
    verification: Verification


def export(
    original: Original, format: str, options: Options, limits: Mapping[str, Limits] = LIMITS, output: Path | None = None
) -> Exported:
    """Raises CheckFailed at the first step that is not the one before it; the files and the figures stay to look at."""
    exporter: Exporter = find("exporters", format)
    if options.precision not in exporter.precisions:
        raise RequestError(f"--precision {options.precision}: {exporter.name} carries {', '.join(exporter.precisions)}")
    path = output or original.folder / f"{stem(options.precision)}{exporter.suffix}"
    say(f"exporting {original.name} to {path}, checked on {original.test.about}")
    first = before = original.step
    trained = logits = outputs(first, original.test, options.largest_batch)
    links: list[Link] = []
    not_run = None
    try:
        for step in steps(original, exporter, options, path):
            found, after = compare(before, logits, step, original.test, options.largest_batch, limits[step.precision])
            links.append(found)
            if not found.ok:
                break
            before, logits = step, after
    except CannotRun as error:
        not_run = str(error)
    if len(links) > 1 and links[-1].ok and not_run is None:  # each step is near the one before; so must be the last to the first
        whole = judge(trained, logits, original.test.labels, options.largest_batch, limits[options.precision])
        links.append(link(first, before, limits[options.precision], [whole]))
    latency = _latency(exporter, original.picked, path) if not_run is None and links[-1].ok else None
    digest = sha256(path) if path.exists() else None
    verification = Verification(path.name, digest, original.test.about, links, latency, not_run)
    write_json(path.with_name(f"{path.name}.verification.json"), verification)
    if not verification.ok:
        last = links[-1]
        raise CheckFailed(
            f"{last.file or path}: step {last.step} is not the network it was made from: {'; '.join(failures(last))}"
        )
    return Exported(path, verification)


def stem(precision: str) -> str:
    return "model" if precision == "fp32" else f"model-{precision}"


def steps(original: Original, exporter: Exporter, options: Options, path: Path) -> Iterator[Step]:
    """The chain from the network to the file at `path`; each step is made when the one before it has been verified."""
    precision = options.precision
    onnx: Exporter = find("exporters", "onnx")
    if exporter.made_from == "module":
        exporter.write(original.network, original.contract, path, options)
        yield Step(exporter.name, precision, exporter.load(path), path)
        return
    graph = original.folder / f"{stem('fp32')}.onnx"
    onnx.write(original.network, original.contract, graph, options)
    yield Step(onnx.name, "fp32", onnx.load(graph), graph)
    exporter.write(graph, original.contract, path, options)
    yield Step(exporter.name, precision, exporter.load(path), path)


def _latency(exporter: Exporter, picked: Picked | None, path: Path) -> Latency | None:
    """The exported file's latency, where the device of the pick can be measured from here and runs this format."""
    if exporter.measure is not None:
        ways = exporter.measure(path)
        for way, found in ways.items():
            say(f"{way}: {found.latency_ms:.3g} ms ({found.low_ms:.3g} to {found.high_ms:.3g})")
        way, best = min(ways.items(), key=lambda way: way[1].latency_ms)
        return Latency(way, None, best.latency_ms, best.low_ms, best.high_ms, fp32_ms=None, speed=None)
    if picked is None or path.suffix != ".onnx":
        return None
    beside = measure_whole(LatencyTable.load(Path(picked.table)), [Model("exported", path.read_bytes())], picked.predicted_ms)
    if beside is None:
        return None
    measured, speed = beside["exported"].measurement, beside["exported"].speed
    return Latency(
        picked.device, picked.predicted_ms, measured.latency_ms, measured.low_ms, measured.high_ms, fp32_ms=None, speed=speed
    )
