"""Whole-network training: it learns, it resumes to the same weights, statistics settle."""

import pytest
import torch
from torch import nn

from dna_deploy.data import Images, Preprocessing, open_source, split
from dna_deploy.errors import MachineError
from dna_deploy.teacher import Place, Teacher
from dna_deploy.train import Guide, Training, accuracy, logits_of, settle_statistics, train

HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)
CUTS = (None, None, Place("2", 16, 8), None, None, Place("5", 32, 4), None)


@pytest.fixture(scope="module")
def parts():
    source = open_source("digits")
    made = split(source)
    return Images(source, made.train[:640], 16), Images(source, made.test, 16)


def network():
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
    ]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 16, 10))


def test_it_learns_the_digits_and_resumes_to_the_same_weights(parts, tmp_path):
    images, test = parts
    how = Training(epochs=4, batch=16, learning_rate=3e-3)
    whole = network()
    train(whole, images, HALF, how, tmp_path / "whole.safetensors", "training")
    assert accuracy(logits_of(whole, test, HALF), test.labels) > 0.8

    train_some, left = network(), [55]  # within the second epoch

    def interrupt(*_):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    hook = train_some.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(train_some, images, HALF, how, tmp_path / "parts.safetensors", "training")
    hook.remove()
    resumed = network()
    train(resumed, images, HALF, how, tmp_path / "parts.safetensors", "training")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_teacher_alone_is_enough(parts, tmp_path):
    """With all of the loss from the teacher, wrong labels do no harm: the student learns the task."""
    images, test = parts
    how = Training(epochs=2, learning_rate=3e-3)
    taught, student = network(), network()
    train(taught, images, HALF, how, tmp_path / "t.safetensors", "teacher")
    teacher = Teacher("t", taught.requires_grad_(False), HALF, CUTS)
    adapters = nn.ModuleList([nn.Identity(), nn.Identity()])
    wrong = Images(images.source, images.indices, images.size)
    wrong.__dict__["labels"] = images.labels.roll(1)
    how = Training(epochs=2, learning_rate=3e-3, teacher_share=1.0, seed=5)
    train(student, wrong, HALF, how, tmp_path / "s.safetensors", "student", Guide(teacher, adapters))
    learned = accuracy(logits_of(taught, test, HALF), test.labels)
    assert learned > 0.7 and accuracy(logits_of(student, test, HALF), test.labels) > 0.8 * learned


def test_the_guides_loss_by_hand():
    """A student that is its teacher: no divergence, no feature error, so only the labels' share is left."""
    same = network().eval()
    teacher = Teacher("t", same, HALF, (None, None, Place("2", 16, 8), None, None, None, None))
    same.requires_grad_(False)
    x, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    how = Training(teacher_share=0.7)
    loss = Guide(teacher, nn.ModuleList([nn.Identity()])).loss(same, x, labels, how)
    assert float(loss) == pytest.approx(0.3 * float(nn.functional.cross_entropy(same(x), labels)), rel=1e-4)
    doubled = nn.Conv2d(16, 16, 1).requires_grad_(False)
    nn.init.dirac_(doubled.weight)
    nn.init.constant_(doubled.bias, 0.5)
    feature = teacher.features(x)[0]
    extra = (0.25 / (feature.var((0, 2, 3), correction=0) + 1e-6)).mean()
    more = Guide(teacher, nn.ModuleList([doubled])).loss(same, x, labels, how)
    assert float(more - loss) == pytest.approx(how.feature_share * float(extra), rel=1e-3)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts, tmp_path):
    """Exactly where nothing is computed over the batch, as BatchNorm does; 10 images in 4 parts are of two sizes."""
    images, _ = parts
    few = Images(images.source, images.indices[:40], 16)
    found = []
    for accumulate in (1, 4):
        net = network()
        net[1] = net[4] = nn.Identity()
        train(net, few, HALF, Training(epochs=2, batch=10, accumulate=accumulate), tmp_path / f"{accumulate}.safetensors", "x")
        found.append(net.state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_loss_that_is_not_finite_stops(parts, tmp_path):
    with pytest.raises(MachineError, match="lower the learning rate"):
        train(network(), parts[0], HALF, Training(epochs=1, learning_rate=1e30), tmp_path / "x.safetensors", "training")


def test_settling_gives_the_average_statistics(parts):
    images, _ = parts
    net = network()
    settle_statistics(net, images, HALF, range(128), batch=64)
    with torch.no_grad():
        outs = [net[0](HALF(images.batch(range(start, start + 64)))) for start in (0, 64)]
    torch.testing.assert_close(net[1].running_mean, torch.stack([y.mean((0, 2, 3)) for y in outs]).mean(0), rtol=1e-4, atol=1e-5)
    assert net[1].momentum == 0.1 and not net.training


def test_accuracy_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.75
