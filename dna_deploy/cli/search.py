"""dna-search: find the best network within a latency budget, and train it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dna_deploy.cli._command import POSITIVE, Amount, Bytes, Confidence, DeviceLatency, command
from dna_deploy.torchrun import RANK, WORLD

if TYPE_CHECKING:
    from dna_deploy.budget import Wish
    from dna_deploy.run import Run
    from dna_deploy.space import SearchSpace


@command(
    latencies="Budgets",
    teacher="Teacher, images, space",
    teacher_epochs="Candidates",
    recipe_name="The network found",
    accumulate="The machine",
)
@click.option(
    "--latency",
    "latencies",
    type=DeviceLatency(),
    required=True,
    multiple=True,
    help="Budget for one image, with its unit: 80ms. For several devices at once give it several times: pixel1=80ms.",
)
@click.option("--device", help="Device or table the budget is for; the one profiled last if left out.")
@click.option(
    "--confidence",
    type=Confidence(),
    help="Hold the budget to the upper bound of this confidence, such as 0.95; to the expected latency if left out.",
)
@click.option(
    "--measure-top",
    type=click.IntRange(min=0),
    default=0,
    help="Measure up to this many of the best candidates on the device, correct the prediction by them and pick again.",
)
@click.option("--extrapolate", is_flag=True, help="Guess ops outside what was measured on the device too, marked so.")
@click.option("--macs", type=Amount(), help="Most multiply-adds, such as 300M.")
@click.option("--params", type=Amount(), help="Most parameters, such as 5M.")
@click.option("--file-size", type=Bytes(), help="Most bytes of the ONNX file, such as 10MB.")
@click.option("--memory", type=Bytes(), help="Most bytes of activations alive at once, one image in fp32, such as 2MB.")
@click.option(
    "--pin", "pins", multiple=True, help="[BLOCK[.LAYER]=]PATTERN: only such ops or cells there, as b2=k5e6 or b2.1=k7*."
)
@click.option("--ban", "bans", multiple=True, help="[BLOCK[.LAYER]=]PATTERN: no such op or cell, as k7* or b1=d1.")
@click.option("--top", type=POSITIVE, default=1, help="Name this many of the best networks; the first is the one trained.")
@click.option("--diverse", is_flag=True, help="With --top: each differs from better ones in at least half of the blocks.")
@click.option(
    "--teacher", default="tf_efficientnet_lite0", help="Any timm model by name, or a path ending in .py that defines MODEL."
)
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="Its checkpoint: .safetensors, or a .pth state dict.")
@click.option("--cut", help="Teacher modules to cut behind, with commas; found automatically if left out.")
@click.option("--data", default="elpv", help="Image folder, elpv, digits, or a name timm.data reads (hfds/..., torch/...).")
@click.option("--data-root", help="Where the files of a timm data set lie.")
@click.option("--space", default="mobile", help="Search space: a name, a path ending in .py, or auto: derived from the teacher.")
@click.option("--image-size", type=POSITIVE, default=224, help="Input side in pixels.")
@click.option("--run", "name", help="Run folder under runs/; named after data, space and size if left out.")
@click.option("--teacher-epochs", type=POSITIVE, default=4, help="Fine-tuning of the teacher where its classes differ.")
@click.option("--distill-epochs", type=POSITIVE, default=4, help="Block-wise training of all candidates.")
@click.option("--distill-batch", type=POSITIVE, default=16, help="Its batch size; the learning rate grows with its root.")
@click.option("--fair", is_flag=True, help="Divide each of its batches among paths that use every op of a layer once.")
@click.option("--rating-images", type=click.IntRange(min=2), default=128, help="Held-out images every candidate is rated on.")
@click.option(
    "--average",
    "averaged",
    multiple=True,
    help="Average the scores with those of that run: the same space and data under another teacher; several may be given.",
)
@click.option(
    "--calibrate", type=click.IntRange(min=8), help="Train so many networks briefly and weigh the scores by them; 20-40."
)
@click.option(
    "--replace-one", is_flag=True, help="Also rate every candidate inside the whole network found; about 3 x the rating."
)
@click.option(
    "--recipe",
    "recipe_name",
    default="finish",
    help="How the found network is trained: finish, from its block weights; scratch, DNA's published recipe; or a .toml file.",
)
@click.option("--epochs", type=POSITIVE, help="Of that training; the recipe's if left out.")
@click.option("--batch", type=POSITIVE, help="Its batch size, with a learning rate to match; the recipe's if left out.")
@click.option("--train/--no-train", "trained", default=True, help="Train the found network, or only pick it.")
@click.option("--accumulate", type=POSITIVE, default=1, help="Work each batch in so many parts, to need less memory.")
@click.option("--amp/--no-amp", default=None, help="Forward passes in bfloat16; on a GPU that has it if left out.")
@click.option("--keep-features", is_flag=True, help="Compute the teacher's features once, onto disk; no augmentation then.")
@click.option(
    "--ray", "address", help="Train blocks as jobs on the Ray cluster at HOST:PORT; the run on storage all machines share."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of everything random.")
def main(
    latencies: tuple[tuple[str | None, float], ...],
    device: str | None,
    confidence: float | None,
    measure_top: int,
    extrapolate: bool,
    macs: float | None,
    params: float | None,
    file_size: float | None,
    memory: float | None,
    pins: tuple[str, ...],
    bans: tuple[str, ...],
    top: int,
    diverse: bool,
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
    accumulate: int,
    amp: bool | None,
    fair: bool,
    keep_features: bool,
    rating_images: int,
    averaged: tuple[str, ...],
    calibrate: int | None,
    replace_one: bool,
    recipe_name: str,
    address: str | None,
    epochs: int | None,
    batch: int | None,
    seed: int,
    trained: bool,
) -> dict[str, Any]:
    """Find the network that keeps most of what the teacher knows within a latency budget, and train it.

    All of it is kept in runs/NAME: interrupt it, and the same command goes on; another budget or device picks again from
    the same ratings. Exit codes: 0 found, 1 no network fits, 2 the request is wrong, 3 the machine failed.
    """
    from dna_deploy.cli._found import picked_answer, reported, trained_answer
    from dna_deploy.errors import RequestError
    from dna_deploy.files import alone
    from dna_deploy.limits import Wanted
    from dna_deploy.recipe import recipe
    from dna_deploy.run import Asked, run_folder
    from dna_deploy.search import finish, join, search
    from dna_deploy.weigh import average, calibrate_run, other_run, replace_one_run

    if RANK > 0:  # torchrun started it beside the first
        join()
        return {}
    if address and WORLD > 1:
        raise RequestError("--ray under torchrun: Ray starts its own processes; run dna-search alone, or leave out --ray")
    if diverse and top == 1:
        raise RequestError("--diverse without --top: how many networks are to differ? add for example --top 5")
    if WORLD > 1:
        from dna_deploy.machine import dismiss, this_machine

        this_machine()  # the first one waits here for those beside it
    asked = Asked(
        teacher=teacher,
        teacher_weights=str(teacher_weights) if teacher_weights else None,
        cut=[module.strip() for module in cut.split(",")] if cut else [],
        data=data,
        data_root=data_root,
        space=f"derived:{teacher}" if space == "auto" else space,
        image_size=image_size,
        teacher_epochs=teacher_epochs,
        distill_epochs=distill_epochs,
        distill_batch=distill_batch,
        rating_images=rating_images,
        seed=seed,
        fair=fair,
        keep_features=keep_features,
        accumulate=accumulate,
        amp=amp,
    )
    usual = recipe(recipe_name).at(batch)
    how = replace(usual, epochs=epochs or usual.epochs, accumulate=max(accumulate, usual.accumulate), seed=seed)
    wanted = Wanted(macs, params, file_size, memory, pins, bans, top, diverse)
    wishes = _wishes(latencies, device, confidence, extrapolate)
    if address:
        from dna_deploy.cluster import rate_on
    others = list(dict.fromkeys(other_run(other, asked) for other in averaged))

    def weigh(run: "Run", space: "SearchSpace") -> None:
        average(run, space, others)
        if calibrate:
            calibrate_run(run, space, calibrate)

    rate = rate_on(address) if address else None
    with alone(run_folder(name, asked.data, asked.space, asked.image_size), "dna-search"):
        found = search(asked, name, wishes, measure_top, wanted, rate, weigh, how if trained else None)
        if replace_one:
            replace_one_run(found.pick.run, found.architecture, rating_images)
        answer = picked_answer(found, confidence)
        student = finish(found, found.budgets[0].predictor, how) if trained else None
        if WORLD > 1:
            dismiss()
        return {**answer, **trained_answer(found, student), **reported(found.pick)}


def _table(device: str | None) -> Path:
    """The table of a device; without one, of the device profiled last here, else the published Pixel 1."""
    from dna_deploy.progress import say
    from dna_deploy.table import OWN, LatencyTable, find_table, tables_in

    if device is not None:
        return find_table(device)
    own = [path for path in tables_in(OWN) if not LatencyTable.load(path).published]
    if own:
        latest = max(own, key=lambda path: path.stat().st_mtime)
        say(f"no --device: using {latest}, profiled last")
        return latest
    say("no --device and nothing profiled here yet: using the published table of a Pixel 1")
    return find_table("pixel1")


def _wishes(
    latencies: tuple[tuple[str | None, float], ...], device: str | None, confidence: float | None, extrapolate: bool
) -> "list[Wish]":
    """One wish a device; a latency without a name is for --device, or for the device profiled last."""
    from dna_deploy.budget import Wish
    from dna_deploy.errors import RequestError
    from dna_deploy.table import find_table

    if len(latencies) > 1 and any(name is None for name, _ in latencies):
        raise RequestError("several --latency: name the device of each, such as --latency pixel1=80ms --latency cpu=5ms")
    if confidence and extrapolate:
        raise RequestError("--confidence with --extrapolate: nothing bounds a guess; leave out one of them")
    if device is not None and any(name is not None for name, _ in latencies):
        raise RequestError("--device and a device in --latency: give only one of them")
    wishes = [Wish(find_table(name) if name else _table(device), ms, confidence, extrapolate) for name, ms in latencies]
    twice = [wish.table.stem for wish in wishes if [other.table for other in wishes].count(wish.table) > 1]
    if twice:
        raise RequestError(f"--latency: {twice[0]} is given twice; give each device one budget")
    return wishes


if __name__ == "__main__":  # torchrun -m
    main()
