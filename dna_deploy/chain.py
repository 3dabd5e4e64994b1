"""The chain from a network to the file that is deployed: export, simplify, cast or quantize, format. One step at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dna_deploy.exporters import onnx as portable
from dna_deploy.exporters._exporter import Exporter, Options
from dna_deploy.original import Original
from dna_deploy.precision import lower
from dna_deploy.progress import say
from dna_deploy.quantize import quantize_within
from dna_deploy.ranges import observe
from dna_deploy.session import CPU, require_survived
from dna_deploy.verify import Step


def stem(precision: str) -> str:
    return "model" if precision == "fp32" else f"model-{precision}"


def steps(original: Original, exporter: Exporter, options: Options, path: Path, provider: str = CPU) -> Iterator[Step]:
    """From the network to the file at `path`; each step is made when the one before it has been verified.

    What is ONNX at the end is run by that `provider` of ONNX Runtime.
    """
    if exporter.name == portable.EXPORTER.name:
        yield from graphs(original, exporter, options, path, provider)
        return
    source: object = original.network
    if exporter.made_from == "onnx":
        for step in graphs(original, exporter, options):
            source = step.path
            yield step
    exporter.write(source, original.contract, path, options)
    yield Step(exporter.name, options.precision, exporter.load(path), path)


def graphs(
    original: Original, exporter: Exporter, options: Options, last: Path | None = None, provider: str = CPU
) -> Iterator[Step]:
    """The steps that are ONNX files, in the original's folder, the last one at `last` where it is given and run by `provider`."""
    precision = options.precision
    options = replace(options, opset=options.opset or exporter.opset)
    kind = "-symmetric" if exporter.symmetric_int8 and precision == "int8" else ""
    last = last or original.folder / f"{stem(precision)}{kind}.onnx"
    fp32 = f"{stem('fp32')}.onnx"
    graph = last if precision == "fp32" else original.folder / (fp32 if fp32 != last.name else f"fp32-{fp32}")
    exported = original.folder / f"{graph.stem}.exported.onnx"
    portable.write_exported(original.network, original.contract, exported, options)
    yield _step("onnx", "fp32", exported)
    portable.write_simplified(exported, original.contract, graph, options)
    yield _step("simplified", "fp32", graph, provider if graph == last else CPU)
    exported.unlink()  # it stays to look at only where one of these two is not what it was made from
    if precision != "fp32":
        kept = in_precision(graph, last, original, exporter, options)
        yield _step(precision, precision, last, provider, kept)


def _step(name: str, precision: str, path: Path, provider: str = CPU, kept: tuple[str, ...] = ()) -> Step:
    require_survived(path)
    return Step(name, precision, portable.load(path, provider), path, provider, kept)


def in_precision(graph: Path, target: Path, original: Original, exporter: Exporter, options: Options) -> tuple[str, ...]:
    """Write the fp32 `graph` in another precision to `target`; returns what stays in float."""
    import onnx

    model = onnx.load(graph)
    seen = observe(model, original.held_out)
    if options.precision == "int8":
        if original.held_out.labels is None:
            say("int8 without --data: synthetic images decide its ranges and what it loses, so most layers may go back to float")
        return quantize_within(graph, target, seen, original.held_out, options.max_drop, exporter.symmetric_int8, portable.load)
    lowered, kept = lower(model, options.precision, seen)
    portable.save(lowered, target)
    if kept:
        say(f"{options.precision}: {len(kept)} nodes stay in float32: {'; '.join(kept[:5])}")
    return kept
