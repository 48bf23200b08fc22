"""Another size for a float map: Pillow's arithmetic without what it takes to hand a map out.

That takes longer than the resize. The memory of a small map can be used itself (`runtime.pixels`).
A large one lies in several blocks; where it becomes larger, Pillow does the rows, which are few,
and columns are done in NumPy, or by compiled loops, and written once. Source: Pillow,
src/libImaging/Resample.c: rows first (their results rounded to float32), columns then, sums in
float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from runtime.loops import Loops
from runtime.pixels import memory_of

_ROWS = 8  # that are worked on at once


def enlarge(
    plane: NDArray[np.float32],
    out: NDArray[np.float32],
    box: tuple[float, float, float, float] | None = None,
    loops: Loops | None = None,
) -> None:
    """Write the float32 [h,w] `plane`, or what lies in `box` of it (left, top, right, bottom), into
    `out` [H,W], which `is_larger`. Needs Pillow.

    The values are those of `Image.resize` with BILINEAR, to the last bit where `is_pillows`, else
    but for rounding.
    """
    from PIL import Image

    height, width = out.shape
    left, top, right, bottom = box or (0, 0, plane.shape[1], plane.shape[0])
    size = (width, plane.shape[0])
    beside = (left, 0, right, plane.shape[0])
    wide = memory_of(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR, beside))
    if (top, bottom, height) == (0, plane.shape[0], plane.shape[0]):
        out[...] = wide
        return
    rows = _Taps.of(plane.shape[0], top, bottom, height)
    if loops is not None:
        loops.enlarge_columns(wide, rows.first, rows.second, rows.weight, rows.other, out)
        return
    exact = wide.astype(np.float64)
    # Rows that are made of the same two stay together: these two stay in the cache.
    changes = np.flatnonzero(np.diff(rows.first) | np.diff(rows.second)) + 1
    total, other = np.empty((2, _ROWS, width))
    for start, end in pairwise([0, *changes.tolist(), height]):
        first, second = exact[rows.first[start]], exact[rows.second[start]]
        for at in range(start, end, _ROWS):
            band = slice(at, min(at + _ROWS, end))
            some, more = total[: band.stop - at], other[: band.stop - at]
            np.multiply(first, rows.weight[band, None], out=some)
            np.multiply(second, rows.other[band, None], out=more)
            np.add(some, more, out=out[band], casting="same_kind")


def is_larger(
    shape: tuple[int, int],
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> bool:
    """Whether each pixel of a map of that `shape` (or `box` of it) becomes at least one of
    `height` x `width`; never of a box that is not within the map.
    """
    left, top, right, bottom = box or (0, 0, shape[1], shape[0])
    within = 0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]
    return within and right - left <= width and bottom - top <= height


@functools.cache
def is_pillows() -> bool:
    """Whether `enlarge` answers the bits of the installed Pillow. Compilers for ARM fuse its
    products with its sums, which rounds once where twice is meant. Needs Pillow.
    """
    from PIL import Image

    plane = np.random.default_rng(0).random((64, 64), np.float32)
    large = np.empty((700, 64), np.float32)  # where ARM rounds 5 of the 44,800 otherwise
    enlarge(plane, large)
    pillows = Image.fromarray(plane).resize((64, 700), Image.Resampling.BILINEAR)
    return np.array_equal(np.asarray(pillows), large)


@dataclass(frozen=True)
class _Taps:
    """For each pixel along an edge the two it is made of, and their weights.

    Beyond the edge `second` is the first again, with weight 0.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight: NDArray[np.float64]
    other: NDArray[np.float64]

    @classmethod
    def of(cls, size: int, start: float, end: float, length: int) -> _Taps:
        low, high = np.float32(start), np.float32(end)  # as Pillow takes a box
        center = float(low) + (np.arange(length) + 0.5) * (float(high - low) / length)
        first = np.maximum((center - 1.0 + 0.5).astype(np.int64), 0)
        last = np.minimum((center + 1.0 + 0.5).astype(np.int64), size) - 1
        # On a pixel's centre rounding may name three; the outer two then weigh nothing.
        first = np.where(last - first > 1, first + 1, first)
        weight = np.maximum(1.0 - np.abs(first - center + 0.5), 0.0)
        other = np.where(last > first, np.maximum(1.0 - np.abs(last - center + 0.5), 0.0), 0.0)
        total = weight + other
        return cls(
            first=first,
            second=np.maximum(last, first),
            weight=weight / total,
            other=other / total,
        )
