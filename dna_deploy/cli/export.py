"""dna-export: write a network in a deployment format and verify it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dna_deploy.cli._command import POSITIVE, Difference, Latency, Share, command, require_only

if TYPE_CHECKING:
    from dna_deploy.export import Exported
    from dna_deploy.exporters._exporter import Options
    from dna_deploy.measure import Latency as Measured
    from dna_deploy.original import Original
    from dna_deploy.verify import Verification

FILE = click.Path(path_type=Path, dir_okay=False)


@command(format_="The file", name="The network", device="The check", verify="A bundle that is there")
@click.option("--format", "format_", default="onnx", help="onnx, openvino, executorch, torch, tensorrt, or a path ending in .py.")
@click.option("--precision", help="fp32, fp16, bf16 or int8, where the format has it; fp32 if left out.")
@click.option("--opset", type=POSITIVE, help="ONNX operator set; the one the format reads best if left out.")
@click.option("--largest-batch", type=POSITIVE, default=8, help="Every batch size up to it will run; 1, 2, 3 and it are tried.")
@click.option(
    "--compute-capability", help="GPU that a TensorRT engine is for, such as 8.6; the one at hand, else all from 8.0 on."
)
@click.option("--output", type=FILE, help="File to write; export/model.* of the run, or exports/MODEL/model.* if left out.")
@click.option("--zip", "zipped", is_flag=True, help="Write the bundle as one file as well, beside its folder.")
@click.option("--run", "name", help="Run, or one network of it such as runs/NAME/cpu-3ms; the last one found if left out.")
@click.option("--model", help="Instead of a run: any timm model by name, or a .py file with MODEL, a network or what makes one.")
@click.option("--weights", type=FILE, help="Checkpoint of --model: .safetensors, a .pth state dict, or random.")
@click.option("--data", help="Labelled images to check --model on: a folder, elpv, digits, or a name timm.data reads.")
@click.option("--data-root", help="Where the files of a timm data set lie.")
@click.option("--image-size", type=POSITIVE, help="Input side of --model in pixels; its own if left out.")
@click.option("--labels", type=FILE, help="Class names of --model, one a line.")
@click.option("--device", help="Run the ONNX file there too, over the whole test set: cpu, pixel, or one of your devices.toml.")
@click.option("--provider", help="ONNX Runtime's, which runs the ONNX file here and has to take every node: cpu, cuda, openvino.")
@click.option("--max-difference", type=Difference(), help="Largest difference from the step before that is accepted.")
@click.option(
    "--max-drop",
    type=Share(),
    help="Accuracy an export may lose, 0.5% if left out; int8 layers go back to float until held-out images keep to it.",
)
@click.option("--max-latency", "max_ms", type=Latency(), help="Measured latency above it is exit code 1.")
@click.option("--verify", type=click.Path(path_type=Path), help="Check a bundle (folder or .zip) instead of exporting.")
@click.option(
    "--rebuild", type=click.Path(path_type=Path), help="Make the ONNX files of a bundle again and compare them byte by byte."
)
@click.option("--trust", is_flag=True, help="Run code that the bundle brings or names: .pt2 files, engines, Python files.")
def main(
    format_: str,
    precision: str | None,
    name: str | None,
    model: str | None,
    weights: Path | None,
    data: str | None,
    data_root: str | None,
    image_size: int | None,
    labels: Path | None,
    output: Path | None,
    opset: int | None,
    largest_batch: int,
    compute_capability: str | None,
    max_difference: float | None,
    max_drop: float | None,
    max_ms: float | None,
    zipped: bool,
    verify: Path | None,
    rebuild: Path | None,
    trust: bool,
    device: str | None,
    provider: str | None,
) -> dict[str, Any]:
    """Export the found network, or any model, step by step; run every step against the one before, and measure the result.

    What is written is a bundle: --verify checks it anywhere, with --max-drop and --max-latency as a gate.

    Exit codes: 0 verified, 1 a check failed, 2 the request is wrong, 3 the machine failed.
    """
    from dna_deploy.errors import CheckFailed, RequestError
    from dna_deploy.export import elsewhere, export
    from dna_deploy.exporters._exporter import PRECISIONS, Exporter, Options
    from dna_deploy.exporters.onnx import require_opset
    from dna_deploy.plugins import find
    from dna_deploy.verify import LIMITS

    own = format_.endswith(".py")
    if verify is not None or rebuild is not None:
        from dna_deploy.cli._bundle import rebuilt, verified

        find("exporters", format_)  # a format of the user's own is known by its name from here on
        code = ("--trust", *(["--format"] if own else []))
        if verify is not None:
            require_only("--verify", "--device", "--max-difference", "--max-drop", "--max-latency", *code)
            return verified(verify, device, max_difference, max_drop, max_ms, trust)
        if rebuild is not None:
            require_only("--rebuild", *code)
            return rebuilt(rebuild, trust)
    if trust:
        raise RequestError("--trust: for --verify and --rebuild only")
    if zipped and output is not None:
        raise RequestError("--zip: a bundle is a folder; leave out --output, which writes one file alone")
    exporter: Exporter = find("exporters", format_)  # refused before anything is loaded
    precision = precision or exporter.precisions[0]
    if precision not in exporter.precisions:
        known = "" if precision in PRECISIONS else f" is none of {', '.join(PRECISIONS)};"
        raise RequestError(f"--precision {precision}:{known} {exporter.name} carries {', '.join(exporter.precisions)}")
    if opset is not None:
        require_opset(opset)
    ours = {"--weights": weights, "--data": data, "--data-root": data_root, "--image-size": image_size, "--labels": labels}
    if model is None and (given := [flag for flag, value in ours.items() if value is not None]):
        raise RequestError(f"{', '.join(given)}: for --model only; a run knows its own")
    if data_root is not None and data is None:
        raise RequestError("--data-root: says where the files of --data lie; give --data")
    if compute_capability is not None and format_ != "tensorrt" and not own:
        raise RequestError(f"--compute-capability: for --format tensorrt, not {format_}")
    if model is not None and name is not None:
        raise RequestError("--run and --model: choose one of them")
    options = Options(precision, largest_batch, 0.005 if max_drop is None else max_drop, opset, compute_capability)
    limits = {key: replace(limit, accuracy_drop=options.max_drop) for key, limit in LIMITS.items()}
    if max_difference is not None:
        limits = {
            key: replace(limit, largest_difference=max_difference, edge_difference=max_difference)
            for key, limit in limits.items()
        }
    original = _model(exporter, model, weights, data, data_root, image_size, labels) if model else _run(name)
    if max_drop is not None and precision != "int8" and original.test.labels is None:
        raise RequestError(f"--max-drop: the accuracy of {original.name} is not known; give --data with its own classes")
    done = export(original, format_, options, limits, output, device, provider)
    latency = done.verification.latency
    _show(original, options, done.path, done.verification)
    if zipped:
        _zip(done)
    if max_ms is not None:
        if latency is None or elsewhere(original, latency):
            where = original.picked.device if original.picked else "this machine"
            raise RequestError(f"--max-latency: {done.path} was not measured on {where}; attach it, or leave --max-latency out")
        if latency.measured_ms > max_ms:
            raise CheckFailed(
                f"{done.path}: {latency.measured_ms:.3g} ms measured on {latency.device}, --max-latency {max_ms:g} ms"
            )
    on_device = done.verification.on_device
    there = on_device.comparisons[0] if on_device else None
    links, not_run = done.verification.links, done.verification.not_run
    last = links[-1] if not_run is None else None  # figures of the file itself; those of what it was made from are in its report
    return {
        "file": str(done.path),
        "sha256": done.verification.sha256,
        "precision": precision,
        "weights": original.contract.weights,
        "inputs": original.test.about,
        "verified": done.verification.verified,
        "not_run": not_run,
        "largest_difference": max(part.largest_difference for part in last.comparisons) if last else None,
        "top1_agreement": min(part.top1_agreement for part in last.comparisons) if last else None,
        "test_accuracy": last.comparisons[0].accuracy_after if last else None,
        "kept_in_float": done.verification.kept,
        "predicted_ms": latency.predicted_ms if latency else None,
        "measured_ms": latency.measured_ms if latency else None,
        "fp32_ms": latency.fp32_ms if latency else None,
        "device": latency.device if latency else None,
        "device_top1_agreement": there.top1_agreement if there else None,
        "device_accuracy": there.accuracy_after if there else None,
    }


def _zip(done: "Exported") -> None:
    from dna_deploy.bundle import write_zip
    from dna_deploy.errors import CannotRun

    folder = done.path.parent
    if done.no_bundle is not None:
        raise CannotRun(f"--zip: {done.path} was written, but {folder} is no bundle: {done.no_bundle}")
    write_zip(folder, folder.with_name(f"{folder.name}.zip"))  # not with_suffix: a name may have a dot in it


def _run(name: str | None) -> "Original":
    from dna_deploy.original import from_run
    from dna_deploy.run import find_pick

    return from_run(find_pick(name))


def _model(
    exporter: Any,
    model: str,
    weights: Path | None,
    data: str | None,
    data_root: str | None,
    image_size: int | None,
    labels: Path | None,
) -> "Original":
    from dna_deploy.exporters.onnx import LIMIT_BYTES
    from dna_deploy.original import Asked, from_model

    through_onnx = exporter.made_from == "onnx" or exporter.name == "onnx"
    asked = Asked(model, weights, data, data_root, image_size, labels)
    return from_model(asked, largest_bytes=LIMIT_BYTES if through_onnx else None)


def _show(original: "Original", options: "Options", path: Path, found: "Verification") -> None:
    """Every step against the one before, and what the latency is known to be."""
    from dna_deploy.progress import say, show

    rows, earlier = [], "torch"
    for link in (*found.links, *([found.on_device] if found.on_device else [])):
        name = link.step if link.against == earlier else f"{link.against} > {link.step}"
        earlier = link.step
        rows += [
            [
                name,
                f"{part.images} {part.about}",
                str(part.batch),
                f"{part.top1_agreement:.2%}",
                f"{part.largest_difference:.2g}",
                _share(part.accuracy_before),
                _share(part.accuracy_after),
                "ok" if part.ok else "FAILED",
            ]
            for part in link.comparisons
        ]
    columns = ["step", "on", "batch", "same top-1", "off by", "accuracy", "after", ""]
    show(str(path), columns, rows)
    if found.left_out:
        say(f"edge inputs left out, the network itself answers them with NaN or infinity: {', '.join(found.left_out)}")
    if found.not_run is not None:
        say(f"WRITTEN BUT NOT RUN, so neither verified nor measured: {found.not_run}")
    elif found.latency is None:
        say("the latency of the exported file was not measured: its device is not at hand, or does not run this format")
    else:
        _say_latency(original, options, path, found.latency)


def _say_latency(original: "Original", options: "Options", path: Path, latency: "Measured") -> None:
    """The chain of a network that was searched: predicted, measured, measured after export; beside fp32 where it is not."""
    from dna_deploy.files import read_json
    from dna_deploy.measure import remark
    from dna_deploy.progress import say, show
    from dna_deploy.run import Pick, Student

    if latency.predicted_ms is not None:
        chain = [["predicted from the table, fp32", f"{latency.predicted_ms:.3g} ms", ""]]
        here = original.picked is not None and original.picked.device == latency.device
        as_trained = read_json(Pick(original.folder.parent).student, Student).measured_ms if here else None
        precision = "" if options.precision == "fp32" else f", {options.precision}"
        stages = {"before export": as_trained, f"after export{precision}": latency.measured_ms}
        for stage, ms in stages.items():
            if ms is not None:
                chain.append([f"measured {stage}", f"{ms:.3g} ms", f"{ms / latency.predicted_ms - 1:+.1%}"])
        show(f"latency on {latency.device}", ["", "one image", "against predicted"], chain)
        if changed := remark(latency.speed):
            say(changed)
    else:
        where = "in this process" if latency.device == "this process" else f"on {latency.device}"
        say(f"measured {where}: {latency.measured_ms:.3g} ms an image")
    if latency.fp32_ms is not None:
        say(_against_fp32(options.precision, path.suffix, latency.measured_ms, latency.fp32_ms))


def _against_fp32(precision: str, suffix: str, ms: float, fp32_ms: float) -> str:
    """What a lower precision, or another runtime, brings here; that it brings nothing is worth saying."""
    what = f"{precision} {suffix}"
    beside = f"{ms:.3g} ms, the fp32 ONNX file beside it {fp32_ms:.3g} ms"
    if ms > 1.02 * fp32_ms:
        return f"{what} is SLOWER here: {beside}, {ms / fp32_ms:.2f} times as long"
    if ms < 0.98 * fp32_ms:
        return f"{what} is faster here: {beside}, {fp32_ms / ms:.2f} times as fast"
    return f"{what} is as fast as fp32 here: {beside}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
