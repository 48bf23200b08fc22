"""Images that cannot be used, by a piece of the message: rows of docs/troubleshooting.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def written(folder: Path, name: str, lost: int = 0, **options: Any) -> Path:
    """A picture, without its last bytes if any are `lost`."""
    path = folder / name
    Image.fromarray(RGB).save(path, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - lost])
    return path


def holding(folder: Path, content: bytes) -> Path:
    (folder / "note.png").write_bytes(content)
    return folder / "note.png"


def with_hole(data: bytes) -> bytes:
    return data[:5000] + bytes(1024) + data[6024:]


# From an empty folder to the image, and the keywords beside it.
BAD_IMAGES: dict[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    "no such file": lambda folder: (folder / "nothing.png", {}),
    "is not a picture of a known format": lambda folder: (holding(folder, b"no picture"), {}),
    "cannot be decoded": lambda folder: (holding(folder, b"\x89PNG\r\n\x1a\n" + bytes(50)), {}),
    "is cut short": lambda folder: (written(folder, "a.jpg", 5000), {}),
    "the end is missing": lambda folder: (written(folder, "a.jpg", 10), {"strict": True}),
    "a part may be lost": lambda folder: (
        holding(folder, with_hole(written(folder, "a.jpg").read_bytes())),
        {"strict": True},
    ),
    "pass a smaller copy, or raise max_pixels": lambda folder: (
        written(folder, "a.png"),
        {"max_pixels": 96 * 127},
    ),
    "pixels lie in": lambda _: (RGB / 100, {}),
    "camera raw": lambda folder: (
        written(folder, "a.dng", format="TIFF", tiffinfo={50706: b"\1\4\0\0"}),
        {},
    ),
    "expected a non-empty array [H,W,3]": lambda _: (RGB[..., :2], {}),
}
