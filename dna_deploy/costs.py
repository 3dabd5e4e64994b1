"""What every candidate of a block costs, from what each op costs. All arrays are in the order of `Block.candidates`."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from dna_deploy.ops import Op
from dna_deploy.space import Block, SearchSpace

Array = np.ndarray[Any, np.dtype[Any]]


def sums(block: Block, cost: Callable[[Op], float]) -> Array:
    """The sum over its ops, for every candidate."""
    return _combined(block, cost, np.add)


def largest(block: Block, cost: Callable[[Op], float]) -> Array:
    """The largest of its ops', for every candidate."""
    return _combined(block, cost, np.maximum)


def links(space: SearchSpace) -> list[Array]:
    """For each block (candidates, 2): the channels each candidate takes in and puts out."""
    return [
        np.repeat([(cell.in_shape[0], cell.out_shape[0]) for cell in block.cells], [cell.size for cell in block.cells], axis=0)
        for block in space.blocks
    ]


def _combined(block: Block, cost: Callable[[Op], float], how: np.ufunc) -> Array:
    cells = []
    for cell in block.cells:
        layers = [np.array([float(cost(op)) for op in choices]) for choices in cell.layers]
        cells.append(reduce(lambda total, layer: how.outer(total, layer), layers).ravel())
    return np.concatenate(cells)
