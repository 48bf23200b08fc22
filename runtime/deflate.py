"""Compression of our PNGs: fast, since people wait for it, and the same pixels either way.

The package `isal` (extra `fast`) does it where it is installed, else zlib; both have the checksums.
"""

from __future__ import annotations

import functools
import importlib
import struct
import zlib
from typing import Any

_LONGEST_STORED = 2**16 - 1  # bytes of one block


def packer(*, noisy: bool) -> Any:
    """An object with `compress` and `flush`, as of `zlib.compressobj`.

    Colours go through isal, which packs them several times as fast as zlib's fastest level, or
    through that. `noisy`: data of 16 bits, whose low bytes are close to noise, are stored as they
    are. zlib took ten times as long as all else for an eighth of their size.
    """
    return _Stored() if noisy else library().compressobj(1)


def library() -> Any:
    """The module that packs, with `crc32` and `adler32`, as of zlib."""
    return _isal() or zlib


class _Stored:
    """A stream of blocks that are stored as they are. Source: RFC 1950 and RFC 1951, 3.2.4."""

    def __init__(self) -> None:
        self._pieces = [b"\x78\x01"]
        self._sum = 1

    def compress(self, data: memoryview) -> bytes:
        self._sum = library().adler32(data, self._sum)
        for at in range(0, len(data), _LONGEST_STORED):
            block = data[at : at + _LONGEST_STORED]
            self._pieces += [_stored(len(block), last=False), block]  # type: ignore[list-item]
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    def flush(self) -> bytes:
        return b"".join([*self._pieces, _stored(0, last=True), struct.pack(">I", self._sum)])


def _stored(length: int, *, last: bool) -> bytes:
    return struct.pack("<BHH", last, length, length ^ 0xFFFF)


@functools.cache
def _isal() -> Any:
    """The package, or None where it is not installed, or not for this machine."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except (ImportError, OSError):
        return None
