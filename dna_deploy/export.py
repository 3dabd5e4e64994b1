"""The third recipe: write a network in a deployment format step by step, hold every step against the one before, measure it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dna_deploy.bundle import GOLDEN, LOGITS, PORTABLE, VERIFICATION, write_bundle
from dna_deploy.errors import CannotRun, CheckFailed, DnaError, RequestError
from dna_deploy.exporters._exporter import Exporter, Options
from dna_deploy.files import sha256, write_atomic, write_json
from dna_deploy.locate import Graph, Module, locate
from dna_deploy.measure import Latency, device_of, measure_runs, measure_whole
from dna_deploy.on_device import require_device, run_on_device
from dna_deploy.original import Original
from dna_deploy.plugins import find
from dna_deploy.precision import lower
from dna_deploy.progress import say
from dna_deploy.quantize import quantize_within
from dna_deploy.ranges import observe
from dna_deploy.run import Picked
from dna_deploy.table import LatencyTable
from dna_deploy.verify import LIMITS, Limits, Link, Step, Verification, compare, failures, judge, link, outputs, save_logits
from profilers import Model

SEARCHED = 8  # images that the search for the first wrong tensor runs on


@dataclass(frozen=True)
class Exported:
    path: Path
    verification: Verification


def export(
    original: Original,
    format: str,
    options: Options,
    limits: Mapping[str, Limits] = LIMITS,
    output: Path | None = None,
    device: str | None = None,
) -> Exported:
    """Raises CheckFailed at the first step that is not the one before it; the files and the figures stay to look at.

    With a `device` the file is run there too, over the whole test set.
    """
    exporter: Exporter = find("exporters", format)
    if device is not None:
        require_device(device, exporter.suffix)
    if options.precision not in exporter.precisions:
        raise RequestError(f"--precision {options.precision}: {exporter.name} carries {', '.join(exporter.precisions)}")
    if exporter.check is not None:
        exporter.check(options)
    path = output or original.folder / f"{stem(options.precision)}{exporter.suffix}"
    say(f"exporting {original.name} to {path}, checked on {original.test.about}")
    first = before = original.step
    trained = logits = outputs(first, original.test, options.largest_batch)
    links: list[Link] = []
    made: list[Step] = []
    answers = {first.name: trained}
    not_run = None
    try:
        for step in steps(original, exporter, options, path):
            found, after = compare(before, logits, step, original.test, options.largest_batch, limits[step.precision])
            links.append(found if found.ok else replace(found, first_bad=_first_bad(original, before, step)))
            answers[f"{len(links)} {step.name}"] = after
            if not found.ok:
                break
            made.append(step)
            before, logits = step, after
    except CannotRun as error:
        not_run = str(error)
    if len(links) > 1 and links[-1].ok and not_run is None:  # each step is near the one before; so must be the last to the first
        whole = judge(trained, logits, original.test.labels, options.largest_batch, limits[options.precision])
        links.append(link(first, before, limits[options.precision], [whole]))
    there, latency = None, None
    if not_run is None and links[-1].ok:
        if device is None:
            latency = _latency(exporter, original, made)
        else:
            there, latency = run_on_device(device, made[-1], logits, original, limits[options.precision])
    digest = sha256(path) if path.exists() else None
    verification = Verification(path.name, digest, original.test.about, links, latency, not_run, there)
    write_json(path.with_name(f"{path.name}{VERIFICATION}"), verification)
    save_logits(path.with_name(f"{path.name}{LOGITS}"), original.test.labels, answers)
    if not verification.ok:
        last = there or links[-1]
        place = f"{last.file or path}: step {last.step}"
        raise CheckFailed(f"{place} is not the network it was made from: {'; '.join(failures(last))}")
    if output is None and not_run is None:
        _pack(original, exporter, options, path, made)
    return Exported(path, verification)


def _first_bad(original: Original, before: Step, step: Step) -> str | None:
    """The first wrong tensor of a step that failed; None where it is no ONNX file that could be looked into."""
    import onnx

    if step.path is None or step.path.suffix != ".onnx":
        return None
    if before.path is not None and before.path.suffix != ".onnx":
        return None
    reference = Graph(onnx.load(before.path)) if before.path else Module(original.network)
    images = original.test.at(range(min(SEARCHED, original.test.count)))
    try:
        return locate(reference, onnx.load(step.path), {"input": images}, step.precision).text
    except Exception as error:  # a graph too broken to be cut; that the step failed must be heard all the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        return f"the first wrong tensor could not be searched for ({reason})"


def _pack(original: Original, exporter: Exporter, options: Options, path: Path, made: list[Step]) -> None:
    """The export folder becomes a bundle that can be checked anywhere."""
    portable = path.with_name(PORTABLE)
    if all(step.path != portable for step in made):  # a format made from the module needs no ONNX file; a bundle does
        try:
            onnx = find("exporters", "onnx")
            onnx.write(original.network, original.contract, portable, replace(options, opset=onnx.opset, precision="fp32"))
        except DnaError as error:
            say(f"{path.parent} is no bundle: its portable ONNX file could not be written ({error})")
            return
    about = {"precision": options.precision, "opset": options.opset, "largest_batch": options.largest_batch}
    made_from = {"command": f"dna-export {original.asked}", "format": exporter.name, **about}
    images = original.test.at(range(min(GOLDEN, original.test.count)))
    write_bundle(
        path.parent, original.name, original.contract, path, exporter, options.precision, images, made_from, original.licences
    )
    say(f"{path.parent} is a bundle: check it anywhere with dna-export --verify {path.parent}, or python example.py in it")


def stem(precision: str) -> str:
    return "model" if precision == "fp32" else f"model-{precision}"


def steps(original: Original, exporter: Exporter, options: Options, path: Path) -> Iterator[Step]:
    """The chain from the network to the file at `path`; each step is made when the one before it has been verified."""
    precision = options.precision
    options = replace(options, opset=options.opset or exporter.opset)
    onnx: Exporter = find("exporters", "onnx")
    if exporter.made_from == "module" and exporter is not onnx:
        exporter.write(original.network, original.contract, path, options)
        yield Step(exporter.name, precision, exporter.load(path), path)
        return
    kind = "-symmetric" if exporter.symmetric_int8 and precision == "int8" else ""
    last_graph = path if exporter is onnx else original.folder / f"{stem(precision)}{kind}.onnx"
    graph = last_graph if precision == "fp32" else original.folder / f"{stem('fp32')}.onnx"
    onnx.write(original.network, original.contract, graph, options)
    yield Step(onnx.name, "fp32", onnx.load(graph), graph)
    if precision != "fp32":
        kept = in_precision(graph, last_graph, original, exporter, options)
        yield Step(precision, precision, onnx.load(last_graph), last_graph, kept=kept)
    if exporter is not onnx:
        exporter.write(last_graph, original.contract, path, options)
        yield Step(exporter.name, precision, exporter.load(path), path)


def in_precision(graph: Path, target: Path, original: Original, exporter: Exporter, options: Options) -> tuple[str, ...]:
    """Write the fp32 `graph` in another precision to `target`; returns what stays in float."""
    import onnx

    model = onnx.load(graph)
    seen = observe(model, original.held_out)
    if options.precision == "int8":
        load = find("exporters", "onnx").load
        return quantize_within(graph, target, seen, original.held_out, options.max_drop, exporter.symmetric_int8, load)
    lowered, kept = lower(model, options.precision, seen)
    write_atomic(target, lambda temporary: temporary.write_bytes(lowered.SerializeToString(deterministic=True)))
    if kept:
        say(f"{options.precision}: {len(kept)} nodes stay in float32: {'; '.join(kept[:5])}")
    return kept


def _latency(exporter: Exporter, original: Original, made: list[Step]) -> Latency | None:
    """The deployed file's latency beside that of the fp32 graph it was made from.

    Measured the format's own way where it has one; else on the device of the pick, at its table's speed, where that can be
    measured from here and runs the format; else in this process, as `load` runs the file.
    """
    last, picked = made[-1], original.picked
    if exporter.measure is not None and last.path is not None:
        ways = exporter.measure(last.path)
        for way, taken in ways.items():
            say(f"{way}: {taken.latency_ms:.3g} ms ({taken.low_ms:.3g} to {taken.high_ms:.3g})")
        way, best = min(ways.items(), key=lambda way: way[1].latency_ms)
        return Latency(way, None, best.latency_ms, best.low_ms, best.high_ms, fp32_ms=None, speed=None)
    graph = made[0] if len(made) > 1 else None
    if picked is not None and last.path is not None and last.path.suffix == ".onnx":
        on_device = _on_device(picked, last.path, graph.path if graph else None)
        if on_device is not None:
            return on_device
    image = original.test.at([0])
    runs = {"exported": lambda: last.run(image)} | ({"fp32": lambda: graph.run(image)} if graph else {})
    found = measure_runs(runs)
    measured, fp32 = found["exported"], found.get("fp32")
    return Latency(
        device="this process",
        predicted_ms=None,
        measured_ms=measured.latency_ms,
        low_ms=measured.interval_ms[0],
        high_ms=measured.interval_ms[1],
        fp32_ms=fp32.latency_ms if fp32 else None,
        speed=None,
    )


def elsewhere(original: Original, latency: Latency) -> bool:
    """Whether a network was timed in this process although the device it was searched for is another machine."""
    if original.picked is None or latency.device != "this process":
        return False
    device = device_of(LatencyTable.load(Path(original.picked.table)))
    return device is None or device.kind != "host"


def _on_device(picked: Picked, file: Path, fp32: Path | None) -> Latency | None:
    models = [Model("exported", file.read_bytes()), *([Model("fp32", fp32.read_bytes())] if fp32 else [])]
    found = measure_whole(LatencyTable.load(Path(picked.table)), models, picked.predicted_ms)
    if found is None:
        return None
    measured = found["exported"].measurement
    return Latency(
        device=picked.device,
        predicted_ms=picked.predicted_ms,
        measured_ms=measured.latency_ms,
        low_ms=measured.interval_ms[0],
        high_ms=measured.interval_ms[1],
        fp32_ms=found["fp32"].measurement.latency_ms if fp32 else None,
        speed=found["exported"].speed,
    )
