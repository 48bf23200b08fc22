"""`transforms.json`, as nerfstudio and instant-ngp write and read it.

The camera's axes are OpenGL's there: x right, y up, z backward. The origin of pixels is the outer
corner of the first one, as in COLMAP. Source: nerfstudio's documentation, "Data conventions".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apps.views.model import Floats, Lens, Model, Source, View, pose
from runtime.errors import GeometryError
from runtime.files import ending
from runtime.there import is_file

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
_NOTHING = np.zeros((0, 3))


def read_transforms(source: Source, images: Path | None, points: Path | None) -> Model:
    """The views of a file. Raises: GeometryError for a file that is none, and for
    one without sparse points.
    """
    path = source.path
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GeometryError(f"cannot read {path}: {error}") from error
    frames = body.get("frames") if isinstance(body, dict) else None
    if not isinstance(frames, list) or not frames:
        raise GeometryError(f"{path} has no list `frames`: it is no transforms.json")
    cloud = _points(path, body, points)
    folder = images or path.parent
    views = [_view(body, frame, folder, cloud) for frame in frames]
    return Model(
        kind="transforms.json",
        path=path,
        views=views,
        tracked=False,
        known_by=source.known_by,
    )


def _points(path: Path, body: Mapping[str, Any], given: Path | None) -> Floats:
    """The sparse points, [N,3]. Raises: GeometryError."""
    named = body.get("ply_file_path")
    if given is None and not isinstance(named, str):
        raise GeometryError(
            f"{path} names no sparse points (`ply_file_path`), and without any, scale and shift of "
            "each view's map are unknown: the views cannot be put together. Give a PLY of points "
            "in the same world with --points, or a COLMAP model"
        )
    ply = given if given is not None else path.parent / str(named)
    import trimesh

    try:
        loaded = trimesh.load(str(ply), file_type="ply")
        vertices = np.asarray(loaded.vertices, np.float64).reshape(-1, 3)
    except Exception as error:  # whatever the library raises for what is no PLY
        raise GeometryError(f"cannot read the points {ply}: {error}") from error
    vertices = vertices[np.isfinite(vertices).all(1)]
    if not len(vertices):
        raise GeometryError(f"{ply} holds no points")
    return vertices


def _view(body: Mapping[str, Any], frame: Any, folder: Path, cloud: Floats) -> View:
    frame = frame if isinstance(frame, dict) else {}
    name = frame.get("file_path")
    problem = "" if isinstance(name, str) and name else "its frame has no file_path"
    name = str(name)
    matrix = pose(frame.get("transform_matrix"))
    lens = Lens(model="PINHOLE", params=(1.0, 1.0, 0.0, 0.0))
    picture = _picture(folder, name)
    try:
        lens = _lens({**_size(picture, body, frame), **body, **frame})
    except (GeometryError, TypeError, ValueError) as error:
        problem = problem or f"its camera cannot be used: {error}"
    camera_from_world = np.eye(4)
    if matrix is not None:
        camera_from_world = np.asarray(np.linalg.inv(matrix @ _OPENGL), np.float64)
    else:
        problem = problem or "its transform_matrix is no pose: a rotation and a place, as 4x4"
    return View(
        name=name.removeprefix("./"),
        picture=picture,
        lens=lens,
        camera_from_world=camera_from_world,
        points=cloud,
        problem=problem,
    )


def _picture(folder: Path, name: str) -> Path:
    """The file of a frame: with `--images` also by its name alone; ".png" where none is said, as in
    the scenes of NeRF.
    """
    places = [folder / name, folder / Path(name).name]
    if not ending(Path(name)):
        places += [place.with_name(f"{place.name}.png") for place in places]
    return next((place for place in places if is_file(place)), places[0])


def _size(picture: Path, *told: Mapping[str, Any]) -> dict[str, int]:
    """`w` and `h` of a picture's file, where nobody told them; the scenes of NeRF do not."""
    if any("w" in body for body in told):
        return {}
    try:
        with Image.open(picture) as image:  # its header alone
            return dict(zip("wh", image.size, strict=True))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}  # reading it later says why


def _lens(body: Mapping[str, Any]) -> Lens:
    """Of a frame's own numbers, else those of all frames. Raises: GeometryError, and TypeError or
    ValueError for numbers that are none.
    """

    def number(name: str) -> float | None:
        value = body.get(name)
        return None if value is None else float(value)

    model = str(body.get("camera_model", "OPENCV")).upper()
    width, height = (None if body.get(name) is None else int(body[name]) for name in "wh")
    fx, fy = number("fl_x"), number("fl_y")
    if fx is None and width and (angle := number("camera_angle_x")):
        fx = 0.5 * width / math.tan(angle / 2)
    if fy is None and height and (angle := number("camera_angle_y")):
        fy = 0.5 * height / math.tan(angle / 2)
    fx = fx if fx is not None else fy
    if fx is None or width is None or height is None:
        raise GeometryError("it needs fl_x, or camera_angle_x, with w and h")
    cx, cy = number("cx"), number("cy")
    center = (width / 2 if cx is None else cx, height / 2 if cy is None else cy)
    params = (fx, fx if fy is None else fy, *center)
    if not all(map(math.isfinite, params)) or min(params[:2]) <= 0 or min(width, height) < 1:
        raise GeometryError(f"fl_x, fl_y, cx and cy are {', '.join(f'{p:g}' for p in params)}")
    k1, k2, k3, k4, p1, p2 = (number(name) or 0.0 for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if model == "OPENCV_FISHEYE" or body.get("is_fisheye"):
        return Lens(
            model="OPENCV_FISHEYE", params=(*params, k1, k2, k3, k4), width=width, height=height
        )
    if model not in _PERSPECTIVE or k4:
        what = f"camera_model {model}" if model not in _PERSPECTIVE else "k4 of a perspective lens"
        raise GeometryError(f"{what} is not known: undistort the pictures first")
    bent = (*params, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
    return Lens(model="FULL_OPENCV", params=bent, width=width, height=height)
