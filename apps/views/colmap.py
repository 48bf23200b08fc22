"""COLMAP's models, text and binary, and its camera models. The only file that imports pycolmap."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.views.colmap_files import check_whole
from apps.views.model import Lens, Model, Source, View, pose
from runtime.errors import GeometryError
from runtime.extras import require
from runtime.there import is_dir

_BLANK = 0.0  # share of pixels without a picture after undistortion: none, so it is cropped


def read_colmap(source: Source, images: Path | None) -> Model:
    """The model in a folder. Raises: GeometryError; ModuleNotFoundError without pycolmap."""
    require("pycolmap")
    import pycolmap

    check_whole(source.path, _parameters)
    try:
        found = pycolmap.Reconstruction(str(source.path))
        folder = images or _images_beside(source.path)
        views = [_view(found, found.images[number], folder) for number in found.reg_image_ids()]
    except GeometryError:
        raise
    except Exception as error:  # whatever the library raises for files that are none of its own
        raise GeometryError(f"cannot read the COLMAP model {source.path}: {error}") from error
    if not views:
        raise GeometryError(f"the COLMAP model {source.path} has no picture with a pose")
    return Model(
        kind="COLMAP",
        path=source.path,
        views=views,
        tracked=True,
        known_by=source.known_by,
    )


def _parameters(model: int) -> int:
    """How many numbers a camera model has, by its number. Raises: ValueError for none."""
    import pycolmap

    return len(
        pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), 1, 1, 1).params
    )


def _images_beside(folder: Path) -> Path:
    """Where COLMAP's users have the pictures of a model. Raises: GeometryError."""
    folder = Path(os.path.realpath(folder))
    places = [above / "images" for above in (folder, *list(folder.parents)[:3])]
    for place in places:
        if is_dir(place):
            return place
    raise GeometryError(
        f"the pictures of the COLMAP model {folder} were not found ({places[0]}, {places[1]}, "
        "...): name their folder with --images"
    )


def _view(found: Any, image: Any, folder: Path) -> View:
    camera, matrix = image.camera, pose(image.cam_from_world().matrix())
    seen = [point.point3D_id for point in image.points2D if point.has_point3D()]
    points = [found.points3D[number].xyz for number in seen if found.exists_point3D(number)]
    return View(
        name=image.name,
        picture=folder / image.name,
        lens=Lens(
            model=camera.model_name,
            params=tuple(float(number) for number in camera.params),
            width=int(camera.width),
            height=int(camera.height),
        ),
        camera_from_world=np.eye(4) if matrix is None else matrix,
        points=np.array(points, np.float64).reshape(-1, 3),
        problem="its pose is none" if matrix is None else "",
    )


def undistort(
    rgb: NDArray[np.uint8], lens: Lens
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """A picture as a camera without distortion sees it, and that camera's fx, fy, cx and cy.

    What has no picture is cut off, as `colmap image_undistorter` does, so the size differs. Raises:
    GeometryError for a camera model that cannot be undistorted; ModuleNotFoundError without
    pycolmap.
    """
    require("pycolmap")
    import pycolmap

    height, width = rgb.shape[:2]
    try:
        camera = pycolmap.Camera(
            model=lens.model,
            width=lens.width or width,
            height=lens.height or height,
            params=list(lens.params),
        )
        camera.rescale(width, height)
        options = pycolmap.UndistortCameraOptions(blank_pixels=_BLANK)
        bitmap, flat = pycolmap.undistort_image(options, pycolmap.Bitmap.from_array(rgb), camera)
        fx, fy, cx, cy = (float(number) for number in flat.params)
    except Exception as error:
        raise GeometryError(
            f"its camera ({lens.model}) cannot be undistorted: {error}. Undistort the pictures "
            "first, for example with `colmap image_undistorter`"
        ) from error
    return np.ascontiguousarray(bitmap.to_array()), (fx, fy, cx, cy)
