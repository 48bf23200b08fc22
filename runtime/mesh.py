"""A mesh out of a depth map: two triangles for each square of four neighbours on one surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import GeometryError
from runtime.geometry import Mask, unproject
from runtime.reconstruct import Reconstruction


@dataclass(frozen=True, kw_only=True, eq=False)
class Mesh:
    """`vertices` float32 [N,3] in the camera's frame with unit `normals` [N,3]; `faces` int64 [M,3]
    whose front is towards the camera; `rows` and `columns` [N]: the pixel of each vertex.
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    faces: NDArray[np.int64]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]


def build_mesh(found: Reconstruction, stride: int = 1, island: int = 100) -> Mesh:
    """The mesh of every `stride`-th row and column. No triangle spans an edge or the sky; parts of
    fewer than `island` triangles are left out.

    Raises: GeometryError where no triangle is left.
    """
    if stride < 1:
        raise GeometryError(f"a stride is 1, 2, 3, ..., found {stride}")
    bad = found.edges | ~np.isfinite(found.depth)
    rows, columns = (np.arange(stride // 2, size, stride) for size in bad.shape)
    squares = ~_any_within(bad, rows, columns)
    width = len(columns)
    first = (np.arange(len(rows) - 1)[:, None] * width + np.arange(width - 1))[squares]
    right, below = first + 1, first + width
    faces = np.concatenate(
        [np.stack([first, below, right], 1), np.stack([right, below, below + 1], 1)]
    )
    if island > 1 and len(faces):
        part = _parts(faces, len(rows) * width)[faces[:, 0]]
        faces = faces[np.bincount(part)[part] >= island]
    if not len(faces):
        raise GeometryError(
            "no surface is left for a mesh: everything is an edge, sky or too small an island"
        )
    used, faces = np.unique(faces, return_inverse=True)
    own_rows, own_columns = rows[used // width], columns[used % width]
    return Mesh(
        vertices=unproject(found.depth, found.camera)[own_rows, own_columns],
        normals=np.nan_to_num(found.normals[own_rows, own_columns]),
        faces=faces.reshape(-1, 3).astype(np.int64),
        rows=own_rows,
        columns=own_columns,
    )


def _any_within(bad: Mask, rows: NDArray[Any], columns: NDArray[Any]) -> Mask:
    """Whether any pixel is bad in each square between neighbouring rows and columns, corners too;
    [R-1,C-1].
    """
    total = np.zeros((bad.shape[0] + 1, bad.shape[1] + 1), np.int64)
    total[1:, 1:] = bad.cumsum(0).cumsum(1)
    top, bottom = rows[:-1, None], rows[1:, None] + 1
    left, right = columns[None, :-1], columns[None, 1:] + 1
    count = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return np.asarray(count > 0)


def _parts(faces: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """For each vertex the least vertex that is joined to it by faces; int64 [count]."""
    label = np.arange(count)
    first, last = (np.concatenate([faces[:, i], faces[:, j]]) for i, j in ((0, 1), (1, 2)))
    while True:
        least = np.minimum(label[first], label[last])
        before = label.copy()
        np.minimum.at(label, first, least)
        np.minimum.at(label, last, least)
        label = label[label]  # halves the way to the least one
        if np.array_equal(label, before):
            return label
