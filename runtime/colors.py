"""The colours of a map: Spectral, as the reference uses it. Bands of rows stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BAND = 2**17  # values that are worked on at once

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


def spectral(
    values: NDArray[np.float32], low: float, high: float, *, red_is_high: bool
) -> NDArray[np.uint8]:
    """RGB uint8 [H,W,3] of values [H,W]; red is `low` and what lies below, or `high` and what lies
    above. Needs Pillow.
    """
    from PIL import Image

    colors = np.empty((*values.shape, 3), np.uint8)
    table, span = spectral_table().tobytes(), max(high - low, 1e-12)
    for rows in bands(values):
        unit = np.subtract(values[rows], low, dtype=np.float64)
        unit /= span
        if red_is_high:
            np.subtract(1, unit, out=unit)
        unit *= 255
        np.clip(unit, 0, 255, out=unit)
        index = Image.fromarray(np.rint(unit, out=unit).astype(np.uint8))
        index.putpalette(table)  # its palettes are several times as fast as an index of NumPy's
        colors[rows] = np.asarray(index.convert("RGB"))
    return colors


def bands(values: NDArray[Any]) -> Iterator[slice]:
    """Some rows after the other, as many as stay in the cache."""
    step = max(1, _BAND * len(values) // max(values.size, 1))
    for at in range(0, len(values), step):
        yield slice(at, at + step)


def scaled(
    values: NDArray[np.float32],
    low: float,
    high: float,
    top: int,
    kind: type[np.unsignedinteger[Any]],
) -> NDArray[Any]:
    """The values in whole steps: 0 is `low` and below, `top` is `high` and above."""
    codes = np.empty(values.shape, kind)
    for rows in bands(values):
        levels = np.subtract(values[rows], low, dtype=np.float64)
        levels /= high - low
        levels *= top
        np.rint(levels, out=levels)
        codes[rows] = np.clip(levels, 0, top, out=levels)
    return codes
