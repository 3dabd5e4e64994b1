"""Teachers: cuts of very different networks, and heads for the classes of the data."""

import pytest
import timm
import torch
from torch import nn

import dna_deploy.zoo  # noqa: F401  makes the published networks known to timm
from dna_deploy.data import Preprocessing
from dna_deploy.errors import RequestError, TeacherError
from dna_deploy.plugins import find
from dna_deploy.teacher import Teacher, create, cut, require_scores, require_scores_while_training, trunk

MOBILE = find("spaces", "mobile")


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
    assert cut(model, space, [place.name for place in places if place]) == places  # by hand
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
    loaded, preprocessing, untaught = create("dna_a", 7, tmp_path / "own.pth")
    assert untaught is None and preprocessing.mean == timm.data.IMAGENET_DEFAULT_MEAN
    assert [place.channels for place in cut(loaded, find("spaces", "dna").at(64, 7))] == [16, 24, 40, 80, 96, 160, 320]
    with pytest.raises(RequestError, match="no trained weights are published"):
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
    with pytest.raises(TeacherError, match="needs 3 of the teacher's modules, one behind which each of stem, b1, b2 ends"):
        cut(model, tiny, ["blocks.0.0"])
    with pytest.raises(TeacherError, match=r"blocks\.2\.0 ends at 4 px, block b1 of tiny at 8 px"):
        cut(model, tiny, ["blocks.0.0", "blocks.2.0", "blocks.2.1"])


def test_a_teacher_that_cannot_be_cut_says_which_modules_were_seen(tiny):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(TeacherError, match=r"modules seen: none.*only 0 \(3072,\), 1 \(10,\)"):
        cut(flat, tiny)


def test_a_teacher_without_a_signal_is_refused():
    model = timm.create_model("resnet18", num_classes=4).eval()
    teacher = Teacher("t", model, Preprocessing((0.5,) * 3, (0.5,) * 3), cut(model, MOBILE.at(64, 4)))
    x = torch.rand(2, 3, 64, 64)
    teacher.require_signal(x)
    torch.nn.init.zeros_(model.fc.weight)
    teacher.require_signal(x)  # a fresh head that says the same of every image
    torch.nn.init.constant_(model.fc.bias, float("nan"))
    with pytest.raises(TeacherError, match=r"class scores are no numbers .*; check its weights"):
        teacher.require_signal(x)
    torch.nn.init.zeros_(model.fc.bias)
    torch.nn.init.constant_(model.layer3[0].bn2.bias, -1e9)  # all that follows is behind a ReLU that never opens
    with pytest.raises(TeacherError, match=r"behind layer3.0 are the same everywhere.*--cut"):
        teacher.require_signal(x)


class Answers(nn.Module):
    """Scores in evaluation, or with an auxiliary classifier's beside them while training, or always."""

    def __init__(self, training=False, always=False):
        super().__init__()
        self.when, self.scores, self.norm = (training, always), nn.Linear(12, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        training, always = self.when
        found = self.norm(self.scores(x.flatten(1)))
        return (found, found) if always or (training and self.training) else found


def test_a_network_that_answers_with_more_than_scores_is_refused():
    with pytest.raises(TeacherError, match=r"answers with a tuple; expected class scores alone, \(1, 4\)"):
        require_scores(Answers(always=True), 2, 4)
    model = Answers(training=True).eval()
    require_scores(model, 2, 4)
    with pytest.raises(TeacherError, match="answers with a tuple while it is trained; expected class scores alone"):
        require_scores_while_training(model, 2)
    model, drawn = Answers().eval(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    require_scores_while_training(model, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training
    assert torch.equal(torch.get_rng_state(), drawn)


OWN = """
import torch
from torch import nn
MEAN = STD = (0.5,) * 3
net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
"""


@pytest.mark.parametrize("model", ["net.half()", "net.double()", "torch.compile(net)", "lambda: net.half()"])
def test_a_teacher_in_another_precision_or_compiled_is_taken_as_its_module(tmp_path, model):
    (tmp_path / "own.py").write_text(f"{OWN}MODEL = {model}\n")
    made, _, _ = create(str(tmp_path / "own.py"), 4)
    assert [name for name, _ in made.named_children()] == ["0", "1", "2", "3"]
    assert made(torch.zeros(2, 3, 8, 8)).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_teacher_nobody_can_look_into_is_refused(tmp_path):
    for model in ("torch.jit.trace(net, torch.zeros(1, 3, 8, 8))", "nn.Sequential(torch.jit.script(net[:2]), *net[2:])"):
        (tmp_path / "own.py").write_text(f"{OWN}MODEL = {model}\n")
        with pytest.raises(
            TeacherError, match=r"own\.py: holds a \w+, into which nobody can look; give the module it was made of"
        ):
            create(str(tmp_path / "own.py"), 4)


def test_a_users_checkpoint_keeps_its_classes(tmp_path):
    from safetensors.torch import save_file

    model = timm.create_model("resnet18", num_classes=7)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    loaded, _, untaught = create("resnet18", 7, tmp_path / "own.safetensors")
    assert untaught is None
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "own.pth")
    loaded, _, untaught = create("resnet18", 5, tmp_path / "own.pth")
    assert untaught == "its classes differ" and loaded.num_classes == 5
