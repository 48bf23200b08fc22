"""Compiled networks, kept in the user's cache folder for the next opening.

A backend that optimises a large graph and packs its weights each time it opens a bucket, or
compiles kernels for the GPU, can write down what comes out. An entry is a folder with a record of
its files: made beside and put into place whole, used only by the same versions on the same kind of
CPU and GPU, compared with its checksums as a bundle is, and proved by the golden sample before its
first answer. What is damaged goes, and is made anew. All entries together stay below 24 GB, and a
new one leaves as much of the disk free as it takes; those that were not used for longest go first.
LOTUS_EDGE_COMPILED=0 in the environment keeps and uses none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.cache import place_of
from runtime.errors import LotusError
from runtime.files import File, check_presence, describe_file
from runtime.manifest_json import parse
from runtime.writing import private_folder

FORMAT = 2
"""Part of every key. It changes with what a backend writes, and with how it compiles."""

OFF = "LOTUS_EDGE_COMPILED"
SMALLEST = 256_000_000
"""Bytes of a bundle below which nothing is kept: it opens in a second or two."""

_LARGEST = 24_000_000_000  # bytes of all entries
_RECORD = "record.json"
_STALE = 86_400.0  # seconds after which a folder that a process was writing is nobody's


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An entry: `folder` holds `files`, as `backend._open` wrote them.

    `identity` says in short what it held when it was found: one that is made anew has another.
    """

    folder: Path
    files: list[File]
    identity: str

    def discard(self) -> None:
        """Remove it; another process may have been faster."""
        _remove(self.folder)


def find(key: Mapping[str, Any]) -> Kept | None:
    """The entry under exactly this key; None where there is none, or no whole one."""
    folder = _folder(key)
    if folder is None:
        return None
    try:
        content = (folder / _RECORD).read_bytes()
    except OSError:  # none, or that of another user
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = {}
    try:
        files = parse(list[File], record["files"], _RECORD)
        whole = {*os.listdir(folder)} == {_RECORD, *(file.path for file in files)}
        if record["key"] != dict(key) or not whole:
            raise ValueError("another entry")
        for file in files:
            check_presence(folder, file)
        with contextlib.suppress(OSError):  # on a disk that is read-only
            os.utime(folder / _RECORD)  # used now
    except (OSError, ValueError, LookupError, TypeError, RecursionError, LotusError):
        _remove(folder)
        return None
    return Kept(folder=folder, files=files, identity=hashlib.sha256(content).hexdigest())


def make(key: Mapping[str, Any], size: int, write: Callable[[Path], None]) -> Kept | None:
    """A new entry under this key, with what `write` puts into the folder that it is given. None
    where it cannot be kept: no folder, or no room for `size` bytes.

    Raises: what `write` raises, but for OSError.
    """
    folder = _folder(key)
    if folder is None:
        return None
    partial = None
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _make_room(folder.parent, size):
            return None
        partial = private_folder(folder.parent)
        write(partial)
        files = [describe_file(partial, name) for name in sorted(os.listdir(partial))]
        record = {"key": dict(key), "files": [asdict(file) for file in files]}
        (partial / _RECORD).write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:  # another process may have kept the same; else it is a rest of one
            if find(key) is None:
                _remove(folder)
                partial.rename(folder)
    except OSError:
        return None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return find(key)


def _remove(folder: Path) -> None:
    """Never half under its own name: a rest without a record would stay for ever."""
    with contextlib.suppress(OSError):
        gone = private_folder(folder.parent)
        with contextlib.suppress(OSError):
            folder.rename(gone / "entry")
        shutil.rmtree(gone, ignore_errors=True)


def _folder(key: Mapping[str, Any]) -> Path | None:
    return None if os.environ.get(OFF) == "0" else place_of("compiled", key)


def _make_room(parent: Path, needed: int) -> bool:
    """Whether an entry of `needed` bytes fits, once old ones are gone."""
    for partial in parent.glob(".lotus-edge-*"):  # of a container that is gone, say
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE:
                shutil.rmtree(partial, ignore_errors=True)
    entries = sorted(_entries(parent))
    free = shutil.disk_usage(parent).free + sum(size for _, size, _ in entries)
    if needed > _LARGEST or 2 * needed > free:  # nor without the others
        return False
    while True:
        kept = sum(size for _, size, _ in entries)
        if kept + needed <= _LARGEST and 2 * needed <= shutil.disk_usage(parent).free:
            return True
        if not entries:
            return False
        _remove(entries.pop(0)[2])


def _entries(parent: Path) -> Iterator[tuple[float, int, Path]]:
    """When each was used last, its bytes and its folder."""
    for record in parent.glob(f"*/{_RECORD}"):
        with contextlib.suppress(OSError):
            used = record.stat().st_mtime
            yield used, sum(path.stat().st_size for path in record.parent.iterdir()), record.parent
