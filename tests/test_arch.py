"""Architectures: files and keys read back, modules have the costs that are claimed."""

import json
import random
from pathlib import Path

import pytest

from dna_deploy.arch import Architecture, sample
from dna_deploy.errors import RequestError
from dna_deploy.plugins import find


@pytest.fixture
def arch():
    return sample(find("spaces", "mobile").at(64, 5), random.Random(3))


def test_file_and_key_read_back(arch, tmp_path):
    arch.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == arch
    assert Architecture.is_key(arch.key) and not Architecture.is_key(arch.ops[0].key)
    assert Architecture.parse(arch.key) == arch and Architecture.is_known(arch.key)
    for other in (
        "elsewhere(64, 5): d1: k3e3 #01234567",
        f"{arch.key} | d1: k3e3",
        "mobile(64, 5): d1: k9e9 #01234567",
        arch.key[:-9],
    ):
        assert not Architecture.is_known(other)


def test_a_network_of_a_space_that_was_edited_since_is_another_one(tmp_path, tiny_path):
    file = tmp_path / "mine.py"
    text = Path(tiny_path).read_text().replace('"tiny"', '"mine"')
    file.write_text(text)
    key = sample(find("spaces", str(file)).at(32, 10), random.Random(0)).key
    assert Architecture.is_known(key)
    file.write_text(text.replace("24", "96"))
    wider = sample(find("spaces", str(file)).at(32, 10), random.Random(0))
    assert wider.key.partition(" #")[0] == key.partition(" #")[0] and Architecture.is_known(wider.key)
    assert not Architecture.is_known(key)
    with pytest.raises(RequestError, match="space mine was edited since"):
        Architecture.parse(key)


def test_the_module_has_the_parameters_that_are_claimed(arch):
    network = arch.module()
    assert sum(weight.numel() for weight in network.parameters()) == arch.params
    assert [name for name, _ in network.named_children()] == [block.name for block in arch.space.blocks]


def test_sampling_covers_the_space_and_repeats(tiny):
    drawn = {sample(tiny, random.Random(seed)).key for seed in range(400)}
    assert len(drawn) == tiny.size
    assert sample(tiny, random.Random(1)) == sample(tiny, random.Random(1))


def test_a_wrong_file_is_answered_in_one_line(arch, tmp_path):
    file = tmp_path / "a.json"
    arch.save(file)
    good = json.loads(file.read_text())
    cases = {
        "schema": good | {"schema": "dna-deploy/architecture/99"},
        "blocks": good | {"blocks": {"b1": "d1: k3e3"}},
        "extra": good | {"extra": 1},
        "num_classes": {key: value for key, value in good.items() if key != "num_classes"},
    }
    for word, content in cases.items():
        file.write_text(json.dumps(content))
        with pytest.raises(RequestError, match=word) as caught:
            Architecture.load(file)
        assert "\n" not in str(caught.value)
    file.write_text('{"schema": ')
    with pytest.raises(RequestError, match="not JSON"):
        Architecture.load(file)
    with pytest.raises(RequestError, match="no such file"):
        Architecture.load(tmp_path / "none.json")
