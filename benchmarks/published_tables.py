"""Rebuild the shipped tables of published measurements from the public data they come from.

    python -m benchmarks.published_tables --data ../shared/latency-data

Takes a second and writes latency_tables/<target>.jsonl.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dna_deploy.files import write_text
from dna_deploy.ops import Op
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.ops.pool import Pool
from dna_deploy.table import SHIPPED, Header, Published


def pixel1(data: Path) -> str:
    """The ProxylessNAS mobile table: isolated blocks on a Pixel 1 at 224 pixels."""
    header = Header(
        target="pixel1",
        about="isolated layers of ProxylessNAS's mobile space at 224 px on a Google Pixel 1, published by others",
        device={"name": "pixel1", "kind": "published", "runtime": "TensorFlow Lite", "batch": 1},
        environment={},
        source="itouchz/Neural-Predictor-Tensorflow: proxylessnas/pixel_trim.yaml (Cai et al., ProxylessNAS, ICLR 2019)",
        licence="MIT",
    )
    return _text(header, ((_proxyless(row), row) for row in _rows(data / "lut_mbconv_mobile.csv.gz", "pixel1")))


def _proxyless(row: Mapping[str, str]) -> Op:
    hw, cin, cout = int(row["in_h"]), int(row["cin"]), int(row["cout"])
    if row["op"] == "Conv":
        return Conv(hw, cin, cout, kernel=3, stride=2)
    if row["op"] == "Conv_1":
        return Conv(hw, cin, cout, kernel=1)
    if row["op"] == "Logits":
        return Classifier(hw, cin, cout)
    kernel, stride, expand = (int(float(row[name])) for name in ("kernel", "stride", "expand"))
    if expand == 1:  # no expanding convolution: depthwise, then 1x1
        return DepthwiseSeparable(hw, cin, cout, kernel, stride)
    return MBConv(hw, cin, cout, kernel, expand, stride)


def samsung_note10(data: Path) -> str:
    """Once-for-all's table for its MobileNetV3 space, width 1.2, at 17 input sizes from 160 to 224 pixels."""
    header = Header(
        target="samsung_note10",
        about="isolated layers of once-for-all's MobileNetV3 space (width 1.2) at 160 to 224 px on a Samsung Note 10, "
        "published by others; squeeze-and-excitation taken to be MobileNetV3's: a quarter of the expanded channels",
        device={"name": "samsung_note10", "kind": "published", "runtime": "TensorFlow Lite", "batch": 1},
        environment={},
        source="mit-han-lab/once-for-all: tutorial/checkpoints/latency_table@note10 at 698a5c10 (Cai et al., ICLR 2020)",
        licence="MIT",
    )
    return _text(header, ((_once_for_all(row), row) for row in _rows(data / "lut_mbconv_mobile.csv.gz", "samsung_note10")))


def _once_for_all(row: Mapping[str, str]) -> Op:
    hw, cin, cout = int(row["in_h"]), int(row["cin"]), int(row["cout"])
    if row["op"] == "AvgPool2D":
        return Pool(hw, cin, cout)
    if row["op"] == "Logits":
        return Classifier(hw, cin, cout)
    if row["op"] == "Conv":
        return Conv(hw, cin, cout, kernel=3, stride=2, act="hard_swish")
    if row["op"] in ("Conv_1", "Conv_2"):
        return Conv(hw, cin, cout, kernel=1, act="hard_swish")
    kernel, stride, wide, squeezes, hard = (int(float(row[name])) for name in ("kernel", "stride", "expand", "se", "hs"))
    return _mobilenet_v3(hw, cin, cout, kernel, stride, wide // cin, "hard_swish" if hard else "relu", bool(squeezes))


def _mobilenet_v3(hw: int, cin: int, cout: int, kernel: int, stride: int, expand: int, act: str, squeezes: bool) -> Op:
    if expand == 1:  # no expanding convolution
        assert not squeezes
        return DepthwiseSeparable(hw, cin, cout, kernel, stride, act)
    se = round(_eights(cin * expand // 4) / cin, 3) if squeezes else 0.0
    return MBConv(hw, cin, cout, kernel, expand, stride, act, se, "hard_sigmoid" if squeezes else "sigmoid")


def _eights(channels: int) -> int:
    """The multiple of eight MobileNetV3 rounds a number of channels to, never below nine tenths of it."""
    near = max(8, (channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


def elasticvit(target: str, name: str) -> Callable[[Path], str]:
    """The convolutional blocks of ElasticViT's table for a phone; its attention blocks are none of our ops."""

    def make(data: Path) -> str:
        header = Header(
            target=target,
            about=f"isolated stems and MBConv layers of ElasticViT's space on one CPU core of a {name}, published by others; "
            "squeeze-and-excitation taken to be MobileNetV3's: a quarter of the expanded channels",
            device={"name": target, "kind": "published", "runtime": "TensorFlow Lite", "threads": 1, "batch": 1},
            environment={},
            source="microsoft/nn-Meter, branch dev/hybrid-transformer: nn_meter/predictor/transformer_predictor/lut "
            "(Tang et al., ElasticViT, ICCV 2023)",
            licence="MIT",
        )
        rows = (row for row in _rows(data / "lut_elasticvit_phones.csv.gz", target) if row["op"] in ("firstconv", "conv"))
        return _text(header, ((_elastic(row), row) for row in rows))

    return make


def _elastic(row: Mapping[str, str]) -> Op:
    hw, cin, cout, kernel, stride = (int(float(row[name])) for name in ("hw", "cin", "cout", "kernel", "stride"))
    if row["op"] == "firstconv":
        return Conv(hw, cin, cout, kernel, stride, act="hard_swish")
    expand, squeezes = int(float(row["expand_ratio"])), float(row["se"]) == 1
    return _mobilenet_v3(hw, cin, cout, kernel, stride, expand, "hard_swish", squeezes)


def _rows(path: Path, device: str) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["device"] == device)


def _text(header: Header, rows: Iterable[tuple[Op, Mapping[str, str]]]) -> str:
    """The table's file; an op that the source measured at several input sizes is one row."""
    gathered: dict[str, list[Published]] = {}
    for op, row in rows:
        ms, spread, count = float(row["latency_ms"]), row.get("std_ms"), row.get("count")
        found = Published(op.key, ms, float(spread) if spread else None, int(float(count)) if count else 1)
        gathered.setdefault(op.key, []).append(found)
    lines = [header, *map(_pooled, gathered.values())]
    return "".join(json.dumps(asdict(line)) + "\n" for line in lines)


def _pooled(rows: Sequence[Published]) -> Published:
    """Mean and spread of all runs behind several rows of the same op."""
    if len(rows) == 1:
        return rows[0]
    n = sum(row.n for row in rows)
    mean = sum(row.n * row.latency_ms for row in rows) / n
    assert all(row.std_ms is not None for row in rows)
    variance = sum(row.n * ((row.std_ms or 0.0) ** 2 + (row.latency_ms - mean) ** 2) for row in rows) / n
    return Published(rows[0].key, round(mean, 9), round(variance**0.5, 9), n)


TABLES: dict[str, Callable[[Path], str]] = {
    "pixel1": pixel1,
    "samsung_note10": samsung_note10,
    "pixel6": elasticvit("pixel6", "Google Pixel 6"),
    "xiaomi11": elasticvit("xiaomi11", "Xiaomi Mi 11"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/latency-data"), help="folder with the measurements")
    data = parser.parse_args().data
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; expected the published latency data")
    for name, make in TABLES.items():
        write_text(SHIPPED / f"{name}.jsonl", make(data))
        print(f"{SHIPPED / name}.jsonl")


if __name__ == "__main__":
    main()
