"""Files: atomic, strict, and one line where the disk is full."""

import errno
import os
from dataclasses import dataclass

import pytest

from dna_deploy.errors import MachineError, RequestError
from dna_deploy.files import read_json, sha256, write_atomic, write_json, write_text


@dataclass(frozen=True)
class Thing:
    name: str
    size: float | None


def test_json_reads_back(tmp_path):
    write_json(tmp_path / "deep" / "thing.json", Thing("a", 1.5))
    assert read_json(tmp_path / "deep" / "thing.json", Thing) == Thing("a", 1.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"name": "a"}', "size"),
        ('{"name": 1, "size": 2}', "name"),
        ('{"name": "a", "size": 1, "x": 1}', "x"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_wrong_json_names_the_field(tmp_path, text, says):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(RequestError, match=says) as caught:
        read_json(tmp_path / "t.json", Thing)
    assert "t.json" in str(caught.value) and "\n" not in str(caught.value)


@dataclass(frozen=True)
class Versioned:
    name: str
    schema: str = "thing/2"


def test_another_version_is_said_before_its_fields_are_read(tmp_path):
    (tmp_path / "t.json").write_text('{"name": "a", "added": 1, "schema": "thing/3"}')
    with pytest.raises(RequestError, match=r"t\.json: schema 'thing/3'; this version reads 'thing/2'"):
        read_json(tmp_path / "t.json", Versioned)


def test_a_file_written_anew_keeps_its_permissions(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
    (tmp_path / "a.txt").chmod(0o660)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o660


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match="disk is full"):
        write_atomic(file, fail)
    assert file.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_told_by_another_library_counts_too(tmp_path):
    def fail(temporary):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(MachineError, match="disk is full"):
        write_atomic(tmp_path / "a", fail)


@pytest.mark.parametrize("place", ["file/a.txt", "file/deep/a.txt", "folder", "/proc/1/dna/a.txt", f"{'x' * 300}/a.txt"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=r"cannot be written \(.+\); choose another folder") as answer:
        write_text(tmp_path / place, "x")
    assert "\n" not in str(answer.value) and sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_of_anothers_is_one_line(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(RequestError, match=r"cannot be written \(Permission denied\)"):
        write_text(tmp_path / "exports" / "a.txt", "x")


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
