"""What is exported: any torch module or timm model, and what is answered where it cannot be."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dna_deploy.data import Preprocessing, split
from dna_deploy.errors import MachineError, RequestError
from dna_deploy.networks import RANDOM
from dna_deploy.original import Asked, from_model, licence_of, synthetic
from dna_deploy.sources import open_source
from dna_deploy.verify import outputs, winners

MODEL = """
from torch import nn
def MODEL():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""


@pytest.fixture
def own(workdir):
    (workdir / "net.py").write_text(MODEL)
    return "net.py"


def test_a_module_of_the_users_with_real_images(own):
    original = from_model(Asked(own, data="digits", image_size=32))
    assert original.contract.labels == tuple("0123456789") and original.test.labels is not None
    assert original.test.count + original.held_out.count < 1797 and not original.network.training
    images = original.test.at([0, 1])
    assert images.shape == (2, 3, 32, 32) and original.step.run(images).shape == (2, 10)


def test_weights_are_taken_from_a_checkpoint_without_running_it(own, workdir):
    network = from_model(Asked(own, image_size=32)).network
    state = {name: value + 1 for name, value in network.state_dict().items()}
    torch.save(state, workdir / "good.pth")
    filled = from_model(Asked(own, weights=workdir / "good.pth", image_size=32)).network
    assert all(torch.equal(value, state[name]) for name, value in filled.state_dict().items())

    class Evil:
        def __reduce__(self):
            return (exec, ("open('run', 'w')",))

    (workdir / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match=r"not weights that can be read safely \(damaged, or more than tensors in it\)"):
        from_model(Asked(own, weights=workdir / "evil.pth", image_size=32))
    assert not (workdir / "run").exists()

    torch.save({"0.weight": torch.zeros(1)}, workdir / "other.pth")
    with pytest.raises(RequestError, match=r"not the weights of net.py"):
        from_model(Asked(own, weights=workdir / "other.pth", image_size=32))


def test_a_file_that_can_teach_is_exported_with_its_own_figures(workdir):
    own = str(Path(__file__).with_name("own_teacher.py"))  # MODEL(num_classes), MEAN and STD
    original = from_model(Asked(own, data="digits", image_size=64))
    assert original.contract.labels == tuple("0123456789")
    assert original.contract.mean == (0.4, 0.5, 0.6) and original.contract.std == (0.2, 0.2, 0.2)
    (zero,) = synthetic(64, Preprocessing((0,) * 3, (1,) * 3), seed=0).at([0])  # the same pixels without any figures
    plain = from_model(Asked(own, labels=_names(workdir, 10), image_size=64)).test.at([0])[0]
    np.testing.assert_allclose(plain, (zero - np.array([[[0.4]], [[0.5]], [[0.6]]])) / 0.2, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "resize"),  # 64 / .95 and 64 / .875; bicubic and bilinear
    [("resnet18", "shorter side to 67 pixels, bicubic"), ("tf_mobilenetv3_small_075", "shorter side to 73 pixels, bilinear")],
)
def test_a_timm_model_sees_what_timms_own_evaluation_shows_it(workdir, name, resize):
    for place in range(8):
        (workdir / "set" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(place).integers(0, 256, (90 + place, 131, 3), np.uint8)
        Image.fromarray(pixels).save(workdir / "set" / "ab"[place % 2] / f"{place}.png")
    original = from_model(Asked(name, RANDOM, data="set", image_size=64))
    config = timm.data.resolve_data_config({"input_size": (3, 64, 64)}, model=original.network)
    transform = timm.data.create_transform(**config)
    source = open_source("set")
    expected = np.stack([transform(source.open(index)).numpy() for index in split(source).test])
    np.testing.assert_allclose(original.test.at(range(len(expected))), expected, atol=1e-5)
    assert original.contract.resize == resize


def _names(folder, count):
    (folder / "names.txt").write_text("".join(f"class {number}\n" for number in range(count)))
    return folder / "names.txt"


def test_weights_that_cannot_be_had_are_never_replaced_by_random_ones(workdir, monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **settings):
        if pretrained:
            raise OSError("no route to host\nand more")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MachineError, match=r"could not be had from timm \(no route to host\); give --weights FILE"):
        from_model(Asked("resnet18", image_size=32))
    tried = from_model(Asked("resnet18", weights=RANDOM, image_size=32))
    assert tried.contract.weights == "random" and tried.folder.name == "resnet18-untrained"
    (workdir / "net.py").write_text(MODEL)
    tried = from_model(Asked("net.py", weights=RANDOM, image_size=32))
    assert tried.contract.weights == "random" and tried.folder.name == "net-untrained"


def test_a_file_named_like_one_of_timms_models_is_not_under_its_licence():
    assert licence_of("resnet18") == "apache-2.0"
    for name in ("resnet18.py", "./nets/vit_base_patch16_224.py"):
        assert licence_of(name).startswith("Not known")


def test_labels_of_the_wrong_length_are_refused(own, workdir):
    (workdir / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(RequestError, match="2 names, the network has 10 classes"):
        from_model(Asked(own, labels=workdir / "names.txt", image_size=32))


def test_labels_in_another_order_than_the_datas_are_matched_by_name(own, workdir, capsys):
    plain, names = from_model(Asked(own, data="digits", image_size=32)), workdir / "names.txt"
    names.write_text("9\n8\n7\n6\n5\n4\n3\n2\n1\n0\n")
    turned = from_model(Asked(own, data="digits", labels=names, image_size=32))
    assert turned.contract.labels == tuple("9876543210")
    for part, other in ((turned.test, plain.test), (turned.held_out, plain.held_out)):
        assert (part.labels == 9 - other.labels).all()
    names.write_text("".join(f"{digit}\n" for digit in "x9876543210"))  # the network knows a class that the data lacks
    (workdir / "eleven.py").write_text(MODEL.replace("4, 10", "4, 11"))
    assert (
        from_model(Asked("eleven.py", data="digits", labels=names, image_size=32)).test.labels == 10 - plain.test.labels
    ).all()
    capsys.readouterr()
    worded = from_model(Asked(own, data="digits", labels=_names(workdir, 10), image_size=32))
    assert (worded.test.labels == plain.test.labels).all() and worded.contract.labels[0] == "class 0"
    assert "other names than those of digits, taken in the same order: 9 is class 9" in capsys.readouterr().err


def test_data_of_other_classes_judges_agreement_only(own, workdir):
    assert from_model(Asked(own, data="digits", image_size=32)).test.labels is not None
    (workdir / "seven.py").write_text(MODEL.replace("4, 10", "4, 7"))
    assert from_model(Asked("seven.py", data="digits", image_size=32)).test.labels is None


def test_one_output_is_the_score_of_the_second_of_two_classes(own, workdir):
    for name, shade in (("dark", 20), ("light", 220)):
        (workdir / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (8, 8), shade + number).save(workdir / "images" / name / f"{number}.png")
    (workdir / "one.py").write_text(
        "import torch\nclass Mean(torch.nn.Module):\n"
        "    def forward(self, x):\n        return x.mean((1, 2, 3))[:, None]\nMODEL = Mean\n"
    )
    found = from_model(Asked("one.py", data="images", image_size=8))
    assert found.contract.labels == ("light",)
    logits = outputs(found.step, found.test, 8)
    assert logits.shape == (found.test.count, 1) and set(found.test.labels) == {0, 1}
    assert (winners(logits) == found.test.labels).all()
    (workdir / "names.txt").write_text("dark\n")
    other = from_model(Asked("one.py", data="images", labels=workdir / "names.txt", image_size=8))
    assert (other.test.labels == 1 - found.test.labels).all()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked("no_such_net_at_all"), "timm has no model of that name"),
        (Asked("absent.py"), "no such file"),
        (Asked("gray.py", image_size=32), r"images of 32 x 32 \(.*\); choose .*, or give a network that takes three channels"),
        (Asked("ready.py", RANDOM), "random: MODEL of ready.py is a network with weights; leave --weights out"),
        (Asked("net.py", image_size=1), "cannot run RGB images of 1 x 1"),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(own, workdir, asked, says):
    (workdir / "gray.py").write_text(MODEL.replace("Conv2d(3", "Conv2d(1"))
    (workdir / "ready.py").write_text(f"{MODEL}\nMODEL = MODEL()\n")
    with pytest.raises(RequestError, match=says) as answer:
        from_model(asked)
    assert "\n" not in str(answer.value)


def test_too_large_a_model_is_refused_before_it_is_made():
    with pytest.raises(RequestError, match=r"4\.\d GB of weights"):
        from_model(Asked("vit_giant_patch14_dinov2"), largest_bytes=2_000_000_000)


def test_synthetic_images_are_always_the_same_and_of_all_scales():
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3)
    first, again, other = (synthetic(32, preprocessing, seed).at(range(64)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and first.dtype.name == "float32"
    assert -1 <= first.min() < -0.9 and 0.9 < first.max() <= 1
