"""JPEG: the segments that the pixels need, the end if it is missing, and limits on scans."""

from __future__ import annotations

import io
import re
from typing import BinaryIO

from runtime.errors import ImageError
from runtime.pictures.metadata import orientation
from runtime.pictures.source import Source, lost_sectors

# Each scan goes over the whole picture. Encoders use about ten, optimisers up to some thirty; a
# picture of 277 KB with 1,000 scans cost 14 s.
MOST_SCANS = 64

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in a scan: no stuffed 0xFF, no restart
_HEADER = re.compile(rb"\xff[\x01-\xfe]")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_KEPT = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDD, 0xE0, 0xEE}  # frames, tables, JFIF, Adobe
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_END = b"\xff\xd9"
# Some compressed data, no marker; it begins with ones, since a decoder makes up zeros.
_ANY_DATA = bytes((89 * number + 233) % 255 for number in range(256))
_ICC = b"ICC_PROFILE\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def read_jpeg(file: BinaryIO) -> Source:
    """A JPEG; of a multi-picture file (MPO, as phones write it) the first picture.

    EXIF and ICC profile are taken out: the decoder gets only what it needs for the pixels, so that
    damaged metadata can do no harm. A missing end is put in its place.
    """
    data = file.read()
    segments, start, frame = _header(data)
    kept = [data[first:end] for kind, first, end in segments if kind in _KEPT]
    scans, end, whole = _scans(data, start)
    if len(scans) > MOST_SCANS:
        raise ImageError(f"has {len(scans)} scans, the limit is {MOST_SCANS}; save it again")
    if not whole and not _all_coefficients(data, frame, scans):
        raise ImageError("is cut short: part of the picture is missing")
    notes = [_payload(data, *place) for kind, *place in segments if kind == 0xE1]
    exif = next((block for block in notes if block.startswith(b"Exif\0\0")), None)
    beginning = b"".join([b"\xff\xd8", *kept, memoryview(data)[start:end]])
    # Of a progressive picture only the last bits may be missing; every pixel is there.
    cut = not whole and not _all_coefficients(data, frame, scans[:-1])
    # Its coder leaves zeros out at the end, so that another end is another picture.
    arithmetic = data[frame + 1] in range(0xC9, 0xD0)
    return Source(
        stream=io.BytesIO(beginning + _END),
        other=None if arithmetic else lambda: io.BytesIO(beginning + _other_end(beginning)),
        format="JPEG",
        orientation=orientation(
            exif, next((block for block in notes if block.startswith(_XMP)), None)
        ),
        exif=exif,
        icc=_profile([_payload(data, *place) for kind, *place in segments if kind == 0xE2]),
        cut=cut,
        damage=[
            *([] if whole else ["the end is missing"]),
            *lost_sectors(data, start, end, flat=_writes_zeros(data, segments, frame, scans)),
        ],
    )


def _other_end(beginning: bytes) -> bytes:
    """Data for whatever is missing: of the interval that was begun, and of those that follow, where
    restart markers divide the data.
    """
    last = max(beginning.rfind(bytes((0xFF, 0xD0 + number))) for number in range(8))
    begun = beginning[last + 1] - 0xD0 if last >= 0 else 7
    markers = [bytes((0xFF, 0xD0 + (begun + number) % 8)) for number in range(1, 9)]
    return b"".join([_ANY_DATA, *(marker + _ANY_DATA for marker in markers), _END])


def _header(data: bytes) -> tuple[list[tuple[int, int, int]], int, int]:
    """(kind, first byte, end) of each segment up to and with the first start of scan, where the
    scan's data begin, and where the frame header begins.
    """
    segments: list[tuple[int, int, int]] = []
    frame, at = 0, 2
    while match := _HEADER.search(data, at):
        kind, at = data[match.end() - 1], match.end()
        if kind in _BARE:
            continue
        if kind == _EOI:
            break
        end = at + int.from_bytes(data[at : at + 2], "big")
        if end < at + 2 or end > len(data):
            break
        segments.append((kind, match.start(), end))
        frame = match.start() if kind in _FRAMES else frame
        if kind == _SOS:
            return segments, end, frame
        at = end
    raise ImageError("is cut short or damaged: it has no pixels")


def _scans(data: bytes, start: int) -> tuple[list[int], int, bool]:
    """Where each scan's header begins, where the last one ends, and whether its end is marked."""
    scans, at = [data.rfind(b"\xff\xda", 0, start)], start
    while match := _MARKER.search(data, at):
        kind, at = data[match.end() - 1], match.end()
        if kind == _EOI:
            return scans, match.start(), True
        if kind == _SOI:  # the next picture of the file begins
            return scans, match.start(), False
        if kind in _BARE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if kind == _SOS:
            scans.append(match.start())
            if len(scans) > 100 * MOST_SCANS:
                break
        at += max(length, 2)
    # A copy that stopped half-way may be filled up with zeros. 0xFF, half a stuffed pair, would be
    # a marker together with what is put behind it.
    return scans, len(data.rstrip(b"\0\xff")), False


def _all_coefficients(data: bytes, frame: int, scans: list[int]) -> bool:
    """Whether these scans bring every coefficient of every component, be it without its last bits
    (a later scan of a progressive picture has those).
    """
    components = {data[frame + 10 + 3 * number] for number in range(data[frame + 9])}
    seen: dict[int, set[int]] = {component: set() for component in components}
    for scan in scans:
        count = data[scan + 4]
        first, last = data[scan + 5 + 2 * count], data[scan + 6 + 2 * count]
        for number in range(count):
            seen.setdefault(data[scan + 5 + 2 * number], set()).update(range(first, last + 1))
    return all(seen[component] >= set(range(64)) for component in components)


def _writes_zeros(
    data: bytes, segments: list[tuple[int, int, int]], frame: int, scans: list[int]
) -> bool:
    """Whether zeros without end may be a flat part of the picture.

    In Huffman tables the first code is all zeros. If it is not the end of a block, zeros are blocks
    in which no coefficient is 0, which no picture has. The usual table of brightness is so.
    """
    ends = []  # for each table of AC coefficients, whether its first code ends the block
    for kind, first, end in segments:
        at = first + 4
        while kind == 0xC4 and at + 17 < end:
            if data[at] >> 4:
                ends.append(data[at + 17] == 0)
            at += 17 + sum(data[at + 1 : at + 17])
    baseline = data[frame + 1] in (0xC0, 0xC1) and ends
    # With all components in one scan, blocks of each table come again and again.
    return not baseline or (all(ends) if len(scans) == 1 else any(ends))


def _payload(data: bytes, first: int, end: int) -> bytes:
    return data[first + 4 : end]


def _profile(blocks: list[bytes]) -> bytes | None:
    """ICC profile, in pieces that carry their number."""
    pieces = [block[len(_ICC) :] for block in blocks if block.startswith(_ICC)]
    pieces = sorted(piece for piece in pieces if len(piece) > 2)
    return b"".join(piece[2:] for piece in pieces) or None
