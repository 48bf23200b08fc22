"""What EXIF and XMP are read for: which way up, and the focal length.

Pillow's reader of EXIF warns about damaged blocks through the `warnings` of the whole process,
which no thread can silence for itself alone. So it is never asked; a damaged block turns nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_ORIENTATION = 0x0112
# Types of integers, by their codes. Pillow turns by these; a BYTE is no number for it.
_TYPES = {3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}
_RATIONALS = {5: "II", 10: "ii"}
_EXIF_FOLDER, _FOCAL, _FOCAL_35MM = 0x8769, 0x920A, 0xA405
_PIXELS_X, _PIXELS_Y = 0xA002, 0xA003
_PLANE_RESOLUTION, _PLANE_UNIT = 0xA20E, 0xA210
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_MOST_ENTRIES = 1000  # of an EXIF directory; cameras write some twenty


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """EXIF's orientation, 1 (upright) to 8; XMP's where EXIF has none. Never raises."""
    found = _from_exif(exif or b"")
    if found is None and (match := _XMP.search(xmp or b"")):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


@dataclass(frozen=True, kw_only=True)
class Lens:
    """What EXIF says about focal lengths, in millimetres; `pixels_per_mm` of the sensor, for a
    picture of `width` x `height`. None: it does not say.
    """

    focal: float | None = None
    focal_35mm: float | None = None
    pixels_per_mm: float | None = None
    width: int | None = None
    height: int | None = None


def lens_of(exif: bytes | None) -> Lens | None:
    """The lens of a picture; None without EXIF that can be read. Never raises."""
    main = _numbers(exif or b"")
    if _EXIF_FOLDER not in main:
        return None
    found = _numbers(exif or b"", int(main[_EXIF_FOLDER]))
    unit = {2: 1 / 25.4, 3: 1 / 10}.get(int(found.get(_PLANE_UNIT, 2)))  # inches, centimetres
    resolution = found.get(_PLANE_RESOLUTION)
    width, height = (int(found.get(tag, 0)) or None for tag in (_PIXELS_X, _PIXELS_Y))
    return Lens(
        focal=found.get(_FOCAL) or None,
        focal_35mm=found.get(_FOCAL_35MM) or None,
        pixels_per_mm=resolution * unit if resolution and unit else None,
        width=width,
        height=height,
    )


def _from_exif(block: bytes) -> int | None:
    found = _numbers(block).get(_ORIENTATION)
    return None if found is None else int(found)


def _numbers(block: bytes, start: int | None = None) -> dict[int, float]:
    """The entries of one number, by their tags, of the directory at `start` (None: the first)."""
    return dict(reversed([*_entries(block, start)]))  # of several of a tag the first counts


def _entries(block: bytes, start: int | None) -> Iterator[tuple[int, float]]:
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return
    try:
        if start is None:
            (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for number in range(min(count, _MOST_ENTRIES)):
            tag, kind, values, value = struct.unpack_from(
                f"{order}HHI4s", block, start + 2 + 12 * number
            )
            if values != 1:
                continue
            if kind in _TYPES:
                yield tag, struct.unpack(f"{order}{_TYPES[kind]}", value)[0]
            elif kind in _RATIONALS:
                (at,) = struct.unpack(f"{order}I", value)
                over, under = 0, 0
                if at + 8 <= len(block):
                    over, under = struct.unpack_from(f"{order}{_RATIONALS[kind]}", block, at)
                if under:
                    yield tag, over / under
    except struct.error:
        return
