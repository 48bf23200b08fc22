"""Samples of any depth as 8 bits, by one rule.

White is what the file says (`Samples.full`). Where it says nothing, or its samples go beyond what
it says, integers are taken to have the fewest bits that hold the largest of them: 8, 10, 12, 14,
16 or 24, or all that their type has. Cameras put 10, 12 and 14 bits into 16 and say so nowhere;
read as 16 bits they would be nearly black, and the answer for a black picture looks like an answer.
The price is that a truly dark picture of 16 bits is read too bright, so a guess is told. Floats lie
in [0, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError

_USUAL_BITS = (8, 10, 12, 14, 16, 24)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How samples become 8 bits: value * 255 / `white`, inverted or not. `note` tells a guess."""

    white: float
    inverted: bool = False
    note: str = ""

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Samples, any shape, as uint8, rounded to the nearest."""
        if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
            grey: NDArray[np.uint8] = self._table[values]
            return grey
        return self._eight_bits(values.astype(np.float64))

    @functools.cached_property
    def _table(self) -> NDArray[np.uint8]:
        return self._eight_bits(np.arange(2**16, dtype=np.float64))

    def _eight_bits(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        grey: NDArray[np.float64] = np.rint(np.minimum(values * (255 / self.white), 255))
        return (255 - grey if self.inverted else grey).astype(np.uint8)


def find_scale(
    bands: Iterable[NDArray[np.generic]], *, full: float | None = None, inverted: bool = False
) -> Scale:
    """The scale for samples that come in bands, `full` being what the file says white is.

    Raises: ImageError for NaN, infinite or negative samples, and floats beyond 1.
    """
    low, high = np.inf, -np.inf
    kind: np.dtype[Any] = np.dtype(np.uint8)
    for band in bands:
        kind = band.dtype
        # NaN goes through min and max, and then fails every comparison.
        low, high = np.minimum(low, band.min()), np.maximum(high, band.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("holds NaN or infinite pixels")
    floating = kind.kind == "f"
    white = float(full) if full is not None else 1.0
    if low < 0 or (floating and high > white):
        raise ImageError(
            f"pixels lie in [{low:g}, {high:g}], expected "
            f"[0, {f'{white:g}' if floating else 'the value of white'}] for {kind}"
        )
    if floating or (full is not None and high <= full):
        return Scale(white=white, inverted=inverted)
    most = np.iinfo(kind).max
    white = min((2**bits - 1 for bits in _USUAL_BITS if high < 2**bits <= most), default=most)
    note = (
        f"its pixels reach {high:g} of {most}, and nothing says what white is: read as "
        f"{int(white).bit_length()} bits"
        if white < most and high > 0
        else ""
    )
    return Scale(white=white, inverted=inverted, note=note)
