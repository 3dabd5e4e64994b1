"""Verification: a copy passes, every kind of damage fails."""

import numpy as np
import pytest

from dna_deploy.verify import Inputs, Limits, Step, compare, judge

LABELS = np.array([0, 1, 2, 1])
LOGITS = np.array([[3.0, 1, 0], [0, 2, 1], [0, 1, 1.5], [2, 1, 0]])


def test_a_copy_passes_with_the_figures_by_hand():
    found = judge(LOGITS, LOGITS + 1e-5, LABELS, batch=2, limits=Limits())
    assert found.ok and found.top1_agreement == 1.0 and found.largest_difference == pytest.approx(1e-5)
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
    inputs = Inputs("13 images", 13, lambda places: np.array(list(places)), np.arange(13) % 10)
    seen = []

    def run(images):
        seen.append(list(images))
        return answers[images]

    before, after = Step("torch", "fp32", run), Step("onnx", "fp32", run)
    found, logits = compare(before, answers, after, inputs, 4, Limits())
    assert found.ok and [part.batch for part in found.comparisons] == [4, 1, 2, 3] and (logits == answers).all()
    assert seen[:4] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]
    assert [len(images) for images in seen[4:]] == [1] * 12 + [2] * 6 + [3] * 4
    assert all(part.accuracy_after == 1.0 for part in found.comparisons)
