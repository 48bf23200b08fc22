"""The result of one prediction: the values, their colours, their files."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.files import write_atomic
from runtime.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One task's map for one image.

    `values` is float32: [H,W] in [0,1] for depth and disparity, unit vectors [H,W,3] for normals.
    """

    task: str
    values: NDArray[np.float32]

    def colorize(self) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3].

        Depth and disparity: Spectral from the image's smallest to its largest value, near is red.
        Normals: (n + 1) / 2. Other tasks: see their `Task`.
        """
        return TASKS[self.task].colorize(self.values)

    def save(self, folder: str | os.PathLike[str], name: str = "prediction") -> list[Path]:
        """Write `<name>.npy` (float32), `<name>-16bit.png` (0..65535 over the task's range) and
        `<name>.png` (colours).

        Each file appears whole or not at all. Returns the three paths. Raises: OutputError.
        """
        array, picture = io.BytesIO(), io.BytesIO()
        np.save(array, self.values, allow_pickle=False)
        Image.fromarray(self.colorize()).save(picture, format="PNG")
        deep = _png16(TASKS[self.task].encode16(self.values))
        contents = (array.getvalue(), deep, picture.getvalue())
        return [
            write_atomic(path, content)
            for path, content in zip(saved_paths(Path(folder) / name), contents, strict=True)
        ]


def saved_paths(stem: Path) -> list[Path]:
    """The files that `Prediction.save(stem.parent, stem.name)` writes: array, 16-bit PNG, colour
    PNG.
    """
    return [stem.with_name(f"{stem.name}{ending}") for ending in (".npy", "-16bit.png", ".png")]


def _png16(values: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of [H,W] (grey) or [H,W,3] (RGB); Pillow writes no 16-bit RGB. Source: PNG
    specification, 11.2.
    """
    height, width = values.shape[:2]
    color_type = 2 if values.ndim == 3 else 0
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = (
        chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body
