"""`lotus-edge scene BUNDLE [BUNDLE2] IMAGE --output DIR`: from a picture to a 3D scene.

With `--views` in place of IMAGE it is several pictures: apps/views/.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.scene import files
from apps.scene.anchors import read_anchors, read_mask
from apps.scene.maps import ask
from apps.scene.views import two_sides
from apps.views.command import add_views, refuse_mixed, views_scene
from runtime.alignment import Anchors
from runtime.camera import ASSUMED_FOV, Camera
from runtime.console import say, show
from runtime.engine import LotusEngine
from runtime.errors import GeometryError, OutputError
from runtime.extras import require
from runtime.geometry import EDGE, GRAZING
from runtime.image import load
from runtime.prediction import TaskMap
from runtime.reconstruct import Reconstruction, Sky, reconstruct
from runtime.saving import fingerprint
from runtime.there import exists
from runtime.writing import write_together

_MOST_POINTS = 1_000_000
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--backend", {"help": "default: each bundle's target"}),
    (
        "--ensemble",
        {"type": int, "default": 1, "help": "answers of mode G; how far they lie apart is kept"},
    ),
    ("--tiles", {"action": "store_true", "help": "for large pictures: detail by tiles"}),
    ("--overwrite", {"action": "store_true", "help": "replace files of others in DIR"}),
    ("--refine", {"action": "store_true", "help": "fuse depth and normals: walls become flat"}),
    ("--stride", {"type": int, "help": "every N-th row and column (1, or a million points)"}),
    ("--edge", {"type": float, "default": EDGE, "help": f"relative jump of an edge ({EDGE:g})"}),
    (
        "--grazing",
        {"type": float, "default": GRAZING, "help": f"degrees; beyond it is cut ({GRAZING:g})"},
    ),
    ("--island", {"type": int, "default": 100, "help": "leave out parts of fewer triangles (100)"}),
    ("--faces", {"type": int, "help": "simplify the mesh to as many triangles"}),
    (
        "--sky",
        {"default": "auto", "help": "auto, keep, or a mask whose white pixels are sky"},
    ),
)


def add_scene(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`scene BUNDLE [BUNDLE2] IMAGE --output DIR`."""
    scene = commands.add_parser(
        "scene",
        help="a point cloud, a mesh and depth maps of a picture",
        description="Turn a picture into a 3D scene: point cloud, mesh, depth maps, and a picture "
        "of them from two sides. Depth is in metres where a distance or the camera's height is "
        "known; the shift comes from known distances or from normals. The output says which.",
    )
    scene.add_argument(
        "bundles",
        nargs="+",
        metavar="BUNDLE",
        help="a bundle for depth or disparity, and one for normals; or one for both",
    )
    image = scene.add_argument("image", type=Path, metavar="IMAGE")
    scene.add_argument("--output", type=Path, required=True, metavar="DIR")
    lens = scene.add_argument_group(
        "the camera", f"Default: EXIF; where it says nothing, {ASSUMED_FOV:g} degrees are assumed."
    ).add_mutually_exclusive_group()
    lens.add_argument("--fov", type=float, help="degrees across the longer edge")
    lens.add_argument("--focal", type=float, help="focal length in pixels of the picture")
    lens.add_argument("--intrinsics", type=Path, metavar="FILE", help="JSON with a 3x3 matrix")
    lens.add_argument("--sensor-width", type=float, metavar="MM", help="with EXIF's focal length")
    lens.add_argument("--search-fov", action="store_true", help="search it with the normals")
    metric = scene.add_argument_group("what is known in metres").add_mutually_exclusive_group()
    metric.add_argument(
        "--anchors", type=Path, metavar="FILE", help="lines `u v depth`, or a depth map of the size"
    )
    metric.add_argument(
        "--distance", type=float, nargs=3, metavar=("U", "V", "METRES"), help="one known depth"
    )
    metric.add_argument("--camera-height", type=float, metavar="METRES", help="over the floor")
    add_views(scene, image)
    for name, option in _OPTIONS:
        scene.add_argument(name, **option)
    scene.set_defaults(run=_scene)


def _scene(arguments: argparse.Namespace) -> int:
    refuse_mixed(arguments)
    if arguments.views is not None:
        if arguments.image is not None:  # the last bundle was taken for it
            arguments.bundles.append(str(arguments.image))
        _check(arguments)
        return views_scene(arguments)
    require("trimesh", "OpenEXR", *(["fast_simplification"] if arguments.faces else []))
    _check(arguments)
    picture = fingerprint(arguments.image)
    _check_free(arguments.output, picture, arguments.overwrite)
    rgb = load(arguments.image)
    height, width = rgb.shape[:2]
    camera, anchors = _camera(arguments, height, width), _anchors(arguments, rgb)
    sky: Sky = arguments.sky
    if sky not in ("auto", "keep"):
        sky = read_mask(Path(arguments.sky), height, width)
    maps = collect_maps(
        arguments.bundles,
        rgb,
        arguments.backend,
        ensemble=arguments.ensemble,
        tiles=arguments.tiles,
    )
    found = reconstruct(
        {task: each.values for task, each in maps.items()},
        camera,
        search=arguments.search_fov,
        anchors=anchors,
        camera_height=arguments.camera_height,
        sky=sky,
        refine=arguments.refine,
        edge=arguments.edge,
        grazing=arguments.grazing,
    )
    confidence = files.confidence_of(maps[found.task])
    contents, counts = _contents(found, rgb, confidence, arguments, picture)
    write_together(
        {arguments.output / name: content for name, content in contents.items()},
        lambda: _check_free(arguments.output, picture, arguments.overwrite),
    )
    _tell(found, counts)
    show(str(arguments.output))
    return 0


def collect_maps(
    bundles: list[str],
    rgb: NDArray[np.uint8],
    backend: str | None,
    *,
    ensemble: int = 1,
    tiles: bool = False,
) -> dict[str, TaskMap]:
    """The maps of a picture by task, of one bundle after the other; `apps.scene.maps.ask`."""

    def opened() -> Iterator[LotusEngine]:
        for bundle in bundles:
            with LotusEngine(bundle, backend) as engine:
                yield engine

    return ask(opened(), rgb, ensemble=ensemble, tiles=tiles)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is predicted. Raises: GeometryError."""
    for name in ("ensemble", "stride", "faces", "edge", "camera_height", "focal", "sensor_width"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise GeometryError(f"--{name.replace('_', '-')} is a positive number, found {value}")
    if not 0 < arguments.grazing <= 90:
        raise GeometryError(f"--grazing is an angle up to 90 degrees, found {arguments.grazing}")


def _camera(arguments: argparse.Namespace, height: int, width: int) -> Camera | None:
    """The camera that is known; None where it is to be searched."""
    if arguments.search_fov:
        return None
    if arguments.intrinsics is not None:
        return Camera.from_file(arguments.intrinsics, height, width)
    if arguments.focal is not None:
        return Camera.from_focal(arguments.focal, height, width)
    if arguments.fov is not None:
        return Camera.from_fov(arguments.fov).at(height, width)
    try:
        return Camera.from_exif(arguments.image, height, width, arguments.sensor_width)
    except GeometryError as error:
        if arguments.sensor_width is not None:
            raise
        say(
            f"{error}; a field of view of {ASSUMED_FOV:g} degrees is assumed. A wrong one makes "
            "the scene too deep or too shallow: give --fov, --focal or --intrinsics"
        )
        return Camera.assumed().at(height, width)


def _anchors(arguments: argparse.Namespace, rgb: NDArray[np.uint8]) -> Anchors | None:
    if arguments.distance is not None:
        u, v, metres = arguments.distance
        return Anchors(u=np.array([u]), v=np.array([v]), depth=np.array([metres]))
    if arguments.anchors is not None:
        return read_anchors(arguments.anchors, *rgb.shape[:2])
    return None


def _contents(
    found: Reconstruction,
    rgb: NDArray[np.uint8],
    confidence: NDArray[np.float32] | None,
    arguments: argparse.Namespace,
    picture: str,
) -> tuple[dict[str, bytes], dict[str, int]]:
    """The files by name, and how many points, triangles and pixels of each kind there are."""
    # A picture of 12 megapixels would be a mesh of a gigabyte.
    stride = arguments.stride or math.ceil(math.sqrt(found.depth.size / _MOST_POINTS))
    meshes, mesh = files.encode_meshes(found, rgb, stride, arguments.island, arguments.faces)
    cloud = found.points(stride)
    counts = {
        "stride": stride,
        "points": len(cloud.positions),
        "triangles": min(len(mesh.faces), arguments.faces or len(mesh.faces)),
        "edges": int((found.edges & ~found.sky).sum()),
        "sky": int(found.sky.sum()),
    }
    everything = cloud if stride == 1 else found.points()
    sheet = two_sides(
        everything.positions @ found.upright.T,
        rgb[everything.rows, everything.columns],
        1 / min(found.camera.fx, found.camera.fy),
        found.camera.fov,
    )
    views = io.BytesIO()
    Image.fromarray(sheet).save(views, format="PNG")
    named = {
        **meshes,
        "cloud.ply": files.encode_cloud(found, cloud, rgb, confidence),
        **files.encode_maps(found, confidence),
        "views.png": views.getvalue(),
        "camera.json": files.encode_camera(found, picture, counts),
    }
    return named, counts


def _check_free(folder: Path, picture: str, overwrite: bool) -> None:
    """Refuse to write over files that are not this picture's scene. Raises: OutputError."""
    there = [name for name in files.FILES if exists(folder / name)]
    if not there or overwrite:
        return
    try:
        ours = json.loads((folder / "camera.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        ours = {}
    if not isinstance(ours, dict) or "lotus-edge" not in str(ours.get("generator")):
        what = "is not of a scene of lotus-edge"
    elif ours.get("picture") != picture:
        what = "is of the scene of another picture, or of this one before it was changed"
    else:
        return
    raise OutputError(
        f"{folder / there[0]} exists, and {what}. Choose another folder, or replace it with "
        "--overwrite."
    )


def _tell(found: Reconstruction, counts: Mapping[str, int]) -> None:
    alignment = found.alignment
    show(f"camera: {found.camera.fov:.1f} degrees across the longer edge ({found.camera.source})")
    if alignment.candidates:
        fit = f", {alignment.inliers} of {alignment.candidates} fit to {alignment.residual:.1%}"
        if np.isfinite(alignment.turned):
            fit += f"; its normals lie {alignment.turned:.0f} degrees from the given ones"
    else:
        fit = ""
    show(f"depth: {alignment.method}; unit: {alignment.unit}{fit}")
    if found.mirrored:
        show("normals: x pointed to the other side than the map says, and was turned round")
    if alignment.fallback:
        show(f"this is no measurement: {alignment.fallback}")
    if found.up is None:
        show("level: nothing tells; the scene stands as the camera looked")
    elif found.floor is None:
        show("level: by the normals; no floor was found")
    else:
        unit = alignment.unit if alignment.metric else "median depths"
        show(f"level: by the normals; the floor is {found.floor.distance:.2f} {unit} below")
    show(", ".join(f"{what} {count:,}" for what, count in counts.items()))
