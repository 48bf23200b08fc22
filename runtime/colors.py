"""The colours of a map: Spectral, as the reference uses it. Bands of rows stay in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.loops import Loops

_BAND = 2**17  # values that are worked on at once
_BLOCK = 2**15  # of them, where float64 is between

# ColorBrewer's 11-class Spectral, the anchors of matplotlib's map of that name (the reference's
# colours), red first.
_SPECTRAL = np.array(
    [
        [158, 1, 66],
        [213, 62, 79],
        [244, 109, 67],
        [253, 174, 97],
        [254, 224, 139],
        [255, 255, 191],
        [230, 245, 152],
        [171, 221, 164],
        [102, 194, 165],
        [50, 136, 189],
        [94, 79, 162],
    ],
    dtype=np.float64,
)


def spectral_table() -> NDArray[np.uint8]:
    """256 colours RGB uint8 [256,3], linear between the anchors of Spectral, red first."""
    position = np.linspace(0, len(_SPECTRAL) - 1, 256)
    channels = [
        np.interp(position, np.arange(len(_SPECTRAL)), _SPECTRAL[:, channel])
        for channel in range(3)
    ]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


Paint: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Gives values [H,W] or [H,W,3] their colours, RGB uint8 [H,W,3]."""


def spectral(
    bounds: tuple[float, float], *, red_is_high: bool, loops: Loops | None = None
) -> Paint:
    """The colours of values between `bounds`; red is the lower one and what lies below, or the
    higher one and what lies above. Needs Pillow.
    """
    ramp = _Ramp(*bounds, down=red_is_high)
    index_of = _quickest(ramp)
    compiled = loops if index_of == ramp.quick else None

    def paint(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        colors = np.empty((*values.shape, 3), np.uint8)
        if compiled is not None and values.dtype == np.float32:
            flat = np.ascontiguousarray(values).reshape(-1)
            compiled.colour(flat, ramp.start, ramp.steps, _table_in_words(), colors.reshape(-1))
            return colors
        from PIL import Image

        table = spectral_table().tobytes()
        for rows in bands(values, 2 * _BAND):
            index = Image.fromarray(_blocks(index_of, values[rows], np.uint8))
            index.putpalette(table)  # its palettes are several times as fast as an index of NumPy's
            colors[rows] = np.asarray(index.convert("RGB"))
        return colors

    return paint


def in_range(low: float, high: float, loops: Loops | None = None) -> Paint:
    """Red, green and blue of three values, from `low` (0) to `high` (255)."""
    start, steps = np.float32(low), np.float32(255 / (high - low))

    def paint(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        colors = np.empty(values.shape, np.uint8)
        if loops is not None and values.dtype == np.float32:
            loops.levels(np.ascontiguousarray(values).reshape(-1), start, steps, colors.reshape(-1))
            return colors
        for rows in bands(values):
            levels = values[rows] - start
            levels *= steps
            colors[rows] = np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
        return colors

    return paint


@functools.cache
def _table_in_words() -> NDArray[np.uint32]:
    """The colours as numbers; red is the lowest byte."""
    red, green, blue = spectral_table().T.astype(np.uint32)
    words: NDArray[np.uint32] = red | green << 8 | blue << 16
    return words


def ends(values: NDArray[np.float32]) -> tuple[float, float]:
    """The smallest and the largest value."""
    return float(values.min()), float(values.max())


def bands(values: NDArray[Any], size: int = _BAND) -> Iterator[slice]:
    """Some rows after the other, as many as stay in the cache."""
    step = max(1, size * len(values) // max(values.size, 1))
    for at in range(0, len(values), step):
        yield slice(at, at + step)


def scaled(
    values: NDArray[np.float32],
    low: float,
    high: float,
    top: int,
    kind: type[np.unsignedinteger[Any]],
    loops: Loops | None = None,
) -> NDArray[Any]:
    """The values in whole steps: 0 is `low` and below, `top` is `high` and above."""
    if loops is not None and kind is np.uint16 and values.dtype == np.float32:
        codes = np.empty(values.shape, np.uint16)
        flat = np.ascontiguousarray(values).reshape(-1)
        loops.steps16(flat, low, high - low, top, codes.reshape(-1))
        return codes

    def steps(values: NDArray[np.float32], out: NDArray[np.float64]) -> None:
        if (low, high) == (0, 1):  # which change nothing
            np.multiply(values, top, out=out, dtype=np.float64)
        else:
            np.subtract(values, low, out=out, dtype=np.float64)
            out /= high - low
            out *= top
        np.rint(out, out=out)
        if _reach_beyond(values, low, high):
            np.clip(out, 0, top, out=out)

    return _blocks(steps, values, kind)


_Steps = Callable[[NDArray[np.float32], NDArray[np.float64]], None]
"""Writes whole numbers for values into a float64 array of the same shape."""


@dataclass(frozen=True)
class _Ramp:
    """From values to the index of a colour, 0 to 255, from `low` to `high` or down from there."""

    low: float
    high: float
    down: bool

    @property
    def start(self) -> float:
        """The value of index 0."""
        return self.high if self.down else self.low

    @property
    def steps(self) -> float:
        """Of the index, for each 1 of the value."""
        steps = 255 / max(self.high - self.low, 1e-12)
        return -steps if self.down else steps

    def exact(self, values: NDArray[np.float32], out: NDArray[np.float64]) -> None:
        """As it is defined, step by step."""
        np.subtract(values, self.low, out=out, dtype=np.float64)
        out /= max(self.high - self.low, 1e-12)
        if self.down:
            np.subtract(1, out, out=out)
        out *= 255
        np.clip(out, 0, 255, out=out)
        np.rint(out, out=out)

    def quick(self, values: NDArray[np.float32], out: NDArray[np.float64]) -> None:
        """Rounded otherwise before it is rounded to whole numbers."""
        np.subtract(values, self.start, out=out, dtype=np.float64)
        out *= self.steps
        np.rint(out, out=out)
        if _reach_beyond(values, self.low, self.high):
            np.clip(out, 0, 255, out=out)


def _quickest(ramp: _Ramp) -> _Steps:
    """The quick formula where it is proved to answer the same as the exact one for every float32.

    Both rise, or fall, with the value. So they are the same where they are on both sides of every
    step: of two neighbours among `points` either both have one index, or no value lies between.
    """
    levels = ramp.low + (np.arange(255) + 0.5) / 255 * (ramp.high - ramp.low)
    middle = (levels[::-1] if ramp.down else levels).astype(np.float32)
    below, above = (np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf))
    around = np.concatenate([below, middle, above])
    points = np.unique(np.array([-np.inf, ramp.low, *around, ramp.high, np.inf], np.float32))
    exact, quick = np.empty((2, len(points)))
    ramp.exact(points, exact)
    ramp.quick(points, quick)
    steps = exact[1:] != exact[:-1]
    apart = np.nextafter(points[:-1], np.float32(np.inf)) != points[1:]
    same = np.array_equal(exact, quick) and not (steps & apart).any()
    return ramp.quick if same else ramp.exact


def _reach_beyond(values: NDArray[np.float32], low: float, high: float) -> bool:
    smallest, largest = ends(values)
    return not (low <= smallest and largest <= high)


def _blocks(steps: _Steps, values: NDArray[np.float32], kind: type[Any]) -> NDArray[Any]:
    """The steps of values as integers, in blocks of rows that stay in the cache."""
    codes = np.empty(values.shape, kind)
    work = None
    for rows in bands(values, _BLOCK):
        block = values[rows]
        if work is None or len(block) < len(work):
            work = np.empty(block.shape)
        steps(block, work)
        codes[rows] = work
    return codes
