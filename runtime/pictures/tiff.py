"""TIFF: a directory of the tags that the pixels need, in place of the file's own.

Pillow and libtiff both read every tag, and report what they find odd to the warnings of the process
and to its stderr. They get a small directory that was checked, at the end of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from runtime.errors import ImageError
from runtime.pictures.source import Piece, Samples, Source, spliced

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}  # of BigTIFF
_CODES = {
    1: "B",
    3: "H",
    4: "I",
    6: "b",
    8: "h",
    9: "i",
    11: "f",
    12: "d",
    13: "I",
    16: "Q",
    18: "Q",
}
_ONE = {256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332}  # tags of one value
# What the pixels need: beside these bits, places of strips and tiles, colour map, extra samples,
# sample format, tables of JPEG, YCbCr, LERC.
_KEPT = _ONE | {258, 273, 279, 320, 324, 325, 338, 339, 347, *range(512, 522), *range(529, 533)}
_KEPT |= {50674}
_MOST_TAGS = 4096
_MOST_VALUES = 2**20  # tiles of 16x16 in 200 megapixels are 2^19.6
_GAP = 2**20  # bytes
_MOST_SAMPLES = 6  # of a pixel; Pillow logs an error for more
_REDUCED, _ORIENTATION, _ICC, _DNG = 254, 274, 34675, 50706


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    count: int
    value: bytes  # what the directory holds: the value itself, or where it lies
    data: bytes | None  # the value, where it was read


def read_tiff(file: BinaryIO) -> Source:
    """A TIFF or BigTIFF, the first picture of it.

    Raises: ImageError for camera raw files, of which the first picture is a small preview.
    """
    entries, order, big = _directory(file)
    tags = {entry.tag: _values(entry, order) for entry in entries}
    if _DNG in tags or int(tags.get(_REDUCED, (0,))[0]) & 1:
        raise ImageError(
            "holds a preview of a camera raw picture; develop it to JPEG, PNG or TIFF first"
        )
    size = file.seek(0, 2)
    _check(entries, tags, size)
    packed = tags.get(259, (1,))[0] != 1
    # What lies between the file and the directory cannot be read, so that no decoder takes the
    # directory for pixels that are missing. libtiff gets all in one piece; there the places of the
    # pixels were checked.
    start = size + (-size % 8) + (0 if packed else _GAP)
    width = "Q" if big else "I"
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}HHHQ", 43, 8, 0, start) if big else b""
    head += b"" if big else struct.pack(f"{order}HI", 42, start)
    kept = [entry for entry in entries if entry.tag in _KEPT]
    table = struct.pack(f"{order}{'Q' if big else 'H'}", len(kept))
    for entry in kept:
        table += struct.pack(f"{order}HH{width}", entry.tag, entry.kind, entry.count) + entry.value
    table += bytes(8)  # no further directory
    rest: list[Piece] = (
        [(len(head), size - len(head)), bytes(start - size)]
        if packed
        else [(len(head), start - len(head))]
    )
    return Source(
        stream=spliced(file, [head, *rest, table]),
        format="TIFF",
        orientation=_orientation(tags),
        icc=next((entry.data for entry in entries if entry.tag == _ICC), None),
        samples=described(tags),
    )


def _check(entries: list[_Entry], tags: Mapping[int, tuple[float, ...]], size: int) -> None:
    """Raises: ValueError for what Pillow or libtiff would report, or believe."""
    for entry in entries:
        if entry.tag in _ONE and entry.count != 1:
            raise ValueError(f"tag {entry.tag} has {entry.count} values, expected one")
    samples = tags.get(277, (1,))[0]
    if samples > _MOST_SAMPLES:
        raise ValueError(f"{samples} samples a pixel, at most {_MOST_SAMPLES} are read")
    pixels, tile = (
        tags.get(a, (0,))[0] * tags.get(b, (0,))[0] for a, b in ((256, 257), (322, 323))
    )
    if tile > 4 * pixels + 2**22:  # a decoder makes room for a whole tile
        raise ValueError(f"tiles of {tile:,} pixels in a picture of {pixels:,}")
    for places, lengths in ((273, 279), (324, 325)):  # strips, tiles
        for start, length in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False):
            if start + length > size:
                raise ImageError("is cut short: part of the picture is missing")


def described(tags: Mapping[int, tuple[float, ...]]) -> Samples:
    """What the tags say about samples of more than 8 bits."""
    bits, form = int(tags.get(258, (1,))[0]), int(tags.get(339, (1,))[0])
    photometric = tags.get(262, (1,))[0]
    if bits == 8 and form == 2:
        raise ImageError("holds signed samples of 8 bits, which are not read: save it as uint8")
    if bits <= 8:
        return Samples()
    white = tags.get(341) or tags.get(281)  # SMaxSampleValue, MaxSampleValue
    full = white[0] if white and white[0] >= 1 else None
    if full is None and bits not in (16, 32):
        full = 2**bits - 1  # a file of 12 bits says 12 bits
    whole = bits in (16, 32) and form in (1, 2)
    return Samples(
        full=full,
        kind=f"{'u' if form == 1 else ''}int{bits}" if whole else None,
        # With colour that is multiplied by alpha (1) the bytes are not independent.
        deep=bits == 16 and form == 1 and photometric == 2 and 1 not in tags.get(338, ()),
        inverted=photometric == 0,
    )


def _directory(file: BinaryIO) -> tuple[list[_Entry], str, bool]:
    """The first directory, sorted, with byte order and whether it is a BigTIFF's."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    if head[8:10] == b"CR" and not big:
        raise ImageError("is a camera raw picture; develop it to JPEG, PNG or TIFF first")
    size = file.seek(0, 2)
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4)
    width = 8 if big else 4  # bytes of an offset or value
    file.seek(start)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
    if count > _MOST_TAGS:
        raise ValueError(f"the directory has {count} tags")
    table = file.read(count * (4 + 2 * width))
    entries: dict[int, _Entry] = {}
    for number in range(count):
        tag, kind, values, value = struct.unpack_from(
            f"{order}HH{'Q' if big else 'I'}{width}s", table, number * (4 + 2 * width)
        )
        if tag in entries or kind not in _SIZES or tag not in _WANTED:
            continue
        length = values * _SIZES[kind]
        data: bytes | None = value[:length]
        if length > width:
            (place,) = struct.unpack(f"{order}{'Q' if big else 'I'}", value)
            if place + length > size or values > _MOST_VALUES:
                raise ValueError(f"the values of tag {tag} lie beyond the end of the file")
            data = None
            if tag in _READ:
                file.seek(place)
                data = file.read(length)
        if values:
            entries[tag] = _Entry(tag, kind, values, value, data)
    return [entries[tag] for tag in sorted(entries)], order, big


_READ = {
    _REDUCED,
    256,
    257,
    258,
    259,
    273,
    277,
    279,
    324,
    325,
    262,
    _ORIENTATION,
    281,
    322,
    323,
    338,
    339,
    341,
    _ICC,
    _DNG,
}
_WANTED = _KEPT | _READ


def _values(entry: _Entry, order: str) -> tuple[float, ...]:
    """Numbers of an entry that was read; (0,) for those of another kind."""
    if entry.data is None or entry.kind not in _CODES or entry.tag == _ICC:
        return (0,)
    return struct.unpack(f"{order}{entry.count}{_CODES[entry.kind]}", entry.data)


def _orientation(tags: Mapping[int, tuple[float, ...]]) -> int:
    value = int(tags.get(_ORIENTATION, (1,))[0])
    return value if 1 <= value <= 8 else 1
