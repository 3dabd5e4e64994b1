"""The report of a network found: one page, complete in itself, with the chain of numbers and where each link comes from."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from dna_deploy.arch import Architecture
from dna_deploy.bundle import VERIFICATION
from dna_deploy.files import read_json, write_text
from dna_deploy.predictor import LatencyPredictor, open_predictor
from dna_deploy.run import Pick, Picked, Student
from dna_deploy.verify import Verification

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.35rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.4rem 0 .5rem }
p { margin: .3rem 0; color: #566072 } img { max-width: 100% }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .28rem 1rem .28rem 0; border-bottom: 1px solid #e6e9ee; vertical-align: top }
th, td { white-space: nowrap }
th { font-weight: 500; color: #566072 } th:first-child, td:first-child { text-align: left }
td.bar { width: 22% } td.bar div { background: #4878a8; height: .85em; margin-top: .32em }
td.note { text-align: left; white-space: normal; color: #566072; font-size: .87rem }
b { color: #a8261c }
"""


def write_report(pick: Pick) -> Path:
    """Of a pick as far as it is: picked, trained, exported once or in several formats."""
    write_text(pick.report, page(pick))
    return pick.report


def page(pick: Pick) -> str:
    arch, picked = Architecture.load(pick.architecture), read_json(pick.picked, Picked)
    student = read_json(pick.student, Student) if pick.student.exists() else None
    exports = list(_exports(pick)) if student else []
    space = arch.space
    predictor = open_predictor(Path(picked.table), arch.ops, True, space=space.name, image_size=space.image_size)
    asked = pick.run.asked
    parts = [
        f"<h1>{escape(arch.text)}</h1>",
        f"<p>{escape(space.name)} at {space.image_size} px, {arch.macs / 1e6:.1f} M multiply-adds, "
        f"{arch.params / 1e6:.2f} M parameters; found under {escape(asked.teacher)} on {escape(asked.data)} "
        f"for {_budgets(picked)}</p>",
        _chain(arch, picked, predictor, student, exports),
        _accuracy(student, exports),
        _layers(arch, predictor),
        _front(pick),
        *(_export(found) for found in exports),
        _origin(pick, predictor),
    ]
    title = f"<title>{escape(pick.folder.name)}: {escape(arch.text)}</title>"
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{title}<style>{STYLE}</style></head>'
    return f"{head}\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"


def _exports(pick: Pick) -> Iterator[Verification]:
    """What was exported since the network was trained; the files of one that was found before it may still lie there."""
    trained = pick.weights.stat().st_mtime
    for file in sorted(pick.export.rglob(f"*{VERIFICATION}")):
        if file.stat().st_mtime >= trained:
            yield read_json(file, Verification)


def _budgets(picked: Picked) -> str:
    asked = [(picked.device, picked.budget_ms), *((other.device, other.budget_ms) for other in picked.others)]
    sure = f", with confidence {picked.confidence:g}" if picked.confidence else ""
    return escape(", ".join([*(f"{ms:g} ms on {device}" for device, ms in asked), *picked.also]) + sure)


def _chain(
    arch: Architecture, picked: Picked, predictor: LatencyPredictor, student: Student | None, exports: Sequence[Verification]
) -> str:
    """Sum of ops, predicted, measured, exported: each with its interval and its distance from the prediction."""
    alone = sum(predictor.op_ms(op) for op in arch.ops)
    errors = predictor.errors()
    known = (
        f"corrected by {errors[0].n} whole networks, {errors[0].mape:.1%} off on those left out"
        if errors
        else f"a plain sum: {predictor.unjudged}"
    )
    known += f"; each bound of {picked.confidence:.0%}" if picked.confidence else ""
    links: list[tuple[str, float, float | None, float | None, str]] = [
        ("sum of its ops, each alone", alone, None, None, predictor.account(arch.ops).text),
        ("network, predicted", picked.predicted_ms, picked.low_ms, picked.high_ms, known),
    ]
    if student and student.measured_ms:
        speed = _speed(student.speed)
        links.append(("network, measured", student.measured_ms, student.measured_low_ms, student.measured_high_ms, speed))
    for found in exports:
        if (taken := found.latency) and taken.predicted_ms:
            links.append(
                (f"{found.file}, measured", taken.measured_ms, taken.low_ms, taken.high_ms, _speed(taken.speed)),
            )
    longest = max(ms for _, ms, *_ in links)
    rows = [
        [
            escape(name),
            f"{ms:.3g} ms",
            f"{low:.3g} to {high:.3g}" if low and high else "",
            f"{ms / picked.predicted_ms - 1:+.1%}" if name.endswith("measured") else "",
            _bar(ms / longest),
            _note(note),
        ]
        for name, ms, low, high, note in links
    ]
    return _table(f"Latency on {picked.device}", ["", "one image", "interval", "against predicted", "", ""], rows)


def _speed(speed: float | None) -> str:
    return "" if speed is None else f"the device ran at {speed:.2f} of its table's speed then, which is taken out"


def _accuracy(student: Student | None, exports: Sequence[Verification]) -> str:
    if student is None:
        return "<h2>Accuracy</h2><p>The network is not trained yet.</p>"
    rows = [["teacher", f"{student.teacher_test_accuracy:.2%}", ""], ["network, trained", f"{student.test_accuracy:.2%}", ""]]
    for found in exports:
        paired = found.links[-1].comparisons[0].accuracy if found.links else None
        if paired and found.verified:
            interval = f"95 % interval {100 * paired.drop_low:+.2f} to {100 * paired.drop_high:+.2f}"
            rows.append(
                [escape(found.file), f"{paired.accuracy_after:.2%}", _note(f"{100 * paired.drop:.2f} points lost, {interval}")]
            )
    return _table(f"Accuracy on {student.test_images} test images", ["", "right", ""], rows)


def _layers(arch: Architecture, predictor: LatencyPredictor) -> str:
    """Where the time goes: what every layer adds to the network's latency, as predicted."""
    blocks = zip(arch.space.blocks, arch.candidates, strict=True)
    layers = [(block.name, op, predictor.correction.op_ms(op, predictor.op_ms(op))) for block, own in blocks for op in own.ops]
    most = max(ms for *_, ms in layers)
    rows = [
        [
            escape(f"{block} {op.label}"),
            " x ".join(map(str, op.out_shape)),
            f"{op.macs / 1e6:.2f} M",
            f"{op.params / 1e3:.1f} k",
            f"{ms:.3f} ms",
            _bar(ms / most),
        ]
        for block, op, ms in layers
    ]
    return _table("Where the time goes", ["layer", "output", "multiply-adds", "parameters", "adds", ""], rows)


def _front(pick: Pick) -> str:
    drawn = pick.front.with_suffix(".png")
    if not drawn.exists():
        return ""
    data = base64.b64encode(drawn.read_bytes()).decode()
    return f'<h2>What other budgets would buy</h2><img alt="Pareto front" src="data:image/png;base64,{data}">'


def _export(found: Verification) -> str:
    """Every step of an export against the one before it."""
    links = [*found.links, *([found.on_device] if found.on_device else [])]
    rows = [
        [
            escape(f"{link.against} > {link.step}"),
            escape(f"{part.images} {part.about}"),
            str(part.batch),
            f"{part.top1_agreement:.2%}",
            f"{part.largest_difference:.2g}",
            "ok" if part.ok else "<b>failed</b>",
        ]
        for link in links
        for part in link.comparisons
    ]
    notes = [link.first_bad for link in links if link.first_bad]
    notes += [f"kept in float: {kept}" for link in links for kept in link.kept]
    notes += (
        [f"edge inputs left out, the network itself has no finite answer: {', '.join(found.left_out)}"] if found.left_out else []
    )
    notes += [f"written but not run: {found.not_run}"] if found.not_run else []
    columns = ["step", "on", "batch", "same class", "largest difference, of the logits' spread", ""]
    table = _table(f"{found.file}: each step against the one before", columns, rows)
    return table + "".join(f"<p>{escape(note)}</p>" for note in [*notes, f"SHA-256 {found.sha256}"])


def _origin(pick: Pick, predictor: LatencyPredictor) -> str:
    header = predictor.table.header
    device = ", ".join(f"{name} {value}" for name, value in header.environment.items() if value is not None)
    facts = {"latencies": header.source or predictor.table.path, "measured with": device, "run": pick.folder}
    return _table("Where it comes from", ["", ""], [[name, _note(str(value))] for name, value in facts.items() if value])


def _bar(share: float) -> str:
    return f'<div style="width:{100 * max(share, 0):.1f}%"></div>'


def _note(text: str) -> str:
    return f"<span>{escape(text)}</span>"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; bars and notes get cells of their own kind."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2>\n<table><tr>{head}</tr>\n{body}\n</table>"


def _cell(html: str) -> str:
    kind = {"<div": ' class="bar"', "<spa": ' class="note"'}.get(html[:4], "")
    return f"<td{kind}>{html}</td>"
