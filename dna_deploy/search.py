"""The second recipe: from a teacher, labelled images and a latency budget to the network found, trained and measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.budget import Wish
from dna_deploy.data import Images, Split, load_split, save_split, split
from dna_deploy.errors import RunError
from dna_deploy.files import read_json, write_json
from dna_deploy.found import Found, pick, require_measurable
from dna_deploy.graph import onnx_of
from dna_deploy.limits import Wanted
from dna_deploy.measure import measure_whole
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.progress import say
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.recipe import Training
from dna_deploy.run import Asked, Pick, Run, Student, TeacherReport, open_run
from dna_deploy.sources import Source, open_source
from dna_deploy.space import SearchSpace
from dna_deploy.torchrun import WORLD
from profilers import Model

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.data import Preprocessing
    from dna_deploy.distill import Distillation
    from dna_deploy.machine import Machine
    from dna_deploy.supernet import Supernet
    from dna_deploy.teacher import Teacher


def search(
    asked: Asked,
    name: str | None,
    wishes: Sequence[Wish],
    measure_top: int = 0,
    wanted: Wanted | None = None,
    rate: "Callable[[Run, Source, SearchSpace], None] | None" = None,
    weigh: "Callable[[Run, SearchSpace], None] | None" = None,
    how: Training | None = None,
) -> Found:
    """Everything up to the exact pick. Stages that an earlier call finished are read, not done again.

    `rate` leaves a run's block weights and ratings in its folder; None: `rate_all`, on this machine. `weigh` adds further
    scores to the ratings, which the pick then goes by. With `how` the network found is to be trained, a training that cannot
    be is refused first.
    """
    source = open_source(asked.data, asked.data_root)
    space: SearchSpace = find("spaces", asked.space).at(asked.image_size, len(source.classes))
    budgets = [wish.on(space) for wish in wishes]
    for budget in budgets:
        budget.predictor.require(space)
    wanted = wanted or Wanted()
    wanted.problem(space, [budget.limit(space) for budget in budgets]).require_feasible()
    if measure_top:
        require_measurable(budgets, measure_top)
    parts = split(source)
    if how:
        from dna_deploy.machine import CPU
        from dna_deploy.train import require_recipe

        require_recipe(how, Images(source, parts.train, asked.image_size), replace(CPU, world=WORLD))
    run = open_run(name, asked)
    run.require_teacher()
    if not run.ratings.exists():
        from dna_deploy.distill import require_parts
        from dna_deploy.machine import CPU

        require_parts(space, distillation(asked), min(asked.distill_batch, len(parts.train)), replace(CPU, world=WORLD))
        (rate or rate_all)(run, source, space)
    if weigh:
        weigh(run, space)
    ratings = load_ratings(run.ratings, space)
    return pick(run, space, ratings, budgets, measure_top, wanted)


def rate_all(run: Run, source: Source, space: SearchSpace) -> None:
    """Fine-tune the teacher where its classes differ, train all blocks under it, rate every candidate."""
    if source.licence:
        say(f"data {source.name}: {source.licence}")
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, space)
    supernet = distilled(run, source, parts, teacher, space)
    ratings = rated(run, source, parts, teacher, supernet)
    save_ratings(run.ratings, ratings, space)


def distilled(
    run: Run, source: Source, parts: Split, teacher: "Teacher", space: SearchSpace, block: str | None = None
) -> "Supernet":
    """All blocks trained under the teacher, or only one, in a file of its own: it comes out as it does among the others."""
    from dna_deploy.distill import distill
    from dna_deploy.lessons import KeptLessons, Lessons
    from dna_deploy.supernet import Supernet
    from dna_deploy.warm import warm_start

    asked, machine = run.asked, machine_of(run)
    supernet = Supernet(space, teacher, asked.seed).to(machine.device)
    started, ops = warm_start(supernet, teacher)
    if block is None:
        say(f"{started} of {ops} ops start from the teacher's layers of their shape")
    else:
        supernet.keep(block)
    images = Images(source, parts.train, asked.image_size)
    features = run.folder / "features"
    lessons = KeptLessons(teacher, images, features) if asked.keep_features else Lessons(teacher, images)
    machine.tell(run=str(run.folder), stage="blocks")
    distill(supernet, lessons, distillation(asked), run.block(block) if block else run.supernet, machine)
    return supernet


def distillation(asked: Asked) -> "Distillation":
    from dna_deploy.distill import Distillation

    return Distillation(
        epochs=asked.distill_epochs,
        batch=asked.distill_batch,
        accumulate=asked.accumulate,
        learning_rate=2e-3 * math.sqrt(asked.distill_batch / 16),  # of Adam: Malladi et al., NeurIPS 2022
        fair=asked.fair,
        seed=asked.seed,
    )


def rated(run: Run, source: Source, parts: Split, teacher: "Teacher", supernet: "Supernet") -> list[Rating]:
    """Every candidate of what is in the supernet, on held-out images."""
    from dna_deploy.lessons import Lessons
    from dna_deploy.rate import rate

    asked = run.asked
    held_out = Lessons(teacher, Images(source, parts.held_out, asked.image_size))
    places = np.random.default_rng(asked.seed).permutation(len(held_out))[: asked.rating_images]
    return rate(supernet, held_out, places.tolist())


def splits(run: Run, source: Source) -> Split:
    if not run.split.exists():
        save_split(run.split, split(source))
    return load_split(run.split, source)


def prepare_teacher(run: Run, source: Source, parts: Split, space: SearchSpace) -> "Teacher":
    """The teacher of a run: as given where it knows the classes, else fine-tuned on the training images first."""
    import torch

    from dna_deploy.checkpoint import load_weights, save_checkpoint
    from dna_deploy.data import Preprocessing
    from dna_deploy.networks import untrained
    from dna_deploy.teacher import Teacher, cut
    from dna_deploy.train import accuracy, logits_of

    asked, machine = run.asked, machine_of(run)
    if run.teacher_report.exists():
        run.require_teacher()
        report = read_json(run.teacher_report, TeacherReport)
        if report.classes != list(source.classes):
            raise RunError(
                f"{run.teacher_report}: the teacher tells other classes apart than {source.name} now has; restore the data, or "
                "start a new run with --run NAME"
            )
        model = untrained(asked.teacher, len(source.classes))
        load_weights(run.teacher, model, f"delete {run.teacher_report} and run dna-search again, it makes the teacher anew")
        preprocessing = Preprocessing(tuple(report.mean), tuple(report.std))  # type: ignore[arg-type]
        model.to(machine.device)
    else:
        files = asked.teacher_files  # before it is opened
        model, preprocessing = fine_tuned(run, source, parts, space)
        save_checkpoint(run.teacher, model, None, 0)
        test = Images(source, parts.test, asked.image_size)
        found = accuracy(logits_of(model, test, preprocessing), test.labels)
        teacher = Teacher(asked.teacher, model, preprocessing, cut(model, space, asked.cut))
        cuts = [place.name if place else None for place in teacher.cuts]
        mean, std = list(preprocessing.mean), list(preprocessing.std)
        report = TeacherReport(found, list(source.classes), mean, std, cuts, teacher.padding, files)
        write_json(run.teacher_report, report)
        run.teacher_training.unlink(missing_ok=True)
    say(f"teacher {asked.teacher}: {report.test_accuracy:.2%} of {len(parts.test)} test images")
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Teacher(asked.teacher, model, preprocessing, cut(model, space, asked.cut))


def fine_tuned(run: Run, source: Source, parts: Split, space: SearchSpace) -> "tuple[nn.Module, Preprocessing]":
    """The teacher with trained weights, fine-tuned where they are not of these classes."""
    import torch

    from dna_deploy.teacher import Teacher, create, cut, require_scores, require_scores_while_training
    from dna_deploy.train import train

    asked, machine = run.asked, machine_of(run)
    torch.manual_seed(asked.seed)  # a fresh head is drawn alike when an interrupted fine-tuning begins again
    weights = Path(asked.teacher_weights) if asked.teacher_weights else None
    model, preprocessing, untaught = create(asked.teacher, len(source.classes), weights)
    images = Images(source, parts.train, asked.image_size)
    # refused now rather than after the fine-tuning
    teacher = Teacher(asked.teacher, model.eval(), preprocessing, cut(model, space, asked.cut))
    require_scores(model, asked.image_size, len(source.classes))
    teacher.require_signal(preprocessing(next(images.batches([range(min(16, len(images)))]))))
    model.to(machine.device)
    if untaught:
        say(f"teacher {asked.teacher}: {untaught}, fine-tuning it on {len(parts.train)} images")
        require_scores_while_training(model, asked.image_size)
        usual = Training(epochs=asked.teacher_epochs, batch=32, learning_rate=1e-3, seed=asked.seed)
        how = replace(usual.at(max(32, asked.distill_batch)), accumulate=asked.accumulate)
        machine.tell(run=str(run.folder), stage="teacher")
        made_of = {f"sha256 of {file}": digest for file, digest in asked.teacher_files.items()}
        train(model, images, preprocessing, how, run.teacher_training, "fine-tuning the teacher", machine=machine, named=made_of)
    return model, preprocessing


def join() -> None:
    """What processes beside the first do: take their part in every training it tells them of, until it is done."""
    from dna_deploy.machine import dismiss, this_machine

    machine = this_machine()
    while told := machine.told():
        run = Run(Path(told["run"]))
        source = open_source(run.asked.data, run.asked.data_root)
        space: SearchSpace = find("spaces", run.asked.space).at(run.asked.image_size, len(source.classes))
        parts = splits(run, source)
        if told["stage"] == "teacher":
            fine_tuned(run, source, parts, space)
            continue
        teacher = prepare_teacher(run, source, parts, space)
        if told["stage"] == "blocks":
            distilled(run, source, parts, teacher, space)
        else:
            arch, how = Architecture.parse(told["network"]), Training(**told["training"])
            inherit_and_train(run, source, parts, teacher, arch, how, Path(told["checkpoint"]))
    dismiss()


def finish(found: Found, predictor: LatencyPredictor, how: Training) -> Student:
    """Give the network its block weights, train it under the teacher, test it, and measure it where the device is at hand."""
    from dna_deploy.checkpoint import save_checkpoint
    from dna_deploy.train import accuracy, logits_of

    pick, run, arch = found.pick, found.pick.run, found.architecture
    if not _trained(pick, how):
        pick.set_aside()
        aside = (other for other in pick.aside if other.architecture.read_bytes() == pick.architecture.read_bytes())
        if before := next((other for other in aside if _trained(other, how)), None):
            pick.take_back(before)
    if pick.student.exists() and pick.weights.exists():
        pick.training.unlink(missing_ok=True)
        return read_json(pick.student, Student)
    pick.student.unlink(missing_ok=True)  # its weights are gone
    source = open_source(run.asked.data, run.asked.data_root)
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, arch.space)
    network = inherit_and_train(run, source, parts, teacher, arch, how, pick.training)
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
        epochs=how.epochs,
        measured_ms=ms.latency_ms if ms else None,
        measured_low_ms=ms.interval_ms[0] if ms else None,
        measured_high_ms=ms.interval_ms[1] if ms else None,
        speed=speed,
        training=how,
    )
    save_checkpoint(pick.weights, network, None, how.epochs)
    write_json(pick.student, student)
    pick.training.unlink(missing_ok=True)  # last: all that was interrupted before this goes on from it
    return student


def _trained(pick: Pick, how: Training) -> bool:
    """Whether what is trained in that folder, to the end or not yet, is trained so."""
    from dna_deploy.checkpoint import begun

    if pick.student.exists() and pick.weights.exists():
        return read_json(pick.student, Student).training == how
    return begun(pick.training, asdict(how))


def inherit_and_train(
    run: Run, source: Source, parts: Split, teacher: "Teacher", arch: Architecture, how: Training, checkpoint: Path
) -> "nn.Sequential":
    """A network of the run's space with the weights its blocks learned, or random ones, trained whole as the recipe says."""
    from dna_deploy.supernet import Supernet
    from dna_deploy.train import Guide, fresh, settle_statistics, train

    machine = machine_of(run)
    images = Images(source, parts.train, run.asked.image_size)
    supernet = Supernet(arch.space, teacher)
    load_blocks(run, supernet)
    network = (supernet.build(arch) if how.inherit else fresh(arch, teacher.padding, how.seed)).to(machine.device)
    if how.inherit:
        settle_statistics(network, images, teacher.preprocessing, range(min(512, len(images))))
    guide = Guide(teacher, supernet.adapters(arch).to(machine.device)) if how.guided else None
    told = {"network": arch.key, "training": asdict(how), "checkpoint": str(checkpoint)}
    machine.tell(run=str(run.folder), stage="network", **told)
    train(network, images, teacher.preprocessing, how, checkpoint, "training the found network", guide, machine)
    return network


def load_blocks(run: Run, supernet: "Supernet") -> None:
    """Fill it with what the blocks of a rated run learned."""
    from dna_deploy.checkpoint import load_weights

    load_weights(run.supernet, supernet, f"delete {run.ratings} and run dna-search again, it trains and rates the blocks anew")


def machine_of(run: Run) -> "Machine":
    """This machine in the precision of the run, which the first training decides and records."""
    from dna_deploy.machine import this_machine

    machine = this_machine(run.asked.amp)
    if run.asked.amp is None:
        run.decide(amp=machine.amp)
    return machine
