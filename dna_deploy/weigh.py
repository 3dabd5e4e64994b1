"""Further scores for the candidates of a run that is rated: from other teachers, calibrated on a few trained networks, or
in a whole network.

All are kept in the run's ratings, so that picking again, for any device and budget, takes no training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.calibrate import Calibration, calibrate, networks_to_train
from dna_deploy.data import Images
from dna_deploy.errors import RequestError, RunError
from dna_deploy.files import read_json, write_json
from dna_deploy.progress import say, show
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.recipe import Training
from dna_deploy.rivals import kendall
from dna_deploy.run import Asked, Run, existing_run
from dna_deploy.scores import imitation
from dna_deploy.search import inherit_and_train, load_blocks, prepare_teacher, splits
from dna_deploy.sources import open_source
from dna_deploy.space import SearchSpace
from dna_deploy.torchrun import WORLD

BRIEF_EPOCHS = 2  # of training for a network that is only there to calibrate


@dataclass(frozen=True)
class TrainedNetworks:
    """Accuracy on the held-out images by network, each trained from its block weights; the last calibration on them."""

    epochs: int
    accuracies: dict[str, float]
    calibration: dict[str, Any] | None = None
    schema: str = "dna-deploy/calibration/1"


def other_run(name: str, asked: Asked) -> Run:
    """The run of that name, rated, of the same space and images as `asked`, but not of the same teacher over again; refused
    before anything else is done."""
    other = existing_run(name)
    advice = "make one of the same space and data under another teacher with --run NAME --no-train"
    unlike = asked.unlike(other.asked)
    for key in ("space", "image_size", "data", "data_root"):
        if key in unlike:
            raise RequestError(f"--average {name}: was made {other.asked.said(key)}, this run {asked.said(key)}; {advice}")
    if not {"teacher", "teacher_weights", "cut", "seed"} & set(unlike):
        raise RequestError(f"--average {name}: has the --teacher, --cut and --seed of this run; {advice}")
    if not other.ratings.exists():
        raise RunError(f"--average {name}: not rated yet; run the dna-search that began it again, it goes on where it stopped")
    return other


def average(run: Run, space: SearchSpace, others: Sequence[Run]) -> None:
    """Take the ratings of the `others`, the same space under other teachers (or other cuts of it), beside the run's own.

    Those of runs that were named before, but are not now, are left out again.
    """
    ratings = load_ratings(run.ratings, space)
    theirs = [load_ratings(other.ratings, space) for other in others]
    rows = [
        (own, replace(own, others=tuple(other[name][place].relative_l1 for other in theirs), calibrated=None))
        for name, block in ratings.items()
        for place, own in enumerate(block)
    ]
    if any(own.others != row.others for own, row in rows):
        if any(own.calibrated is not None for own, _ in rows):
            say("the calibration was of the scores as they were, and is left out; give --calibrate to calibrate these")
        save_ratings(run.ratings, [row for _, row in rows], space)
    for other, found in zip(others, theirs, strict=True):
        scores = {name: [rating.relative_l1 for rating in block] for name, block in found.items()}
        _agreement(f"how alike {other.folder} and {run.folder} order the candidates", ratings, scores)


def calibrate_run(run: Run, space: SearchSpace, count: int) -> Calibration:
    """Train `count` networks briefly and weigh the blocks' scores by what they reached; networks trained before are kept.

    The calibrated scores take over only where they rank networks that were left out better than the score as it was.
    """
    file = run.folder / "calibration.json"
    networks = networks_to_train(space, count, run.asked.seed)
    known = read_json(file, TrainedNetworks) if file.exists() else TrainedNetworks(BRIEF_EPOCHS, {})
    missing = [arch for arch in networks if arch.key not in known.accuracies]
    for arch, accuracy in _trained(run, space, missing, known.epochs):
        known = replace(known, accuracies={**known.accuracies, arch.key: accuracy})
        write_json(file, known)
    ratings = load_ratings(run.ratings, space)
    logs = imitation(space, ratings)
    choices = np.array([_choice(arch) for arch in networks])
    accuracies = np.array([known.accuracies[arch.key] for arch in networks])
    found = calibrate(space, logs, choices, accuracies.tolist())
    about = {name: value for name, value in asdict(found).items() if name != "scores"}
    write_json(file, replace(known, calibration=about))
    summed = np.sum([log[choices[:, k]] for k, log in enumerate(logs)], axis=0)
    _show(found, accuracies, summed, networks)
    better = found.loo_tau > kendall(-summed, accuracies)
    if not better:
        say(
            "the calibration ranks networks it has not seen no better than the score as it was, which is kept; train more of them"
        )
    weighed = [
        replace(rating, calibrated=float(score) if better else None)
        for block, scores in zip(space.blocks, found.scores, strict=True)
        for rating, score in zip(ratings.get(block.name, []), scores, strict=False)
    ]
    save_ratings(run.ratings, weighed, space)
    return found


def replace_one_run(run: Run, reference: Architecture, images: int) -> None:
    """Put every candidate into the whole `reference` network, on held-out images; kept as `replace_one` in the ratings."""
    from dna_deploy.lessons import Lessons
    from dna_deploy.rate import replace_one
    from dna_deploy.supernet import Supernet

    space = reference.space
    source = open_source(run.asked.data, run.asked.data_root)
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, space)
    supernet = Supernet(space, teacher)
    load_blocks(run, supernet)
    supernet.to(next(teacher.model.parameters()).device)
    held_out = Lessons(teacher, Images(source, parts.held_out, run.asked.image_size))
    places = np.random.default_rng(run.asked.seed).permutation(len(held_out))[:images]
    found = replace_one(supernet, held_out, reference, places.tolist())
    ratings = load_ratings(run.ratings, space)
    rows = [replace(rating, replace_one=found[rating.block, rating.candidate]) for block in ratings.values() for rating in block]
    save_ratings(run.ratings, rows, space)
    both = {name: [found[name, rating.candidate] for rating in block] for name, block in ratings.items()}
    _agreement("how alike replace-one and relative L1 order the candidates", ratings, both)


def _agreement(title: str, ratings: dict[str, list[Rating]], others: dict[str, list[float]]) -> None:
    """How alike relative L1 and another score order the candidates of each block."""
    taus = {name: kendall([rating.relative_l1 for rating in block], others[name]) for name, block in ratings.items()}
    show(title, ["block", "Kendall tau"], [[name, f"{tau:.2f}"] for name, tau in taus.items()])


def _trained(run: Run, space: SearchSpace, networks: Sequence[Architecture], epochs: int) -> Iterator[tuple[Architecture, float]]:
    """Each network with its accuracy after a brief training, on images that neither train nor test."""
    from dna_deploy.train import accuracy, logits_of

    if not networks:
        return
    source = open_source(run.asked.data, run.asked.data_root)
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, space)
    held_out = Images(source, parts.held_out, run.asked.image_size)
    say(f"calibrating: training {len(networks)} networks for {epochs} epochs each")
    how = Training(epochs=epochs, seed=run.asked.seed).at(max(16, 2 * WORLD))
    how = replace(how, accumulate=min(run.asked.accumulate, how.batch // (2 * WORLD)))  # two images a part are the fewest
    for arch in networks:
        partial = run.folder / "calibration-training.safetensors"
        partial.unlink(missing_ok=True)  # it may be of another network; a brief training is not worth resuming
        network = inherit_and_train(run, source, parts, teacher, arch, how, partial)
        partial.unlink(missing_ok=True)
        yield arch, accuracy(logits_of(network, held_out, teacher.preprocessing), held_out.labels)


def _choice(arch: Architecture) -> list[int]:
    pairs = zip(arch.space.blocks, arch.candidates, strict=True)
    return [block.candidates.index(candidate) for block, candidate in pairs]


def _show(found: Calibration, accuracies: Any, summed: Any, networks: Sequence[Architecture]) -> None:
    rows = [
        ["score as it was", f"{kendall(-summed, accuracies):.2f}"],
        ["multiply-adds alone", f"{kendall([arch.macs for arch in networks], accuracies):.2f}"],
        ["parameters alone", f"{kendall([arch.params for arch in networks], accuracies):.2f}"],
        ["calibrated, each network predicted from the others", f"{found.loo_tau:.2f}"],
    ]
    title = f"rank correlation with the accuracy of {found.networks} trained networks"
    show(title, ["", "Kendall tau"], rows)
