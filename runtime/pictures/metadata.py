"""The one thing that EXIF and XMP are read for: which way up.

Pillow's reader of EXIF warns about damaged blocks through the `warnings` of the whole process,
which no thread can silence for itself alone. So it is never asked; a damaged block turns nothing.
"""

from __future__ import annotations

import re
import struct

_ORIENTATION = 0x0112
# Types of integers, by their codes. Pillow turns by these; a BYTE is no number for it.
_TYPES = {3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_MOST_ENTRIES = 1000  # of an EXIF directory; cameras write some twenty


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """EXIF's orientation, 1 (upright) to 8; XMP's where EXIF has none. Never raises."""
    found = _from_exif(exif or b"")
    if found is None and (match := _XMP.search(xmp or b"")):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _from_exif(block: bytes) -> int | None:
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    try:
        (start,) = struct.unpack_from(f"{order or '='}I", block, 4)
        (count,) = struct.unpack_from(f"{order or '='}H", block, start)
        for number in range(min(count, _MOST_ENTRIES) if order else 0):
            tag, kind, values, value = struct.unpack_from(
                f"{order}HHI4s", block, start + 2 + 12 * number
            )
            if tag == _ORIENTATION and kind in _TYPES and values == 1:
                return int(struct.unpack(f"{order}{_TYPES[kind]}", value)[0])
    except struct.error:
        pass
    return None
