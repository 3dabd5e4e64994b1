"""The ratings of a run: one line a candidate. Apart from the rating itself, so that picking again needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dna_deploy.errors import RunError
from dna_deploy.files import parse, write_text
from dna_deploy.space import Block

SCHEMA = "dna-deploy/ratings/2"


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


def save_ratings(path: Path, ratings: Sequence[Rating]) -> None:
    lines = [json.dumps({"schema": SCHEMA, "score": "lower is better"}), *(json.dumps(asdict(rating)) for rating in ratings)]
    write_text(path, "\n".join(lines) + "\n")


def load_ratings(path: Path, blocks: Sequence[Block]) -> dict[str, list[Rating]]:
    """Ratings by block, in the order of `Block.candidates`; every candidate of every searched block must be there."""
    if not path.is_file():
        raise RunError(f"{path}: no ratings there; run dna-search again, it goes on where it stopped")
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        objects = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON Lines ({error}); delete it and run dna-search again") from None
    if not objects or objects[0].get("schema") != SCHEMA:
        raise RunError(f"{path}: not a ratings file of this version; expected schema {SCHEMA!r}; delete it to rate anew")
    found = {(row["block"], row["candidate"]): parse(Rating, row, f"{path}, line {n}") for n, row in enumerate(objects[1:], 2)}
    result: dict[str, list[Rating]] = {}
    for block in blocks:
        if block.size > 1:
            try:
                result[block.name] = [found[block.name, candidate.text] for candidate in block.candidates]
            except KeyError as error:
                raise RunError(f"{path}: no rating of {error.args[0]}; delete it and run dna-search again") from None
    return result
