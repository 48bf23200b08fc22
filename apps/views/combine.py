"""From the depth of each view to one surface: what views confirm of each other, fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.views.check import count_agreeing, neighbours
from apps.views.fuse import Surface, fuse
from apps.views.solve import Solved
from runtime.errors import GeometryError
from runtime.geometry import Mask

TOLERANCE = 0.02
"""Relative difference of depth up to which two views agree."""
AGREE = 2
"""Views that must agree on a pixel; its own counts."""
_FOOTPRINT = 1.5  # voxels are as large as so many pixels at the median depth
_MOST_VOXELS = 512  # across the scene, where nobody chose; memory grows with the square
_FINEST = 1500  # voxels across the scene that may be chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class Combined:
    """The `views` that count, with the pixels that are confirmed (`masks`, each [H,W]) and the
    names of the views that each was compared with; why others do not count, by name; mesh and
    cloud, from voxels whose edge is `voxel`.
    """

    views: list[Solved]
    masks: list[Mask]
    compared: dict[str, list[str]]
    left_out: dict[str, str]
    mesh: Surface
    cloud: Surface
    voxel: float


def combine(
    views: Sequence[Solved],
    *,
    tolerance: float = TOLERANCE,
    agree: int = AGREE,
    voxel: float | None = None,
    island: int = 100,
    faces: int | None = None,
) -> Combined:
    """Check views against each other, and fuse what holds. `agree` 1 takes what one view says.

    Raises: GeometryError where nothing holds, and for a voxel that does not suit the scene;
    ModuleNotFoundError without Open3D.
    """
    edge = _voxel(views, voxel)
    names = [view.view.name for view in views]
    kept: list[Solved] = []
    masks: list[Mask] = []
    compared: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for view, near in zip(views, neighbours(views), strict=True):
        mask = count_agreeing(view, [views[other] for other in near], tolerance) >= agree
        if not mask.any():
            left_out[view.view.name] = (
                f"no pixel of it is confirmed: {agree} views must agree to {tolerance:.0%}, and it "
                f"was compared with {len(near)} others"
            )
            continue
        kept.append(view)
        masks.append(mask)
        compared[view.view.name] = [names[other] for other in near]
    if not kept:
        raise GeometryError(
            f"no view confirms another: {agree} views must agree to {tolerance:.0%}. Allow more "
            "with --tolerance, or take what one view says with --agree 1"
        )
    reach = 2 * tolerance * float(np.median([np.nanmedian(view.depth) for view in kept]))
    mesh, cloud = fuse(zip(kept, masks, strict=True), edge, reach, island, faces)
    return Combined(
        views=kept,
        masks=masks,
        compared=compared,
        left_out=left_out,
        mesh=mesh,
        cloud=cloud,
        voxel=edge,
    )


def _voxel(views: Sequence[Solved], given: float | None) -> float:
    """The edge of a voxel. Raises: GeometryError for one that does not suit the scene."""
    points = np.concatenate([view.points for view in views])
    low, high = np.percentile(points, [2, 98], axis=0)
    across = float(np.linalg.norm(high - low))
    if given is not None:
        if not across / _FINEST <= given <= across:
            raise GeometryError(
                f"--voxel {given:g} does not suit a scene that is {across:.3g} across: between "
                f"{across / _FINEST:.2g} and {across:.2g}"
            )
        return given
    footprint = np.median([np.nanmedian(view.depth) / view.camera.fx for view in views])
    return float(max(_FOOTPRINT * footprint, across / _MOST_VOXELS))
