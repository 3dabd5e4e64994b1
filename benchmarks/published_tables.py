"""Rebuild the shipped tables of published measurements from the public data they come from.

    python -m benchmarks.published_tables --data ../shared/latency-data

Takes a second and writes latency_tables/<target>.jsonl.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from dna_deploy.files import write_text
from dna_deploy.ops import Op
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.ops.mbconv import MBConv
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


def _rows(path: Path, device: str) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["device"] == device)


def _text(header: Header, rows: Iterator[tuple[Op, Mapping[str, str]]]) -> str:
    lines = [header, *(Published(op.key, float(row["latency_ms"]), float(row["std_ms"]), int(row["count"])) for op, row in rows)]
    return "".join(json.dumps(asdict(line)) + "\n" for line in lines)


TABLES = {"pixel1": pixel1}


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
