"""The mark in the PNGs that this project writes: a text chunk that names it.

It tells a result of an earlier run from a photograph, without a guess by name.
"""

from __future__ import annotations

import os
import stat

MARKER = ("Software", "lotus-edge")  # keyword and beginning of the text, PNG chunk tEXt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WANTED = b"\0".join(part.encode("latin-1") for part in MARKER)
_LONGEST_CHUNK = 2**31 - 1  # bytes; the PNG standard's own limit
_MOST_CHUNKS = 1000  # before the pixels; a real picture has a dozen


def made_by_us(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a PNG with our mark before its pixels; reads a few hundred bytes.

    Never raises: what cannot be read is not ours.
    """
    try:
        # O_NONBLOCK: a FIFO without a writer must not stop us; regular files do not care.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _binary())
        with os.fdopen(number, "rb") as stream:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                return False
            if stream.read(len(_SIGNATURE)) != _SIGNATURE:
                return False
            for _ in range(_MOST_CHUNKS):
                head = stream.read(8)
                length, kind = int.from_bytes(head[:4], "big"), head[4:]
                if len(head) < 8 or length > _LONGEST_CHUNK or kind in (b"IDAT", b"IEND"):
                    return False
                start = stream.tell()
                if kind == b"tEXt" and stream.read(min(length, len(_WANTED))) == _WANTED:
                    return True
                stream.seek(start + length + 4)  # over data and CRC
    except (OSError, ValueError, TypeError):
        return False
    return False


def _binary() -> int:
    return getattr(os, "O_BINARY", 0)  # Windows
