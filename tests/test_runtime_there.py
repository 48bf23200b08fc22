"""What cannot be told is no "no": Python 3.14's `Path.exists` says so of anything it cannot see."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.files import ending
from runtime.there import exists, is_dir, is_file

QUESTIONS = (exists, is_file, is_dir)


def answers(path: Path) -> list[bool]:
    return [ask(path) for ask in QUESTIONS]


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("a", "file"), ("b", "."), ("c", "nothing"), ("d", "d")):
        (tmp_path / name).symlink_to(target)
    assert answers(tmp_path / "file") == answers(tmp_path / "a") == [True, True, False]
    assert answers(tmp_path) == answers(tmp_path / "b") == [True, False, True]
    assert answers(tmp_path / "pipe") == [True, False, False]
    for name in ("c", "d", "nothing", "file/below", "zero\0byte"):
        assert answers(tmp_path / name) == [False] * 3, name


@pytest.mark.parametrize("ask", QUESTIONS)
def test_what_cannot_be_told_is_an_error(
    ask: Callable[[Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="too long"):
        ask(tmp_path / ("x" * 300))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(PermissionError):
        ask(tmp_path)


def test_an_ending_is_the_same_under_each_python() -> None:
    names = ("a.b.PNG", "..png", "...png", ".png", "a.", "a", "d.x/a")
    assert [ending(Path(name)) for name in names] == [".PNG", ".png", ".png", "", "", "", ""]
