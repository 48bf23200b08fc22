"""The result of one prediction: the values, their colours, their files."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import OutputError
from runtime.tasks import TASKS

# ColorBrewer's 11-class Spectral, the anchors of matplotlib's map of that name (the reference's colours), red first.
_SPECTRAL = np.array(
    [
        [158, 1, 66], [213, 62, 79], [244, 109, 67], [253, 174, 97], [254, 224, 139], [255, 255, 191],
        [230, 245, 152], [171, 221, 164], [102, 194, 165], [50, 136, 189], [94, 79, 162],
    ],
    dtype=np.float64,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One task's map for one image.

    `values` is float32 [H,W] in [0,1] for depth and disparity, or unit vectors [H,W,3] for normals.
    """

    task: str
    values: NDArray[np.float32]

    def colorize(self) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3]: Spectral, near is red, min to max of this image; normals as (n + 1) / 2."""
        task = TASKS[self.task]
        if task.channels == 3:
            colors: NDArray[np.uint8] = np.clip(np.rint((self.values + 1) * 127.5), 0, 255).astype(np.uint8)
            return colors
        low, high = float(self.values.min()), float(self.values.max())
        unit = (self.values.astype(np.float64) - low) / max(high - low, 1e-12)
        index = np.rint((1 - unit if task.reverse_colors else unit) * 255).astype(np.intp)
        return _spectral_table()[index]

    def save(self, folder: str | os.PathLike[str], name: str = "prediction") -> list[Path]:
        """Write `<name>.npy` (float32), `<name>-16bit.png` (0..65535 over the task's range) and `<name>.png` (colours).

        Each file appears whole or not at all. Returns the three paths. Raises: OutputError.
        """
        task = TASKS[self.task]
        deep = np.rint((self.values.astype(np.float64) - task.low) / (task.high - task.low) * 65535)
        array, picture = io.BytesIO(), io.BytesIO()
        np.save(array, self.values, allow_pickle=False)
        Image.fromarray(self.colorize()).save(picture, format="PNG")
        contents = (array.getvalue(), _png16(deep.clip(0, 65535).astype(np.uint16)), picture.getvalue())
        return [
            write_whole(path, content) for path, content in zip(saved_paths(Path(folder) / name), contents, strict=True)
        ]


def saved_paths(stem: Path) -> list[Path]:
    """The files that `Prediction.save(stem.parent, stem.name)` writes: array, 16-bit PNG, colour PNG."""
    return [stem.with_name(f"{stem.name}{ending}") for ending in (".npy", "-16bit.png", ".png")]


def _spectral_table() -> NDArray[np.uint8]:
    """256 colours, linear between the anchors."""
    position = np.linspace(0, len(_SPECTRAL) - 1, 256)
    channels = [np.interp(position, np.arange(len(_SPECTRAL)), _SPECTRAL[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _png16(values: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of [H,W] (grey) or [H,W,3] (RGB); Pillow writes no 16-bit RGB. Source: PNG specification, 11.2."""
    height, width = values.shape[:2]
    color_type = 2 if values.ndim == 3 else 0
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_whole(path: Path, content: bytes) -> Path:
    """Write the file, and the folder above it, whole or not at all. Raises: OutputError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path
