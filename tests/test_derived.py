"""Spaces derived from teachers: one step of training and every shape, on very different networks and one of our own."""

import random
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from dna_deploy.arch import Architecture, sample
from dna_deploy.data import Preprocessing
from dna_deploy.derived import stages
from dna_deploy.distill import draw, step
from dna_deploy.errors import RequestError, TeacherError
from dna_deploy.networks import untrained
from dna_deploy.plugins import find
from dna_deploy.supernet import Supernet
from dna_deploy.teacher import Teacher, create, cut, require_scores, trunk

OWN = str(Path(__file__).with_name("own_teacher.py"))
STAGES = {  # each stage's last module and the student's width: the teacher's, scaled so that the last is at most 320
    "tf_efficientnet_lite0": {
        "blocks.1.1": 24,
        "blocks.2.1": 40,
        "blocks.3.2": 80,
        "blocks.4.2": 112,
        "blocks.5.3": 192,
        "blocks.6.0": 320,
    },
    "resnet50": {"layer1.2": 40, "layer2.3": 80, "layer3.5": 160, "layer4.2": 320},
    "mobilenetv3_large_100": {"blocks.1.1": 24, "blocks.2.2": 40, "blocks.3.3": 80, "blocks.4.1": 112, "blocks.5.2": 160},
    "regnety_008": {"s1.b1": 24, "s2.b3": 56, "s3.b8": 136, "s4.b2": 320},
    "convnext_atto": {"stages.0.blocks.1": 40, "stages.1.blocks.1": 80, "stages.2.blocks.5": 160, "stages.3.blocks.1": 320},
    OWN: {"body.1.1": 16, "body.2.0": 24, "body.3.1": 40},
}


@pytest.mark.parametrize("name", STAGES, ids=lambda name: Path(name).stem)
def test_a_space_is_derived_and_learns_from_its_teacher(name):
    torch.manual_seed(0)
    space = find("spaces", f"derived:{name}").at(64, 5)
    assert dict(zip(space.cuts[1:], (block.widths_out[0] for block in space.blocks[1:-1]), strict=True)) == STAGES[name]
    teacher = Teacher(name, untrained(name, 5).eval().requires_grad_(False), Preprocessing((0.5,) * 3, (0.5,) * 3), ())
    teacher = Teacher(name, teacher.model, teacher.preprocessing, cut(teacher.model, space))
    assert tuple(place and place.name for place in teacher.cuts) == space.cuts
    supernet = Supernet(space, teacher)
    image = torch.randn(2, 3, 64, 64)
    features = teacher.features(image)
    losses = step(supernet, features, image, [draw(part.piece.block, random.Random(1)) for part in supernet.pieces])
    assert all(torch.isfinite(loss) for loss in losses)
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in supernet.parameters())
    arch = sample(space, random.Random(2))
    assert Architecture.parse(arch.key) == arch
    with torch.no_grad():
        assert supernet.build(arch).eval()(image).shape == (2, 5)


def test_the_last_1x1_of_mobilenetv3_is_no_stage():
    model = timm.create_model("mobilenetv3_large_100", num_classes=5)
    places = trunk(model, 64)
    assert places[-1].name == "blocks.6.0" and places[-1].channels == 960
    assert stages(model, places, 64)[-1][-1].name == "blocks.5.2"


def test_a_module_of_ones_own_as_teacher(tmp_path):
    model, preprocessing, untaught = create(OWN, 5)
    assert "nothing says that MODEL() comes trained" in untaught and preprocessing.mean == (0.4, 0.5, 0.6)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again, _, untaught = create(OWN, 5, tmp_path / "own.pth")
    assert untaught is None and torch.equal(again.fc.weight, model.fc.weight)
    with pytest.raises(RequestError, match=r"own\.pth: not the weights of .*own_teacher\.py"):
        create(OWN, 6, tmp_path / "own.pth")
    trained = tmp_path / "trained.py"
    trained.write_text("from torch import nn\nMODEL = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 7))\n")
    model, _, untaught = create(str(trained), 5)
    assert untaught is None and isinstance(model, nn.Module)
    with pytest.raises(TeacherError, match=r"has the shape \(1, 7\) for one image, the data has 5 classes"):
        require_scores(model, 64, 5)
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(RequestError, match="defines no MODEL"):
        create(str(empty), 5)


def test_what_cannot_be_derived_is_answered_in_one_line(tmp_path):
    with pytest.raises(RequestError, match="timm has no model of that name"):
        find("spaces", "derived:nope").at(64, 5)
    with pytest.raises(RequestError, match="at least 2 classes"):
        find("spaces", "derived:resnet50").at(64, 1)
    with pytest.raises(TeacherError, match=r"does not take images of 64 px \(Input height \(64\)"):
        find("spaces", "derived:vit_tiny_patch16_224").at(64, 5)
    flat = tmp_path / "flat.py"
    flat.write_text("from torch import nn\nMODEL = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5))\n")
    with pytest.raises(TeacherError, match="has no stage of 16 px or less to derive a block from; modules seen: none"):
        find("spaces", f"derived:{flat}").at(64, 5)
    coarse = tmp_path / "coarse.py"
    coarse.write_text(
        "from torch import nn\n"
        "stage = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.ReLU())\n"
        "MODEL = nn.Sequential(stage(3, 8, 4), stage(8, 8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))\n"
    )
    with pytest.raises(TeacherError, match="1 ends at 4 px behind 16 px, which is neither stride 1 nor 2"):
        find("spaces", f"derived:{coarse}").at(64, 5)
