"""The run folder: what each stage leaves, and so what is still to do.

runs/NAME/                 one teacher, data set and space; serves every device and budget
    run.json               what was asked for
    split.json             which images train, rate and test
    teacher.safetensors    the teacher as it teaches, and its accuracy in teacher.json
    supernet.safetensors   the block-wise trained candidates
    features/              the teacher's features, where they are kept
    blocks/                the blocks that jobs train alone, until all are done
    ratings.jsonl          how well each candidate imitates its part of the teacher
    calibration.json       what the networks reached that weigh the scores, where that was asked for
    DEVICE-BUDGET/         one network found; DEVICE-BUDGET+DEVICE-BUDGET/ for several devices at once
        architecture.json  pick.json  front.csv  front.png  top.csv
        student.safetensors  student.json
        report.html        all of it on one page
        export/            what dna-export wrote
    DEVICE-BUDGET.1/       another training for it, of another network or by another recipe, kept aside
"""

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dna_deploy.confirm import Tried
from dna_deploy.errors import RunError
from dna_deploy.files import disk_errors, read_json, sha256, write_atomic, write_json
from dna_deploy.progress import say
from dna_deploy.recipe import Training
from dna_deploy.sources import KNOWN

RUNS = Path("runs")
LONGEST = 120  # name of a pick's folder; file systems take 255 bytes


@dataclass(frozen=True)
class Asked:
    """What the ratings of a run depend on. A run is of one `Asked`; another one needs another run."""

    teacher: str
    teacher_weights: str | None
    cut: list[str]
    data: str
    data_root: str | None
    space: str
    image_size: int
    teacher_epochs: int
    distill_epochs: int
    distill_batch: int
    rating_images: int
    seed: int
    fair: bool = False  # every op of a layer once a step
    keep_features: bool = False  # the teacher's, computed once and read from disk; images are not augmented then
    accumulate: int = 1  # parts that each batch is worked in
    amp: bool | None = None  # bfloat16 in forward passes; None until the first training decides for its machine
    schema: str = "dna-deploy/run/1"

    def unlike(self, other: "Asked") -> list[str]:
        """In what they differ. `imgs/`, `./imgs` and `imgs` are one folder; `./elpv` is one, `elpv` is not."""
        return [key for key, value in asdict(self).items() if _place(value) != _place(getattr(other, key))]

    @property
    def teacher_files(self) -> dict[str, str]:
        """The sha256 of what the teacher is made of, where that is the user's own and still there."""
        files = [self.teacher] if self.teacher.endswith(".py") else []
        files += [self.teacher_weights] if self.teacher_weights else []
        return {file: sha256(Path(file)) for file in files if Path(file).is_file()}

    def said(self, key: str) -> str:
        """One of these as the flag of dna-search: with --seed 1, with --cut a,b, with --no-amp, without --fair."""
        flag, value = f"--{key.replace('_', '-')}", getattr(self, key)
        if key == "amp" and value is False:
            return "with --no-amp"
        if value is None or value is False or value == []:
            return f"without {flag}"
        if value is True:
            return f"with {flag}"
        return f"with {flag} {','.join(value) if isinstance(value, list) else value}"


@dataclass(frozen=True)
class Beside:
    """Another device the same network was found for."""

    device: str
    table: str
    budget_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float | None


@dataclass(frozen=True)
class Picked:
    """The network found for one device and budget, and what was known of it before it was trained."""

    device: str
    table: str
    budget_ms: float
    predicted_ms: float
    score: float  # sum over blocks of the logarithm of the relative L1; lower is better
    macs: int
    params: int
    macs_rival: str | None  # what choosing by multiply-adds alone would have given: the largest network that fits
    confidence: float | None = None  # the budget was held to the upper bound of this confidence; None: to the expected latency
    low_ms: float | None = None  # bounds of the prediction, each of that confidence; without one, 95 % lie between them
    high_ms: float | None = None
    others: list[Beside] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)  # candidates measured before this one was picked
    tried_ended: str | None = None
    also: list[str] = field(default_factory=list)  # what it was held to besides, as flags
    bound: float | None = None  # no network that keeps to all of it scores below this: equal to the score where it is proven best
    file_bytes: int | None = None  # of the ONNX file in fp32, at most
    peak_bytes: int | None = None  # of activations alive at once, one image
    schema: str = "dna-deploy/pick/1"


@dataclass(frozen=True)
class Student:
    """The found network after its training."""

    test_accuracy: float
    teacher_test_accuracy: float
    test_images: int
    epochs: int
    measured_ms: float | None  # whole network on the device, where it is at hand, at the speed of the table's sessions
    measured_low_ms: float | None
    measured_high_ms: float | None
    speed: float | None  # of the device then, relative to the table's sessions
    training: Training | None = None
    schema: str = "dna-deploy/student/1"


@dataclass(frozen=True)
class TeacherReport:
    test_accuracy: float
    classes: list[str]
    mean: list[float]
    std: list[float]
    cuts: list[str | None]
    padding: str  # of its strided convolutions, and so of the student's: see `Teacher.padding`
    sha256: dict[str, str] = field(default_factory=dict)  # of the user's files it was made of, where it was noted
    schema: str = "dna-deploy/teacher/2"


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def split(self) -> Path:
        return self.folder / "split.json"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher.safetensors"

    @property
    def teacher_report(self) -> Path:
        return self.folder / "teacher.json"

    @property
    def teacher_training(self) -> Path:
        return self.folder / "teacher-training.safetensors"

    def block(self, name: str) -> Path:
        """Of a block that is trained alone."""
        return self.folder / "blocks" / f"{name}.safetensors"

    @property
    def supernet(self) -> Path:
        return self.folder / "supernet.safetensors"

    @property
    def ratings(self) -> Path:
        return self.folder / "ratings.jsonl"

    @property
    def asked(self) -> Asked:
        return read_json(self.folder / "run.json", Asked)

    def require_teacher(self) -> None:
        """Refuse a teacher whose files were edited since it was made: weights, ratings and accuracy are of the one before."""
        before = read_json(self.teacher_report, TeacherReport).sha256 if self.teacher_report.exists() else {}
        for file, now in self.asked.teacher_files.items():
            if before.get(file, now) != now:
                raise RunError(
                    f"{file}: was edited since {self.folder} was made with it; restore it, or choose another --run NAME"
                )

    def decide(self, *, amp: bool) -> None:
        """Record the precision this run trains in from now on."""
        write_json(self.folder / "run.json", replace(self.asked, amp=amp))

    def pick_for(self, budgets: Sequence[tuple[str, float]], also: Sequence[str] = ()) -> "Pick":
        """Where the network for these devices and milliseconds, held to these flags besides, is kept."""
        name = "+".join([*(f"{_plain(device)}-{ms:g}ms" for device, ms in budgets), *map(_plain, also)])
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return Pick(self.folder / name)


@dataclass(frozen=True)
class Pick:
    folder: Path

    @property
    def run(self) -> Run:
        return Run(self.folder.parent)

    @property
    def architecture(self) -> Path:
        return self.folder / "architecture.json"

    @property
    def picked(self) -> Path:
        return self.folder / "pick.json"

    @property
    def front(self) -> Path:
        return self.folder / "front.csv"

    @property
    def top(self) -> Path:
        return self.folder / "top.csv"

    @property
    def weights(self) -> Path:
        return self.folder / "student.safetensors"

    @property
    def training(self) -> Path:
        return self.folder / "student-training.safetensors"

    @property
    def student(self) -> Path:
        return self.folder / "student.json"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def aside(self) -> "list[Pick]":
        """What was set aside for it before."""
        return [Pick(file.parent) for file in sorted(self.run.folder.glob(f"{self.folder.name}.*/architecture.json"))]

    def set_aside(self) -> None:
        """Make room for another training; the one before is kept, in a numbered folder beside it, and the pick in both."""
        if self.weights.exists() or self.training.exists():
            numbered = (self.folder.with_name(f"{self.folder.name}.{number}") for number in itertools.count(1))
            aside = Pick(next(folder for folder in numbered if not folder.exists()))
            self.folder.rename(aside.folder)
            aside._copy_to(self)
            say(f"{self.folder} held another training, which is in {aside.folder} now")

    def take_back(self, aside: "Pick") -> None:
        """Go on with what was set aside, where nothing is trained yet."""
        self._copy_to(aside)
        shutil.rmtree(self.folder)
        aside.folder.rename(self.folder)
        say(f"{self.folder} goes on with the training that was in {aside.folder}")

    def _copy_to(self, other: "Pick") -> None:
        """What was picked, without what was trained of it."""
        for file in (self.architecture, self.picked, self.front, self.front.with_suffix(".png"), self.top):
            if file.exists():
                write_atomic(other.folder / file.name, partial(shutil.copyfile, file))


def open_run(name: str | None, asked: Asked) -> Run:
    """The run of that name (or path), made where it does not exist; refused where it was asked something else."""
    folder = run_folder(name, asked.data, asked.space, asked.image_size)
    file = folder / "run.json"
    if not file.exists() or {part.name for part in folder.iterdir()} <= {"run.json", "split.json"}:
        with disk_errors(folder):  # nothing came of what was asked before: a teacher that does not exist
            (folder / "split.json").unlink(missing_ok=True)
        write_json(file, asked)
        return Run(folder)
    before = read_json(file, Asked)
    for key in asked.unlike(before):
        if (key, getattr(asked, key)) != ("amp", None):
            raise RunError(f"{folder}: was made {before.said(key)}, now asked {asked.said(key)}; choose another --run NAME")
    return Run(folder)


def run_folder(name: str | None, first: str, second: str, image_size: int) -> Path:
    """The folder of that name under runs/, or of that path; without one, named after what is in it."""
    name = name or f"{_plain(Path(first).name)}-{_plain(Path(second).stem)}-{image_size}px"
    return Path(name) if "/" in name else RUNS / name


def existing_run(name: str) -> Run:
    """The run of that name (or path), which has to be there."""
    folder = Path(name) if "/" in name else RUNS / name
    if not (folder / "run.json").is_file():
        raise RunError(f"--average {name}: no such run; there are: {', '.join(_runs()) or 'none, run dna-search first'}")
    return Run(folder)


def find_pick(name: str | None) -> Pick:
    """The network to export: a pick folder, the newest pick of a run, or the newest of all where `name` is None."""
    if name is not None:
        folder = Path(name) if "/" in name or Path(name).is_dir() else RUNS / name
        if not folder.is_dir():
            raise RunError(f"--run {name}: no such run; there are: {', '.join(_runs()) or 'none, run dna-search first'}")
    else:
        folder = RUNS
    found = [folder / "pick.json", *folder.glob("*/pick.json"), *folder.glob("*/*/pick.json")]
    found = [file for file in found if file.is_file()]
    if not found:
        raise RunError(f"{folder}: no found network in it; run dna-search first")
    trained = [file for file in found if Pick(file.parent).weights.exists()]  # not one that was only picked, if there are others
    return Pick(max(trained or found, key=lambda file: file.stat().st_mtime).parent)


def _runs() -> list[str]:
    return sorted(file.parent.name for file in RUNS.glob("*/run.json"))


def _place(value: Any) -> Any:
    return os.path.normpath(value) if isinstance(value, str) and value not in KNOWN else (value,)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "run"
