"""AVIF: the same file, its EXIF out of sight, and the size that its compressed data say.

Pillow reads EXIF while it opens an AVIF, and warns about a damaged block. It is not needed: the
orientation of an AVIF is a property of the container (irot, imir), and Pillow brings it to us.

The size of the picture stands in the container and in the AV1 data. Where they differ, the decoder
stretches the picture without a word.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from runtime.pictures.source import Source

# An entry of the item list (ISO/IEC 14496-12, box infe, version 2 or 3): flags, the item's number
# in 2 or 4 bytes, protection, type.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)
_SEQUENCE_HEADER = 1  # a type of OBU
_MOST_OBUS = 8  # before the sequence header; usually one


def read_avif(file: BinaryIO) -> Source:
    """An AVIF, of an animated one the first picture. Profile and orientation come from Pillow."""
    data = file.read()
    try:
        size = _coded_size(data)
    except (IndexError, struct.error):  # the decoder will tell what is wrong with it
        size = None
    return Source(stream=io.BytesIO(_EXIF_ITEM.sub(rb"\1free", data)), format="AVIF", size=size)


def _coded_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the AV1 data of the main picture; None where it is made of tiles, or not
    found.
    """
    meta = _find(data, b"meta", 0, len(data))
    if meta is None:
        return None
    boxes = {kind: (start, end) for kind, start, end in _boxes(data, meta[0] + 4, meta[1])}
    if not {b"pitm", b"iinf", b"iloc"} <= boxes.keys():
        return None
    at = boxes[b"pitm"][0]
    (main,) = struct.unpack_from(">I" if data[at] else ">H", data, at + 4)
    start, end = boxes[b"iinf"]
    for kind, entry, _ in _boxes(data, start + (8 if data[start] else 6), end):
        wide = data[entry] > 2
        (number,) = struct.unpack_from(">I" if wide else ">H", data, entry + 4)
        named = entry + (10 if wide else 8)
        if kind == b"infe" and number == main and data[named : named + 4] == b"av01":
            place = _place(data, boxes[b"iloc"][0], main)
            return None if place is None else _size_in_obus(data, place)
    return None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box in `start` to `end`."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, start + 8), 16
        length = length or end - start
        if length < head:
            return
        yield kind, start + head, min(start + length, end)
        start += length


def _find(data: bytes, kind: bytes, start: int, end: int) -> tuple[int, int] | None:
    return next((place[1:] for place in _boxes(data, start, end) if place[0] == kind), None)


def _place(data: bytes, at: int, item: int) -> int | None:
    """Where the bytes of an item begin (box iloc); None if not in the file itself."""
    version, widths, more = data[at], data[at + 4], data[at + 5]
    at += 6

    def take(width: int) -> int:
        nonlocal at
        at += width
        return int.from_bytes(data[at - width : at], "big")

    for _ in range(min(take(4 if version > 1 else 2), len(data))):
        number = take(4 if version > 1 else 2)
        method = take(2) & 15 if version else 0
        take(2)  # which file
        base = take(more >> 4)
        count, index = take(2), more & 15 if version else 0
        if number == item:
            take(index)
            return base + take(widths >> 4) if count and method == 0 else None
        at += count * (index + (widths >> 4) + (widths & 15))
        if at >= len(data):
            return None
    return None


def _size_in_obus(data: bytes, at: int) -> tuple[int, int] | None:
    """Width and height from the first sequence header at `at` (AV1, 5.3 to 5.5)."""
    for _ in range(_MOST_OBUS):
        head = data[at]
        at += 2 if head & 4 else 1
        if not head & 2:  # without a length
            return None
        length = shift = 0
        while True:
            length |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80 or shift > 28:
                break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            return _size_in_header(data[at : at + min(length, 64)])
        at += length
    return None


def _size_in_header(header: bytes) -> tuple[int, int] | None:
    bits, left = int.from_bytes(header, "big"), 8 * len(header)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise IndexError("the sequence header is cut short")
        return bits >> left & ((1 << count) - 1)

    take(4)  # profile, still picture
    if take(1):  # the short header of a still picture
        take(5)
    else:
        if take(1):  # times of frames: a video
            return None
        delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delays and take(1):
                take(4)
    widths = take(4) + 1, take(4) + 1
    return take(widths[0]) + 1, take(widths[1]) + 1
