"""PNM: binary grey and colour with any maxval, which Pillow decodes pixel by pixel in Python."""

from __future__ import annotations

import re
from typing import BinaryIO

from runtime.pictures.source import Samples, Source, spliced

# Magic, width, height, maxval; comments may stand between, one white space ends the header.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(
    rb"P([56])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,5})\s"
)
_LONGEST_HEADER = 4096  # bytes


def read_pnm(file: BinaryIO) -> Source:
    """P5 and P6 with their maxval; the other kinds are left to Pillow."""
    head = file.read(_LONGEST_HEADER)
    match = _HEADER.match(head)
    if match is None:  # Pillow has scaled integers to 16 bits; floats (Pf) lie in [0, 1]
        full = None if head.startswith(b"Pf") else 65535
        return Source(stream=file, format="PPM", samples=Samples(full=full))
    kind, width, height, full = (int(group) for group in match.groups())
    if not 0 < full < 65536:
        raise ValueError(f"maxval is {full}, expected 1 to 65535")
    wide = full > 255
    # Pillow gets a maxval that needs no scaling; `depth` scales.
    head = b"P%d\n%d %d\n%d\n" % (kind, width, height, 65535 if wide else 255)
    start = match.end()
    return Source(
        stream=spliced(file, [head, (start, file.seek(0, 2) - start)]),
        format="PPM",
        samples=Samples(full=full, deep=wide and kind == 6),
        tile=(len(head), "RGB;16B") if wide and kind == 6 else None,
    )
