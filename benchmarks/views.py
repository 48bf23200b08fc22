"""Rendered rooms seen from twelve known poses: `python -m benchmarks.views [BUNDLE...]`.

Sparse points are drawn from the truth. With exact maps under an unknown affine change, and with
what bundles predict: how far the mesh lies from the true surface, in the size of the room (its
diagonal), how much of the surface it has, and how many pixels the views confirm of each other.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.scene.maps import ask
from apps.views.combine import combine
from apps.views.fuse import nearest
from apps.views.model import Lens, View
from apps.views.pictures import Prepared
from apps.views.solve import Solved, solve
from benchmarks.rows import parse_arguments, write_rows
from runtime import LotusEngine, LotusError
from runtime.camera import Camera
from runtime.extras import require
from tiny.around import Seen, render_around, room_size, sparse_points, world_points
from tiny.render import LOTUS_AXES

_SIZE = 256
_VIEWS = 12
_POINTS = 200  # drawn in each view
_NEAR = 0.03  # of the room's size


def main() -> int:
    """Measure, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--count", type=int, default=4, help="rooms: held-out seeds from 0 on")
    parser.add_argument("--name", default="views", help="of the file of rows")
    arguments = parse_arguments(parser)
    require("open3d")
    try:
        rows = [_measured("exact maps", [], arguments.count, refine=False)]
        for refine in (False, True) if arguments.bundles else ():
            name = "predicted maps" + (", refined" if refine else "")
            rows.append(_measured(name, arguments.bundles, arguments.count, refine=refine))
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in rows:
        print(row)
    print(write_rows(arguments.name, rows, dirty=arguments.dirty).name)
    return 0


def _measured(name: str, bundles: list[Path], count: int, *, refine: bool) -> dict[str, Any]:
    """The numbers of all rooms; medians over the rooms, and the worst."""
    rooms = []
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(LotusEngine(bundle)) for bundle in bundles]
        for seed in range(count):
            print(f"{name}: room {seed + 1}/{count}", file=sys.stderr)
            rooms.append(_room(seed, engines, refine))
    table = {key: np.array([room[key] for room in rooms]) for key in rooms[0]}
    return {
        "name": name,
        "rooms": count,
        "views": _VIEWS,
        "off": float(np.median(table["off"])),
        "off_worst": float(table["off"].max()),
        "behind": float(np.median(table["behind"])),
        "covered": float(np.median(table["covered"])),
        "confirmed": float(np.median(table["confirmed"])),
        "residual": float(np.median(table["residual"])),
        "left_out": int(table["left_out"].sum()),
    }


def _room(seed: int, engines: list[LotusEngine], refine: bool) -> dict[str, float]:
    """`off`: median distance of the mesh's vertices from the true surface, `behind`: its 90th
    percentile, `covered`: share of the true surface with mesh within 3 %; in sizes of the room.
    """
    views = [*render_around(seed, _VIEWS, _SIZE, _SIZE)]
    points, seen = sparse_points(views, _POINTS, seed)
    random = np.random.default_rng(seed)
    solved, left_out = [], 0
    for number, view in enumerate(views):
        if engines:
            answers = ask(engines, view.image)
            maps = {task: each.values for task, each in answers.items()}
        else:
            maps = _exact(view, random)
        try:
            solved.append(_solved(f"{number:02}", view, maps, points[seen[:, number]], refine))
        except LotusError as error:
            left_out += 1
            print(f"  view {number}: {error}", file=sys.stderr)
    found = combine(solved)
    truth = np.concatenate([world_points(view).reshape(-1, 3) for view in views])
    size = room_size(seed)
    off = nearest(found.mesh.vertices, truth) / size
    missing = nearest(truth[::23], found.mesh.vertices) / size
    known = sum(int(np.isfinite(view.depth).sum()) for view in found.views)
    return {
        "off": float(np.median(off)),
        "behind": float(np.percentile(off, 90)),
        "covered": float((missing < _NEAR).mean()),
        "confirmed": sum(int(mask.sum()) for mask in found.masks) / known,
        "residual": float(np.median([view.alignment.residual for view in found.views])),
        "left_out": left_out + len(found.left_out),
    }


def _exact(view: Seen, random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """The truth as a network might say it: disparity up to an unknown scale and shift."""
    scale, shift = float(np.exp(random.uniform(-2, 2))), float(random.uniform(-1, 1))
    values = ((1 / view.depth - shift) / scale).astype(np.float32)
    return {"disparity": values, "normal": view.normals * LOTUS_AXES}


def _solved(
    name: str,
    view: Seen,
    maps: dict[str, NDArray[np.float32]],
    points: NDArray[np.float64],
    refine: bool,
) -> Solved:
    camera = Camera.from_matrix(view.intrinsics, *view.depth.shape)
    pose = view.camera_from_world
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy)
    described = View(
        name=name,
        picture=Path(name),
        lens=Lens(model="PINHOLE", params=numbers),
        camera_from_world=pose,
        points=points,
    )
    prepared = Prepared(rgb=view.image, camera=camera, camera_from_world=pose)
    return solve(described, prepared, maps, "m", True, refine=refine)


if __name__ == "__main__":
    sys.exit(main())
