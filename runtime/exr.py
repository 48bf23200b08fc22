"""OpenEXR files: written by the package `OpenEXR` (extra `scene`), recognised without it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OutputError

MAGIC = b"\x76\x2f\x31\x01"
_LONGEST_NAME, _LONGEST_TEXT = 255, 4096  # bytes
_MOST_ATTRIBUTES = 100  # ours have about 15


def encode_exr(channels: Mapping[str, NDArray[np.float32]], texts: Mapping[str, str]) -> bytes:
    """A file of float32 channels [H,W], packed without loss, with `texts` in its header.

    Raises: ModuleNotFoundError without the package, OutputError where the temporary folder is full.
    """
    import OpenEXR

    header = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        **texts,
    }
    planes = {name: np.ascontiguousarray(plane) for name, plane in channels.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:  # it writes files only
            path = Path(folder) / "map.exr"
            with OpenEXR.File(header, planes) as file:
                file.write(str(path))
            return path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot make an EXR in the temporary folder: {error}") from error


def read_texts(stream: BinaryIO) -> dict[str, str]:
    """The texts in the header of an EXR; empty for any other file. Source: the OpenEXR file layout,
    "Header attributes".

    Raises: OSError, ValueError.
    """
    texts: dict[str, str] = {}
    if stream.read(4) != MAGIC:
        return texts
    stream.read(4)  # version and flags
    for _ in range(_MOST_ATTRIBUTES):
        name = _word(stream)
        if not name:
            break
        kind, length = _word(stream), int.from_bytes(stream.read(4), "little")
        if kind == "string" and length <= _LONGEST_TEXT:
            texts[name] = stream.read(length).decode("utf-8")
        else:
            stream.seek(length, 1)
    return texts


def _word(stream: BinaryIO) -> str:
    """A word that ends with a zero byte."""
    word = b""
    while (byte := stream.read(1)) not in (b"", b"\0") and len(word) <= _LONGEST_NAME:
        word += byte
    return word.decode("utf-8")
