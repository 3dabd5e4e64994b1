"""Do the scores of block-wise training rank networks by the accuracy they reach when trained alone?

    python -m benchmarks.ranking
    python -m benchmarks.ranking --epochs 4 --fair --train-images 45000

NAS-Bench-Macro: all 6,561 networks of a space, each trained alone on CIFAR-10 three times by its publishers. The block-wise
supernet of that space is trained under a teacher, with the product's own code, on the photographs themselves; every
candidate is rated; the sums are held against the truth. Beside each score stand multiply-adds and parameters alone, the
correlation among networks of equal cost, and how well three trainings of the same networks agree.

Each recipe is a folder under ~/.cache/dna-deploy/ranking with the teacher's features (float16, memory-mapped), the
supernet and the ratings, and one line of benchmarks/results/ranking.jsonl; interrupted, the same command goes on. On one
quiet core a thousand images take the teacher 4 seconds (once), the training 13, the rating 100.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from scipy.stats import kendalltau, rankdata

from benchmarks._cifar10 import CACHE, TEACHERS, photographs, teacher_of, test_accuracy
from benchmarks._nas_bench_macro import SPACE, row_of, searched, truth
from benchmarks._report import Result, arguments, at_least, at_most, plain, report
from dna_deploy.arch import Architecture
from dna_deploy.calibrate import Calibration, calibrate, networks_to_train
from dna_deploy.distill import Distillation, distill
from dna_deploy.files import write_text
from dna_deploy.lessons import KeptLessons
from dna_deploy.machine import this_machine
from dna_deploy.pick import pareto_front
from dna_deploy.rate import rate, replace_one
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.scores import imitation
from dna_deploy.space import Block
from dna_deploy.supernet import Supernet

RESULTS = Path(__file__).with_name("results") / "ranking.jsonl"
BUDGETS = np.arange(0.05, 1, 0.1)  # quantiles of the networks' multiply-adds
TOP = 5  # best-scored networks that are trained to keep one
COUNT = 40  # networks a calibration is given
OURS = "imitation"  # the product's own: log relative L1 over all teachers, half of it as the layers add up
SCORES: dict[str, Callable[[Rating], float]] = {
    "relative L1": lambda rating: rating.relative_l1,
    "log relative L1": lambda rating: math.log(rating.relative_l1),
    "NSR": lambda rating: rating.noise_to_signal,
    "log NSR": lambda rating: math.log(rating.noise_to_signal),
    "log relative L1, all teachers": lambda rating: float(np.mean(np.log([rating.relative_l1, *rating.others]))),
    "replace-one": lambda rating: rating.replace_one or 0.0,
    "log replace-one": lambda rating: math.log(rating.replace_one or 1.0),
}


@dataclass(frozen=True)
class Recipe:
    """One way to train and rate; everything a result depends on."""

    teacher: str
    epochs: int
    batch: int
    learning_rate: float
    fair: bool
    train_images: int
    rating_images: int
    rating_batch: int
    replace_images: int  # of the held-out ones for replace-one; 0 leaves it out
    seed: int
    average: tuple[str, ...] = ()  # other teachers, whose supernets are trained and rated alike

    @property
    def name(self) -> str:
        """Of the supernet, whose training the rating settings do not touch."""
        paths = "fair" if self.fair else "uniform"
        size = f"{self.train_images}x{self.epochs}-b{self.batch}-lr{self.learning_rate:g}"
        return f"{self.teacher}-{paths}-{size}-s{self.seed}"


def lessons(teacher: str, part: str, count: int) -> KeptLessons:
    """The first `count` photographs of a part, train or held_out, with the teacher's features."""
    return KeptLessons(teacher_of(teacher), photographs(part, count, 32), CACHE / f"{teacher}-{part}-{count}")


def trained(recipe: Recipe) -> Supernet:
    """The supernet of a recipe; an interrupted training goes on at its last whole epoch."""
    taught, machine = lessons(recipe.teacher, "train", recipe.train_images), this_machine(amp=False)
    supernet = Supernet(SPACE.at(32, 10), taught.teacher, recipe.seed).to(machine.device)
    how = Distillation(
        epochs=recipe.epochs, batch=recipe.batch, learning_rate=recipe.learning_rate, fair=recipe.fair, seed=recipe.seed
    )
    distill(supernet, taught, how, CACHE / recipe.name / "supernet.safetensors", machine)
    return supernet


def rated(recipe: Recipe) -> dict[str, list[Rating]]:
    """The ratings of every candidate by block."""
    space = SPACE.at(32, 10)
    file = CACHE / recipe.name / f"ratings-{recipe.rating_images}-{recipe.rating_batch}-{recipe.replace_images}.jsonl"
    if not file.exists():
        supernet = trained(recipe)
        held_out = lessons(recipe.teacher, "held_out", recipe.rating_images)
        ratings = rate(supernet, held_out, range(recipe.rating_images), recipe.rating_batch)
        if recipe.replace_images:
            middle = Architecture(space, tuple(block.candidates[block.size // 2] for block in space.blocks))
            found = replace_one(supernet, held_out, middle, range(recipe.replace_images), recipe.rating_batch)
            ratings = [replace(rating, replace_one=found[rating.block, rating.candidate]) for rating in ratings]
        save_ratings(file, ratings, space)
    return load_ratings(file, space)


def rated_by_all(recipe: Recipe) -> dict[str, list[Rating]]:
    """The ratings of every candidate by block, with those under the other teachers."""
    theirs = [rated(replace(recipe, teacher=other)) for other in recipe.average]
    return {
        name: [replace(own, others=tuple(other[name][place].relative_l1 for other in theirs)) for place, own in enumerate(block)]
        for name, block in rated(recipe).items()
    }


def scored(ratings: dict[str, list[Rating]], recipe: Recipe) -> dict[str, list[np.ndarray]]:
    """Every score there is of the searched blocks' candidates, by its name."""
    space = SPACE.at(32, 10)
    found = {OURS: [own for own, block in zip(imitation(space, ratings), space.blocks, strict=True) if block.size > 1]}
    for name, score in SCORES.items():
        if ("replace-one" in name and not recipe.replace_images) or ("all teachers" in name and not recipe.average):
            continue
        found[name] = [np.array([score(rating) for rating in ratings[block.name]]) for block in searched(space)]
    return found


def tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(a, b)[0])


def sums(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The score of every network: one array of candidates' scores a searched block, added up."""
    choices = truth().choices
    return np.sum([score[choices[:, block]] for block, score in enumerate(scores)], axis=0)


def within_bins(score: np.ndarray, bins: int = 20) -> float:
    """Kendall's tau among networks of about equal multiply-adds, averaged over bins of as many networks each."""
    known = truth()
    parts = np.array_split(np.argsort(known.flops, kind="stable"), bins)
    return float(np.mean([tau(-score[part], known.accuracy[part]) for part in parts]))


def partial(score: np.ndarray) -> float:
    """Spearman's correlation with the accuracy, multiply-adds held fixed."""
    known = truth()
    ranks = np.array([rankdata(values) for values in (-score, known.accuracy, known.flops)])
    (_, own, cost), (_, _, rival), _ = np.corrcoef(ranks)
    return float((own - cost * rival) / np.sqrt((1 - cost**2) * (1 - rival**2)))


def chosen(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy in per cent under ten budgets of multiply-adds: of the network picked, the best, a random one, the largest."""
    known = truth()
    blocks = searched(SPACE.at(32, 10))
    fixed = float(known.flops.min() - sum(min(_macs(block)) for block in blocks))
    front = pareto_front([_macs(block) for block in blocks], scores)
    rows = []
    for budget in np.quantile(known.flops, BUDGETS):
        best = front.best_within(budget - fixed)
        assert best is not None
        fitting = known.flops <= budget
        largest = known.flops == known.flops[fitting].max()
        picked = (known.choices == front.choices[best]).all(1)
        found = known.accuracy[picked]
        rows.append((found[0], known.accuracy[fitting].max(), known.accuracy[fitting].mean(), known.accuracy[largest].mean()))
    picks, bests, randoms, largests = np.array(rows).T
    return picks, bests, randoms, largests


def regret(scores: Sequence[np.ndarray], trained: int = 1) -> float:
    """Points lost under ten budgets, on average, when the `trained` best-scored networks are trained once and the best kept."""
    known = truth()
    summed = sums(scores)
    lost = []
    for budget in np.quantile(known.flops, BUDGETS):
        fitting = np.flatnonzero(known.flops <= budget)
        top = fitting[np.argsort(summed[fitting], kind="stable")[:trained]]
        lost.append(known.accuracy[fitting].max() - known.accuracy[top[known.runs[top, 0].argmax()]])
    return float(np.mean(lost))


def all_trained() -> list[float]:
    """Points lost under ten budgets, on average, by training every network once and taking the best that fits, as the mean of
    its two other trainings judges it: what chance alone leaves of a choice by the accuracy itself."""
    known, lost = truth(), []
    for run in range(3):
        others = np.delete(known.runs, run, axis=1).mean(1)
        fitting = [np.flatnonzero(known.flops <= budget) for budget in np.quantile(known.flops, BUDGETS)]
        lost.append(float(np.mean([others[nets].max() - others[nets[known.runs[nets, run].argmax()]] for nets in fitting])))
    return lost


def true_effects() -> list[np.ndarray]:
    """The additive score fitted to the accuracies of all networks, by least squares on ranks: the most any score can be."""
    known = truth()
    x = np.hstack([np.eye(block.size)[known.choices[:, k]] for k, block in enumerate(searched(SPACE.at(32, 10)))])
    worth = np.linalg.lstsq(x, -rankdata(known.accuracy), rcond=None)[0]
    return np.split(worth, np.cumsum([block.size for block in searched(SPACE.at(32, 10))])[:-1])


def best_shaped(scores: Sequence[np.ndarray]) -> float:
    """Kendall's tau of the sums with the increasing function of each block's score that suits the truth best: what the order
    within the blocks is good for."""
    from sklearn.isotonic import IsotonicRegression

    shaped = [IsotonicRegression().fit(own, worth).predict(own) for own, worth in zip(scores, true_effects(), strict=True)]
    return tau(-sums(shaped), truth().accuracy)


def best_weighted(scores: Sequence[np.ndarray]) -> float:
    """Kendall's tau of the sums with the weights of the blocks that suit the truth best: no score could know them."""
    choices = itertools.product([1.0], *[(0.25, 0.5, 1.0, 2.0, 4.0)] * (len(scores) - 1))
    return max(tau(-sums([w * score for w, score in zip(weights, scores, strict=True)]), truth().accuracy) for weights in choices)


def _macs(block: Block) -> np.ndarray:
    return np.array([float(sum(op.macs for op in candidate.ops)) for candidate in block.candidates])


def calibrated(scores: Sequence[np.ndarray], draws: int) -> list[Calibration]:
    """Calibrations on 40 networks each, the product's choice of them, at their accuracy in one training."""
    known, space = truth(), SPACE.at(32, 10)
    whole = [np.zeros(1), *scores, np.zeros(1)]
    made = []
    for seed in range(draws):
        rows = np.array([row_of(arch) for arch in networks_to_train(space, COUNT, seed)])
        choices = np.insert(known.choices[rows], [0, 3], 0, axis=1)
        made.append(calibrate(space, whole, choices, known.runs[rows, seed % 3] / 100))
    return made


def judged(name: str, scores: Sequence[np.ndarray], draws: int) -> list[Result]:
    """Everything asked of one score: its ranking, at equal cost, what it picks, and the same after calibration."""
    summed = sums(scores)
    picks, bests, _, _ = chosen(scores)
    fits = [fit.scores[1:-1] for fit in calibrated(scores, draws)]
    after = [sums(fit) for fit in fits]
    return [
        at_least(f"{name}: tau", [tau(-summed, truth().accuracy)], "", 0.82),
        at_least(f"{name}: tau within FLOPs bins", [within_bins(summed)], "", 0.65),
        Result(f"{name}: partial correlation given FLOPs", partial(summed), ""),
        plain(
            f"{name}: tau with the true effects within a block",
            [tau(a, b) for a, b in zip(scores, true_effects(), strict=True)],
            "",
        ),
        Result(f"{name}: tau with the best weights of the blocks, by the truth", best_weighted(scores), ""),
        Result(f"{name}: tau with the best increasing function of each block's score, by the truth", best_shaped(scores), ""),
        at_most(f"{name}: regret under ten budgets", [float(np.mean(bests - picks))], "points", 0.1),
        at_most(f"{name}: regret, best of the {TOP} best trained", [regret(scores, TOP)], "points", 0.1),
        at_least(f"{name}: calibrated on {COUNT}: tau", [tau(-fit, truth().accuracy) for fit in after], "", 0.85),
        at_least(f"{name}: calibrated on {COUNT}: tau within FLOPs bins", [within_bins(fit) for fit in after], "", 0.65),
        at_most(f"{name}: calibrated on {COUNT}: regret", [regret(fit) for fit in fits], "points", 0.1),
        at_most(
            f"{name}: calibrated on {COUNT}: regret, best of the {TOP} best trained",
            [regret(fit, TOP) for fit in fits],
            "points",
            0.1,
        ),
    ]


def rivals(draws: int) -> list[Result]:
    """What the same figures are without any score, and what the best possible ones are."""
    known = truth()
    _, bests, randoms, largests = chosen([np.zeros(block.size) for block in searched(SPACE.at(32, 10))])
    runs = [(known.runs[:, a], known.runs[:, b]) for a, b in itertools.combinations(range(3), 2)]
    nothing = [np.zeros(block.size) for block in searched(SPACE.at(32, 10))]
    fits = [fit.scores[1:-1] for fit in calibrated(nothing, draws)]
    return [
        Result("multiply-adds alone: tau", tau(known.flops, known.accuracy), ""),
        Result("parameters alone: tau", tau(known.params, known.accuracy), ""),
        plain(f"no score, calibrated on {COUNT}: tau", [tau(-sums(fit), known.accuracy) for fit in fits], ""),
        plain(f"no score, calibrated on {COUNT}: regret", [regret(fit) for fit in fits], "points"),
        plain(f"no score, calibrated on {COUNT}: regret, best of {TOP}", [regret(fit, TOP) for fit in fits], "points"),
        Result("additive fit to all accuracies: tau", tau(-sums(true_effects()), known.accuracy), ""),
        Result("additive fit to all accuracies: regret", regret(true_effects()), "points"),
        Result(f"additive fit to all accuracies: regret, best of {TOP}", regret(true_effects(), TOP), "points"),
        Result(
            "all networks trained once, the best taken: regret by their other trainings",
            float(np.mean(all_trained())),
            "points",
            n=3,
        ),
        Result("two trainings of the same networks: tau", float(np.mean([tau(a, b) for a, b in runs])), "", n=3),
        Result("the best under each budget: accuracy", float(bests.mean()), "%", n=10),
        Result("the largest that fits: regret", float(np.mean(bests - largests)), "points", n=10),
        Result("a random one that fits: regret", float(np.mean(bests - randoms)), "points", n=10),
    ]


def keep(recipe: Recipe, results: Sequence[Result]) -> None:
    """The recipe's line in the results file, in place of an earlier one of the same recipe."""
    with FileLock(RESULTS.with_name(".ranking.lock")):
        rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
        rows = [row for row in rows if row["recipe"] != json.loads(json.dumps(asdict(recipe)))]
        rows.append({"recipe": asdict(recipe), "results": {result.measure: round(result.value, 4) for result in results}})
        write_text(RESULTS, "".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--teacher", default="lite0-64px", choices=TEACHERS)
    parser.add_argument("--average", nargs="+", default=(), choices=TEACHERS, help="others; the scores are averaged")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--fair", action="store_true", help="every op of a layer once a step")
    parser.add_argument("--train-images", type=int, default=45_000)
    parser.add_argument("--rating-images", type=int, default=3_000)
    parser.add_argument("--rating-batch", type=int, default=250)
    parser.add_argument("--replace-images", type=int, default=0, help="held-out images for replace-one; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    values = vars(parser.parse_args())
    quick = values.pop("quick")
    recipe = Recipe(**values | {"average": tuple(values["average"])})
    if quick:
        recipe = replace(recipe, train_images=1_024, rating_images=256, rating_batch=128, batch=32, epochs=1)
    draws = 4 if quick else 20
    results = [Result("the teacher's test accuracy", test_accuracy(recipe.teacher), ""), *rivals(draws)]
    for name, scores in scored(rated_by_all(recipe), recipe).items():
        results += judged(name, scores, draws)
    if not quick:
        keep(recipe, results)
    report("ranking", results)


if __name__ == "__main__":
    main()
