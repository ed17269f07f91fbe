"""Files are whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from deploykit.errors import OutputError
from deploykit.files import atomic_path, require_writable, write_text


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_and_its_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "whole")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "whole"
    assert everything(tmp_path) == ["a", "a/b", "a/b/c.txt"]


def test_a_failure_leaves_neither_file_nor_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a" / "b.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert everything(tmp_path) == []


def test_a_failure_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert everything(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left on device"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert everything(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.txt", Path("/proc/nowhere/a.txt"), tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            write_text(path, "text")
    assert everything(tmp_path) == ["file"]


def test_what_can_be_written_is_asked_without_writing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "old", tmp_path / "new", tmp_path / "a" / "b" / "c.html"):
        require_writable(path, "--html")
    assert everything(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"
    with pytest.raises(OutputError, match=r"old/c\.html: not a directory; choose another place with --html\."):
        require_writable(tmp_path / "old" / "c.html", "--html")
    with pytest.raises(OutputError, match=r"it is a folder; name a file with --html\."):
        require_writable(tmp_path, "--html")


def test_the_file_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
