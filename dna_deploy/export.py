"""The third recipe: write the found network in a deployment format, run what was written, and measure it."""

from dataclasses import dataclass, replace
from pathlib import Path

from dna_deploy.arch import Architecture
from dna_deploy.data import Images, Preprocessing, load_split, open_source
from dna_deploy.errors import CheckFailed, RunError
from dna_deploy.exporters._exporter import Contract, Exporter
from dna_deploy.files import read_json, sha256, write_json
from dna_deploy.measure import measure_whole
from dna_deploy.on_device import require_device, run_on_device
from dna_deploy.plugins import find
from dna_deploy.progress import say
from dna_deploy.run import Pick, Picked, Student, TeacherReport
from dna_deploy.table import LatencyTable
from dna_deploy.verify import Limits, Verification, compare, failures
from profilers import Model

BATCHES = (1, 2, 8)


@dataclass(frozen=True)
class Exported:
    path: Path
    verification: Verification
    picked: Picked
    student: Student


def export(pick: Pick, format: str, limits: Limits, output: Path | None = None, device: str | None = None) -> Exported:
    """Raises CheckFailed where the exported network is not the trained one; the file and the figures stay to look at.

    With a `device` the file is run there too, over the whole test set.
    """
    from dna_deploy.checkpoint import load_checkpoint
    from dna_deploy.train import logits_of

    exporter: Exporter = find("exporters", format)
    if device is not None:
        require_device(device, exporter.suffix)
    run = pick.run
    find("spaces", run.asked.space)  # a space of the user's own is known by its name from here on
    arch = Architecture.load(pick.architecture)
    if not pick.weights.exists():
        raise RunError(f"{pick.weights}: no weights there; run the same dna-search again, it trains the found network")
    network = arch.module()
    load_checkpoint(pick.weights, network)
    network.eval()
    report = read_json(run.teacher_report, TeacherReport)
    contract = Contract(arch.space.image_size, tuple(report.mean), tuple(report.std), tuple(report.classes))
    path = output or pick.export / f"model{exporter.suffix}"
    say(f"exporting {pick.folder} to {path}")
    exporter.export(network, contract, path)

    source = open_source(run.asked.data, run.asked.data_root)
    images = Images(source, load_split(run.split, source).test, arch.space.image_size)
    preprocessing = Preprocessing(tuple(report.mean), tuple(report.std))  # type: ignore[arg-type]
    reference, runs = logits_of(network, images, preprocessing).numpy(), exporter.load(path)
    comparisons = [compare(reference, runs, images, preprocessing, batch, limits) for batch in BATCHES]
    picked, student = read_json(pick.picked, Picked), read_json(pick.student, Student)
    verification = Verification(
        path.name, sha256(path), limits, comparisons, picked.predicted_ms, None, None, None, None, picked.device
    )
    write_json(path.with_name("verification.json"), verification)
    if device is not None:
        there = run_on_device(device, path, runs, arch, picked, images, preprocessing, limits)
        verification = replace(verification, on_device=there)
    else:
        verification = _measured(verification, path, picked)
    write_json(path.with_name("verification.json"), verification)
    if not verification.ok:
        raise CheckFailed(f"{path} is not the network that was trained: {'; '.join(failures(verification))}")
    return Exported(path, verification, picked, student)


def _measured(verification: Verification, path: Path, picked: Picked) -> Verification:
    """The exported file's latency, where the device of the pick can be measured from here and runs this format."""
    if path.suffix != ".onnx":
        return verification
    found = measure_whole(LatencyTable.load(Path(picked.table)), [Model("exported", path.read_bytes())], picked.predicted_ms)
    if found is None:
        return verification
    measured = found["exported"].measurement
    return replace(
        verification,
        measured_ms=measured.latency_ms,
        measured_low_ms=measured.interval_ms[0],
        measured_high_ms=measured.interval_ms[1],
        speed=found["exported"].speed,
    )
