"""Where the numbers and parts of a picture file lie, for each format."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from benchmarks.fuzzing.damage import Field, Layout, Order

Parts = list[tuple[int, int]]
_CONTAINERS = (b"meta", b"iprp", b"ipco", b"iinf", b"jp2h", b"moov", b"trak", b"mdia", b"minf")


def find_layout(data: bytes) -> Layout:
    """The layout of a picture file of a known format; an empty one of others."""
    for magic, find in _LAYOUTS:
        if data.startswith(magic):
            return find(data)
    if data[4:8] in (b"ftyp", b"jP  "):
        return _boxes(data)
    return Layout(fields=_words(0, min(len(data), 32)))  # a short header without magic, as of TGA


def _words(start: int, end: int) -> list[Field]:
    return [
        Field(offset=at, size=size, order="little", name="word")
        for at in range(start, end)
        for size in (1, 2, 4)
        if at + size <= end
    ]


def _png(data: bytes) -> Layout:
    fields: list[Field] = []
    parts: Parts = []
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        fields += [Field(offset=at, size=4, name="length"), Field(offset=at + 4, size=4)]
        if data[at + 4 : at + 8] in (b"IHDR", b"acTL", b"fcTL"):
            fields += [
                Field(offset=word, size=4, name="dimension") for word in range(at + 8, at + 16, 4)
            ] * 2
            fields += [
                Field(offset=byte, size=1, name="header") for byte in range(at + 16, at + 21)
            ]
        parts.append((at, at + 12 + length))
        at += 12 + length
    return Layout(fields=fields, parts=parts, repair=_renew_crc)


def _renew_crc(data: bytearray) -> bytes:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        crc = zlib.crc32(data[at + 4 : at + 8 + length])
        struct.pack_into(">I", data, at + 8 + length, crc)
        at += 12 + length
    return bytes(data)


def _jpeg(data: bytes) -> Layout:
    fields: list[Field] = []
    parts: Parts = []
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0, 0xFF, *range(0xD0, 0xDA)):  # scans
            at += 1
            continue
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        fields.append(Field(offset=at + 2, size=2, name="length"))
        if 0xC0 <= marker <= 0xCF:
            fields += [
                Field(offset=at + 4, size=1, name="header"),
                Field(offset=at + 5, size=2, name="dimension"),
                Field(offset=at + 7, size=2, name="dimension"),
            ]
        if marker != 0xE1:
            last = min(at + 2 + length, len(data))
            fields += [Field(offset=byte, size=1) for byte in range(at + 4, last)][:24]
        elif data[at + 4 : at + 8] == b"Exif":
            fields += list(_tiff(data, at + 10).fields)
        end = at + 2 + length
        if marker == 0xDA:  # with what it codes
            end = next(
                (
                    after
                    for after in range(end, len(data) - 1)
                    if data[after] == 0xFF and data[after + 1] not in (0, *range(0xD0, 0xD8))
                ),
                len(data),
            )
        parts.append((at, end))
        at = end
    return Layout(fields=fields, parts=parts)


def _riff(data: bytes) -> Layout:
    fields = [Field(offset=4, size=4, order="little", name="length")]
    parts: Parts = []
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        fields.append(Field(offset=at + 4, size=4, order="little", name="length"))
        name = data[at : at + 4]
        if name in (b"VP8X", b"ANIM", b"ANMF", b"VP8 ", b"VP8L"):
            fields += _words(at + 8, min(at + 24, len(data)))
        if name == b"EXIF":
            fields += list(_tiff(data, at + 8).fields)
        parts.append((at, at + 8 + length + length % 2))
        at += 8 + length + length % 2
    return Layout(fields=fields, parts=parts)


def _boxes(data: bytes) -> Layout:
    fields: list[Field] = []
    parts: Parts = []

    def walk(at: int, end: int) -> None:
        while at + 8 <= end:
            length, name = struct.unpack_from(">I4s", data, at)
            if length < 8:
                length = end - at
            fields.append(Field(offset=at, size=4, name="length"))
            parts.append((at, at + length))
            if name in _CONTAINERS:
                walk(at + (12 if name == b"meta" else 14 if name == b"iinf" else 8), at + length)
            elif length < 256:
                fields.extend(
                    Field(offset=word, size=4, name=name.decode("latin1"))
                    for word in range(at + 8, min(at + length, len(data)) - 3, 2)
                )
            at += length

    walk(0, len(data))
    codestream = data.find(b"\xff\x4f\xff\x51")  # JPEG 2000
    if codestream >= 0:
        fields += _codestream(data, codestream)
    return Layout(fields=fields, parts=parts)


def _codestream(data: bytes, at: int) -> list[Field]:
    """The head of a JPEG 2000 codestream: sizes, tiles, components, levels."""
    sizes = [Field(offset=at + 8 + 4 * word, size=4, name="dimension") for word in range(8)]
    end = min(at + 120, len(data))
    return [*sizes, *(Field(offset=byte, size=1) for byte in range(at + 40, end))]


def _tiff(data: bytes, base: int = 0) -> Layout:
    order: Order = "little" if data[base : base + 2] == b"II" else "big"
    sign = "<" if order == "little" else ">"
    fields = [Field(offset=base + 4, size=4, order=order, name="offset")]
    parts: Parts = []
    try:
        (at,) = struct.unpack_from(f"{sign}I", data, base + 4)
        seen = set()
        while at and at not in seen:
            seen.add(at)
            (count,) = struct.unpack_from(f"{sign}H", data, base + at)
            fields.append(Field(offset=base + at, size=2, order=order, name="count"))
            for entry in range(base + at + 2, base + at + 2 + 12 * count, 12):
                tag = struct.unpack_from(f"{sign}H", data, entry)[0]
                fields += [
                    Field(offset=entry + skip, size=size, order=order, name=f"tag {tag}")
                    for skip, size in ((0, 2), (2, 2), (4, 4), (8, 4), (8, 2), (8, 4))
                ]
                parts.append((entry, entry + 12))
            following = base + at + 2 + 12 * count
            fields.append(Field(offset=following, size=4, order=order, name="next"))
            (at,) = struct.unpack_from(f"{sign}I", data, following)
    except struct.error:
        pass
    return Layout(fields=fields, parts=parts)


def _gif(data: bytes) -> Layout:
    fields = [
        Field(offset=offset, size=size, order="little", name="dimension")
        for offset, size in ((6, 2), (8, 2), (10, 1), (11, 1))
    ]
    parts: Parts = []
    for at in range(13, len(data) - 10):
        if data[at] == 0x2C and data[at + 1 : at + 5] == bytes(4):  # an image at the corner
            fields += [
                Field(offset=at + skip, size=2, order="little", name="dimension")
                for skip in (1, 3, 5, 7)
            ] + [Field(offset=at + 9, size=1), Field(offset=at + 10, size=1, name="code size")]
            parts.append((at, len(data) - 1))
        if data[at] == 0x21 and data[at + 1] in (0xF9, 0xFE, 0xFF):
            fields.append(Field(offset=at + 2, size=1, name="length"))
            parts.append((at, at + 3 + data[at + 2]))
    return Layout(fields=fields, parts=parts)


def _bmp(data: bytes) -> Layout:
    sizes = [Field(offset=at, size=4, order="little", name="header") for at in range(2, 54, 4)]
    return Layout(fields=[*sizes, *_words(14, 54)], parts=[(14, 54), (54, len(data))])


_LAYOUTS: tuple[tuple[bytes, Callable[[bytes], Layout]], ...] = (
    (b"\x89PNG", _png),
    (b"\xff\xd8", _jpeg),
    (b"RIFF", _riff),
    (b"II", _tiff),
    (b"MM", _tiff),
    (b"GIF8", _gif),
    (b"BM", _bmp),
    (b"\xff\x4f\xff\x51", lambda data: Layout(fields=_codestream(data, 0))),
)
