"""Depth and normals of one picture fused: flat walls become flat, floors meet them in a line.

On a surface, d log z / du = -n_x / (fx (n . r)) with the ray r, and so for rows. We look for
L = log z that minimises

    sum over neighbours  w (L1 - L0 - g)^2   +   lambda * sum over pixels (L - log z0)^2

with g by the normals and z0 the calibrated depth: a sparse, symmetric, positive definite system.
The weights w fall to 0 where L does not follow the normals (Geman and McClure): at depth edges, as
in Bilateral Normal Integration (Cao et al. 2022). They are renewed a few times.

The system is solved by conjugate gradients over its diagonal. (A multigrid cycle as preconditioner
took a quarter of the steps at 256x256, and the same time.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.geometry import Map, known
from runtime.robust import Floats

LARGEST = 512
"""Pixels of the longer edge that are worked on; a larger picture takes over the correction."""
_REACH = 0.16  # of the longer edge: as far as normals carry; the calibrated depth holds beyond
_SIGMA = 1.3  # over the longer edge: how far a step of log z may be from the normals'
_FACING = (0.05, 0.25)  # cosines from which on a surface is seen a little, and well
_AGREE = (0.8, 0.95)  # cosines between neighbours' normals: an edge, and one surface
_ROUNDS = 4
_ITERATIONS = 200
_TOLERANCE = 1e-6  # of log z, in the last step


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The system (data + Laplacian of the weights) x = b. `right` [H,W] joins a pixel with the next
    of its row, `down` with that below; the last column and the last row of them are zero.
    """

    data: Floats
    right: Floats
    down: Floats

    def apply(self, x: Floats) -> Floats:
        y = self.data * x
        flow = self.right[:, :-1] * np.diff(x, axis=1)
        y[:, 1:] += flow
        y[:, :-1] -= flow
        flow = self.down[:-1] * np.diff(x, axis=0)
        y[1:] += flow
        y[:-1] -= flow
        return y

    def diagonal(self) -> Floats:
        total = self.data + self.right + self.down
        total[:, 1:] += self.right[:, :-1]
        total[1:] += self.down[:-1]
        return np.maximum(total, 1e-30)


def refine(depth: Map, normals: Map, camera: Camera) -> NDArray[np.float32]:
    """Depth [H,W] in the same unit that agrees with the normals [H,W,3] of the camera frame.

    Pixels without depth stay without. Raises: GeometryError for shapes that differ and where no
    pixel has depth.
    """
    depth = known(depth)
    if normals.shape != (*depth.shape, 3):
        raise GeometryError(
            f"normals [H,W,3] and depth [H,W] are of one picture, found {list(normals.shape)} and "
            f"{list(depth.shape)}"
        )
    if np.isnan(depth).all():
        raise GeometryError("no pixel has depth")
    camera, edge = camera.at(*depth.shape), -(-max(depth.shape) // LARGEST)
    if edge == 1:
        return (depth * np.exp(_correction(depth, normals, camera))).astype(np.float32)
    rows, columns = (np.arange(edge // 2, size, edge) for size in depth.shape)
    small = _correction(
        depth[np.ix_(rows, columns)],
        normals[np.ix_(rows, columns)],
        _thinned(camera, edge, len(rows), len(columns)),
    )
    return (depth * np.exp(_enlarged(small, edge, depth.shape))).astype(np.float32)


def _correction(depth: Floats, normals: Map, camera: Camera) -> Floats:
    """What is added to log z, [H,W]; zero where there is no depth."""
    seen = np.isfinite(depth)
    start = np.log(np.where(seen, depth, np.nanmedian(depth)))
    longer = max(depth.shape)
    steps = _steps(normals, camera, seen)
    data = np.where(seen, 1 / (_REACH * longer) ** 2, 1e-12)
    x = start.copy()
    for _ in range(_ROUNDS):
        weights = []
        for axis, (step, trust) in zip((1, 0), steps, strict=True):
            off = (_ahead(x, axis) - step) * longer / _SIGMA
            weights.append(trust / (1 + off**2) ** 2)
        grid = _Grid(data=data, right=weights[0], down=weights[1])
        flow = np.zeros_like(x)
        for axis, (step, _), weight in zip((1, 0), steps, weights, strict=True):
            flow += _behind(weight * step, axis) - weight * step
        x = _solve(grid, data * start + flow, x)
    return np.where(seen, x - start, 0)


def _steps(normals: Map, camera: Camera, seen: NDArray[np.bool_]) -> list[tuple[Floats, Floats]]:
    """Along rows, then columns: the step of log z to the next pixel by the normals, and how far it
    is to be trusted, 0 to 1. Zero in the last column or row.
    """
    n = np.nan_to_num(np.asarray(normals, np.float64))
    x, y = camera.slopes()
    rays = np.stack(np.broadcast_arrays(x, y, np.float64(1)), axis=-1)
    answer = []
    for axis, component, focal in ((1, 0, camera.fx), (0, 1, camera.fy)):
        agreement = _next_to((n * np.roll(n, -1, axis)).sum(-1), axis)
        normal = n + np.roll(n, -1, axis)
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        ray = (rays + np.roll(rays, -1, axis)) / 2
        dot = -(normal * ray).sum(-1)
        cosine = dot / np.linalg.norm(ray, axis=-1)
        trust = _ramp(cosine, _FACING) * _ramp(agreement, _AGREE)
        trust *= _next_to((seen & np.roll(seen, -1, axis)).astype(np.float64), axis)
        step = _next_to(normal[..., component] / (focal * np.maximum(dot, _FACING[0])), axis)
        answer.append((step, trust))
    return answer


def _solve(grid: _Grid, wanted: Floats, x: Floats) -> Floats:
    """Conjugate gradients from a start x."""
    diagonal = grid.diagonal()
    left = wanted - grid.apply(x)
    better = left / diagonal
    direction, size = better.copy(), float((left * better).sum())
    for _ in range(_ITERATIONS):
        along = grid.apply(direction)
        curve = float((direction * along).sum())
        if not curve > 0:  # nothing is left
            break
        step = size / curve
        x = x + step * direction
        if step * np.abs(direction).max() < _TOLERANCE:
            break
        left -= step * along
        better = left / diagonal
        before, size = size, float((left * better).sum())
        direction = better + size / before * direction
    return x


def _ahead(x: Floats, axis: int) -> Floats:
    """The step to the next pixel; zero at the end."""
    return _next_to(np.roll(x, -1, axis) - x, axis)


def _behind(x: Floats, axis: int) -> Floats:
    """What the pixel before has; `x` is zero at the end."""
    return np.roll(x, 1, axis)


def _next_to(x: Floats, axis: int) -> Floats:
    """With zeros in the last column (axis 1) or row (axis 0), in place."""
    x[(slice(None), -1) if axis == 1 else -1] = 0
    return x


def _ramp(x: Floats, ends: tuple[float, float]) -> Floats:
    return np.clip((x - ends[0]) / (ends[1] - ends[0]), 0, 1)


def _thinned(camera: Camera, edge: int, height: int, width: int) -> Camera:
    """The camera of every `edge`-th pixel, from edge // 2 on."""
    first = edge // 2 + 0.5
    return Camera(
        fx=camera.fx / edge,
        fy=camera.fy / edge,
        cx=(camera.cx - first) / edge + 0.5,
        cy=(camera.cy - first) / edge + 0.5,
        height=height,
        width=width,
    )


def _enlarged(small: Floats, edge: int, shape: tuple[int, ...]) -> Floats:
    """Bilinear, from every `edge`-th pixel to all of them."""
    answer = small
    for axis in (0, 1):
        at = np.clip((np.arange(shape[axis]) - edge // 2) / edge, 0, small.shape[axis] - 1)
        low = np.minimum(at.astype(np.intp), max(small.shape[axis] - 2, 0))
        high = np.minimum(low + 1, small.shape[axis] - 1)
        part = np.expand_dims(at - low, 1 - axis)
        answer = np.take(answer, low, axis) * (1 - part) + np.take(answer, high, axis) * part
    return answer
