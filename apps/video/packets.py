"""What films that are damaged, or joined without care, still give: packets up to the first that
cannot be read, and times that go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.backends.versions import numbers


def open_film(name: str, **options: Any) -> Any:
    """`av.open`, where words about the film may be no UTF-8: PyAV 19 takes them as they are, and
    earlier ones want to be told. Raises: av.FFmpegError, OSError, ValueError.
    """
    import av

    if numbers(av.__version__) < (19,):
        options["metadata_errors"] = "ignore"
    return av.open(name, **options)


def readable(packets: Iterator[Any], notes: list[str], what: str) -> Iterator[Any]:
    """The packets up to the first that cannot be read, of which a note says so; `what` they are."""
    import av

    try:
        yield from packets
    except av.FFmpegError as error:
        notes.append(f"{what} cannot be read to its end: {why(error)}")


def why(error: Exception) -> str:
    """FFmpeg's reason in words."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


_REORDERED = 5  # frames: a stream with wrong time stamps has its frames no further out of order


class Clock:
    """Brings the time stamps of frames into order, in units of their time base; `step` is the usual
    time between two. Frames without any get them from that, and of two equal ones the second moves.
    Where they jump back by more than frames are out of order, time goes on from there, and
    `jumped` is True.
    """

    def __init__(self, step: int) -> None:
        self._step, self._last, self._offset = step, -step, 0
        self.jumped = False

    def __call__(self, pts: int | None) -> int:
        """The time stamp of the next frame: later than all before, and not negative."""
        following = self._last + self._step
        now = following if pts is None else max(pts, 0) + self._offset
        if now < self._last - _REORDERED * self._step:
            self._offset += following - now
            self.jumped = True
            now = following
        self._last = max(now, self._last + 1)
        return self._last
