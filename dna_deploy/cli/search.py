"""dna-search: find the best network within a latency budget, and train it."""

from pathlib import Path
from typing import Any

import click

from dna_deploy.cli._command import POSITIVE, Latency, command


@command
@click.option("--latency", "budget_ms", type=Latency(), required=True, help="Budget for one image, with its unit: 80ms.")
@click.option("--device", help="Device or table the budget is for; the one profiled last if left out.")
@click.option("--teacher", default="tf_efficientnet_lite0", help="Any timm model by name.")
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="Its checkpoint: .safetensors, or a .pth state dict.")
@click.option("--cut", help="Teacher modules to cut behind, with commas; found automatically if left out.")
@click.option("--data", default="elpv", help="Image folder, elpv, digits, or a name timm.data reads (hfds/..., torch/...).")
@click.option("--data-root", help="Where the files of a timm data set lie.")
@click.option("--space", default="mobile", help="Search space: a name, or a path ending in .py.")
@click.option("--image-size", type=POSITIVE, default=224, help="Input side in pixels.")
@click.option("--run", "name", help="Run folder under runs/; named after data, space and size if left out.")
@click.option("--teacher-epochs", type=POSITIVE, default=4, help="Fine-tuning of the teacher where its classes differ.")
@click.option("--distill-epochs", type=POSITIVE, default=4, help="Block-wise training of all candidates.")
@click.option("--distill-batch", type=POSITIVE, default=16, help="Its batch size.")
@click.option("--keep-features", is_flag=True, help="Compute the teacher's features once, onto disk; no augmentation then.")
@click.option("--rating-images", type=POSITIVE, default=128, help="Held-out images every candidate is rated on.")
@click.option(
    "--calibrate", type=click.IntRange(min=8), help="Train so many networks briefly and weigh the scores by them; 20-40."
)
@click.option(
    "--replace-one", is_flag=True, help="Also rate every candidate inside the whole network found; about 3 x the rating."
)
@click.option("--epochs", type=POSITIVE, default=8, help="Training of the found network.")
@click.option("--seed", default=0, help="Of everything random.")
@click.option("--train/--no-train", "trained", default=True, help="Train the found network, or only pick it.")
def main(
    budget_ms: float,
    device: str | None,
    teacher: str,
    teacher_weights: Path | None,
    cut: str | None,
    data: str,
    data_root: str | None,
    space: str,
    image_size: int,
    name: str | None,
    teacher_epochs: int,
    distill_epochs: int,
    distill_batch: int,
    keep_features: bool,
    rating_images: int,
    calibrate: int | None,
    replace_one: bool,
    epochs: int,
    seed: int,
    trained: bool,
) -> dict[str, Any]:
    """Find the network that keeps most of what the teacher knows within a latency budget, and train it.

    All of it is kept in runs/NAME: interrupt it, and the same command goes on; another budget or device picks again from
    the same ratings. Exit codes: 0 found, 1 no network fits, 2 the request is wrong, 3 the machine failed.
    """
    from dna_deploy.measure import remark
    from dna_deploy.predictor import LatencyPredictor
    from dna_deploy.progress import say, show
    from dna_deploy.run import Asked, Student
    from dna_deploy.search import finish, search
    from dna_deploy.table import LatencyTable
    from dna_deploy.weigh import calibrate_run, replace_one_run

    asked = Asked(
        teacher=teacher,
        teacher_weights=str(teacher_weights) if teacher_weights else None,
        cut=cut.split(",") if cut else [],
        data=data,
        data_root=data_root,
        space=space,
        image_size=image_size,
        teacher_epochs=teacher_epochs,
        distill_epochs=distill_epochs,
        distill_batch=distill_batch,
        rating_images=rating_images,
        seed=seed,
        keep_features=keep_features,
    )
    predictor = LatencyPredictor(LatencyTable.load(_table(device)))
    found = search(asked, name, predictor, budget_ms)
    if calibrate:
        calibrate_run(found.pick.run, found.architecture.space, calibrate)
        found = search(asked, name, predictor, budget_ms)  # picks again, now by the calibrated scores
    if replace_one:
        replace_one_run(found.pick.run, found.architecture, rating_images)
    picked = found.picked
    say(f"{found.architecture.text}")
    say(f"predicted {picked.predicted_ms:.3g} ms on {picked.device}, budget {budget_ms:g} ms")
    say(f"the Pareto front has {len(found.front.costs)} networks: {found.pick.front}")
    _account(predictor, found.architecture)
    rivals = _rivals(found, predictor)
    student: Student | None = finish(found, predictor, epochs) if trained else None
    rows = [["budget", f"{budget_ms:g} ms"], ["predicted", f"{picked.predicted_ms:.3g} ms"]]
    if student is not None and student.measured_ms is not None:
        rows.append(["measured", f"{student.measured_ms:.3g} ms ({student.measured_ms / picked.predicted_ms - 1:+.1%})"])
    rows += [["multiply-adds", f"{picked.macs / 1e6:.1f} M"], ["parameters", f"{picked.params / 1e6:.2f} M"]]
    if student is not None:
        rows.append(["test accuracy", f"{student.test_accuracy:.2%} (teacher {student.teacher_test_accuracy:.2%})"])
    show(str(found.pick.folder), ["network found", ""], rows)
    if student is not None and (changed := remark(student.speed)):
        say(changed)
    say(f"by multiply-adds alone it would have been: {picked.macs_rival}")
    return {
        "folder": str(found.pick.folder),
        "network": found.architecture.text,
        "device": picked.device,
        "budget_ms": budget_ms,
        "predicted_ms": picked.predicted_ms,
        "measured_ms": student.measured_ms if student else None,
        "macs": picked.macs,
        "params": picked.params,
        "rivals": rivals,
        "test_accuracy": student.test_accuracy if student else None,
        "teacher_test_accuracy": student.teacher_test_accuracy if student else None,
    }


def _table(device: str | None) -> Path:
    """The table of a device; without one, of the device profiled last here, else the published Pixel 1."""
    from dna_deploy.progress import say
    from dna_deploy.table import OWN, LatencyTable, find_table

    if device is not None:
        return find_table(device)
    own = [path for path in OWN.glob("*.jsonl") if not LatencyTable.load(path).published]
    if own:
        latest = max(own, key=lambda path: path.stat().st_mtime)
        say(f"no --device: using {latest}, profiled last")
        return latest
    say("no --device and nothing profiled here yet: using the published table of a Pixel 1")
    return find_table("pixel1")


def _rivals(found: Any, predictor: Any) -> list[dict[str, Any]]:
    """Beside the score what the cost alone would have said, block by block."""
    from dataclasses import asdict

    from dna_deploy.progress import show
    from dna_deploy.ratings import load_ratings
    from dna_deploy.rivals import rivalry
    from dna_deploy.search import block_costs, block_scores

    space = found.architecture.space
    scores = block_scores(space, load_ratings(found.pick.run.ratings, space.blocks))
    rows = rivalry(space, scores, block_costs(space, predictor))
    columns = ["block", "candidates", "MACs", "parameters", "MACs at equal latency", "spread left"]
    shown = [
        [row.block, str(row.candidates), f"{row.macs:.2f}", f"{row.params:.2f}", _two(row.at_equal_cost), _two(row.spread)]
        for row in rows
    ]
    show("does the score say more than the cost? Kendall tau of both", columns, shown)
    return [asdict(row) for row in rows]


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _account(predictor: Any, architecture: Any) -> None:
    from dna_deploy.progress import say

    estimated = predictor.estimated(architecture.ops)
    if predictor.table.published:
        say(f"the table is published ({predictor.table.header.source}): a sum of isolated layers, no whole network was measured")
    for op in estimated:
        say(f"estimated, not measured: {op.key} is taken as the same layer with more classes")
