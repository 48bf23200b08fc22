"""The pinhole camera of a picture: how a pixel becomes a ray.

Camera frame: x right, y down, z forward (OpenCV's). The centre of the first pixel is at
(0.5, 0.5), so a picture of W pixels reaches from 0 to W. (OpenCV and ROS put that centre at (0, 0):
add 0.5 to their `cx` and `cy`.)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.errors import GeometryError

Axis: TypeAlias = Literal["longer", "x", "y"]

ASSUMED_FOV = 60.0
"""Degrees across the longer edge, where nothing is known: near that of many phones' main camera."""
_DIAGONAL_35MM = math.hypot(36, 24)  # millimetres


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera without distortion.

    `fx`, `fy`, `cx`, `cy` are in pixels of a picture of `height` x `width`. Without a size (both
    None) `fx` and `fy` count edges of it (`axis` says which), `cx` and `cy` widths and heights;
    `at` gives such a camera its size. `source` says how it is known.

    Raises: GeometryError for what is no camera.

    >>> Camera.from_fov(60).at(480, 640).matrix
    """

    fx: float
    fy: float
    cx: float
    cy: float
    height: int | None = None
    width: int | None = None
    source: str = "given"
    axis: Axis = "longer"

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not all(math.isfinite(number) for number in numbers) or min(self.fx, self.fy) <= 0:
            raise GeometryError(
                f"a camera needs finite numbers and positive focal lengths, found fx, fy, cx, cy = "
                f"{', '.join(f'{number:g}' for number in numbers)}"
            )
        if (self.height is None) != (self.width is None) or any(
            edge is not None and edge < 1 for edge in (self.height, self.width)
        ):
            raise GeometryError(f"a picture has no size of {self.height} x {self.width} pixels")

    @classmethod
    def from_fov(cls, degrees: float, axis: Axis = "longer") -> Camera:
        """From the angle of view across the longer edge, the width ("x") or the height ("y")."""
        if not 0 < degrees < 180:
            raise GeometryError(f"an angle of view is between 0 and 180 degrees, found {degrees}")
        if axis not in ("longer", "x", "y"):
            raise GeometryError(f"an angle of view is across longer, x or y, found {axis!r}")
        focal = 0.5 / math.tan(math.radians(degrees) / 2)
        source = f"field of view of {degrees:g} degrees"
        return cls(fx=focal, fy=focal, cx=0.5, cy=0.5, source=source, axis=axis)

    @classmethod
    def assumed(cls) -> Camera:
        """Where nothing is known: ASSUMED_FOV. Its `source` says so."""
        return replace(cls.from_fov(ASSUMED_FOV), source="assumed")

    @classmethod
    def from_focal(cls, pixels: float, height: int, width: int) -> Camera:
        """From the focal length in pixels of a picture of this size."""
        return cls(
            fx=pixels,
            fy=pixels,
            cx=width / 2,
            cy=height / 2,
            height=height,
            width=width,
            source=f"focal length of {pixels:g} pixels",
        )

    @classmethod
    def from_matrix(cls, matrix: Any, height: int, width: int) -> Camera:
        """From [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels of a picture of this size."""
        try:
            k = np.asarray(matrix, np.float64)
        except (TypeError, ValueError) as error:
            raise GeometryError(f"intrinsics are a 3x3 matrix of numbers: {error}") from error
        if k.shape != (3, 3) or not np.isfinite(k).all():
            raise GeometryError(f"intrinsics are a finite 3x3 matrix, found {list(k.shape)}")
        if abs(k[0, 1]) > 1e-3 * abs(k[0, 0]) or k[1, 0] or not np.array_equal(k[2], (0, 0, 1)):
            raise GeometryError(
                "intrinsics are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; this matrix has skew, or "
                f"is none: {k.tolist()}"
            )
        return cls(
            fx=float(k[0, 0]),
            fy=float(k[1, 1]),
            cx=float(k[0, 2]),
            cy=float(k[1, 2]),
            height=height,
            width=width,
            source="intrinsics",
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], height: int, width: int) -> Camera:
        """From a JSON file for a picture of this size.

        Either a 3x3 matrix, or an object with `matrix` (or `intrinsics`, `K`: nine numbers or
        3x3), or with `fx`, `fy`, `cx`, `cy`. `height` and `width` in it say the size that the
        numbers are for; the camera is resized from there.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GeometryError(f"cannot read the intrinsics {path}: {error}") from error
        body: Mapping[str, Any] = found if isinstance(found, dict) else {"matrix": found}
        matrix = next((body[key] for key in ("matrix", "intrinsics", "K") if key in body), None)
        try:
            if matrix is None:
                fx, fy, cx, cy = (float(body[key]) for key in ("fx", "fy", "cx", "cy"))
                matrix = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
            numbers = np.asarray(matrix, np.float64).reshape(3, 3)
            size = int(body.get("height", height)), int(body.get("width", width))
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError(
                f'{path} holds no intrinsics: a 3x3 matrix, {{"matrix": ...}} or '
                f'{{"fx", "fy", "cx", "cy"}} ({error!r})'
            ) from error
        return cls.from_matrix(numbers, *size).at(height, width)

    @classmethod
    def from_exif(
        cls,
        path: str | os.PathLike[str],
        height: int,
        width: int,
        sensor_width_mm: float | None = None,
    ) -> Camera:
        """From what the camera wrote into the file of an upright picture of this size.

        In this order: the focal length with `sensor_width_mm` (along the longer edge), the focal
        length in 35 mm (by the diagonal, as CIPA DCG-001 has it), the focal length with the
        resolution of the focal plane. Raises: GeometryError where the file says none of it, or
        where the picture was cropped since.
        """
        from runtime.pictures.decode import exif_of
        from runtime.pictures.metadata import Lens, lens_of

        lens = lens_of(exif_of(Path(path))) or Lens()
        longer, shorter = max(height, width), min(height, width)
        if lens.width and lens.height:
            written = max(lens.width, lens.height) / min(lens.width, lens.height)
            if abs(written / (longer / shorter) - 1) > 0.02:
                raise GeometryError(
                    f"{path}: EXIF is of {lens.width}x{lens.height} pixels and the picture has "
                    f"{width}x{height}: it was cropped, so its focal length says nothing"
                )
        if lens.focal and sensor_width_mm is not None:
            if not 0 < sensor_width_mm < math.inf:
                raise GeometryError(f"a sensor's width is positive, found {sensor_width_mm} mm")
            focal, how = lens.focal * longer / sensor_width_mm, "EXIF's focal length, sensor given"
        elif lens.focal_35mm:
            focal = lens.focal_35mm * math.hypot(height, width) / _DIAGONAL_35MM
            how = "EXIF's focal length in 35 mm"
        elif lens.focal and lens.pixels_per_mm:
            resized = longer / max(lens.width or 0, lens.height or 0) if lens.width else 1.0
            focal, how = lens.focal * lens.pixels_per_mm * resized, "EXIF's focal plane"
        else:
            raise GeometryError(f"{path} does not say with what focal length it was taken")
        return replace(cls.from_focal(focal, height, width), source=how)

    def at(self, height: int, width: int) -> Camera:
        """This camera for a picture of another size: its own if it has none yet, else resized."""
        if self.height is None or self.width is None:
            edge: float = {"longer": max(height, width), "x": width, "y": height}[self.axis]
            scales: tuple[float, ...] = (edge, edge, width, height)
        else:
            x, y = width / self.width, height / self.height
            scales = (x, y, x, y)
        fx, fy, cx, cy = (
            number * scale
            for number, scale in zip((self.fx, self.fy, self.cx, self.cy), scales, strict=True)
        )
        return replace(self, fx=fx, fy=fy, cx=cx, cy=cy, height=height, width=width)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels."""
        self._size()
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    @property
    def fov(self) -> float:
        """The angle of view across the longer edge (without a size: across `axis`), in degrees."""
        if self.height is None or self.width is None:
            return math.degrees(2 * math.atan(0.5 / self.fx))
        edge, focal = max((self.width, self.fx), (self.height, self.fy))
        return math.degrees(2 * math.atan(edge / (2 * focal)))

    def slopes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The rays of all pixels: x/z as [1,W] and y/z as [H,1]. A point is (x z, y z, z)."""
        height, width = self._size()
        x = (np.arange(width, dtype=np.float64) + 0.5 - self.cx) / self.fx
        y = (np.arange(height, dtype=np.float64) + 0.5 - self.cy) / self.fy
        return x[None, :], y[:, None]

    def project(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Points [...,3] in the camera frame to (u, v, z) [...,3]; z as it is."""
        self._size()
        x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([self.fx * x / z + self.cx, self.fy * y / z + self.cy, z], axis=-1)

    def _size(self) -> tuple[int, int]:
        if self.height is None or self.width is None:
            raise GeometryError("this camera has no picture yet: camera.at(height, width)")
        return self.height, self.width
