"""Recipes: DNA's published one to the letter, one's own, and the answers to those that cannot be meant."""

import math
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
