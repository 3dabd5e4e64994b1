"""Does the score of block-wise training rank networks of one latency by the accuracy they reach when trained alone?

    dna-profile --image-size 64 --classes 10
    python -m benchmarks.own_space --draw latency_tables/cpu.jsonl    # once: the networks, kept in the results
    python -m benchmarks.own_space

Networks of `mobile` at 64 px within 3 % of one predicted latency, far from each other in where they spend their
multiply-adds, each trained alone from random weights on CIFAR-10, the same way, by two seeds; then a supernet of the space
under a teacher of these photographs, and the sums of its scores held against the accuracies. At equal latency multiply-adds
say little; the two trainings of a network bound what any score can reach.

Each training is a line of benchmarks/results/own_space.jsonl as it is finished; interrupted, the same command goes on.
`--share 2/8` does the second of eight parts of what is left, to run several side by side.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks._cifar10 import CACHE, PREPROCESSING, TRAIN, cifar10, photographs, teacher_of
from benchmarks._report import Result, arguments, report
from dna_deploy.arch import Architecture, sample
from dna_deploy.data import Images
from dna_deploy.distill import Distillation, distill
from dna_deploy.lessons import Lessons
from dna_deploy.machine import this_machine
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.rate import rate
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.scores import imitation
from dna_deploy.space import SearchSpace
from dna_deploy.supernet import Supernet
from dna_deploy.table import LatencyTable
from dna_deploy.teacher import Teacher, cut
from dna_deploy.train import Training, accuracy, logits_of, train
from dna_deploy.warm import warm_start

RESULTS = Path(__file__).with_name("results") / "own_space.jsonl"
SIZE, CLASSES = 64, 10
NETWORKS, SEEDS, WITHIN = 16, 2, 0.03
SCORES: dict[str, Callable[[Rating], float]] = {
    "relative L1": lambda rating: rating.relative_l1,
    "log relative L1": lambda rating: math.log(rating.relative_l1),
    "NSR": lambda rating: rating.noise_to_signal,
    "log NSR": lambda rating: math.log(rating.noise_to_signal),
}


@dataclass(frozen=True)
class Recipe:
    """How the supernet is trained and rated."""

    teacher: str
    warm: bool
    fair: bool
    epochs: int
    batch: int
    learning_rate: float
    train_images: int
    rating_images: int
    seed: int

    @property
    def name(self) -> str:
        start, paths = "warm" if self.warm else "cold", "fair" if self.fair else "uniform"
        size = f"{self.train_images}x{self.epochs}-b{self.batch}-lr{self.learning_rate:g}"
        return f"mobile-{self.teacher}-{start}-{paths}-{size}-s{self.seed}"


def kept(role: str) -> list[dict]:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return [row for row in rows if row["role"] == role]


def keep(row: dict) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def draw(table: Path) -> None:
    """Networks within 3 % of the median predicted latency, each as far from those before as any of 1,000 drawn."""
    space, predictor, rng = (
        find("spaces", "mobile").at(SIZE, CLASSES),
        LatencyPredictor(LatencyTable.load(table)),
        random.Random(0),
    )
    drawn = [sample(space, rng) for _ in range(20_000)]
    ms = np.array([predictor.network_ms(arch.ops) for arch in drawn])
    near = [drawn[at] for at in np.flatnonzero(abs(ms / np.median(ms) - 1) <= WITHIN)[:1000]]
    features = np.array([_spent(arch) for arch in near])
    features /= features.std(0) + 1e-9  # the last block has one layer always
    chosen = [0]
    while len(chosen) < NETWORKS:
        distance = np.min([np.linalg.norm(features - features[at], axis=1) for at in chosen], axis=0)
        chosen.append(int(distance.argmax()))
    for at in chosen:
        arch = near[at]
        keep(
            {
                "role": "network",
                "key": arch.key,
                "predicted_ms": predictor.network_ms(arch.ops),
                "macs": arch.macs,
                "params": arch.params,
            }
        )


def _spent(arch: Architecture) -> list[float]:
    """The share of its multiply-adds in each searched block, and how many layers it has there."""
    searched = [c for c, block in zip(arch.candidates, arch.space.blocks, strict=True) if block.size > 1]
    shares = [sum(op.macs for op in candidate.ops) / arch.macs for candidate in searched]
    return [*shares, *(float(len(candidate.ops)) for candidate in searched)]


def train_all(how: Training, share: tuple[int, int]) -> None:
    """Every network alone, by every seed; a share of what is not done yet."""
    done = {(row["key"], row["seed"]) for row in kept("trained") if row["epochs"] == how.epochs}
    wanted = [(number, row["key"], seed) for seed in range(SEEDS) for number, row in enumerate(kept("network"))]
    source = cifar10()
    images = test = None
    machine = this_machine(amp=False)
    CACHE.mkdir(parents=True, exist_ok=True)
    for number, key, seed in [piece for piece in wanted if piece[1:] not in done][share[0] - 1 :: share[1]]:
        images = images or photographs("train", TRAIN, SIZE)
        test = test or Images(source, sorted(source.fixed_test), SIZE)
        torch.manual_seed(seed)
        network = Architecture.parse(key).module().to(machine.device)
        checkpoint = CACHE / f"own-space-{number}-{seed}.safetensors"
        seeded = replace(how, seed=seed)
        train(network, images, PREPROCESSING, seeded, checkpoint, f"seed {seed}: {key}", machine=machine)
        checkpoint.unlink()
        reached = accuracy(logits_of(network, test, PREPROCESSING, 250), test.labels)
        keep({"role": "trained", "key": key, "seed": seed, "epochs": how.epochs, "test": reached})


def rated(recipe: Recipe) -> dict[str, list[Rating]]:
    """The ratings of every candidate by block, from a supernet trained for it."""
    space = find("spaces", "mobile").at(SIZE, CLASSES)
    file = CACHE / recipe.name / f"ratings-{recipe.rating_images}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        whole, machine = teacher_of(recipe.teacher), this_machine(amp=False)
        teacher = Teacher(whole.name, whole.model, whole.preprocessing, cut(whole.model, space))
        supernet = Supernet(space, teacher, recipe.seed).to(machine.device)
        if recipe.warm:
            warm_start(supernet, teacher)
        how = Distillation(recipe.epochs, recipe.batch, learning_rate=recipe.learning_rate, fair=recipe.fair, seed=recipe.seed)
        distill(
            supernet,
            Lessons(teacher, photographs("train", recipe.train_images, SIZE)),
            how,
            file.with_name("supernet.safetensors"),
            machine,
        )
        held_out = Lessons(teacher, photographs("held_out", recipe.rating_images, SIZE))
        save_ratings(file, rate(supernet, held_out, range(recipe.rating_images), 128), space)
    return load_ratings(file, space)


def chance(score: np.ndarray, truth: np.ndarray, draws: int = 5_000) -> float:
    """How often a random order of the networks reaches this Kendall's tau or more."""
    rng, reached = np.random.default_rng(0), kendalltau(score, truth)[0]
    return float(np.mean([kendalltau(rng.permutation(score), truth)[0] >= reached for _ in range(draws)]))


def judged(recipe: Recipe, epochs: int) -> list[Result]:
    """The figures of that supernet's scores, of multiply-adds and parameters, and of two trainings of the same networks."""
    runs = {(row["key"], row["seed"]): row["test"] for row in kept("trained") if row["epochs"] == epochs}
    networks = [row for row in kept("network") if (row["key"], 0) in runs]
    trained = [[runs[row["key"], seed] for seed in range(SEEDS) if (row["key"], seed) in runs] for row in networks]
    truth = np.array([np.mean(reached) for reached in trained])
    twice = np.array([reached for reached in trained if len(reached) == SEEDS])
    architectures = [Architecture.parse(row["key"]) for row in networks]
    columns = {name: np.array([float(row[name]) for row in networks]) for name in ("macs", "params", "predicted_ms")}
    results = [
        Result("networks trained", len(networks), ""),
        Result("spread of their accuracy (SD)", float(truth.std(ddof=1) * 100), "points", n=len(networks)),
        Result("two trainings of a network: tau", float(kendalltau(*twice.T)[0]), "", n=len(twice)),
        Result("two trainings of a network: SD of a difference", float(np.diff(twice).std(ddof=1) * 100), "points", n=len(twice)),
    ]
    results += [Result(f"{name}: tau", float(kendalltau(values, truth)[0]), "") for name, values in columns.items()]
    for name, scores in scored(architectures[0].space, rated(recipe)).items():
        sums = np.array([_summed(arch, scores) for arch in architectures])
        results.append(Result(f"{name}: tau", float(kendalltau(-sums, truth)[0]), ""))
        results.append(Result(f"{name}: chance to rank as well at random", chance(-sums, truth), ""))
        best = int(sums.argmin())
        results.append(Result(f"{name}: its best network against the mean", float((truth[best] - truth.mean()) * 100), "points"))
    return results


def scored(space: SearchSpace, ratings: dict[str, list[Rating]]) -> dict[str, list[np.ndarray]]:
    """Every score by its name, one array a block: the product's own first."""
    found = {"imitation": imitation(space, ratings)}
    for name, score in SCORES.items():
        found[name] = [np.array([score(rating) for rating in ratings.get(block.name, [])] or [0.0]) for block in space.blocks]
    return found


def _summed(arch: Architecture, scores: Sequence[np.ndarray]) -> float:
    named = zip(arch.space.blocks, arch.candidates, scores, strict=True)
    return float(sum(own[block.candidates.index(candidate)] for block, candidate, own in named))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--draw", type=Path, help="latency table to draw the networks with; then stop")
    parser.add_argument(
        "--share", default="1/1", help="which part of the trainings, such as 2/8; others than 1/1 stop after them"
    )
    parser.add_argument("--judge", action="store_true", help="train no more networks: judge by those there are")
    parser.add_argument("--epochs", type=int, default=10, help="of every network alone")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--teacher", default="lite0-64px-longer")
    parser.add_argument("--cold", action="store_true", help="a supernet from random weights")
    parser.add_argument("--fair", action="store_true")
    parser.add_argument("--supernet-epochs", type=int, default=2)
    parser.add_argument("--train-images", type=int, default=TRAIN)
    parser.add_argument("--rating-images", type=int, default=1_024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.draw:
        draw(args.draw)
        return
    part, parts = map(int, args.share.split("/"))
    if not args.judge:
        train_all(Training(epochs=args.epochs, batch=args.batch, learning_rate=2e-3), (part, parts))
    if parts > 1:
        return
    recipe = Recipe(
        args.teacher,
        not args.cold,
        args.fair,
        args.supernet_epochs,
        288 if args.fair else 48,
        3e-3,
        args.train_images,
        args.rating_images,
        args.seed,
    )
    results = judged(recipe, args.epochs)
    keep({"role": "judged", "recipe": recipe.name, "results": {result.measure: round(result.value, 4) for result in results}})
    report("own_space", results)


if __name__ == "__main__":
    main()
