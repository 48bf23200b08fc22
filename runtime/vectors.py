"""Directions: their length, and the angles between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.colors import bands
from runtime.loops import Loops

_SHORTEST = np.float32(1e-6)  # a vector's length: a shorter one counts as this long


def unit_vectors(vectors: NDArray[np.float32], loops: Loops | None = None) -> NDArray[np.float32]:
    """[H,W,3] scaled to unit length; a zero vector stays zero."""
    unit = np.empty(vectors.shape, np.float32)
    planes = np.moveaxis(vectors, -1, 0)
    if loops is not None and planes.flags.c_contiguous and planes.dtype == np.float32:
        loops.unit(planes.reshape(3, -1), _SHORTEST, unit.reshape(-1, 3))
        return unit
    for rows in bands(vectors):
        x, y, z = np.moveaxis(vectors[rows], -1, 0)
        length = x * x
        length += y * y
        length += z * z
        np.maximum(np.sqrt(length, out=length), _SHORTEST, out=length)
        for index, plane in enumerate((x, y, z)):
            np.divide(plane, length, out=unit[rows, ..., index])
    return unit


def angles(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Degrees between vectors [...,3], exact for small angles too."""
    sine, cosine = np.linalg.norm(np.cross(first, second), axis=-1), (first * second).sum(-1)
    degrees: NDArray[Any] = np.degrees(np.arctan2(sine, cosine))
    return degrees
