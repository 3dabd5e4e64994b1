"""dna-export: write a network in a deployment format and verify it."""

from pathlib import Path
from typing import Any

import click

from dna_deploy.cli._command import command


@command
@click.option("--format", "format_", default="onnx", help="Deployment format: onnx, tensorrt, or a path ending in .py.")
@click.option("--run", "name", help="Run, or one network of it such as runs/NAME/cpu-3ms; the last one found if left out.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; export/model.* of the network.")
@click.option("--max-difference", type=float, help="Largest difference of a logit from the step before that is accepted.")
def main(format_: str, name: str | None, output: Path | None, max_difference: float | None) -> dict[str, Any]:
    """Export the found network, run the file on the whole test set against PyTorch, and measure it on the device.

    Exit codes: 0 verified, 1 a check failed, 2 the request is wrong, 3 the machine failed.
    """
    from dataclasses import replace

    from dna_deploy.export import export
    from dna_deploy.exporters._exporter import Options
    from dna_deploy.files import read_json
    from dna_deploy.measure import remark
    from dna_deploy.original import from_run
    from dna_deploy.progress import say, show
    from dna_deploy.run import Student, find_pick
    from dna_deploy.verify import LIMITS

    limits = dict(LIMITS)
    if max_difference is not None:
        limits = {precision: replace(limit, largest_difference=max_difference) for precision, limit in limits.items()}
    pick = find_pick(name)
    done = export(from_run(pick), format_, Options(), limits, output)
    found, latency = done.verification, done.verification.latency
    rows = [
        [
            f"{link.against} -> {link.step}",
            str(part.batch),
            f"{part.images}",
            f"{part.top1_agreement:.2%}",
            f"{part.largest_difference:.2g}",
            _share(part.accuracy_before),
            _share(part.accuracy_after),
            "ok" if part.ok else "FAILED",
        ]
        for link in found.links
        for part in link.comparisons
    ]
    columns = ["step", "batch", "images", "same top-1", "largest difference", "accuracy before", "after", ""]
    show(str(done.path), columns, rows)
    if latency is not None and latency.predicted_ms is not None:
        chain = [["predicted from the table", f"{latency.predicted_ms:.3g} ms", ""]]
        stages = {"before": read_json(pick.student, Student).measured_ms, "after": latency.measured_ms}
        for stage, ms in stages.items():
            if ms is not None:
                chain.append([f"measured {stage} export", f"{ms:.3g} ms", f"{ms / latency.predicted_ms - 1:+.1%}"])
        show(f"latency on {latency.device}", ["", "one image", "against predicted"], chain)
        if changed := remark(latency.speed):
            say(changed)
    elif latency is not None:
        say(f"latency of one image, {latency.device}: {latency.measured_ms:.3g} ms")
    elif found.not_run is not None:
        say(f"WRITTEN BUT NOT RUN, so neither verified nor measured: {found.not_run}")
    else:
        say("the latency of the exported file was not measured: its device is not at hand, or does not run this format")
    last = None if found.not_run else found.links[-1]
    return {
        "file": str(done.path),
        "sha256": found.sha256,
        "verified": found.verified,
        "not_run": found.not_run,
        "largest_difference": max(part.largest_difference for part in last.comparisons) if last else None,
        "top1_agreement": min(part.top1_agreement for part in last.comparisons) if last else None,
        "test_accuracy": last.comparisons[0].accuracy_after if last else None,
        "predicted_ms": latency.predicted_ms if latency else None,
        "measured_ms": latency.measured_ms if latency else None,
    }


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2%}"
