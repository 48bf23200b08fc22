"""Another size for a photo, by Pillow or by loops that are several times as fast.

Source: Pillow, src/libImaging/Resample.c: rows first (their results rounded to 8 bits), columns
then, in whole numbers; a weight has 22 bits. Where far more rows go than columns, Pillow 13 does
the columns first; such a picture stays with Pillow.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.loops import Loops
from runtime.pixels import ONE_BLOCK, words_of

_ONE = 1 << 22
_LONGEST = 2**16  # pixels of an edge: of more the rounded weights may add up to more than white
_BAND = 2**18  # pixels of a picture in several blocks that are copied at once


def shrink(
    image: Image.Image, height: int, width: int, loops: Loops | None = None
) -> NDArray[np.uint8]:
    """An image of mode RGB at another size, antialiased: RGB uint8 [H,W,3].

    The values are those of `Image.resize` with BILINEAR, with `loops` too, on ARM as on x86.
    """
    if loops is None or max(*image.size, height, width) > _LONGEST:
        return _plain(image, height, width)
    across, down = _taps(image.width, width, 4), _taps(image.height, height, 1)
    too_narrow = across[1].shape[1] > image.width  # for four pixels at once
    if too_narrow or image.height - height > max(2 * (image.width - width), 0):  # columns first
        return _plain(image, height, width)
    rows = np.empty((image.height, width), np.uint32)
    try:
        if image.width * image.height <= ONE_BLOCK:
            loops.shrink_rows(words_of(image), *across, rows)
        else:
            step = max(1, _BAND // image.width)
            for top in range(0, image.height, step):
                bottom = min(top + step, image.height)
                band = image.crop((0, top, image.width, bottom))
                loops.shrink_rows(words_of(band), *across, rows[top:bottom])
    except ValueError:  # Pillow was told to hold rows apart (PILLOW_ALIGNMENT)
        return _plain(image, height, width)
    small = np.empty((height, width, 3), np.uint8)
    loops.shrink_columns(rows.view(np.uint8), *down, small)
    return small


def _plain(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


@functools.lru_cache(maxsize=32)
def _taps(size: int, length: int, multiple: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For each of `length` pixels the first of `size` that it is made of, and the weights of those
    from there on, [length,K] in 1/2^22; K is a multiple of `multiple`.
    """
    scale = size / length
    support = max(scale, 1.0)
    center = (np.arange(length) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size)
    most = multiple * math.ceil((last - first).max() / multiple)
    start = np.clip(first, 0, max(size - most, 0))  # what lies before the first weighs nothing
    taps = start[:, None] + np.arange(most)
    far = np.abs((taps - center[:, None] + 0.5) * (1.0 / support))
    used = (taps >= first[:, None]) & (taps < last[:, None])
    weights = np.where(used, np.maximum(1.0 - far, 0.0), 0.0)
    total = np.zeros(length)
    for column in weights.T:  # one after the other, as they are added there
        total += column
    return start, (0.5 + weights / total[:, None] * _ONE).astype(np.int32)
