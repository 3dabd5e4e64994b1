"""Latency tables: JSON Lines, one file a target, a header line and then one measured op or network a line.

A measured table grows by one `Visit` row for each visit as it is taken, so that an interrupted session loses nothing;
`compact` then gathers the visits of each op into one `Row`, which shows the figures to a reader and keeps every sample and
when it was taken.
What counts on loading are the samples. A `Published` row carries what others measured, of which only figures exist. A
`PredictedRow` says what the regressor makes of an op that was not measured; it never counts as measured, and is written
anew whenever more is.
"""

import errno
import json
import math
import os
import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from dna_deploy.errors import RequestError, TableError
from dna_deploy.files import alone, disk_errors, parse, write_atomic
from profilers import Device, Measurement, Visit, by_key, leveled_sessions, summarize_all

SCHEMA = "dna-deploy/latency-table/2"
PLACE = re.compile(r"\d{1,9}\.\d{1,9}")  # of a visit: its round and the place in it
CLOCK = "%Y-%m-%dT%H:%M:%SZ"
SHIPPED = Path(__file__).parent.parent / "latency_tables"
OWN = Path("latency_tables")  # in the folder the command runs in; in a checkout the two are one


@dataclass(frozen=True)
class Header:
    target: str  # the device's name
    about: str  # what was measured, for a reader
    device: dict[str, str | int | None]  # the Device it was measured on, or what is known of it
    environment: dict[str, str | int | float | None]  # what decides the numbers: a session in another one is refused
    source: str | None = None  # of a published table: where the numbers come from
    licence: str | None = None
    schema: str = SCHEMA


@dataclass(frozen=True)
class Session:
    """Rounds measured in one go; the visits from `first_round` on belong to it."""

    session: str  # when it began, UTC
    first_round: int
    anchors: list[str]
    conditions: dict[str, str | int | float | None]  # of the device as it began: load, temperature, battery


@dataclass(frozen=True)
class End:
    """How the session above ended, and what the device was like by then."""

    ended: str  # UTC
    why: str
    conditions: dict[str, str | int | float | None]


@dataclass(frozen=True)
class VisitRow:
    key: str
    round: int
    ns: list[int]


@dataclass(frozen=True)
class Row:
    """One op or network, its figures first (milliseconds), then its samples: {"round.place in it": nanoseconds of each run}."""

    key: str
    latency_ms: float
    low_ms: float
    high_ms: float | None  # None: fewer than six rounds, so no interval
    median_ms: float
    p90_ms: float
    n: int
    ns: dict[str, list[int]]


@dataclass(frozen=True)
class Published:
    key: str
    latency_ms: float
    std_ms: float | None
    n: int


@dataclass(frozen=True)
class PredictedRow:
    """An op that was not measured: what the regressor makes of it, with a 95 % interval."""

    key: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    measured: int  # ops of this device it was predicted from
    sources: list[str]  # other tables that helped


AnyRow = Session | End | VisitRow | Row | Published | PredictedRow


@dataclass(frozen=True)
class LatencyTable:
    """What is known of one target: a measurement for each key, an op's or a whole network's."""

    path: Path
    header: Header
    measurements: Mapping[str, Measurement]
    sessions: tuple[Session, ...] = ()
    visits: tuple[Visit, ...] = field(default=(), repr=False)  # in the order they were taken
    predicted: Mapping[str, PredictedRow] = field(default_factory=dict, repr=False)
    ends: tuple[End, ...] = ()
    interrupted: bool = False  # the last session was cut off before it had measured as long as it was to

    @property
    def name(self) -> str:
        """What it is called everywhere; two tables may be of one device."""
        return self.path.stem

    @property
    def published(self) -> bool:
        return self.header.source is not None

    @property
    def next_round(self) -> int:
        return 1 + max((visit.round for visit in self.visits), default=-1)

    def differs(self, environment: Mapping[str, str | int | float | None]) -> str | None:
        """What of the environment is not what the table was measured in: numbers of two do not mix. None: nothing."""
        before = self.header.environment
        names = sorted(name for name in {*before, *environment} if before.get(name) != environment.get(name))
        return f"measured with {names[0]} = {before.get(names[0])}, now it is {environment.get(names[0])}" if names else None

    @staticmethod
    def load(path: Path) -> "LatencyTable":
        header, rows = _read(path)
        sessions = tuple(row for row in rows if isinstance(row, Session))
        measurements: dict[str, Measurement] = {}
        gathered: set[str] = set()
        for row in rows:
            if isinstance(row, (Row, Published)):
                if row.key in gathered:
                    raise TableError(f"{path}: {row.key} stands there twice; keep one of the rows")
                gathered.add(row.key)
            if isinstance(row, Published):
                measurements[row.key] = _published(row)
        starts = sorted({0, *(session.first_round for session in sessions)})
        parts = [list(visits) for _, visits in groupby(_taken(path, rows), lambda visit: bisect(starts, visit.round))]
        visits = tuple(leveled_sessions(parts))
        measured = by_key(visits)
        if both := sorted(measured.keys() & measurements.keys()):
            raise TableError(f"{path}: {both[0]} is both measured and published there; keep one of the rows")
        measurements.update(summarize_all(visits))
        apart = [key for key, taken in measured.items() if all(math.isnan(visit.slowness) for visit in taken)]
        if lost := [key for key in apart if has_interval(measurements[key])]:
            raise TableError(
                f"{path}: {lost[0]} was measured in no session with a model of the first one: how fast the device was then is "
                "unknown; move that session's lines to a table of their own"
            )
        guesses = [row for row in rows if isinstance(row, PredictedRow)]
        predicted = {row.key: row for row in guesses if row.key not in measurements or not has_interval(measurements[row.key])}
        marks = [row for row in rows if isinstance(row, (Session, End))]
        ends = tuple(row for row in marks if isinstance(row, End))
        interrupted = bool(marks) and isinstance(marks[-1], Session)
        return LatencyTable(path, header, measurements, sessions, visits, predicted, ends, interrupted)


def anchors_of(sessions: Sequence[Session]) -> list[str]:
    """What all sessions of a table are compared by: the first one's anchors, which every later one measures again."""
    return sessions[0].anchors if sessions else []


def has_interval(found: Measurement) -> bool:
    """Published, or measured in enough rounds to say how sure it is: a reading of one round would mislead the search."""
    return found.rounds == 0 or math.isfinite(found.high_ms)


def find_table(name: str) -> Path:
    """The file of a table: `name` is a path, or a target in ./latency_tables or among the shipped ones."""
    if name.endswith(".jsonl"):
        if not Path(name).is_file():
            raise TableError(f"{name}: no such table")
        return Path(name)
    for folder in (OWN, SHIPPED):
        if (folder / f"{name}.jsonl").is_file():
            return folder / f"{name}.jsonl"
    known = ", ".join(sorted(tables())) or "none"
    raise TableError(f"no latency table for {name!r}; there are: {known}. Measure it: dna-profile --device {name}")


def tables() -> dict[str, Path]:
    """Every table there is, by target; one's own before a shipped one of the same name."""
    return {file.stem: file for folder in (SHIPPED, OWN) for file in tables_in(folder)}


def tables_in(folder: Path) -> list[Path]:
    """Its files, but for hidden ones: a compaction that was killed leaves such a one."""
    return sorted(folder.glob("[!.]*.jsonl"))


def create(path: Path, header: Header) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(_line(header), encoding="utf-8"))


@contextmanager
def appending(path: Path, header: Header | None = None) -> Iterator["Appender"]:
    """Append rows to the table at `path`, alone: a second process that tries is refused. Repairs a cut last line.

    With `header` a table that does not exist is made first, under the same lock: two that start at once make one.
    """
    if path.is_dir():
        raise TableError(f"{path}: a folder; give --table a file, such as {path / 'cpu.jsonl'}")
    if path.is_symlink():  # the lock and the new file belong beside the table itself
        path = path.resolve()
    with alone(path, "dna-profile"):
        with disk_errors(path):
            if header is not None and not path.exists():
                create(path, header)
            _mend_last_line(path)
            file = path.open("ab", buffering=0)
        with file:
            yield Appender(path, file)


@dataclass(frozen=True)
class Appender:
    path: Path
    _file: Any

    def add(self, row: AnyRow) -> None:
        """One row, in a single write, so that a kill leaves at most one cut line at the end."""
        with disk_errors(self.path):
            line = _line(row).encode()
            if self._file.write(line) != len(line):  # what fits of it is written; the next writer repairs that
                raise OSError(errno.ENOSPC, "No space left on device")

    def compact(self, predicted: Iterable[PredictedRow] = ()) -> None:
        """Gather the visits of each key into one row, in the order of first measurement; `predicted` replaces what was."""
        table = LatencyTable.load(self.path)
        _, rows = _read(self.path)
        lines = [_line(table.header), *(_line(row) for row in rows if isinstance(row, (Session, End, Published)))]
        samples: dict[str, dict[str, list[int]]] = {}
        for _, visits in groupby(table.visits, lambda visit: visit.round):
            for place, visit in enumerate(visits):
                samples.setdefault(visit.key, {})[f"{visit.round}.{place}"] = list(visit.ns)
        lines += [_line(_row(key, table.measurements[key], ns)) for key, ns in samples.items()]
        lines += [_line(row) for row in predicted]
        write_atomic(self.path, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def header_of(device: Device, environment: Mapping[str, str | int | float | None], about: str) -> Header:
    return Header(device.name, about, asdict(device), dict(environment))


def _line(row: Any) -> str:
    return json.dumps(asdict(row), separators=(", ", ": "), allow_nan=False) + "\n"


def _row(key: str, measured: Measurement, ns: dict[str, list[int]]) -> Row:
    figures = (measured.latency_ms, measured.low_ms, measured.high_ms, measured.median_ms, measured.p90_ms)
    latency, low, high, median, p90 = (None if ms == float("inf") else shown(ms) for ms in figures)
    assert latency is not None and low is not None and median is not None and p90 is not None
    return Row(key, latency, low, high, median, p90, measured.n, ns)


def shown(ms: float) -> float:
    """Six digits of it, however short the time: a nanosecond of a fast device is no zero."""
    return float(f"{ms:.6g}")


def _taken(path: Path, rows: Iterable[AnyRow]) -> list[Visit]:
    """Every visit, in the order they were taken."""
    found: dict[tuple[int, int], Visit] = {}
    for row in rows:
        if isinstance(row, VisitRow):
            found[row.round, len(found)] = Visit(row.key, row.round, tuple(row.ns))
        elif isinstance(row, Row):
            for when, ns in row.ns.items():
                round, place = map(int, when.split("."))
                if (round, place) in found:
                    raise TableError(f"{path}: {row.key} and {found[round, place].key} were both taken at {when}; keep one")
                found[round, place] = Visit(row.key, round, tuple(ns))
    return [found[when] for when in sorted(found)]


def _published(row: Published) -> Measurement:
    spread = 1.96 * row.std_ms / row.n**0.5 if row.std_ms is not None else float("inf")
    low, high = max(0.0, row.latency_ms - spread), row.latency_ms + spread
    return Measurement(row.latency_ms, low, high, row.latency_ms, float("nan"), row.n, 0)


def _read(path: Path) -> tuple[Header, list[AnyRow]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as a table ({getattr(error, 'strerror', None) or error})") from None
    if not text:
        raise TableError(f"{path}: the file is empty; delete it and profile again")
    lines = text.splitlines()
    found = _object(lines[0], f"{path}, line 1")
    if found.get("schema") != SCHEMA:
        raise TableError(f"{path}: schema {found.get('schema')!r}; this version reads {SCHEMA!r}: move it away and profile again")
    if not text.endswith("\n"):
        raise TableError(f"{path}, line {len(lines)}: cut off; run dna-profile on this table again, it repairs it and goes on")
    try:
        header = parse(Header, found, f"{path}, line 1")
        rows = [_typed(_object(line, f"{path}, line {n}"), f"{path}, line {n}") for n, line in enumerate(lines[1:], 2)]
    except TableError:
        raise
    except RequestError as error:
        raise TableError(str(error)) from None
    return header, rows


def _is_header(line: bytes) -> bool:
    return _is_json(line) and json.loads(line).get("schema") == SCHEMA


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _object(line: str, where: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise TableError(f"{where}: {constant[:20]} where a number is expected; remove the line and measure again")

    def whole(digits: str) -> int:
        if len(digits) > 18:  # of a nanosecond clock that has run for 30 years
            refuse(digits)
        return int(digits)

    try:
        found = json.loads(line, parse_constant=refuse, parse_int=whole)
    except json.JSONDecodeError as error:
        raise TableError(f"{where}: not JSON ({error.msg}); remove the line or restore the file") from None
    if not isinstance(found, dict):
        raise TableError(f"{where}: expected an object, got {line[:40]!r}")
    return found


def _typed(found: dict[str, Any], where: str) -> AnyRow:
    if "schema" in found:
        raise TableError(f"{where}: a second header, of {found.get('target')!r}; rows of two tables do not mix: keep two files")
    if "session" in found:
        return _require_time(parse(Session, found, where), found["session"], where)
    if "ended" in found:
        return _require_time(parse(End, found, where), found["ended"], where)
    if "predicted_ms" in found:
        guess = parse(PredictedRow, found, where)
        if not 0 < guess.low_ms <= guess.predicted_ms <= guess.high_ms:
            raise TableError(f"{where}: {guess.key} is predicted outside its own interval; expected 0 < low <= predicted <= high")
        return guess
    row: VisitRow | Row | Published
    if "round" in found:
        row = parse(VisitRow, found, where)
    else:
        row = parse(Row, found, where) if "ns" in found else parse(Published, found, where)
    if not isinstance(row, VisitRow) and row.latency_ms <= 0:
        raise TableError(f"{where}: {row.key} has latency_ms {row.latency_ms}; expected a positive number")
    if isinstance(row, Published):
        if row.n < 1 or (row.std_ms or 0) < 0:
            raise TableError(
                f"{where}: {row.key} has std_ms {row.std_ms} over n = {row.n} runs; expected null or >= 0, and n >= 1"
            )
        return row
    if isinstance(row, Row) and (odd := [when for when in row.ns if not PLACE.fullmatch(when)]):
        raise TableError(f"{where}: {row.key} was taken at {odd[0]!r}; expected a round and the place in it, such as 3.17")
    samples = [row.ns] if isinstance(row, VisitRow) else list(row.ns.values())
    if not samples or any(not ns or min(ns) <= 0 for ns in samples) or (isinstance(row, VisitRow) and row.round < 0):
        raise TableError(f"{where}: {row.key} has a negative round or a time of zero or less; expected positive nanoseconds")
    return row


def _require_time(row: AnyRow, time: str, where: str) -> AnyRow:
    try:
        datetime.strptime(time, CLOCK)
    except ValueError:
        raise TableError(f"{where}: {time!r} is no time; expected UTC such as 2026-11-23T20:15:00Z") from None
    return row


def _mend_last_line(path: Path) -> None:
    """End a last line that is whole, as an editor may leave it, and remove what a kill left of one that was being written:
    that visit was not finished. A file that is no table is left as it is, for `_read` to refuse."""
    with path.open("rb+") as file:
        content = file.read()
        head, _, _ = content.partition(b"\n")
        if _is_header(head) and not content.endswith(b"\n"):
            begins = content.rfind(b"\n") + 1
            if _is_json(content[begins:]):
                file.write(b"\n")
            else:
                file.truncate(begins)
            file.flush()
            os.fsync(file.fileno())
