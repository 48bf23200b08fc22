"""Whether the files of a binary COLMAP model are whole.

pycolmap reads a file that was cut short without an end. So its records are walked through first.
Source: COLMAP's documentation, "Output Format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import GeometryError
from runtime.there import is_file

_SENSOR, _POSE, _ID = 8, 7 * 8, 4


@dataclass
class _Walk:
    data: bytes
    parameters: Callable[[int], int]
    at: int = 8

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError

    def number(self, form: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form))
        return int(struct.unpack_from(form, self.data, start)[0])


def check_whole(folder: Path, parameters: Callable[[int], int]) -> None:
    """Refuse a model with a file that ends too early or too late. `parameters` says how many
    numbers the camera model of a number has, or raises ValueError. Raises: GeometryError.
    """
    for name, record in _RECORDS.items():
        path = folder / f"{name}.bin"
        if not is_file(path):
            continue
        try:
            walk = _Walk(path.read_bytes(), parameters)
            for _ in range(struct.unpack_from("<Q", walk.data)[0]):
                record(walk)
            whole = walk.at == len(walk.data)
        except (ValueError, struct.error, IndexError):
            whole = False
        except OSError as error:
            raise GeometryError(f"cannot read {path}: {error}") from error
        if not whole:
            raise GeometryError(
                f"{path} is cut short or damaged: its records do not end where the file does. Copy "
                "the model again"
            )


def _camera(walk: _Walk) -> None:
    walk.skip(_ID)
    model = walk.number("<i")
    walk.skip(16 + 8 * walk.parameters(model))


def _image(walk: _Walk) -> None:
    walk.skip(_ID + _POSE + _ID)
    walk.at = walk.data.index(b"\0", walk.at) + 1
    walk.skip(24 * walk.number("<Q"))


def _point(walk: _Walk) -> None:
    walk.skip(8 + 3 * 8 + 3 + 8)
    walk.skip(8 * walk.number("<Q"))


def _rig(walk: _Walk) -> None:
    walk.skip(_ID)
    sensors = walk.number("<I")
    for sensor in range(sensors):
        walk.skip(_SENSOR)
        if sensor and walk.number("<B"):
            walk.skip(_POSE)


def _frame(walk: _Walk) -> None:
    walk.skip(2 * _ID + _POSE)
    walk.skip(16 * walk.number("<I"))


_RECORDS: dict[str, Callable[[_Walk], None]] = {
    "cameras": _camera,
    "images": _image,
    "points3D": _point,
    "rigs": _rig,
    "frames": _frame,
}
