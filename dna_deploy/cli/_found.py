"""What dna-search tells of the network it found: before it is trained, and after."""

from dataclasses import asdict
from typing import Any

from dna_deploy.arch import Architecture
from dna_deploy.budget import block_costs
from dna_deploy.found import Found
from dna_deploy.measure import remark
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.progress import say, show
from dna_deploy.ratings import load_ratings
from dna_deploy.rivals import rivalry
from dna_deploy.run import Beside, Pick, Picked, Student
from dna_deploy.scores import block_scores


def picked_answer(found: Found, confidence: float | None) -> dict[str, Any]:
    """Tell which network was picked, by what, and against which others; returns it for programs."""
    picked = found.picked
    say(f"{found.architecture.text}")
    if picked.tried_ended:
        _tried(picked)
    answers: list[Picked | Beside] = [picked, *picked.others]
    measured = next((own.measured_ms for own in picked.tried if own.fits and own.network == found.architecture.text), None)
    for number, one in enumerate(answers):
        sure = _sure(one, confidence, measured is not None and measured[number] is not None)
        each = f", each with {100 * confidence:g}%" if confidence else ""
        bounds = f"{one.low_ms:.3g} to {one.high_ms:.3g} ms{each}" if one.high_ms else "no interval known"
        say(f"predicted {one.predicted_ms:.3g} ms ({bounds}) on {one.device}, budget {one.budget_ms:g} ms: {sure}")
    say(f"the Pareto front has {len(found.front.costs)} networks: {found.pick.front}")
    for number, other in enumerate(found.top[1:], 2):
        say(f"{number}. best: {other.text}")
    for budget in found.budgets:
        _account(budget.predictor, found.architecture)
    extrapolated = {op.key: None for own in found.budgets for op in own.predictor.account(found.architecture.ops).extrapolated}
    return {
        "folder": str(found.pick.folder),
        "network": found.architecture.text,
        "device": picked.device,
        "budget_ms": picked.budget_ms,
        "confidence": confidence,
        "predicted_ms": picked.predicted_ms,
        "high_ms": picked.high_ms,
        "extrapolated": list(extrapolated),
        "others": [asdict(other) for other in picked.others],
        "tried": [asdict(tried) for tried in picked.tried],
        "macs": picked.macs,
        "params": picked.params,
        "file_bytes": picked.file_bytes,
        "peak_bytes": picked.peak_bytes,
        "score": picked.score,
        "bound": picked.bound,
        "top": [other.text for other in found.top],
        "rivals": _rivals(found),
    }


def trained_answer(found: Found, student: Student | None) -> dict[str, Any]:
    """Tell what became of it, where it was trained; returns that for programs."""
    picked = found.picked
    rows = [["budget", f"{picked.budget_ms:g} ms"], ["predicted", f"{picked.predicted_ms:.3g} ms"]]
    if student is not None and student.measured_ms is not None:
        rows.append(["measured", f"{student.measured_ms:.3g} ms ({student.measured_ms / picked.predicted_ms - 1:+.1%})"])
    rows += [["multiply-adds", f"{picked.macs / 1e6:.1f} M"], ["parameters", f"{picked.params / 1e6:.2f} M"]]
    if picked.file_bytes is not None and picked.peak_bytes is not None:
        rows += [["file", f"{picked.file_bytes / 1e6:.2f} MB"], ["activations at once", f"{picked.peak_bytes / 1e6:.2f} MB"]]
    rows.append(["proof", _proof(picked)])
    if student is not None:
        rows.append(["test accuracy", f"{student.test_accuracy:.2%} (teacher {student.teacher_test_accuracy:.2%})"])
    show(str(found.pick.folder), ["network found", ""], rows)
    if student is not None and (changed := remark(student.speed)):
        say(changed)
    if picked.macs_rival:
        say(f"by multiply-adds alone it would have been: {picked.macs_rival}")
    return {
        "measured_ms": student.measured_ms if student else None,
        "test_accuracy": student.test_accuracy if student else None,
        "teacher_test_accuracy": student.teacher_test_accuracy if student else None,
    }


def reported(pick: Pick) -> dict[str, Any]:
    """Put all that is known of a pick on one page; tells where it is."""
    from dna_deploy.report import write_report

    page = write_report(pick)
    say(f"all of it on one page: {page}")
    return {"report": str(page)}


def _sure(one: Picked | Beside, confidence: float | None, measured: bool) -> str:
    """Which of its figures keeps to the budget: what was predicted, or what was measured before it was picked."""
    what, kept = (f"{100 * confidence:g}% upper bound", one.high_ms) if confidence else ("latency", one.predicted_ms)
    hint = "" if confidence else "; --confidence 0.95 holds a bound"
    if kept is not None and kept <= one.budget_ms:
        return f"its predicted {what} is within the budget{hint}"
    return f"its {'measured' if measured else 'predicted'} {what} is {'within' if measured else 'over'} the budget{hint}"


def _proof(picked: Picked) -> str:
    """How sure it is that no network within the budgets scores better."""
    if picked.bound is None:
        return "none"
    gap = picked.score - picked.bound
    return "no network within the budgets scores better" if gap < 1e-6 else f"none scores better by more than {gap:.2g}"


def _tried(picked: Picked) -> None:
    devices = [picked.device, *(other.device for other in picked.others)]
    columns = ["measured before picking", *(f"{device}: {what}" for device in devices for what in ("predicted", "measured", ""))]
    rows = []
    for tried in picked.tried:
        row = [tried.network]
        for predicted, measured in zip(tried.predicted_ms, tried.measured_ms, strict=True):
            row += [f"{predicted:.3g} ms"]
            row += ["not at hand", ""] if measured is None else [f"{measured:.3g} ms", f"{measured / predicted - 1:+.1%}"]
        rows.append([*row, "fits" if tried.fits else "too slow"])
    if rows:
        show("candidates", [*columns, ""], rows)
    say(f"{len(picked.tried)} measured: {picked.tried_ended}")


def _rivals(found: Found) -> list[dict[str, Any]]:
    """Beside the score what the cost alone would have said, block by block."""
    space = found.architecture.space
    ratings = load_ratings(found.pick.run.ratings, space)
    if others := max((len(rating.others) for block in ratings.values() for rating in block), default=0):
        say(f"scores are averaged with those under {others} other teacher{'s' if others > 1 else ''}")
    rows = rivalry(space, block_scores(space, ratings), block_costs(space, found.budgets[0].predictor))
    columns = ["block", "candidates", "MACs", "parameters", "MACs at equal latency", "spread left"]
    shown = [
        [row.block, str(row.candidates), f"{row.macs:.2f}", f"{row.params:.2f}", _two(row.at_equal_cost), _two(row.spread)]
        for row in rows
    ]
    show("does the score say more than the cost? Kendall tau of both", columns, shown)
    return [asdict(row) for row in rows]


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _account(predictor: LatencyPredictor, architecture: Architecture) -> None:
    table = predictor.table
    account = predictor.account(architecture.ops)
    say(f"{table.name}: {account.text}")
    if table.published:
        say(f"the table is published ({table.header.source}): a sum of isolated layers, no whole network was measured")
    elif predictor.unjudged:
        say(f"a plain sum of ops: {predictor.unjudged}")
    for op in account.bounded:
        say(f"estimated, not measured: {op.key} is taken as the same layer with more classes")
