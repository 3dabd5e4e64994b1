"""A published network trained by its name with the published recipe, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import DropPath

from dna_deploy.data import Framing
from dna_deploy.errors import DataError, RequestError, RunError, TeacherError
from dna_deploy.named import _created, train_named
from dna_deploy.original import Asked, from_model
from dna_deploy.recipe import Training, recipe


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Two classes of 30 images: stripes across and along."""
    root, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for name in ("across", "along"):
        (root / name).mkdir()
        for number in range(30):
            pixels = np.zeros((36, 36, 3), np.uint8)
            pixels[rng.integers(4) :: 6] = rng.integers(150, 255)
            Image.fromarray(pixels if name == "across" else pixels.transpose(1, 0, 2)).save(root / name / f"{number}.png")
    return str(root)


def test_dna_a_from_scratch_with_the_published_recipe(stripes, tmp_path):
    how = dataclasses.replace(recipe("scratch").at(16), epochs=2)
    done = train_named("dna_a", stripes, None, 32, tmp_path / "run", how, amp=None)
    assert done.training == how and done.test_images == 15 and 0 <= done.test_accuracy <= 1
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["split.json", "trained.json", "weights.safetensors"]
    weights = (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns
    assert train_named("dna_a", stripes, None, 32, tmp_path / "run", how, amp=None) == done
    assert (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns == weights
    (tmp_path / "run" / "weights.safetensors").unlink()
    assert train_named("dna_a", stripes, None, 32, tmp_path / "run", how, amp=None) == done  # trained again, to the same end
    assert (tmp_path / "run" / "weights.safetensors").exists()
    shown = Asked("dna_a", weights=tmp_path / "run" / "weights.safetensors", data=stripes, image_size=32)
    assert from_model(shown).network is not None  # what dna-export --model dna_a --weights reads
    for name, size, other, said in (
        ("dna_b", 32, how, "network = dna_a, now asked for dna_b"),
        ("dna_a", 48, how, "image_size = 32, now asked for 48"),
        ("dna_a", 32, dataclasses.replace(how, epochs=3), "epochs = 2, now asked for 3"),
    ):
        with pytest.raises(RunError, match=f"was trained with {said}; choose another --run"):
            train_named(name, stripes, None, size, tmp_path / "run", other, amp=None)


def test_a_training_that_is_not_done_goes_on_only_as_it_was_begun(stripes, tmp_path, monkeypatch):
    how = Training(inherit=False, epochs=2, augmentation="crop", teacher_share=0, feature_share=0)

    def interrupted(*_):
        raise KeyboardInterrupt

    name, asked = "mobilenetv3_small_050", (stripes, None, 32, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dna_deploy.train.accuracy", interrupted)
        train_named(name, *asked, how, amp=None)
    kept = (tmp_path / "run" / "training.safetensors").read_bytes()
    with pytest.raises(RunError, match="image_size = 32, now asked for 48; choose another --run"):
        train_named(name, stripes, None, 48, tmp_path / "run", how, amp=None)
    with pytest.raises(RunError, match="epochs = 2, now asked for 3; choose another --run"):
        train_named(name, *asked, dataclasses.replace(how, epochs=3), amp=None)
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == kept
    monkeypatch.setattr("dna_deploy.train.save_checkpoint", lambda *_: pytest.fail("an epoch was trained again"))
    assert train_named(name, *asked, how, amp=None).training == how


def test_the_accuracy_claimed_is_that_of_the_images_dna_export_shows(stripes, tmp_path, monkeypatch):
    """timm states a crop of 0.95 for resnet18, which is what both look at."""
    from click.testing import CliRunner

    from dna_deploy.cli.train import main

    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("inherit = false\nteacher_share = 0.0\nfeature_share = 0.0\nepochs = 1\n")
    flags = [
        "resnet18",
        "--recipe",
        "own.toml",
        "--data",
        "x/stripes",
        "--data-root",
        stripes,
        "--image-size",
        "32",
        "--run",
        "r",
    ]
    shown = []
    monkeypatch.setattr("dna_deploy.train.logits_of", lambda model, test, _: shown.append(test) or torch.eye(2)[test.labels])
    done = CliRunner().invoke(main, flags)
    assert done.exit_code == 0, done.output
    assert [test.framing for test in shown] == [Framing(0.95, "bicubic")]
    said = next(line for line in done.output.splitlines() if line.startswith("next: "))
    assert said == (
        "next: dna-export --model resnet18 --weights runs/r/weights.safetensors --data x/stripes --image-size 32 "
        f"--data-root {stripes}"
    )
    asked = Asked("resnet18", Path("runs/r/weights.safetensors"), "x/stripes", stripes, 32)
    exported = from_model(asked)
    pixels = exported.test.at(range(exported.test.count))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (exported.contract.mean, exported.contract.std))
    tested = (shown[0].batch(range(len(shown[0]))).numpy() / 255 - mean) / std
    np.testing.assert_allclose(pixels, tested, atol=1e-5)


def test_other_data_of_the_same_name_are_other_data(stripes, tmp_path):
    """A torchvision data set is named alike wherever it lies; and images may change where they lie."""
    how = Training(inherit=False, epochs=1, teacher_share=0, feature_share=0)
    copy = tmp_path / "copy"
    shutil.copytree(stripes, copy)
    asked = ("mobilenetv3_small_050", "x/stripes")
    done = train_named(*asked, stripes, 32, tmp_path / "run", how, amp=None)
    assert done.data_root == stripes
    with pytest.raises(RunError, match=f"was trained with data_root = {stripes}, now asked for {copy}; choose another --run"):
        train_named(*asked, str(copy), 32, tmp_path / "run", how, amp=None)
    train_named(*asked, str(copy), 32, tmp_path / "other", how, amp=None)
    (copy / "along" / "0.png").rename(copy / "across" / "0 of along.png")
    with pytest.raises(DataError, match=r"classes, labels or file names of .*copy changed since it was split; restore the data"):
        train_named(*asked, str(copy), 32, tmp_path / "other", how, amp=None)


def test_a_file_is_no_folder_to_train_in(stripes, tmp_path):
    (tmp_path / "afile").touch()
    with pytest.raises(RequestError, match=r"afile: cannot be written \(Not a directory\); choose another folder"):
        train_named("dna_a", stripes, None, 32, tmp_path / "afile", recipe("scratch"), amp=None)


def test_a_network_of_a_fixed_input_size_is_refused_before_it_is_trained(stripes, tmp_path):
    with pytest.raises(TeacherError, match=r"does not take images of 32 px \(Input height \(32\)"):
        train_named("vit_tiny_patch16_224", stripes, None, 32, tmp_path / "run", recipe("scratch"), amp=None)


@pytest.mark.parametrize(
    ("name", "rate", "largest"),
    [
        ("vit_tiny_patch16_224", 0.2, 0.2),  # whose branches are made to be left out only where a rate is given
        ("swin_tiny_patch4_window7_224", 0.0, 0.0),  # 0.1 if nobody says
        ("swin_tiny_patch4_window7_224", 0.3, 0.3),
        ("efficientnet_b0", 0.2, 0.2),
        ("repvit_m0_9", 0.0, 0.0),
    ],
)
def test_branches_are_left_out_as_the_recipe_says(name, rate, largest):
    rates = [part.drop_prob for part in _created(name, 2, rate).modules() if isinstance(part, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(largest)


def test_weights_are_drawn_as_they_are_without_a_rate():
    for name in ("repvit_m0_9", "resnet18"):  # timm's own take none, and one
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=2).state_dict()
        torch.manual_seed(0)
        assert all(torch.equal(weight, plain[part]) for part, weight in _created(name, 2, 0.0).state_dict().items())


def test_a_network_of_which_nothing_can_be_left_out_is_refused(stripes, tmp_path):
    for name in ("repvit_m0_9", "vgg11"):
        with pytest.raises(
            RequestError, match=rf"drop_connect = 0\.2: {name} has no branches that timm leaves out; take a recipe"
        ):
            train_named(name, stripes, None, 32, tmp_path / "run", recipe("scratch"), amp=None)


def test_a_network_alone_has_nothing_to_inherit(stripes, tmp_path):
    with pytest.raises(RequestError, match="no blocks to inherit from and no teacher"):
        train_named("dna_a", stripes, None, 32, tmp_path, Training(), amp=None)
    with pytest.raises(RequestError, match="'dna_e' is no model"):
        train_named("dna_e", stripes, None, 32, tmp_path, recipe("scratch"), amp=None)
