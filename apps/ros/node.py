"""A ROS 2 node: maps of a camera's pictures, as they come. **Never run here**: this project has no
ROS. Its messages are those of `lotus-edge bag`, which are tested; what is not is this file.

    ros2 run is not needed: python -m apps.ros.node BUNDLE --ros-args -r image:=/camera/image_raw \\
        -r camera_info:=/camera/camera_info

It subscribes to `image` and `camera_info` and publishes `lotus/...`, as the command does, without
what needs anchors. Pictures that come while one is predicted are dropped.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from runtime.extras import explain_missing_packages

if __name__ == "__main__":
    explain_missing_packages()

from apps.bag.maps import IMAGE, INFO, made_of
from apps.bag.messages import camera_of, rgb_of
from runtime.camera import Camera
from runtime.console import say
from runtime.engine import LotusEngine
from runtime.errors import GeometryError, LotusError


def main() -> int:
    """Run until ROS shuts down. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    bundle = parser.parse_known_args()[0].bundle  # the others are ROS's
    try:
        import rclpy
        from rclpy.node import Node
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, Image
    except ModuleNotFoundError as error:
        say(f"error: this needs ROS 2 (there is no package {error.name!r}): source its setup.bash")
        return 1
    kinds = {IMAGE: Image, INFO: CameraInfo}

    class Lotus(Node):  # type: ignore[misc]
        """Answers pictures one at a time."""

        def __init__(self, engine: LotusEngine) -> None:
            super().__init__("lotus")
            self._engine, self._info, self._outputs = engine, None, dict[str, Any]()
            self.create_subscription(CameraInfo, "camera_info", self._keep, 10)
            # A queue of one, best effort: the newest picture, not a backlog.
            newest = qos_profile_sensor_data
            newest.depth = 1
            self.create_subscription(Image, "image", self._answer, newest)

        def _keep(self, message: Any) -> None:
            self._info = message

        def _answer(self, message: Any) -> None:
            try:
                rgb = rgb_of(message)
                height, width = rgb.shape[:2]
                camera = _camera(self._info, height, width, self.get_logger())
                prediction = self._engine(rgb)
                for made in made_of(prediction, rgb, camera, metric=None, anchors=None):
                    if made.name not in self._outputs:
                        self._outputs[made.name] = self.create_publisher(
                            kinds[made.kind], f"lotus/{made.name}", 10
                        )
                    self._outputs[made.name].publish(_filled(kinds[made.kind], made, message))
            except LotusError as error:
                self.get_logger().error(str(error), throttle_duration_sec=5.0)

    rclpy.init(args=sys.argv)
    try:
        with LotusEngine(bundle) as engine:
            rclpy.spin(Lotus(engine))
    except KeyboardInterrupt:
        return 130
    finally:
        rclpy.try_shutdown()
    return 0


def _camera(info: Any, height: int, width: int, logger: Any) -> Camera | None:
    """That of pictures of this size; None without `info`, or where it holds none: a driver that was
    never calibrated sends zeros.
    """
    if info is None:
        return None
    try:
        return camera_of(info, rectified=False).at(height, width)
    except GeometryError as error:
        logger.warning(f"camera_info holds no camera ({error}): no points are published", once=True)
        return None


def _filled(kind: Any, made: Any, picture: Any) -> Any:
    """A message of rclpy with these fields, and the header of the picture."""
    message = kind()
    message.header = picture.header
    for name, value in made.fields.items():
        # rclpy takes lists of numbers, and bytes quickly only as an array.
        if name == "data":
            message.data.frombytes(value.tobytes())
        else:
            setattr(message, name, value.tolist() if hasattr(value, "tolist") else value)
    return message


if __name__ == "__main__":
    sys.exit(main())
