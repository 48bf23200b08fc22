"""The mark in the PNGs that this project writes: a text chunk that names it, and more beside it.

It tells a result of an earlier run from a photograph, without a guess by name.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from typing import BinaryIO

from runtime.files import open_at_once

MARKER = ("Software", "lotus-edge")  # keyword and beginning of the text, PNG chunk tEXt
SIGNATURE = b"\x89PNG\r\n\x1a\n"

_LONGEST_CHUNK = 2**31 - 1  # bytes; the PNG standard's own limit
_LONGEST_TEXT = 1024  # bytes; ours have less than 100
_MOST_CHUNKS = 1000  # before the pixels; a real picture has a dozen


def made_by_us(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a PNG with our mark before its pixels. Never raises."""
    return bool(marks(path))


def marks(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts before the pixels of a PNG with our mark, by keyword; empty for any other file.

    Reads a few hundred bytes. Never raises: what cannot be read is not ours.
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
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _texts(stream: BinaryIO) -> dict[str, str]:
    texts: dict[str, str] = {}
    if stream.read(len(SIGNATURE)) != SIGNATURE:
        return texts
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
