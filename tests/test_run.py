"""Run folders and ratings files: what is kept, found again, and refused."""

import dataclasses
import hashlib
import json
import os

import pytest

from dna_deploy.errors import RequestError, RunError
from dna_deploy.files import write_json
from dna_deploy.limits import Wanted
from dna_deploy.ratings import Rating, load_ratings, save_ratings
from dna_deploy.run import Asked, TeacherReport, find_pick, open_run

ASKED = Asked(
    teacher="t",
    teacher_weights=None,
    cut=[],
    data="some/where/cells",
    data_root=None,
    space="spaces/own.py",
    image_size=96,
    teacher_epochs=1,
    distill_epochs=2,
    distill_batch=16,
    rating_images=64,
    seed=0,
)


def test_a_run_is_named_after_what_was_asked_and_opened_again(workdir):
    run = open_run(None, ASKED)
    assert run.folder.as_posix() == "runs/cells-own-96px" and run.asked == ASKED
    assert open_run(None, ASKED) == run
    assert open_run("other", ASKED).folder.as_posix() == "runs/other"
    assert open_run("deep/other", ASKED).folder.as_posix() == "deep/other"


def test_a_run_of_which_nothing_was_made_may_be_asked_something_else(workdir):
    run = open_run("r", ASKED)
    run.split.write_text("{}")
    other = dataclasses.replace(ASKED, teacher="u")
    assert open_run("r", other).asked == other and not run.split.exists()


@pytest.mark.parametrize(("field", "value"), [("teacher", "u"), ("seed", 1), ("distill_epochs", 9), ("cut", ["a"])])
def test_a_run_of_something_else_is_refused(workdir, field, value):
    run = open_run("r", ASKED)
    run.teacher_report.write_text("{}")
    with pytest.raises(RunError, match=f"--{field.replace('_', '-')}.*choose another --run"):
        open_run("r", dataclasses.replace(ASKED, **{field: value}))


def test_a_folder_written_another_way_is_the_same(workdir):
    open_run("r", ASKED).teacher_report.write_text("{}")
    same = {"data": "./some/where/cells/", "space": "./spaces/own.py"}
    assert open_run("r", dataclasses.replace(ASKED, **same)).asked == ASKED
    assert dataclasses.replace(ASKED, data="elpv").unlike(dataclasses.replace(ASKED, data="./elpv")) == ["data"]  # ours


def test_a_teacher_whose_files_were_edited_is_refused(workdir):
    for file in ("own.py", "own.pth"):
        (workdir / file).write_text("as it was")
    run = open_run("r", dataclasses.replace(ASKED, teacher="own.py", teacher_weights="own.pth"))
    as_it_was = hashlib.sha256(b"as it was").hexdigest()
    assert run.asked.teacher_files == {"own.py": as_it_was, "own.pth": as_it_was} and ASKED.teacher_files == {}
    run.require_teacher()  # nothing was made of it yet
    report = TeacherReport(0.5, ["a"], [0.5] * 3, [0.5] * 3, [], "", run.asked.teacher_files)
    write_json(run.teacher_report, report)
    run.require_teacher()
    for file in ("own.py", "own.pth"):
        (workdir / file).write_text("otherwise")
        with pytest.raises(RunError, match=f"^{file}: was edited since runs/r was made with it; restore it, or .*--run NAME"):
            run.require_teacher()
        write_json(run.teacher_report, dataclasses.replace(report, sha256={}))  # as runs were kept before
        run.require_teacher()
        write_json(run.teacher_report, report)
        (workdir / file).write_text("as it was")
    (workdir / "own.pth").unlink()
    run.require_teacher()  # the run holds the weights


def test_a_run_keeps_the_precision_it_was_begun_in(workdir):
    run = open_run("r", ASKED)
    run.teacher_report.write_text("{}")
    run.decide(amp=False)
    assert open_run("r", ASKED).asked.amp is False  # what is not asked for is what was decided
    with pytest.raises(RunError, match="made with --no-amp, now asked with --amp; choose another --run"):
        open_run("r", dataclasses.replace(ASKED, amp=True))


def test_a_refusal_speaks_in_flags_there_are(workdir):
    open_run("r", ASKED).teacher_report.write_text("{}")
    for changed, said in (
        ({"fair": True}, "without --fair, now asked with --fair"),
        ({"cut": ["a", "b"]}, "without --cut, now asked with --cut a,b"),
        ({"teacher_weights": "w.pth"}, "without --teacher-weights, now asked with --teacher-weights w.pth"),
        ({"seed": 1}, "with --seed 0, now asked with --seed 1"),
    ):
        with pytest.raises(RunError, match=f"runs/r: was made {said}; choose another --run NAME"):
            open_run("r", dataclasses.replace(ASKED, **changed))


def test_a_file_is_no_run_folder(workdir):
    (workdir / "runs").mkdir()
    (workdir / "runs" / "afile").touch()
    for name in ("afile", "runs/afile/within"):
        with pytest.raises(RequestError, match=r"runs/afile.*: cannot be written \(Not a directory\); choose another folder"):
            open_run(name, ASKED)


def test_a_broken_run_file_is_named(workdir):
    run = open_run("r", ASKED)
    run.teacher_report.write_text("{}")
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(RequestError, match=r"run\.json: teacher"):
        open_run("r", ASKED)


def test_the_newest_pick_is_found(workdir):
    run = open_run("r", ASKED)
    with pytest.raises(RunError, match="run dna-search first"):
        find_pick(None)
    for age, name in enumerate(("cpu-2ms", "cpu-1.5ms", "pixel1-80ms")):
        (run.folder / name).mkdir()
        (run.folder / name / "pick.json").write_text("{}")
        os.utime(run.folder / name / "pick.json", (1000 - age, 1000 - age))
    assert find_pick(None).folder == find_pick("r").folder == run.pick_for([("cpu", 2.0)]).folder
    assert find_pick("runs/r/cpu-1.5ms").folder == run.pick_for([("cpu", 1.5)]).folder
    assert find_pick("runs/r/cpu-1.5ms").run == run
    with pytest.raises(RunError, match="there are: r"):
        find_pick("nope")


def test_what_was_trained_is_kept_when_another_network_is_picked(workdir):
    pick = open_run("r", ASKED).pick_for([("cpu", 2.0)])
    pick.folder.mkdir()
    pick.architecture.write_text("{}")
    pick.set_aside()
    assert not pick.aside  # nothing was trained of it
    for number, file in enumerate((pick.weights, pick.training), 1):
        file.write_text(f"training {number}")
        pick.set_aside()
        assert list(pick.folder.iterdir()) == [pick.architecture]  # the pick is here and there
        assert (pick.run.folder / f"cpu-2ms.{number}" / file.name).read_text() == f"training {number}"
    first, second = pick.aside
    pick.take_back(second)
    assert pick.training.read_text() == "training 2" and pick.aside == [first]


def test_many_pins_and_bans_name_a_folder(workdir):
    run = open_run("r", ASKED)

    def folder(*bans):
        pick = run.pick_for([("cpu", 2.0)], Wanted(bans=bans).texts)
        pick.folder.mkdir(exist_ok=True)
        return pick.folder.name

    assert folder("k5*", "b1=d1", "k5*") == folder("b1=d1", "k5*") == "cpu-2ms+ban-b1-d1+ban-k5"
    many = [f"b{block}.{layer}=k7e6" for block in range(1, 7) for layer in range(1, 5)]
    assert folder(*many) == folder(*many[::-1]) != folder(*many[:-1])


@pytest.fixture
def ratings(tiny):
    searched = [block for block in tiny.blocks if block.size > 1]
    everything = [(block, candidate) for block in searched for candidate in block.candidates]
    return [Rating(block.name, candidate.text, 0.1 + place, 0.2) for place, (block, candidate) in enumerate(everything)]


def test_ratings_come_back_in_the_order_of_the_candidates(tiny, ratings, tmp_path):
    save_ratings(tmp_path / "r.jsonl", ratings[::-1], tiny)
    found = load_ratings(tmp_path / "r.jsonl", tiny)
    assert found["b1"] + found["b2"] == ratings and set(found) == {"b1", "b2"}


def test_ratings_that_lack_something_are_refused(tiny, ratings, tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(RunError, match="no ratings there"):
        load_ratings(path, tiny)
    save_ratings(path, ratings[1:], tiny)
    with pytest.raises(RunError, match=r"no rating of .*d1: k3e3"):
        load_ratings(path, tiny)
    path.write_text(json.dumps({"schema": "other"}) + "\n")
    with pytest.raises(RunError, match="expected schema"):
        load_ratings(path, tiny)
    path.write_text("{")
    with pytest.raises(RunError, match="not JSON Lines"):
        load_ratings(path, tiny)
    path.write_text("[]\n")
    with pytest.raises(RunError, match="expected schema"):
        load_ratings(path, tiny)
    path.write_bytes(b"\xff")
    with pytest.raises(RunError, match="not JSON Lines"):
        load_ratings(path, tiny)
    save_ratings(path, [], tiny)
    header = path.read_text()
    for row in ('{"relative_l1": 1}', '{"block": "b1", "candidate": "x", "relative_l1": NaN}', "[]"):
        path.write_text(f"{header}{row}\n")
        with pytest.raises(RequestError, match="line 2"):
            load_ratings(path, tiny)


@pytest.mark.parametrize("width", [24, 64])  # between the layers of b1 and b2; of the head, which is not searched
def test_ratings_of_a_space_that_was_edited_are_refused(tiny, ratings, tmp_path, width):
    save_ratings(tmp_path / "r.jsonl", ratings, tiny)

    def wider(op):
        return dataclasses.replace(op, cin=op.cin + 8 * (op.cin == width), cout=op.cout + 8 * (op.cout == width))

    def edited(cell):
        return dataclasses.replace(cell, layers=tuple(tuple(map(wider, choices)) for choices in cell.layers))

    blocks = [dataclasses.replace(block, cells=tuple(map(edited, block.cells))) for block in tiny.blocks]
    other = dataclasses.replace(tiny, blocks=tuple(blocks))
    for one, wide in zip(tiny.blocks, other.blocks, strict=True):
        assert [candidate.text for candidate in one.candidates] == [candidate.text for candidate in wide.candidates]
    with pytest.raises(RunError, match="ratings of another tiny, which was edited since; choose another --run NAME") as caught:
        load_ratings(tmp_path / "r.jsonl", other)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    again = dataclasses.replace(tiny, blocks=tuple(dataclasses.replace(block) for block in tiny.blocks))
    assert load_ratings(tmp_path / "r.jsonl", again)
