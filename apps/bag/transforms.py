"""Where sensors are: the tree of frames in /tf and /tf_static, or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import GeometryError

Matrix = NDArray[np.float64]
_DEEPEST = 100  # frames between a sensor and the root


class Frames:
    """The newest transform of each frame to its parent."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Matrix]] = {}

    def add(self, message: Any) -> None:
        """Take over a tf2_msgs/TFMessage."""
        for each in message.transforms:
            self._parents[_plain(each.child_frame_id)] = (
                _plain(each.header.frame_id),
                matrix_of(each.transform),
            )

    def between(self, target: str, source: str) -> Matrix:
        """What brings points of the frame `source` into `target`, [4,4]. Raises: GeometryError."""
        first, second = self._way(_plain(target)), self._way(_plain(source))
        common = next((frame for frame in first if frame in second), None)
        if common is None:
            known = ", ".join(sorted({*self._parents} | {up for up, _ in self._parents.values()}))
            raise GeometryError(
                f"nothing in /tf or /tf_static leads from {source!r} to {target!r} (known: "
                f"{known or 'no frame'}). Give --extrinsic FILE, a 4x4 matrix that brings points "
                "of the anchor's frame into the camera's"
            )
        return np.asarray(np.linalg.inv(first[common]) @ second[common])

    def _way(self, frame: str) -> dict[str, Matrix]:
        """The frame and those above it, with what brings points of it there."""
        way, matrix = {frame: np.eye(4)}, np.eye(4)
        while frame in self._parents and len(way) < _DEEPEST:
            frame, up = self._parents[frame]
            matrix = up @ matrix
            if frame in way:
                break
            way[frame] = matrix
        return way


def matrix_of(transform: Any) -> Matrix:
    """A geometry_msgs/Transform as [4,4]."""
    x, y, z, w = (getattr(transform.rotation, name) for name in "xyzw")
    length = np.sqrt(x * x + y * y + z * z + w * w) or 1.0
    x, y, z, w = (number / length for number in (x, y, z, w))
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = [getattr(transform.translation, name) for name in "xyz"]
    return matrix


def read_extrinsic(path: Path) -> Matrix:
    """A rigid transform [4,4] from a JSON file. Raises: GeometryError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        matrix = np.asarray(found["matrix"] if isinstance(found, dict) else found, np.float64)
        matrix = matrix.reshape(4, 4)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GeometryError(f"cannot read a 4x4 matrix from {path}: {error!r}") from error
    turn = matrix[:3, :3]
    rigid = np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0
    if not rigid or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise GeometryError(f"{path} is no rotation with a translation: {matrix.tolist()}")
    return matrix


def _plain(frame: str) -> str:
    return frame.lstrip("/")  # ROS 1 wrote it with a slash
