"""Which pixels other views confirm: seen from there, their points are as far as the map says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apps.views.model import Floats
from apps.views.solve import Solved
from runtime.geometry import Mask, unproject

_MOST = 16  # views that one is compared with
_ANGLE = np.radians(5)  # between two lines of sight: from here on two views tell much


def neighbours(views: Sequence[Solved]) -> list[list[int]]:
    """For each view those that look at its sparse points best: many of them, and from elsewhere.

    Each point counts by the angle between both lines of sight, up to 5 degrees: pictures from one
    place agree on anything.
    """
    answers = []
    for index, view in enumerate(views):
        scores = [0.0 if other is view else _shared(view, other) for other in views]
        best = sorted(range(len(views)), key=lambda other: -scores[other])[:_MOST]
        answers.append([other for other in best if scores[other] > 0 and other != index])
    return answers


def _shared(view: Solved, other: Solved) -> float:
    points = view.points
    u, v, z = _project(points, other)
    height, width = other.depth.shape
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    first, second = points[inside] - view.center, points[inside] - other.center
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = (first * second).sum(1) / np.maximum(lengths, 1e-300)
    return float(np.minimum(np.arccos(np.clip(cosine, -1, 1)) / _ANGLE, 1).sum())


def count_agreeing(view: Solved, others: Sequence[Solved], tolerance: float) -> NDArray[np.uint8]:
    """For each pixel [H,W] how many views say so: itself, and each of `others` in which the depth
    at its point is within `tolerance` (relative). 0 where it has no depth.
    """
    known = np.isfinite(view.depth)
    count = np.zeros(view.depth.shape, np.uint8)
    points = world_points(view, known)
    agreeing = np.ones(len(points), np.uint8)
    for other in others:
        u, v, z = _project(points, other)
        with np.errstate(invalid="ignore", divide="ignore"):
            agreeing += np.abs(_depth_at(other.depth, u, v) / z - 1) <= tolerance
    count[known] = agreeing
    return count


def world_points(view: Solved, chosen: Mask) -> Floats:
    """The points [N,3] of some pixels [H,W] in the world."""
    own = unproject(view.depth, view.camera)[chosen].astype(np.float64)
    turn, place = view.camera_from_world[:3, :3], view.camera_from_world[:3, 3]
    return np.asarray((own - place) @ turn)


def _project(points: Floats, view: Solved) -> tuple[Floats, Floats, Floats]:
    turn, place = view.camera_from_world[:3, :3], view.camera_from_world[:3, 3]
    u, v, z = view.camera.project(points @ turn.T + place).T
    return u, v, z


def _depth_at(depth: NDArray[np.float32], u: Floats, v: Floats) -> Floats:
    """Depth at (u, v), NaN outside, behind and beside what is not known. Between pixels inverse
    depth is linear, which is exact on planes.
    """
    height, width = depth.shape
    with np.errstate(invalid="ignore"):
        x, y = np.clip(u - 0.5, 0, width - 1), np.clip(v - 0.5, 0, height - 1)
        outside = ~((u >= 0) & (u < width) & (v >= 0) & (v < height))
    x, y = np.where(outside, 0, x), np.where(outside, 0, y)
    column = np.minimum(x.astype(np.intp), width - 2)
    row = np.minimum(y.astype(np.intp), height - 2)
    right, down = x - column, y - row
    inverse = 1 / depth.astype(np.float64)
    above = inverse[row, column] * (1 - right) + inverse[row, column + 1] * right
    below = inverse[row + 1, column] * (1 - right) + inverse[row + 1, column + 1] * right
    return np.asarray(np.where(outside, np.nan, 1 / (above * (1 - down) + below * down)))
