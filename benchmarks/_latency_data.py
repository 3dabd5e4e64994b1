"""Published latencies as matrices, with the features and costs of every architecture.

Encodings are those of the data folder's README. Costs are derived here: MACs of the published networks, and the
activations read and written by their convolutions, which decide more where memory does; of MobileNet-like networks also
the MACs of the depthwise convolutions alone, which few devices run as fast as the others. None is exact (bytes of
weights, the fusing of operators and a few tiny layers are left out), and none has to be: they are regressors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """Everything known about one set of items: n rows in `features`, `costs`, `counts`, `latency_ms`."""

    features: Array  # (n, d) shapes and structure
    costs: Array  # (n, c) MACs first
    counts: Array  # (n, k) what a least-squares op sum adds up
    devices: list[str]
    latency_ms: Array  # (n, devices), NaN where not measured
    origin: dict[str, str]  # device -> who published it, where the file says
    focus: NDArray[np.bool_]  # (n,) MBConv blocks of a block table; every network of a space


def load(folders: Sequence[Path], name: str, op: str | None = None) -> Space:
    """Read `name`.csv.gz of every folder that has it (the format of latency-data) into one matrix; only one kind of op
    where it is named."""
    key = "key" if name.startswith("lut_") else "arch_idx"
    text = dict.fromkeys(("arch", "ks", "e", "d"), str)
    files = [path for path in (folder / f"{name}.csv.gz" for folder in folders) if path.exists()]
    table = pd.concat([pd.read_csv(path, dtype=text) for path in files])
    table = table if op is None else table[table["op"] == op]
    latency = table.pivot_table(index=key, columns="device", values="latency_ms")
    items = table.drop_duplicates(key).set_index(key).loc[latency.index]
    features, costs, counts = ENCODINGS[name](items)
    origin = dict(zip(table["device"], table["source"], strict=True)) if "source" in table else {}
    focus = (items["op"] == "conv").to_numpy() if "op" in items else np.ones(len(items), bool)
    return Space(features, costs, counts, list(latency.columns), latency.to_numpy(float), origin, focus)


@cache
def devices(folder: Path, name: str) -> list[str]:
    """The devices `name`.csv.gz of a folder has; none where the file is missing."""
    path = folder / f"{name}.csv.gz"
    return sorted(pd.read_csv(path, usecols=["device"])["device"].unique()) if path.exists() else []


def siblings(device: str, other: str) -> bool:
    """One card at two batch sizes (`1080ti_1`, `1080ti_32`): to leave one out is to leave out both."""
    return _card(device) == _card(other)


def _card(device: str) -> str:
    found = re.fullmatch(r"(.*(?:ti|titan\w*|rtx|xp|v100|a100|t4|p100)(?:_\w+)?)_(?:1|16|32|64|128|256)", device)
    return found[1] if found else device


def _digits(column: pd.Series) -> NDArray[np.int64]:
    return np.array([[int(digit) for digit in text] for text in column])


def _one_hot(codes: NDArray[np.int64], kinds: int) -> Array:
    return np.concatenate([codes == kind for kind in range(kinds)], 1).astype(float)


def _nb201(items: pd.DataFrame) -> tuple[Array, Array, Array]:
    """NAS-Bench-201: three stages of five cells of 16, 32, 64 channels at 32, 16, 8 pixels.

    Some runtimes drop edges that reach no output, others run them: both the cell as written and as pruned are here.
    """
    cell = _digits(items["arch"])
    edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    reached = np.zeros((len(cell), 4), bool)
    used = np.zeros((len(cell), 4), bool)
    reached[:, 0] = used[:, 3] = True
    for position, (start, end) in enumerate(edges):
        reached[:, end] |= reached[:, start] & (cell[:, position] != 0)
    for position, (start, end) in reversed(list(enumerate(edges))):
        used[:, start] |= used[:, end] & (cell[:, position] != 0)
    live = np.stack([reached[:, start] & used[:, end] for start, end in edges], 1)
    pruned = np.where(live, cell, 0)

    def longest(codes: NDArray[np.int64], length: Array) -> Array:
        at = np.full((len(codes), 4), -np.inf)
        at[:, 0] = 0
        for position, (start, end) in enumerate(edges):
            step = np.where(codes[:, position] != 0, at[:, start] + length[codes[:, position]], -np.inf)
            at[:, end] = np.maximum(at[:, end], step)
        return np.maximum(at[:, 3], 0)

    layers, work = np.array([0, 0, 1, 1, 1.0]), np.array([0, 0, 1, 9, 1.0])
    each = np.array([0, 0, 16 * 16 * 1024 * 15, 9 * 16 * 16 * 1024 * 15, 0.0])  # as channels double, pixels quarter
    fixed = 16 * 27 * 1024 + 2 * (32 * 16 * 9 + 32 * 32 * 9 + 16 * 32) * 256 + 640  # stem, two reductions, classifier
    tally = [np.stack([(codes == kind).sum(1) for kind in range(5)], 1) for codes in (cell, pruned)]
    lengths = [longest(cell, layers), longest(pruned, layers), longest(pruned, work)]
    dead = pruned.any(1) == 0
    features = np.column_stack([_one_hot(cell, 5), _one_hot(pruned, 5), *tally, *lengths, dead])
    costs = np.stack([each[codes].sum(1) + fixed for codes in (cell, pruned)], 1)
    costs[dead, 1] = 640  # without a path from input to output all before the classifier is a constant, and can be dropped
    return features, costs, np.c_[_one_hot(cell, 5), np.ones(len(cell))]


FBNET = [(3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1)]  # kernel, expand, groups


def _fbnet(items: pd.DataFrame) -> tuple[Array, Array, Array]:
    """FBNet at the CIFAR-100 setting: 22 layers, each one of eight inverted bottlenecks or a skip."""
    chosen = _digits(items["arch"])
    stages = zip([1, 4, 4, 4, 4, 4, 1], [16, 24, 32, 64, 112, 184, 352], [1, 1, 2, 2, 1, 2, 1], strict=True)
    layers = [(width, stride if first else 1) for n, width, stride in stages for first in [True] + [False] * (n - 1)]
    pixels, cin = 32, 16
    macs, activations, depthwise = np.full(len(chosen), 16.0 * 27 * pixels**2), np.zeros(len(chosen)), np.ones(len(chosen))
    for layer, (cout, stride) in enumerate(layers):
        after = pixels // stride
        work, moved, filtered = np.zeros(9), np.zeros(9), np.zeros(9)
        for op, (kernel, expand, groups) in enumerate(FBNET):
            middle = cin * expand
            work[op] = pixels**2 * cin * middle / groups + after**2 * middle * (kernel**2 + cout / groups)
            moved[op] = pixels**2 * (cin + middle) + after**2 * (middle + cout)
            filtered[op] = after**2 * middle * kernel**2
        if (cin, stride) != (cout, 1):  # a skip that changes shape is a 1x1 convolution
            work[8], moved[8] = after**2 * cin * cout, pixels**2 * cin + after**2 * cout
        macs += work[chosen[:, layer]]
        activations += moved[chosen[:, layer]]
        depthwise += filtered[chosen[:, layer]]
        pixels, cin = after, cout
    macs += pixels**2 * cin * 1504 + 1504 * 100
    one_hot = _one_hot(chosen, 9)
    tally = np.stack([(chosen == op).sum(1) for op in range(9)], 1)
    return np.c_[one_hot, tally], np.stack([macs, activations, depthwise], 1), np.c_[one_hot, np.ones(len(chosen))]


def _ofa_mbv3(items: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Once-for-all MobileNetV3, width 1.0: 5 stages of 2 to 4 blocks; blocks past a stage's depth are not run."""
    kernels, expands, depths = (_digits(items[name]) for name in ("ks", "e", "d"))
    size = items["resolution"].to_numpy(float)
    widths, strides, squeezes = [16, 24, 40, 80, 112, 160], [2, 2, 2, 1, 2], [0, 1, 0, 1, 1]
    pixels = np.ceil(size / 2)
    macs, activations, depthwise = pixels**2 * 16 * (27 + 9 + 16), pixels**2 * 64, pixels**2 * 16 * 9
    columns, sums = [], [pixels**2]
    for stage in range(5):
        for block in range(4):
            runs = (depths[:, stage] > block).astype(float)
            kernel, expand = kernels[:, 4 * stage + block], expands[:, 4 * stage + block]
            cin, cout = (widths[stage] if block == 0 else widths[stage + 1]), widths[stage + 1]
            after = np.ceil(pixels / (strides[stage] if block == 0 else 1))
            middle = cin * expand
            work = pixels**2 * cin * middle + after**2 * middle * (kernel**2 + cout) + squeezes[stage] * middle**2 / 2
            macs += runs * work
            depthwise += runs * after**2 * middle * kernel**2
            activations += runs * (pixels**2 * (cin + middle) + after**2 * (middle + cout))
            options = [runs * (kernel == k) for k in (3, 5, 7)] + [runs * (expand == e) for e in (3, 4, 6)]
            columns += [runs, *options, runs * work / 4e7]
            sums += [option * after**2 for option in options]
            pixels = after
    macs += pixels**2 * 160 * 960 + 960 * 1280 + 1280 * 1000
    activations += pixels**2 * 1120
    tally = [depths.sum(1), *depths.T, size / 32, (size / 32) ** 2]
    return (
        np.stack([*columns, *tally], 1),
        np.stack([macs, activations, depthwise], 1),
        np.c_[np.stack(sums, 1), np.ones(len(size))],
    )


def _phone_blocks(items: pd.DataFrame) -> tuple[Array, Array, Array]:
    """ElasticViT's blocks. MACs of attention and pooling are those of their projections and of the two products."""
    op = items["op"].to_numpy()
    hw, cin, cout = (items[name].to_numpy(float) for name in ("hw", "cin", "cout"))
    expand, stride, kernel = (items[name].fillna(1).to_numpy(float) for name in ("expand_ratio", "stride", "kernel"))
    squeeze, values = items["se"].fillna(0).to_numpy(float), items["v_scale"].fillna(0).to_numpy(float)
    before, after, middle = hw**2, (hw / stride) ** 2, cin * expand
    macs = np.select(
        [op == "conv", op == "firstconv", op == "transattn", op == "transffn"],
        [
            before * cin * middle + after * middle * (kernel**2 + cout) + squeeze * middle**2 / 2,
            after * cin * cout * kernel**2,
            before * cin**2 * (2 + 2 * values) + before**2 * cin * (1 + values),
            2 * before * cin * middle,
        ],
        before * cin * middle + after * middle * cout,
    )
    moved = before * (cin + middle) + after * (middle + cout)
    kinds = np.stack([op == name for name in sorted(set(op))], 1).astype(float)
    shapes = np.c_[np.log(hw), np.log(cin), np.log(cout), np.log(expand), np.log(stride), kernel, squeeze, values]
    features = np.c_[kinds, shapes]
    return features, np.stack([macs, moved], 1), np.c_[kinds, kinds * macs[:, None], kinds * moved[:, None]]


Encoding = Callable[[pd.DataFrame], tuple[Array, Array, Array]]
ENCODINGS: dict[str, Encoding] = {
    "nb201": _nb201,
    "fbnet": _fbnet,
    "ofa_mbv3": _ofa_mbv3,
    "lut_elasticvit_phones": _phone_blocks,
}
