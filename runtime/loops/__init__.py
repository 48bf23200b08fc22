"""Loops over all pixels of a picture, compiled by Numba (extra `fast`) where it is installed.

They answer the bits of the plain ways, NumPy's and Pillow's, in a half of the time or less. To load
them takes a second (the first time, when they are compiled and kept, some seconds) and 120 MB. So a
process goes the plain ways until it has done as much work as that is worth, or knows that it will;
then a thread loads the loops, and compares them with the plain ways. `LOTUS_EDGE_LOOPS=0` leaves
them out. With `LOTUS_EDGE_DEBUG` it is said why there are none.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from runtime.console import say

Loop: TypeAlias = Callable[..., None]

OFF = "LOTUS_EDGE_LOOPS"
ENOUGH = 2**28
"""Pixels of passes that cost, the plain ways, what loading costs: those of a photo of 1920x1080 and
its map, 32 times.
"""


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
    """The loops, for one pass over so many pixels, of each channel of a map; None while they are
    not loaded, or never will be.
    """
    return _state.after(pixels)


def expect(pixels: int) -> None:
    """Passes over so many pixels are to come: where they are enough, load the loops meanwhile."""
    if pixels >= ENOUGH:
        _state.after(pixels)


def load() -> Loops | None:
    """Load them now, and wait for it; None where they cannot be had."""
    return _state.load()


class _State:
    def __init__(self) -> None:
        self._loops: Loops | None = None
        self._pixels = 0
        self.renew()

    def renew(self) -> None:
        """Nothing is being loaded, and no lock is held."""
        self._counting, self._loading = threading.Lock(), threading.Lock()
        self._tried = self._loops is not None

    def after(self, pixels: int) -> Loops | None:
        if self._loops is None and not self._tried:
            with self._counting:
                self._pixels += pixels
                start = self._pixels >= ENOUGH and not self._tried
                self._tried |= start
            if start:
                with contextlib.suppress(RuntimeError):  # no thread can be had
                    threading.Thread(target=self.load, name="lotus-loops").start()
        return self._loops

    def load(self) -> Loops | None:
        with self._loading:
            if self._loops is None and os.environ.get(OFF) != "0":
                self._tried = True
                try:
                    self._loops = _proved(_compiled())
                except Exception as error:  # the plain ways are always there
                    if os.environ.get("LOTUS_EDGE_DEBUG"):
                        say(f"without compiled loops: {type(error).__name__}: {error}")
        return self._loops


def _compiled() -> Loops:
    _go_on()
    from runtime.loops.code import SIGNATURES, compiled

    done: dict[str, Any] = {}
    for function in SIGNATURES:
        _go_on()
        done[function.__name__] = compiled(function)
    return Loops(**done)


def _proved(loops: Loops) -> Loops:
    """These loops, which answer what the installed Pillow and NumPy do on small pictures and maps.
    Raises: ValueError where they do not.
    """
    from runtime.loops.proof import differences

    _go_on()
    if found := differences(loops):
        raise ValueError(f"another answer than the plain way's: {', '.join(found)}")
    return loops


def _go_on() -> None:
    """Raises: RuntimeError where the program ends."""
    if not threading.main_thread().is_alive():
        raise RuntimeError("the program ends")


_state = _State()
if hasattr(os, "register_at_fork"):  # a child has no thread that would load them
    os.register_at_fork(after_in_child=_state.renew)
