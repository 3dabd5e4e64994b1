"""What are the weights worth that a network inherits from its blocks?

    dna-profile --image-size 96 --classes 4
    python -m benchmarks.inherited

On the solar cell photographs, the network found at half the teacher's latency: with the weights its blocks learned
and N epochs of training, against random weights and N, and 5N, under the same teacher with the same loss; and 5N on labels
alone. Everything random depends on the seed. Each training is a line of benchmarks/results/inherited.jsonl as it is
finished; interrupted, the same command goes on.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks._report import Result, arguments, plain, report
from benchmarks.student import SIZE, asked_of, teacher_ms
from dna_deploy.budget import Wish
from dna_deploy.data import Images
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.recipe import recipe
from dna_deploy.run import open_run
from dna_deploy.search import inherit_and_train, machine_of, prepare_teacher, search, splits
from dna_deploy.sources import open_source
from dna_deploy.supernet import Supernet
from dna_deploy.table import LatencyTable, find_table
from dna_deploy.train import Guide, accuracy, logits_of, train

RESULTS = Path(__file__).with_name("results") / "inherited.jsonl"
STARTS = ("inherited", "scratch", "scratch, 5 times the epochs", "scratch on labels alone, 5 times the epochs")


def kept() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def one_seed(seed: int, epochs: int, budget_ms: float) -> None:
    asked = asked_of(seed, teacher_epochs=4, distill_epochs=4, distill_batch=16)
    name = f"benchmark-student-{seed}"
    found = search(asked, name, [Wish(find_table("cpu"), budget_ms)])
    run, arch = open_run(name, asked), found.architecture
    source = open_source("elpv")
    parts = splits(run, source)
    teacher, machine = prepare_teacher(run, source, parts, arch.space), machine_of(run)
    images, test = Images(source, parts.train, SIZE), Images(source, parts.test, SIZE)
    done = {row["start"] for row in kept() if (row["seed"], row["epochs"]) == (seed, epochs)}
    for start in STARTS:
        if start in done:
            continue
        checkpoint = run.folder / "inherited.safetensors"
        checkpoint.unlink(missing_ok=True)
        if start == "inherited":
            how = replace(recipe("finish"), epochs=epochs, seed=seed)
            network = inherit_and_train(run, source, parts, teacher, arch, how, checkpoint)
        else:
            torch.manual_seed(seed)
            network = arch.module(teacher.padding).to(machine.device)
            guide = None if "labels" in start else Guide(teacher, Supernet(arch.space, teacher).adapters(arch).to(machine.device))
            how = replace(recipe("finish"), epochs=epochs * (5 if "5 times" in start else 1), seed=seed)
            train(network, images, teacher.preprocessing, how, checkpoint, start, guide, machine)
        reached = accuracy(logits_of(network, test, teacher.preprocessing), test.labels)
        row = {"seed": seed, "start": start, "epochs": epochs, "network": arch.text, "test": reached, "test_images": len(test)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def summary(seeds: range, epochs: int) -> list[Result]:
    rows = {(row["start"], row["seed"]): row["test"] for row in kept() if row["epochs"] == epochs}
    reached = {start: [rows[start, seed] for seed in seeds] for start in STARTS}
    means = {start: sum(values) / len(values) for start, values in reached.items()}
    own, equal, long = means["inherited"], means["scratch"], max(means[start] for start in STARTS[2:])
    return [
        *(plain(f"test accuracy, {start}", values, "") for start, values in reached.items()),
        Result("inherited - scratch, equal epochs (means)", own - equal, "", "> 0", own > equal, len(seeds)),
        Result("inherited - scratch's best at 5 times the epochs (means)", own - long, "", ">= 0", own >= long, len(seeds)),
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--epochs", type=int, default=2, help="N")
    args = parser.parse_args()
    predictor = LatencyPredictor(LatencyTable.load(find_table("cpu")))
    budget_ms = 0.5 * teacher_ms(predictor.table, classes=4)
    seeds = range(args.first, args.first + (1 if args.quick else args.seeds))
    for seed in seeds:
        one_seed(seed, args.epochs, budget_ms)
    report("inherited", summary(seeds, args.epochs))


if __name__ == "__main__":
    main()
