"""`lotus-edge scene BUNDLE [BUNDLE2] --views MODEL --output DIR`: many pictures, one scene."""

from __future__ import annotations

import argparse
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.scene.maps import check_ensemble
from apps.views import files
from apps.views.combine import AGREE, TOLERANCE, Combined, combine
from apps.views.fuse import load_open3d
from apps.views.maps import MapStore
from apps.views.model import Model, View, read_model
from apps.views.pictures import prepare
from apps.views.report import check_free, describe, encode_report, line_of, previous_depths
from apps.views.solve import Solved, solve
from runtime.console import one_line, say, show
from runtime.engine import LotusEngine
from runtime.errors import GeometryError, ImageError
from runtime.extras import require
from runtime.writing import write_together

_SIZE = 640
_CAMERA = ("fov", "focal", "intrinsics", "sensor_width", "search_fov")
_OF_ONE_PICTURE = (*_CAMERA, "anchors", "distance", "camera_height", "stride")
_OF_VIEWS = ("images", "points", "voxel", "size", "tolerance", "agree", "metric")


def add_views(scene: argparse.ArgumentParser, image: argparse.Action) -> None:
    """The options of several views, for the command `scene`; `image` is its argument, which is not
    needed with them.
    """
    views = scene.add_argument_group(
        "several pictures with known poses",
        "A mesh and a cloud in the world of the model, in place of IMAGE and its scene.",
    )

    class Views(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
            namespace.views, image.required = values, False

    views.add_argument(
        "--views",
        action=Views,
        type=Path,
        metavar="MODEL",
        help="folder of a COLMAP model (or above sparse/0), or a transforms.json",
    )
    views.add_argument("--images", type=Path, metavar="DIR", help="the pictures of the model")
    views.add_argument(
        "--points", type=Path, metavar="PLY", help="sparse points for a transforms.json without any"
    )
    views.add_argument("--metric", action="store_true", help="the model is in metres")
    views.add_argument("--size", type=int, help=f"longer edge of each view's map ({_SIZE} pixels)")
    views.add_argument(
        "--tolerance", type=float, help=f"relative, up to which views agree ({TOLERANCE:g})"
    )
    views.add_argument(
        "--agree", type=int, help=f"views that must agree on a pixel, its own counts ({AGREE})"
    )
    views.add_argument("--voxel", type=float, help="edge of a voxel in the unit of the model")


def refuse_mixed(arguments: argparse.Namespace) -> None:
    """Refuse options of the other kind of scene. Raises: GeometryError."""
    several = arguments.views is not None
    for name in _OF_ONE_PICTURE if several else _OF_VIEWS:
        if getattr(arguments, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise GeometryError(
                f"{option} is for one picture: with --views the model has the cameras and the scale"
                if several
                else f"{option} is for several pictures: name their model with --views"
            )


@dataclass(kw_only=True)
class _Run:
    """What is known so far: the views that count, and why others do not, by their names."""

    model: Model
    unit: str
    solved: list[Solved] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def views_scene(arguments: argparse.Namespace) -> int:
    """Run the command. Raises: LotusError; ModuleNotFoundError for a package of the extra."""
    require("trimesh")
    load_open3d()  # before any work
    size, tolerance, agree = _settings(arguments)
    model = read_model(arguments.views, arguments.images, arguments.points)
    check_free(arguments.output, model.known_by, arguments.overwrite)
    run = _Run(model=model, unit="m" if arguments.metric else "unit of the model")
    _solve_all(run, arguments, size)
    combined = combine(
        run.solved,
        tolerance=tolerance,
        agree=agree,
        voxel=arguments.voxel,
        island=arguments.island,
        faces=arguments.faces,
    )
    run.left_out |= combined.left_out
    settings = {
        "size": size,
        "tolerance": tolerance,
        "agree": agree,
        **{name: getattr(arguments, name) for name in ("refine", "ensemble", "tiles", "sky")},
    }
    rows = _write(run, combined, settings, arguments)
    for name, row in rows.items():
        show(one_line(f"{name}: {line_of(row)}"))
    show(
        f"{len(combined.views)} of {len(rows)} views, triangles {len(combined.mesh.faces):,}, "
        f"points {len(combined.cloud.vertices):,}, voxels of {combined.voxel:.3g}; unit: {run.unit}"
    )
    show(str(arguments.output))
    return 0


def _settings(arguments: argparse.Namespace) -> tuple[int, float, int]:
    """Size, tolerance and agree, with their defaults. Raises: GeometryError."""
    size = _SIZE if arguments.size is None else arguments.size
    tolerance = TOLERANCE if arguments.tolerance is None else arguments.tolerance
    agree = AGREE if arguments.agree is None else arguments.agree
    if size < 32:
        raise GeometryError(f"--size is at least 32 pixels, found {size}")
    if not 0 < tolerance < 1:
        raise GeometryError(f"--tolerance is a share between 0 and 1, found {tolerance}")
    if agree < 1:
        raise GeometryError(f"--agree is a number of views from 1 on, found {agree}")
    if arguments.voxel is not None and not 0 < arguments.voxel < math.inf:
        raise GeometryError(f"--voxel is a positive number, found {arguments.voxel}")
    if arguments.sky not in ("auto", "keep"):
        raise GeometryError("--sky is auto or keep with --views: a mask is of one picture")
    return size, tolerance, agree


def _solve_all(run: _Run, arguments: argparse.Namespace, size: int) -> None:
    """Maps and depth of each view, a line for each. Raises: GeometryError for fewer than two."""
    views = run.model.views
    with ExitStack() as stack:
        engines = [
            stack.enter_context(LotusEngine(bundle, arguments.backend))
            for bundle in arguments.bundles
        ]
        check_ensemble(engines, arguments.ensemble)
        store = MapStore(
            folder=arguments.output / "maps",
            engines=engines,
            size=size,
            ensemble=arguments.ensemble,
            tiles=arguments.tiles,
        )
        for number, view in enumerate(views, 1):
            start = time.perf_counter()
            try:
                found, stored = _solve(run, view, store, arguments)
                run.solved.append(found)
                what = "map of before" if stored else f"{time.perf_counter() - start:.2f} s"
                words = f"{what}, {found.alignment.method}, off by {found.alignment.residual:.1%}"
            except (ImageError, GeometryError) as error:
                run.left_out[view.name] = str(error)
                words = f"LEFT OUT: {error}"
            say(one_line(f"[{number}/{len(views)}] {view.name}  {words}"))
    if len(run.solved) < 2:
        first = "; ".join(f"{name}: {why}" for name, why in [*run.left_out.items()][:3])
        raise GeometryError(
            f"{len(run.solved)} of {len(views)} views can be used, two are needed: {first}"
        )


def _solve(
    run: _Run, view: View, store: MapStore, arguments: argparse.Namespace
) -> tuple[Solved, bool]:
    """A view with its depth, and whether its maps were there already. Raises: ImageError,
    GeometryError where it cannot be used.
    """
    if view.problem:
        raise GeometryError(view.problem)
    prepared = prepare(view, store.size)
    maps, stored = store.maps(view, prepared)
    found = solve(
        view,
        prepared,
        maps,
        run.unit,
        run.model.tracked,
        sky=arguments.sky,
        refine=arguments.refine,
        edge=arguments.edge,
        grazing=arguments.grazing,
    )
    return found, stored


def _write(
    run: _Run, combined: Combined, settings: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Write all files; the rows of the report. Raises: OutputError."""
    output, model = arguments.output, run.model
    before = previous_depths(output)
    rows = describe(model, combined, run.left_out)
    for view, mask in zip(combined.views, combined.masks, strict=True):
        place = output / rows[view.view.name]["depth"]
        write_together({place: files.encode_depth(view, mask, run.unit)})
    up = -np.mean([view.camera_from_world[1, :3] for view in combined.views], axis=0)
    ahead = combined.views[0].camera_from_world[2, :3]
    contents = {
        **files.encode_surface(combined.mesh, combined.cloud, up),
        "views.png": files.encode_picture(combined.mesh, up, ahead, combined.voxel),
        "report.json": encode_report(model, combined, rows, run.unit, settings),
    }
    write_together(
        {output / name: content for name, content in contents.items()},
        lambda: check_free(output, model.known_by, arguments.overwrite),
    )
    for path in before - {output / row["depth"] for row in rows.values() if row["depth"]}:
        path.unlink(missing_ok=True)  # of a view that a run before used and this one did not
    return rows
