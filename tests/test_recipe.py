"""Recipes: DNA's published one to the letter, one's own, and the answers to those that cannot be meant."""

import itertools
import math
from dataclasses import fields
from pathlib import Path

import pytest

from dna_deploy.errors import RequestError
from dna_deploy.recipe import RECIPES, Training, recipe


def test_the_published_recipe():
    how = recipe("scratch")
    assert (how.optimizer, how.learning_rate, how.epsilon, how.batch) == ("rmsproptf", 0.064, 0.001, 8 * 128)
    assert (how.schedule, how.decay_rate, how.decay_epochs, how.epochs) == ("step", 0.963, 3, 500)
    assert (how.ema, how.label_smoothing, how.drop_connect) == (0.9998, 0.1, 0.2)
    assert how.warmup * how.epochs == pytest.approx(5) and not how.inherit and not how.guided


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_is_one(file):
    assert recipe(file.stem) == recipe(str(file))


def test_a_smaller_batch_takes_smaller_steps():
    assert recipe("scratch").at(256).learning_rate == pytest.approx(0.016)  # RMSprop: in proportion
    assert Training(batch=16, learning_rate=1e-3).at(64).learning_rate == pytest.approx(1e-3 * math.sqrt(4))  # Adam: the root
    for name in ("AdamW", "NAdam", "adopt", "lookahead_LAMB"):
        assert Training(optimizer=name, batch=16, learning_rate=1e-3).at(64).learning_rate == pytest.approx(2e-3)
    assert Training(optimizer="SGD", batch=16, learning_rate=1e-3).at(64).learning_rate == pytest.approx(4e-3)
    assert Training().at(None) == Training() == recipe("finish")


def test_ones_own_recipe_and_what_it_may_say(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('epochs = 3\noptimizer = "lamb"\n')
    assert recipe(str(own)) == Training(epochs=3, optimizer="lamb")
    for text, said in (
        ("epoch = 3", "epoch"),
        ("epochs = 0", "expected at least 1"),
        ('epochs = "many"', "epochs"),
        ("learning_rate = -1.0", "learning_rate = -1.0: expected more than 0"),
        ('color_jitter = -1.0\naugmentation = "crop"', "color_jitter = -1.0: expected 0 or more"),
        ("temperature = inf", "temperature"),
        ("epochs: 3", "not TOML"),
    ):
        own.write_text(text)
        with pytest.raises(RequestError, match=said) as caught:
            recipe(str(own))
        assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="expected finish, scratch, or a path"):
        recipe("nope")
    with pytest.raises(RequestError, match="no such recipe"):
        recipe(str(Path("nowhere.toml")))


OUTSIDE = {
    "0 to 1": ({"warmup", "label_smoothing", "teacher_share"}, (-0.1, 1.1)),
    "0 or more, and less than 1": ({"momentum", "ema", "drop_connect"}, (-0.1, 1.0)),
    "0 or more": ({"weight_decay", "color_jitter", "mixup", "feature_share"}, (-0.1, math.inf)),
    "more than 0": ({"learning_rate", "epsilon", "decay_epochs", "decay_rate", "temperature"}, (0.0, -0.1, math.inf)),
}


def test_values_outside_their_range_are_named():
    numbers = {field.name for field in fields(Training) if field.type in (float, float | None)}
    assert set.union(*(names for names, _ in OUTSIDE.values())) == numbers  # a new one needs a range
    for expected, (names, values) in OUTSIDE.items():
        for name, value in itertools.product(names, (*values, math.nan)):
            with pytest.raises(RequestError, match=f"^{name} = {value}: expected {expected}$"):
                Training(**{name: value})


def test_the_ends_of_the_ranges_are_within():
    most = Training(warmup=1, label_smoothing=1, teacher_share=1, ema=0.9999, drop_connect=0.999)
    least = Training(warmup=0, label_smoothing=0, teacher_share=0, ema=0, drop_connect=0, weight_decay=0, mixup=0, momentum=0)
    assert most.guided and least.guided
