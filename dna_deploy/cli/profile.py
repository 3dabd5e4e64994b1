"""dna-profile: measure every op of a space on a device."""

from pathlib import Path
from typing import Any

import click

from dna_deploy.cli._command import POSITIVE, Duration, command

SHARE = click.FloatRange(min=0, max=1, min_open=True)


@command
@click.option("--device", default="cpu", help="Device to measure, by name; --list shows them.")
@click.option("--space", default="mobile", help="Search space: a name, a path ending in .py, or derived:TEACHER.")
@click.option("--image-size", type=POSITIVE, default=224, help="Input side in pixels.")
@click.option("--classes", type=POSITIVE, default=1000, help="Number of classes; a network with fewer is bounded by it.")
@click.option(
    "--validate",
    type=click.IntRange(min=0),
    default=20,
    help="Whole networks measured beside the ops, to correct and judge their sums.",
)
@click.option("--threads", type=POSITIVE, help="Threads of the runtime; the device's own setting if left out.")
@click.option("--cores", help="Cores to pin to: 0 or 0-3 here; prime, big, little or a hexadecimal mask on a phone.")
@click.option("--address", help="Which device, where several are attached: a serial, a model such as 'Pixel 8', a host.")
@click.option("--provider", help="ONNX Runtime's execution provider: cpu, or xnnpack on a phone.")
@click.option("--runtime", help="Runtime to use; on a phone also an onnxruntime-android AAR or .so file.")
@click.option("--mode", help="fixed: an Android phone's clocks at a level it can hold, below its best.")
@click.option("--table", type=click.Path(path_type=Path), help="Table file; latency_tables/DEVICE.jsonl if left out.")
@click.option("--budget", type=Duration(), default="2min", help="Stop measuring after this time at the latest.")
@click.option(
    "--halfwidth",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    help="Stop once every 95 % interval is within this share of its estimate.",
)
@click.option("--again", is_flag=True, help="Add a session for ops that are already in the table.")
@click.option("--list", "listing", is_flag=True, help="Show the devices and tables there are, and stop.")
def main(
    device: str,
    space: str,
    image_size: int,
    classes: int,
    validate: int,
    threads: int | None,
    cores: str | None,
    address: str | None,
    provider: str | None,
    runtime: str | None,
    mode: str | None,
    table: Path | None,
    budget: float,
    halfwidth: float,
    again: bool,
    listing: bool,
) -> dict[str, Any]:
    """Measure the latency of every op of a search space on a device, into a latency table.

    Each visit is kept as it is taken: interrupt it, and the same command goes on. Exit codes: 0 done, 2 the request is
    wrong, 3 the device or machine failed.
    """
    if listing:
        return _list()
    from dna_deploy.plugins import find
    from dna_deploy.profile import profile
    from dna_deploy.progress import say, show
    from dna_deploy.table import OWN
    from profilers import Plan, Stop, find_device

    target = find_device(device, threads=threads, cores=cores, address=address, provider=provider, runtime=runtime, mode=mode)
    laid_out = find("spaces", space).at(image_size, classes)
    path = table or OWN / f"{device}.jsonl"
    stop = Stop(halfwidth=halfwidth, seconds=budget)
    done = profile(target, laid_out, path, validate=validate, plan=Plan(), stop=stop, again=again)
    wide = [key for key, found in done.table.measurements.items() if found.halfwidth > halfwidth]
    correction, errors = done.predictor.correction, done.predictor.errors()
    say(f"{done.ended}; {len(done.table.measurements)} rows in {path}, {len(wide)} with an interval wider than {halfwidth:.0%}")
    if errors is not None:
        by_ops, by_macs = errors
        parts = (correction.offset_ms, correction.scale, correction.ms_per_mb)
        say("network = {:+.3f} ms {:+.3f} x sum of its ops {:+.3f} ms x MB of weights".format(*parts))
        rows = [["sum of ops", *_figures(by_ops)], ["MACs alone", *_figures(by_macs)]]
        columns = ["predicted from", "mean error", "within 5 %", "within 10 %", "Spearman", "Kendall"]
        show(f"{by_ops.n} whole networks, each predicted without itself", columns, rows)
        say(f"the measurements themselves repeat within {by_ops.repeatability:.1%}")
    return {
        "table": str(path),
        "rows": len(done.table.measurements),
        "measured": done.measured,
        "ended": done.ended,
        "wide": len(wide),
        "offset_ms": correction.offset_ms,
        "scale": correction.scale,
        "mape": errors[0].mape if errors else None,
    }


def _figures(errors: Any) -> list[str]:
    shares = [f"{value:.1%}" for value in (errors.mape, errors.within_5, errors.within_10)]
    return [*shares, f"{errors.spearman:.3f}", f"{errors.kendall:.3f}"]


def _list() -> dict[str, Any]:
    from dna_deploy.progress import show
    from dna_deploy.table import LatencyTable, tables
    from profilers import registry

    found = {name: LatencyTable.load(path) for name, path in tables().items()}
    devices = registry()
    rows = [[device.name, device.kind, "yes" if name in found else "not yet"] for name, device in devices.items()]
    show("Devices", ["name", "kind", "table"], rows)
    rows = [
        [
            name,
            str(len(table.measurements)),
            "published" if table.published else table.sessions[-1].session[:10],
            table.header.about,
        ]
        for name, table in found.items()
    ]
    show("Latency tables", ["target", "rows", "measured", "what"], rows)
    return {"devices": list(devices), "tables": {name: len(table.measurements) for name, table in found.items()}}
