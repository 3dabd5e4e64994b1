"""Whole-network training: it learns, it resumes to the same weights, statistics settle."""

import dataclasses
import random

import pytest
import timm
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dna_deploy.arch import sample
from dna_deploy.checkpoint import resume, save_checkpoint
from dna_deploy.data import Images, Preprocessing, split
from dna_deploy.errors import MachineError, RequestError, RunError
from dna_deploy.machine import CPU
from dna_deploy.recipe import Training, recipe
from dna_deploy.sources import open_source
from dna_deploy.teacher import Place, Teacher
from dna_deploy.train import Guide, accuracy, fresh, logits_of, require_recipe, settle_statistics, train

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


def test_the_published_recipe_resumes_to_the_same_weights(parts, tiny, tmp_path):
    """Crops, AutoAugment, mixup, dropped branches, RMSprop, its schedule and the average of weights: all of timm's, at once."""
    images = Images(parts[0].source, parts[0].indices[:40], 32)
    how = dataclasses.replace(recipe("scratch").at(8), epochs=4, warmup=0.25, augmentation="rand-m9-mstd0.5", mixup=0.2)
    arch = sample(tiny, random.Random(0))
    whole, stopped, left = fresh(arch, "", 0), fresh(arch, "", 0), [12]  # within the third epoch
    train(whole, images, HALF, how, tmp_path / "whole.safetensors", "training")

    def interrupt(*_):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    stopped.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, images, HALF, how, tmp_path / "parts.safetensors", "training")
    resumed = fresh(arch, "", 1)
    train(resumed, images, HALF, how, tmp_path / "parts.safetensors", "training")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(RunError, match="begun with seed = 0, now asked for 1; choose another --run NAME, or delete"):
        train(resumed, images, HALF, dataclasses.replace(how, seed=1), tmp_path / "parts.safetensors", "training")


def test_the_learning_rate_of_the_published_recipe(parts, tmp_path):
    """Up for a hundredth of the training, then times .963 every 3 epochs."""
    few, seen = Images(parts[0].source, parts[0].indices[:16], 16), []
    how = dataclasses.replace(recipe("scratch").at(8), epochs=20, warmup=0.1, learning_rate=0.001)
    net = network()
    hook = register_optimizer_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    train(net, few, HALF, how, tmp_path / "c.safetensors", "training")
    hook.remove()
    assert len(seen) == 40 and seen[:4] == pytest.approx([0.00002 + 0.00098 * at / 4 for at in range(4)])
    assert seen[4:] == pytest.approx([0.001 * 0.963 ** (at // 6) for at in range(4, 40)])


def test_the_average_of_weights_is_what_is_kept(parts, tmp_path):
    """By hand: timm's warm-up decay, 1 - (1 + t)^(-2/3) up to the given one, over the weights after each step."""
    few, seen = Images(parts[0].source, parts[0].indices[:32], 16), []
    net = network()
    hook = net.register_forward_hook(lambda *_: seen.append(net[7].weight.detach().clone()) if net.training else None)
    last = register_optimizer_step_post_hook(lambda *_: seen.append(net[7].weight.detach().clone()))
    train(net, few, HALF, Training(epochs=2, batch=8, ema=0.5, learning_rate=0.01), tmp_path / "c.safetensors", "training")
    hook.remove()
    last.remove()
    start, after = seen[0], seen[1::2]
    average = start
    for step, weight in enumerate(after, 1):
        decay = 0.0 if step == 1 else min(1 - step ** (-2 / 3), 0.5)
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(net[7].weight.detach(), average, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer", "nope"), ("optimizer", "adahessian"), ("schedule", "nope"), ("augmentation", "rnd-m9"), ("batch", 1)],
)
def test_a_recipe_that_cannot_be_followed_is_refused(parts, tmp_path, field, value):
    said = f'{field} = "{value}"' if field != "batch" else "a batch of 1 images .* a larger --batch"
    how = dataclasses.replace(Training(), **{field: value})
    for refused in (
        lambda: train(network(), parts[0], HALF, how, tmp_path / "x.safetensors", "x"),
        lambda: require_recipe(how, parts[0], CPU),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # of torch.compile, which kron asks for
def test_an_optimizer_that_no_checkpoint_holds_is_refused(parts):
    """kron keeps lists of tensors; others of every kind that timm has are none of those."""
    with pytest.raises(RequestError, match='optimizer = "kron": keeps lists, which no checkpoint holds; expected another'):
        require_recipe(Training(optimizer="kron"), parts[0], CPU)
    drawn = torch.get_rng_state()
    for name in ("sgd", "AdamW", "rmsproptf", "lamb", "lookahead_adamw", "adafactor", "muon"):
        require_recipe(Training(optimizer=name), parts[0], CPU)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_mixup_pairs_the_images_of_each_part(parts, tmp_path):
    how = Training(batch=18, accumulate=3, mixup=0.2, augmentation="crop", epochs=1)
    train(network(), Images(parts[0].source, parts[0].indices[:18], 16), HALF, how, tmp_path / "x.safetensors", "x")
    with pytest.raises(RequestError, match="a batch of 18 in 2 parts leaves some over"):
        train(network(), parts[0], HALF, dataclasses.replace(how, accumulate=2), tmp_path / "y.safetensors", "y")


def test_a_batch_larger_than_the_data_takes_the_steps_of_one_of_all_images(parts, tmp_path):
    few, found = Images(parts[0].source, parts[0].indices[:16], 16), []
    for batch, rate in ((64, 0.002), (16, 0.001)):  # AdamW: half the root for a quarter of the batch
        net = network()
        train(net, few, HALF, Training(epochs=3, batch=batch, learning_rate=rate), tmp_path / f"{batch}.safetensors", "x")
        found.append(net.state_dict())
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_a_recipe_is_judged_by_the_batch_that_there_are_images_for(parts):
    few = Images(parts[0].source, parts[0].indices[:33], 16)
    with pytest.raises(RequestError, match="a batch of 33 in 1 parts leaves some over"):
        require_recipe(Training(batch=64, mixup=0.2), few, CPU)
    with pytest.raises(RequestError, match="a batch of 33 images in 17 parts: expected two images a part"):
        require_recipe(Training(batch=64, accumulate=17), few, CPU)
    require_recipe(Training(batch=32, mixup=0.2), few, CPU)


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


def test_a_strided_1x1_convolution_of_the_image_does_not_end_the_process(parts, tmp_path):
    """oneDNN's gradient of it in channels_last did: repvgg and mobileone begin so."""
    images, _ = parts
    net = nn.Sequential(nn.Conv2d(3, 48, 1, 2, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    before = net[0].weight.clone()
    train(net, images, HALF, Training(epochs=1, batch=32, learning_rate=1e-2), tmp_path / "c.safetensors", "")
    assert not torch.equal(net[0].weight, before) and net[0].weight.isfinite().all()


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


def stepped(optimizer, net, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.linspace(-1, 1, 4 * 48).view(4, 3, 4, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["adamw", "rmsproptf", "lamb", "clamb", "adan", "adabelief", "claprop", "lookahead_lamb"])
def test_every_count_of_an_optimizer_is_kept(tmp_path, name):
    def begin():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        return net, timm.optim.create_optimizer_v2(net, name, 1e-3, weight_decay=0.02)

    whole, optimizer = begin()
    stepped(optimizer, whole, 9)
    parts, optimizer = begin()
    save_checkpoint(tmp_path / "c.safetensors", parts, stepped(optimizer, parts, 4), 1)
    resumed, optimizer = begin()
    resume(tmp_path / "c.safetensors", resumed, optimizer)
    stepped(optimizer, resumed, 5)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
