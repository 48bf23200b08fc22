"""WebP: the same file, its compressed data looked at for lost sectors."""

from __future__ import annotations

from typing import BinaryIO

from runtime.pictures.source import Source, lost_sectors

_FRAME = 16  # bytes of ANMF before the chunks of a frame


def read_webp(file: BinaryIO) -> Source:
    """A WebP, of an animated one the first picture. Profile and EXIF come from Pillow."""
    data = file.read()
    at, damage = 12, list[str]()
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"ANMF":
            at += 8 + _FRAME
            continue
        if kind in (b"VP8 ", b"VP8L"):  # lossless ones write zeros themselves
            end = min(at + 8 + length, len(data))
            damage = lost_sectors(data, at + 8, end, flat=kind == b"VP8L")
            break
        at += 8 + length + length % 2
    return Source(stream=file, format="WEBP", damage=damage)
