"""Networks by name and from files: real ImageNet weights, the exact logits of the original, and what a user's file may be."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dna_deploy.data import Preprocessing
from dna_deploy.errors import RequestError
from dna_deploy.networks import IMAGENET, PACKAGED, from_lite, open_network, read_weights, untrained


def opened(name, weights=None, classes=None):
    return open_network(str(name), weights, classes, "give a checkpoint")


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
        found = opened("tf_efficientnet_lite0")
        torch.testing.assert_close(found.module(x), expected, rtol=1e-4, atol=1e-4)
    assert found.trained and found.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3)


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
    found = opened("tf_efficientnet_lite0")
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for file in files]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        best = found.module(found.preprocessing(batch)).topk(5).indices
    assert len(files) == 20
    assert int((best == labels[:, None]).any(1).sum()) == 20
    assert int((best[:, 0] == labels).sum()) >= 16


def test_unknown_names_and_unsafe_files_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"timm has no model of that name; near: .*efficientnet_lite0"):
        opened("efficientnet_lite00")
    with pytest.raises(RequestError, match="no such file"):
        opened("resnet18", tmp_path / "none.pth")
    pickled = tmp_path / "evil.pth"
    torch.save({"weight": _Evil()}, pickled)
    with pytest.raises(RequestError, match="not weights that can be read safely"):
        opened("resnet18", pickled)
    assert not _Evil.ran
    other = tmp_path / "other.pth"
    torch.save(untrained("resnet18", 10).state_dict(), other)
    with pytest.raises(RequestError, match=r"other\.pth: not the weights of resnet34"):
        opened("resnet34", other)


class _Evil:
    """Runs code when unpickled by an unsafe reader."""

    ran = False

    def __reduce__(self):
        return (setattr, (_Evil, "ran", True))


@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224"])  # two heads, averaged
def test_a_checkpoint_of_a_distilled_network_keeps_its_classes(tmp_path, name):
    state = timm.create_model(name, num_classes=7).state_dict()
    torch.save(state, tmp_path / "own.pth")
    found = opened(name, tmp_path / "own.pth")
    assert found.module.num_classes == 7
    assert all(torch.equal(value, state[part]) for part, value in found.module.state_dict().items())


@pytest.mark.parametrize(
    "written",
    [
        lambda state: {f"_orig_mod.{part}": value for part, value in state.items()},
        lambda state: {f"module._orig_mod.{part}": value for part, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1, model="resnet18")},
    ],
    ids=["torch.compile", "DistributedDataParallel of it", "timm's train.py"],
)
def test_checkpoints_as_they_are_found_load(tmp_path, written):
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    torch.save(written(state), tmp_path / "own.pth")
    found = opened("resnet18", tmp_path / "own.pth").module.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(value, state[part]) for part, value in found.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_a_network_with_a_part_called_module_keeps_its_name(tmp_path, suffix, prefix):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nMEAN = STD = (0.5,) * 3\n"
        "def MODEL():\n    net = nn.Sequential(nn.Flatten())\n"
        "    net.add_module('module', nn.Linear(12, 4))\n    net.add_module('fc', nn.Linear(4, 2))\n    return net\n"
    )
    state = {f"{part}.{name}": torch.randn(shape) for part, name, shape in PARTS}
    (save_file if suffix == ".safetensors" else torch.save)(
        {f"{prefix}{name}": value for name, value in state.items()}, tmp_path / f"own{suffix}"
    )
    found = opened(tmp_path / "net.py", tmp_path / f"own{suffix}").module.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in found.items())


PARTS = [("module", "weight", (4, 12)), ("module", "bias", (4,)), ("fc", "weight", (2, 4)), ("fc", "bias", (2,))]


def test_tensors_without_names_are_no_weights(tmp_path):
    torch.save({0: torch.zeros(1)}, tmp_path / "own.pth")
    with pytest.raises(RequestError, match=r"own\.pth: holds no state dict; expected tensors by name"):
        read_weights(tmp_path / "own.pth")


OWN = """
from torch import nn
MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
def MODEL({parameters}):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, {classes}))
"""


@pytest.mark.parametrize(
    ("parameters", "classes", "asked", "answers"),
    [
        ("", "4", None, 4),
        ("", "4", 9, 4),
        ("classes", "classes", 9, 9),
        ("n", "n", 9, 9),
        ("num_classes=5", "num_classes", 9, 9),
        ("num_classes=5", "num_classes", None, 5),
        ("width=3, *, classes=5", "classes + width", 9, 12),
        ("pretrained=False", "5 + pretrained", 9, 5),  # a parameter for something else is left alone
    ],
)
def test_a_function_is_given_the_classes_where_it_asks_for_them(tmp_path, parameters, classes, asked, answers):
    (tmp_path / "net.py").write_text(OWN.format(parameters=parameters, classes=classes))
    found = opened(tmp_path / "net.py", None, asked)
    assert found.module(torch.zeros(2, 3, 2, 2)).shape == (2, answers) and not found.trained
    assert found.preprocessing == Preprocessing((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def test_figures_that_a_file_does_not_state_are_announced(tmp_path, capsys):
    (tmp_path / "net.py").write_text("from torch import nn\nMODEL = nn.Flatten()\n")
    assert opened(tmp_path / "net.py").preprocessing == IMAGENET
    assert "net.py: defines no MEAN and STD; those of ImageNet are assumed: (0.485, 0.456, 0.406)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("MODEL = 3", "TypeError: 3 is not a callable object"),
        ("def MODEL():\n    return 3", r"MODEL\(\) returned int; expected a torch.nn.Module"),
        ("def MODEL(n):\n    pass", r"MODEL\(n\) asks for the number of classes; give --labels or --data"),
        ("def MODEL():\n    return 1 / 0", r"net\.py, line 3: ZeroDivisionError: division by zero"),
        ("MODEL = nn.Flatten()\nMEAN, STD = 0.5, 0.5", "MEAN and STD, three numbers each: mean: Input should be a valid tuple"),
        ("MODEL = nn.Flatten()\nMEAN, STD = (0.5,) * 3, (0.5, 0.5, 0)", "expected three numbers above 0"),
        ("MODEL = nn.Flatten()\nMEAN = (0.5,) * 3", "three numbers each: std"),
    ],
)
def test_what_a_file_cannot_mean_is_answered_in_one_line(tmp_path, text, says):
    (tmp_path / "net.py").write_text(f"from torch import nn\n{text}\n")
    with pytest.raises(RequestError, match=says) as answer:
        opened(tmp_path / "net.py")
    assert "\n" not in str(answer.value)
