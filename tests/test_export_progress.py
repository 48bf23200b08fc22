"""Progress: one object, lines in a file, a bar on a terminal, and the time that is left."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator

import pytest

from export import progress
from export.progress import Progress, current, say, track


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def pass_between(self, items: range, seconds: float) -> Iterator[int]:
        for item in items:
            yield item
            self.now += seconds


def test_lines_carry_the_seconds_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(stream):
        say("first")
        clock.now = 61.25
        say("second")
    say("nobody listens")
    assert stream.getvalue() == "[   0.0 s] first\n[  61.2 s] second\n"


def test_what_takes_long_says_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(stream):
        items = track(range(10), "ranges")
        done = [item for item in items if not setattr(clock, "now", clock.now + 12)]
    assert done == list(range(10))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "[  12.0 s] ranges: 1 of 10 (10%), about 2 min left"
    assert lines[-1] == "[ 108.0 s] ranges: 9 of 10 (90%), about 12 s left"


def test_what_is_quick_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(stream):
        for _ in track(range(10), "quick"):
            clock.now += 0.5
    assert stream.getvalue() == ""


def test_items_without_a_length_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(stream):
        for _ in track(iter(range(3)), "images"):
            clock.now += 20
    assert [line[11:] for line in stream.getvalue().splitlines()] == ["images: 1", "images: 2"]


def test_a_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    with Progress(stream, bar=True):
        for _ in track(range(3), "ranges"):
            say("a line above the bar")
    assert "ranges:" in stream.getvalue()
    assert stream.getvalue().count("a line above the bar") == 3
    assert re.search(r"\d/3 \[", stream.getvalue())


def test_without_tqdm_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    stream = io.StringIO()
    with Progress(stream, bar=True):
        say("a device with NumPy alone")
        assert list(track([1, 2], "items")) == [1, 2]
    assert stream.getvalue() == "[   0.0 s] a device with NumPy alone\n"


def test_the_inner_one_is_in_force_and_a_thread_has_none() -> None:
    outer, inner = io.StringIO(), io.StringIO()
    with Progress(outer):
        with Progress(inner):
            say("inner")
        say("outer")
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert (outer.getvalue()[11:], inner.getvalue()[11:]) == ("outer\n", "inner\n")
    assert seen == [None]
