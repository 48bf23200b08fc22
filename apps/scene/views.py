"""A picture of a cloud of coloured points from two sides, so that a person sees what came out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TURNS = (-30.0, 30.0)  # degrees around the vertical: from the left, from the right
_DOWN = 12.0  # degrees: a little from above
_BACK = 1.75  # times the distance of the middle: all of it is in view
_MOST = 400_000  # points
_LARGEST_DOT = 7  # pixels
_BACKGROUND = 236


def two_sides(
    points: NDArray[np.floating[Any]],
    colors: NDArray[np.uint8],
    spacing: float,
    fov: float,
    size: tuple[int, int] = (480, 640),
    normals: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.uint8]:
    """RGB uint8 [H,2W,3]: the points [N,3] with colours [N,3], seen from the left and the right.

    Points are in the frame of an upright camera at the origin: x right, y down, z forward.
    `spacing` is the distance between neighbouring points over their depth, `fov` the camera's field
    of view in degrees. With unit `normals` [N,3] only what faces the onlooker is drawn.
    """
    chosen = np.arange(0, len(points), -(-len(points) // _MOST) or 1)
    thinned = np.sqrt(len(points) / max(len(chosen), 1))
    cloud, colors = points[chosen].astype(np.float64), colors[chosen]
    facing = None if normals is None else normals[chosen].astype(np.float64)
    return np.concatenate(
        [_view(cloud, colors, spacing * thinned, fov, turn, size, facing) for turn in _TURNS],
        axis=1,
    )


def _view(
    cloud: NDArray[np.float64],
    colors: NDArray[np.uint8],
    spacing: float,
    fov: float,
    turn: float,
    size: tuple[int, int],
    normals: NDArray[np.float64] | None,
) -> NDArray[np.uint8]:
    height, width = size
    picture = np.full((height, width, 3), _BACKGROUND, np.uint8)
    if not len(cloud):
        return picture
    middle = np.percentile(cloud, [2, 98], axis=0).mean(axis=0)
    rotation = _rotation(turn, _DOWN)
    seen = (cloud - middle) @ rotation.T + [0, 0, _BACK * np.linalg.norm(middle)]
    focal = 0.5 * width / np.tan(np.radians(min(fov, 100)) / 2)
    kept = seen[:, 2] > 0.05 * np.linalg.norm(middle)
    if normals is not None:
        kept &= (normals @ rotation.T * seen).sum(1) < 0
    seen, source, colors = seen[kept], cloud[kept, 2], colors[kept]
    u, v = (
        np.floor(focal * seen[:, axis] / seen[:, 2] + half).astype(np.intp)
        for axis, half in ((0, width / 2), (1, height / 2))
    )
    dots = np.clip(np.ceil(1.2 * spacing * source / seen[:, 2] * focal), 1, _LARGEST_DOT)
    order = np.argsort(-seen[:, 2])  # far ones first: near ones are painted over them
    _paint(picture, u[order], v[order], dots[order].astype(np.intp), colors[order])
    return picture


def _paint(
    picture: NDArray[np.uint8],
    u: NDArray[np.intp],
    v: NDArray[np.intp],
    dots: NDArray[np.intp],
    colors: NDArray[np.uint8],
) -> None:
    """Squares of `dots` pixels around (u, v), in this order."""
    index = np.repeat(np.arange(len(u)), dots**2)
    within = np.arange(len(index)) - np.repeat(np.cumsum(dots**2) - dots**2, dots**2)
    edge = dots[index]
    x = u[index] + within % edge - edge // 2
    y = v[index] + within // edge - edge // 2
    inside = (x >= 0) & (x < picture.shape[1]) & (y >= 0) & (y < picture.shape[0])
    picture[y[inside], x[inside]] = colors[index[inside]]  # of several the last one stays


def _rotation(turn: float, down: float) -> NDArray[np.float64]:
    """What turns the scene so that it is seen from `turn` degrees to the right of its middle and
    `down` degrees above it.
    """
    a, b = np.radians(turn), np.radians(down)
    around = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    over = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.asarray(over @ around)
