"""Put a finished folder in its place: a kill or a power cut at any moment leaves a whole one.

What a build leaves beside its destination NAME while it runs, or when it is killed:

    .NAME.partial-BOOT-*   being written; after an exchange, what was replaced and is being deleted
    .NAME.old-BOOT-*       the old bundle between two renames, where paths cannot be exchanged

Each partial folder is locked by the process that made it, and the system lets go of the lock when
that process ends, however it ends. BOOT is the running system's own number: locks are not seen from
another machine on a network disk, so only folders of this one are deleted. Imports no torch.
"""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.progress import say
from runtime.errors import BundleError
from runtime.manifest import Manifest
from runtime.there import exists, is_dir

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere nothing is swept
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def new_stage(destination: Path) -> Iterator[Path]:
    """A new, locked folder beside `destination`; what lies under its name is deleted at the end.

    Raises: OSError.
    """
    with turn(destination.parent):  # nobody sweeps it before it is locked
        start = _start(destination, "partial") + f"{_boot()}-"
        stage = Path(tempfile.mkdtemp(prefix=start, dir=destination.parent))
        lock = _lock(stage, wait=False)
    try:
        stage.chmod(0o755)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def turn(folder: Path) -> Iterator[bool]:
    """Only one build at a time makes, takes and sweeps places in a folder; others wait.

    False where this system or file system has no such locks.
    """
    lock = _lock(folder, wait=True)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def clear_up(destination: Path) -> None:
    """Bring back an old bundle that a killed build had moved aside, and delete what processes that
    are dead have left.

    Raises: OSError.
    """
    if not is_dir(destination.parent):
        return
    with turn(destination.parent) as alone:
        for old in _left(destination, "old"):
            if not exists(destination):
                say(f"bringing back {destination}, which a killed build had moved to {old.name}")
                old.rename(destination)
            elif _is_whole(destination):
                shutil.rmtree(old, ignore_errors=True)
        for partial in _left(destination, "partial"):
            ours = partial.name.startswith(_start(destination, "partial") + f"{_boot()}-")
            lock = _lock(partial, wait=False) if alone and _boot() and ours else None
            if lock is not None:
                shutil.rmtree(partial, ignore_errors=True)
                os.close(lock)
            elif not ours:
                say(
                    f"{partial} was left by a build on another machine, or before this one was "
                    "started; unless a build runs there, delete it"
                )


def take_place(stage: Path, destination: Path) -> None:
    """Make `stage` what lies at `destination`, on the disk too; call it in `turn`.

    An old bundle lies under the name of the stage then, and goes with it. Raises: OSError, and
    what was there before is there still.
    """
    sync_tree(stage)
    if not exists(destination):
        stage.rename(destination)
    elif not exchange(stage, destination):
        _rename_twice(stage, destination)
    _sync(destination.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step. False, and nothing is changed, where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    paths = os.fsencode(first), os.fsencode(second)
    status: int = rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    return status == 0


def sync_tree(folder: Path) -> None:
    """Have all files and folders of a folder written to the disk itself. Raises: OSError."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if os.name == "nt":  # cannot open folders, nor sync what was opened to read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_twice(stage: Path, destination: Path) -> None:
    """Between the two renames nothing lies at `destination`: `clear_up` mends that."""
    name = f"{_start(destination, 'old')}{_boot()}-{secrets.token_hex(4)}"
    aside = destination.with_name(name)
    try:
        destination.rename(aside)
        stage.rename(destination)
    except BaseException:
        if exists(aside) and not exists(destination):
            aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _start(destination: Path, kind: str) -> str:
    return f".{destination.name}.{kind}-"


def _left(destination: Path, kind: str) -> list[Path]:
    return sorted(destination.parent.glob(glob.escape(_start(destination, kind)) + "*"))


def _is_whole(folder: Path) -> bool:
    try:
        Manifest.load(folder)
    except BundleError:
        return False
    return True


def _boot() -> str:
    """The number that the running system drew when it started, shortened; "" where it has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").replace("-", "")[:16]
    except OSError:
        return ""


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds a folder's lock until it is closed, or the process ends; None where
    another holds it, or where there are no locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor
