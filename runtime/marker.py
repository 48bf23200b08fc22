"""The mark in the files that this project writes: a text that names it, and more beside it.

It tells a result of an earlier run from a photograph, without a guess by name. A PNG has it in text
chunks, an EXR in its header, an NPZ in the comment of the archive.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from typing import BinaryIO

from runtime.deflate import library
from runtime.exr import MAGIC, read_texts
from runtime.files import open_at_once

MARKER = ("Software", "lotus-edge")  # keyword and beginning of the text
SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Keys of texts beside the marker: the task; what the picture is known by (may be missing); which
# files of the name are of this result, by the names of `--save` (missing in results of before there
# was a choice); and of an ensemble the unit of its uncertainty.
TASK, PICTURE, FILES = "Lotus-Task", "Lotus-Picture", "Lotus-Files"
UNCERTAINTY = "Lotus-Uncertainty"

_LONGEST_CHUNK = 2**31 - 1  # bytes; the PNG standard's own limit
_LONGEST_TEXT = 1024  # bytes; ours have less than 500
_MOST_CHUNKS = 1000  # before the pixels; a real picture has a dozen
_ZIP, _ZIP_END, _COMMENT_AT = b"PK\x03\x04", b"PK\x05\x06", 22  # the end's bytes before a comment
_LONGEST_COMMENT = 4096


def made_by_us(path: str | os.PathLike[str]) -> bool:
    """Whether the file has our mark. Never raises."""
    return bool(marks(path))


def marks(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts of a PNG, an EXR or an NPZ with our mark, by keyword; empty for any other file.

    Reads some kilobytes at most. Never raises: what cannot be read is not ours.
    """
    keyword, beginning = MARKER
    try:
        with open_at_once(os.fspath(path)) as stream:
            regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            texts = _texts(stream) if regular else {}
    except (OSError, ValueError, TypeError):
        return {}
    return texts if texts.get(keyword, "").startswith(beginning) else {}


def text_chunk(keyword: str, text: str) -> bytes:
    """A PNG's tEXt chunk. Source: PNG specification, 11.3.3; both are Latin-1."""
    return chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1"))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG's chunk: length, kind, data, checksum."""
    return b"".join(long_chunk(kind, [data]))


def long_chunk(kind: bytes, data: Sequence[bytes]) -> list[bytes]:
    """The same of data in pieces, in pieces."""
    crc32 = library().crc32
    checksum = crc32(kind)
    for piece in data:
        checksum = crc32(piece, checksum)
    return [struct.pack(">I", sum(map(len, data))), kind, *data, struct.pack(">I", checksum)]


def _texts(stream: BinaryIO) -> dict[str, str]:
    """The texts of a file, whatever its name."""
    head = stream.read(len(SIGNATURE))
    stream.seek(0)
    if head == SIGNATURE:
        return _of_png(stream)
    if head.startswith(MAGIC):
        return read_texts(stream)
    return _of_zip(stream) if head.startswith(_ZIP) else {}


def _of_zip(stream: BinaryIO) -> dict[str, str]:
    """The lines `keyword: text` of an archive's comment. Source: APPNOTE, 4.3.16."""
    stream.seek(max(stream.seek(0, 2) - _LONGEST_COMMENT - _COMMENT_AT, 0))
    end = stream.read(_LONGEST_COMMENT + _COMMENT_AT)
    comment = end[end.rindex(_ZIP_END) + _COMMENT_AT :].decode("utf-8")
    pairs = (line.partition(": ") for line in comment.splitlines())
    return {keyword: text for keyword, _, text in pairs}


def _of_png(stream: BinaryIO) -> dict[str, str]:
    """The texts before the pixels."""
    texts: dict[str, str] = {}
    stream.seek(len(SIGNATURE))
    for _ in range(_MOST_CHUNKS):
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or length > _LONGEST_CHUNK or kind in (b"IDAT", b"IEND"):
            break
        start = stream.tell()
        if kind == b"tEXt" and length <= _LONGEST_TEXT:
            keyword, _, text = stream.read(length).partition(b"\0")
            texts[keyword.decode("latin-1")] = text.decode("latin-1")
        stream.seek(start + length + 4)  # over data and CRC
    return texts
