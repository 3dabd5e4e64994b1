"""Do the scores of block-wise training rank networks by the accuracy they reach when trained alone?

    python -m benchmarks.ranking
    python -m benchmarks.ranking --epochs 4 --fair --train-images 45000

NAS-Bench-Macro: all 6,561 networks of a space, each trained alone on CIFAR-10 three times by its publishers. The block-wise
supernet of that space is trained under a teacher, with the product's own code, on the photographs themselves; every
candidate is rated; the sums are held against the truth. Beside each score stand multiply-adds and parameters alone, the
correlation among networks of equal cost, and how well three trainings of the same networks agree.

Each recipe is a folder under ~/.cache/dna-deploy/ranking with the teacher's features (float16, memory-mapped), the
supernet and the ratings, and one line of benchmarks/results/ranking.jsonl; interrupted, the same command goes on. A pass over
45,000 images takes 12 minutes of one core, the teacher's features (once) 4, the rating on 3,000 images 3.
"""

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks._cifar10 import cifar10, lite0
from benchmarks._nas_bench_macro import SPACE
from benchmarks._report import arguments
from dna_deploy.data import Images
from dna_deploy.distill import Distillation, distill
from dna_deploy.lessons import KeptLessons
from dna_deploy.rate import rate
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.supernet import Supernet
from dna_deploy.teacher import trunk

CACHE = Path.home() / ".cache" / "dna-deploy" / "ranking"
RESULTS = Path(__file__).with_name("results") / "ranking.jsonl"
KEPT = ("blocks.0.0", "blocks.1.1", "blocks.2.1", "blocks.3.2", "blocks.4.2")  # of the teacher; a recipe uses some of them
TRAIN = 45_000  # of the 50,000 photographs that are not the test set; the others rate


@dataclass(frozen=True)
class Recipe:
    """One way to train and rate; everything a result depends on."""

    stem: str  # features behind the stem, or "image": the stem is trained with the first block
    last: str  # features behind the last block
    epochs: int
    batch: int
    learning_rate: float
    fair: bool
    train_images: int
    rating_images: int
    rating_batch: int
    seed: int

    @property
    def name(self) -> str:
        """Of the supernet, whose training the rating settings do not touch."""
        paths = "fair" if self.fair else "uniform"
        size = f"{self.train_images}x{self.epochs}-b{self.batch}-lr{self.learning_rate:g}"
        return f"{self.stem}-{self.last}-{paths}-{size}-s{self.seed}"


def lessons(part: str, count: int, cuts: tuple[str | None, ...] = KEPT) -> KeptLessons:
    """The first `count` photographs of a part, train or held_out, with the teacher's features behind these modules."""
    source = cifar10()
    order = [place for place in range(len(source.labels)) if place not in source.fixed_test]
    random.Random(0).shuffle(order)
    chosen = (order[:TRAIN] if part == "train" else order[TRAIN:])[:count]
    teacher = lite0(())
    assert teacher.image_size is not None
    places = {place.name: place for place in trunk(teacher.model, teacher.image_size)}
    teacher = replace(teacher, cuts=tuple(places[name] if name else None for name in cuts))
    return KeptLessons(teacher, Images(source, chosen, 32), CACHE / f"{teacher.name}-{part}-{count}")


def trained(recipe: Recipe) -> Supernet:
    """The supernet of a recipe; an interrupted training goes on at its last whole epoch."""
    cuts = (None if recipe.stem == "image" else recipe.stem, "blocks.1.1", "blocks.2.1", recipe.last)
    lessons("train", recipe.train_images)  # all features are computed in one pass, whichever the recipe uses
    taught = lessons("train", recipe.train_images, cuts)
    torch.manual_seed(recipe.seed)
    supernet = Supernet(SPACE.at(32, 10), taught.teacher)
    how = Distillation(
        epochs=recipe.epochs, batch=recipe.batch, learning_rate=recipe.learning_rate, fair=recipe.fair, seed=recipe.seed
    )
    distill(supernet, taught, how, CACHE / recipe.name / "supernet.safetensors")
    return supernet


def rated(recipe: Recipe) -> dict[str, list[Rating]]:
    """The ratings of every candidate by block."""
    space = SPACE.at(32, 10)
    file = CACHE / recipe.name / f"ratings-{recipe.rating_images}-{recipe.rating_batch}.jsonl"
    if not file.exists():
        supernet = trained(recipe)
        lessons("held_out", recipe.rating_images)
        cuts = (None if recipe.stem == "image" else recipe.stem, "blocks.1.1", "blocks.2.1", recipe.last)
        held_out = lessons("held_out", recipe.rating_images, cuts)
        save_ratings(file, rate(supernet, held_out, range(recipe.rating_images), recipe.rating_batch))
    return load_ratings(file, space.blocks)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--stem", default="image", choices=("image", "blocks.0.0"), help="what the first block gets")
    parser.add_argument("--last", default="blocks.4.2", choices=("blocks.3.2", "blocks.4.2"), help="what the last block imitates")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--fair", action="store_true", help="every op of a layer once a step")
    parser.add_argument("--train-images", type=int, default=45_000)
    parser.add_argument("--rating-images", type=int, default=3_000)
    parser.add_argument("--rating-batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    values = vars(parser.parse_args())
    quick = values.pop("quick")
    recipe = Recipe(**values)
    if quick:
        recipe = replace(recipe, train_images=1_024, rating_images=512, epochs=1)
    rated(recipe)
    print(json.dumps(asdict(recipe)))


if __name__ == "__main__":
    main()
