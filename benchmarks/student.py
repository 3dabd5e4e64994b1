"""Is the network we find worth more than others of the same latency?

    dna-profile --image-size 96 --classes 4
    python -m benchmarks.student

On the solar cell photographs, at half the measured CPU latency of the teacher (EfficientNet-Lite0), with equal training
for all (block weights inherited, then the same epochs under the same teacher): the network found, against 5 random ones
within 5 % of its latency, the best uniform one (one op everywhere) within the budget, the one that multiply-adds alone
would choose, and the teacher itself. Everything random depends on the seed, the teacher's own fine-tuning included.

Takes about half an hour a seed on one core. Each network is a line of benchmarks/results/student.jsonl as it is
finished; interrupted, the same command goes on.
"""

import json
import random
import statistics
from pathlib import Path

import torch

from benchmarks._report import Result, arguments, plain, report
from dna_deploy.arch import Architecture, sample
from dna_deploy.budget import Budget, Wish
from dna_deploy.data import Images
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.files import read_json
from dna_deploy.found import largest_within
from dna_deploy.limits import Wanted
from dna_deploy.measure import measure_whole
from dna_deploy.networks import untrained
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.recipe import Training
from dna_deploy.run import Asked, TeacherReport, open_run
from dna_deploy.search import inherit_and_train, prepare_teacher, search, splits
from dna_deploy.sources import open_source
from dna_deploy.space import Candidate
from dna_deploy.table import LatencyTable, find_table
from dna_deploy.train import accuracy, logits_of
from profilers import Model

RESULTS = Path(__file__).with_name("results") / "student.jsonl"
TEACHER, SIZE = "tf_efficientnet_lite0", 96
RANDOM, UNIFORM = 5, 2


def kept() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def keep(row: dict) -> dict:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def teacher_ms(table: LatencyTable, classes: int) -> float:
    """The teacher's own measured latency as an ONNX file, at the table's speed; measured once and kept."""
    for row in kept():
        if row["role"] == "teacher latency":
            return row["measured_ms"]
    path = RESULTS.with_name("teacher.onnx")
    path.parent.mkdir(exist_ok=True)
    contract = Contract(SIZE, (0.5,) * 3, (0.5,) * 3, tuple(map(str, range(classes))))
    find("exporters", "onnx").write(untrained(TEACHER, classes), contract, path, Options())
    found = measure_whole(table, [Model("teacher", path.read_bytes())], about_ms=1e9)["teacher"]
    path.unlink()
    return keep({"role": "teacher latency", "measured_ms": found.measurement.latency_ms, "speed": found.speed})["measured_ms"]


def randoms(space, predictor: LatencyPredictor, about_ms: float, rng: random.Random) -> list[Architecture]:
    """Networks drawn at random whose predicted latency is within 5 % of `about_ms`."""
    found: list[Architecture] = []
    while len(found) < RANDOM:
        arch = sample(space, rng)
        if abs(predictor.network_ms(arch.ops) / about_ms - 1) <= 0.05 and arch not in found:
            found.append(arch)
    return found


def uniforms(space, predictor: LatencyPredictor, budget_ms: float) -> list[Architecture]:
    """For each op the deepest network of only that op within the budget; the slowest (largest) two of these."""
    found = []
    for label in [op.label for op in space.blocks[1].cells[0].layers[0]]:
        fitting = []
        for depth in range(1, max(len(cell.layers) for block in space.blocks for cell in block.cells) + 1):
            chosen = []
            for block in space.blocks:
                cell = min(block.cells, key=lambda cell: abs(len(cell.layers) - depth)) if block.size > 1 else block.cells[0]
                labels = [[op.label for op in choices] for choices in cell.layers]
                chosen.append(Candidate(cell, tuple(row.index(label) if label in row else 0 for row in labels)))
            arch = Architecture(space, tuple(chosen))
            if predictor.network_ms(arch.ops) <= budget_ms:
                fitting.append(arch)
        found += fitting[-1:]
    return sorted(found, key=lambda arch: -predictor.network_ms(arch.ops))[:UNIFORM]


def asked_of(seed: int, teacher_epochs: int, distill_epochs: int, distill_batch: int) -> Asked:
    """What the run of a seed is asked for; benchmarks.inherited asks for the same runs."""
    return Asked(
        teacher=TEACHER,
        teacher_weights=None,
        cut=[],
        data="elpv",
        data_root=None,
        space="mobile",
        image_size=SIZE,
        teacher_epochs=teacher_epochs,
        distill_epochs=distill_epochs,
        distill_batch=distill_batch,
        rating_images=128,
        seed=seed,
    )


def one_seed(seed: int, args, predictor: LatencyPredictor, budget_ms: float) -> None:
    asked = asked_of(seed, args.teacher_epochs, args.distill_epochs, args.distill_batch)
    name = f"benchmark-student-{seed}"
    found = search(asked, name, [Wish(predictor.table.path, budget_ms)])
    run, space = open_run(name, asked), found.architecture.space
    source = open_source("elpv")
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, space)
    held_out, test = Images(source, parts.held_out, SIZE), Images(source, parts.test, SIZE)
    networks = [
        ("found", found.architecture),
        ("macs", largest_within(Wanted().problem(space, [Budget(predictor, budget_ms).limit(space)]))),
    ]
    networks += [("uniform", arch) for arch in uniforms(space, predictor, budget_ms)]
    networks += [("random", arch) for arch in randoms(space, predictor, found.picked.predicted_ms, random.Random(seed))]
    done = {(row["seed"], row["role"], row["network"]) for row in kept() if "seed" in row}
    if (seed, "teacher", TEACHER) not in done:
        reached = read_json(run.teacher_report, TeacherReport).test_accuracy
        keep({"seed": seed, "role": "teacher", "network": TEACHER, "test": reached, "test_images": len(test)})
    for role, arch in networks:
        if (seed, role, arch.text) in done:
            continue
        checkpoint = run.folder / "network.safetensors"
        checkpoint.unlink(missing_ok=True)
        network = inherit_and_train(run, source, parts, teacher, arch, Training(epochs=args.epochs, seed=seed), checkpoint)
        scores = {
            part: accuracy(logits_of(network, images, teacher.preprocessing), images.labels)
            for part, images in (("held_out", held_out), ("test", test))
        }
        row = {"seed": seed, "role": role, "network": arch.text, "epochs": args.epochs, "macs": arch.macs}
        row = keep({**row, "predicted_ms": predictor.network_ms(arch.ops), **scores})
        print(json.dumps(row), flush=True)


def summary(seeds: list[int]) -> list[Result]:
    rows = [row for row in kept() if row.get("seed") in seeds]

    def of(role: str, seed: int) -> list[dict]:
        return [row for row in rows if row["role"] == role and row["seed"] == seed]

    def mean(values: list[float]) -> float:
        return statistics.mean(values)

    found = [of("found", seed)[0]["test"] for seed in seeds]
    teacher = [of("teacher", seed)[0]["test"] for seed in seeds]
    macs = [of("macs", seed)[0]["test"] for seed in seeds]
    uniform = [max(of("uniform", seed), key=lambda row: row["held_out"])["test"] for seed in seeds]
    drawn = [mean([row["test"] for row in of("random", seed)]) for seed in seeds]
    share = mean(found) / mean(teacher)
    results = [
        plain("test accuracy: teacher", teacher, ""),
        plain("test accuracy: found", found, ""),
        plain("test accuracy: random, mean of 5", drawn, ""),
        plain("test accuracy: best uniform", uniform, ""),
        plain("test accuracy: by MACs alone", macs, ""),
        Result("found / teacher (means)", share, "", ">= 0.99", share >= 0.99, len(seeds)),
        Result("found - random (mean)", mean(found) - mean(drawn), "", "> 0", mean(found) > mean(drawn), len(seeds)),
        Result("found - best uniform (mean)", mean(found) - mean(uniform), "", "> 0", mean(found) > mean(uniform), len(seeds)),
        Result("found - by MACs (mean)", mean(found) - mean(macs), "", n=len(seeds)),
    ]
    spread = statistics.stdev([row["test"] for row in rows if row["role"] == "random"])
    return [*results, Result("standard deviation among random networks", spread, "", n=len(seeds) * RANDOM)]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="training of every network")
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--distill-epochs", type=int, default=4)
    parser.add_argument("--distill-batch", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(0)
    seeds = list(range(1 if args.quick else args.seeds))
    predictor = LatencyPredictor(LatencyTable.load(find_table("cpu")))
    budget_ms = 0.5 * teacher_ms(predictor.table, classes=4)
    print(f"budget {budget_ms:.3f} ms, half of the teacher's")
    for seed in seeds:
        one_seed(seed, args, predictor, budget_ms)
    report("student", summary(seeds))


if __name__ == "__main__":
    main()
