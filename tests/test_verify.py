"""Verification: a copy passes, every kind of damage fails."""

import numpy as np
import pytest

from dna_deploy.errors import RequestError
from dna_deploy.verify import (
    EDGES,
    Inputs,
    Limits,
    Step,
    compare,
    edge_inputs,
    failures,
    given,
    harmful_flips,
    judge,
    load_logits,
    paired,
    save_logits,
)

LABELS = np.array([0, 1, 2, 1])
LOGITS = np.array([[3.0, 1, 0], [0, 2, 1], [0, 1, 1.5], [2, 1, 0]])


def test_a_copy_passes_with_the_figures_by_hand():
    found = judge(LOGITS, LOGITS + 1e-5, LABELS, batch=2, limits=Limits())
    assert found.ok and found.top1_agreement == 1.0 and found.largest_difference * LOGITS.std() == pytest.approx(1e-5)
    assert found.accuracy_before == found.accuracy_after == 0.75 and found.images == 4


@pytest.mark.parametrize(
    "damaged",
    [
        LOGITS + 2e-4,
        LOGITS[:, ::-1],
        np.where(LOGITS == 3.0, np.nan, LOGITS),
        np.where(LOGITS == 3.0, np.inf, LOGITS),
        LOGITS[:3],
        LOGITS[:, :2],
    ],
    ids=["difference", "classes swapped", "nan", "inf", "an image missing", "a class missing"],
)
def test_damage_fails(damaged):
    assert not judge(LOGITS, damaged, LABELS, batch=1, limits=Limits()).ok


def test_one_flipped_class_is_seen_even_where_the_difference_is_allowed():
    close = np.array([[1.0, 1.00001]])
    found = judge(close, close[:, ::-1].copy(), np.array([1]), 1, Limits(largest_difference=1.0))
    assert not found.ok and found.top1_agreement == 0.0 and found.accuracy_after == 0.0


def test_every_image_is_run_once_at_the_largest_batch_and_a_few_at_the_small_ones():
    answers = np.eye(10)[np.arange(13) % 10]
    images = np.arange(13, dtype=np.float32).reshape(13, 1, 1, 1)
    inputs = Inputs("13 images", 13, lambda places: images[list(places)], np.arange(13) % 10)
    seen = []

    def run(batch):
        places = [int(place) for place in batch.ravel()]
        seen.append(places)
        return answers[places]

    before, after = Step("torch", "fp32", run), Step("onnx", "fp32", run)
    found, logits = compare(before, answers, after, inputs, 4, Limits())
    batches = [part.batch for part in found.comparisons if part.about == "images"]
    assert found.ok and batches == [4, 1, 2, 3] and (logits == answers).all()
    assert seen[:4] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]
    assert [len(batch) for batch in seen[4:8]] == [4, 2] * 2  # the edge inputs, before and after
    assert [len(batch) for batch in seen[8:]] == [1] * 12 + [2] * 6 + [3] * 4
    known = {part.batch: part.accuracy_after for part in found.comparisons if part.about == "images"}
    assert known == {4: 1.0, 1: None, 2: None, 3: None}  # an accuracy of twelve images says nothing


def test_differences_are_in_units_of_the_spread():
    found = judge(LOGITS, LOGITS + 0.1, LABELS, 4, Limits())
    spread = np.sqrt(np.mean((LOGITS - LOGITS.mean()) ** 2))
    assert found.spread == pytest.approx(spread) and found.largest_difference == pytest.approx(0.1 / spread)
    scaled = judge(LOGITS * 1000, (LOGITS + 0.1) * 1000, LABELS, 4, Limits())
    assert scaled.largest_difference == pytest.approx(found.largest_difference)
    by_hand = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(LOGITS, LOGITS + 0.1, strict=True)]
    assert found.cosine == pytest.approx(min(by_hand))


def test_a_flip_within_the_usual_difference_is_harmless_and_one_beyond_it_is_not():
    rng = np.random.default_rng(0)
    reference = np.stack([np.arange(200) * 0.01, np.full(200, 1e-9)], axis=1)  # margins from 0 to 2
    noise = rng.normal(0, 0.03, reference.shape)
    flips = (reference + noise).argmax(1) != reference.argmax(1)
    assert flips.any() and not harmful_flips(reference, reference + noise).any()
    noise[150] = [-1, 1]
    assert list(np.nonzero(harmful_flips(reference, reference + noise))[0]) == [150]


def test_one_logit_alone_is_judged_by_its_sign():
    """What tells two classes apart with one output: above zero it is the second."""
    before, labels = np.array([[2.0], [-1], [0.001], [-3]]), np.array([1, 0, 1, 1])
    found = judge(before, before, labels, 4, Limits())
    assert found.ok and (found.accuracy_before, found.top1_agreement, found.harmful_flips) == (0.75, 1.0, 0)
    wrong = judge(before, before * [[1], [-1], [1], [1]], labels, 4, Limits(largest_difference=9))
    assert not wrong.ok and (wrong.accuracy_after, wrong.top1_agreement) == (0.5, 0.75)
    rng = np.random.default_rng(0)
    before = np.linspace(-2, 2, 401)[:, None] + 1e-9
    noise = rng.normal(0, 0.03, before.shape)
    assert (np.sign(before) != np.sign(before + noise)).any() and not harmful_flips(before, before + noise).any()
    noise[300] = -2  # of 1
    assert list(np.nonzero(harmful_flips(before, before + noise))[0]) == [300]


def test_a_share_of_few_images_is_one_whole_image():
    """Of 600 images one may flip where one of 1000 may, if it was a tie; none where all must agree, and no clear one ever."""
    rng = np.random.default_rng(0)
    reference = np.stack([np.linspace(1, 2, 600), np.zeros(600)], axis=1)
    reference[:2] = [0.001, 0.0]  # two ties

    def flipped(*images):
        after = reference + rng.normal(0, 0.01, reference.shape)
        after[:2] = reference[:2]
        after[list(images)] = reference[list(images), ::-1]
        return after

    fp16, fp32 = Limits(top1_agreement=0.999, largest_difference=10.0), Limits(largest_difference=10.0)
    assert judge(reference, flipped(0), None, 8, fp16).ok
    for damaged, limits in ((flipped(0, 1), fp16), (flipped(300), fp16), (flipped(0), fp32)):
        assert not judge(reference, damaged, None, 8, limits).ok


def test_mcnemar_against_scipys_contingency_and_by_hand():
    before = np.array([True] * 8 + [False] * 2)
    after = np.array([True] * 5 + [False] * 5)
    found = paired(before, after)
    assert (found.lost, found.gained, found.drop) == (3, 0, pytest.approx(0.3))
    assert found.p_value == pytest.approx(2 * 0.5**3)  # three of three discordant pairs on one side
    a, b, n = 3.5, 0.5, 12
    reach = 1.96 * np.sqrt(a + b - (a - b) ** 2 / n) / n
    assert (found.drop_low, found.drop_high) == (pytest.approx(3 / 12 - reach), pytest.approx(3 / 12 + reach))
    same = paired(before, before)
    assert same.p_value == 1.0 and same.drop_low < 0 < same.drop_high


def test_the_paired_interval_covers_the_truth():
    """Of 2,000 draws with a true drop of 2 points, about 95 in 100 intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        before = rng.random(300) < 0.8
        after = np.where(rng.random(300) < 0.05, ~before, before)
        found = paired(before, after)
        true = 0.05 * (0.8 - 0.2)
        held += found.drop_low <= true <= found.drop_high
    assert 0.93 < held / 2000 < 0.98


def test_a_drop_of_accuracy_beyond_its_limit_fails():
    found = judge(LOGITS, np.roll(LOGITS, 1, axis=1), LABELS, 4, Limits(0.0, 1e9, 1.0, accuracy_drop=0.4))
    assert not found.ok and found.accuracy.drop == 0.5  # of three right answers one is left


def test_edge_inputs_are_part_of_every_comparison():
    images = np.random.default_rng(0).uniform(-2, 3, (13, 3, 8, 8)).astype(np.float32)
    edges = edge_inputs(images)
    assert len(edges) == len(EDGES) and (edges[0] == 0).all() and (edges[1] == 1).all()
    assert {float(edges.min()), float(edges.max())} == {float(images.min()), float(images.max())}

    def right(x):
        return x.mean((2, 3))

    def wrong_at_zero(x):
        """What divides by its input's spread without a floor."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return x.mean((2, 3)) + 0 * (x.std((1, 2, 3), keepdims=True) / x.std((1, 2, 3), keepdims=True)).reshape(-1, 1)

    inputs = Inputs("13 images", 13, lambda places: images[list(places)], None)
    before, after = Step("torch", "fp32", right), Step("onnx", "fp32", wrong_at_zero)
    link, _ = compare(before, right(images), after, inputs, 4, Limits())
    assert [part.about for part in link.comparisons if not part.ok] == ["edge inputs"]
    assert "edge inputs" in failures(link)[0] and not link.ok


def test_an_edge_input_without_an_answer_is_left_out_and_named():
    """A network that standardises each image divides by zero where there is no contrast; that is not the export's doing."""
    images = np.random.default_rng(0).uniform(-2, 3, (13, 3, 8, 8)).astype(np.float32)

    def standardised(x):
        with np.errstate(invalid="ignore", divide="ignore"):
            x = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)
        return x[:, :, 0, 0]

    before = Step("torch", "fp32", standardised)
    link, logits = compare(before, standardised(images), Step("onnx", "fp32", standardised), given(images), 4, Limits())
    assert link.ok and link.left_out == ["zeros", "ones", "darkest", "brightest"]
    assert [part.images for part in link.comparisons if part.about == "edge inputs"] == [2]
    wrong = Step("onnx", "fp32", lambda x: np.where(x[:, :, 0, 0] == images[:12].min(), np.nan, standardised(x)))  # one it had
    assert not compare(before, logits, wrong, given(images), 4, Limits())[0].ok
    never = Step("torch", "fp32", lambda x: np.where(len(x) == 6, np.nan, x[:, :, 0, 0]))
    link, _ = compare(never, never.run(images[1:]), never, given(images[1:]), 12, Limits())
    assert link.ok and link.left_out == list(EDGES) and {part.about for part in link.comparisons} == {"images"}


def test_a_small_batch_is_held_against_the_same_files_answers_at_the_largest():
    """Classes lost in ties are judged by all images; of the twelve at the small batches they would be too large a share."""
    reference = np.array([[0.5, 0.501]] * 12 + [[0.0, 1.0]] * 988)
    rounded = reference + 0.001 * np.array([[1.0, -1.0], [-1.0, 1.0]] * 500)
    images = np.arange(1000, dtype=np.float32).reshape(-1, 1, 1, 1)

    def step(name, answers, lost=()):
        def run(batch):
            places = np.clip(batch[:, 0, 0, 0].astype(int), 0, 999)
            return answers[places] + (10.0 if len(batch) in lost else 0.0) * np.array([1.0, 0.0])

        return Step(name, "bf16", run)

    inputs = Inputs("1000 images", 1000, lambda places: images[list(places)], None)
    limits = Limits(top1_agreement=0.98, largest_difference=1.0, edge_difference=4.0)
    found, _ = compare(step("onnx", reference), reference, step("bf16", rounded), inputs, 4, limits)
    assert found.ok and found.comparisons[0].top1_agreement == 1 - 6 / 1000
    broken, _ = compare(step("onnx", reference), reference, step("bf16", rounded, lost={2}), inputs, 4, limits)
    assert [part.batch for part in broken.comparisons if part.about == "images" and not part.ok] == [2]


def test_a_batch_larger_than_the_test_set_is_really_run():
    images = np.random.default_rng(0).uniform(-2, 3, (5, 3, 8, 8)).astype(np.float32)

    def up_to(most):
        return Step("onnx", "fp32", lambda x: x.mean((2, 3)) * (np.nan if len(x) > most else 1))

    right = up_to(100)
    for step in (right, up_to(99)):
        link, _ = compare(right, right.run(images), step, given(images), 100, Limits())
        assert link.ok == (step is right)
        assert [part.batch for part in link.comparisons if part.about == "images"] == [5, 1, 2, 3, 100]
    assert [part.images for part in link.comparisons] == [5, 6, 5, 5, 5, 100]
    link, _ = compare(right, right.run(images), up_to(1), given(images), 1, Limits())
    assert {part.batch for part in link.comparisons} == {1}  # what was not promised need not run


def test_other_limits_are_applied_to_the_kept_logits_without_running(tmp_path):
    save_logits(tmp_path / "v.npz", LABELS, {"torch": LOGITS, "onnx": LOGITS + 0.01})
    labels, logits = load_logits(tmp_path / "v.npz")
    assert list(logits) == ["torch", "onnx"] and (labels == LABELS).all()
    assert not judge(logits["torch"], logits["onnx"], labels, 4, Limits()).ok
    assert judge(logits["torch"], logits["onnx"], labels, 4, Limits(largest_difference=0.1)).ok
    (tmp_path / "v.npz").write_bytes((tmp_path / "v.npz").read_bytes()[:100])
    with pytest.raises(RequestError, match=r"v\.npz: not readable arrays"):
        load_logits(tmp_path / "v.npz")


def test_logits_that_would_run_code_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", labels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RequestError, match="not readable arrays"):
        load_logits(tmp_path / "v.npz")
