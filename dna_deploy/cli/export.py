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
def main(format_: str, name: str | None, output: Path | None, max_difference: float) -> dict[str, Any]:
    """Export the found network, run the file on the whole test set against PyTorch, and measure it on the device.

    Exit codes: 0 verified, 1 a check failed, 2 the request is wrong, 3 the machine failed.
    """
    from dna_deploy.export import export
    from dna_deploy.measure import remark
    from dna_deploy.progress import say, show
    from dna_deploy.run import find_pick
    from dna_deploy.verify import Limits

    done = export(find_pick(name), format_, Limits(largest_difference=max_difference), output)
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
    chain = [["predicted from the table", f"{picked.predicted_ms:.3g} ms", ""]]
    if done.student.measured_ms is not None:
        chain.append(
            [
                "measured before export",
                f"{done.student.measured_ms:.3g} ms",
                f"{done.student.measured_ms / picked.predicted_ms - 1:+.1%}",
            ]
        )
    if found.measured_ms is not None:
        chain.append(
            ["measured after export", f"{found.measured_ms:.3g} ms", f"{found.measured_ms / picked.predicted_ms - 1:+.1%}"]
        )
    show(f"latency on {picked.device}, budget {picked.budget_ms:g} ms", ["", "one image", "against predicted"], chain)
    if changed := remark(found.speed):
        say(changed)
    if found.measured_ms is None:
        say(f"{picked.device} is not at hand: the latency of the exported file was not measured")
    return {
        "file": str(done.path),
        "sha256": found.sha256,
        "verified": found.ok,
        "largest_difference": max(part.largest_difference for part in found.comparisons),
        "top1_agreement": min(part.top1_agreement for part in found.comparisons),
        "test_accuracy": found.comparisons[0].accuracy_after,
        "predicted_ms": picked.predicted_ms,
        "measured_ms": found.measured_ms,
    }
