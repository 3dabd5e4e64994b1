"""Tables: what is appended reads back, and what is broken is named with its line."""

import json
import math
import os
import shutil
import subprocess

import pytest

from dna_deploy.errors import RequestError, TableError
from dna_deploy.files import write_atomic
from dna_deploy.table import (
    SHIPPED,
    End,
    Header,
    LatencyTable,
    PredictedRow,
    Published,
    Session,
    VisitRow,
    appending,
    create,
    find_table,
    tables,
    tables_in,
)
from profilers import Visit, leveled, summarize_all

KEY = "conv(hw=8, cin=3, cout=4, kernel=1)"
HEADER = Header("board", "test", {"name": "board", "kind": "host"}, {"threads": 1})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "board.jsonl"
    create(path, HEADER)
    return path


def _fill(path, rounds=8):
    with appending(path) as out:
        out.add(Session("2026-01-01T00:00:00Z", 0, [KEY], {"load": 0.5}))
        for round in range(rounds):
            out.add(VisitRow(KEY, round, [1_000_000 + round, 1_100_000]))
            out.add(VisitRow("other", round, [2_000_000]))


def test_what_is_appended_reads_back_before_and_after_compacting(path):
    _fill(path)
    before = LatencyTable.load(path)
    with appending(path) as out:
        out.compact()
    after = LatencyTable.load(path)
    assert before.measurements == after.measurements
    assert before.sessions == after.sessions
    assert before.visits == after.visits
    assert len(path.read_text().splitlines()) == 4  # header, session, two rows
    row = json.loads(path.read_text().splitlines()[2])
    assert row["key"] == KEY and row["latency_ms"] == pytest.approx(1.0, abs=1e-3) and row["n"] == 16


def test_the_estimate_is_the_protocols(path):
    _fill(path)
    table = LatencyTable.load(path)
    ns = {KEY: lambda round: (1_000_000 + round, 1_100_000), "other": lambda round: (2_000_000,)}
    visits = [Visit(key, round, ns[key](round)) for round in range(8) for key in (KEY, "other")]
    assert table.measurements == summarize_all(leveled(visits))
    assert table.next_round == 8


def _sessions(path, *sessions):
    """A session a tuple: the keys measured, the anchors it names, how slow the machine is; every key truly takes 1 ms."""
    with appending(path) as out:
        for number, (keys, anchors, slow) in enumerate(sessions):
            out.add(Session("2026-01-01T00:00:00Z", 10 * number, anchors, {}))
            for round in range(10):
                for key in keys:
                    out.add(VisitRow(key, 10 * number + round, [int(1e6 * slow)] * 4))


def test_a_session_on_a_slower_machine_is_compared_by_what_both_measured(path):
    _sessions(path, (["a", "b", "c"], ["a"], 1.0), (["a", "d", "e", "f"], ["d", "e", "f"], 1.3))
    latencies = [found.latency_ms for found in LatencyTable.load(path).measurements.values()]
    assert latencies == pytest.approx([latencies[0]] * 6, rel=1e-6)


def test_a_session_without_any_model_of_the_first_is_refused_but_for_a_handful_of_visits(path):
    _sessions(path, (["a", "b"], ["a"], 1.0), (["d"], ["d"], 1.3))
    with pytest.raises(TableError, match=r"d was measured in no session with a model of the first one.*a table of their own"):
        LatencyTable.load(path)
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-5]))  # killed after 5 rounds: no interval, so nobody takes it for measured
    assert LatencyTable.load(path).measurements["d"].high_ms == math.inf


def test_published_rows_survive_compacting(path):
    with appending(path) as out:
        out.add(Published("a", 2.5, 0.1, 100))
        out.compact()
    assert json.loads(path.read_text().splitlines()[1]) == {"key": "a", "latency_ms": 2.5, "std_ms": 0.1, "n": 100}
    found = LatencyTable.load(path).measurements["a"]
    assert (found.low_ms, found.high_ms) == pytest.approx((2.5 - 0.0196, 2.5 + 0.0196))


def test_a_cut_last_line_is_named_and_repaired_by_the_next_writer(path):
    _fill(path)
    whole = path.read_text()
    path.write_text(whole[:-9])
    with pytest.raises(TableError, match=r"line 18: cut off; run dna-profile"):
        LatencyTable.load(path)
    with appending(path):
        pass
    assert path.read_text() == whole[: whole[:-9].rindex("\n") + 1]
    assert LatencyTable.load(path).measurements["other"].rounds == 7


def test_a_last_line_that_only_lacks_its_end_is_kept(path):
    """As some editors leave it."""
    _fill(path)
    whole = path.read_text()
    for text in (whole, whole.partition("\n")[0] + "\n"):
        path.write_text(text[:-1])
        with appending(path):
            pass
        assert path.read_text() == text


@pytest.mark.parametrize("text", ['{"a": 1}\n{"b": 2}', '{"a": 1}', "notes\nof mine", ""])
def test_a_file_that_is_no_table_is_refused_as_it_is(tmp_path, text):
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with appending(file), pytest.raises(TableError, match=r"schema None|not JSON|empty"):
        LatencyTable.load(file)
    assert file.read_text() == text


def test_a_session_killed_in_the_second_the_one_before_it_ended_is_interrupted(path):
    second = "2026-01-01T00:00:04Z"
    with appending(path) as out:
        for first_round in (0, 3):
            assert not LatencyTable.load(path).interrupted
            out.add(Session(second, first_round, [], {}))
            assert LatencyTable.load(path).interrupted
            out.add(End(second, "enough", {}))


ROW = '{"key": "a", "latency_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "median_ms": 1.0, "p90_ms": 1.0, "n": 1, "ns": %s}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"key": "a", "latency_ms": NaN, "std_ms": null, "n": 1}', "NaN where a number is expected"),
        ('{"key": "a", "latency_ms": -1, "std_ms": null, "n": 1}', "expected a positive"),
        ('{"session": "yesterday", "first_round": 0, "anchors": [], "conditions": {}}', "'yesterday' is no time"),
        ('{"ended": "2026-01-01T00:00:00", "why": "enough", "conditions": {}}', "expected UTC such as"),
        ('{"key": "a", "round": 0, "ns": [0]}', "zero or less"),
        ('{"key": "a", "round": 0, "ns": []}', "zero or less"),
        ('{"key": "a", "latency_ms": 1.0}', "std_ms"),
        ('{"key": "a", "latency_ms": 1.0, "std_ms": -0.1, "n": 9}', "std_ms -0.1 over"),
        ('{"key": "a", "latency_ms": 1.0, "std_ms": 0.1, "n": 0}', "n >= 1"),
        ('{"key": "a", "latency_ms": 1.0, "std_ms": null, "n": 1, "note": "x"}', "note"),
        ('{"key": "a", ', "not JSON"),
        ('["a"]', "expected an object"),
        ('{"key": "a", "round": 0, "ns": [NaN]}', "NaN where a number is expected"),
        ('{"key": "a", "latency_ms": 1e999, "std_ms": null, "n": 1}', "latency_ms"),
        ('{"key": "a", "round": 0, "ns": [-5]}', "zero or less"),
        ('{"key": "a", "round": 0, "ns": [1%s]}' % ("0" * 5000), "10000000000000000000 where a number is expected"),
        ('{"key": "a", "latency_ms": 1.0, "std_ms": 0.1, "n": 1%s}' % ("0" * 400), "where a number is expected"),
        ('{"key": "a", "latency_ms": 1%s, "std_ms": 0.1, "n": 1}' % ("0" * 400), "where a number is expected"),
        ('{"key": "a", "round": -1, "ns": [5]}', "a negative round"),
        (ROW % "{}", "zero or less"),
        (ROW % '{"0.0": []}', "zero or less"),
        (ROW % '{"a": [5]}', "taken at 'a'; expected a round and the place in it"),
        (ROW % '{"3": [5]}', "taken at '3'"),
        (ROW % '{"-1.0": [5]}', "taken at '-1.0'"),
        ('{"key": "a", "predicted_ms": 1.0, "low_ms": 2.0, "high_ms": 3.0, "measured": 20, "sources": []}', "own interval"),
        ('{"key": "a", "predicted_ms": 1.0, "low_ms": 0.5, "high_ms": 3.0, "measured": 20}', "sources"),
    ],
)
def test_a_broken_row_is_named_with_its_line(path, line, says):
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(TableError, match=says) as caught:
        LatencyTable.load(path)
    assert "line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_duplicates_another_schema_and_no_file_are_refused(path, tmp_path):
    row = json.dumps({"key": "a", "latency_ms": 1.0, "std_ms": None, "n": 1}) + "\n"
    good = path.read_text()
    path.write_text(good + row + row)
    with pytest.raises(TableError, match="twice"):
        LatencyTable.load(path)
    path.write_text(good.replace("latency-table/2", "latency-table/9"))
    with pytest.raises(TableError, match="this version reads"):
        LatencyTable.load(path)
    path.write_text("")
    with pytest.raises(TableError, match="empty"):
        LatencyTable.load(path)
    for what in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(TableError, match="cannot be read"):
            LatencyTable.load(what)


def test_two_tables_in_one_file_and_a_row_gathered_twice_are_refused(path):
    _fill(path)
    with appending(path) as out:
        out.compact()
    whole = path.read_text()
    other = json.dumps({**json.loads(whole.splitlines()[0]), "target": "phone"}) + "\n"
    path.write_text(whole + other + whole.splitlines()[2] + "\n")
    with pytest.raises(TableError, match=r"line 5: a second header, of 'phone'.*do not mix"):
        LatencyTable.load(path)
    path.write_text(whole + whole.splitlines()[2] + "\n")
    with pytest.raises(TableError, match=r"conv\(hw=8.*twice"):
        LatencyTable.load(path)


def test_two_rows_taken_at_the_same_moment_are_refused(path):
    _fill(path)
    with appending(path) as out:
        out.compact()
    path.write_text(path.read_text().replace('"3.1": [2000000]', '"3.0": [2000000]'))
    with pytest.raises(TableError, match=r"other and conv\(hw=8.* were both taken at 3\.0; keep one"):
        LatencyTable.load(path)


def test_a_predicted_row_stands_apart_from_what_was_measured(path):
    _fill(path)
    guess = PredictedRow("third", 2.0, 1.5, 2.5, 11, ["pixel1"])
    with appending(path) as out:
        out.compact([guess])
    table = LatencyTable.load(path)
    assert "third" not in table.measurements and table.predicted == {"third": guess}
    with appending(path) as out:
        out.compact()
    assert not LatencyTable.load(path).predicted


def test_how_a_session_ended_is_kept(path):
    _fill(path)
    with appending(path) as out:
        out.add(End("2026-01-01T00:02:00Z", "all 8 rounds are done", {"load": 1.5}))
        out.compact()
    (end,) = LatencyTable.load(path).ends
    assert end.conditions == {"load": 1.5} and end.why == "all 8 rounds are done"


def test_two_writers_at_once_are_refused(path):
    with appending(path), pytest.raises(RequestError, match="another dna-profile"), appending(path):
        pass


def test_a_link_to_a_table_stays_one_and_shares_its_lock(path, tmp_path):
    _fill(path)
    (tmp_path / "own").mkdir()
    link = tmp_path / "own" / "cpu.jsonl"
    link.symlink_to(path)
    with appending(link) as out:
        with pytest.raises(RequestError, match="another dna-profile"), appending(path):
            pass
        out.compact()
    assert link.is_symlink() and '"low_ms"' in path.read_text()


def test_what_a_killed_compaction_leaves_is_no_table(path):
    def kill(temporary):
        assert len(list(path.parent.glob("*.jsonl"))) == 2 and tables_in(path.parent) == [path]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, kill)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(TableError, match="a folder; give --table a file"), appending(tmp_path, HEADER):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(RequestError, match=r"cannot be written \(.+\); choose another folder"),
        appending(tmp_path / "file" / "t.jsonl"),
    ):
        pass


@pytest.fixture
def unwritable(path):
    """A table whose folder may be written and whose file may not, by root neither."""
    path.chmod(0o444)
    root = os.geteuid() == 0
    if root and (shutil.which("chattr") is None or subprocess.run(["chattr", "+i", path], capture_output=True).returncode):
        pytest.skip("root may write every file here")
    yield path
    if root:
        subprocess.run(["chattr", "-i", path], check=True)


def test_a_table_that_may_not_be_written_is_named(unwritable):
    with pytest.raises(RequestError, match=r"board\.jsonl: cannot be written \(.+\)"), appending(unwritable):
        pass


def test_tables_are_found_by_name_own_before_shipped(workdir):
    assert find_table("pixel1") == SHIPPED / "pixel1.jsonl"
    own = workdir / "latency_tables" / "pixel1.jsonl"
    create(own, HEADER)
    assert find_table("pixel1").resolve() == own
    assert tables()["pixel1"].resolve() == own
    with pytest.raises(TableError, match="dna-profile --device toaster"):
        find_table("toaster")
    with pytest.raises(TableError, match="no such table"):
        find_table("nowhere/x.jsonl")


def test_an_interval_needs_six_rounds(path):
    _fill(path, rounds=5)
    assert LatencyTable.load(path).measurements[KEY].high_ms == math.inf
    with appending(path) as out:
        out.compact()
    assert json.loads(path.read_text().splitlines()[2])["high_ms"] is None
