"""Compression of our PNGs: fast, since people wait for it, and the same pixels either way."""

from __future__ import annotations

import functools
import importlib
import zlib
from typing import Any


def packer(*, noisy: bool) -> Any:
    """An object with `compress` and `flush`, as of `zlib.compressobj`.

    Colours go through `isal` (extra `fast`), which packs them several times as fast as zlib's
    fastest level, or through that. `noisy`: data of 16 bits, whose low bytes are close to noise,
    are stored as they are. zlib took ten times as long as all else for an eighth of their size.
    """
    if noisy:
        return zlib.compressobj(0)
    fast = _isal()
    return zlib.compressobj(1) if fast is None else fast.compressobj(1)


@functools.cache
def _isal() -> Any:
    """The package, or None where it is not installed, or not for this machine."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except (ImportError, OSError):
        return None
