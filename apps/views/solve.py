"""From a view's maps to its depth in the unit of the model, by the sparse points that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.views.maps import Maps
from apps.views.model import Floats, View
from apps.views.pictures import Prepared
from runtime.alignment import Alignment, Anchors
from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.reconstruct import reconstruct

LEAST_POINTS = 10
"""Sparse points that a view needs on its picture."""
WORST_FIT = 0.2
"""Median relative error over its sparse points from which on a view is left out."""
_CELLS = 32  # along the longer edge: where points of a cloud hide each other
_HIDDEN = 1.05  # times the nearest depth of a cell: what is behind it is not seen


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """A view with depth float32 [H,W] along its axis in the unit of the model; NaN at edges, in
    the sky, and where it is not known. `points` [N,3] are the sparse points, of the world, that
    `alignment` was fitted to. `rgb` uint8 [H,W,3].
    """

    view: View
    rgb: NDArray[np.uint8]
    camera: Camera
    camera_from_world: Floats
    points: Floats
    depth: NDArray[np.float32]
    alignment: Alignment

    @property
    def center(self) -> Floats:
        """Where the camera stands in the world, [3]."""
        return np.asarray(-self.camera_from_world[:3, :3].T @ self.camera_from_world[:3, 3])


def solve(
    view: View, prepared: Prepared, maps: Maps, unit: str, tracked: bool, **options: Any
) -> Solved:
    """The depth of a view. `options` are those of `runtime.reconstruct.reconstruct`.

    Raises: GeometryError where it cannot be measured: too few sparse points, points that do not
    determine the shift, or that do not fit the map.
    """
    seen, kept = _seen(view.points, prepared, tracked)
    if len(seen) < LEAST_POINTS:
        raise GeometryError(
            f"{len(seen)} sparse points are on its picture, {LEAST_POINTS} are needed"
        )
    anchors = Anchors(u=seen[:, 0], v=seen[:, 1], depth=seen[:, 2], unit=unit)
    found = reconstruct(maps, prepared.camera, anchors=anchors, **options)
    alignment = found.alignment
    if alignment.fallback:
        raise GeometryError(f"its sparse points give no shift ({alignment.fallback})")
    if not alignment.residual < WORST_FIT:
        raise GeometryError(
            f"its map does not fit its {len(seen)} sparse points: off by {alignment.residual:.0%} "
            "in the median"
        )
    return Solved(
        view=view,
        rgb=prepared.rgb,
        camera=prepared.camera,
        camera_from_world=prepared.camera_from_world,
        points=kept,
        depth=np.where(found.edges, np.nan, found.depth).astype(np.float32),
        alignment=alignment,
    )


def _seen(points: Floats, prepared: Prepared, tracked: bool) -> tuple[Floats, Floats]:
    """(u, v, depth) [N,3] of the points that are on the picture, and their places [N,3] in the
    world. Of a cloud that does not say who sees what, those that hide behind others are left out.
    """
    height, width = prepared.rgb.shape[:2]
    seen = prepared.camera.project(_moved(points, prepared.camera_from_world))
    with np.errstate(invalid="ignore"):
        inside = (seen[:, 2] > 0) & (seen[:, :2] >= 0).all(1)
        inside &= (seen[:, 0] < width) & (seen[:, 1] < height)
    seen, points = seen[inside], points[inside]
    if not tracked and len(seen):
        cell = max(height, width) / _CELLS
        rows, columns = np.floor(seen[:, 1] / cell), np.floor(seen[:, 0] / cell)
        index = (rows * (_CELLS + 1) + columns).astype(np.intp)
        nearest = np.full(index.max() + 1, np.inf)
        np.minimum.at(nearest, index, seen[:, 2])
        front = seen[:, 2] <= _HIDDEN * nearest[index]
        seen, points = seen[front], points[front]
    return seen, points


def _moved(points: NDArray[Any], matrix: Floats) -> Floats:
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3], np.float64)
