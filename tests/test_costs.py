"""Costs of candidates: each array holds what adding up each candidate's own ops gives."""

from dna_deploy.costs import largest, links, sums


def test_sums_and_largest_are_those_of_the_candidates_ops(widths, tiny):
    for space in (widths, tiny):
        for block, link in zip(space.blocks, links(space), strict=True):
            candidates = block.candidates
            assert sums(block, lambda op: op.macs).tolist() == [sum(op.macs for op in c.ops) for c in candidates]
            assert largest(block, lambda op: op.params).tolist() == [max(op.params for op in c.ops) for c in candidates]
            assert link.tolist() == [[c.ops[0].cin, c.ops[-1].cout] for c in candidates]
