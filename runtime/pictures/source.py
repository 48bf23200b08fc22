"""What is known of an encoded picture before its pixels are decoded, and the file it lies in."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import ImageError
from runtime.files import open_at_once
from runtime.there import exists, is_dir, is_file

SECTOR = 512  # bytes: the least that disks lose
_ZEROS, _OTHER = bytes(SECTOR), re.compile(rb"[^\0]")

Piece = bytes | tuple[int, int]  # some bytes, or (start, length) in the file


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the file says about its samples beyond Pillow's mode.

    `full` is the value of white, None where the file says nothing. `kind` is the NumPy type of the
    file's samples, where Pillow puts them into another. `deep`: colour of 16 bits, of which Pillow
    keeps the high byte; `paired` if that is grey with alpha. `inverted`: zero is white, and Pillow
    does not see to it.
    """

    full: float | None = None
    kind: str | None = None
    deep: bool = False
    paired: bool = False
    inverted: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture ready to be decoded.

    `stream` is what the decoder reads. `format` is a name of `formats.FORMATS`. `orientation` is
    EXIF's 1 to 8; it, `icc` and `exif` (the block) are None where Pillow is to tell. `tile`:
    (offset, raw mode) to decode with, in place of the plugin's own. `cut`: the end of the file is
    missing, and rows may be. `other` opens the same picture with another end, where the decoder
    makes up for an end. `size` (width, height) is what the compressed data say, None where only
    the header is known. `damage`: what a strict reader refuses.
    """

    stream: BinaryIO
    format: str
    orientation: int | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    samples: Samples = Samples()
    tile: tuple[int, str] | None = None
    cut: bool = False
    other: Callable[[], BinaryIO] | None = None
    size: tuple[int, int] | None = None
    damage: list[str] = field(default_factory=list)


class Splice(io.RawIOBase):
    """A file put together of pieces, without a copy of the ranges that come from `file`.

    It has no descriptor, so that no library reads past it. A range beyond the file's end cannot be
    read: whoever comes to it finds the end.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._file, self._pieces, self._at = file, list(pieces), 0
        self._ends = []
        end = 0
        for piece in self._pieces:
            end += len(piece) if isinstance(piece, bytes) else piece[1]
            self._ends.append(end)
        self._now = 0  # the piece that was read last: reading is mostly sequential

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._ends[-1] if self._ends else 0
        self._at = max(0, offset + {0: 0, 1: self._at, 2: size}[whence])
        self._now = 0
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        while self._now < len(self._ends) and self._ends[self._now] <= self._at:
            self._now += 1
        if self._now == len(self._ends):
            return 0
        piece = self._pieces[self._now]
        wanted = min(len(buffer), self._ends[self._now] - self._at)
        if isinstance(piece, bytes):
            start = len(piece) - (self._ends[self._now] - self._at)
            buffer[:wanted] = piece[start : start + wanted]
        else:
            self._file.seek(piece[0] + piece[1] - (self._ends[self._now] - self._at))
            wanted = len(data := self._file.read(wanted))
            buffer[:wanted] = data
        self._at += wanted
        return wanted


def spliced(file: BinaryIO, pieces: Sequence[Piece]) -> BinaryIO:
    """The pieces as a buffered binary file."""
    return io.BufferedReader(Splice(file, pieces))


def lost_sectors(data: bytes, start: int, end: int, *, flat: bool) -> list[str]:
    """A note if compressed data, `start` to `end` of a file, hold zeros in place of lost sectors.

    `flat`: this coder writes long runs of zeros itself, for pictures of one colour. Then only those
    are noted that begin and end with a sector, give or take two bytes.
    """
    longest = 0
    # Several times as fast as a regular expression for all of them.
    while (first := data.find(_ZEROS, start, end)) >= 0:
        other = _OTHER.search(data, first + SECTOR, end)
        start = other.start() if other else end
        whole = -first % SECTOR <= 2 and start % SECTOR <= 2
        if whole or not flat:
            longest = max(longest, start - first)
    return [f"holds {longest:,} zero bytes in a row: a part may be lost"] if longest else []


def open_regular(path: Path, largest: int) -> BinaryIO:
    """The file opened for reading, buffered; at most `largest` bytes.

    Raises: ImageError where there is none, for a folder, for what is no regular file (reading a
    FIFO or a device could wait for ever), and for a larger file.
    """
    if is_dir(path):
        raise ImageError("is a folder, not an image")
    if not exists(path):
        raise ImageError("no such file")
    # Asked before it is opened, since opening a device may do something; and again afterwards,
    # since the name may mean another file by then.
    if not is_file(path):
        raise ImageError("is no regular file (a pipe, a socket or a device)")
    file = open_at_once(path)
    state = os.fstat(file.fileno())
    if stat.S_ISREG(state.st_mode) and state.st_size <= largest:
        return file
    file.close()
    raise ImageError(
        f"has {state.st_size:,} bytes, the limit is {largest:,}; raise max_pixels"
        if stat.S_ISREG(state.st_mode)
        else "is no regular file"
    )
