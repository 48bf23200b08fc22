"""Pages of weights that a vendor has mapped and packed for itself.

OpenVINO maps the file of weights, packs each into a copy of its own, and keeps the map beside it.
Until the last one is packed the file and the copies lie in memory together, twice the weights. But
what was packed is not read again, or can be read from the file once more. So the pages of the map
are dropped while it packs; the system still has them in its cache.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from runtime.there import exists

T = TypeVar("T")
Span = tuple[int, int]
"""First address of a map, and the one behind its last."""

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
_EVERY = 0.2  # seconds, in which some 0.2 GB are packed
_reading = threading.Lock()


def map_files(read: Callable[[], T], files: Iterable[Path]) -> tuple[T, list[Span]]:
    """What `read` answers, and where these files were mapped meanwhile; nowhere, where only Linux
    would tell.

    One thread reads at a time. Others that map these files in another way are not seen: of the maps
    take those that the answer holds (`holding`).
    """
    paths = {str(file.resolve()) for file in files}
    with _reading:
        before = {*_spans(paths)}
        answer = read()
        return answer, [span for span in _spans(paths) if span not in before]


def holding(spans: Iterable[Span], addresses: Iterable[int]) -> list[Span]:
    """Those of the maps in which one of the addresses lies."""
    held = [*addresses]
    return [(start, end) for start, end in spans if any(start <= each < end for each in held)]


@contextmanager
def giving_back(spans: Iterable[Span]) -> Iterator[None]:
    """Drop the pages of these maps again and again while the block lasts, and at its end.

    Whoever made the maps must hold them until then. The advice empties what lies at an address: of
    a map that only reads a file nothing is lost, but other memory in its place would be.
    """
    held = [*spans] if sys.platform == "linux" else []
    if not held:
        yield
        return
    done = threading.Event()

    def work() -> None:
        while not done.wait(_EVERY):
            _drop(held)

    thread = threading.Thread(target=work, daemon=True, name="lotus-edge: pages")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _drop(held)


def _spans(paths: set[str]) -> Iterator[Span]:
    if not exists(_MAPS):
        return
    for line in _MAPS.read_text().splitlines():
        span, rights, *_, path = [*line.split(maxsplit=5), ""][:6]
        if rights.startswith("r--") and path in paths:
            start, end = (int(edge, 16) for edge in span.split("-"))
            yield start, end


def _drop(spans: Iterable[Span]) -> None:
    for start, end in spans:
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _renew() -> None:
    """A forked child would wait for a thread that it does not have."""
    global _reading
    _reading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
