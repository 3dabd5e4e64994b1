"""Give each block's score its weight, from a few networks that were trained whole.

The score of a block says how well a candidate imitates, not what that is worth to the network. What it is worth is
fitted from some twenty to forty trained networks, linearly and block by block, so that the calibrated score still adds up over
the blocks and the pick stays exact. Terms of two blocks together are left out: with so few networks they make the
ranking worse (on NAS-Bench-Macro, 6,561 networks of known accuracy).
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.errors import RequestError
from dna_deploy.space import Block, Candidate, SearchSpace

Array = np.ndarray[Any, np.dtype[Any]]

FEWEST = 8  # trained networks below which a fit says nothing


@dataclass(frozen=True)
class Calibration:
    """Calibrated scores of every candidate, one array a block, to be added up; lower is better.

    What adds up is -1 / error rate: of NAS-Bench-Macro's networks 40 calibrated so rank the others at a tau of .853, by the
    error's logarithm .836, by the error itself .816. `loo_error` is the root mean squared error of each trained network's,
    predicted from the others, over their standard deviation (1 is no better than the mean); `loo_tau` is Kendall's tau of
    these predictions.
    """

    scores: list[Array]
    weights: dict[str, float]  # what one unit of each block's score is worth
    ridge: float
    networks: int
    loo_error: float
    loo_tau: float


def calibrate(space: SearchSpace, scores: Sequence[Array], choices: Array, accuracies: Sequence[float]) -> Calibration:
    """Fit the worth of each block's score, its multiply-adds and its ops.

    `scores[k]` are those of block k's candidates (zeros where there are none); row i of `choices` holds the candidate of
    every block of trained network i, `accuracies[i]` its accuracy from 0 to 1.
    """
    from scipy.stats import kendalltau

    error = 1 - np.asarray(accuracies, float)
    if len(error) < FEWEST or np.ptp(error) == 0:
        seen = sorted({f"{value:.1%}" for value in accuracies})
        raise RequestError(
            f"{len(error)} trained networks with accuracies {', '.join(seen[:4]) or 'none'}: a calibration needs {FEWEST} that "
            "differ; train more with --calibrate"
        )
    blocks, names = columns(space, scores)
    seen = np.sum([block[choices[:, k]] for k, block in enumerate(blocks)], axis=0)
    y = -1 / np.maximum(error, 0.5 * error[error > 0].min())
    ridge, weights, predicted = _ridge(seen, y)
    tau, off = float(kendalltau(predicted, y)[0]), float(np.sqrt(np.mean((predicted - y) ** 2)) / y.std())
    shared = weights[names.index("score")]
    worth = {block.name: float(shared + weights[names.index(f"{block.name} score")]) for block in space.blocks if block.size > 1}
    calibrated = [block @ weights for block in blocks]
    return Calibration(calibrated, worth, ridge, len(error), off, tau)


def columns(space: SearchSpace, scores: Sequence[Array]) -> tuple[list[Array], list[str]]:
    """What each candidate of each block is described by, (candidates, columns) a block, and the columns' names.

    Every fact stands there once for the whole network, once for its block and, for ops, once for its layer. A ridge over all of
    them gives what blocks have in common the first say and each block's own part only where the data ask for it.
    """
    described = [
        [_described(block, candidate, own) for candidate, own in zip(block.candidates, score, strict=True)]
        for block, score in zip(space.blocks, scores, strict=True)
    ]
    names = sorted({name for rows in described for row in rows for name in row})
    place = {name: at for at, name in enumerate(names)}
    made = []
    for rows in described:
        values = np.zeros((len(rows), len(names)))
        for at, row in enumerate(rows):
            for name, value in row.items():
                values[at, place[name]] = value
        made.append(values)
    for kind in ("score", "macs"):  # one scale for all blocks: what they differ in is kept
        own = [at for at, name in enumerate(names) if name.split()[-1] == kind]
        spread = np.sqrt(np.mean([values[:, place[kind]].var() for values in made if len(values) > 1]))
        for values in made:
            values[:, own] /= spread if spread > 0 else 1
    return made, names


def _described(block: Block, candidate: Candidate, score: float) -> dict[str, float]:
    if block.size == 1:
        return {}
    macs = float(sum(op.macs for op in candidate.ops))
    row = {"score": score, f"{block.name} score": score, "macs": macs, f"{block.name} macs": macs}
    cell, _, labels = candidate.text.partition(": ")
    row[f"{block.name} {cell}"] = 1.0
    for depth, label in enumerate(labels.split(" "), 1):
        for name in (label, f"{block.name} {label}", f"{block.name} layer {depth} {label}"):
            row[name] = row.get(name, 0.0) + 1.0
    return row


def _ridge(x: Array, y: Array) -> tuple[float, Array, Array]:
    """The ridge of the least leave-one-out error, the weights under it, and what each row is predicted from the others."""
    centre = x.mean(0)
    left, size, right = np.linalg.svd(x - centre, full_matrices=False)
    inside = left.T @ (y - y.mean())
    best: tuple[float, float, Array, Array] | None = None
    for ridge in np.logspace(-3, 4, 36):
        shrunk = size**2 / (size**2 + ridge)
        leverage = (left**2 * shrunk).sum(1) + 1 / len(y)
        residual = (y - y.mean() - left @ (shrunk * inside)) / np.maximum(1 - leverage, 1e-9)
        if best is None or np.mean(residual**2) < best[0]:
            weights = right.T @ (np.divide(size, size**2 + ridge) * inside)
            best = (float(np.mean(residual**2)), float(ridge), weights, y - residual)
    assert best is not None
    return best[1], best[2], best[3]


def networks_to_train(space: SearchSpace, count: int, seed: int = 0) -> list[Architecture]:
    """Networks that say most when trained: in every block the cells, and in every layer the ops, are used about equally often.

    No two are the same; a space with fewer networks gives what it has.
    """
    rng = random.Random(seed)
    used: Counter[tuple[tuple[Any, ...], int]] = Counter()

    def next_of(where: tuple[Any, ...], choices: Sequence[Any]) -> int:
        places = [(where, index) for index in range(len(choices))]
        place = min(places, key=lambda place: (used[place], rng.random()))
        used[place] += 1
        return place[1]

    networks: dict[Architecture, None] = {}
    for _ in range(100 * count):
        if len(networks) == min(count, space.size):
            break
        chosen: list[Candidate] = []
        for block in space.blocks:
            arriving = chosen[-1].cell.out_shape if chosen else block.cells[0].in_shape
            fitting = [cell for cell in block.cells if cell.in_shape == arriving]
            cell = fitting[next_of((block.name, arriving), fitting)]
            layers = enumerate(cell.layers)
            chosen.append(Candidate(cell, tuple(next_of((block.name, cell.name, depth), ops) for depth, ops in layers)))
        networks[Architecture(space, tuple(chosen))] = None
    return list(networks)
