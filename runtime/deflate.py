"""Compression of our PNGs: fast, since people wait for it, and the same pixels either way.

`isal` (extra `fast`) packs a picture several times as fast as Python's zlib. Without it colours go
through zlib's fastest level, and what zlib hardly makes smaller is stored as it is.
"""

from __future__ import annotations

import functools
import importlib
import zlib
from typing import Any


def packer(*, noisy: bool) -> Any:
    """An object with `compress` and `flush`, as of `zlib.compressobj`.

    `noisy`: data of 16 bits, whose low bytes are close to noise. zlib needs 50 ms to halve those of
    a picture of 1920x1080 pixels; they are stored then.
    """
    fast = _isal()
    if fast is not None:
        return fast.compressobj(1)
    return zlib.compressobj(0 if noisy else 1)


@functools.cache
def _isal() -> Any:
    """The package, or None where it is not installed, or not for this machine."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except (ImportError, OSError):
        return None
