"""Depth maps and cameras: points, normals, and which pixels to leave out.

All of it is in the camera frame: x right, y down, z forward; depth is z. Arrays are of one picture,
[H,W] or [H,W,3]. Where depth is not known it is NaN (zero, negative and infinite count as NaN).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.camera import Camera
from runtime.errors import GeometryError

Map = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

EDGE = 0.04
"""Relative jump of depth between neighbours that counts as an edge."""
GRAZING = 85.0
"""Degrees between ray and normal from which on a surface is not seen, but smeared over an edge."""


def unproject(depth: Map, camera: Camera) -> NDArray[np.float32]:
    """Points float32 [H,W,3] of a depth map [H,W]; NaN where depth is."""
    depth, (x, y) = known(depth), camera.at(*_size(depth)).slopes()
    points = np.empty((*depth.shape, 3), np.float32)
    points[..., 0], points[..., 1], points[..., 2] = x * depth, y * depth, depth
    return points


def known(depth: Map) -> NDArray[np.float64]:
    """Depth [H,W] with NaN where it is not positive and finite. Raises: GeometryError."""
    depth = np.asarray(depth, np.float64)
    _size(depth)
    with np.errstate(invalid="ignore"):
        return np.where((depth > 0) & np.isfinite(depth), depth, np.nan)


def normals_of(depth: Map, camera: Camera, edge: float = EDGE) -> NDArray[np.float32]:
    """Unit normals float32 [H,W,3] of a depth map, towards the camera; NaN where none is known.

    On a plane inverse depth is linear in the pixel: w = (n . r) / D with the ray r = (x, y, 1). So
    n is along (dw/dx, dw/dy, w - x dw/dx - y dw/dy), and exact on planes. A difference across an
    `edge` (relative) is left out where there is one on the other side.
    """
    camera = camera.at(*_size(depth))
    inverse, (x, y) = 1 / known(depth), camera.slopes()
    right = _slope(inverse, 1, edge) * camera.fx
    down = _slope(inverse, 0, edge) * camera.fy
    normals = np.stack([right, down, inverse - x * right - y * down], axis=-1)
    # n . r = w / |n|, which is positive; towards the camera it is negative.
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.asarray(-normals / length, np.float32)


def _slope(values: NDArray[np.float64], axis: int, edge: float) -> NDArray[np.float64]:
    """Differences to the neighbours on both sides, the mean of those without an edge."""
    step = np.diff(values, axis=axis)
    first, last = sides(values, axis)
    with np.errstate(invalid="ignore"):
        smooth = np.abs(step) <= edge * np.maximum(values[first], values[last])
    total, count = np.zeros_like(values), np.zeros_like(values)
    for side in (first, last):
        total[side] += np.where(smooth, step, 0)
        count[side] += smooth
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def sides(values: NDArray[Any], axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indexes of all but the last and of all but the first along an axis of an array [H,W,...]."""
    whole = [slice(None)] * 2
    first, last = whole.copy(), whole.copy()
    first[axis], last[axis] = slice(None, -1), slice(1, None)
    return tuple(first), tuple(last)


def facing(normals: Map, camera: Camera) -> NDArray[np.float64]:
    """The cosine [H,W] between each normal and the way back to the camera; 1 is seen head-on."""
    x, y = camera.at(*normals.shape[:2]).slopes()
    dot = normals[..., 0] * x + normals[..., 1] * y + normals[..., 2]
    length = np.linalg.norm(normals, axis=-1) * np.sqrt(x * x + y * y + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(-dot / length, np.float64)


def edge_mask(depth: Map, camera: Camera, edge: float = EDGE, grazing: float = GRAZING) -> Mask:
    """Pixels [H,W] that fly between a near and a far surface, or have no depth.

    Two signs: inverse depth bends, by more than `edge` of itself, from one side of the pixel to the
    other (on planes it is linear, however slanted, so a floor that runs away has no edges); or the
    surface is seen at more than `grazing` degrees from head-on, as what networks smear across an
    edge is.
    """
    inverse = 1 / known(depth)
    flies = np.isnan(inverse)
    for bend in _bends(inverse):
        with np.errstate(invalid="ignore"):
            flies |= np.abs(bend) > edge * inverse
    normals = normals_of(depth, camera, edge=np.inf)
    with np.errstate(invalid="ignore"):
        return np.asarray(flies | (facing(normals, camera) < np.cos(np.radians(grazing))))


def _bends(values: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Second differences along rows, columns and both diagonals; zero at the border."""
    padded = np.pad(values, 1, mode="reflect", reflect_type="odd")
    height, width = values.shape

    def moved(down: int, right: int) -> NDArray[np.float64]:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        yield moved(down, right) + moved(-down, -right) - 2 * values


def sky_mask(
    depth: Map,
    normals: Map | None = None,
    camera: Camera | None = None,
    ratio: float = 8.0,
    share: float = 0.01,
) -> Mask:
    """Pixels [H,W] of the sky in a calibrated map, in areas of at least `share` of the picture that
    reach its upper border.

    They have no depth, or more than `ratio` medians. With `normals` [H,W,3] and a camera also what
    is at the far end (1 % of the range of inverse depth) and whose normals, 45 degrees off or more,
    have nothing to do with its depth. Depth without a known shift has no such pixels: there nothing
    is far.
    """
    depth = known(depth)
    if np.isnan(depth).all():
        return np.zeros(depth.shape, np.bool_)
    with np.errstate(invalid="ignore"):
        far = np.isnan(depth) | (depth > ratio * float(np.nanmedian(depth)))
        if normals is not None and camera is not None:
            low, high = (1 / float(bound) for bound in (np.nanmax(depth), np.nanmin(depth)))
            agree = (normals_of(depth, camera) * normals).sum(-1) > np.cos(np.radians(45))
            far |= (1 / depth <= low + 0.01 * (high - low)) & ~agree
    reached = np.zeros_like(far)
    reached[0] = far[0]
    while True:  # a flood from the upper border; a row or a column at a time
        before = int(reached.sum())
        for axis in (0, 1):
            for flip in (1, -1):
                _sweep(
                    np.flip(reached, axis) if flip < 0 else reached,
                    np.flip(far, axis) if flip < 0 else far,
                    axis,
                )
        if int(reached.sum()) == before:
            break
    return reached if before >= share * far.size else np.zeros_like(far)


def _sweep(reached: Mask, open_: Mask, axis: int) -> None:
    """Carry `reached` onwards along an axis, in place, through what is open."""
    reached, open_ = (np.moveaxis(mask, axis, 0) for mask in (reached, open_))
    for line in range(1, len(reached)):
        reached[line] |= reached[line - 1] & open_[line]


_ENOUGH = 300_000  # pixels
_LEVEL = 0.97  # cosine: 14 degrees


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Points P with `normal` . P = -`distance`: unit normal [3] towards the camera, which is
    `distance` away. `pixels` of the picture lie on it, `residual` is their median relative distance
    from it.
    """

    normal: NDArray[np.float64]
    distance: float
    pixels: int
    residual: float


def find_floor(points: Map, normals: Map, tolerance: float = 0.03) -> Plane:
    """The floor: the lowest large level surface.

    What is level is told by the normals (`find_up`): they are better than depth at that. Of the
    heights of all pixels that face up, the lowest one that many share (within `tolerance`,
    relative) is the floor's.

    `points` and `normals` [H,W,3] in the camera frame, NaN where unknown. Raises: GeometryError
    where less than 2 % of the picture lies on such a plane.
    """
    points, normals, each = _thinned(points), _thinned(normals), _step(points) ** 2
    least = max(16, points.shape[0] * points.shape[1] // 50)
    usable = np.isfinite(points).all(-1) & np.isfinite(normals).all(-1)
    p, n = points[usable].astype(np.float64), normals[usable].astype(np.float64)
    up = find_up(normals)
    if up is not None:
        level = n @ up > _LEVEL
        below = -(p[level] @ up)  # how far below the camera
        below = np.sort(below[below > 0])
        # For each height, how many are within the tolerance of it.
        shared = np.searchsorted(below, below * (1 + tolerance)) - np.searchsorted(
            below, below * (1 - tolerance)
        )
        many = np.flatnonzero(shared >= max(least, 0.3 * shared.max(initial=0)))
        if len(many):
            lowest = below[many[-1]]
            near = many[below[many] >= lowest * (1 - 2 * tolerance)]
            distance = float(below[near[shared[near].argmax()]])
            inside = np.abs(below / distance - 1) < tolerance
            distance = float(np.median(below[inside]))
            return Plane(
                normal=up,
                distance=distance,
                pixels=int(inside.sum()) * each,
                residual=float(np.median(np.abs(below[inside] / distance - 1))),
            )
    raise GeometryError(
        "no floor was found: no level surface below the camera fills 2 % of the picture. Give a "
        "known distance instead of the camera's height"
    )


def find_up(normals: Map) -> NDArray[np.float64] | None:
    """The upward direction [3] of most normals [H,W,3] of floors and ceilings: within 45 degrees of
    the picture's up or down. None where less than 2 % of the picture agrees on one.
    """
    normals = _thinned(normals)
    least = max(16, normals.shape[0] * normals.shape[1] // 50)
    normals = normals[np.isfinite(normals).all(-1)].astype(np.float64)
    steep = np.abs(normals[:, 1]) > np.cos(np.radians(45))
    axes = normals[steep] * -np.sign(normals[steep, 1:2])  # ceilings look down
    if len(axes) < least:
        return None
    starts = axes[np.random.default_rng(0).permutation(len(axes))[:64]]
    up = starts[(axes @ starts.T > _LEVEL).sum(0).argmax()]
    for _ in range(10):  # the mean of what is near it
        up = axes[axes @ up > _LEVEL].mean(0)
        up /= np.linalg.norm(up)
    return np.asarray(up) if (axes @ up > _LEVEL).sum() >= least else None


def _step(pixels: Map) -> int:
    """Every which row and column of [H,W,3] is enough to know a plane."""
    return max(1, round(math.sqrt(pixels.shape[0] * pixels.shape[1] / _ENOUGH)))


def _thinned(pixels: Map) -> Map:
    return pixels[:: _step(pixels), :: _step(pixels)]


def _size(depth: NDArray[Any]) -> tuple[int, int]:
    if depth.ndim != 2 or min(depth.shape) < 2:
        raise GeometryError(f"a depth map is [H,W] of at least 2x2, found {list(depth.shape)}")
    height, width = depth.shape
    return height, width
