"""The third recipe: write a network in a deployment format step by step, hold every step against the one before, measure it."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.bundle import GOLDEN, LOGITS, PORTABLE, VERIFICATION, belonging, write_bundle
from dna_deploy.chain import stem, steps
from dna_deploy.errors import CannotRun, CheckFailed, DnaError, RequestError, TableError, first_line
from dna_deploy.exporters._exporter import Exporter, Options
from dna_deploy.files import alone, sha256, write_json
from dna_deploy.locate import locate
from dna_deploy.measure import Latency, device_of, measure_runs, measure_whole
from dna_deploy.on_device import require_device, run_on_device
from dna_deploy.original import Original
from dna_deploy.plugins import find, names
from dna_deploy.progress import say
from dna_deploy.reference import Graph, Module
from dna_deploy.report import write_report
from dna_deploy.run import Pick, Picked
from dna_deploy.session import CPU, provider_named
from dna_deploy.subgraph import onnxruntime_run
from dna_deploy.table import LatencyTable
from dna_deploy.verify import LIMITS, Limits, Link, Step, Verification, compare, failures, judge, link, outputs, save_logits
from profilers import Model

Array = np.ndarray[Any, np.dtype[Any]]
SEARCHED = 8  # images that the search for the first wrong tensor runs on


@dataclass(frozen=True)
class Exported:
    path: Path
    verification: Verification
    no_bundle: str | None = None  # why its folder is none, where it is not


def export(
    original: Original,
    format: str,
    options: Options,
    limits: Mapping[str, Limits] = LIMITS,
    output: Path | None = None,
    device: str | None = None,
    provider: str | None = None,
) -> Exported:
    """With a `device` the file is run there too, over the whole test set. Raises CheckFailed where a step fails.

    An ONNX file is run, and timed, by a `provider` of ONNX Runtime such as cuda, which has to take every node.
    """
    exporter: Exporter = find("exporters", format)
    if device is not None:
        require_device(device, exporter.suffix)
    if provider is not None and (exporter.name != "onnx" or device is not None):
        raise RequestError(f"--provider {provider}: of ONNX Runtime on this machine, for --format onnx and without --device only")
    by = provider_named(provider) if provider else CPU
    if options.precision not in exporter.precisions:
        raise RequestError(f"--precision {options.precision}: {exporter.name} carries {', '.join(exporter.precisions)}")
    if output is not None and output.suffix != exporter.suffix:
        raise RequestError(f"--output {output}: a file of {exporter.name} ends in {exporter.suffix}")
    if exporter.check is not None:
        exporter.check(options)
    target = output or original.folder / f"{stem(options.precision)}{exporter.suffix}"
    with nullcontext() if output else alone(original.folder, "dna-export"):
        say(f"exporting {original.name} to {target}, checked on {original.test.about}")
        trained = outputs(original.step, original.test, options.largest_batch)
        if unknown := int((~np.isfinite(trained)).any(1).sum()):
            raise RequestError(
                f"{original.name}: answers {unknown} of {original.test.about} with NaN or infinity before anything was exported; "
                "its weights or its preprocessing are damaged"
            )
        verification, files = _verified(original, exporter, options, limits, target, trained, device, output is not None, by)
        no_bundle = "one file alone was asked for" if output else verification.not_run
        return Exported(target, verification, no_bundle or _pack(original, exporter, options, limits, target, files, trained))


def _verified(
    original: Original,
    exporter: Exporter,
    options: Options,
    limits: Mapping[str, Limits],
    target: Path,
    trained: Array,
    device: str | None = None,
    one_file: bool = False,
    provider: str = CPU,
) -> tuple[Verification, list[Path]]:
    """Write the file at `target` step by step, and beside it what is known of it; returns that, and the files of the steps.

    Until it is verified everything lies in a folder FILE.unverified, where it stays to look at if it fails; what an earlier
    export left is replaced by what passed only, with `one_file` by nothing but it and what belongs to it. `trained` are the
    network's own logits. Raises CheckFailed at the first step that is not the one before it.
    """
    work = target.with_name(f"{target.name}.unverified")
    path = work / target.name
    shutil.rmtree(work, ignore_errors=True)
    first = before = original.step
    logits = trained
    links: list[Link] = []
    made: list[Step] = []
    answers = {first.name: trained}
    not_run = None
    try:
        for step in steps(replace(original, folder=work), exporter, options, path, provider):
            found, after = compare(before, logits, step, original.test, options.largest_batch, limits[step.precision])
            wrong = not all(comparison.ok for comparison in found.comparisons)
            links.append(replace(found, first_bad=_first_bad(original, exporter, before, step)) if wrong else found)
            answers[f"{len(links)} {step.name}"] = after
            if not found.ok:
                break
            made.append(step)
            before, logits = step, after
    except CannotRun as error:
        not_run = str(error).replace(str(work), str(target.parent))  # where the file is to be found
    if len(links) > 1 and links[-1].ok and not_run is None:  # each step is near the one before; so must be the last to the first
        whole = judge(trained, logits, original.test.labels, links[-1].comparisons[0].batch, limits[options.precision])
        links.append(link(first, before, limits[options.precision], [whole]))
    there, latency = None, None
    if not_run is None and links[-1].ok:
        if device is None:
            latency = _latency(exporter, original, made)
        else:
            fp32 = _fp32(made)
            there, latency = run_on_device(
                device, made[-1], logits, original, limits[options.precision], fp32.path if fp32 else None
            )
    digest = sha256(path) if path.exists() else None
    verification = Verification(path.name, digest, original.test.about, links, latency, not_run, there)
    write_json(path.with_name(f"{path.name}{VERIFICATION}"), verification)
    save_logits(path.with_name(f"{path.name}{LOGITS}"), original.test.labels, answers)
    files = [step.path for step in made if step.path and step.path.is_file()]
    if verification.nothing_failed:
        for name in belonging([path] if one_file or not_run else files, exporter):
            new, old = path.with_name(name), target.with_name(name)
            if old.exists() and sha256(old) != sha256(new):  # what is known of the old one does not hold of the new
                for ending in (VERIFICATION, LOGITS):
                    old.with_name(f"{name}{ending}").unlink(missing_ok=True)
            new.replace(old)
        shutil.rmtree(work)
    if original.picked is not None and not one_file:
        _report(Pick(original.folder.parent))
    if not verification.nothing_failed:
        last = there or links[-1]
        where = f"{path.with_name(last.file) if last.file else path}: step {last.step}"
        same = all(comparison.ok for comparison in last.comparisons)
        answer = "does not run as asked" if same else "is not the network it was made from"
        raise CheckFailed(f"{where} {answer}: {'; '.join(failures(last))}")
    return verification, [target.with_name(file.name) for file in files]


def _first_bad(original: Original, exporter: Exporter, before: Step, step: Step) -> str:
    """The first wrong tensor of a step that failed, or why none is named.

    A file made from ONNX that cannot be looked into is searched by its format's runtime, on parts of the graph it was made from.
    """
    import onnx

    last = step.path is not None and step.path.suffix != ".onnx"
    searched = before.path if last else step.path
    if searched is None or searched.suffix != ".onnx" or (last and exporter.run_graph is None):
        return f"no tensor is named: what is computed inside a {exporter.suffix} file cannot be read"
    reference = Graph(onnx.load(before.path)) if before.path else Module(original.network)
    images = original.test.at(range(min(SEARCHED, original.test.count)))
    run = exporter.run_graph if last and exporter.run_graph is not None else onnxruntime_run
    try:
        return locate(reference, onnx.load(searched), {"input": images}, step.precision, run).text
    except Exception as error:  # a graph too broken to be cut; that the step failed must be heard all the same
        return f"the first wrong tensor could not be searched for ({first_line(error)})"


def _report(pick: Pick) -> None:
    """An export is not thrown away because what the report shows besides, such as the latency table, is elsewhere."""
    try:
        say(f"all of it on one page: {write_report(pick)}")
    except DnaError as error:
        say(f"{pick.report} was not written: {error}")


def _pack(
    original: Original,
    exporter: Exporter,
    options: Options,
    limits: Mapping[str, Limits],
    path: Path,
    files: list[Path],
    trained: Array,
) -> str | None:
    """The export folder becomes a bundle that can be checked anywhere; returns why it does not, where it does not.

    `files` are those of the steps to the one at `path`.
    """
    portable = path.with_name(PORTABLE)
    options = replace(options, opset=options.opset or exporter.opset)
    if portable not in files:  # a format made from the module needs no ONNX file; a bundle does
        try:
            _verified(original, find("exporters", "onnx"), replace(options, precision="fp32"), limits, portable, trained)
        except DnaError as error:
            say(f"{path.parent} is no bundle: it has no portable ONNX file ({error})")
            return f"it has no portable ONNX file ({error})"
        files = [portable, *(portable.with_name(f"{PORTABLE}{ending}") for ending in (VERIFICATION, LOGITS)), *files]
    images = original.test.at(range(min(GOLDEN, original.test.count)))
    write_bundle(
        path.parent, original.name, original.contract, files, exporter, options, images, original.made_from, original.licences
    )
    own = "" if exporter.name in names("exporters") else " --format FILE.py"
    say(f"{path.parent} is a bundle: check it anywhere with dna-export --verify {path.parent}{own}, or python example.py in it")
    return None


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
    graph = _fp32(made)
    if picked is not None and last.path is not None and last.path.suffix == ".onnx" and last.provider == CPU:
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


def _fp32(made: list[Step]) -> Step | None:
    """The ONNX graph that the last step was made from; None where it is that graph, or was made from the module."""
    return next((step for step in made[:-1] if step.name == "simplified"), None)


def elsewhere(original: Original, latency: Latency) -> bool:
    """Whether a network was timed in this process although the device it was searched for is another machine."""
    if original.picked is None or latency.device != "this process":
        return False
    device = device_of(LatencyTable.load(Path(original.picked.table)))
    return device is None or device.kind != "host"


def _on_device(picked: Picked, file: Path, fp32: Path | None) -> Latency | None:
    models = [Model("exported", file.read_bytes()), *([Model("fp32", fp32.read_bytes())] if fp32 else [])]
    try:
        table = LatencyTable.load(Path(picked.table))
    except TableError as error:  # the run was moved away from it; an export of minutes is not thrown away for that
        say(f"{error}: measured in this process instead")
        return None
    found = measure_whole(table, models, picked.predicted_ms)
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
