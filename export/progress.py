"""How far a build is: one object, found from anywhere by `say` and `track`, as logging is.

    with Progress(sys.stderr):
        say("tracing the graph")
        for image in track(images, "ranges", total=8):
            ...

On a terminal `track` draws a bar with the time that is left (tqdm). Elsewhere it writes a line when
it begins to take long, and one every few seconds after that. Without a Progress nothing is shown.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TextIO, TypeVar

_SECONDS_BETWEEN_LINES = 10.0
Item = TypeVar("Item")


class Progress:
    """Lines with the seconds since the start on `stream`; in force inside its `with` block."""

    def __init__(self, stream: TextIO, *, bar: bool | None = None) -> None:
        """`bar`: draw bars; None does so on a terminal, where tqdm is installed."""
        self._stream = stream
        self._bar_class = _tqdm() if (stream.isatty() if bar is None else bar) else None
        self._start = time.monotonic()
        self._token: contextvars.Token[Progress | None] | None = None

    def __enter__(self) -> Progress:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)

    def say(self, line: str) -> None:
        """Write one line; an open bar stays below it."""
        text = f"[{time.monotonic() - self._start:6.1f} s] {line}"
        if self._bar_class is not None:
            self._bar_class.write(text, file=self._stream)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def track(self, items: Iterable[Item], label: str, total: int | None) -> Iterator[Item]:
        """The items; shows `label`, how many are done and, with `total`, how long the rest takes.

        An item counts as done when the next one is asked for.
        """
        if self._bar_class is not None:
            bar = self._bar_class(
                items, desc=label, total=total, file=self._stream, leave=False, mininterval=0.5
            )
            yield from bar
            return
        start = last = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if done and now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                self.say(_line(label, done, total, now - start))
            yield item


def say(line: str) -> None:
    """A line on the Progress in force."""
    if (progress := _CURRENT.get()) is not None:
        progress.say(line)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """The items, tracked by the Progress in force; `total` is needed where they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    progress = _CURRENT.get()
    return items if progress is None else progress.track(items, label, total)


def current() -> Progress | None:
    """The Progress in force, for a thread of its own, which does not inherit it."""
    return _CURRENT.get()


def _line(label: str, done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"{label}: {done}"
    left = seconds / done * max(total - done, 0)
    return f"{label}: {done} of {total} ({done / total:.0%}), about {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _tqdm() -> Any:
    """tqdm's class, or None: a device that finishes a bundle has NumPy and TensorRT alone."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


_CURRENT: contextvars.ContextVar[Progress | None] = contextvars.ContextVar("progress", default=None)
