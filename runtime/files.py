"""Files: those a bundle lists (path, size, SHA-256), and writing one whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from runtime.errors import DamagedBundleError, UnsafePathError
from runtime.writing import write_together

_LONGEST_PATH = 255  # characters


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the bundle: POSIX path relative to the bundle, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


def describe_file(folder: Path, path: str) -> File:
    """The manifest's entry for a file that lies in `folder`. Raises: OSError."""
    return File(path=path, bytes=(folder / path).stat().st_size, sha256=sha256_of(folder / path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex. Raises: DamagedBundleError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with real_file(path).open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise DamagedBundleError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def check_path(path: str) -> None:
    """Refuse a path that could lead outside the bundle, on any system. Raises: UnsafePathError."""
    pure = PurePosixPath(path)
    leaves = pure.is_absolute() or ".." in pure.parts or path in ("", ".")
    foreign = any(character in path for character in "\\:\0") or not path.isprintable()
    if leaves or foreign or len(path) > _LONGEST_PATH:
        raise UnsafePathError(
            f"the path {path!r} in the manifest leads outside the bundle; paths must be relative"
        )


def real_file(path: Path) -> Path:
    """The regular file that `path` is, or that its links lead to in the end.

    Raises: DamagedBundleError for what is missing, a loop of links, or a folder, pipe or device.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        kind = real.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "is missing" if missing else f"cannot be read ({error.strerror or error})"
        raise DamagedBundleError(f"{path} {reason}. Copy or build the bundle again.") from error
    if not stat.S_ISREG(kind):
        raise DamagedBundleError(
            f"{path} is no regular file ({stat.filemode(kind)}). Copy or build the bundle again."
        )
    return real


def ending(path: Path) -> str:
    """The end of a file's name from its last dot on, "" where it has none.

    As `Path.suffix` up to Python 3.13; 3.14 has other answers for `..png` and `a.`. Results are
    called after pictures, and a run may go on under another Python.

    >>> [ending(Path(name)) for name in ("a.b.PNG", "..png", ".png", "a.")]
    ['.PNG', '.png', '', '']
    """
    at = path.name.rfind(".")
    return path.name[at:] if 0 < at < len(path.name) - 1 else ""


def open_at_once(path: str | os.PathLike[str]) -> BinaryIO:
    """The file opened to be read. Never waits, as a pipe without a writer would make it.

    Small pieces are read, also where Python's own are 128 KiB: often only the beginning is wanted.

    Raises: OSError.
    """
    without_waiting = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", 8192, opener=lambda name, flags: os.open(name, flags | without_waiting))


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Never waits, as a pipe would make it.

    Raises: DamagedBundleError, OSError.
    """
    real = real_file(path)
    # Between the look and this the file may be put into another's place: look again at what is
    # open.
    with open_at_once(real) as stream:
        kind = os.fstat(stream.fileno()).st_mode
        content = stream.read(most + 1) if stat.S_ISREG(kind) else b""
    if not stat.S_ISREG(kind) or len(content) > most:
        raise DamagedBundleError(
            f"{path} is no regular file of at most {most} bytes. Copy or build the bundle again."
        )
    return content


def check_presence(folder: Path, file: File) -> None:
    """Refuse a file that is missing, no regular file, or of another size; links are followed.

    Raises: DamagedBundleError.
    """
    size = real_file(folder / file.path).stat().st_size
    if size != file.bytes:
        raise DamagedBundleError(
            f"{folder / file.path} has {size} bytes, the manifest says {file.bytes}: the copy was "
            "cut short or the file was changed. Copy or build the bundle again."
        )


def check_content(folder: Path, file: File) -> None:
    """Refuse a file of another content. Raises: DamagedBundleError."""
    sha256 = sha256_of(folder / file.path)
    if sha256 != file.sha256:
        raise DamagedBundleError(
            f"{folder / file.path} is damaged: SHA-256 is {sha256}, the manifest says "
            f"{file.sha256}. Copy or build the bundle again."
        )


def write_atomic(path: Path, content: bytes) -> Path:
    """Write the file, and the folder above it, whole or not at all. Raises: OutputError."""
    write_together({path: content})
    return path
