"""Loops over all pixels of a picture, compiled by Numba (extra `fast`) where it is installed.

They answer the bits of the plain ways, NumPy's and Pillow's, in a third of the time and less. To
load them takes half a second (the first time, when they are compiled and kept, some seconds) and
100 MB. So a process goes the plain ways until it has done as much work as that is worth; then a
thread loads the loops, and compares them with the plain ways. `LOTUS_EDGE_LOOPS=off` leaves them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Loop: TypeAlias = Callable[..., None]

VARIABLE = "LOTUS_EDGE_LOOPS"
ENOUGH = 2**26
"""Pixels that a process works on the plain ways: a photo of 1920x1080 and its map, eight times."""

_MANY = 16  # pictures of any size


@dataclass(frozen=True, kw_only=True)
class Loops:
    """The compiled functions of `runtime.loops.code`. They leave Python's lock to others."""

    shrink_rows: Loop
    shrink_columns: Loop
    normalise: Loop
    enlarge_columns: Loop
    colour: Loop
    steps16: Loop
    levels: Loop
    unit: Loop


def ready(pixels: int) -> Loops | None:
    """The loops, for one pass over so many pixels; None while they are not loaded, or never will
    be.
    """
    return _state.after(pixels)


def expect(pictures: int) -> None:
    """So many pictures are coming: where they are many, load the loops meanwhile."""
    if pictures >= _MANY:
        _state.after(ENOUGH)


def load() -> Loops | None:
    """Load them now, and wait for it; None where they cannot be had."""
    return _state.load()


class _State:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops: Loops | None = None
        self._pixels = 0
        self._tried = False

    def after(self, pixels: int) -> Loops | None:
        if self._loops is None and not self._tried:
            with self._lock:
                self._pixels += pixels
                start = self._pixels >= ENOUGH and not self._tried
                self._tried |= start
            if start:
                threading.Thread(target=self.load, name="lotus-loops").start()
        return self._loops

    def load(self) -> Loops | None:
        self._tried = True
        if self._loops is None and os.environ.get(VARIABLE) != "off":
            # Whatever does not fit in this installation: the plain ways are always there.
            with contextlib.suppress(Exception):
                loops = _compiled()
                if loops is not None and _agree(loops):
                    self._loops = loops
        return self._loops


def _compiled() -> Loops | None:
    """None where the program ends meanwhile."""
    import numba

    from runtime.loops.code import SIGNATURES

    done: dict[str, Any] = {}
    for function, signature in SIGNATURES.items():
        if not threading.main_thread().is_alive():
            return None
        try:
            done[function.__name__] = numba.njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # there is no folder to keep it in
            done[function.__name__] = numba.njit(signature, nogil=True)(function)
    return Loops(**done)


def _agree(loops: Loops) -> bool:
    """Whether they answer what the installed Pillow and NumPy do, on a small picture and map."""
    from runtime.loops.proof import differences

    return not differences(loops)


_state = _State()
