"""Pins and bans: which candidates of each block a request leaves.

Both are written [BLOCK[.LAYER]=]PATTERN, where * and ? in the pattern stand for anything, and it is held against the names
of a block's cells and ops: `--pin b2=k5e6` wants every op of block b2 to be k5e6, `--pin b2.1=k7*` its first layer with
kernel 7, `--pin b2=d3` the cell d3; `--ban k7*` forbids kernel 7 everywhere, `--ban b1=d1` one cell.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from dna_deploy.costs import links
from dna_deploy.errors import RequestError
from dna_deploy.pick import least_through
from dna_deploy.space import Block, Cell, SearchSpace

Array = np.ndarray[Any, np.dtype[Any]]


def allowed(space: SearchSpace, pins: Sequence[str] = (), bans: Sequence[str] = ()) -> list[Array]:
    """For each block (candidates,), true where a candidate keeps to all pins and bans, and fits some network that does."""
    left = [np.ones(block.size, dtype=bool) for block in space.blocks]
    for flag, texts in (("--pin", pins), ("--ban", bans)):
        for text in texts:
            for at, found in _matches(space, text, flag).items():
                left[at] &= found if flag == "--pin" else ~found
    asked = " ".join([*(f"--pin {text}" for text in pins), *(f"--ban {text}" for text in bans)])
    for block, mask in zip(space.blocks, left, strict=True):
        if not mask.any():
            raise RequestError(f"{asked}: together they leave no candidate of {block.name}; take one of them back")
    barred = [np.where(mask, 0.0, np.inf) for mask in left]
    left = [np.isfinite(least) for least in least_through(barred, links(space))]
    if not left[0].any():
        raise RequestError(f"{asked}: the widths they leave do not fit together in any network; take one of them back")
    return left


def _matches(space: SearchSpace, text: str, flag: str) -> dict[int, Array]:
    """By the number of each block the text speaks of: which of its candidates are as it says."""
    place, named, pattern = text.partition("=")
    name, _, layer = place.partition(".")
    blocks = {at: block for at, block in enumerate(space.blocks) if named and block.name == name}
    if not blocks or (layer and not (layer.isdecimal() and int(layer))):  # all of it is a name, such as k3e3,act=silu
        blocks, layer, pattern = {at: block for at, block in enumerate(space.blocks) if block.size > 1}, "", text
    depth = int(layer) - 1 if layer else None
    known = {word for block in blocks.values() for word in _words(block, depth)}
    if not any(fnmatchcase(word, pattern) for word in known):
        if named and pattern == text:
            names = ", ".join(block.name for block in blocks.values())
            raise RequestError(
                f"{flag} {text}: no place {place!r} and no op {text!r} in space {space.name}; write BLOCK=PATTERN or "
                f"BLOCK.LAYER=PATTERN, of {names}"
            )
        raise RequestError(
            f"{flag} {text}: nothing there is called {pattern!r}; there are {', '.join(sorted(known)) or 'no layers'}"
        )
    how = np.logical_and if flag == "--pin" and depth is None else np.logical_or
    return {at: np.concatenate([_in_cell(cell, pattern, depth, how) for cell in block.cells]) for at, block in blocks.items()}


def _words(block: Block, depth: int | None) -> list[str]:
    """What a pattern can be held against in a block, or in one layer of it."""
    cells = [] if depth is not None else [cell.name for cell in block.cells]
    rows = [cell.labels[depth : depth + 1] if depth is not None else cell.labels for cell in block.cells]
    return [*cells, *(label for row in rows for labels in row for label in labels)]


def _in_cell(cell: Cell, pattern: str, depth: int | None, how: np.ufunc) -> Array:
    """Which candidates of a cell match: by its name, or by all (or any) of their ops, or by the op at one depth."""
    if depth is None and fnmatchcase(cell.name, pattern):
        return np.ones(cell.size, dtype=bool)
    if depth is not None and depth >= len(cell.layers):
        return np.zeros(cell.size, dtype=bool)
    rows = [np.array([fnmatchcase(label, pattern) for label in labels]) for labels in cell.labels]
    if depth is not None:
        rows = [row if at == depth else np.zeros(len(row), dtype=bool) for at, row in enumerate(rows)]
    total = rows[0]
    for row in rows[1:]:
        total = how.outer(total, row)
    return np.asarray(total).ravel()
