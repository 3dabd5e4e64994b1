"""Does sharing beginnings give every candidate's own score, and how much faster is it?

    python -m benchmarks.rate

All 1,296 paths of a 4-layer cell of `mobile` (block 3), rated depth-first with shared beginnings and each on its own,
on the same images, turn about. Takes 2 minutes on 2 cores.
"""

import time

import torch

from benchmarks._report import Result, arguments, at_least, report
from dna_deploy.data import Preprocessing
from dna_deploy.networks import untrained
from dna_deploy.plugins import find
from dna_deploy.rate import frozen_statistics, outputs, scores
from dna_deploy.space import Block
from dna_deploy.supernet import Piece, PieceSupernet
from dna_deploy.teacher import Teacher, cut


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    torch.manual_seed(0)
    space = find("spaces", "mobile").at(96, 10)
    model = untrained("tf_efficientnet_lite0", 10).eval().requires_grad_(False)
    teacher = Teacher("lite0", model, Preprocessing((0.5,) * 3, (0.5,) * 3), cut(model, space))
    features = teacher.features(torch.randn(32, 3, 96, 96))
    whole = space.blocks[3]
    part = PieceSupernet(Piece((), Block("b3", whole.cells[3:]), (), 40, 80)).train()
    into, target = features[2], features[3]

    def shared():
        return {candidate.text: scores(y, target).tolist() for candidate, y in outputs(part, into)}

    def alone():
        return {candidate.text: scores(part(into, candidate), target).tolist() for candidate in part.piece.block.candidates}

    largest, ratios = 0.0, []
    with torch.no_grad(), frozen_statistics(part):
        shared()
        for turn in range(1 if quick else 5):
            found, took = {}, {}
            for name, work in [("shared", shared), ("alone", alone)][:: 1 - 2 * (turn % 2)]:
                began = time.perf_counter()
                found[name] = work()
                took[name] = time.perf_counter() - began
            ratios.append(took["alone"] / took["shared"])
            assert found["shared"].keys() == found["alone"].keys()
            pairs = ((a, b) for key, own in found["alone"].items() for a, b in zip(own, found["shared"][key], strict=True))
            largest = max(largest, *(abs(a - b) / abs(a) for a, b in pairs))
    report(
        "rate",
        [
            Result("candidates rated", part.piece.block.size, ""),
            Result("largest relative difference of a score", largest, "", "<= 0.0001", largest <= 1e-4, len(ratios)),
            at_least("each alone / shared", ratios, "x", 2.5),
        ],
    )


if __name__ == "__main__":
    main()
