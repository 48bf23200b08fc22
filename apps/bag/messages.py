"""ROS messages from maps, and pictures, depth and points from ROS messages. No ROS is needed.

What is made is the fields of a message as plain values and arrays, by name, all but its header:
`apps.bag.bags` makes messages of rosbags of them, `apps/ros/node.py` those of rclpy.

Conventions: depth is REP 118's (float32 in metres along the camera's axis, NaN where not known),
frames are optical ones (REP 103: x right, y down, z forward), and the centre of the first pixel is
at (0, 0), where `Camera` has it at (0.5, 0.5).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.camera import Camera
from runtime.errors import GeometryError, ImageError
from runtime.image import load

Fields = dict[str, Any]
_FLOAT32, _FLOAT64 = 7, 8  # sensor_msgs/PointField
_HALF_PIXEL = 0.5
_MILLIMETRE = 0.001

# By encoding: type, channels, and which of them are red, green and blue.
_PICTURES: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "rgb8": ("u1", 3, (0, 1, 2)),
    "bgr8": ("u1", 3, (2, 1, 0)),
    "rgba8": ("u1", 4, (0, 1, 2)),
    "bgra8": ("u1", 4, (2, 1, 0)),
    "8UC3": ("u1", 3, (2, 1, 0)),  # OpenCV's order
    "mono8": ("u1", 1, (0, 0, 0)),
    "8UC1": ("u1", 1, (0, 0, 0)),
    "rgb16": ("u2", 3, (0, 1, 2)),
    "bgr16": ("u2", 3, (2, 1, 0)),
    "mono16": ("u2", 1, (0, 0, 0)),
}
_DEPTHS = {"16UC1": ("u2", _MILLIMETRE), "mono16": ("u2", _MILLIMETRE), "32FC1": ("f4", 1.0)}


def image_fields(values: NDArray[np.float32]) -> Fields:
    """sensor_msgs/Image of values [H,W] (32FC1) or [H,W,3] (32FC3)."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    height, width = values.shape[:2]
    data = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
    return {
        "height": height,
        "width": width,
        "encoding": f"32FC{channels}",
        "is_bigendian": 0,
        "step": 4 * channels * width,
        "data": data,
    }


def camera_fields(camera: Camera) -> Fields:
    """sensor_msgs/CameraInfo of a camera without distortion."""
    matrix = camera.matrix
    matrix[:2, 2] -= _HALF_PIXEL
    return {
        "height": camera.height,
        "width": camera.width,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": matrix.reshape(-1),
        "r": np.eye(3).reshape(-1),
        "p": np.column_stack([matrix, np.zeros(3)]).reshape(-1),
    }


def cloud_fields(points: NDArray[np.float32], rgb: NDArray[np.uint8]) -> Fields:
    """sensor_msgs/PointCloud2 of points [H,W,3] in metres with the colours uint8 [H,W,3]: organised
    as the picture is, NaN where nothing is known.
    """
    height, width = points.shape[:2]
    cloud = np.zeros((height, width), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])
    for axis, name in enumerate("xyz"):
        cloud[name] = points[..., axis]
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    cloud["rgb"] = red << 16 | green << 8 | blue
    return {
        "height": height,
        "width": width,
        "fields": [
            {"name": name, "offset": 4 * number, "datatype": _FLOAT32, "count": 1}
            for number, name in enumerate(("x", "y", "z", "rgb"))
        ],
        "is_bigendian": False,
        "point_step": cloud.itemsize,
        "row_step": cloud.itemsize * width,
        "data": cloud.reshape(-1).view(np.uint8),
        "is_dense": bool(np.isfinite(points).all()),
    }


def rgb_of(message: Any) -> NDArray[np.uint8]:
    """The picture [H,W,3] of an Image or a CompressedImage. Raises: ImageError."""
    if hasattr(message, "format"):
        try:
            with Image.open(io.BytesIO(bytes(message.data))) as picture:
                return load(picture)
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"a compressed picture ({message.format}): {error}") from error
    encoding = message.encoding
    if encoding.startswith("bayer"):
        raise ImageError(
            f"the picture is a raw mosaic ({encoding}): name the topic that image_proc makes of "
            "it, as image_color or image_rect_color"
        )
    if encoding not in _PICTURES:
        raise ImageError(f"the picture is {encoding!r}; known are {', '.join(_PICTURES)}")
    kind, channels, order = _PICTURES[encoding]
    pixels = _pixels(message, kind, channels)
    if pixels.dtype.itemsize == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., list(order)])


def depth_of(message: Any) -> NDArray[np.float64]:
    """The depth [H,W] of an Image, in metres; NaN where it is not known. Raises: ImageError."""
    if message.encoding not in _DEPTHS:
        raise ImageError(f"depth is {', '.join(_DEPTHS)}, found {message.encoding!r}")
    kind, unit = _DEPTHS[message.encoding]
    depth = _pixels(message, kind, 1)[..., 0].astype(np.float64) * unit
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)


def _pixels(message: Any, kind: str, channels: int) -> NDArray[Any]:
    """The samples [H,W,C] of an Image, whose rows may be padded."""
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    used = width * channels * dtype.itemsize
    data = np.frombuffer(bytes(message.data), np.uint8)
    if not height or not width or step < used or len(data) < step * (height - 1) + used:
        raise ImageError(
            f"a picture of {width}x{height} {message.encoding} with rows of {step} bytes has "
            f"{len(data)} bytes"
        )
    data = np.concatenate([data, np.zeros(max(0, step * height - len(data)), np.uint8)])
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :used])
    pixels = rows.view(dtype).reshape(height, width, channels)
    return np.asarray(pixels, dtype.newbyteorder("="))


def points_of(message: Any) -> NDArray[np.float64]:
    """The points [N,3] of a PointCloud2 in its own frame; those that are not finite are left out.
    Raises: GeometryError.
    """
    fields = {field.name: field for field in message.fields}
    if not {"x", "y", "z"} <= fields.keys():
        raise GeometryError(f"a cloud has x, y and z, found {', '.join(fields) or 'nothing'}")
    order = ">" if message.is_bigendian else "<"
    kinds = {_FLOAT32: f"{order}f4", _FLOAT64: f"{order}f8"}
    bad = [name for name in "xyz" if fields[name].datatype not in kinds]
    if bad:
        raise GeometryError(f"{', '.join(bad)} of the cloud are no float32 or float64")
    layout = np.dtype(
        {
            "names": [*"xyz"],
            "formats": [kinds[fields[name].datatype] for name in "xyz"],
            "offsets": [fields[name].offset for name in "xyz"],
            "itemsize": message.point_step,
        }
    )
    data = np.frombuffer(bytes(message.data), np.uint8)
    row = message.width * message.point_step
    if message.row_step < row or len(data) < message.row_step * message.height:
        raise GeometryError(f"a cloud of {message.width}x{message.height} has {len(data)} bytes")
    rows = data[: message.row_step * message.height].reshape(message.height, message.row_step)
    records = np.ascontiguousarray(rows[:, :row]).view(layout).reshape(-1)
    points = np.stack([records[name].astype(np.float64) for name in "xyz"], axis=1)
    return np.asarray(points[np.isfinite(points).all(1)])


def camera_of(message: Any, rectified: bool) -> Camera:
    """The camera of a CameraInfo; of its rectified pictures where these are seen. Raises:
    GeometryError.
    """
    # ROS 1 has capital letters.
    k, p = (np.asarray(_either(message, name), np.float64) for name in "kp")
    matrix = k.reshape(3, 3).copy()
    if rectified and p.any():
        matrix = p.reshape(3, 4)[:, :3].copy()
    matrix[:2, 2] += _HALF_PIXEL
    return Camera.from_matrix(matrix, message.height, message.width)


def is_distorted(message: Any) -> bool:
    """Whether a CameraInfo says that straight lines are bent."""
    return bool(np.asarray(_either(message, "d")).any())


def _either(message: Any, name: str) -> Any:
    return getattr(message, name) if hasattr(message, name) else getattr(message, name.upper())
