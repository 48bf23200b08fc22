"""From a view's file to an upright picture of a pinhole camera, of a size to work with.

Structure from motion takes pixels as they are stored. So undistortion happens there, and what EXIF
says is then done to picture and camera alike: the networks see people on their feet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.views.colmap import undistort
from apps.views.model import Floats, Lens, View
from runtime.camera import Camera
from runtime.errors import GeometryError, ImageError
from runtime.image import load
from runtime.pictures.decode import exif_of
from runtime.pictures.metadata import orientation

_QUARTERS = {3: 2, 6: 3, 8: 1}
"""How many quarter turns, against the clock, EXIF's orientation asks for. The others mirror."""
_ASPECT = 0.02  # pictures of half the size are a pixel more or less


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A picture uint8 [H,W,3] of a camera without distortion, and its pose [4,4]."""

    rgb: NDArray[np.uint8]
    camera: Camera
    camera_from_world: Floats


def prepare(view: View, size: int) -> Prepared:
    """The picture with a longer edge of at most `size` pixels. Raises: ImageError, GeometryError;
    ModuleNotFoundError where undistortion needs pycolmap.
    """
    rgb, quarters = _as_the_model_saw_it(view)
    height, width = rgb.shape[:2]
    numbers = view.lens.pinhole
    if numbers is None:
        rgb, numbers = undistort(rgb, view.lens)
        made_for = rgb.shape[:2]
    else:
        made_for = (view.lens.height or height, view.lens.width or width)
    fx, fy, cx, cy = numbers
    camera = Camera(
        fx=fx, fy=fy, cx=cx, cy=cy, height=made_for[0], width=made_for[1], source=view.lens.model
    )
    shrink = min(1.0, size / max(rgb.shape[:2]))
    small = tuple(max(2, round(edge * shrink)) for edge in rgb.shape[:2])
    if small != rgb.shape[:2]:
        resized = Image.fromarray(rgb).resize((small[1], small[0]), Image.Resampling.BILINEAR)
        rgb = np.asarray(resized, np.uint8)
    return _turned(rgb, camera.at(*rgb.shape[:2]), view.camera_from_world, quarters)


def _as_the_model_saw_it(view: View) -> tuple[NDArray[np.uint8], int]:
    """Pixels that fit the model's camera, and the quarter turns that make them upright: pixels as
    stored, or, where only those fit, as EXIF turns them.
    """
    upright = load(view.picture)
    try:
        turn = orientation(exif_of(view.picture))
    except ImageError:
        turn = 1
    quarters = _QUARTERS.get(turn, 0)
    stored = np.ascontiguousarray(np.rot90(upright, -quarters))
    for rgb, left in ((stored, quarters), (upright, 0)):
        if _fits(rgb, view.lens):
            return rgb, left
    height, width = upright.shape[:2]
    raise GeometryError(
        f"{view.picture} has {width}x{height} pixels, and the model's camera is for "
        f"{view.lens.width}x{view.lens.height}"
    )


def _fits(rgb: NDArray[np.uint8], lens: Lens) -> bool:
    if not lens.width or not lens.height:
        return True
    height, width = rgb.shape[:2]
    off = abs(width * lens.height / (height * lens.width) - 1)
    return bool(off < max(_ASPECT, 1 / min(height, width)))


def _turned(
    rgb: NDArray[np.uint8], camera: Camera, camera_from_world: Floats, quarters: int
) -> Prepared:
    """Picture and camera after quarter turns against the clock."""
    for _ in range(quarters):
        height, width = rgb.shape[:2]
        # A point at (u, v) comes to (v, width - u), so x becomes y and y becomes -x.
        rgb = np.ascontiguousarray(np.rot90(rgb))
        camera = Camera(
            fx=camera.fy,
            fy=camera.fx,
            cx=camera.cy,
            cy=width - camera.cx,
            height=width,
            width=height,
            source=camera.source,
        )
        turn = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        camera_from_world = turn @ camera_from_world
    return Prepared(rgb=rgb, camera=camera, camera_from_world=camera_from_world)
