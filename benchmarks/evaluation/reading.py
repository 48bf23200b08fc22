"""Files of data sets as arrays, as the authors' code reads them: no rotation by EXIF, no colour
profile. `where` names a file in errors; all of these raise DataSetError for what they cannot read.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.data_sets import DataSetError, Source


def read_picture(source: Source, name: str) -> NDArray[np.uint8]:
    """RGB uint8 [H,W,3]."""
    image = _open(source, name)
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataSetError(f"cannot read {_where(source, name)}: {error}") from error


def read_levels(source: Source, name: str) -> NDArray[np.generic]:
    """A PNG's samples as they are: [H,W], or [H,W,C] of several bands."""
    try:
        return np.array(_open(source, name))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataSetError(f"cannot read {_where(source, name)}: {error}") from error


def read_depth_png(source: Source, name: str, unit: float) -> NDArray[np.float32]:
    """Depth [H,W] in metres of 16-bit levels, of which `unit` are a metre."""
    levels = read_levels(source, name)
    if levels.ndim != 2 or levels.dtype.kind not in "ui":
        raise DataSetError(
            f"{_where(source, name)} is no depth map: expected a PNG of one band of 16 bits, found "
            f"{levels.dtype} {list(levels.shape)}"
        )
    return (levels / unit).astype(np.float32)


def read_raw_floats(source: Source, name: str, height: int, width: int) -> NDArray[np.float32]:
    """Depth [H,W] of the bytes of little-endian float32, infinity as 0."""
    content = source.read(name)
    if len(content) != 4 * height * width:
        raise DataSetError(
            f"{_where(source, name)} has {len(content)} bytes, expected {4 * height * width}: "
            f"float32 for each pixel of its picture, {height} x {width}"
        )
    depth = np.frombuffer(content, "<f4").reshape(height, width)
    return np.where(np.isinf(depth), np.float32(0), depth)


def read_array(source: Source, name: str) -> NDArray[Any]:
    """An array [H,W] of a .npy file, axes of length 1 left out."""
    try:
        array = np.load(io.BytesIO(source.read(name)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataSetError(f"cannot read {_where(source, name)}: {error}") from error
    array = np.squeeze(array)
    if array.ndim != 2:
        raise DataSetError(f"{_where(source, name)} is no map: its shape is {list(array.shape)}")
    return array


def read_exr(source: Source, name: str) -> NDArray[np.float32]:
    """R, G and B [H,W,3] of an EXR."""
    import OpenEXR

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.exr"
        path.write_bytes(source.read(name))
        try:
            channels = OpenEXR.File(str(path), separate_channels=True).channels()
            planes = [np.asarray(channels[band].pixels, np.float32) for band in "RGB"]
        except Exception as error:  # the library raises RuntimeError, ValueError and its own
            raise DataSetError(f"cannot read {_where(source, name)}: {error!r}") from error
    return np.stack(planes, axis=-1)


def _open(source: Source, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source.read(name)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataSetError(f"cannot read {_where(source, name)}: {error}") from error


def _where(source: Source, name: str) -> str:
    return f"{name} of {source.path}"
