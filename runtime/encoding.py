"""The contents of the files of a map, and what each says about itself.

`FORMATS` has them by the names of `--save`. A new one is an entry with what encodes it. All but
`npy`, which has no place for words, carry the texts of `texts_of`: PNG as text chunks, EXR in its
header, NPZ as the comment of the archive (and under keys of its own).
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.deflate import packer
from runtime.exr import encode_exr
from runtime.marker import (
    FILES,
    MARKER,
    PICTURE,
    SIGNATURE,
    TASK,
    UNCERTAINTY,
    chunk,
    long_chunk,
    text_chunk,
)
from runtime.tasks import TASKS, Task
from runtime.writing import Content, Piece

if TYPE_CHECKING:
    from runtime.prediction import TaskMap

MEANING, VALUES = "Lotus-Meaning", "Lotus-Values"
"""Keys of texts: what a value means, and how the file's numbers become values."""
_LONGEST_MEANING = 400  # characters; a bundle may say anything
_PACKED_AT_ONCE = 2**18  # bytes: they stay in the cache

Texts: TypeAlias = Mapping[str, str]
Encode: TypeAlias = "Callable[[TaskMap, Texts], Content]"


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A file of a map: `<name><ending>`. `package` is what writes it, "" where nothing is needed.

    `marked`: it says whose it is. `uncertain`: it has the uncertainty too.
    """

    ending: str
    encode: Encode
    package: str = ""
    marked: bool = True
    uncertain: bool = False


def texts_of(task_map: TaskMap, picture: str, files: Sequence[str]) -> dict[str, str]:
    """What all files of a map say: the mark, the task, the picture, which files belong together."""
    texts = {**dict([MARKER]), TASK: task_map.task, FILES: " ".join(files)}
    texts[MEANING] = _plain(task_map.meaning or TASKS[task_map.task].meaning)
    if picture:
        texts[PICTURE] = picture
    if task_map.uncertainty is not None:
        texts[UNCERTAINTY] = TASKS[task_map.task].uncertainty_unit
    return texts


def encode_npy(array: NDArray[Any]) -> Content:
    """A NumPy file of one array, as `np.save` writes it."""
    head, whole = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(whole))
    return [head.getvalue(), whole.data.cast("B")]


def png(values: NDArray[np.uint8] | NDArray[np.uint16], texts: Texts) -> bytes:
    """`encode_png` in one piece."""
    return b"".join(encode_png(values, texts))


def encode_png(
    values: NDArray[Any],
    texts: Texts,
    codes_of: Callable[[NDArray[Any]], NDArray[np.uint8] | NDArray[np.uint16]] = lambda rows: rows,
) -> Sequence[Piece]:
    """A PNG of 8 or 16 bits of samples [H,W] (grey) or [H,W,3] (RGB); Pillow writes no 16-bit RGB,
    and takes several times as long. Source: PNG specification, 9 and 11.2.

    `codes_of` makes the samples of some rows, so that they need not all be there at once.
    """
    height, width = values.shape[:2]
    none = codes_of(values[:0])
    depth, color_type = none.dtype.itemsize, 2 if none.ndim == 3 else 0
    head = struct.pack(">IIBBBBB", width, height, 8 * depth, color_type, 0, 0, 0)
    length = depth * math.prod(none.shape[1:])
    pack, lines = packer(noisy=depth > 1), _lines(values, codes_of, length)
    return [
        SIGNATURE,
        chunk(b"IHDR", head),
        *(text_chunk(keyword, text) for keyword, text in texts.items()),
        *long_chunk(b"IDAT", [*map(pack.compress, lines), pack.flush()]),
        chunk(b"IEND", b""),
    ]


def _lines(
    values: NDArray[Any], codes_of: Callable[[NDArray[Any]], NDArray[Any]], length: int
) -> Iterator[memoryview]:
    """The rows, each with a zero (no filter) before it, band after band in the same memory."""
    step = max(1, _PACKED_AT_ONCE // length)
    band = np.zeros((min(step, len(values)), 1 + length), np.uint8)
    for top in range(0, len(values), step):
        codes = np.ascontiguousarray(codes_of(values[top : top + step]))
        if codes.dtype.itemsize > 1:
            codes = codes.astype(codes.dtype.newbyteorder(">"), copy=False)
        piece = band[: len(codes)]
        piece[:, 1:] = codes.view(np.uint8).reshape(len(codes), length)
        yield piece.data.cast("B")


def _npy(task_map: TaskMap, texts: Texts) -> Content:
    return encode_npy(task_map.values)


def _png16(task_map: TaskMap, texts: Texts) -> Content:
    task = TASKS[task_map.task]
    words = f"0 is {task.low:g}, 65535 is {task.high:g}"
    return encode_png(task_map.values, {**texts, VALUES: words}, task.encode16)


def _color(task_map: TaskMap, texts: Texts) -> Content:
    task, values = TASKS[task_map.task], task_map.values
    return encode_png(values, {**texts, VALUES: task.legend(values)}, task.painter(values))


def _npz(task_map: TaskMap, texts: Texts) -> bytes:
    task, stream = TASKS[task_map.task], io.BytesIO()
    arrays: dict[str, Any] = {
        task.name: np.ascontiguousarray(task_map.values),
        "task": task.name,
        "meaning": task_map.meaning or task.meaning,
        "range": np.array([task.low, task.high]),
        "size": np.array(task_map.values.shape[:2]),
        "picture": texts.get(PICTURE, ""),
        "generator": texts[MARKER[0]],
    }
    if task_map.uncertainty is not None:
        arrays["uncertainty"] = task_map.uncertainty
        arrays["uncertainty_unit"] = task.uncertainty_unit
    np.savez(stream, **arrays)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.comment = "\n".join(f"{key}: {text}" for key, text in texts.items()).encode()
    return stream.getvalue()


def _exr(task_map: TaskMap, texts: Texts) -> bytes:
    task = TASKS[task_map.task]
    planes = np.moveaxis(task_map.values.reshape(*task_map.values.shape[:2], -1), -1, 0)
    channels = {name: planes[index] for name, index in exr_channels(task).items()}
    if task_map.uncertainty is not None:
        channels["uncertainty"] = task_map.uncertainty
    return encode_exr(channels, {**texts, VALUES: "float32, as they are"})


def exr_channels(task: Task) -> dict[str, int]:
    """The channels of an EXR, each with the channel of the map that it holds.

    Twice each: OpenCV and many viewers read only luminance (Y) or colours. Depth is Z, as ever;
    directions are X, Y and Z.
    """
    if task.channels == 1:
        return dict.fromkeys(("Z" if task.space == "depth" else task.name, "Y"), 0)
    colors = {name: index for index, name in enumerate("RGB")}
    return colors if task.axes is None else colors | {name: at for at, name in enumerate("XYZ")}


FORMATS: dict[str, FileFormat] = {
    "npy": FileFormat(ending=".npy", encode=_npy, marked=False, uncertain=True),
    "png16": FileFormat(ending="-16bit.png", encode=_png16),
    "color": FileFormat(ending=".png", encode=_color),
    "npz": FileFormat(ending=".npz", encode=_npz, uncertain=True),
    "exr": FileFormat(ending=".exr", encode=_exr, package="OpenEXR", uncertain=True),
}
"""What `--save` offers, in the order in which paths are returned."""


def _plain(text: str) -> str:
    """One line of Latin-1, as PNG takes it."""
    line = " ".join(text.split())[:_LONGEST_MEANING]
    return line.encode("latin-1", "replace").decode("latin-1")
