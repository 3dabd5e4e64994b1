"""Teachers: real ImageNet weights, the exact logits of the original, and cuts of very different networks."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from dna_deploy.errors import TeacherError
from dna_deploy.plugins import find
from dna_deploy.teacher import PACKAGED, Teacher, create, cut, from_lite, read_weights, trunk, untrained

MOBILE = find("spaces", "mobile")


def _packaged(name):
    spec = importlib.util.find_spec(PACKAGED[name])
    if spec is None:
        pytest.skip(f"the PyPI package with the weights of {name} is not installed")
    return next((Path(spec.origin).parent / "models").glob("*.pth"))


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_fit_to_the_last_tensor(name):
    renamed = from_lite(read_weights(_packaged(name)))
    model = timm.create_model(name)
    assert set(renamed) == set(model.state_dict())
    model.load_state_dict(renamed, strict=True)


class OriginalBlock(nn.Module):
    """MBConv as the original EfficientNet-Lite code has it, under the original's names (written from the paper)."""

    def __init__(self, state, prefix, stride):
        super().__init__()
        self.state, self.prefix, self.stride = state, prefix, stride

    def forward(self, x):
        y, (s, p) = x, (self.state, self.prefix)
        if f"{p}_expand_conv.weight" in s:
            y = _norm(s, f"{p}_bn0", nn.functional.conv2d(y, s[f"{p}_expand_conv.weight"])).clamp(0, 6)
        weight = s[f"{p}_depthwise_conv.weight"]
        y = _same(y, weight, self.stride, groups=weight.shape[0])
        y = _norm(s, f"{p}_bn1", y).clamp(0, 6)
        y = _norm(s, f"{p}_bn2", nn.functional.conv2d(y, s[f"{p}_project_conv.weight"]))
        return y + x if y.shape == x.shape and self.stride == 1 else y


def _norm(s, name, x):
    return nn.functional.batch_norm(
        x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-3
    )


def _same(x, weight, stride, groups=1):
    """TensorFlow's SAME padding: as little as needed, the odd pixel at the end."""
    kernel = weight.shape[-1]
    need = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
    x = nn.functional.pad(x, [need // 2, need - need // 2] * 2)
    return nn.functional.conv2d(x, weight, stride=stride, groups=groups)


def test_lite0_gives_the_logits_of_the_original():
    state = read_weights(_packaged("tf_efficientnet_lite0"))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        y = _norm(state, "_bn0", _same(x, state["_conv_stem.weight"], 2)).clamp(0, 6)
        for number, stride in enumerate(strides):
            y = OriginalBlock(state, f"_blocks.{number}.", stride)(y)
        y = _norm(state, "_bn1", nn.functional.conv2d(y, state["_conv_head.weight"])).clamp(0, 6).mean((2, 3))
        expected = nn.functional.linear(y, state["_fc.weight"], state["_fc.bias"])
        model, preprocessing, ready = create("tf_efficientnet_lite0", 1000)
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-4)
    assert ready and preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)


def test_lite0_knows_what_is_on_photographs():
    """The 20 labelled ImageNet photographs of PyPI's foolbox."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None:
        pytest.skip("foolbox, whose package holds 20 labelled ImageNet photographs, is not installed")
    import numpy as np
    from PIL import Image

    _packaged("tf_efficientnet_lite0")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    labels = torch.tensor([int(file.stem.split("_")[2]) for file in files])
    model, preprocessing, _ = create("tf_efficientnet_lite0", 1000)
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for file in files]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        best = model.eval()(preprocessing(batch)).topk(5).indices
    assert len(files) == 20
    assert int((best == labels[:, None]).any(1).sum()) == 20
    assert int((best[:, 0] == labels).sum()) >= 16


CUTS = {
    "tf_efficientnet_lite0": ["blocks.0.0", "blocks.1.1", "blocks.2.1", "blocks.3.2", "blocks.4.2", "blocks.5.3", "blocks.6.0"],
    "mobilenetv3_large_100": ["blocks.0.0", "blocks.1.1", "blocks.2.2", "blocks.3.3", "blocks.4.1", "blocks.5.2", "blocks.6.0"],
    "resnet18": [None, "layer1.1", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1"],
    "regnety_002": ["stem", "s1.b1", "s2.b1", "s3.b2", "s3.b4", "s4.b4", "s4.b7"],
    "convnext_atto": [
        None,
        "stages.0.blocks.1",
        "stages.1.blocks.1",
        "stages.2.blocks.2",
        "stages.2.blocks.5",
        "stages.3.blocks.0",
        "stages.3.blocks.1",
    ],
}


@pytest.mark.parametrize("name", CUTS)
def test_teachers_are_cut_where_their_resolution_or_stage_changes(name):
    space = MOBILE.at(64, 10)
    model = timm.create_model(name, num_classes=10).eval()
    places = cut(model, space)
    assert [place and place.name for place in places] == CUTS[name]
    features = Teacher(name, model, None, places).features(torch.zeros(2, 3, 64, 64))
    there = [place for place in places if place]
    assert [f.shape[1:] for f in features] == [*((p.channels, p.hw, p.hw) for p in there), (10,)]


def test_b7_is_cut_at_its_stages_for_dnas_space():
    space = find("spaces", "dna").at(224, 1000)
    places = cut(timm.create_model("tf_efficientnet_b7"), space)
    assert [(place.channels, place.hw) for place in places] == [
        (32, 112),
        (48, 56),
        (80, 28),
        (160, 14),
        (224, 14),
        (384, 7),
        (640, 7),
    ]


def test_a_published_network_can_teach(tmp_path):
    model = timm.create_model("dna_a", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    loaded, preprocessing, ready = create("dna_a", 7, tmp_path / "own.pth")
    assert ready and preprocessing.mean == timm.data.IMAGENET_DEFAULT_MEAN
    assert [place.channels for place in cut(loaded, find("spaces", "dna").at(64, 7))] == [16, 24, 40, 80, 96, 160, 320]
    with pytest.raises(TeacherError, match="no trained weights are published"):
        create("dna_a", 7)


def test_a_module_of_ones_own_is_cut():
    def stage(cin, cout):
        return nn.Sequential(nn.Conv2d(cin, cout, 3, 2, 1), nn.BatchNorm2d(cout), nn.ReLU())

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(stage(3, 8), stage(8, 12), stage(12, 20))
            self.fc = nn.Linear(20, 10)

        def forward(self, x):
            return self.fc(self.body(x).mean((2, 3)))

    assert [(p.name, p.channels, p.hw) for p in trunk(Own(), 32)] == [("body.0", 8, 16), ("body.1", 12, 8), ("body.2", 20, 4)]


def test_cuts_by_hand_are_checked(tiny):
    model = timm.create_model("tf_efficientnet_lite0")
    chosen = cut(model, tiny, ["blocks.0.0", "blocks.1.0", "blocks.2.0"])
    assert [place.name for place in chosen] == ["blocks.0.0", "blocks.1.0", "blocks.2.0"]
    with pytest.raises(TeacherError, match="needs 3 of the teacher's modules"):
        cut(model, tiny, ["blocks.0.0"])
    with pytest.raises(TeacherError, match=r"blocks\.2\.0 ends at 4 px, block b1 of tiny at 8 px"):
        cut(model, tiny, ["blocks.0.0", "blocks.2.0", "blocks.2.1"])


def test_a_teacher_that_cannot_be_cut_says_which_modules_were_seen(tiny):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(TeacherError, match=r"modules seen: none.*only 0 \(3072,\), 1 \(10,\)"):
        cut(flat, tiny)


def test_unknown_names_and_unsafe_files_are_refused(tmp_path):
    with pytest.raises(TeacherError, match="timm has no model of that name"):
        create("efficientnet_lite00", 10)
    with pytest.raises(TeacherError, match="no such file"):
        create("resnet18", 10, tmp_path / "none.pth")
    pickled = tmp_path / "evil.pth"
    torch.save({"weight": _Evil()}, pickled)
    with pytest.raises(TeacherError, match="not weights that can be read safely"):
        create("resnet18", 10, pickled)
    assert not _Evil.ran
    other = tmp_path / "other.pth"
    torch.save(untrained("resnet18", 10).state_dict(), other)
    with pytest.raises(TeacherError, match="could not be loaded from"):
        create("resnet34", 10, other)


class _Evil:
    """Runs code when unpickled by an unsafe reader."""

    ran = False

    def __reduce__(self):
        return (setattr, (_Evil, "ran", True))


def test_a_users_checkpoint_keeps_its_classes(tmp_path):
    from safetensors.torch import save_file

    model = timm.create_model("resnet18", num_classes=7)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    loaded, _, ready = create("resnet18", 7, tmp_path / "own.safetensors")
    assert ready
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "own.pth")
    loaded, _, ready = create("resnet18", 5, tmp_path / "own.pth")
    assert not ready and loaded.num_classes == 5
