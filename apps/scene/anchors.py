"""Files of known distances and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.alignment import Anchors
from runtime.errors import GeometryError

_MILLIMETRE = 0.001


def read_anchors(path: Path, height: int, width: int) -> Anchors:
    """Known distances in metres, for a picture of this size.

    `.npy`: an array [N,3] of (u, v, depth) or a depth map [H,W]. `.png`: a depth map in
    millimetres, 16 bits. Any other file: lines of three numbers, `u v depth` or `u,v,depth`; `#`
    begins a comment. Raises: GeometryError.
    """
    try:
        if path.suffix.lower() == ".png":
            with path.open("rb") as stream, Image.open(stream) as image:
                array = np.asarray(image).astype(np.float64) * _MILLIMETRE
        elif path.suffix.lower() == ".npy":
            array = np.asarray(np.load(path, allow_pickle=False), np.float64)
        else:
            lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
            rows = [text.split() for line in lines if (text := line.partition("#")[0]).strip()]
            array = np.array(rows, np.float64).reshape(len(rows), -1)
    except (OSError, ValueError, SyntaxError) as error:
        raise GeometryError(f"cannot read the known distances {path}: {error}") from error
    if array.ndim == 2 and array.shape == (height, width):
        return Anchors.from_map(array)
    if array.ndim == 2 and array.shape[1] == 3:
        return Anchors(u=array[:, 0], v=array[:, 1], depth=array[:, 2])
    raise GeometryError(
        f"{path} is neither lines of u, v and depth nor a depth map of the picture's "
        f"{width}x{height} pixels; its shape is {list(array.shape)}"
    )


def read_mask(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    """A mask [H,W] from a picture of this size: what is brighter than half. Raises:
    GeometryError.
    """
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            mask: NDArray[Any] = np.asarray(image.convert("L"))
    except (OSError, ValueError, SyntaxError) as error:
        raise GeometryError(f"cannot read the mask {path}: {error}") from error
    if mask.shape != (height, width):
        raise GeometryError(
            f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels, the picture {width}x{height}"
        )
    return mask > 127
