"""PNG: the chunks that the pixels need. Text, however long, animation and what is damaged beside
the pixels never reach the decoder.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import BinaryIO

from runtime.errors import ImageError
from runtime.pictures.metadata import orientation
from runtime.pictures.source import Piece, Samples, Source, spliced

_LONGEST_TEXT = 2**20  # bytes, unpacked: as far as Pillow reads it
_LARGEST_PROFILE = 2**24  # bytes, unpacked; the largest of printers have some 4 MB
_MOST_CHUNKS = 2**18  # 2 GB in the usual pieces of 8 KB
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
_COLOUR_16 = {(16, 2), (16, 4), (16, 6)}  # bit depth, colour type: RGB, grey with alpha, RGBA


def read_png(file: BinaryIO) -> Source:
    """A PNG; of an animated one the picture that every viewer shows."""
    pieces: list[Piece] = [b"\x89PNG\r\n\x1a\n"]
    found: dict[bytes, bytes] = {}
    texts: list[bytes] = []
    damage: list[str] = []
    size = _end(file)
    at, cut = 8, True
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8) if at < size else b""
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IEND":
            cut = len(head) < 8 or len(file.read(4)) < 4
            break
        there = min(length, size - at - 8)
        if kind == b"IDAT":
            # The last one may be cut short; its checksum is not looked at, that of the pixels is.
            whole = there + 4 <= size - at - 8
            pieces.append((at, there + 12) if whole else there.to_bytes(4, "big") + b"IDAT")
            pieces += [] if whole else [(at + 8, there), b"\0\0\0\0"]
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            pieces.append((at, there + 12))
        elif kind in (b"iCCP", b"eXIf", b"sBIT"):
            found.setdefault(kind, file.read(there))
        elif kind in _TEXT:
            texts.append(file.read(min(there, 2 * _LONGEST_TEXT)))
            if there > _LONGEST_TEXT or len(_unpacked(kind, texts[-1])) > _LONGEST_TEXT:
                damage.append(f"a text of more than {_LONGEST_TEXT:,} bytes is left out")
                texts.pop()
        at += length + 12
    else:
        raise ImageError(f"has more than {_MOST_CHUNKS:,} chunks")
    file.seek(8)
    header = file.read(25)
    depth, colour = (header[16], header[17]) if len(header) == 25 else (8, 2)
    exif = found.get(b"eXIf") or _raw_profile(texts)
    xmp = next((text for text in texts if text.startswith(b"XML:com.adobe.xmp\0")), None)
    return Source(
        stream=spliced(file, [*_merged(pieces), _IEND]),
        format="PNG",
        orientation=orientation(exif, xmp),
        icc=_profile(found.get(b"iCCP")),
        exif=exif,
        samples=Samples(
            full=_significant(found.get(b"sBIT"), depth),
            kind="uint16" if depth == 16 else None,
            deep=(depth, colour) in _COLOUR_16,
            paired=(depth, colour) == (16, 4),
        ),
        cut=cut,
        damage=damage + (["the end is missing"] if cut else []),
    )


def _end(file: BinaryIO) -> int:
    """Where the data end: a copy that stopped half-way may be filled up with zeros."""
    size = file.seek(0, 2)
    while size:
        start = max(0, size - 2**20)
        file.seek(start)
        if block := file.read(size - start).rstrip(b"\0"):
            return start + len(block)
        size = start
    return 0


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Chunks that lie behind each other as one piece."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else b""
        if isinstance(piece, tuple) and isinstance(last, tuple) and sum(last) == piece[0]:
            merged[-1] = (last[0], last[1] + piece[1])
        else:
            merged.append(piece)
    return merged


def _inflated(data: bytes, limit: int) -> bytes:
    """At most one byte more than `limit`; what is there when the rest is damaged."""
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj().decompress(data, limit + 1)
    return b""


def _unpacked(kind: bytes, text: bytes) -> bytes:
    """The packed part of a text chunk, unpacked; nothing where nothing is packed."""
    _, _, rest = text.partition(b"\0")
    if kind == b"zTXt":
        return _inflated(rest[1:], _LONGEST_TEXT)
    if kind == b"iTXt" and rest[:1] == b"\1":
        return _inflated(rest[2:].split(b"\0", 2)[-1], _LONGEST_TEXT)
    return b""


def _profile(chunk: bytes | None) -> bytes | None:
    """Name, zero, method (0: deflate), packed profile."""
    _, _, rest = (chunk or b"").partition(b"\0")
    return _inflated(rest[1:], _LARGEST_PROFILE) or None


def _raw_profile(texts: list[bytes]) -> bytes | None:
    """EXIF as ImageMagick wrote it before PNG had a chunk for it: a text of hexadecimal digits
    under a header of three lines.
    """
    for text in texts:
        if text.startswith(b"Raw profile type exif\0"):
            kind = b"zTXt" if text.split(b"\0", 1)[1][:1] == b"\0" else b"tEXt"
            plain = _unpacked(kind, text) or text.split(b"\0", 1)[1]
            with contextlib.suppress(ValueError):
                return bytes.fromhex(b"".join(plain.split(b"\n")[3:]).decode("latin-1"))
    return None


def _significant(chunk: bytes | None, depth: int) -> int | None:
    """White for samples that fill the low bits of 16, as sBIT says how many there are."""
    if depth != 16 or not chunk or not 8 <= chunk[0] <= 16:
        return None
    return int(2 ** chunk[0]) - 1
