"""GIF: the same file, its screen made as large as its first picture needs.

A picture may be larger than the screen that the header gives. Pillow makes room for it then, and
checks its own limit on pixels; here the size is known, and checked, before. What differs is noted:
the size of the one or of the other may be damaged, and what no picture covers is background.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from runtime.pictures.source import Source, spliced

_MOST_BLOCKS = 2**16  # before the first picture


def read_gif(file: BinaryIO) -> Source:
    """A GIF, of an animated one the first picture."""
    head = file.read(13)
    _, width, height, flags = struct.unpack("<6sHHB", head[:11])
    file.seek(13 + _table(flags))
    damage: list[str] = []
    for _ in range(_MOST_BLOCKS):
        kind = file.read(1)
        if kind == b",":
            left, top, across, down = struct.unpack("<4H", file.read(8))
            if (left, top, across, down) != (0, 0, width, height):
                damage.append(
                    f"its picture of {across}x{down} at {left}, {top} is not the {width}x{height} "
                    "of its header"
                )
            width, height = max(width, left + across), max(height, top + down)
            break
        if kind != b"!":
            raise ValueError("no picture was found")
        file.read(1)  # which extension
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)
    if max(width, height) > 0xFFFF:
        raise ValueError(f"a picture of {width}x{height} does not fit into a GIF")
    beginning = head[:6] + struct.pack("<HH", width, height) + head[10:]
    size = file.seek(0, 2)
    stream = spliced(file, [beginning, (13, size - 13)])
    return Source(stream=stream, format="GIF", damage=damage)


def _table(flags: int) -> int:
    """Bytes of a colour table, from the flags that announce it."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
