"""How a whole network is trained: one flat TOML file a recipe, its keys the fields of `Training`.

`recipes/` holds ours; a recipe of your own is given by its path. Optimizers, schedules, the average of weights and the
augmentations are timm's, by the names they have there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dna_deploy.errors import RequestError
from dna_deploy.files import read_toml

RECIPES = Path(__file__).parent / "recipes"
RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {  # what is no number is within none
    "0 to 1": (lambda x: 0 <= x <= 1, ("warmup", "label_smoothing", "teacher_share")),
    "0 or more, and less than 1": (lambda x: 0 <= x < 1, ("momentum", "ema", "drop_connect")),
    "0 or more": (lambda x: 0 <= x < math.inf, ("weight_decay", "color_jitter", "mixup", "feature_share")),
    "more than 0": (lambda x: 0 < x < math.inf, ("learning_rate", "epsilon", "decay_epochs", "decay_rate", "temperature")),
}


@dataclass(frozen=True)
class Training:
    inherit: bool = True  # begin with what the blocks learned; else at random
    epochs: int = 8
    batch: int = 16
    accumulate: int = 1  # work each batch in so many parts: less memory, statistics of BatchNorm by part
    optimizer: str = "adamw"
    learning_rate: float = 2e-3  # the highest
    momentum: float = 0.9  # of optimizers that have one
    epsilon: float = 1e-8
    weight_decay: float = 0.02  # of convolutions and matrices; biases and norms have none
    schedule: str = "cosine"  # of the learning rate, down to a hundredth; step: times `decay_rate` every `decay_epochs`
    decay_epochs: float = 1.0
    decay_rate: float = 1.0
    warmup: float = 0.05  # share of the training in which the learning rate rises
    ema: float | None = None  # decay of the average of weights that is kept in the end; None: the last weights are
    label_smoothing: float = 0.1  # where there is no teacher to say more than a label
    drop_connect: float = 0.0  # how often the last residual branch is left out, earlier ones less
    augmentation: str = "shift"  # mirrored and shifted; crop: random crops; or crops and an AutoAugment such as rand-m9-mstd0.5
    color_jitter: float = 0.0  # with crops
    mixup: float = 0.0  # alpha
    teacher_share: float = 0.7  # of the loss on the logits that comes from the teacher's, the rest from the labels
    temperature: float = 2.0
    feature_share: float = 0.5  # weight of the noise-to-signal ratio of the features, averaged over the cuts
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.accumulate) < 1:
            raise RequestError(
                f"{self.epochs} epochs, batch {self.batch}, accumulate {self.accumulate}: expected at least 1 each"
            )
        for expected, (within, names) in RANGES.items():
            for name in names:
                if (value := getattr(self, name)) is not None and not within(value):
                    raise RequestError(f"{name} = {value}: expected {expected}")

    @property
    def guided(self) -> bool:
        """Whether a teacher is imitated."""
        return self.teacher_share > 0 or self.feature_share > 0

    def at(self, batch: int | None) -> "Training":
        """The same with another batch, and steps to match: with the root of the size for Adam and its kin (Malladi et al.,
        NeurIPS 2022), in proportion for others (Goyal et al., 2017)."""
        ratio = (batch or self.batch) / self.batch
        adaptive = any(kin in self.optimizer.lower() for kin in ("ada", "adopt", "lamb"))
        step = math.sqrt(ratio) if adaptive else ratio
        return replace(self, batch=batch or self.batch, learning_rate=self.learning_rate * step)


def recipe(name: str) -> Training:
    """The recipe of that name, or in a TOML file of the user's own."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        ours = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise RequestError(f"--recipe {name}: no such recipe; expected {ours}, or a path ending in .toml")
    return read_toml(path, Training)
