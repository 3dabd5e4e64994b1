"""dna-profile: measure every op of a space on a device."""

import math
from pathlib import Path
from typing import Any

import click

from dna_deploy.cli._command import POSITIVE, Confidence, Duration, Share, command, given, require_only


@command(device="The device", space="What is measured", model="Instead of that")
@click.option("--device", default="cpu", help="Device to measure, by name; --list shows them.")
@click.option("--address", help="Which device, where several are attached: a serial, a model such as 'Pixel 8', a host.")
@click.option("--threads", type=POSITIVE, help="Threads of the runtime; the device's own setting if left out.")
@click.option("--cores", help="Cores to pin to: 0 or 0-3 here; prime, big, little or a hexadecimal mask on a phone.")
@click.option("--provider", help="ONNX Runtime's execution provider: cpu; on a phone also xnnpack, or nnapi where it answers.")
@click.option("--runtime", help="Runtime to use; on a phone also an onnxruntime-android AAR or .so file.")
@click.option("--mode", help="fixed: an Android phone's clocks at a level it can hold, below its best.")
@click.option("--space", default="mobile", help="Search space: a name, a path ending in .py, or derived:TEACHER.")
@click.option("--image-size", type=POSITIVE, default=224, help="Input side in pixels.")
@click.option("--classes", type=POSITIVE, default=1000, help="Number of classes; a network with fewer is bounded by it.")
@click.option(
    "--validate",
    type=click.IntRange(min=0),
    default=20,
    help="Whole networks measured beside the ops, to correct and judge their sums.",
)
@click.option("--table", type=click.Path(path_type=Path), help="Table file; latency_tables/DEVICE.jsonl if left out.")
@click.option("--budget", type=Duration(), default="2min", help="Time to measure; what does not fit is predicted.")
@click.option(
    "--halfwidth",
    type=Share(),
    default=0.02,
    help="Stop once every 95 % interval is within this share of its estimate.",
)
@click.option("--again", is_flag=True, help="Add a session for ops that are already in the table.")
@click.option("--model", type=click.Path(path_type=Path), help="Measure this ONNX file beside its prediction, and stop.")
@click.option(
    "--confidence",
    type=Confidence(),
    help="With --model: of the prediction's interval; 0.95 if left out.",
)
@click.option("--extrapolate", is_flag=True, help="With --model: guess ops outside what was measured too, marked so.")
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
    model: Path | None,
    confidence: float | None,
    extrapolate: bool,
    listing: bool,
) -> dict[str, Any]:
    """Measure the latency of every op of a search space on a device, into a latency table.

    Each visit is kept as it is taken: interrupt it, and the same command goes on. Exit codes: 0 done, 2 the request is
    wrong, 3 the device or machine failed.
    """
    from dna_deploy.errors import RequestError
    from dna_deploy.plugins import find

    if space == "auto":
        raise RequestError("--space auto: name the teacher it is derived from, as --space derived:tf_efficientnet_lite0")
    if table is not None and table.suffix != ".jsonl":
        raise RequestError(f"--table {table}: expected a file that ends in .jsonl, such as cpu.jsonl")
    if model is None and (confidence is not None or extrapolate):
        flag = "--extrapolate" if extrapolate else "--confidence"
        raise RequestError(f"{flag}: it is for --model; without one give it to dna-search")
    if listing:
        require_only("--list", "--space", "--image-size", "--classes")
        return _list(space, image_size, classes)
    from dna_deploy.profile import profile
    from dna_deploy.progress import say, show
    from dna_deploy.table import OWN, LatencyTable
    from profilers import Plan, Stop, find_device, repeatability

    if model is not None:
        settings = {
            "threads": threads,
            "cores": cores,
            "address": address,
            "provider": provider,
            "runtime": runtime,
            "mode": mode,
        }
        others = ("--device", "--table", "--space", "--image-size", "--budget", "--confidence", "--extrapolate")
        require_only("--model", *others, *(f"--{name}" for name in settings))
        find("spaces", space)  # a space of the user's own, so that networks of it in the table are known
        if table is not None and "--device" in given() and (whose := LatencyTable.load(table).header.target) != device:
            raise RequestError(f"--device {device}: {table} is of {whose}; leave one of the two out")
        return _model(model, image_size, device, settings, table, budget, confidence or 0.95, extrapolate)
    target = find_device(device, threads=threads, cores=cores, address=address, provider=provider, runtime=runtime, mode=mode)
    laid_out = find("spaces", space).at(image_size, classes)
    path = table or OWN / f"{device}.jsonl"
    stop = Stop(halfwidth=halfwidth, seconds=budget)
    done = profile(target, laid_out, path, validate=validate, plan=Plan(), stop=stop, again=again)
    wide = [found for found in done.table.measurements.values() if found.halfwidth > halfwidth]
    correction, errors = done.predictor.correction, done.predictor.errors()
    again_differs = repeatability(done.table.visits)
    more = "the same command goes on" if any(found.rounds < stop.min_rounds for found in wide) else "--again adds a session"
    narrow = f"{len(wide)} with an interval wider than {100 * halfwidth:g}%" + (f" ({more})" if wide else "")
    say(f"{done.ended}; {len(done.table.measurements)} rows in {path}, {narrow}")
    halves = f"; halves of the rounds agree within {again_differs:.1%}" if math.isfinite(again_differs) else ""
    say(f"{laid_out.name} at {image_size} px: {done.account.text}{halves}")
    if errors is not None:
        by_ops, by_macs = errors
        parts = (correction.offset_ms, correction.scale, correction.ms_per_mb)
        say("network = {:+.3f} ms {:+.3f} x sum of its ops {:+.3f} ms x MB of weights".format(*parts))
        rows = [["sum of ops", *_figures(by_ops)], ["MACs alone", *_figures(by_macs)]]
        columns = ["predicted from", "mean error", "within 5 %", "within 10 %", "Spearman", "Kendall"]
        show(f"{by_ops.n} whole networks, each predicted without itself", columns, rows)
        say(f"the measurements themselves repeat within {by_ops.repeatability:.1%}")
    else:
        say(f"a plain sum of ops: {done.predictor.unjudged}")
    if done.predictor.stale:
        say(f"left out: {done.predictor.stale} whole networks in the table that {laid_out.name} no longer has")
    return {
        "table": str(path),
        "rows": len(done.table.measurements),
        "measured": done.measured,
        "ended": done.ended,
        "wide": len(wide),
        "predicted": len(done.account.predicted),
        "unknown": len(done.account.unknown),
        "repeatability": again_differs if math.isfinite(again_differs) else None,
        "offset_ms": correction.offset_ms,
        "scale": correction.scale,
        "mape": errors[0].mape if errors else None,
    }


def _figures(errors: Any) -> list[str]:
    shares = [f"{value:.1%}" for value in (errors.mape, errors.within_5, errors.within_10)]
    return [*shares, f"{errors.spearman:.3f}", f"{errors.kendall:.3f}"]


def _model(
    file: Path,
    image_size: int,
    name: str,
    settings: dict[str, Any],
    table: Path | None,
    budget: float,
    confidence: float,
    extrapolate: bool,
) -> dict[str, Any]:
    """Measured against predicted for a user's own file."""
    from dna_deploy.errors import RequestError
    from dna_deploy.measure import remark
    from dna_deploy.own_model import judge
    from dna_deploy.progress import say, show
    from dna_deploy.table import LatencyTable, tables
    from profilers import find_device

    path = table or tables().get(name)
    device = None if path else find_device(name, **settings)
    if path is not None:
        name, taken = path.stem, LatencyTable.load(path).header.device
        for key, value in settings.items():
            if value is not None and value != taken.get(key):
                raise RequestError(
                    f"--{key} {value}: the file is measured as {path} was, with {key} = {taken.get(key)}; leave it out, or "
                    "name another table"
                )
    found = judge(file, image_size, path, device, budget, confidence, extrapolate)
    rows = []
    if (own := found.measured) is not None:
        bounds = f"{own.low_ms:.4g} to {own.high_ms:.4g} ms" if math.isfinite(own.high_ms) else "too few rounds for one"
        rows.append(["measured", f"{own.latency_ms:.4g} ms", bounds])
    else:
        rows.append(["measured", "not measured", ""])
    if (guess := found.predicted) is not None:
        bounds = f"{guess.low_ms:.4g} to {guess.high_ms:.4g} ms" if math.isfinite(guess.high_ms) else "no interval known"
        rows.append(["predicted", f"{guess.ms:.4g} ms", bounds])
    if own is not None and guess is not None:
        rows.append(["predicted is off by", f"{guess.ms / own.latency_ms - 1:+.1%}", ""])
    show(
        f"{file} on {name}, one image of {found.layers.image_size} px",
        ["", "latency", f"interval ({confidence:.0%} for the prediction)"],
        rows,
    )
    if found.uncovered:
        say(f"not predicted: {found.uncovered}")
    elif found.account is not None:
        corrected = (
            f"corrected by {found.networks} whole networks"
            if found.networks
            else "a plain sum of layers, there are no whole networks like it to correct it: the interval is that of the sum"
        )
        say(f"{found.account.text}; {corrected}")
    if changed := remark(found.speed):
        say(changed)
    return {
        "model": str(file),
        "device": name,
        "measured_ms": own.latency_ms if own else None,
        "predicted_ms": guess.ms if guess else None,
        "low_ms": guess.low_ms if guess else None,
        "high_ms": guess.high_ms if guess and math.isfinite(guess.high_ms) else None,
        "ops": [op.key for op in found.layers.ops],
        "extrapolated": [op.key for op in found.account.extrapolated] if found.account else [],
        "not_predicted": found.uncovered,
    }


def _list(space: str, image_size: int, classes: int) -> dict[str, Any]:
    from dna_deploy.errors import TableError
    from dna_deploy.plugins import find
    from dna_deploy.predictor import open_predictor
    from dna_deploy.progress import say, show
    from dna_deploy.table import tables
    from profilers import registry

    laid_out = find("spaces", space).at(image_size, classes)
    found = {}
    for name, path in tables().items():
        try:
            found[name] = open_predictor(path, laid_out.ops, space=laid_out.name, image_size=image_size)
        except TableError as error:
            say(f"left out: {error}")
    devices = registry()
    rows = [[device.name, device.kind, "yes" if name in found else "not yet"] for name, device in devices.items()]
    show("Devices", ["name", "kind", "table"], rows)
    rows, covered, total = [], {}, len(laid_out.ops)
    for name, predictor in found.items():
        table, account = predictor.table, predictor.account(laid_out.ops)
        covered[name] = {"measured": account.measured + len(account.bounded), "predicted": len(account.predicted), "of": total}
        guessed = f" + {len(account.predicted)} predicted" if account.predicted else ""
        share = f"{covered[name]['measured']}{guessed}"
        errors = predictor.errors()
        op_error = predictor.op_error() if errors is None else None
        known = "-" if op_error is None else f"{op_error:.1%} of an op"
        if errors is not None:
            known = f"{errors[0].mape:.1%} of a network"
        age = "published" if table.published else _age(table.sessions[-1].session) if table.sessions else "empty"
        rows.append([name, str(len(table.measurements)), age, share, known])
    columns = ["target", "rows", "measured", f"of {total} ops", "held-out error"]
    show(f"Latency tables, and how much they know of {laid_out.name} at {image_size} px", columns, rows)
    for name, predictor in found.items():
        header = predictor.table.header
        say(f"{name}: {header.about}" + (f" ({header.source}; {header.licence})" if header.source else ""))
    return {
        "devices": list(devices),
        "tables": {name: len(predictor.table.measurements) for name, predictor in found.items()},
        "coverage": covered,
    }


def _age(began: str) -> str:
    """How long ago a session began, in words."""
    from datetime import datetime, timezone

    since = datetime.now(timezone.utc) - datetime.fromisoformat(began.replace("Z", "+00:00"))
    hours = since.total_seconds() / 3600
    if hours < 0:
        return f"dated {began}"  # by another clock, or one that was put right since
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"


if __name__ == "__main__":
    main()
