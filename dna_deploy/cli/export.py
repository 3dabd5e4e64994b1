"""dna-export: write the found network in a deployment format and verify it."""

from pathlib import Path
from typing import Any

import click

from dna_deploy.cli._command import command


@command
@click.option("--format", "format_", default="onnx", help="Deployment format: onnx, or a path ending in .py.")
@click.option("--run", "name", help="Run, or one network of it such as runs/NAME/cpu-3ms; the last one found if left out.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; export/model.* of the network.")
@click.option("--max-difference", default=1e-4, help="Largest difference of a logit from PyTorch's that is accepted.")
@click.option("--device", help="Run the file there too, over the whole test set: cpu, pixel, or one of your devices.toml.")
def main(format_: str, name: str | None, output: Path | None, max_difference: float, device: str | None) -> dict[str, Any]:
    """Export the found network, run the file on the whole test set against PyTorch, and measure it on the device.

    Exit codes: 0 verified, 1 a check failed, 2 the request is wrong, 3 the machine failed.
    """
    from dna_deploy.export import export
    from dna_deploy.measure import remark
    from dna_deploy.progress import say, show
    from dna_deploy.run import find_pick
    from dna_deploy.verify import Limits

    done = export(find_pick(name), format_, Limits(largest_difference=max_difference), output, device)
    found, picked = done.verification, done.picked
    rows = [
        [
            str(part.batch),
            f"{part.images}",
            f"{part.top1_agreement:.2%}",
            f"{part.largest_difference:.2g}",
            f"{part.accuracy_before:.2%}",
            f"{part.accuracy_after:.2%}",
            "ok" if part.ok else "FAILED",
        ]
        for part in found.comparisons
    ]
    columns = ["batch", "images", "same top-1", "largest difference", "accuracy in PyTorch", "exported", ""]
    show(str(done.path), columns, rows)
    if there := found.on_device:
        same, largest = f"{there.comparison.top1_agreement:.2%}", f"{there.comparison.largest_difference:.2g}"
        accuracy = [f"{there.comparison.accuracy_before:.2%}", f"{there.comparison.accuracy_after:.2%}"]
        columns = ["images", "same top-1", "largest difference", "accuracy here", f"on {there.device}"]
        show(f"the same file on {there.device}", columns, [[str(there.comparison.images), same, largest, *accuracy]])
    timed = there or found
    chain = [] if timed.predicted_ms is None else [["predicted from the table", f"{timed.predicted_ms:.3g} ms", ""]]
    measured = [("before", done.student.measured_ms if timed.device == picked.device else None), ("after", timed.measured_ms)]
    for when, ms in measured:
        if ms is not None:
            against = f"{ms / timed.predicted_ms - 1:+.1%}" if timed.predicted_ms else ""
            chain.append([f"measured {when} export", f"{ms:.3g} ms", against])
    show(f"latency on {timed.device}, budget {picked.budget_ms:g} ms", ["", "one image", "against predicted"], chain)
    if changed := remark(timed.speed):
        say(changed)
    if timed.measured_ms is None:
        say(f"{timed.device} is not at hand: the latency of the exported file was not measured")
    return {
        "file": str(done.path),
        "sha256": found.sha256,
        "verified": found.ok,
        "largest_difference": max(part.largest_difference for part in found.comparisons),
        "top1_agreement": min(part.top1_agreement for part in found.comparisons),
        "test_accuracy": found.comparisons[0].accuracy_after,
        "predicted_ms": timed.predicted_ms,
        "measured_ms": timed.measured_ms,
        "device": timed.device,
        "device_top1_agreement": there.comparison.top1_agreement if there else None,
        "device_accuracy": there.comparison.accuracy_after if there else None,
    }
