"""The page of a network found: its figures are those of the files, it is complete in itself, and it is HTML."""

import os
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from dna_deploy.budget import Budget
from dna_deploy.files import read_json, write_json
from dna_deploy.found import pick
from dna_deploy.measure import Latency
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.ratings import Rating
from dna_deploy.report import page, write_report
from dna_deploy.run import Asked, Picked, Run, Student
from dna_deploy.table import LatencyTable, find_table
from dna_deploy.verify import Comparison, Limits, Link, Paired, Verification

VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Every tag is closed in order, and nothing is fetched from anywhere."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            assert name not in ("src", "href") or value.startswith("data:")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    return re.sub(r"\s+", " ", " ".join(tags.text))


@pytest.fixture
def found(tmp_path):
    """The best network of random ratings, under a teacher whose name would be HTML."""
    run, space, rng = Run(tmp_path / "run"), find("spaces", "mobile").at(224, 10), np.random.default_rng(0)
    predictor = LatencyPredictor(LatencyTable.load(find_table("pixel1")))
    write_json(run.folder / "run.json", Asked("<b>t&", None, [], "elpv", None, "mobile", 224, 1, 1, 16, 64, 0))
    ratings = {
        block.name: [Rating(block.name, candidate.text, float(rng.uniform(0.1, 1)), 0.0) for candidate in block.candidates]
        for block in space.blocks
        if block.size > 1
    }
    return pick(run, space, ratings, [Budget(predictor, 60.0)])


def test_a_network_that_was_only_picked(found):
    text = read(page(found.pick))
    assert found.architecture.text in text and "<b>t&" in text and "60 ms on pixel1" in text
    assert f"{found.picked.predicted_ms:.3g} ms" in text and "not trained yet" in text
    predictor = found.budgets[0].predictor
    added = [predictor.correction.op_ms(op, predictor.op_ms(op)) for op in found.architecture.ops]
    assert all(f"{ms:.3f} ms" in text for ms in added)
    assert sum(added) + predictor.correction.offset_ms == pytest.approx(found.picked.predicted_ms)


def test_every_link_of_the_chain_is_on_it(found):
    folder, predicted = found.pick, found.picked.predicted_ms
    write_json(folder.student, Student(0.8125, 0.875, 64, 1, 1.1 * predicted, predicted, 1.2 * predicted, 0.9))
    folder.weights.touch()
    paired = Paired(0.8125, 0.796875, 2, 1, 1.0, -0.03, 0.06)
    same = Comparison("images", 8, 64, 0.96875, 1, 0.03, 0.01, 0.99, 1.5, paired, ok=False)
    link = Link("int8", "torch", "int8", "model-int8.onnx", "ab" * 32, ["head: too wide"], Limits(1, 1, 0, 0), [same])
    link = replace(link, first_bad="b1.0 puts out <noise>")
    taken = Latency("pixel1", predicted, 0.7 * predicted, None, None, predicted, 1.0)
    write_json(
        folder.export / "model-int8.onnx.verification.json", Verification("model-int8.onnx", "ab" * 32, "64", [link], taken)
    )
    text = read(write_report(folder).read_text())
    assert "+10.0%" in text and "-30.0%" in text and "0.90 of its table's speed" in text
    assert "87.50%" in text and "81.25%" in text and "96.88%" in text and "failed" in text
    assert "kept in float: head: too wide" in text and "b1.0 puts out <noise>" in text
    assert "points lost" not in text  # of an export that failed
    os.utime(folder.weights, (time.time() + 60,) * 2)
    assert "failed" not in read(page(folder))  # that was of an earlier network


def test_it_goes_along_with_what_is_there(found):
    picked = read_json(found.pick.picked, Picked)
    write_json(found.pick.picked, replace(picked, confidence=0.95, also=["--macs 300M"]))
    assert "--macs 300M, with confidence 0.95" in read(page(found.pick)) and "each bound of 95%" in read(page(found.pick))
    found.pick.front.with_suffix(".png").unlink()
    assert "<img" not in page(found.pick)
