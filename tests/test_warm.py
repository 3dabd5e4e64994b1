"""Warm start: what is built like the teacher begins as the teacher, exactly; what is smaller begins near it."""

import pytest
import timm
import torch
from timm.layers import get_act_layer
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from dna_deploy.data import Preprocessing
from dna_deploy.distill import noise_to_signal
from dna_deploy.plugins import find
from dna_deploy.supernet import Supernet
from dna_deploy.teacher import Teacher, cut
from dna_deploy.warm import _fitted, _strongest, _weighted, warm_start

HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)
SIZE = 64
# the ops each stage of EfficientNet-Lite0 is made of, as candidates of `mobile`
SAME_AS_TEACHER = {"b1": "d2: k3e6 k3e6", "b2": "d2: k5e6 k5e6", "b3": "d3: k3e6 k3e6 k3e6", "b6": "d1: k3e6"}
LARGER_KERNELS = {"b1": "d2: k5e6 k7e6", "b2": "d2: k7e6 k5e6", "b3": "d3: k7e6 k5e6 k3e6", "b6": "d1: k5e6"}


def started(name):
    """A teacher whose weights and statistics are its own, the supernet of `mobile` started from it, and its features."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
        images = torch.randn(8, 3, SIZE, SIZE)
        model(images)
    space = find("spaces", "mobile").at(SIZE, 4)
    teacher = Teacher(name, model.eval().requires_grad_(False), HALF, cut(model, space))
    supernet = Supernet(space, teacher)
    count = warm_start(supernet, teacher)
    features = teacher.features(images)
    return (
        supernet.eval(),
        count,
        dict(
            zip([p.piece.block.name for p in supernet.pieces], zip([images, *features[:-1]], features, strict=True), strict=True)
        ),
    )


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_lite0"])
@pytest.mark.parametrize("paths", [SAME_AS_TEACHER, LARGER_KERNELS], ids=["same kernels", "larger kernels"])
def test_layers_built_like_the_teachers_begin_as_the_teachers(name, paths):
    """With TensorFlow's padding and with PyTorch's; a larger kernel has zeros around the teacher's."""
    supernet, count, edges = started(name)
    assert count == (112, 112)
    for part in supernet.pieces:
        name = part.piece.block.name
        if name in paths or part.piece.block.size == 1:
            candidate = part.piece.block.candidate(paths[name]) if name in paths else part.piece.block.candidates[0]
            into, target = edges[name]
            with torch.no_grad():
                assert noise_to_signal(part(into, candidate), target) < 1e-3, name  # TensorFlow's BatchNorm has another epsilon


def test_a_narrower_edge_keeps_the_channels_that_are_read_most():
    supernet, _, edges = started("tf_efficientnet_lite0")
    b4, b5 = (part for part in supernet.pieces if part.piece.block.name in ("b4", "b5"))
    leave = b4.leave["d3"].weight.flatten(1)  # (112, 96): each of the student's channels goes to the teacher's it stands for
    assert leave.sum(0).tolist() == [1] * 96 and set(leave.unique().tolist()) == {0, 1}
    assert torch.equal(b5.enter["96"].weight.flatten(1), leave.T)
    into, target = edges["b4"]
    kept = leave.sum(1) == 1
    with torch.no_grad():
        found = b4(into, b4.piece.block.candidate("d3: k5e6 k5e6 k5e6"))
        first = b4.op(0, b4.piece.block.candidate("d1: k5e6").ops[0])(into)
    reader = dict(b5.places())[0, b5.piece.block.candidate("d1: k5e6").ops[0]]
    assert reader.conv_pw.weight.shape == (96 * 6, 96, 1, 1) and first.shape[1] == 96
    assert noise_to_signal(found[:, kept], target[:, kept]) < 0.7 * noise_to_signal(
        torch.zeros_like(found[:, kept]), target[:, kept]
    )


@pytest.mark.parametrize("name", ["convnext_atto", "ghostnet_050"])
def test_a_teacher_with_other_norms_starts_what_it_can(name):
    supernet, _, edges = started(name)
    for part in supernet.pieces:
        into, target = edges[part.piece.block.name]
        with torch.no_grad():
            found = part(into, part.piece.block.candidates[0])
        assert found.shape == target.shape and found.isfinite().all()


def layer(cin, cout, kernel, expand, stride=1):
    return InvertedResidual(cin, cout, kernel, stride, exp_ratio=expand, act_layer=get_act_layer("relu6"))


def test_fewer_hidden_channels_are_those_with_the_largest_weights():
    torch.manual_seed(1)
    teacher, own = layer(16, 16, 5, 2), layer(16, 16, 3, 1.5)
    with torch.no_grad():
        teacher.conv_pwl.weight[:, ::4] *= 1e-3  # of 32 hidden channels every fourth hardly counts
    found = _fitted(_weighted(own), _weighted(teacher), {}, {})
    kept = [at for at in range(32) if at % 4]
    named = dict(zip([name for name, _ in own.state_dict().items()], found, strict=True))
    assert torch.equal(named["conv_pw.weight"], teacher.conv_pw.weight[kept])
    assert torch.equal(named["conv_dw.weight"], teacher.conv_dw.weight[kept][:, :, 1:4, 1:4])
    assert torch.equal(named["conv_pwl.weight"], teacher.conv_pwl.weight[:, kept])
    assert torch.equal(named["bn3.weight"], teacher.bn3.weight)


def computed(module, way):
    """With the weight of every convolution computed from others."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            way(part)
    return module


@pytest.mark.parametrize(
    "changed",
    [
        lambda module: computed(module, nn.utils.parametrizations.spectral_norm),
        lambda module: computed(module, nn.utils.parametrizations.weight_norm),
        lambda module: setattr(module, "bn2", nn.BatchNorm2d(16, affine=False)) or module,
        lambda module: setattr(module, "bn2", nn.BatchNorm2d(16, track_running_stats=False)) or module,
    ],
    ids=["spectral_norm", "weight_norm", "norm without weights", "norm without statistics"],
)
def test_layers_that_hold_other_tensors_are_left_alone(changed):
    assert _fitted(_weighted(layer(8, 8, 3, 2)), _weighted(layer(8, 8, 3, 2)), {}, {}) is not None
    assert _fitted(_weighted(layer(8, 8, 3, 2)), _weighted(changed(layer(8, 8, 3, 2))), {}, {}) is None


def test_a_weight_that_is_computed_says_which_channels_count():
    """Read by a convolution whose weight is twice what is kept: the channel of the largest weights is the strongest."""

    class Twice(nn.Module):
        def forward(self, weight):
            return weight * 2

    reader = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        reader.weight.copy_(torch.tensor([1.0, 3.0, 2.0]).view(1, 3, 1, 1).expand(4, 3, 1, 1))
    nn.utils.parametrize.register_parametrization(reader, "weight", Twice())
    assert _strongest([], reader, 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    "own",
    [layer(8, 8, 3, 2, stride=2), layer(8, 12, 3, 2), layer(6, 8, 3, 2), layer(8, 8, 3, 3)],
    ids=["stride", "out", "in", "wider"],
)
def test_what_does_not_fit_is_left_alone(own):
    assert _fitted(_weighted(own), _weighted(layer(8, 8, 3, 2)), {}, {}) is None
