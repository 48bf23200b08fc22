"""Small bags for tests, written with rosbags."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from runtime.camera import Camera

HEIGHT, WIDTH, COUNT = 480, 640, 3
TOPIC, INFO = "/camera/color/image_raw", "/camera/color/camera_info"
LIDAR, DEPTH = "/lidar/points", "/camera/depth/image_raw"
STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types
K = [500.0, 0, 319.5, 0, 510, 239.5, 0, 0, 1]
LIDAR_IN_CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, 0.3], [0, 0, 0, 1.0]])


def header(number: int, frame: str) -> Any:
    stamp = T["builtin_interfaces/msg/Time"](sec=100 + number, nanosec=250_000_000)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def picture(number: int) -> np.ndarray:
    """RGB uint8: bright is near for the null backend, whose answer is the mean of the colours."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rgb = np.stack([90 + 60 * np.sin(x / 150 + number), 120 + 0 * x, 100 + 80 * y / HEIGHT], -1)
    return rgb.astype(np.uint8)


def truth(values: np.ndarray) -> np.ndarray:
    """Metric depth of a map of disparity."""
    return 1 / (0.6 * values + 0.05)


def image(rgb: np.ndarray, number: int) -> Any:
    return _image("bgr8", np.ascontiguousarray(rgb[..., ::-1]).reshape(-1), number)


def _image(encoding: str, data: np.ndarray, number: int) -> Any:
    """`data`: the bytes of all pixels, uint8 [N]."""
    return T["sensor_msgs/msg/Image"](
        header=header(number, "camera_optical"),
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=0,
        step=len(data) // HEIGHT,
        data=data,
    )


def compressed(rgb: np.ndarray, number: int) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return T["sensor_msgs/msg/CompressedImage"](
        header=header(number, "camera_optical"),
        format="png",
        data=np.frombuffer(buffer.getvalue(), np.uint8),
    )


def camera_info(number: int) -> Any:
    roi = T["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return T["sensor_msgs/msg/CameraInfo"](
        header=header(number, "camera_optical"),
        height=HEIGHT,
        width=WIDTH,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=np.array(K),
        r=np.eye(3).reshape(-1),
        p=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def lidar(depth: np.ndarray, number: int) -> Any:
    """The camera's points as a lidar has them, some of them, in its own frame."""
    camera = Camera.from_matrix([[500, 0, 320], [0, 510, 240], [0, 0, 1]], HEIGHT, WIDTH)
    x, y = camera.slopes()
    points = np.stack([x * depth, y * depth, depth], -1).reshape(-1, 3)[::173]
    back = np.linalg.inv(LIDAR_IN_CAMERA)
    points = points @ back[:3, :3].T + back[:3, 3]
    record = np.zeros(len(points), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("i", "<f4")])
    for axis, name in enumerate("xyz"):
        record[name] = points[:, axis]
    field = T["sensor_msgs/msg/PointField"]
    return T["sensor_msgs/msg/PointCloud2"](
        header=header(number, "lidar"),
        height=1,
        width=len(points),
        fields=[
            field(name=name, offset=4 * at, datatype=7, count=1)
            for at, name in enumerate(("x", "y", "z", "intensity"))
        ],
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        data=record.view(np.uint8),
        is_dense=True,
    )


def transform() -> Any:
    """camera_optical is 90 degrees round from the lidar, by way of the base."""
    turn = T["geometry_msgs/msg/Quaternion"](x=-0.5, y=0.5, z=-0.5, w=0.5)
    back = np.linalg.inv(LIDAR_IN_CAMERA)
    move = T["geometry_msgs/msg/Vector3"](**dict(zip("xyz", map(float, back[:3, 3]), strict=True)))
    identity = T["geometry_msgs/msg/Transform"](
        translation=T["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0),
        rotation=T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    stamped = T["geometry_msgs/msg/TransformStamped"]
    return T["tf2_msgs/msg/TFMessage"](
        transforms=[
            stamped(header=header(0, "base"), child_frame_id="lidar", transform=identity),
            stamped(
                header=header(0, "lidar"),
                child_frame_id="camera_optical",
                transform=T["geometry_msgs/msg/Transform"](translation=move, rotation=turn),
            ),
        ]
    )


def depth_image(depth: np.ndarray, number: int) -> Any:
    data = np.where(np.arange(WIDTH) % 2, depth * 1000, 0).astype("<u2")
    return _image("16UC1", data.reshape(-1).view(np.uint8), number)


def write_bag(path: Path, messages: Iterable[tuple[str, Any, int]], storage: str = "mcap") -> Path:
    """A ROS 2 bag of topics, messages and the numbers of the pictures that they go with."""
    plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for topic, message, number in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            when = (100 + number) * 10**9 + len(connections)
            writer.write(connections[topic], when, STORE.serialize_cdr(message, kind))
    return path
