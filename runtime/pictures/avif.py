"""AVIF: the same file, its EXIF out of sight.

Pillow reads EXIF while it opens an AVIF, and warns about a damaged block. It is not needed: the
orientation of an AVIF is a property of the container (irot, imir), and Pillow brings it to us.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO

from runtime.pictures.source import Source

# An entry of the item list (ISO/IEC 14496-12, box infe, version 2 or 3): flags, the item's number
# in 2 or 4 bytes, protection, type.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def read_avif(file: BinaryIO) -> Source:
    """An AVIF, of an animated one the first picture. Profile and orientation come from Pillow."""
    return Source(stream=io.BytesIO(_EXIF_ITEM.sub(rb"\1free", file.read())), format="AVIF")
