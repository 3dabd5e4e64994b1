"""The supernet, its training, its rating and the networks built from it, on a real teacher and the smallest space."""

import random
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from dna_deploy.arch import Architecture, sample
from dna_deploy.checkpoint import load_tensors, load_weights, resume, save_checkpoint
from dna_deploy.data import Images, Preprocessing, split
from dna_deploy.distill import Distillation, distill, draw, noise_to_signal, step
from dna_deploy.errors import MachineError, RequestError, RunError, TeacherError
from dna_deploy.lessons import Lessons
from dna_deploy.plugins import find
from dna_deploy.rate import frozen_statistics, outputs, rate, replace_one, scores
from dna_deploy.sources import open_source
from dna_deploy.supernet import Supernet, pieces
from dna_deploy.teacher import Place, Teacher, create, cut

HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def teacher(tiny):
    torch.manual_seed(0)
    model, preprocessing, _ = create("tf_efficientnet_lite0", 10)
    return Teacher("lite0", model.eval().requires_grad_(False), preprocessing, cut(model, tiny))


@pytest.fixture
def supernet(tiny, teacher):
    torch.manual_seed(1)
    return Supernet(tiny, teacher)


@pytest.fixture(scope="module")
def images():
    source = open_source("digits")
    return Images(source, split(source).train[:48], 32)


def test_pieces_end_where_the_teacher_is_cut(tiny, teacher):
    assert [(p.block.name, p.channels_in, p.channels_out) for p in pieces(tiny, teacher)] == [
        ("stem", 3, 16),
        ("b1", 16, 24),
        ("b2", 24, 40),
        ("head", 40, 10),
    ]


def test_blocks_without_a_cut_are_trained_with_the_next(tiny, teacher):
    joined = Teacher("t", teacher.model, HALF, (None, *teacher.cuts[1:]))
    first = pieces(tiny, joined)[0]
    assert (first.block.name, first.channels_in, len(first.before)) == ("b1", 3, 2)
    assert [op.kind for op in first.ops(tiny.blocks[1].candidates[0])] == ["conv", "dsconv", "mbconv"]
    assert len(joined.features(torch.zeros(1, 3, 32, 32))) == len(pieces(tiny, joined)) == 3
    with pytest.raises(TeacherError, match="b1, b2 have choices but no cut"):
        pieces(tiny, Teacher("t", teacher.model, HALF, (teacher.cuts[0], None, teacher.cuts[2])))


def test_every_path_has_the_teachers_shapes(tiny, teacher, supernet):
    x = torch.randn(2, 3, 32, 32)
    features = teacher.features(x)
    for part, into, target in zip(supernet.pieces, [x, *features[:-1]], features, strict=True):
        for candidate in part.piece.block.candidates:
            assert part(into, candidate).shape == target.shape


def test_noise_to_signal_by_hand():
    target = torch.tensor([[0.0, 10.0], [2.0, 30.0]])  # variances 1 and 100
    y = target + torch.tensor([[1.0, 0.0], [-1.0, 20.0]])  # mean squared errors 1 and 200
    assert float(noise_to_signal(y, target)) == pytest.approx((1 / 1 + 200 / 100) / 2, rel=1e-5)
    assert float(noise_to_signal(target, target)) == 0.0


def test_one_step_trains_the_drawn_paths_only(tiny, teacher, supernet):
    x = torch.randn(4, 3, 32, 32)
    paths = [draw(part.piece.block, random.Random(3)) for part in supernet.pieces]
    losses = step(supernet, teacher.features(x), x, paths)
    assert len(losses) == 4 and all(torch.isfinite(loss) for loss in losses)
    for part, (path,) in zip(supernet.pieces, paths, strict=True):
        drawn = {id(w) for depth, op in enumerate(part.piece.ops(path)) for w in part.op(depth, op).parameters()}
        for weight in part.ops.parameters():
            assert (weight.grad is not None) == (id(weight) in drawn)
    assert all(weight.grad is None for weight in teacher.model.parameters())


def test_drawing_reaches_every_candidate(tiny):
    rng = random.Random(0)
    assert {path for _ in range(300) for path in draw(tiny.blocks[1], rng)} == set(tiny.blocks[1].candidates)


def test_fair_paths_use_every_op_of_a_layer_once(tiny):
    rng = random.Random(0)
    for _ in range(20):
        paths = draw(tiny.blocks[2], rng, fair=True)
        assert sorted(path.choice[0] for path in paths) == [0, 1, 2]
        paths = draw(tiny.blocks[1], rng, fair=True)
        assert len({path.cell for path in paths}) == 1
        assert all(sorted(column) == [0, 1] for column in zip(*(path.choice for path in paths), strict=True))


def test_a_batch_too_small_for_fair_paths_is_refused(tmp_path, supernet, teacher, images):
    with pytest.raises(RequestError, match="a batch of 5 images in 3 parts: expected two images a part"):
        distill(supernet, Lessons(teacher, images), Distillation(epochs=1, batch=5, fair=True), tmp_path / "supernet.safetensors")


def test_a_batch_that_does_not_divide_evenly_reaches_every_fair_path(tiny, teacher, supernet):
    x = torch.randn(4, 3, 32, 32)
    paths = [draw(part.piece.block, random.Random(0), fair=True) for part in supernet.pieces]
    step(supernet, teacher.features(x), x, paths)
    for part, drawn in zip(supernet.pieces, paths, strict=True):
        for depth, op in [place for path in drawn for place in enumerate(part.piece.ops(path))]:
            assert all(weight.grad is not None for weight in part.op(depth, op).parameters())


def test_fair_paths_divide_the_batch(tiny, teacher, supernet):
    """The gradient is the mean over the paths, each on its own share of the images."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, 32, 32)
    features = teacher.features(x)
    paths = [draw(part.piece.block, random.Random(0), fair=True) for part in supernet.pieces]
    losses = step(supernet, features, x, paths)
    part, drawn = supernet.pieces[2], paths[2]
    into, target = features[1], features[2]
    found = {name: weight.grad.clone() for name, weight in part.named_parameters() if weight.grad is not None}
    part.zero_grad(set_to_none=True)
    alone = [noise_to_signal(part(into[2 * k : 2 * k + 2], drawn[k]), target[2 * k : 2 * k + 2]) for k in range(3)]
    mean = torch.stack(alone).mean()
    mean.backward()
    assert float(losses[2]) == pytest.approx(mean.item(), rel=1e-5)
    for name, weight in part.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_a_step_in_parts_has_the_mean_gradient_of_its_parts(tiny, teacher, images, tmp_path):
    """Statistics are each part's own, so each part's loss is worked out alone."""
    how, seen = Distillation(epochs=1, batch=12, accumulate=2, learning_rate=0.0, weight_decay=0.0), []

    def made():
        torch.manual_seed(1)
        return Supernet(tiny, teacher)

    class Noting(Lessons):
        def batches(self, wanted):
            for lesson in super().batches(wanted):
                seen.append(lesson)
                yield lesson

    few = Images(images.source, images.indices[:12], 32)
    supernet = made()
    distill(supernet, Noting(teacher, few), how, tmp_path / "c.safetensors")
    assert [len(image) for image, _ in seen] == [6, 6]
    alone = made().train()
    paths = [draw(part.piece.block, random.Random(f"0/{part.piece.block.name}/0")) for part in alone.pieces]
    total = 0.0
    for image, features in seen:
        for part, into, target, (path,) in zip(alone.pieces, [image, *features[:-1]], features, paths, strict=True):
            total = total + noise_to_signal(part(into, path), target) / 2
    total.backward()
    for (name, a), b in zip(supernet.named_parameters(), alone.parameters(), strict=True):
        if b.grad is None:
            assert a.grad is None, name
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_distillation_learns_and_an_interrupted_one_ends_the_same(tiny, teacher, images, tmp_path):
    def fresh():
        torch.manual_seed(1)
        return Supernet(tiny, teacher)

    how = Distillation(epochs=4, batch=16)
    whole = fresh()
    before = _loss(whole, teacher, images)
    distill(whole, Lessons(teacher, images), how, tmp_path / "whole.safetensors")
    assert _loss(whole, teacher, images) < 0.7 * before

    stopped = fresh()
    with pytest.raises(KeyboardInterrupt):
        distill(stopped, _Interrupting(teacher, images, after=7), how, tmp_path / "parts.safetensors")
    resumed = fresh()
    distill(resumed, Lessons(teacher, images), how, tmp_path / "parts.safetensors")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_a_batch_larger_than_the_data_takes_the_steps_of_one_of_all_images(tiny, teacher, images, tmp_path):
    few, found = Images(images.source, images.indices[:16], 32), []
    for batch, peak in ((64, 0.004), (16, 0.002)):
        supernet = Supernet(tiny, teacher)
        how = Distillation(epochs=2, batch=batch, learning_rate=peak)
        distill(supernet, Lessons(teacher, few), how, tmp_path / f"{batch}.safetensors")
        found.append(supernet.state_dict())
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_a_training_begun_otherwise_is_not_gone_on_with(tiny, teacher, images, tmp_path):
    """ReLU for ReLU6 has the same weights: nothing but what the file says of its space tells the two apart."""
    changed = [
        replace(cell, layers=tuple(tuple(replace(op, act="relu") for op in choices) for choices in cell.layers))
        for cell in tiny.blocks[2].cells
    ]
    edited = replace(tiny, blocks=(*tiny.blocks[:2], replace(tiny.blocks[2], cells=tuple(changed)), tiny.blocks[3]))
    how, file = Distillation(epochs=2, batch=16), tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        distill(Supernet(tiny, teacher), _Interrupting(teacher, images, after=4), how, file)
    before = file.read_bytes()
    with pytest.raises(RunError, match=r"begun with space = (\w+)#\w{8}, now asked for \1#\w{8}; choose another --run NAME"):
        distill(Supernet(edited, teacher), Lessons(teacher, images), how, file)
    with pytest.raises(RunError, match=r"begun with batch = 16, now asked for 12"):
        distill(Supernet(tiny, teacher), Lessons(teacher, images), replace(how, batch=12), file)
    assert file.read_bytes() == before
    distill(Supernet(tiny, teacher), Lessons(teacher, images), how, file)
    after = file.read_bytes()
    assert not any(name.startswith("optimizer/") for name in load_tensors(file)[0])  # finished
    distill(Supernet(tiny, teacher), Lessons(teacher, images), how, file)  # nothing is left to do
    assert file.read_bytes() == after


class _Interrupting(Lessons):
    """Lessons until someone presses Ctrl-C."""

    def __init__(self, teacher, images, after):
        super().__init__(teacher, images)
        self.left = after

    def batches(self, wanted):
        for lesson in super().batches(wanted):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield lesson


def _loss(supernet, teacher, images):
    supernet.train()
    x = teacher.preprocessing(images.batch(range(len(images))))
    features = teacher.features(x)
    with torch.no_grad(), frozen_statistics(supernet):
        return sum(
            float(noise_to_signal(part(into, candidate), target))
            for part, into, target in zip(supernet.pieces, [x, *features[:-1]], features, strict=True)
            for candidate in part.piece.block.candidates
        )


def test_features_that_are_not_finite_stop_the_training(tiny, teacher, supernet, images, tmp_path):
    teacher.model.get_submodule("blocks.1.1.bn3").bias.fill_(float("nan"))
    with pytest.raises(MachineError, match="diverged in epoch 1"):
        distill(supernet, Lessons(teacher, images), Distillation(epochs=1, batch=16), tmp_path / "c.safetensors")


def test_sharing_beginnings_gives_the_scores_of_each_candidate_alone(supernet, teacher, images):
    places = range(24)
    ratings = {(r.block, r.candidate): r for r in rate(supernet, Lessons(teacher, images), places, batch=24)}
    x = teacher.preprocessing(images.batch(places))
    features = teacher.features(x)
    supernet.train()
    with torch.no_grad(), frozen_statistics(supernet):
        for part, into, target in zip(supernet.pieces, [x, *features[:-1]], features, strict=True):
            if part.piece.block.size == 1:
                continue
            for candidate in part.piece.block.candidates:
                l1, nsr = scores(part(into, candidate), target).tolist()
                found = ratings.pop((part.piece.block.name, candidate.text))
                assert (found.relative_l1, found.noise_to_signal) == pytest.approx((l1, nsr), rel=1e-4)
    assert not ratings


def test_each_shared_beginning_is_computed_once(supernet):
    part = supernet.pieces[1]
    calls = []
    hooks = [op.register_forward_hook(lambda *_: calls.append(1)) for op in part.ops]
    with torch.no_grad():
        found = [candidate for candidate, _ in outputs(part, torch.randn(2, 16, 16, 16))]
    for hook in hooks:
        hook.remove()
    assert set(found) == set(part.piece.block.candidates) and len(found) == 6
    assert len(calls) == 2 + 2 * 2  # two first layers, then two second layers behind each


def test_rating_leaves_the_running_statistics_alone(supernet, teacher, images):
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    rate(supernet, Lessons(teacher, images), range(8), batch=8)
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
    assert all(m.track_running_stats for m in supernet.modules() if isinstance(m, nn.BatchNorm2d))


def test_replacing_one_block_is_the_divergence_of_that_whole_network(tiny, teacher, supernet, images):
    lessons, places = Lessons(teacher, images), range(12)
    reference = sample(tiny, random.Random(1))
    found = replace_one(supernet, lessons, reference, places, batch=12)
    assert len(found) == tiny.blocks[1].size + tiny.blocks[2].size
    x, features = lessons.batch(places)
    p = features[-1].double().softmax(1)
    supernet.train()
    with torch.no_grad(), frozen_statistics(supernet):
        for at, candidate in ((1, tiny.blocks[1].candidates[4]), (2, tiny.blocks[2].candidates[0])):
            network = [*reference.candidates[:at], candidate, *reference.candidates[at + 1 :]]
            y = x
            for part, own in zip(supernet.pieces, network, strict=True):
                y = part(y, own)
            expected = float((p * (p.log() - y.double().log_softmax(1))).sum(1).mean())
            assert found[tiny.blocks[at].name, candidate.text] == pytest.approx(expected, rel=1e-3)


def test_scores_by_hand():
    target = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])  # standard deviation sqrt(4/3)
    l1, nsr = scores(target + 0.5, target).tolist()
    assert l1 == pytest.approx(0.5 / (4 / 3) ** 0.5) and nsr == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_built_network_is_the_chain_of_its_blocks(tiny, teacher, supernet, seed):
    """Adapters folded away, the network computes exactly what block behind block computes."""
    torch.manual_seed(seed)
    for module in supernet.modules():  # statistics and adapters as after a training
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    arch = sample(tiny, random.Random(seed))
    network = supernet.eval().build(arch).eval()
    x = torch.randn(3, 3, 32, 32)
    expected = x
    with torch.no_grad():
        for part, candidate in zip(supernet.pieces, arch.candidates, strict=True):
            expected = part(expected, candidate)
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-3)


def test_with_widths_to_choose_a_built_network_is_the_chain_of_its_blocks(widths, teacher):
    """Each width a block can be given has a first layer and an adapter of its own; the fold is exact for all of them."""
    torch.manual_seed(0)
    narrow = Teacher("t", teacher.model, HALF, cut(teacher.model, widths))
    supernet = Supernet(widths, narrow).eval()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    assert list(supernet.pieces[2].enter) == ["16", "24"]
    x = torch.randn(2, 3, 32, 32)
    seen = {sample(widths, random.Random(seed)) for seed in range(400)}
    assert len(seen) == widths.size
    for arch in seen:
        expected = x
        with torch.no_grad():
            for part, candidate in zip(supernet.pieces, arch.candidates, strict=True):
                expected = part(expected, candidate)
            torch.testing.assert_close(supernet.build(arch).eval()(x), expected, rtol=1e-3, atol=1e-3)


def test_rating_visits_every_candidate_of_every_width(widths, teacher, images):
    narrow = Teacher("t", teacher.model, HALF, cut(teacher.model, widths))
    supernet = Supernet(widths, narrow)
    rated = {(rating.block, rating.candidate): rating for rating in rate(supernet, Lessons(narrow, images), range(16), batch=16)}
    assert len(rated) == 6 + 6
    features = narrow.features(narrow.preprocessing(images.batch(range(16))))
    part = supernet.pieces[2]
    supernet.train()
    with torch.no_grad(), frozen_statistics(supernet):
        for candidate in part.piece.block.candidates:
            l1, _ = scores(part(features[1], candidate), features[2]).tolist()
            assert rated["b2", candidate.text].relative_l1 == pytest.approx(l1, rel=1e-4)


def test_building_joins_blocks_that_were_trained_together(tiny, teacher):
    joined = Teacher("t", teacher.model, HALF, (None, *teacher.cuts[1:]))
    supernet = Supernet(tiny, joined).eval()
    arch = sample(tiny, random.Random(0))
    x = torch.randn(2, 3, 32, 32)
    expected = x
    with torch.no_grad():
        for part, candidate in zip(supernet.pieces, arch.candidates[1:], strict=True):
            expected = part(expected, candidate)
        torch.testing.assert_close(supernet.build(arch).eval()(x), expected, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_of_another_space_is_refused(tiny, teacher, supernet, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", supernet, None, 0)
    other = Architecture(tiny, tuple(block.candidates[0] for block in tiny.blocks)).module()
    with pytest.raises(RunError, match="weights of another network") as caught:
        load_weights(tmp_path / "c.safetensors", other, "train again")
    assert "\n" not in str(caught.value)
    (tmp_path / "c.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match="not readable weights"):
        load_weights(tmp_path / "c.safetensors", supernet, "train again")


def test_finished_weights_that_are_gone_are_not_nothing_to_load(supernet, tmp_path):
    gone = tmp_path / "c.safetensors"
    with pytest.raises(MachineError, match=r"c\.safetensors: these weights were finished and are gone; train again") as caught:
        load_weights(gone, supernet, "train again")
    assert caught.value.exit_code == 3
    assert resume(gone, supernet, torch.optim.SGD(supernet.parameters(), 0.1)) == 0  # a training that has not begun


def test_mobile_under_lite0_needs_adapters_at_one_edge_only():
    space = find("spaces", "mobile").at(32, 10)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    supernet = Supernet(space, Teacher("t", model, HALF, cut(model, space)))
    adapted = [
        p.piece.block.name
        for p in supernet.pieces
        if any(isinstance(m, nn.Conv2d) for m in (*p.enter.values(), *p.leave.values()))
    ]
    assert adapted == ["b4", "b5"]  # 96 channels against the teacher's 112
    assert isinstance(cut(model, space)[0], Place)
