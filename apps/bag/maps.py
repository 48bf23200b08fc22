"""From the pictures and anchors of a bag to the fields of messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.bag.messages import (
    Fields,
    camera_fields,
    cloud_fields,
    depth_of,
    image_fields,
    points_of,
)
from apps.bag.transforms import Frames, Matrix
from runtime.alignment import Alignment, Anchors, align
from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.geometry import unproject
from runtime.prediction import Prediction
from runtime.tasks import TASKS

IMAGE, INFO, CLOUD = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/PointCloud2",
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A message to be: `name` below the prefix of topics, `kind` of message, its `fields`."""

    name: str
    kind: str
    fields: Fields


@dataclass(kw_only=True)
class Metric:
    """Depth in metres out of maps up to scale and shift, by anchors. Where a frame's own anchors do
    not do, the alignment of the last frame that had some is used; `reused` counts these frames,
    `without` those before any.
    """

    alignment: Alignment | None = None
    reused: int = 0
    without: int = 0
    residuals: list[float] = field(default_factory=list)

    def __call__(
        self, values: NDArray[np.float32], space: str, anchors: Anchors | None
    ) -> NDArray[np.float32] | None:
        """Depth [H,W] in metres; None where nothing is known yet."""
        try:
            if anchors is None:
                raise GeometryError("no anchor is near in time")
            self.alignment = align(values, space, anchors)
            self.residuals.append(self.alignment.residual)
        except GeometryError:
            if self.alignment is None:
                self.without += 1
                return None
            self.reused += 1
        return self.alignment.depth(values)


def anchors_of(
    message: Any, camera: Camera, target: str, frames: Frames, extrinsic: Matrix | None
) -> Anchors:
    """Known depth in the camera's picture, from a lidar's cloud or a depth picture.

    A depth picture in the camera's own frame is taken to be of the same view, at any resolution. A
    cloud is brought into the frame `target` by `extrinsic`, or by the bag's transforms. Raises:
    GeometryError.
    """
    height, width = int(camera.height or 0), int(camera.width or 0)
    source = message.header.frame_id
    if hasattr(message, "encoding"):
        if extrinsic is not None or source.lstrip("/") != target.lstrip("/"):
            raise GeometryError(
                f"the depth is in the frame {source!r}, the picture in {target!r}: name the topic "
                "of depth that is registered to the picture, or a cloud"
            )
        depth = depth_of(message)
        rows, columns = np.nonzero(np.isfinite(depth))
        return Anchors(
            u=(columns + 0.5) * (width / depth.shape[1]),
            v=(rows + 0.5) * (height / depth.shape[0]),
            depth=depth[rows, columns],
        )
    points = points_of(message)
    matrix = frames.between(target, source) if extrinsic is None else extrinsic
    u, v, depth = camera.project(points @ matrix[:3, :3].T + matrix[:3, 3]).T
    seen = (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return Anchors(u=u[seen], v=v[seen], depth=depth[seen])


def made_of(
    prediction: Prediction,
    rgb: NDArray[np.uint8],
    camera: Camera | None,
    metric: Metric | None,
    anchors: Anchors | None,
    stride: int = 1,
) -> Iterator[Made]:
    """The messages of one picture: each map as the engine gives it (normals in the camera's frame);
    with `metric` also depth in metres, and with a camera its points.
    """
    for task, each in prediction.items():
        axes = TASKS[task].axes
        name = f"{task}/image" if axes is None else "normals/image"
        values = each.values if axes is None else each.values * np.array(axes, np.float32)
        # Depth up to scale and shift is no depth of REP 118, which has metres.
        name = "relative_depth/image" if task == "depth" else name
        yield Made(name=name, kind=IMAGE, fields=image_fields(values))
    if camera is not None:
        yield Made(name="camera_info", kind=INFO, fields=camera_fields(camera))
    far = next((name for name in prediction if TASKS[name].space is not None), None)
    if metric is None or far is None:
        return
    depth = metric(prediction[far].values, str(TASKS[far].space), anchors)
    if depth is None:
        return
    yield Made(name="depth/image_rect", kind=IMAGE, fields=image_fields(depth))
    if camera is not None:
        yield Made(name="depth/camera_info", kind=INFO, fields=camera_fields(camera))
        points = unproject(depth, camera)[::stride, ::stride]
        fields = cloud_fields(points, rgb[::stride, ::stride])
        yield Made(name="points", kind=CLOUD, fields=fields)
