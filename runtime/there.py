"""Whether a path is there, with an error where that cannot be told.

`Path.exists` and its like answer False from Python 3.14 on for a name that is too long, in a folder
that may not be searched and on a disk that fails. What is there would be taken for absent: another
source would be used in its place, and a taken place to write to would count as free.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP))
_ABSENT_ON_WINDOWS = frozenset((21, 123, 1921))  # no disk in the drive, no such name, a link astray


def exists(path: Path) -> bool:
    """Whether there is anything; of a link, at its target. Raises: OSError."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a regular file, or a link to one. Raises: OSError."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: Path) -> bool:
    """Whether there is a folder, or a link to one. Raises: OSError."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path) -> int | None:
    """None where there is nothing, and for what can be no path: a zero byte."""
    try:
        return path.stat().st_mode
    except OSError as error:
        absent = error.errno in _ABSENT
        if absent or getattr(error, "winerror", None) in _ABSENT_ON_WINDOWS:
            return None
        raise
    except ValueError:
        return None
