"""The chain from a network to the file that is deployed: export, simplify, cast or quantize, format. One step at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.exporters import onnx as portable
from dna_deploy.exporters._exporter import Exporter, Options
from dna_deploy.original import Original
from dna_deploy.precision import lower
from dna_deploy.progress import say
from dna_deploy.quantize import quantize_within
from dna_deploy.ranges import observe
from dna_deploy.session import require_survived
from dna_deploy.verify import Step

if TYPE_CHECKING:
    from dna_deploy.exporters._exporter import Run


def stem(precision: str) -> str:
    return "model" if precision == "fp32" else f"model-{precision}"


def steps(original: Original, exporter: Exporter, options: Options, path: Path) -> Iterator[Step]:
    """From the network to the file at `path`; each step is made when the one before it has been verified."""
    if exporter.name == portable.EXPORTER.name:
        yield from graphs(original, exporter, options, path)
        return
    source: object = original.network
    if exporter.made_from == "onnx":
        for step in graphs(original, exporter, options):
            source = step.path
            yield step
    exporter.write(source, original.contract, path, options)
    yield Step(exporter.name, options.precision, exporter.load(path), path)


def graphs(original: Original, exporter: Exporter, options: Options, last: Path | None = None) -> Iterator[Step]:
    """The steps that are ONNX files, in the original's folder, the last one at `last` where it is given."""
    precision = options.precision
    options = replace(options, opset=options.opset or exporter.opset)
    kind = "-symmetric" if exporter.symmetric_int8 and precision == "int8" else ""
    last = last or original.folder / f"{stem(precision)}{kind}.onnx"
    graph = last if precision == "fp32" else original.folder / f"{stem('fp32')}.onnx"
    exported = original.folder / f"{graph.stem}.exported.onnx"
    portable.write_exported(original.network, original.contract, exported, options)
    yield Step("onnx", "fp32", _run(exported), exported)
    portable.write_simplified(exported, original.contract, graph, options)
    yield Step("simplified", "fp32", _run(graph), graph)
    exported.unlink()  # it stays to look at only where one of these two is not what it was made from
    if precision != "fp32":
        kept = in_precision(graph, last, original, exporter, options)
        yield Step(precision, precision, _run(last), last, kept=kept)


def _run(path: Path) -> "Run":
    require_survived(path)
    return portable.load(path)


def in_precision(graph: Path, target: Path, original: Original, exporter: Exporter, options: Options) -> tuple[str, ...]:
    """Write the fp32 `graph` in another precision to `target`; returns what stays in float."""
    import onnx

    model = onnx.load(graph)
    seen = observe(model, original.held_out)
    if options.precision == "int8":
        return quantize_within(graph, target, seen, original.held_out, options.max_drop, exporter.symmetric_int8, portable.load)
    lowered, kept = lower(model, options.precision, seen)
    portable.save(lowered, target)
    if kept:
        say(f"{options.precision}: {len(kept)} nodes stay in float32: {'; '.join(kept[:5])}")
    return kept
