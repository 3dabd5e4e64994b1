"""The ratings of a run: one line a candidate. Apart from the rating itself, so that picking again needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dna_deploy.errors import RunError
from dna_deploy.files import parse, write_text
from dna_deploy.space import SearchSpace

SCHEMA = "dna-deploy/ratings/3"


@dataclass(frozen=True)
class Rating:
    """How far a candidate's output lies from the teacher's features, relative to their spread; 0 is a perfect copy."""

    block: str
    candidate: str
    relative_l1: float  # mean |Y - Y'| / std(Y)
    noise_to_signal: float  # mean over channels of the squared error over the variance
    others: tuple[float, ...] = ()  # the relative L1 under other teachers, where their runs were given
    replace_one: float | None = None  # KL of a whole network with it from the teacher's classes, where that was asked for
    calibrated: float | None = (
        None  # the score weighed by what trained networks reached, where that was asked for; lower is better
    )


def save_ratings(path: Path, ratings: Sequence[Rating], space: SearchSpace) -> None:
    header = {"schema": SCHEMA, "score": "lower is better", "space": space.name, "space_sha256": space.sha256}
    write_text(path, "".join(json.dumps(row) + "\n" for row in (header, *map(asdict, ratings))))


def load_ratings(path: Path, space: SearchSpace) -> dict[str, list[Rating]]:
    """Ratings by block, in the order of `Block.candidates`; every candidate of every searched block must be there.

    Candidates are known by their text, which says nothing of widths and strides, so those of another space are refused.
    """
    if not path.is_file():
        raise RunError(f"{path}: no ratings there; run dna-search again, it goes on where it stopped")
    try:
        objects = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not JSON Lines ({error}); delete it and run dna-search again") from None
    header = objects[0] if objects and isinstance(objects[0], dict) else {}
    if header.get("schema") != SCHEMA:
        raise RunError(f"{path}: not a ratings file of this version; expected schema {SCHEMA!r}; delete it to rate anew")
    if header.get("space_sha256") != space.sha256:
        raise RunError(f"{path}: ratings of another {space.name}, which was edited since; choose another --run NAME for this one")
    rows = [parse(Rating, row, f"{path}, line {number}") for number, row in enumerate(objects[1:], 2)]
    found = {(row.block, row.candidate): row for row in rows}
    result: dict[str, list[Rating]] = {}
    for block in space.blocks:
        if block.size > 1:
            try:
                result[block.name] = [found[block.name, candidate.text] for candidate in block.candidates]
            except KeyError as error:
                raise RunError(f"{path}: no rating of {error.args[0]}; delete it and run dna-search again") from None
    return result
