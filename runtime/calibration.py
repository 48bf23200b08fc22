"""The unknown shift of a map out of the same picture's normals, in closed form; and the focal
length, if it must be.

On a plane n . P = D, so inverse depth w = (n . r) / D is linear in the pixel. Between neighbours on
one surface, with h = n . r at each of them and the same n,

    w1 / w0 = h1 / h0.

With depth ** power = scale * (d + offset), w is (d + offset) ** -power up to a factor. So the
unknown scale cancels, and with q = h ** -power

    (d1 + offset) q0 = (d0 + offset) q1,        offset (q1 - q0) = d1 q0 - d0 q1,

one equation for each pair of neighbours, linear in the one unknown. It is solved by iteratively
reweighted least squares. A wrong focal length leaves larger residuals, so it can be searched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.alignment import RELATIVE, Alignment, guess, relative
from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.geometry import Map, Mask, facing, normals_of, sides
from runtime.robust import Floats
from runtime.spaces import Space, find_space

_CELLS = 64  # along the longer edge: white noise kills differences between single pixels
_AGREE = 0.98  # cosine between the normals of neighbours on one surface
_FACING = -0.15  # n . r of a surface that is seen well enough
_LEAST_PAIRS = 30
_LARGEST_RATIO = 200.0  # of far to near (percentiles 99 and 1): beyond it the offset is not known
_MOST_BEHIND = 0.05  # share of the pixels that may come out as not in front of the camera
_MOST_TURNED = 35.0  # degrees: 42 on pictures that a network never learned, 8 to 31 on others
_JUMP = 0.1  # relative, between cells: across it no surface is seen
_SHALLOW_RATIO = 2.0  # of the guess where normals contradict the map: it cannot be trusted
_TUKEY = 4.0  # times the robust standard deviation
_STEPS = 40
_TELLING = 1e-3  # of `a`: head-on surfaces are as they are under any field of view
_FOVS = np.arange(30.0, 121.0, 2.0)
_SMALL = 0.1  # of the mean difference of neighbours
_NOTHING = 1e-3  # a difference of costs that rounding and averaging make
_STEEP = 1.5  # slopes beyond it count as it
_MIRRORED = -0.2  # correlation below which normals and map are mirrored to each other
_BLOCKS = 16  # what a network gets wrong is alike over a quarter of the picture's edges


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """`alignment` of a map by normals under a `camera`. `fov_error` is the uncertainty of a
    searched field of view in degrees (half the width of the residual's valley); None where the
    camera was given.
    """

    alignment: Alignment
    camera: Camera
    fov_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """offset * a = b for each pair of neighbours; `level` is the mean value of the pair."""

    a: Floats
    b: Floats
    level: Floats

    def where(self, kept: NDArray[np.bool_]) -> _Pairs:
        return _Pairs(a=self.a[kept], b=self.b[kept], level=self.level[kept])


def calibrate(
    values: Map,
    space: str,
    normals: Map,
    camera: Camera | None,
    mask: Mask | None = None,
) -> Calibration:
    """The shift of a map [H,W] from normals [H,W,3] in the camera frame.

    Without a camera the field of view is searched, from 30 to 120 degrees across the longer edge.
    Prefer to know it: weak networks do not give it away. `mask` [H,W]: pixels that count (no sky).
    Depth comes in units of its median.

    Where the normals do not determine a shift or contradict the map, the answer is the guess of
    `runtime.alignment.guess`, and its `fallback` says why. Raises: GeometryError for shapes that
    differ, and for a map or a mask that leaves nothing.
    """
    if normals.shape != (*values.shape, 3):
        raise GeometryError(
            f"normals [H,W,3] and map [H,W] are of one picture, found {list(normals.shape)} and "
            f"{list(values.shape)}"
        )
    counted = np.isfinite(values) & np.isfinite(normals).all(-1)
    if mask is not None:
        counted &= mask
    if not counted.any():
        raise GeometryError("no pixel of the map counts: the mask leaves none")
    kind, cells = find_space(space), _Cells.of(values, normals, counted)
    if camera is not None:
        return Calibration(
            alignment=_solve(values, counted, kind, cells, camera.at(*values.shape)),
            camera=camera.at(*values.shape),
        )
    degrees, error = _search(cells, kind)
    found = replace(
        Camera.from_fov(degrees), source=f"field of view searched: {degrees:.1f} +- {error:.1f}"
    ).at(*values.shape)
    alignment = _solve(values, counted, kind, cells, found)
    return Calibration(alignment=alignment, camera=found, fov_error=error)


def is_mirrored(values: Map, space: str, normals: Map) -> bool:
    """Whether the x of normals [H,W,3] in the camera frame points the wrong way for the map [H,W].

    Authors of networks differ in the side that x points to, and checkpoints do not say it; but a
    surface that looks to the right is farther away at its right. Judged is the correlation of the
    slope that normals say and of the map's, along rows, between neighbours on one surface.
    """
    cells = _Cells.of(values, normals, np.isfinite(values) & np.isfinite(normals).all(-1))
    first, last, normal, used = cells.neighbours(1)
    used &= normal[..., 2] < _FACING
    if used.sum() < _LEAST_PAIRS:
        return False
    said = np.clip((normal[..., 0] / -normal[..., 2])[used], -_STEEP, _STEEP)
    seen = (cells.values[last] - cells.values[first])[used] * find_space(space).power
    bound = 3 * np.sqrt(np.median(seen**2))
    seen = np.clip(seen, -bound, bound)
    sizes = float(np.sqrt((said**2).sum() * (seen**2).sum()))
    return bool((said * seen).sum() < _MIRRORED * sizes)


def _solve(values: Map, counted: Mask, space: Space, cells: _Cells, camera: Camera) -> Alignment:
    pairs = cells.pairs(camera, space)
    if len(pairs.a) < _LEAST_PAIRS or not (pairs.a**2).sum() > 1e-8 * len(pairs.a):
        return guess(
            np.where(counted, values, np.nan),
            space.name,
            reason=f"normals show too little slanted surface ({len(pairs.a)} pairs of neighbours)",
        )
    offset, inliers, _ = _fit(pairs)
    seen = values[counted].astype(np.float64)
    low, high = np.percentile(seen, [1, 99])
    # (high + offset) / (low + offset) is the ratio of far to near, for depth and for disparity.
    least = (high - _LARGEST_RATIO * low) / (_LARGEST_RATIO - 1)
    behind = float((seen + offset <= 0).mean())
    offset = max(offset, least)
    off = (pairs.a * offset - pairs.b)[inliers] / np.maximum(pairs.level[inliers] + offset, 1e-9)
    found = Alignment(
        space=space.name,
        scale=1.0,
        shift=offset,
        unit=RELATIVE,
        method="shift from normals",
        residual=float(np.median(np.abs(off))),
        inliers=int(inliers.sum()),
        candidates=len(inliers),
    )
    turned = cells.turned(found, camera)
    contradiction = ""
    if behind > _MOST_BEHIND or not high - low > 1e-6:
        contradiction = f"{behind:.0%} of it would lie behind the camera"
    elif not turned <= _MOST_TURNED:
        contradiction = f"they lie {turned:.0f} degrees from those of its depth in the median"
    kept = np.where(counted, values, np.nan)
    if contradiction:
        reason = f"the normals contradict the map: {contradiction}"
        return guess(kept, space.name, _SHALLOW_RATIO, reason)
    return replace(relative(kept, found), turned=turned)


def _fit(pairs: _Pairs, given: float | None = None) -> tuple[float, NDArray[np.bool_], float]:
    """The offset by Tukey's weights from an L1 start; which pairs count; the robust standard
    deviation of what is left, where it is not `given`.
    """
    a, b = pairs.a, pairs.b
    offset = float((a * b).sum() / (a * a).sum())
    sigma, weights = 0.0, np.ones_like(a)
    for step in range(_STEPS):
        off = np.abs(a * offset - b)
        sigma = given or max(1.4826 * float(np.median(off)), 1e-9)
        if step < _STEPS // 4:
            weights = 1 / np.maximum(off, 0.05 * sigma)
        else:
            weights = np.maximum(1 - (off / (_TUKEY * sigma)) ** 2, 0) ** 2
        before, offset = offset, float((weights * a * b).sum() / (weights * a * a).sum())
        if step > _STEPS // 4 and abs(offset - before) <= 1e-10 * max(abs(offset), 1):
            break
    return offset, weights > 0, sigma


def _search(cells: _Cells, space: Space) -> tuple[float, float]:
    """The field of view of the least robust residual, and half the width of its valley."""

    def telling(fov: float) -> _Pairs:
        pairs = cells.pairs(Camera.from_fov(fov), space)
        return pairs.where(np.abs(pairs.a) > _TELLING)

    def cost(fov: float) -> float:
        """What the best offset leaves, in squares of sigma, each below 1 (Geman and McClure)."""
        pairs = telling(fov)
        if len(pairs.a) < _LEAST_PAIRS:
            return np.inf
        off = (pairs.a * _fit(pairs, sigma)[0] - pairs.b) / sigma
        return float((off**2 / (1 + off**2)).mean())

    # One sigma for all, and none too small: where one plane fills half of the picture, any field
    # of view leaves nothing of it, and only the rest can tell.
    usual = [telling(fov) for fov in _FOVS[:: len(_FOVS) // 4]]
    spreads = [(_fit(pairs)[2], np.abs(pairs.b).mean()) for pairs in usual if len(pairs.a)]
    sigma = max((max(spread, _SMALL * size) for spread, size in spreads), default=1.0)
    costs = np.array([cost(fov) for fov in _FOVS])
    best = int(costs.argmin())
    if not np.isfinite(costs[best]):
        raise GeometryError(
            "the field of view cannot be searched: normals show too little slanted surface. Give it"
        )
    step = _FOVS[1] - _FOVS[0]
    low, high = _FOVS[max(best - 1, 0)], _FOVS[min(best + 1, len(_FOVS) - 1)]
    for _ in range(20):  # golden section
        third = 0.381966 * (high - low)
        left, right = low + third, high - third
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    degrees = float((low + high) / 2)
    inside = _FOVS[costs <= cost(degrees) * (1 + 1 / _BLOCKS) + _NOTHING]
    width = float(np.ptp(inside)) + step if len(inside) else step
    return degrees, width / 2


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """A map of `size` and its normals, averaged over cells of `edge` x `edge` pixels; `whole` are
    those all of whose pixels count.
    """

    values: Floats
    normals: Floats
    whole: NDArray[np.bool_]
    edge: int
    size: tuple[int, int]

    @classmethod
    def of(cls, values: Map, normals: Map, counted: Mask) -> _Cells:
        edge = max(1, round(max(values.shape) / _CELLS))
        height, width = (max(size // edge, 1) for size in values.shape)

        def mean(pixels: NDArray[Any]) -> Floats:
            cut = pixels[: height * edge, : width * edge]
            blocks = cut.reshape(height, edge, width, edge, *pixels.shape[2:])
            return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float64))

        unit = mean(np.where(counted[..., None], normals, 0))
        unit /= np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-9)
        return cls(
            values=mean(np.where(counted, values, 0)),
            normals=unit,
            whole=mean(counted) == 1,
            edge=edge,
            size=(values.shape[0], values.shape[1]),
        )

    def neighbours(
        self, axis: int
    ) -> tuple[tuple[slice, ...], tuple[slice, ...], Floats, NDArray[np.bool_]]:
        """Where the first and where the last cells of all pairs along an axis are, the unit normal
        between them, and which of them are whole and of one surface.
        """
        first, last = sides(self.values, axis)
        n0, n1 = self.normals[first], self.normals[last]
        normal = n0 + n1
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        same = ((n0 * n1).sum(-1) > _AGREE) & self.whole[first] & self.whole[last]
        return first, last, normal, same

    def turned(self, alignment: Alignment, camera: Camera) -> float:
        """The median angle in degrees between the normals and those of the aligned map."""
        depth = np.where(self.whole, alignment.depth(self.values), np.nan)
        camera = camera.at(*self.size).at(*depth.shape)
        cosine = (normals_of(depth, camera, _JUMP) * self.normals).sum(-1)
        used = np.isfinite(cosine) & (facing(self.normals, camera) > -_FACING)
        angles = np.degrees(np.arccos(np.clip(cosine[used], -1, 1)))
        return float(np.median(angles)) if len(angles) else np.inf

    def pairs(self, camera: Camera, space: Space) -> _Pairs:
        """All pairs of neighbours, side by side and one above the other."""
        a, b, level = [], [], []
        camera, (height, width) = camera.at(*self.size), self.values.shape
        x = ((np.arange(width) + 0.5) * self.edge - camera.cx) / camera.fx
        y = ((np.arange(height) + 0.5) * self.edge - camera.cy) / camera.fy
        rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], np.float64(1)), axis=-1)
        for axis in (1, 0):
            first, last, normal, used = self.neighbours(axis)
            h0, h1 = ((normal * rays[side]).sum(-1) for side in (first, last))
            used &= (h0 < _FACING) & (h1 < _FACING)
            q0, q1 = np.abs(h0[used]) ** -space.power, np.abs(h1[used]) ** -space.power
            mean = (q0 + q1) / 2
            q0, q1 = q0 / mean, q1 / mean
            d0, d1 = self.values[first][used], self.values[last][used]
            a.append(q1 - q0)
            b.append(d1 * q0 - d0 * q1)
            level.append((d0 + d1) / 2)
        return _Pairs(a=np.concatenate(a), b=np.concatenate(b), level=np.concatenate(level))
