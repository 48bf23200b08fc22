"""Write a bundle beside its final place and rename it when it is whole.

Imports no torch: a Jetson finishes a bundle with NumPy and TensorRT alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.bundle.replace import clear_up, new_stage, take_place, turn
from export.errors import BuildError
from runtime.errors import BundleError
from runtime.manifest import MANIFEST, OLDEST_SCHEMA, SCHEMA, Manifest
from runtime.there import exists, is_dir


@contextmanager
def staged(destination: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends without an
    error.

    After an error, or a signal that raises, nothing is left and an old bundle stays as it was.
    After a kill or a power cut the old or the new bundle is there, or comes back with the next
    build of that name, which also deletes what the killed one left.
    Raises: BuildError when `destination` exists (and is not an old bundle to overwrite) or the disk
    is full.
    """
    destination = Path(os.path.realpath(destination))
    try:
        clear_up(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with turn(destination.parent):  # another build may be between its two renames
            check_destination(destination, overwrite=overwrite)
        free = shutil.disk_usage(destination.parent).free
        if free < needed_bytes:
            raise BuildError(
                f"the disk of {destination.parent} has {free / 1e9:.2f} GB free; this bundle needs "
                f"about {needed_bytes / 1e9:.2f} GB. Free some, or pass --output on another disk."
            )
        with new_stage(destination) as stage:
            yield stage
            with turn(destination.parent):
                check_destination(destination, overwrite=overwrite)  # another may have come first
                take_place(stage, destination)
    except OSError as error:
        raise BuildError(
            f"cannot write the bundle {destination}: {error}. Nothing of it was left behind."
        ) from error


def with_name(folder: Path) -> Path:
    """The folder by a path that ends in its name; ".", ".." and "" have none."""
    return folder if folder.name not in ("", "..") else Path(os.path.realpath(folder))


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a place that may not be written: only a bundle, and nothing beside its own files, is
    ever replaced.

    Raises: BuildError.
    """
    if not exists(destination):
        if os.path.islink(os.path.realpath(destination)):  # noqa: PTH114
            raise BuildError(f"{destination} is a link that leads to itself; pass another --output")
        return
    if not overwrite:
        raise BuildError(
            f"{destination} exists; pass --overwrite to replace it, or another --output"
        )
    try:
        listed = {file.path for file in Manifest.load(destination).files}
    except BundleError as error:
        listed = _files_of_another_release(destination)
        if not listed:
            raise BuildError(
                f"{destination} exists and is not a whole bundle, so it is not overwritten; remove "
                "it yourself or pass "
                f"another --output ({error})"
            ) from error
    present = {
        path.relative_to(destination).as_posix()
        for path in destination.rglob("*")
        if not is_dir(path)
    }
    if foreign := sorted(present - listed - {MANIFEST}):
        raise BuildError(
            f"{destination} holds files that are not the bundle's: {foreign[:5]}; move them, so "
            "that "
            "replacing the bundle loses nothing, or pass another --output"
        )


def _files_of_another_release(folder: Path) -> set[str]:
    """What a manifest of a schema that this release does not read lists; nothing elsewhere."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        readable = OLDEST_SCHEMA <= body["schema"] <= SCHEMA
        return set() if readable else {str(file["path"]) for file in body["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
