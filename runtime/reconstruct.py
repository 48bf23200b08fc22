"""From the maps of one picture to depth, points and a mesh in the camera's frame, in metres where
anything metric is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.alignment import Alignment, Anchors, align, guess
from runtime.calibration import calibrate, is_mirrored
from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.geometry import (
    EDGE,
    GRAZING,
    Map,
    Mask,
    Plane,
    edge_mask,
    find_floor,
    find_up,
    normals_of,
    sky_mask,
    unproject,
)
from runtime.refine import refine as fuse
from runtime.tasks import TASKS

_BY_HEIGHT = "scale from the camera's height"
Sky: TypeAlias = "Literal['auto', 'keep'] | Mask"


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """What can be seen, as N points: `positions` float32 [N,3] and unit `normals` float32 [N,3],
    both in the camera's frame, and the `rows` and `columns` [N] of their pixels.
    """

    positions: NDArray[np.float32]
    normals: NDArray[np.float32]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """Depth [H,W] in `alignment.unit`, NaN where it is not known or sky; `normals` [H,W,3] as
    predicted, else those of the depth. `edges` [H,W]: pixels that fly between two surfaces. `sky`
    [H,W]. All in the camera's frame. `up` [3] is the world's up and `floor` the floor, by the
    normals; None where none was found. `fov_error`
    is the uncertainty of a searched field of view in degrees; None where the camera was known.
    `refined`: whether depth and normals were fused. `mirrored`: the predicted normals had x to the
    other side, and were turned round.
    """

    depth: NDArray[np.float32]
    normals: NDArray[np.float32]
    edges: Mask
    sky: Mask
    camera: Camera
    alignment: Alignment
    task: str
    up: NDArray[np.float64] | None = None
    floor: Plane | None = None
    fov_error: float | None = None
    refined: bool = False
    mirrored: bool = False

    def points(self, stride: int = 1) -> Points:
        """The pixels that are no sky and no edges, of every `stride`-th row and column."""
        if stride < 1:
            raise GeometryError(f"a stride is 1, 2, 3, ..., found {stride}")
        kept = np.zeros(self.depth.shape, np.bool_)
        kept[stride // 2 :: stride, stride // 2 :: stride] = True
        rows, columns = np.nonzero(kept & ~self.edges & np.isfinite(self.depth))
        positions = unproject(self.depth, self.camera)
        return Points(
            positions=positions[rows, columns],
            normals=np.nan_to_num(self.normals[rows, columns]),
            rows=rows,
            columns=columns,
        )

    @property
    def upright(self) -> NDArray[np.float64]:
        """The rotation [3,3] that makes floors level: points @ upright.T has them across y. The
        identity where nothing tells what is level.
        """
        if self.up is None:
            return np.eye(3)
        up = np.array([0.0, -1.0, 0.0])
        axis, cosine = np.cross(self.up, up), float(self.up @ up)
        x, y, z = axis
        skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return np.asarray(np.eye(3) + skew + skew @ skew / (1 + cosine))


def reconstruct(
    maps: Mapping[str, Map],
    camera: Camera | None = None,
    *,
    search: bool = False,
    anchors: Anchors | None = None,
    camera_height: float | None = None,
    sky: Sky = "auto",
    refine: bool = False,
    edge: float = EDGE,
    grazing: float = GRAZING,
) -> Reconstruction:
    """Depth out of a picture's maps, by task (values as a prediction has them).

    Scale and shift come from the best that is known: `anchors` that determine both; else the shift
    from normals, if `maps` has them; else a guess, which is no measurement. The scale then comes
    from a single anchor or from `camera_height` over the floor, in metres; else the median depth
    is 1. `alignment` says which it was.

    `camera` None: with `search` the field of view is searched with the normals, else 60 degrees
    are assumed. `sky`: "auto" leaves out what is recognised, "keep" nothing, a mask [H,W] what it
    marks. `refine` fuses depth and normals. `edge` and `grazing` are those of
    `runtime.geometry.edge_mask`.

    Raises: GeometryError.
    """
    task = _task_of(maps)
    values, space = np.asarray(maps[task], np.float32), str(TASKS[task].space)
    normals, mirrored = _directions(maps, values, space)
    if normals is None and (refine or search):
        what = "refining" if refine else "searching the field of view"
        raise GeometryError(f"{what} needs normals: give a bundle that answers them too")
    if anchors is not None and camera_height is not None:
        raise GeometryError("give known distances or the camera's height, not both")
    known = _Known(values=values, space=space, normals=normals, camera=camera, search=search)
    alignment, lens, fov_error, masked = known.without_sky(anchors, sky)
    depth = np.where(masked, np.nan, alignment.depth(values)).astype(np.float32)
    if refine and normals is not None:
        depth = fuse(depth, normals, lens)
    shown = normals if normals is not None else normals_of(depth, lens)
    floor = _floor(depth, shown, lens, camera_height is not None)
    if camera_height is not None and floor is not None:
        factor = camera_height / floor.distance
        alignment = alignment.scaled(factor, "m", f"{_BY_HEIGHT}; {alignment.method}")
        depth = (depth * np.float32(factor)).astype(np.float32)
        floor = _floor(depth, shown, lens, True)
    return Reconstruction(
        depth=depth,
        normals=shown,
        edges=edge_mask(depth, lens, edge, grazing),
        sky=masked,
        camera=lens,
        alignment=alignment,
        task=task,
        up=find_up(shown),
        floor=floor,
        fov_error=fov_error,
        refined=refine,
        mirrored=mirrored,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    values: NDArray[np.float32]
    space: str
    normals: NDArray[np.float32] | None
    camera: Camera | None
    search: bool

    def without_sky(
        self, anchors: Anchors | None, sky: Sky
    ) -> tuple[Alignment, Camera, float | None, Mask]:
        """What `solve` answers with the sky left out, and the sky."""
        masked = sky if isinstance(sky, np.ndarray) else np.zeros(self.values.shape, np.bool_)
        if masked.shape != self.values.shape:
            raise GeometryError(
                f"the sky's mask is {list(masked.shape)}, the picture {list(self.values.shape)}"
            )
        alignment, camera, fov_error = self.solve(anchors, masked)
        if isinstance(sky, str) and sky == "auto" and not alignment.fallback:
            masked = sky_mask(alignment.depth(self.values), self.normals, camera)
            if masked.any():
                alignment, camera, fov_error = self.solve(anchors, masked)
        return alignment, camera, fov_error, masked

    def solve(
        self, anchors: Anchors | None, masked: Mask
    ) -> tuple[Alignment, Camera, float | None]:
        """Alignment, camera, and the uncertainty of its field of view in degrees if searched."""
        camera, fov_error = self.camera, None
        if camera is None and not self.search:
            camera = Camera.assumed()
        shape, found = None, None
        if anchors is not None and _determined(anchors):
            shape = align(np.where(masked, np.nan, self.values), self.space, anchors)
        if self.normals is not None and (shape is None or camera is None):
            found = calibrate(self.values, self.space, self.normals, camera, ~masked)
            camera, fov_error = found.camera, found.fov_error
            shape = shape or found.alignment
        camera = (camera or Camera.assumed()).at(*self.values.shape)
        if shape is None:
            shape = guess(np.where(masked, np.nan, self.values), self.space)
        if anchors is not None and not shape.metric:
            scaled = align(self.values, self.space, anchors, offset=shape.offset)
            how = f"{scaled.method}; {shape.method}"
            factor = float(np.nanmedian(scaled.depth(self.values) / shape.depth(self.values)))
            shape = shape.scaled(factor, scaled.unit, how)
        return shape, camera, fov_error


def _task_of(maps: Mapping[str, Map]) -> str:
    """The first task that says how far things are."""
    task = next((name for name in maps if TASKS[name].space is not None), None)
    if task is None:
        raise GeometryError(
            f"points need a map of depth or disparity, found {', '.join(maps)}: give a second "
            "bundle, or one that answers both"
        )
    return task


def _determined(anchors: Anchors) -> bool:
    """Whether known distances give both scale and shift: at least two that differ by 5 %."""
    depth = anchors.depth
    return len(depth) > 1 and float(depth.max()) > 1.05 * float(depth.min())


def _directions(
    maps: Mapping[str, Map], values: Map, space: str
) -> tuple[NDArray[np.float32] | None, bool]:
    """The map of directions in the camera's frame, None where there is none; and whether its x had
    to be turned round to fit the map `values`.
    """
    for name, vectors in maps.items():
        axes: Any = TASKS[name].axes
        if axes is not None:
            normals = np.asarray(vectors, np.float32) * np.array(axes, np.float32)
            mirrored = normals.shape[:-1] == values.shape and is_mirrored(values, space, normals)
            return (normals * np.array([-1, 1, 1], np.float32) if mirrored else normals), mirrored
    return None, False


def _floor(depth: Map, normals: Map, camera: Camera, needed: bool) -> Plane | None:
    try:
        return find_floor(unproject(depth, camera), normals)
    except GeometryError:
        if needed:
            raise
        return None
