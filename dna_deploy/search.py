"""The second recipe: from a teacher, labelled images and a latency budget to the network found, trained and measured."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.data import Images, Source, Split, load_split, open_source, save_split, split
from dna_deploy.errors import MachineError, NothingFits
from dna_deploy.files import read_json, write_atomic, write_json, write_text
from dna_deploy.graph import onnx_of
from dna_deploy.measure import measure_whole
from dna_deploy.pick import Front, pareto_front
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.progress import say
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.run import Asked, Pick, Picked, Run, Student, TeacherReport, open_run
from dna_deploy.space import SearchSpace
from profilers import Model

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.teacher import Teacher


@dataclass(frozen=True)
class Found:
    pick: Pick
    architecture: Architecture
    picked: Picked
    front: Front


def search(asked: Asked, name: str | None, predictor: LatencyPredictor, budget_ms: float) -> Found:
    """Everything up to the exact pick. Stages that an earlier call finished are read, not done again."""
    source = open_source(asked.data, asked.data_root)
    space: SearchSpace = find("spaces", asked.space).at(asked.image_size, len(source.classes))
    predictor.require(space)
    require_feasible(space, predictor, budget_ms)
    run = open_run(name, asked)
    if not run.ratings.exists():
        rate_all(run, source, space)
    ratings = load_ratings(run.ratings, space.blocks)
    return pick(run, space, ratings, predictor, budget_ms)


def rate_all(run: Run, source: Source, space: SearchSpace) -> None:
    """Fine-tune the teacher where its classes differ, train all blocks under it, rate every candidate."""
    from dna_deploy.checkpoint import save_checkpoint
    from dna_deploy.distill import Distillation, distill
    from dna_deploy.lessons import KeptLessons, Lessons
    from dna_deploy.rate import rate
    from dna_deploy.supernet import Supernet

    asked = run.asked
    if source.licence:
        say(f"data {source.name}: {source.licence}")
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, space)
    supernet = Supernet(space, teacher).to(_device())
    images = Images(source, parts.train, asked.image_size)
    features = run.folder / "features"
    lessons = KeptLessons(teacher, images, features) if asked.keep_features else Lessons(teacher, images)
    how = Distillation(epochs=asked.distill_epochs, batch=asked.distill_batch, seed=asked.seed)
    distill(supernet, lessons, how, run.supernet)
    held_out = Lessons(teacher, Images(source, parts.held_out, asked.image_size))
    places = np.random.default_rng(asked.seed).permutation(len(held_out))[: asked.rating_images]
    ratings = rate(supernet, held_out, places.tolist())
    save_checkpoint(run.supernet, supernet, None, asked.distill_epochs)  # finished: the optimizer's state may go
    save_ratings(run.ratings, ratings)


def splits(run: Run, source: Source) -> Split:
    if not run.split.exists():
        save_split(run.split, split(source))
    return load_split(run.split, source)


def prepare_teacher(run: Run, source: Source, parts: Split, space: SearchSpace) -> "Teacher":
    """The teacher of a run: as given where it knows the classes, else fine-tuned on the training images first."""
    import torch

    from dna_deploy.checkpoint import load_checkpoint, save_checkpoint
    from dna_deploy.data import Preprocessing
    from dna_deploy.teacher import Teacher, create, cut, untrained
    from dna_deploy.train import Training, accuracy, logits_of, train

    asked = run.asked
    if run.teacher_report.exists():
        report = read_json(run.teacher_report, TeacherReport)
        model = untrained(asked.teacher, len(source.classes))
        load_checkpoint(run.teacher, model)
        preprocessing = Preprocessing(tuple(report.mean), tuple(report.std))  # type: ignore[arg-type]
        model.to(_device())
    else:
        weights = Path(asked.teacher_weights) if asked.teacher_weights else None
        model, preprocessing, ready = create(asked.teacher, len(source.classes), weights)
        cut(model, space, asked.cut)  # refused now rather than after the fine-tuning
        model.to(_device())
        if not ready:
            say(f"teacher {asked.teacher}: its classes differ, fine-tuning it on {len(parts.train)} images")
            how = Training(epochs=asked.teacher_epochs, batch=32, learning_rate=1e-3, seed=asked.seed)
            images = Images(source, parts.train, asked.image_size)
            train(model, images, preprocessing, how, run.folder / "teacher-training.safetensors", "fine-tuning the teacher")
            (run.folder / "teacher-training.safetensors").unlink(missing_ok=True)
        save_checkpoint(run.teacher, model, None, 0)
        test = Images(source, parts.test, asked.image_size)
        found = accuracy(logits_of(model, test, preprocessing), test.labels)
        cuts = [place.name if place else None for place in cut(model, space, asked.cut)]
        report = TeacherReport(found, list(source.classes), list(preprocessing.mean), list(preprocessing.std), cuts)
        write_json(run.teacher_report, report)
    say(f"teacher {asked.teacher}: {report.test_accuracy:.2%} of {len(parts.test)} test images")
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Teacher(asked.teacher, model, preprocessing, cut(model, space, asked.cut))


def block_costs(space: SearchSpace, predictor: LatencyPredictor) -> list[np.ndarray[Any, Any]]:
    """Predicted milliseconds of every candidate of every block; the fixed part of the correction is in the first."""
    correction = predictor.correction
    op_ms = {op: correction.op_ms(op, predictor.op_ms(op)) for op in space.ops}
    costs = [np.array([sum(op_ms[op] for op in candidate.ops) for candidate in block.candidates]) for block in space.blocks]
    costs[0] = costs[0] + correction.offset_ms
    return costs


def require_feasible(space: SearchSpace, predictor: LatencyPredictor, budget_ms: float) -> None:
    """Before anything is trained: is there a network within the budget at all?"""
    least = sum(float(cost.min()) for cost in block_costs(space, predictor))
    if least > budget_ms:
        raise NothingFits(
            f"no network of {space.name} at {space.image_size} px fits {budget_ms:g} ms on {predictor.table.header.target}; "
            f"the fastest takes {least:.3g} ms: raise --latency, or lower --image-size"
        )


def block_scores(space: SearchSpace, ratings: dict[str, list[Rating]]) -> list[np.ndarray[Any, Any]]:
    """The additive score: calibrated where the run is, else the logarithm of each candidate's relative L1.

    Blocks without a choice score zero.
    """
    every = [rating for block in ratings.values() for rating in block]
    calibrated = all(rating.calibrated is not None for rating in every)

    def score(rating: Rating) -> float:
        return rating.calibrated if calibrated and rating.calibrated is not None else math.log(max(rating.relative_l1, 1e-9))

    return [
        np.array([score(rating) for rating in ratings[block.name]]) if block.size > 1 else np.zeros(1) for block in space.blocks
    ]


def pick(run: Run, space: SearchSpace, ratings: dict[str, list[Rating]], predictor: LatencyPredictor, budget_ms: float) -> Found:
    """The best network within the budget, the whole front beside it, and what multiply-adds alone would have chosen."""
    costs = block_costs(space, predictor)
    front = pareto_front(costs, block_scores(space, ratings))
    best = front.best_within(budget_ms)
    assert best is not None, "require_feasible comes first"
    found = architecture_at(space, front.choices[best])
    rival = largest_within(space, costs, budget_ms)
    table = predictor.table
    folder = run.pick(table.header.target, budget_ms)
    picked = Picked(
        device=table.header.target,
        table=str(table.path),
        budget_ms=budget_ms,
        predicted_ms=float(front.costs[best]),
        score=float(front.scores[best]),
        macs=found.macs,
        params=found.params,
        macs_rival=rival.text,
    )
    if folder.architecture.exists() and Architecture.load(folder.architecture) != found:
        folder.weights.unlink(missing_ok=True)  # of another network: the ratings or the table changed
        folder.student.unlink(missing_ok=True)
    found.save(folder.architecture)
    write_front(folder.front, space, front)
    plot_front(folder.front.with_suffix(".png"), front, best, budget_ms, table.header.target)
    write_json(folder.picked, picked)
    return Found(folder, found, picked, front)


def largest_within(space: SearchSpace, costs: Sequence[np.ndarray[Any, Any]], budget_ms: float) -> Architecture:
    """The network with the most multiply-adds within the budget: the rival every score has to beat."""
    macs = [np.array([-float(sum(op.macs for op in candidate.ops)) for candidate in block.candidates]) for block in space.blocks]
    front = pareto_front(costs, macs)
    best = front.best_within(budget_ms)
    assert best is not None
    return architecture_at(space, front.choices[best])


def architecture_at(space: SearchSpace, choices: Sequence[int]) -> Architecture:
    """The network of these candidates, given by their index in each block."""
    return Architecture(space, tuple(block.candidates[index] for block, index in zip(space.blocks, choices, strict=True)))


def write_front(path: Path, space: SearchSpace, front: Front) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["predicted_ms", "score", "network"])
    for cost, score, choices in zip(front.costs, front.scores, front.choices, strict=True):
        rows.writerow([f"{cost:.6g}", f"{score:.6g}", architecture_at(space, choices).text])
    write_text(path, text.getvalue())


def plot_front(path: Path, front: Front, best: int, budget_ms: float, device: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.step(front.costs, front.scores, where="post", linewidth=1.2, label=f"Pareto front, {len(front.costs)} networks")
    axes.axvline(budget_ms, linestyle="--", linewidth=1, color="grey", label=f"budget {budget_ms:g} ms")
    axes.plot(front.costs[best], front.scores[best], "o", label=f"chosen, {front.costs[best]:.3g} ms")
    axes.set_xlabel(f"predicted latency on {device}, ms")
    axes.set_ylabel("score: sum of log relative L1 (lower is better)")
    axes.legend()
    FigureCanvasAgg(figure)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120))


def finish(found: Found, predictor: LatencyPredictor, epochs: int) -> Student:
    """Give the network its block weights, train it under the teacher, test it, and measure it where the device is at hand."""
    from dna_deploy.checkpoint import save_checkpoint
    from dna_deploy.train import accuracy, logits_of

    run, arch = found.pick.run, found.architecture
    if found.pick.student.exists() and found.pick.weights.exists():
        student = read_json(found.pick.student, Student)
        if student.epochs == epochs:
            return student
    source = open_source(run.asked.data, run.asked.data_root)
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, arch.space)
    partial = found.pick.folder / "student-training.safetensors"
    network = inherit_and_train(run, source, parts, teacher, arch, epochs, partial)
    save_checkpoint(found.pick.weights, network, None, epochs)
    partial.unlink(missing_ok=True)
    test = Images(source, parts.test, run.asked.image_size)
    reached = accuracy(logits_of(network, test, teacher.preprocessing), test.labels)
    report = read_json(run.teacher_report, TeacherReport)
    measured = measure_whole(predictor.table, [Model("found", onnx_of(arch.ops))], found.picked.predicted_ms)
    ms = measured["found"].measurement if measured else None
    speed = measured["found"].speed if measured else None
    student = Student(
        test_accuracy=reached,
        teacher_test_accuracy=report.test_accuracy,
        test_images=len(test),
        epochs=epochs,
        measured_ms=ms.latency_ms if ms else None,
        measured_low_ms=ms.low_ms if ms else None,
        measured_high_ms=ms.high_ms if ms else None,
        speed=speed,
    )
    write_json(found.pick.student, student)
    return student


def inherit_and_train(
    run: Run, source: Source, parts: Split, teacher: "Teacher", arch: Architecture, epochs: int, checkpoint: Path
) -> "nn.Sequential":
    """A network of the run's space with the weights its blocks learned, then trained whole under the teacher."""
    from dna_deploy.checkpoint import load_checkpoint
    from dna_deploy.supernet import Supernet
    from dna_deploy.train import Guide, Training, settle_statistics, train

    supernet = Supernet(arch.space, teacher)
    if not run.supernet.exists():
        raise MachineError(f"{run.supernet}: the block weights are gone; delete {run.ratings} and run dna-search again")
    load_checkpoint(run.supernet, supernet)
    network = supernet.build(arch).to(_device())
    images = Images(source, parts.train, run.asked.image_size)
    settle_statistics(network, images, teacher.preprocessing, range(min(512, len(images))))
    guide = Guide(teacher, supernet.adapters(arch).to(_device()))
    how = Training(epochs=epochs, seed=run.asked.seed)
    train(network, images, teacher.preprocessing, how, checkpoint, "training the found network", guide)
    return network


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
